"""The main job, one verb: data and budget -> choose -> train -> quantize -> export -> evaluate -> report."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mobilenets import console, files, tasks
from mobilenets.arch.spec import Arch
from mobilenets.arguments import DataSource, StrPath, as_path, checked, several
from mobilenets.commands.options import Words
from mobilenets.commands.pipeline import ship
from mobilenets.data import checks
from mobilenets.data.checks import Scan
from mobilenets.data.dataset import Data
from mobilenets.data.open import spelled
from mobilenets.deploy import choose, engines, latency
from mobilenets.deploy.choose import Budget, Choice
from mobilenets.errors import UserError
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle
from mobilenets.tasks.task import Task
from mobilenets.training import distributed as processes
from mobilenets.training import loggers, recipes, run
from mobilenets.training import trainer as train
from mobilenets.training.fitted import Fitted
from mobilenets.training.recipes import Overrides
from mobilenets.training.run import CHOICE, FLOAT, LOGS, METRICS, SCAN, STEPS


@checked
def fit(
    source: DataSource,
    *,
    out: StrPath | None = None,
    task: str = "classify",
    budget: Annotated[Budget | None, Parameter(name="*")] = None,
    engine: Words = ("onnxruntime",),
    precision: Words = ("int8",),
    threads: int = 1,
    table: StrPath | None = None,
    remeasure: bool = False,
    recipe: str | None = None,
    overrides: Annotated[Overrides | None, Parameter(name="*")] = None,
    init: StrPath | None = None,
    seed: int = 0,
    resume: bool = False,
    log: Words = loggers.DEFAULT,
    skip_bad: bool = False,
    class_from_name: bool = False,
    yes: bool = False,
    root: StrPath | None = None,
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
    remeasure
        Measure latencies again that were measured before.
    recipe
        modern (from scratch), finetune, cifar, v1-paper, v2-paper or v3-paper; by default modern, or finetune with
        --init.
    init
        Bundle to fine-tune: its network and width, at the resolution that meets the budget.
    seed
        Seed of everything random: split, initial weights, order, augmentation.
    resume
        Go on with a run that was stopped.
    log
        Where losses and scores go beside OUT/logs/metrics.csv: tensorboard, mlflow, wandb, with commas between; csv for
        that file alone.
    skip_bad
        Go on without damaged images.
    class_from_name
        The class of an image is what its name says before its number: Abyssinian_12.jpg.
    yes
        Go on though the folders don't look like classes.
    root
        Where copies of named sets are, or go.

    Returns
    -------
    Fitted
        The `file` to ship and the `arch` it holds; `steps`, from the float bundle on, each with its scores, size in
        bytes and, for files, latency in milliseconds. None on all processes but the first.

    Raises
    ------
    UserError
        For data, a recipe or a bundle that isn't there, damaged images, a budget that nothing meets, a folder that has
        another run. `Interrupted` on Ctrl-C: `resume` goes on with it.

    Examples
    --------
    >>> import mobilenets
    >>> fitted = mobilenets.fit(
    ...     "flowers",
    ...     out="runs/fitted",
    ...     budget=mobilenets.Budget(max_macs_m=2),
    ...     table="pi5.json",
    ...     overrides=mobilenets.Overrides(epochs=1, workers=0),
    ... )
    >>> fitted.file.name, [step.name for step in fitted.steps]
    ('model-int8.onnx', ['float in PyTorch', 'float32 ONNX', 'int8, simulated in PyTorch', 'int8 ONNX'])
    """
    source, root = spelled(source, class_from_name), as_path(root)
    engine, precision, log = several(engine), several(precision), several(log)
    loggers.check(log)
    latencies = as_path(table)
    out = as_path(out) or run.folder(source)
    started = time.monotonic() - (_trained_before(out) if resume else 0)
    budget = budget or Budget()
    for setting in latency.settings(engine, precision, [threads]):
        engines.module(setting.engine)  # says what to install before anything is trained
    chosen_recipe = recipes.recipe(recipe or ("finetune" if init else "modern"), overrides)
    start = Bundle.load(bundles.find_bundle(Path(init))) if init else None
    asked = tasks.find_trained(task)
    data = asked.open(source, root, seed, None)
    _, rank = processes.world()
    config = {
        "verb": "fit", "task": task, "source": source, "budget": budget.limits(), "engine": ",".join(engine),
        "precision": ",".join(precision), "table": str(table) if table else None,
        "threads": threads, "recipe": chosen_recipe.to_json(), "init": start.digest if start else None, "seed": seed,
    }  # fmt: skip
    with run.taken(out, config, resume, data):
        choice: Choice | None = None
        if rank == 0:
            console.step("1/6 check the images")
            found = checks.check(data, skip_bad, yes=yes)
            files.write_json(out / SCAN, found.to_json())
            choice = _choose(
                out, data, found, start, asked,
                lambda archs: choose.pick(archs, budget, engine, precision, threads, latencies, asked, remeasure),
            )  # fmt: skip
        else:
            checks.scan(data)
        chosen: Choice = processes.from_rank_0(choice)
        arch = chosen.pick.arch
        if rank == 0 and resume and bundles.is_bundle(out / FLOAT):
            trained = Bundle.load(out / FLOAT)
        else:
            if rank == 0:
                console.step(f"3/6 train {arch.title}, {chosen_recipe.epochs} epochs")
            trained = train.train_bundle(
                data, arch, chosen_recipe, out, task=asked, seed=seed, resume=resume, init=start, log=log
            )
        if rank != 0:
            return None
        steps, shipped = ship(data, trained, out, chosen.precision, threads, chosen.engine)
        fitted = Fitted(
            out=out,
            file=shipped,
            arch=arch,
            steps=steps,
            predicted_ms=chosen.pick.latency_ms,
            elsewhere=chosen.machine if table else "",
            budget=budget,
            seconds=time.monotonic() - started,
            task=task,
        )
        files.write_json(out / STEPS, fitted.to_json())
        from mobilenets.commands.report import report

        console.step("6/6 write the report")
        for line in report(out, root=root).advice:
            console.note(line)
        return fitted


def _choose(
    out: Path, data: Data, found: Scan, start: Bundle | None, task: Task, pick: Callable[[Sequence[Arch]], Choice]
) -> Choice:
    """The choice, kept in the run's folder: a resumed run doesn't choose again."""
    path = out / CHOICE
    if path.exists():
        return files.read_object(path, Choice.from_json, "a run of fit")
    console.step("2/6 choose")
    archs = choose.grid(1000, found.native_side, task)
    if start:
        of = start.card.arch
        archs = [train.initial_arch(start, a.resolution) for a in archs if _same(a, of)]
        if not archs:
            raise UserError(
                f"--init: nobody published how good {of.title} is at the resolutions that these images are worth, so "
                "there is nothing to choose by: fine-tune it with mobilenets train --init, and export that"
            )
    config = task.config(data)
    choice = pick([task.arch(a, config) for a in archs])
    console.note(choice)
    files.write_json(path, choice.to_json())
    return choice


def _trained_before(out: Path) -> float:
    """Seconds that stopped processes of this run had trained for, as its log has them."""
    log = out / LOGS / METRICS
    if not log.exists():
        return 0.0
    with log.open(newline="", encoding="utf-8") as f:
        return sum(float(row["seconds"]) for row in csv.DictReader(f))


def _same(a: Arch, b: Arch) -> bool:
    return (a.name, a.alpha) == (b.name, b.alpha)
