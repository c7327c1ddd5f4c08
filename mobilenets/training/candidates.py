"""Which network to fine-tune: measured on the data, among those within the budget whose weights can be had.

Each is probed: the best linear classifier of what it sees already, cross-validated. Published accuracy only says which
are worth it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mobilenets import console
from mobilenets.data.dataset import Data
from mobilenets.deploy.choose import Candidate, Choice
from mobilenets.model.bundle import Bundle
from mobilenets.model.convert.starts import Start, nearest
from mobilenets.tasks.task import MetricSpec, Task
from mobilenets.training import probing
from mobilenets.training.probing import Headed
from mobilenets.training.trainer import initial_arch
from mobilenets.web import Unreachable

if TYPE_CHECKING:
    from rich.console import RenderableType

CLOSE = 1.64  # standard errors of their difference on the same images, within which two networks are alike
ENTRANTS = 3  # networks of a halving


@dataclass(frozen=True)
class Tried:
    """A network that was probed: its `Probe.score` on the data's own images, percent, beside what was published.

    `low`, `high`: the probe's 95% interval, of `count` images; `short`: the score on val after a few epochs, where it
    took part in the halving.
    """

    network: str
    source: str
    latency_ms: float
    prior: float
    probe: float
    low: float
    high: float
    count: int
    seconds: float
    picked: bool = False
    short: float | None = None

    @property
    def weights(self) -> str:
        """What they are called, without the folders they lie in."""
        return PurePath(self.source).name

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Tried:
        """The inverse of `to_json`. Raises TypeError for anything else."""
        return cls(**d)


@dataclass(frozen=True)
class Table(console.Notebook):
    """All that were probed, best first."""

    rows: tuple[Tried, ...]
    metric: MetricSpec
    prior: MetricSpec

    def to_json(self) -> dict[str, Any]:
        return {"candidates": [r.to_json() for r in self.rows]}

    def __rich__(self) -> RenderableType:
        halved = any(r.short is not None for r in self.rows)
        columns = ["network", f"probe {self.metric.unit}", "95%", f"{self.prior.label} {self.prior.unit}", "latency ms"]
        t = console.table(
            f"What these networks see of your images: a linear probe on {self.rows[0].count} of them",
            [*columns, *["fine-tuned %"] * halved, "s", "weights"], left=("network", "weights"),
        )  # fmt: skip
        for r in self.rows:
            t.add_row(
                f"{'→' if r.picked else ' '} {r.network}", f"{r.probe:.1f}", f"{r.low:.1f} to {r.high:.1f}",
                f"{r.prior:.1f}", f"{r.latency_ms:.3f}",
                *["" if r.short is None else f"{r.short:.1f}"] * halved, f"{r.seconds:.0f}", r.weights,
                style="bold green" if r.picked else "",
            )  # fmt: skip
        return t


@dataclass
class Entrant:
    """A network with the head that fits the data best, and how good that is."""

    candidate: Candidate
    start: Start
    headed: Headed
    seconds: float
    short: float | None = None

    @property
    def right(self) -> npt.NDArray[Any]:
        return self.headed.probe.right

    def tried(self, picked: bool) -> Tried:
        probe, c = self.headed.probe, self.candidate
        low, high = probe.interval
        return Tried(
            c.arch.title, self.start.source, c.latency_ms, c.prior.value, probe.score, low, high, len(probe.right),
            round(self.seconds, 2), picked, self.short,
        )  # fmt: skip


def worth_probing(choice: Choice, starts: Sequence[Start], most: int) -> list[tuple[Candidate, Start]]:
    """Within the budget and with weights, those that no other beats in both published accuracy and latency.

    At most `most`, the most accurate first; each network as it runs fastest.
    """
    fastest: dict[str, tuple[Candidate, Start]] = {}
    for c in sorted(choice.candidates, key=lambda c: c.latency_ms):
        start = nearest(starts, c.arch)
        if start and c.overshoot(choice.budget) <= 1:
            fastest.setdefault(c.arch.title, (c, start))
    front: list[tuple[Candidate, Start]] = []
    for c, start in fastest.values():  # fastest first
        if not front or c.prior.rank > front[-1][0].prior.rank:
            front.append((c, start))
    return front[::-1][:most]


def probe_all(
    choice: Choice,
    starts: Sequence[Start],
    data: Data,
    task: Task,
    seed: int,
    most: int,
    folder: Path | None,
    balanced: bool = False,
) -> list[Entrant]:
    """The networks worth it, probed, best first; empty where there is none.

    Weights that are here come first; where others can't be fetched, a line says so and those here are what there is.
    Raises `UserError`.
    """
    todo = worth_probing(choice, starts, most)
    loaded: dict[str, Bundle] = {}
    try:
        for _, start in todo:
            if not start.here:
                loaded[start.source] = start.load(folder)
    except Unreachable as e:
        console.note(f"{e}; going on with the weights that are on this machine")
        return probe_all(choice, [s for s in starts if s.here], data, task, seed, most, folder, balanced)
    done = []
    for n, (candidate, start) in enumerate(sorted(todo, key=lambda x: not x[1].here), 1):
        began = time.monotonic()
        if start.source not in loaded:
            loaded[start.source] = start.load(folder)
        bundle = loaded[start.source]
        arch = initial_arch(bundle, candidate.arch.resolution)
        headed = probing.with_head(bundle, arch, data, task, seed, balanced)
        if headed is None:
            return []
        entrant = Entrant(dataclasses.replace(candidate, arch=headed.bundle.card.arch), start, headed, 0.0)
        entrant.seconds = time.monotonic() - began
        console.done(f"{n} of {len(todo)} {arch.title}: {headed.probe.score:.1f}%, {entrant.seconds:.0f} s")
        done.append(entrant)
    return sorted(done, key=lambda e: -e.headed.probe.score)


def alike(entrants: Sequence[Entrant]) -> list[Entrant]:
    """The best, and of other networks those whose probes differ from its by no more than chance; at most ENTRANTS.

    Compared image by image (McNemar, where each is right or wrong). Of one network at several resolutions, the best.
    """
    best = entrants[0]
    out: dict[tuple[str, float], Entrant] = {}
    for e in entrants:
        same = len(e.right) == len(best.right) > 0
        off = best.right.astype(float) - e.right if same else np.ones(1)
        apart, error = float(off.mean()), math.sqrt(float(np.square(off).mean()) / len(off)) if same else 0.0
        if e is best or apart <= CLOSE * error:
            out.setdefault((e.candidate.arch.name, e.candidate.arch.alpha), e)
    return [*out.values()][:ENTRANTS]


def halve(
    entrants: Sequence[Entrant], train: Callable[[Entrant], Bundle], metric: MetricSpec
) -> tuple[Entrant, Bundle]:
    """Train each for a few epochs; the better of them, and what came of it."""
    made = []
    for e in entrants:
        trained = train(e)
        e.short = trained.card.metrics[0].value
        console.note(f"{e.candidate.arch.title}: {metric.say(e.short)} after a few epochs")
        made.append((e, trained))
    return max(made, key=lambda m: metric.rank(m[1].card.metrics[0].value))


def of_json(found: Mapping[str, Any]) -> tuple[Tried, ...]:
    """What a run's file of candidates has. Raises KeyError and such for anything else: see `files.read_object`."""
    return tuple(Tried.from_json(d) for d in found["candidates"])
