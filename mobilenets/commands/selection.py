"""What `fit` trains: the network of the budget, and the pretrained weights that it begins with."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mobilenets import console, files
from mobilenets.arch.detectors import PYRAMIDS
from mobilenets.arch.spec import Arch
from mobilenets.data.checks import Scan
from mobilenets.data.dataset import Data
from mobilenets.deploy import choose, variants
from mobilenets.deploy.choose import Budget, Choice
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.convert import starts
from mobilenets.model.convert.starts import Start, nearest
from mobilenets.tasks.detect.config import DetectorOptions
from mobilenets.tasks.task import Ranged, Task
from mobilenets.training import candidates, probing, run
from mobilenets.training import trainer as train
from mobilenets.training.calibrated import Calibration
from mobilenets.training.candidates import Entrant, Table
from mobilenets.training.distributed import world
from mobilenets.training.recipes import Recipe
from mobilenets.training.run import CANDIDATES, CHOICE, LATENCIES, START

TRIALS = "trials"  # in a run's folder: what the halving trains
SHORT = 2  # epochs of a halving
LEAST = 30  # seconds for each, below which a halving says nothing
SHARE = 0.2  # of the time that is given, for all of its networks together
LOST = (
    "no pretrained weights on this machine, and none can be fetched: training begins from nothing, which on a few "
    "thousand photos costs many points. Where there is a network, `mobilenets fetch keras:v2-1.0-224 keras:v1-0.25-224 "
    "--to weights/` brings some; then --weights weights/"
)


@dataclass(frozen=True)
class Wanted:
    """What `fit` was asked to choose by."""

    budget: Budget
    engine: Sequence[str]
    precision: Sequence[str]
    threads: int
    table: Path | None
    remeasure: bool
    candidates: int = 6
    halving: Literal["on", "off"] = "on"
    seconds: float | None = None

    def pick(self, archs: Sequence[Arch], task: Task) -> Choice:
        return choose.pick(
            archs, self.budget, self.engine, self.precision, self.threads, self.table, task, self.remeasure
        )


def pretrained(data: Data, folder: Path | None) -> list[Start]:
    """Weights that `fit` begins with by default; none for glyphs, which look like nothing that they know.

    Raises `UserError`.
    """
    return [] if data.kind == "glyph" and folder is None else starts.available(folder)


def selected(
    out: Path,
    data: Data,
    found: Scan,
    task: Task,
    wanted: Wanted,
    recipe: Recipe,
    seed: int,
    resume: bool,
    init: Bundle | None,
    begin: Sequence[Start],
    folder: Path | None,
) -> Choice:
    """The choice, kept in the run's folder: a resumed run doesn't choose again. With weights, they are in OUT/start."""
    path = out / CHOICE
    if path.exists():
        return files.read_object(path, Choice.from_json, "a run of fit")
    console.step("2/6 choose")
    if isinstance(task, Ranged):
        choice = _of_variants(out, data, found, task, wanted, begin)
        console.note(choice)
        files.write_json(path, choice.to_json())
        return choice
    config = task.config(data)
    grid = [task.arch(a, config) for a in choose.grid(1000, found.native_side, task)]
    if init:
        choice = _picked(out, wanted, _of_bundle(init, grid, task, data), task)
    else:
        choice = _of_weights(out, data, task, wanted, recipe, seed, resume, begin, folder, grid) or _picked(
            out, wanted, grid, task
        )
    console.note(choice)
    files.write_json(path, choice.to_json())
    (out / LATENCIES).unlink(missing_ok=True)
    return choice


def _of_variants(out: Path, data: Data, found: Scan, task: Ranged, wanted: Wanted, begin: Sequence[Start]) -> Choice:
    """The best of every way to build the task's networks, by what was published and measured; recorded in the run.

    Of bodies with pretrained weights where some of them meet the budget. There is no linear probe of boxes.
    """

    def of_bodies(warm: bool) -> Callable[[Task], Choice | None]:
        def picked(variant: Task) -> Choice | None:
            archs = [a for a in choose.grid(0, found.native_side, variant) if not warm or nearest(begin, a)]
            return wanted.pick(archs, variant) if archs else None

        return picked

    classes, made = len(data.labels), None
    if begin:
        try:
            made = variants.pick_variant(task, classes, of_bodies(warm=True))
        except UserError as e:
            console.note(f"{e}. Those are the networks with pretrained weights; choosing among all")
    made = made or variants.pick_variant(task, classes, of_bodies(warm=False))
    if made is None:
        raise UserError("there is no network to choose from")
    choice, variant = made
    run.amend(out, variant=getattr(variant, "family", ""))
    return choice


def options_of(out: Path, asked: DetectorOptions | None, start: Bundle | None) -> DetectorOptions:
    """What a run was asked for of its detector, of the family that it chose.

    Anchors are fitted to the boxes, but for a detector to start from, whose answers are bound to its own, and one of
    two stages.
    """
    family = run.began(out)["variant"]
    whole = start is not None and start.card.config.get("family") == family
    own = whole or family in PYRAMIDS
    asked = asked or DetectorOptions()
    return dataclasses.replace(asked, detector=family, anchors=asked.anchors or ("default" if own else "auto"))


def body(begin: Sequence[Start], arch: Arch, folder: Path | None) -> Bundle | None:
    """The pretrained network that a task's own network begins with; None where there is none."""
    found = nearest(begin, arch)
    return found.load(folder) if found else None


