"""`mobilenets sweep`: the grid of widths and resolutions, trained on your data: what each costs, and what it gives."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import os
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mobilenets import checks, console, cost, data, files, latency, recipes, run, zoo
from mobilenets.bundle import Precision
from mobilenets.errors import UserError
from mobilenets.options import commas
from mobilenets.processes import world
from mobilenets.recipes import Overrides, Recipe
from mobilenets.sweep.jobs import ENGINE, Job, Trained, cluster, finished, timed, train_network

if TYPE_CHECKING:
    from rich.console import RenderableType

TABLE, SWEEP, PAGE = "sweep.csv", "sweep.json", "sweep.html"


@dataclass(frozen=True)
class Network:
    """A network over its seeds: mean top-1 in percent, `spread` its standard deviation (None of one seed).

    `front`: no other network has a lower latency and as much accuracy.
    """

    arch: str
    alpha: float
    resolution: int
    macs: int
    params: int
    size_bytes: int
    latency_ms: float
    top1: float
    spread: float | None
    seeds: int
    train_seconds: float
    front: bool = False

    @property
    def title(self) -> str:
        return f"{self.arch} {self.alpha:g}-{self.resolution}"


def networks(runs: Iterable[Trained]) -> tuple[Network, ...]:
    """What was trained, by network, fastest first, those on the front of accuracy over latency marked."""
    by_key: dict[tuple[str, float, int], list[Trained]] = {}
    for r in runs:
        if not r.error:
            by_key.setdefault(r.key, []).append(r)
    out: list[Network] = []
    for key, rs in by_key.items():
        top1 = [r.top1 or 0.0 for r in rs]
        spread = statistics.stdev(top1) if len(rs) > 1 else None
        seconds = sum(r.train_seconds or 0.0 for r in rs)
        first = rs[0]
        out.append(
            Network(
                *key, first.macs, first.params, first.size_bytes or 0, first.latency_ms or 0.0,
                statistics.fmean(top1), spread, len(rs), seconds,
            )
        )  # fmt: skip
    best = -1.0
    out.sort(key=lambda n: (n.latency_ms, -n.top1))
    for i, n in enumerate(out):
        if n.top1 > best:
            best, out[i] = n.top1, dataclasses.replace(n, front=True)
    return tuple(out)


@dataclass(frozen=True)
class Sweep:
    """What `sweep` made so far, of `planned` trainings. Latencies are of one image on `threads` threads."""

    out: Path
    source: str
    recipe: Recipe
    precision: Precision
    threads: int
    planned: int
    runs: tuple[Trained, ...]

    @functools.cached_property
    def networks(self) -> tuple[Network, ...]:
        return networks(self.runs)

    @property
    def failed(self) -> list[Trained]:
        return [r for r in self.runs if r.error]

    @property
    def held_out(self) -> str:
        """What the accuracies are of, e.g. "val split, 359 images"."""
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
            "page": str(self.out / PAGE),
            "networks": [dataclasses.asdict(n) for n in self.networks],
            "runs": [dataclasses.asdict(r) for r in self.runs],
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        several = any(n.spread is not None for n in self.networks)
        columns = ["network", "top-1 %", *(["± sd"] if several else []), "latency ms", "size MB", "macs M", "params M"]
        t = console.table(
            f"{len(self.networks)} networks trained on {self.source}", [*columns, "train s"], ("network",)
        )
        t.columns[0].no_wrap = True
        for n in self.networks:
            spread = "" if n.spread is None else f"{n.spread:.2f}"
            t.add_row(
                f"{'→' if n.front else ' '} {n.title}",
                f"{n.top1:.2f}",
                *([spread] if several else []),
                f"{n.latency_ms:.3f}",
                console.megabytes(n.size_bytes),
                f"{n.macs / 1e6:.2f}",
                f"{n.params / 1e6:.3f}",
                f"{n.train_seconds:.0f}",
                style="bold green" if n.front else "",
            )
        if self.networks:
            t.caption = f"→ on the Pareto front of top-1 ({self.held_out}) over latency ({self.how})"
        failed = [Text(f"{r.title} failed: {r.error}", style="red") for r in self.failed]
        return Group(t, *failed, f"page {self.out / PAGE}")


# ---- the verb ------------------------------------------------------------------------------------------------------


def sweep(
    source: str,
    *,
    out: Path | None = None,
    arch: Annotated[tuple[str, ...], commas(str)] = ("v1",),
    alphas: Annotated[tuple[float, ...], commas(float)] = (1.0, 0.75, 0.5, 0.25),
    resolutions: Annotated[tuple[int, ...], commas(int)] = (224, 192, 160, 128),
    recipe: str = "modern",
    overrides: Annotated[Overrides | None, Parameter(name="*")] = None,
    seeds: int = 1,
    precision: Precision = "float32",
    threads: int = 1,
    ray: str | None = None,
    ray_cpus: float = 1,
    resume: bool = False,
    skip_bad: bool = False,
    root: Path | None = None,
) -> Sweep:
    """Train every width at every resolution on your data, and draw accuracy over macs, parameters and latency.

    The cheapest networks come first; after each, OUT/sweep.csv, sweep.json and sweep.html have what there is. Each
    network is a run in a folder of its own. On a Ray cluster (--ray, or RAY_ADDRESS set) networks are trained side by
    side: OUT and the data must then be where all its machines see them.

    Parameters
    ----------
    source
        Folder or zip of class folders, or a set's name (digits, cifar10, flowers102, ...).
    out
        Folder of the sweep; by default in runs/, by the name of the data.
    arch
        Networks, with commas between: v1,v2.
    alphas
        Width multipliers, with commas between.
    resolutions
        Input heights and widths in pixels, with commas between.
    recipe
        modern, cifar, v1-paper, v2-paper or v3-paper.
    seeds
        How often each network is trained; with several, accuracies have error bars.
    precision
        What is exported, scored and measured: float32 or int8.
    threads
        Threads (and processors) latency is measured on.
    ray
        Address of a Ray cluster: auto, HOST:PORT, or local for one on this machine.
    ray_cpus
        Processors of each network's training on Ray.
    resume
        Go on with a sweep that was stopped, from the last checkpoint of the network it was at; the lists may be longer
        than before.
    skip_bad
        Go on without damaged images.
    root
        Where copies of named sets are, or go.
    """
    from rich.text import Text

    if seeds < 1:
        raise UserError(f"seeds must be 1 or more, not {seeds}")
    if world()[0] > 1:
        raise UserError("sweep trains each network on one process: start it without torchrun, or on Ray (--ray)")
    latency.settings([ENGINE], [precision], [threads])  # says what there isn't
    chosen = recipes.recipe(recipe, overrides)
    address = ray or _ray_of_environment()
    grid = {a.title: a for n in arch for alpha in alphas for r in resolutions for a in [zoo.arch(n, alpha, r)]}
    d = data.open_data(source, root)
    archs = sorted((a.replace(classes=len(d.labels)) for a in grid.values()), key=lambda a: cost.count(a).macs)
    out = out or run.folder(source, "sweep")
    config = {"verb": "sweep", "source": source, "recipe": chosen.to_json(), "precision": precision}
    with cluster(address, ray_cpus) if address else contextlib.nullcontext() as on_ray:
        run.prepare(out, config, resume)
        checks.check(d, skip_bad)
        jobs = [
            Job(source, root, a, chosen, precision, seed, out / f"{a.name}-{a.alpha:g}-{a.resolution}-seed{seed}")
            for seed in range(seeds)
            for a in archs
        ]
        before = {job.out: finished(job) for job in jobs}
        left = [job for job in jobs if not before[job.out]]
        runs = timed([r for r in before.values() if r], precision, threads)
        made = Sweep(out, source, chosen, precision, threads, len(jobs), tuple(runs))
        for result in on_ray(left) if on_ray else (train_network(d, job) for job in left):
            same = next((r for r in runs if r.key == result.key and not r.error), None)  # of another seed
            known = [dataclasses.replace(result, latency_ms=same.latency_ms)] if same else []
            runs += known or timed([result], precision, threads)
            made = write(dataclasses.replace(made, runs=tuple(runs)))
            console.note(Text(f"{len(runs)}/{len(jobs)} {result.title}: {result.outcome}", style="bold"))
    if left:  # hours lie between the first and the last: here they are measured in turn
        made = dataclasses.replace(made, runs=tuple(timed(runs, precision, threads)))
    write(made)
    if made.failed:
        console.note(made)
        names = "; ".join(f"{r.title}: {r.error}" for r in made.failed)
        raise UserError(f"{len(made.failed)} of {len(jobs)} trainings failed ({names}); the others are in {out}")
    return made


def _ray_of_environment() -> str | None:
    """The cluster that RAY_ADDRESS names, where Ray is installed."""
    from importlib.util import find_spec

    return (os.environ.get("RAY_ADDRESS") or None) if find_spec("ray") else None


def write(made: Sweep) -> Sweep:
    """Write OUT/sweep.csv (a row for each training), sweep.json and sweep.html; gives `made`."""
    from mobilenets.sweep.page import page

    front = {(n.arch, n.alpha, n.resolution) for n in made.networks if n.front}
    with files.atomic_file(made.out / TABLE) as tmp, tmp.open("w", newline="") as f:
        names = {"resolution": "resolution_px", "top1": "top1_percent"}
        fields = [f.name for f in dataclasses.fields(Trained)]
        writer = csv.writer(f)
        writer.writerow([*(names.get(name, name) for name in fields), "pareto"])
        writer.writerows([*(getattr(r, name) for name in fields), int(r.key in front)] for r in made.runs)
    files.write_json(made.out / SWEEP, made.to_json())
    with files.atomic_file(made.out / PAGE) as tmp:
        tmp.write_text(page(made))
    return made
