"""What a network is narrowed to: so many macs or parameters, or so many milliseconds as an engine takes them here.

No torch.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from mobilenets.arch import cost
from mobilenets.deploy import engines
from mobilenets.deploy.bench import pinned, time_calls
from mobilenets.deploy.engines import Engine
from mobilenets.deploy.latency import Setting
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, with_random_weights
from mobilenets.model.card import Card

Importance = Literal["taylor", "magnitude", "bn-scale"]
ROUNDS, ROUND_SECONDS, WARM_UP_SECONDS = 5, 0.1, 0.05
# What runtimes compute at once: a count of channels between two multiples takes as long as the next.
AT_ONCE = 8


class Unmet(UserError):
    """No choice of channels meets the goal: `nearest` is the bundle that comes closest."""

    def __init__(self, message: str, nearest: Bundle | None = None) -> None:
        super().__init__(message)
        self.nearest = nearest


class Goal(Protocol):
    """`of` measures a network by its card; at most `limit` of it is wanted.

    `price` tells what a channel costs, by which channels are compared: of the goal itself, or of what goes along with
    it and can be counted.
    """

    @property
    def limit(self) -> float: ...

    @property
    def called(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def asked(self) -> dict[str, Any]:
        """What was asked for, whatever is measured."""

    def of(self, card: Card) -> float: ...

    def price(self, card: Card) -> float: ...


def macs_m(card: Card) -> float:
    """Multiply-adds of one image in millions, the task's own layers among them."""
    return sum(row.macs for row in cost.layers(card.graph)) / 1e6


def params_m(card: Card) -> float:
    """Parameters in millions, the task's own layers' among them."""
    return sum(row.params for row in cost.layers(card.graph)) / 1e6


@dataclass(frozen=True)
class _Counted(abc.ABC):
    """At most `limit` millions of what a network's card says alone."""

    limit: float
    called: ClassVar[str]
    name: ClassVar[str]
    unit: ClassVar[str] = "M"

    @property
    def asked(self) -> dict[str, Any]:
        return {self.name: round(self.limit, 6)}

    @abc.abstractmethod
    def of(self, card: Card) -> float: ...

    def price(self, card: Card) -> float:
        return self.of(card)


class Macs(_Counted):
    """At most `limit` million multiply-adds."""

    called, name = "macs", "macs_m"

    def of(self, card: Card) -> float:
        return macs_m(card)


class Params(_Counted):
    """At most `limit` million parameters: what a file's size goes by."""

    called, name = "parameters", "params_m"

    def of(self, card: Card) -> float:
        return params_m(card)


class Latency:
    """At most `limit` milliseconds of one image, or a `share` of what the network `whole` takes.

    What a network takes doesn't depend on its weights: random ones are timed, in rounds in turn with those of `whole`.
    It is the quickest call that counts: a busy machine makes others longer, and none shorter. Raises `UserError` for an
    engine that isn't there or doesn't take a network.
    """

    called, unit = "latency", "ms"

    def __init__(self, whole: Card, setting: Setting, limit: float = 0.0, share: float = 0.0) -> None:
        self.setting, self.fixed, self.share = setting, limit, share
        self.whole, self.whole_ms = self._ready(whole), math.inf
        self.of(whole)

    @property
    def limit(self) -> float:
        return self.fixed or self.share * self.whole_ms

    @property
    def asked(self) -> dict[str, Any]:
        what = {"latency_ms": self.fixed} if self.fixed else {"latency_share": self.share}
        return {**what, **self.setting._asdict()}

    def _ready(self, card: Card) -> Engine:
        s = self.setting
        with pinned(s.threads):
            engine, _ = engines.build(s.engine, with_random_weights(card, s.precision), s.precision, s.threads)
            time_calls(engine, 1, WARM_UP_SECONDS)
        return engine

    def price(self, card: Card) -> float:
        return macs_m(card)

    def of(self, card: Card) -> float:
        """Milliseconds of one image."""
        engine, best = self._ready(card), math.inf
        with pinned(self.setting.threads):
            for _ in range(ROUNDS):
                self.whole_ms = min(self.whole_ms, 1e3 * min(time_calls(self.whole, 1, ROUND_SECONDS)))
                best = min(best, 1e3 * min(time_calls(engine, 1, ROUND_SECONDS)))
        return best


def tenth(count: int, multiple: int) -> int:
    """The least that a layer of `count` channels keeps: a tenth, rounded up to a multiple."""
    return min(count, -(-count // (10 * multiple)) * multiple)
