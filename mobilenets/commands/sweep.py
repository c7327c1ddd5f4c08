"""`mobilenets sweep`: the grid of widths and resolutions, trained on your data: what each costs, and what it gives."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import os
from collections import Counter
from typing import Annotated

from cyclopts import Parameter

from mobilenets import console, files, tasks
from mobilenets.arch import cost, zoo
from mobilenets.arch.matching import at_macs
from mobilenets.arch.spec import Arch
from mobilenets.arguments import DataSource, StrPath, as_path, checked, several
from mobilenets.commands.options import Floats, Ints, Words
from mobilenets.commands.sweep_jobs import cluster, finished, timed, train_network
from mobilenets.commands.train import pretrained
from mobilenets.data import checks
from mobilenets.data.dataset import Data, cache_side
from mobilenets.data.source import Reading, spelled
from mobilenets.deploy import latency
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Precision
from mobilenets.tasks.detect.config import DetectorOptions
from mobilenets.tasks.task import Shaped
from mobilenets.training import loggers, recipes, run
from mobilenets.training import trainer as train
from mobilenets.training.distributed import world
from mobilenets.training.recipes import Overrides
from mobilenets.training.sweep import ENGINE, PAGE, SWEEP, TABLE, Job, Sweep, Trained

RESOLUTIONS = (224, 192, 160, 128)  # V1 paper, figure 4


@checked
def sweep(
    source: DataSource,
    *,
    out: StrPath | None = None,
    task: str = "classify",
    arch: Words = ("v1",),
    alphas: Floats = (1.0, 0.75, 0.5, 0.25),
    resolutions: Ints | None = None,
    macs: int | None = None,
    recipe: str | None = None,
    overrides: Annotated[Overrides | None, Parameter(name="*")] = None,
    detector: Annotated[DetectorOptions | None, Parameter(name="*")] = None,
    weights: StrPath | None = None,
    seeds: int = 1,
    precision: Precision = "float32",
    threads: int = 1,
    ray: str | None = None,
    ray_cpus: float = 1,
    resume: bool = False,
    log: Words = loggers.DEFAULT,
    skip_bad: bool = False,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    yes: bool = False,
    root: StrPath | None = None,
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
    task
        What the networks are for: classify, attributes (tags, any number for an image), detect (boxes), geolocate, or
        embed (vectors).
    arch
        Networks, with commas between: v1,v2.
    alphas
        Width multipliers, with commas between.
    resolutions
        Input heights and widths in pixels, with commas between; if left out, 224,192,160,128, or as many smaller ones
        for images that are smaller; of detectors, their own.
    macs
        Multiply-adds of an image that every network should have, its width found by them: `alphas` are left aside. What
        `mobilenets compare` does; not of detectors.
    recipe
        modern (by default), cifar, v1-paper, v2-paper or v3-paper; of detectors, detect.
    weights
        Folder of pretrained weights, where published ones may be before they are fetched: detectors start from those of
        their body where there are some.
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
    log
        Where losses and scores go beside OUT/logs/metrics.csv: tensorboard, mlflow, wandb, with commas between; csv for
        that file alone.
    skip_bad
        Go on without damaged images.
    yes
        Go on though the folders don't look like classes.
    root
        Where copies of named sets are, or go; where a table's paths start, if not at its own folder.

    Returns
    -------
    Sweep
        `runs`, one for each network and seed, with its score, macs, params, size in bytes and latency in milliseconds;
        `networks` has their means over seeds, and which are on the front.

    Raises
    ------
    UserError
        For data, a network or a recipe that isn't there, numbers that can't be, a folder that has another sweep; where
        a training failed, after all others are done.

    Examples
    --------
    >>> import mobilenets
    >>> settings = mobilenets.Overrides(epochs=1, workers=0)
    >>> made = mobilenets.sweep("flowers", alphas=0.25, resolutions=32, overrides=settings, out="runs/sweep")
    >>> [(run.title, run.error) for run in made.runs]
    [('v1 0.25-32 seed 0', '')]
    """
    from rich.text import Text

    source, root = spelled(source, reading), as_path(root)
    log = several(log)
    loggers.check(log)
    if seeds < 1:
        raise UserError(f"seeds must be 1 or more, not {seeds}")
    if macs is not None and macs < 1:
        raise UserError(f"macs must be 1 or more, not {macs}")
    if world()[0] > 1:
        raise UserError("sweep trains each network on one process: start it without torchrun, or on Ray (--ray)")
    latency.settings([ENGINE], [precision], [threads])  # says what there isn't
    address = ray or _ray_of_environment()
    asked = tasks.with_options(tasks.find_trained(task), {"detect": detector}, None)
    chosen = recipes.recipe(recipe or (asked.recipes[0] if isinstance(asked, Shaped) else "modern"), overrides)
    data = asked.open(source, root, 0, None)
    if macs and isinstance(asked, Shaped):
        raise UserError("--macs finds the widths of classifiers: for detectors, name --alphas")
    sides = several(resolutions or ()) or ([asked.resolution()] if isinstance(asked, Shaped) else worthwhile(data))
    network_config = asked.config(data)
    widths = (1.0,) if macs else several(alphas)

    def network(start: Bundle | None, side: int, name: str, alpha: float) -> Arch:
        own = (None, None) if start else (name, alpha)  # a start brings its own
        return train.network(own[0], own[1], side, start, asked, network_config, data)

    grid: dict[str, tuple[Arch, Bundle | None]] = {}
    for name, alpha in dict.fromkeys((n, a) for n in several(arch) for a in widths):
        start = pretrained(asked, name, alpha, as_path(weights)) if isinstance(asked, Shaped) and not recipe else None
        for r in sides:
            one = functools.partial(network, start, r, name)
            net = at_macs(one, macs) if macs else one(alpha)
            grid[net.title] = net, start
    begun = sorted(grid.values(), key=lambda both: cost.count(both[0]).macs)
    archs = [a for a, _ in begun]
    out = as_path(out) or run.folder(source, "compare" if macs else "sweep")
    config = {
        "verb": "sweep", "task": task, "source": source, "recipe": chosen.to_json(), "precision": precision,
        **(dataclasses.asdict(detector) if detector else {}),
    }  # fmt: skip
    with cluster(address, ray_cpus) if address else contextlib.nullcontext() as on_ray, contextlib.ExitStack() as stack:
        stack.enter_context(run.taken(out, config, resume, data))
        checks.check(data, skip_bad, cache_side(min(max(a.input_size) for a in archs)), yes)
        jobs = [
            Job(source, root, a, chosen, precision, seed, out / name, task, log, detector, start)
            for seed in range(seeds)
            for a, start in begun
            for name in [f"{a.name}-{a.alpha:g}-{a.resolution}-seed{seed}"]
        ]
        before = {job.out: finished(job) for job in jobs}
        left = [job for job in jobs if not before[job.out]]
        runs = timed([r for r in before.values() if r], precision, threads)
        assert asked.primary is not None  # it is trained
        floor = commonest(data) if asked.primary.name == "top1" else None
        made = Sweep(out, source, chosen, precision, threads, len(jobs), tuple(runs), asked.primary, macs or 0, floor)
        for result in on_ray(left) if on_ray else (train_network(data, job) for job in left):
            same = next((r for r in runs if r.key == result.key and not r.error), None)  # of another seed
            known = [dataclasses.replace(result, latency_ms=same.latency_ms)] if same else []
            runs += known or timed([result], precision, threads)
            made = write(dataclasses.replace(made, runs=tuple(runs)))
            console.note(Text(f"{len(runs)}/{len(jobs)} {result.title}: {result.outcome(made.metric)}", style="bold"))
    if left:  # hours lie between the first and the last: here they are measured in turn
        made = dataclasses.replace(made, runs=tuple(timed(runs, precision, threads)))
    write(made)
    if made.failed:
        console.note(made)
        names = "; ".join(f"{r.title}: {r.error}" for r in made.failed)
        raise UserError(
            f"{len(made.failed)} of {console.many(len(jobs), 'training')} failed ({names}); the others are in {out}"
        )
    return made


