"""What a network is narrowed to: so many macs, or so many milliseconds as an engine takes them here. No torch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

from mobilenets.arch import cost
from mobilenets.deploy import engines
from mobilenets.deploy.bench import best_round_ms, pinned, time_calls
from mobilenets.deploy.engines import Engine
from mobilenets.deploy.latency import Setting
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, with_random_weights
from mobilenets.model.card import Card

ROUNDS, ROUND_SECONDS, WARM_UP_SECONDS = 5, 0.1, 0.05
# What runtimes compute at once: a count of channels between two multiples takes as long as the next.
AT_ONCE = 8


class Unmet(UserError):
    """No choice of channels meets the goal: `nearest` is the bundle that comes closest."""

    def __init__(self, message: str, nearest: Bundle) -> None:
        super().__init__(message)
        self.nearest = nearest


class Goal(Protocol):
    """`of` measures a network by its card; at most `limit` of it is wanted."""

    @property
    def limit(self) -> float: ...

    @property
    def called(self) -> str: ...

    @property
    def unit(self) -> str: ...

    def of(self, card: Card) -> float: ...


def macs_m(card: Card) -> float:
    """Multiply-adds of one image in millions, the task's own layers among them."""
    return sum(row.macs for row in cost.layers(card.graph)) / 1e6


@dataclass(frozen=True)
class Macs:
    """At most `limit` million multiply-adds."""

    limit: float
    called: str = "macs"
    unit: str = "M"

    def of(self, card: Card) -> float:
        return macs_m(card)


class Latency:
    """At most `limit` milliseconds of one image, or that share of what the network `whole` takes.

    What a network takes doesn't depend on its weights: random ones are timed. Its rounds are taken in turn with rounds
    of `whole`, and the quickest calls of both compared, which a busy machine changes least: latencies are `whole`'s, the
    median of its quietest round, by that ratio. Raises `UserError` for an engine that isn't there or doesn't take it.
    """

    called, unit = "latency", "ms"

    def __init__(self, whole: Card, setting: Setting, limit: float | None = None, share: float | None = None) -> None:
        self.setting = setting
        self.whole = self._ready(whole)
        with pinned(setting.threads):
            rounds = [_round(self.whole) for _ in range(ROUNDS)]
        self.own = best_round_ms(rounds)
        self.quickest = min(map(min, rounds))
        self.limit = self.own * share if share else limit or self.own

    def _ready(self, card: Card) -> Engine:
        s = self.setting
        with pinned(s.threads):
            engine, _ = engines.build(s.engine, with_random_weights(card, s.precision), s.precision, s.threads)
            time_calls(engine, 1, WARM_UP_SECONDS)
        return engine

    def of(self, card: Card) -> float:
        """Milliseconds of one image."""
        engine = self._ready(card)
        with pinned(self.setting.threads):
            rounds = [(_round(self.whole), _round(engine)) for _ in range(ROUNDS)]
        self.quickest = min(self.quickest, *(min(beside) for beside, _ in rounds))
        return self.own * min(min(own) for _, own in rounds) / self.quickest


def _round(engine: Engine) -> list[float]:
    """Seconds of each of some calls."""
    return time_calls(engine, 1, ROUND_SECONDS)


@functools.cache
def tenth(count: int, multiple: int) -> int:
    """The least that a layer of `count` channels keeps: a tenth, rounded up to a multiple."""
    return min(count, -(-count // (10 * multiple)) * multiple)
