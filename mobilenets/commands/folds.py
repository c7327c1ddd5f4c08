"""Cross-validation: a network for each fold, and what each says of the images that it wasn't trained on."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mobilenets import console, files
from mobilenets.arch.heads import PROBABILITIES
from mobilenets.arch.spec import Arch
from mobilenets.data.dataset import Data, Split
from mobilenets.deploy import engines, predict
from mobilenets.errors import UserError
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle
from mobilenets.model.images import BadImage
from mobilenets.reports.card import bundle_table
from mobilenets.tasks import confident
from mobilenets.tasks.task import MetricSpec, Outputs, Tabled, Task
from mobilenets.training import run
from mobilenets.training.calibrated import Calibration
from mobilenets.training.distributed import from_rank_0, world
from mobilenets.training.recipes import Recipe
from mobilenets.training.run import CHECKPOINTS, FLOAT
from mobilenets.training.trainer import train_bundle

if TYPE_CHECKING:
    from rich.console import RenderableType

FOLDER, PREDICTIONS, RESULT = "folds", "predictions.csv", "folds.json"
LABEL_ERRORS = "label_errors.csv"


@dataclass(frozen=True)
class Fold:
    """One fold: its bundle's folder, its score on the images held out from it, and how many those are."""

    bundle: str
    score: float
    images: int


@dataclass(frozen=True, kw_only=True)
class CrossValidated(Bundle):
    """The bundle of the fold that did best, with every fold's score in the unit of `metric`.

    `predictions`: a table of all images, each as the network says that wasn't trained on it.
    """

    folds: tuple[Fold, ...]
    metric: MetricSpec
    predictions: Path

    @property
    def mean(self) -> float:
        """Of the folds' scores."""
        return statistics.fmean(f.score for f in self.folds)

    @property
    def deviation(self) -> float:
        """The standard deviation of the folds' scores, as of a sample."""
        return statistics.stdev(f.score for f in self.folds)

    def to_json(self) -> dict[str, Any]:
        found = {"mean": self.mean, "standard_deviation": self.deviation, "predictions": str(self.predictions)}
        return {**super().to_json(), "cross_validation": {**found, "folds": [asdict(f) for f in self.folds]}}

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        t = console.table(f"{len(self.folds)} folds", ["bundle", self.metric.title, "images"], left=("bundle",))
        for f in self.folds:
            t.add_row(f.bundle, f"{f.score:.2f}", str(f.images))
        t.add_row("mean ± standard deviation", f"{self.mean:.2f} ± {self.deviation:.2f}", "")
        t.caption = f"predictions of images that weren't trained on: {self.predictions}"
        return Group(t, bundle_table(self))


def cross_validate(
    data: Data,
    count: int,
    net: Arch,
    recipe: Recipe,
    out: Path,
    config: dict[str, Any],
    *,
    task: Task,
    seed: int,
    init: Bundle | None,
    checkpoint_minutes: float,
    seconds: float | None,
    calibration: Calibration | None,
    log: Sequence[str],
) -> CrossValidated | None:
    """Train on data that was checked already, in OUT/fold-1 and so on, what isn't there yet; OUT/folds has the tables.

    `config`: what the run was made with. None on all processes but the first. Raises `UserError` as `train_bundle`.
    """
    primary = task.primary
    assert primary is not None  # it is trained
    found: list[tuple[Fold, Bundle]] = []
    rows: list[tuple[Any, ...]] = []
    said: list[npt.NDArray[Any]] = []
    true: list[Any] = []
    for k, part in enumerate(data.in_folds(count), 1):
        folder = out / f"fold-{k}"
        with run.taken(folder, {**config, "fold": k}, (folder / run.CONFIG).exists(), part):
            if from_rank_0(bundles.is_bundle(folder / FLOAT)):
                made = Bundle.load(folder / FLOAT)
            else:
                begun = from_rank_0((folder / CHECKPOINTS / "last.ckpt").exists())
                made = train_bundle(
                    part, net, recipe, folder, task=task, seed=seed, resume=begun, init=init,
                    checkpoint_minutes=checkpoint_minutes, seconds=seconds, calibration=calibration,
                    log=log,
                )  # fmt: skip
        if world()[1] != 0:
            continue
        val = part.split("val")
        fold = Fold(str(folder / FLOAT), made.card.metrics[0].value, len(val))
        found.append((fold, made))
        for row, outputs, target in _predictions(made, val, task):
            rows.append((k, *row))
            said.append(outputs[PROBABILITIES][0])
            true.append(target)
        console.done(f"fold {k} of {count}: {primary.say(fold.score)} {primary.label}, {len(val)} images")
    if not found:
        return None
    path = out / FOLDER / PREDICTIONS
    _write(path, ["fold", "image", "label", "predicted", "probability_percent"], rows)
    if np.ndim(true) == 1:  # one class an image
        labels, wrong = data.labels, confident.suspects(np.stack(said), true)
        cells = [(rows[s.index][1], labels[s.given], labels[s.likely], f"{100 * s.margin:.2f}") for s in wrong]
        _write(out / FOLDER / LABEL_ERRORS, ["image", "label", "likely", "margin_percent"], cells)
        console.note(f"{console.many(len(wrong), 'label')} likely wrong: {out / FOLDER / LABEL_ERRORS}")
    best = max((made for _, made in found), key=lambda b: primary.rank(b.card.metrics[0].value))
    folds = tuple(fold for fold, _ in found)
    result = CrossValidated(best.card, best.tensors, best.digest, folds=folds, metric=primary, predictions=path)
    files.write_json(out / FOLDER / RESULT, result.to_json()["cross_validation"])
    return result


def _write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with files.atomic_file(path) as tmp, tmp.open("w", newline="", encoding="utf-8", errors="replace") as f:
        table = csv.writer(f, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)


def _predictions(made: Bundle, val: Split, task: Task) -> Iterator[tuple[tuple[str, str, str, str], Outputs, Any]]:
    """Name, label, predicted label and its probability in percent of each image that can be read (see `Tabled`).

    With what the network says of it, and its target.
    """
    assert isinstance(task, Tabled)  # `check` says so
    engine = engines.module("torch").quickest(made)
    for i, outputs in predict.stream(engine, range(len(val)), lambda i: val.pixels(i, made.card.preprocess)):
        if not isinstance(outputs, BadImage):
            (answer,) = task.decode(outputs, made.card, [(0, 0)], 1)
            yield (val.names[i], *task.told(answer, val.targets[i], made.card)), outputs, val.targets[i]


def check(data: Data, count: int, task: Task, val: float | None) -> None:
    """Raises `UserError` where data can't be cross-validated in `count` folds."""
    if count < 2:
        raise UserError(f"folds must be 2 or more, not {count}")
    if val is not None:
        raise UserError("--folds holds out each image once: leave out --val")
    if data.limit is not None:
        raise UserError("--folds is of all images: leave out --limit-per-class")
    if not task.config(data).get("labels") or not isinstance(task, Tabled):
        raise UserError(f"--folds is for classes and tags, not for {task.name}")
    if data.pool is None:
        raise UserError(f"{data.source} has a val split of its own: --folds is for images that aren't split")
    apart = len(data.pool) if data.pool.groups is None else len({*data.pool.groups.tolist()})
    if count > apart:
        of = "images" if data.pool.groups is None else "groups"
        raise UserError(f"{data.source} has {apart} {of} to train on: too few for {count} folds")
