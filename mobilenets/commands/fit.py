"""The main job, one verb: data and budget -> choose -> train -> quantize -> export -> evaluate -> report."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from time import monotonic as clock
from typing import Annotated, Literal

from cyclopts import Parameter

from mobilenets import console, files, tasks
from mobilenets.arguments import DataSource, StrPath, as_path, checked, seconds, several
from mobilenets.commands import selection
from mobilenets.commands.options import Words
from mobilenets.commands.pipeline import ship
from mobilenets.commands.selection import Wanted
from mobilenets.data import checks
from mobilenets.data.source import Reading, spelled
from mobilenets.deploy import engines, latency
from mobilenets.deploy.choose import Budget, Choice
from mobilenets.errors import UserError
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle
from mobilenets.model.convert import starts
from mobilenets.model.convert.starts import Start
from mobilenets.tasks.detect.config import DetectorOptions
from mobilenets.tasks.task import Ranged, Shaped
from mobilenets.training import distributed as processes
from mobilenets.training import loggers, recipes, run
from mobilenets.training import noisy as noisy_labels
from mobilenets.training import trainer as train
from mobilenets.training.calibrated import Calibration, recorded
from mobilenets.training.fitted import Fitted
from mobilenets.training.recipes import Overrides
from mobilenets.training.run import FLOAT, LOGS, METRICS, SCAN, START, STEPS

SHIPPING = 0.15  # of the time that is given: quantizing, proving, measuring, the report


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
    detector: Annotated[DetectorOptions | None, Parameter(name="*")] = None,
    recipe: str | None = None,
    overrides: Annotated[Overrides | None, Parameter(name="*")] = None,
    noisy: DataSource | None = None,
    noisy_epochs: int | None = None,
    init: DataSource | None = None,
    from_scratch: bool = False,
    weights: StrPath | None = None,
    candidates: int = 6,
    halving: Literal["on", "off"] = "on",
    time: str | float | None = None,
    calibration: Annotated[Calibration | None, Parameter(name="*")] = None,
    seed: int = 0,
    resume: bool = False,
    log: Words = loggers.DEFAULT,
    skip_bad: bool = False,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    yes: bool = False,
    root: StrPath | None = None,
) -> Fitted | None:
    """Fit the best MobileNet to your data and budget, and make the file that runs it.

    Measures latency here; of the networks within budget whose pretrained weights can be had, measures on your images
    which sees most; fine-tunes it, quantizes, exports with a parity check, evaluates every step on held-out images, and
    writes a report. Under torchrun it trains on all processes (the others return None).

    Parameters
    ----------
    source
        Folder or zip of class folders, or a set's name (digits, cifar10, flowers102, ...).
    out
        Folder of the run; by default in runs/, by the name of the data.
    task
        What the network is for: classify, attributes (tags, any number for an image), detect (boxes), geolocate, or
        embed (vectors).
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
        modern (from scratch), finetune, noisy-then-clean, cifar, v1-paper, v2-paper or v3-paper; by default finetune,
        modern where training begins from nothing, or noisy-then-clean with --noisy.
    noisy
        Images of the same classes with labels that are wrong in part, as those of a web search: a folder, zip or table.
        Training begins on these, and goes on with the clean ones; both are scored on the clean held-out images.
    noisy_epochs
        Passes over the noisy images, at most; as many as modern has, or finetune with pretrained weights, if left out.
    init
        What to fine-tune, instead of choosing: a bundle or run, a file of weights of any kind that import takes, or
        published weights by name (keras:v2-1.0-224); its network and width, at the resolution that meets the budget.
    from_scratch
        Begin from random weights, and choose by published accuracy. That is the default for glyphs, as digits are.
    weights
        Folder of pretrained weights, files or bundles of any kind that import takes; by default $MOBILENETS_WEIGHTS.
        Published ones are taken from caches or fetched besides, where there is a network.
    candidates
        Networks that are measured on your images, at most.
    halving
        on: where two or three of them are alike, train each for a few epochs, and go on with the better.
    time
        How long all of it may take, as 10m or 1h30m: training has what is left of it, in fewer epochs.
    seed
        Seed of everything random: split, initial weights, order, augmentation.
    resume
        Go on with a run that was stopped.
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
    source, root, noisy = spelled(source, reading), as_path(root), None if noisy is None else str(noisy)
    engine, precision, log = several(engine), several(precision), several(log)
    loggers.check(log)
    latencies = as_path(table)
    out = as_path(out) or run.folder(source)
    started = clock() - (_trained_before(out) if resume else 0)
    budget = budget or Budget()
    for setting in latency.settings(engine, precision, [threads]):
        engines.module(setting.engine)  # says what to install before anything is trained
    if from_scratch and init:
        raise UserError("--from-scratch begins from nothing, and --init from a bundle: leave out one")
    if candidates < 1:
        raise UserError(f"candidates must be 1 or more, not {candidates}")
    folder, limit = as_path(weights), seconds(time, "--time")
    recipes.stages(recipe, "modern", overrides, noisy, noisy_epochs, False)  # says what is wrong with them at once
    start = starts.opened(init, folder) if init else None
    asked = tasks.with_options(tasks.find_trained(task), {"detect": detector}, start)
    if isinstance(asked, Ranged) and init:
        raise UserError(f"--init brings its own network: train --task {task} --init fine-tunes it, fit chooses one")
    if isinstance(asked, Ranged):
        asked.variants(1)  # says at once where there are none
    data = asked.open(source, root, seed, None)
    dirty = noisy_labels.opened(noisy, data, asked, root) if noisy else None
    _, rank = processes.world()
    begin: list[Start] = []
    before = run.began(out) if resume else {}
    if not (init or from_scratch or before.get("pretrained") is False):
        begin = processes.from_rank_0(selection.pretrained(data, folder) if rank == 0 else None)
    usual = asked.recipes if isinstance(asked, Shaped) else ("finetune", "modern")
    begins = bool(init or begin)
    first, chosen_recipe = recipes.stages(recipe, usual[not begins], overrides, noisy, noisy_epochs, begins)
    tasks.check_loss(asked, (first or chosen_recipe).loss)
    config = {
        "verb": "fit", "task": task, "source": source, "budget": budget.limits(), "engine": ",".join(engine),
        "precision": ",".join(precision), "table": str(table) if table else None,
        "threads": threads, "recipe": chosen_recipe.to_json(), "init": start.digest if start else None, "seed": seed,
        "pretrained": bool(begin), "candidates": candidates, "halving": halving, "time": limit,
        "variant": before.get("variant"), **recorded(calibration), **noisy_labels.recorded(noisy, first),
        **(dataclasses.asdict(detector) if detector else {}),
    }  # fmt: skip
    with run.taken(out, config, resume, data):
        choice: Choice | None = None
        if rank == 0:
            if not (begin or init or from_scratch or data.kind == "glyph"):
                console.note(selection.LOST)
            console.step("1/6 check the images")
            found = checks.check(data, skip_bad, yes=yes)
            files.write_json(out / SCAN, found.to_json())
            wanted = Wanted(budget, engine, precision, threads, latencies, remeasure, candidates, halving, limit)
            choice = selection.selected(
                out, data, found, asked, wanted, chosen_recipe, seed, resume, start, begin, folder
            )
            if isinstance(asked, Ranged):
                dropped = bool(begin) and starts.nearest(begin, choice.pick.arch) is None
            else:
                dropped = bool(begin) and not bundles.is_bundle(out / START)
            if dropped:  # none of the networks with weights meets the budget
                first, chosen_recipe = recipes.stages(recipe, usual[1], overrides, noisy, noisy_epochs, False)
                changed = {"pretrained": False, "recipe": chosen_recipe.to_json()}
                run.amend(out, **changed, **noisy_labels.recorded(noisy, first))
        else:
            checks.scan(data)
        chosen: Choice = processes.from_rank_0(choice)
        first, chosen_recipe = processes.from_rank_0((first, chosen_recipe))
        arch = chosen.pick.arch
        if isinstance(asked, Ranged):
            start = selection.body(begin, arch, folder)
            asked = tasks.with_options(asked, {"detect": selection.options_of(out, detector, start)}, start)
        if rank == 0 and resume and bundles.is_bundle(out / FLOAT):
            trained = Bundle.load(out / FLOAT)
        else:
            if rank == 0:
                how = "from pretrained weights" if start or bundles.is_bundle(out / START) else "from scratch"
                console.step(f"3/6 train {arch.title} {how}, at most {chosen_recipe.epochs} epochs")
            left = limit and max(1.0, (1 - SHIPPING) * limit - (clock() - started))
            if dirty and first:
                noisy_labels.pretrain(
                    dirty, arch, first, out, task=asked, seed=seed, init=start, skip_bad=skip_bad, yes=yes,
                    seconds=left and left / 2, log=log,
                )  # fmt: skip
                left = limit and max(1.0, (1 - SHIPPING) * limit - (clock() - started))
            trained = train.train_bundle(
                data, arch, chosen_recipe, out, task=asked, seed=seed, resume=resume, init=start,
                seconds=left, calibration=calibration, log=log,
            )  # fmt: skip
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
            seconds=clock() - started,
            task=task,
        )
        files.write_json(out / STEPS, fitted.to_json())
        from mobilenets.commands.report import report

        console.step("6/6 write the report")
        for line in report(out, root=root).advice:
            console.note(line)
        return fitted


def _trained_before(out: Path) -> float:
    """Seconds that stopped processes of this run had trained for, as its log has them."""
    log = out / LOGS / METRICS
    if not log.exists():
        return 0.0
    with log.open(newline="", encoding="utf-8") as f:
        return sum(float(row["seconds"]) for row in csv.DictReader(f))
