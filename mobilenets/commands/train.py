"""`mobilenets train`: one network, trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mobilenets import console, tasks
from mobilenets.arguments import DataSource, StrPath, as_path, checked, seconds, several
from mobilenets.commands import folds as cross
from mobilenets.commands.options import Words
from mobilenets.data import checks
from mobilenets.data.dataset import cache_side
from mobilenets.data.source import Reading, spelled
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.convert import starts
from mobilenets.tasks.detect.config import DetectorOptions
from mobilenets.tasks.embed.options import EmbedOptions
from mobilenets.tasks.task import Shaped
from mobilenets.training import loggers, loop, recipes, run
from mobilenets.training import noisy as noisy_labels
from mobilenets.training.calibrated import Calibration, recorded
from mobilenets.training.distributed import world
from mobilenets.training.recipes import Overrides
from mobilenets.training.trainer import network, train_bundle


@checked
def train(
    source: DataSource,
    *,
    out: StrPath | None = None,
    task: str = "classify",
    arch: str | None = None,
    alpha: float | None = None,
    resolution: int | None = None,
    recipe: str | None = None,
    overrides: Annotated[Overrides | None, Parameter(name="*")] = None,
    noisy: DataSource | None = None,
    noisy_epochs: int | None = None,
    init: DataSource | None = None,
    weights: StrPath | None = None,
    calibration: Annotated[Calibration | None, Parameter(name="*")] = None,
    detector: Annotated[DetectorOptions | None, Parameter(name="*")] = None,
    embedding: Annotated[EmbedOptions | None, Parameter(name="*")] = None,
    seed: int = 0,
    val: float | None = None,
    time: str | float | None = None,
    folds: int = 0,
    resume: bool = False,
    log: Words = loggers.DEFAULT,
    skip_bad: bool = False,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    yes: bool = False,
    checkpoint_minutes: float = loop.MINUTES,
    root: StrPath | None = None,
) -> Bundle | None:
    """Train one network; under torchrun or srun, on all their processes (all but the first return None).

    Parameters
    ----------
    source
        Folder or zip of class folders, shards (their folder or address), or a set's name (digits, cifar10, ...). For
        detect, images with boxes in any of the usual formats.
    out
        Folder of the run: checkpoints, logs, and the bundle in OUT/float. By default in runs/, by the names of the data
        and the network.
    task
        What the network is for: classify, attributes (tags, any number for an image), detect (boxes), geolocate,
        or embed (vectors that are near where two images show the same).
    arch
        Network: v1, v2, v3-large, ... (`mobilenets list`); v2 if left out.
    alpha
        Width multiplier, above 0 and at most 2; 1 if left out.
    resolution
        Input height and width in pixels, 32 or more; if left out, that of --init, or the network's own (224 for most),
        or less for images that are smaller.
    recipe
        modern (from scratch), finetune, noisy-then-clean, cifar, v1-paper, v2-paper or v3-paper; by default modern,
        finetune with --init, noisy-then-clean with --noisy, detect for a detector from pretrained weights, or
        redetect from another detector.
    noisy
        Images of the same classes with labels that are wrong in part, as those of a web search: a folder, zip or table.
        Training begins on these, and goes on with the clean ones; both are scored on the clean held-out images.
    noisy_epochs
        Passes over the noisy images, at most; as many as modern has, or finetune with pretrained weights, if left out.
    init
        What to start from: a bundle or run, a file of weights of any kind that import takes, or published weights by
        name (keras:v2-1.0-224): its network, and its weights as far as the classes allow. A detector starts from
        pretrained weights of its network, where some are at hand, if left out.
    weights
        Folder of pretrained weights, where published ones may be before they are fetched.
    seed
        Seed of everything random: split, initial weights, order, augmentation.
    val
        Share of the training images that choose the epoch, where the data has no val split; a fifth if left out, or a
        tenth where there is a test split.
    time
        How long training may take, as 10m or 1h30m: in fewer epochs than the recipe's, as many as fit.
    folds
        Cross-validate: this many times, train on all but another part of the images and score that, groups whole.
        OUT/fold-1 and so on are runs of their own; OUT/folds has the scores, what each image was taken for, and which
        labels are likely wrong.
    resume
        Go on with a run that was stopped; it ends with the same weights, bit for bit.
    log
        Where losses and scores go beside OUT/logs/metrics.csv: tensorboard, mlflow, wandb, with commas between; csv for
        that file alone.
    skip_bad
        Go on without damaged images.
    yes
        Go on though the folders don't look like classes.
    checkpoint_minutes
        Write a checkpoint this often within an epoch too; there is one at the end of each.
    root
        Where copies of named sets are, or go; where a table's paths start, if not at its own folder.

    Returns
    -------
    Bundle
        What was trained, as it is in OUT/float: the weights of the best epoch, float32, and the card with its score.
        None on all processes but the first. With `folds`, that of the best fold, with `folds`, `mean`, `deviation` and
        the path of the `predictions`.

    Raises
    ------
    UserError
        For data, a network, a recipe or a bundle that isn't there, damaged images, numbers that can't be, a folder that
        has another run. `Interrupted` on Ctrl-C: `resume` goes on with it.

    Examples
    --------
    >>> import mobilenets
    >>> settings = mobilenets.Overrides(epochs=2, workers=0)
    >>> made = mobilenets.train("flowers", arch="v1", alpha=0.25, resolution=32, overrides=settings, out="runs/v1")
    >>> made.card.labels, made.card.metrics[0].name
    (('blue', 'green', 'red'), 'top1')
    """
    source, root = spelled(source, reading), as_path(root)
    noisy = None if noisy is None else str(noisy)
    if not checkpoint_minutes >= 0:
        raise UserError(f"checkpoint_minutes must be 0 or more, not {checkpoint_minutes}")
    limit = seconds(time, "--time")
    log = several(log)
    loggers.check(log)
    start = starts.opened(init, as_path(weights)) if init else None
    asked = tasks.with_options(tasks.find_trained(task), {"detect": detector, "embed": embedding}, start)
    if start is None and recipe is None and isinstance(asked, Shaped):
        start = pretrained(asked, arch, alpha, as_path(weights))
        arch, alpha = (arch, alpha) if start is None else (None, None)
    usual = asked.recipes if isinstance(asked, Shaped) else ("finetune", "modern")
    first, chosen = recipes.stages(recipe, usual[start is None], overrides, noisy, noisy_epochs, start is not None)
    tasks.check_loss(asked, (first or chosen).loss)
    data = asked.open(source, root, seed, val)
    dirty = noisy_labels.opened(noisy, data, asked, root) if noisy else None
    if folds and noisy:
        raise UserError("--folds is of one training: leave out --noisy")
    if folds:
        cross.check(data, folds, asked, val)
    net = network(arch, alpha, resolution, start, asked, asked.config(data), data)
    config = {
        "verb": "train", "task": task, "source": source, "arch": net.to_json(), "recipe": chosen.to_json(),
        "seed": seed, "init": start.digest if start else None, "val": data.val_fraction, "time": limit,
        "folds": folds or None,
        **recorded(calibration), **(dataclasses.asdict(detector) if detector else {}),
        **(dataclasses.asdict(embedding) if embedding else {}),
        **noisy_labels.recorded(noisy, first),
    }  # fmt: skip
    out = as_path(out) or run.folder(source, net.title)
    side = cache_side(max(net.input_size))
    with run.taken(out, config, resume, data):
        if world()[1] == 0:
            checks.check(data, skip_bad, side, yes)
        else:
            checks.scan(data, side=side)
        if folds:
            return cross.cross_validate(
                data, folds, net, chosen, out, config, task=asked, seed=seed, init=start,
                checkpoint_minutes=checkpoint_minutes, seconds=limit and limit / folds, calibration=calibration,
                log=log,
            )  # fmt: skip
        if dirty and first:
            noisy_labels.pretrain(
                dirty, net, first, out, task=asked, seed=seed, init=start, skip_bad=skip_bad, yes=yes,
                checkpoint_minutes=checkpoint_minutes, seconds=limit and limit / 2, log=log,
            )  # fmt: skip
            limit = limit and limit / 2
        trained = train_bundle(
            data, net, chosen, out, task=asked, seed=seed, resume=resume, init=start,
            checkpoint_minutes=checkpoint_minutes, seconds=limit, calibration=calibration, log=log,
        )  # fmt: skip
    if world()[1] != 0:
        return None
    run.say_where(out)
    return trained


def pretrained(asked: Shaped, arch: str | None, alpha: float | None, folder: Path | None) -> Bundle | None:
    """The pretrained network that a task starts from where nothing is said; None where there is none. A line says so.

    Boxes are few, mostly: from nothing, a detector of a few hundred images finds next to nothing.
    """
    net = asked.network(arch, alpha, None)
    found = starts.nearest(starts.available(folder), net)
    if found is None:
        console.note(
            f"no pretrained weights of {net.title} are at hand (--weights takes a folder of some): it is trained from "
            "nothing, which takes many times the images and the time"
        )
        return None
    console.note(f"it starts from pretrained weights, {Path(found.source).name} (--recipe modern: from nothing)")
    return found.load(folder)