def _picked(out: Path, wanted: Wanted, archs: Sequence[Arch], task: Task) -> Choice:
    """The pick by what was measured; a run that is stopped before its choice goes on with the same latencies."""
    path = out / LATENCIES
    if path.exists():
        kept = files.read_object(path, Choice.from_json, "a run of fit")
        if {c.arch.title for c in kept.candidates} == {a.title for a in archs}:
            return kept
    choice = wanted.pick(archs, task)
    files.write_json(path, choice.to_json())
    return choice


def _of_bundle(init: Bundle, grid: Sequence[Arch], task: Task, data: Data) -> list[Arch]:
    of = init.card.arch
    archs = [train.initial_arch(init, a.resolution) for a in grid if (a.name, a.alpha) == (of.name, of.alpha)]
    if not archs:
        raise UserError(
            f"--init: nobody published how good {of.title} is at the resolutions that these images are worth, so "
            "there is nothing to choose by: fine-tune it with mobilenets train --init, and export that"
        )
    return [task.arch(a, task.config(data)) for a in archs]


def _of_weights(
    out: Path,
    data: Data,
    task: Task,
    wanted: Wanted,
    recipe: Recipe,
    seed: int,
    resume: bool,
    begin: Sequence[Start],
    folder: Path | None,
    grid: Sequence[Arch],
) -> Choice | None:
    """The choice among networks with weights, measured on the data; None where there is none within the budget."""
    archs = [a for a in grid if nearest(begin, a)]
    if not archs:
        console.note("none of the pretrained weights is of a network for images of this size: training from nothing")
        return None
    try:
        choice = _picked(out, wanted, archs, task)
    except UserError as e:
        console.note(f"{e}. Those are the networks with pretrained weights; choosing among all, to train from nothing")
        return None
    balanced = recipe.class_weights == "balanced"
    entrants = candidates.probe_all(choice, begin, data, task, seed, wanted.candidates, folder, balanced)
    if not entrants:
        return None
    best, start = entrants[0], probing.scored(entrants[0].headed.bundle, data, task)
    close = candidates.alike(entrants)
    metric = task.primary
    assert metric is not None
    each = wanted.seconds and SHARE * wanted.seconds / len(close)
    worth = each is None or each >= LEAST
    if wanted.halving == "on" and len(close) > 1 and worth and world()[0] == 1:  # others of a training would wait
        console.note(
            f"{' and '.join(e.candidate.arch.title for e in close)} are alike: each is trained for {SHORT} epochs"
        )
        short = dataclasses.replace(recipe, epochs=min(SHORT, recipe.epochs), patience=0)

        def trained(e: Entrant) -> Bundle:
            where = out / TRIALS / e.candidate.arch.title.replace(" ", "-")
            return train.train_bundle(
                data, e.candidate.arch, short, where, task=task, seed=seed, resume=resume, init=e.headed.bundle,
                calibration=Calibration(uncalibrated=True),
                seconds=each,
            )  # fmt: skip

        winner, made = candidates.halve(close, trained, metric)
        better = metric.rank(made.card.metrics[0].value) > metric.rank(start.card.metrics[0].value)
        if winner is not best or better:
            best, start = winner, made
    start.save(out / START)
    shutil.rmtree(out / TRIALS, ignore_errors=True)
    table = Table(tuple(e.tried(e is best) for e in entrants), metric, choice.pick.prior.metric)
    console.note(table)
    files.write_json(out / CANDIDATES, table.to_json())
    return choose.picking(choice, best.candidate)
