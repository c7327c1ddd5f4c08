"""What a sweep of widths and resolutions is asked for and finds. No torch."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenets import console
from mobilenets.arch.spec import Arch
from mobilenets.deploy import latency
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Precision
from mobilenets.tasks.detect.config import DetectorOptions
from mobilenets.tasks.task import MetricSpec
from mobilenets.training import loggers
from mobilenets.training.recipes import Recipe

if TYPE_CHECKING:
    from rich.console import RenderableType


LITTLE = 0.2  # of what the best network gains over the floor: who gains less has learned next to nothing
TABLE, SWEEP, PAGE = "sweep.csv", "sweep.json", "sweep.html"


@dataclass(frozen=True)
class Network:
    """A network over its seeds: the mean of the task's score, `spread` its standard deviation (None of one seed).

    `front`: no other network has a lower latency and as good a score.
    """

    arch: str
    alpha: float
    resolution: int
    macs: int
    params: int
    size_bytes: int
    latency_ms: float
    score: float
    spread: float | None
    seeds: int
    train_seconds: float
    front: bool = False

    @property
    def title(self) -> str:
        return f"{self.arch} {self.alpha:g}-{self.resolution}"


def networks(runs: Iterable[Trained], metric: MetricSpec) -> tuple[Network, ...]:
    """What was trained, by network, fastest first, those on the front of the score over latency marked."""
    by_key: dict[tuple[str, float, int], list[Trained]] = {}
    for r in runs:
        if not r.error:
            by_key.setdefault(r.key, []).append(r)
    out: list[Network] = []
    for key, rs in by_key.items():
        scores = [r.score or 0.0 for r in rs]
        spread = statistics.stdev(scores) if len(rs) > 1 else None
        seconds = sum(r.train_seconds or 0.0 for r in rs)
        first = rs[0]
        out.append(
            Network(
                *key, first.macs, first.params, first.size_bytes or 0, first.latency_ms or 0.0,
                statistics.fmean(scores), spread, len(rs), seconds,
            )
        )  # fmt: skip
    best = -math.inf
    out.sort(key=lambda n: (n.latency_ms, -metric.rank(n.score)))
    for i, n in enumerate(out):
        if metric.rank(n.score) > best:
            best, out[i] = metric.rank(n.score), dataclasses.replace(n, front=True)
    return tuple(out)


@dataclass(frozen=True)
class Sweep(console.Notebook):
    """What `sweep` made so far, of `planned` trainings. Latencies are of one image on `threads` threads.

    `macs`: what every network was to have, its width found by them; 0 for a grid of widths. `floor`: the score of the
    commonest class for every image, where the task is to tell classes.
    """

    out: Path
    source: str
    recipe: Recipe
    precision: Precision
    threads: int
    planned: int
    runs: tuple[Trained, ...]
    metric: MetricSpec
    macs: int = 0
    floor: float | None = None

    @functools.cached_property
    def networks(self) -> tuple[Network, ...]:
        return networks(self.runs, self.metric)

    def better(self, a: Network, b: Network) -> bool:
        """Whether `a` scores better than `b` by more than chance: by twice the standard error of the difference."""
        if a.spread is None or b.spread is None:
            return False
        error = math.sqrt(a.spread**2 / a.seeds + b.spread**2 / b.seeds)
        return self.metric.rank(a.score) - self.metric.rank(b.score) > 2 * error

    @property
    def verdict(self) -> str:
        """Of networks of the same macs, which makes the most of them, as far as the seeds can say."""
        if not self.macs or len(self.networks) < 2:
            return ""
        best, *others = sorted(self.networks, key=lambda n: -self.metric.rank(n.score))
        lead = f"of {self.macs / 1e6:.3g} M macs, {best.title} makes the most ({self.metric.say(best.score)})"
        if any(n.spread is None for n in self.networks):
            return f"{lead}; how much of it is chance, several seeds tell (--seeds 3)"
        even = [n.title for n in others if not self.better(best, n)]
        return f"{lead}" + (f"; {', '.join(even)} may be as good: within two standard errors" if even else "")

    @property
    def untaught(self) -> str:
        """The networks that learned next to nothing, whose scores say little of their design."""
        if self.floor is None or not self.networks:
            return ""
        some = self.floor + LITTLE * (max(n.score for n in self.networks) - self.floor)
        names = [f"{n.title} ({self.metric.say(n.score)})" for n in self.networks if n.score < some]
        why = f"the commonest class alone has {self.metric.say(self.floor)}; try another --lr for it, or more --epochs"
        return f"{', '.join(names)} learned next to nothing: {why}" if names else ""

    @property
    def failed(self) -> list[Trained]:
        return [r for r in self.runs if r.error]

    @property
    def held_out(self) -> str:
        """What the scores are of, e.g. "val split, 359 images"."""
        r = next(r for r in self.runs if not r.error)
        return f"{r.split} split, {r.images:,} images"

    @property
    def how(self) -> str:
        """What the latencies were measured with."""
        return f"{ENGINE} {self.precision}, {self.threads} thread{'s' * (self.threads > 1)}, {latency.machine()}"

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "precision": self.precision,
            "engine": ENGINE,
            "threads": self.threads,
            "machine": latency.machine(),
            "recipe": self.recipe.to_json(),
            "planned": self.planned,
            **({"macs": self.macs} if self.macs else {}),
            **({"floor": self.floor} if self.floor is not None else {}),
            "page": str(self.out / PAGE),
            "networks": [_named(n, self.metric) for n in self.networks],
            "runs": [_named(r, self.metric) for r in self.runs],
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        several = any(n.spread is not None for n in self.networks)
        columns = ["network", f"{self.metric.label} {self.metric.unit}", *(["± sd"] if several else []), "latency ms"]
        columns += ["size MB", "macs M", "params M", "train s"]
        t = console.table(
            f"{console.many(len(self.networks), 'network')} trained on {self.source}", columns, ("network",)
        )
        t.columns[0].no_wrap = True
        for n in self.networks:
            spread = "" if n.spread is None else f"{n.spread:.2f}"
            t.add_row(
                f"{'→' if n.front else ' '} {n.title}",
                f"{n.score:.2f}",
                *([spread] if several else []),
                f"{n.latency_ms:.3f}",
                console.megabytes(n.size_bytes),
                f"{n.macs / 1e6:.2f}",
                f"{n.params / 1e6:.3f}",
                f"{n.train_seconds:.0f}",
                style="bold green" if n.front else "",
            )
        if self.networks:
            said = "".join(f"{line}\n" for line in (self.verdict, self.untaught) if line)
            t.caption = (
                f"{said}→ on the Pareto front of {self.metric.label} ({self.held_out}) over latency ({self.how})"
            )
        failed = [Text(f"{r.title} failed: {r.error}", style="red") for r in self.failed]
        return Group(t, *failed, f"page {self.out / PAGE}")


def _named(row: Network | Trained, metric: MetricSpec) -> dict[str, Any]:
    """A row as JSON, its score called what it is."""
    return {metric.name if k == "score" else k: v for k, v in dataclasses.asdict(row).items()}


RESULT = "result.json"
ENGINE = "onnxruntime"  # what latencies are measured on


@dataclass(frozen=True)
class Job:
    """One network to train with one seed, in a folder of its own, `log` its loggers. It can be pickled.

    `init`: what it starts from, if anything.
    """

    source: str
    root: Path | None
    arch: Arch
    recipe: Recipe
    precision: Precision
    seed: int
    out: Path
    task: str = "classify"
    log: tuple[str, ...] = loggers.DEFAULT
    detector: DetectorOptions | None = None
    init: Bundle | None = None


@dataclass(frozen=True)
class Trained(console.Notebook):
    """A network that was trained with one seed.

    `score`: the task's, on `images` images of `split`, by the exported file. Where the training failed, `error` says
    why, and what was measured is None.
    """

    arch: str
    alpha: float
    resolution: int
    seed: int
    macs: int
    params: int
    folder: str
    split: str = ""
    images: int = 0
    score: float | None = None
    size_bytes: int | None = None
    train_seconds: float | None = None
    latency_ms: float | None = None
    error: str = ""

    @property
    def key(self) -> tuple[str, float, int]:
        return self.arch, self.alpha, self.resolution

    @property
    def title(self) -> str:
        return f"{self.arch} {self.alpha:g}-{self.resolution} seed {self.seed}"

    def outcome(self, metric: MetricSpec) -> str:
        return self.error or f"{metric.label} {metric.say(self.score or 0.0)}"
