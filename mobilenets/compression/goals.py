"""What a network is narrowed to: so many macs, or so many milliseconds as an engine takes them here. No torch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mobilenets.arch import cost
from mobilenets.deploy import engines
from mobilenets.deploy.bench import pinned, time_calls
from mobilenets.deploy.engines import Engine
from mobilenets.deploy.latency import Setting
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, with_random_weights
from mobilenets.model.card import Card

ROUNDS, ROUND_SECONDS, WARM_UP_SECONDS = 5, 0.08, 0.05
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
    of `whole`, and counted by what these took more than at their best, so that a machine's mood changes no choice.
    Raises `UserError` for an engine that isn't there or doesn't take the network.
    """

    called, unit = "latency", "ms"

    def __init__(self, whole: Card, setting: Setting, limit: float | None = None, share: float | None = None) -> None:
        self.setting = setting
        self.whole = self._ready(whole)
        self.best = float("inf")
        own = self.of(whole)
        self.limit = own * share if share else limit or own

    def _ready(self, card: Card) -> Engine:
        s = self.setting
        with pinned(s.threads):
            engine, _ = engines.build(s.engine, with_random_weights(card, s.precision), s.precision, s.threads)
            time_calls(engine, 1, WARM_UP_SECONDS)
        return engine

    def of(self, card: Card) -> float:
        """Milliseconds of one image, the median of its quietest round."""
        engine = self._ready(card)
        with pinned(self.setting.threads):
            rounds = [(_round(self.whole), _round(engine)) for _ in range(ROUNDS)]
        beside, own = (float(np.min(column)) for column in zip(*rounds, strict=True))
        self.best = min(self.best, beside)
        return 1e3 * own * self.best / beside


def _round(engine: Engine) -> float:
    return float(np.median(time_calls(engine, 1, ROUND_SECONDS)))


@functools.cache
def tenth(count: int, multiple: int) -> int:
    """The least that a layer of `count` channels keeps: a tenth, rounded up to a multiple."""
    return min(count, -(-count // (10 * multiple)) * multiple)
