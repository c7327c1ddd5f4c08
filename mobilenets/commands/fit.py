"""The main job, one verb: data and budget -> choose -> train -> quantize -> export -> evaluate -> report."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mobilenets import console, files, tasks
from mobilenets.arch.spec import Arch
from mobilenets.commands.options import commas
from mobilenets.commands.pipeline import Step, ship
from mobilenets.data import checks
from mobilenets.data.checks import Scan
from mobilenets.data.dataset import Data
from mobilenets.deploy import choose, engines, latency
from mobilenets.deploy.choose import Budget, Choice, Chosen
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle
from mobilenets.tasks.task import MetricSpec, Task
from mobilenets.training import distributed as processes
from mobilenets.training import recipes, run
from mobilenets.training import trainer as train
from mobilenets.training.recipes import Overrides
from mobilenets.training.run import CHOICE, FLOAT, LOGS, METRICS, REPORT, SCAN, STEPS

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Fitted:
    """What `fit` made: the file to ship, and the way to it."""

    out: Path
    file: Path
    arch: Arch
    steps: tuple[Step, ...]
    predicted_ms: float
    budget: Budget
    seconds: float
    task: str = "classify"
    elsewhere: str = ""  # the machine whose table was chosen by

    @property
    def shipped(self) -> Step:
        return next(s for s in self.steps if Path(s.path) == self.file)

    @property
    def primary(self) -> MetricSpec:
        found = tasks.find(self.task).primary
        assert found is not None  # what is trained has a score
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "file": str(self.file),
            "arch": self.arch.name,
            "alpha": self.arch.alpha,
            "resolution": self.arch.resolution,
            self.primary.name: self.shipped.scores.value,
            "latency_ms": self.shipped.latency_ms,
            "predicted_latency_ms": self.predicted_ms,
            "size_bytes": self.shipped.size_bytes,
            "budget": self.budget.limits(),
            "seconds": self.seconds,
            "steps": [s.to_json() for s in self.steps],
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        first = self.steps[0].scores
        t = console.table(
            f"{self.arch.title} on {first.data}, {first.split} split, {first.count} images",
            ["step", f"{self.primary.label} {self.primary.unit}", "size MB", "latency ms", "as PyTorch %"],
            left=("step",),
        )
        for s in self.steps:
            latency = "" if s.latency_ms is None else f"{s.latency_ms:.3f}"
            agreement = "" if s.agreement is None else f"{s.agreement:.1f}"
            size = console.megabytes(s.size_bytes)
            style = "bold green" if s is self.shipped else ""
            t.add_row(s.name, f"{s.scores.value:.2f}", size, latency, agreement, style=style)
        return Group(
            t,
            f"{self._budget_line()}; {self.seconds:.0f} s in all",
            f"ship     {self.file}",
            f"report   {self.out / REPORT}",
            f"try next mobilenets predict {self.file} IMAGE...",
        )

    def _budget_line(self) -> str:
        met = self.shipped.latency_ms or 0.0
        limit = self.budget.max_latency_ms
        if self.elsewhere:
            return f"latency {met:.3f} ms here; {self.predicted_ms:.3f} ms on {self.elsewhere}, as its table has it"
        off = 100 * (met / self.predicted_ms - 1)
        line = f"latency {met:.3f} ms measured in the file, {self.predicted_ms:.3f} ms when it was chosen ({off:+.0f}%)"
        if limit and met > limit:
            line += f"; OVER the budget of {limit:g} ms: close other programs and run mobilenets bench again"
        return line


def fit(
    source: str,
    *,
    out: Path | None = None,
    task: str = "classify",
    budget: Annotated[Budget | None, Parameter(name="*")] = None,
    engine: Annotated[tuple[str, ...], commas(str)] = ("onnxruntime",),
    precision: Annotated[tuple[str, ...], commas(str)] = ("int8",),
    threads: int = 1,
    table: Path | None = None,
    recipe: str | None = None,
    overrides: Annotated[Overrides | None, Parameter(name="*")] = None,
    init: Path | None = None,
    seed: int = 0,
    resume: bool = False,
    skip_bad: bool = False,
    root: Path | None = None,
) -> Fitted | None:
    """Fit the best MobileNet to your data and budget, and make the file that runs it.

    Measures latency here, picks a network, trains, quantizes, exports with a parity check, evaluates every step on
    held-out images, and writes a report. Under torchrun it trains on all processes (the others return None).

    Parameters
    ----------
    source
        Folder or zip of class folders, or a set's name (digits, cifar10, flowers102, ...).
    out
        Folder of the run; by default in runs/, by the name of the data.
    task
        What the network is for: classify.
    engine
        Runtime to ship for: onnxruntime, openvino, litert, ncnn, executorch; of several, with commas between, the best.
    precision
        What to ship: int8, float16, float32, ...; of several, with commas between, the best.
    threads
        Threads (and processors) the shipped file will have.
    table
        Latencies of another machine, from `mobilenets latency-table`, to choose by.
    recipe
        modern (from scratch), finetune, cifar, v1-paper, v2-paper or v3-paper; by default modern, or finetune with
        --init.
    init
        Bundle to fine-tune: its network and width, at the resolution that meets the budget.
    seed
        Seed of everything random: split, initial weights, order, augmentation.
    resume
        Go on with a run that was stopped.
    skip_bad
        Go on without damaged images.
    root
        Where copies of named sets are, or go.
    """
    out = out or run.folder(source)
    started = time.monotonic() - (_trained_before(out) if resume else 0)
    budget = budget or Budget()
    for setting in latency.settings(engine, precision, [threads]):
        engines.module(setting.engine)  # says what to install before anything is trained
    chosen_recipe = recipes.recipe(recipe or ("finetune" if init else "modern"), overrides)
    start = Bundle.load(bundles.find_bundle(init)) if init else None
    asked = tasks.find_trained(task)
    data = asked.open(source, root, seed, None)
    _, rank = processes.world()
    config = {
        "verb": "fit", "task": task, "source": source, "budget": budget.limits(), "engine": ",".join(engine),
        "precision": ",".join(precision), "table": str(table) if table else None,
        "threads": threads, "recipe": chosen_recipe.to_json(), "init": start.digest if start else None, "seed": seed,
    }  # fmt: skip
    choice: Chosen | None = None
    found: Scan | None = None
    if rank == 0:
        run.prepare(out, config, resume)
        console.note("[bold]1/6 check the images[/]")
        found = checks.check(data, skip_bad)
        files.write_json(out / SCAN, found.to_json())
        choice = _choose(
            out,
            data,
            found,
            start,
            asked,
            lambda archs: choose.pick(archs, budget, engine, precision, threads, table, asked),
        )
    else:
        checks.scan(data)
    chosen: Chosen = processes.from_rank_0(choice)
    arch = chosen.arch
    if rank == 0 and resume and bundles.is_bundle(out / FLOAT):
        trained = Bundle.load(out / FLOAT)
    else:
        if rank == 0:
            console.note(f"[bold]3/6 train {arch.title}, {chosen_recipe.epochs} epochs[/]")
        trained = train.train_bundle(data, arch, chosen_recipe, out, task=asked, seed=seed, resume=resume, init=start)
    if rank != 0:
        return None
    steps, shipped = ship(data, trained, out, chosen.precision, threads, chosen.engine)
    fitted = Fitted(
        out=out,
        file=shipped,
        arch=arch,
        steps=steps,
        predicted_ms=chosen.latency_ms,
        elsewhere=chosen.machine if table else "",
        budget=budget,
        seconds=time.monotonic() - started,
        task=task,
    )
    files.write_json(out / STEPS, fitted.to_json())
    from mobilenets.commands.report import report

    console.note("[bold]6/6 write the report[/]")
    report(out, root=root)
    return fitted


def _choose(
    out: Path, data: Data, found: Scan, start: Bundle | None, task: Task, pick: Callable[[Sequence[Arch]], Choice]
) -> Chosen:
    """The choice, kept in the run's folder: a resumed run doesn't choose again."""
    path = out / CHOICE
    if path.exists():
        return Chosen.from_json(files.read_json(path, (), "a run of fit"), str(path))
    console.note("[bold]2/6 choose[/]")
    archs = choose.grid(1000, found.native_side, task)
    if start:
        of = start.card.arch
        archs = [train.initial_arch(start, a.resolution) for a in archs if _same(a, of)]
    config = task.config(data)
    choice = pick([task.arch(a, config) for a in archs])
    console.note(choice)
    files.write_json(path, choice.to_json())
    return choice.chosen


def _trained_before(out: Path) -> float:
    """Seconds that stopped processes of this run had trained for, as its log has them."""
    log = out / LOGS / METRICS
    if not log.exists():
        return 0.0
    with log.open(newline="") as f:
        return sum(float(row["seconds"]) for row in csv.DictReader(f))


def _same(a: Arch, b: Arch) -> bool:
    return (a.name, a.alpha) == (b.name, b.alpha)