def commonest(data: Data) -> float:
    """The share of the commonest class in what is held out, percent."""
    classes = data.splits[data.held_out].targets.tolist()
    return 100 * max(Counter(classes).values()) / len(classes)


def worthwhile(data: Data) -> list[int]:
    """The resolutions that a set's images are worth, of those of the paper where there are such, largest first."""
    sides = zoo.worthwhile("v1", data.native_side() or RESOLUTIONS[0])
    return [r for r in RESOLUTIONS if r in sides] or sides[::-1]


def _ray_of_environment() -> str | None:
    """The cluster that RAY_ADDRESS names, where Ray is installed."""
    from importlib.util import find_spec

    return (os.environ.get("RAY_ADDRESS") or None) if find_spec("ray") else None


def write(made: Sweep) -> Sweep:
    """Write OUT/sweep.csv (a row for each training), sweep.json and sweep.html; gives `made`."""
    from mobilenets.reports.sweep import page

    front = {(n.arch, n.alpha, n.resolution) for n in made.networks if n.front}
    with files.atomic_file(made.out / TABLE) as tmp, tmp.open("w", newline="", encoding="utf-8") as f:
        names = {"resolution": "resolution_px", "score": made.metric.column}
        fields = [f.name for f in dataclasses.fields(Trained)]
        writer = csv.writer(f)
        writer.writerow([*(names.get(name, name) for name in fields), "pareto"])
        writer.writerows([*(getattr(r, name) for name in fields), int(r.key in front)] for r in made.runs)
    files.write_json(made.out / SWEEP, made.to_json())
    with files.atomic_file(made.out / PAGE) as tmp:
        files.write_text(tmp, page(made))
    return made
