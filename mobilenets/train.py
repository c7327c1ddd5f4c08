"""Train a network on labelled images: data + Arch + recipe -> Bundle. PyTorch Lightning runs the loop."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import Parameter

from mobilenets import bundle as bundles
from mobilenets import checks, data, loop, recipes, run, zoo
from mobilenets.bundle import Bundle, Card, Metric
from mobilenets.data import Data, Split
from mobilenets.errors import UserError
from mobilenets.images import Preprocess
from mobilenets.loop import Ready
from mobilenets.processes import world
from mobilenets.recipes import Overrides, Recipe
from mobilenets.spec import Arch

if TYPE_CHECKING:
    from mobilenets.distill import Teaching

CHECKPOINTS, LOGS, METRICS, FLOAT = "checkpoints", "logs", "metrics.csv", "float"


def train(
    source: str,
    *,
    out: Path | None = None,
    arch: str | None = None,
    alpha: float | None = None,
    resolution: int | None = None,
    recipe: str | None = None,
    overrides: Annotated[Overrides | None, Parameter(name="*")] = None,
    init: Path | None = None,
    seed: int = 0,
    val: float | None = None,
    resume: bool = False,
    skip_bad: bool = False,
    checkpoint_minutes: float = loop.MINUTES,
    root: Path | None = None,
) -> Bundle | None:
    """Train one network; under torchrun or srun, on all their processes (all but the first return None).

    Parameters
    ----------
    source
        Folder or zip of class folders, shards (their folder or address), or a set's name (digits, cifar10, ...).
    out
        Folder of the run: checkpoints, logs, and the bundle in OUT/float. By default in runs/, by the names of the data
        and the network.
    arch
        Network: v1, v2, v3-large, ... (`mobilenets list`); v2 if left out.
    alpha
        Width multiplier, above 0 and at most 2; 1 if left out.
    resolution
        Input height and width in pixels, 32 or more; that of --init, or the network's own (224 for most), if left out.
    recipe
        modern (from scratch), finetune, cifar, v1-paper, v2-paper or v3-paper; by default modern, or finetune with
        --init.
    init
        Bundle to start from: its network, and its weights as far as the classes allow.
    seed
        Seed of everything random: split, initial weights, order, augmentation.
    val
        Share of the training images that choose the epoch, where the data has no val split; a fifth if left out, or a
        tenth where there is a test split.
    resume
        Go on with a run that was stopped; it ends with the same weights, bit for bit.
    skip_bad
        Go on without damaged images.
    checkpoint_minutes
        Write a checkpoint this often within an epoch too; there is one at the end of each.
    root
        Where copies of named sets are, or go.
    """
    if not checkpoint_minutes >= 0:
        raise UserError(f"checkpoint_minutes must be 0 or more, not {checkpoint_minutes}")
    chosen = recipes.recipe(recipe or ("finetune" if init else "modern"), overrides)
    start = Bundle.load(bundles.find_bundle(init)) if init else None
    d = data.open_data(source, root, seed, val)
    net = network(arch, alpha, resolution, start, len(d.labels))
    config = {"verb": "train", "source": source, "arch": net.to_json(), "recipe": chosen.to_json(), "seed": seed}
    config |= {"init": start.digest if start else None, "val": d.val_fraction}
    out = out or run.folder(source, net.title)
    _, rank = world()
    if rank == 0:
        run.prepare(out, config, resume)
        checks.check(d, skip_bad)
    else:
        checks.scan(d)
    trained = train_bundle(
        d, net, chosen, out, seed=seed, resume=resume, init=start, checkpoint_minutes=checkpoint_minutes
    )
    if rank != 0:
        return None
    run.say_where(out)
    return trained


def network(arch: str | None, alpha: float | None, resolution: int | None, start: Bundle | None, classes: int) -> Arch:
    """What to train: the network of a verb's arguments, or of the bundle it starts from. Raises `UserError`."""
    if start is None:
        return zoo.arch(arch or "v2", 1.0 if alpha is None else alpha, resolution, classes)
    if arch is not None or alpha is not None:
        raise UserError("--init brings its own network: leave out --arch and --alpha")
    return initial_arch(start, classes, resolution or start.card.arch.resolution)


def initial_arch(start: Bundle, classes: int, resolution: int) -> Arch:
    """The network of the bundle to start from, for other classes and another resolution."""
    if start.card.precision != "float32":
        raise UserError(f"--init needs a float bundle, not {start.card.precision}")
    return start.card.arch.replace(classes=classes, resolution=resolution)


@loop.quiet()
def train_bundle(
    d: Data,
    arch: Arch,
    recipe: Recipe,
    out: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    init: Bundle | None = None,
    teaching: Teaching | None = None,
    checkpoint_minutes: float = loop.MINUTES,
) -> Bundle:
    """Train `arch` on data that was checked already, perhaps with a teacher; writes and returns the bundle OUT/float.

    Raises `UserError` (bad numbers, a full disk, a worker process that died), `Interrupted` on Ctrl-C: the last
    checkpoint is then in `out`.
    """
    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
    from pytorch_lightning.loggers import TensorBoardLogger

    from mobilenets.callbacks import EpochLog

    size, rank = world()
    ready, val = make_ready(d, d.split("train"), arch, recipe, seed, init, teaching), d.split("val")
    folder = out / CHECKPOINTS
    monitor = "val_balanced" if recipe.class_weights == "balanced" else "val_top1"
    best = ModelCheckpoint(
        folder, "best", monitor=monitor, mode="max", enable_version_counter=False, save_on_train_epoch_end=True
    )
    log = EpochLog(out / LOGS / METRICS)
    callbacks: list[pl.Callback] = [best, log]
    if recipe.patience:
        callbacks.append(EarlyStopping(monitor, mode="max", patience=recipe.patience))
    loop.train(
        ready, val, folder, resume=resume, where=out, go_on="go on with --resume", minutes=checkpoint_minutes,
        callbacks=callbacks, logger=TensorBoardLogger(out, name=LOGS, version=""),
    )  # fmt: skip

    state = torch.load(folder / "best.ckpt", weights_only=True)
    tensors = {
        k.removeprefix("model."): v.float().contiguous().numpy() if v.is_floating_point() else v.numpy()
        for k, v in state["state_dict"].items()
        if k.startswith("model.")
    }
    epoch = int(state["epoch"]) + 1
    card = Card(
        arch=ready.learner.model.arch,
        preprocess=ready.preprocess,
        labels=d.labels,
        metrics=(Metric("top1", round(log.top1(epoch), 4), d.source, "val", len(val)),),
        recipe={
            **recipe.to_json(),
            "command": run.recorded_command(out),
            "seed": seed,
            "processes": size,
            "best_epoch": epoch,
            **(teaching.to_json() if teaching else {}),
        },
        data=d.describe(),
        parent=init.digest if init else teaching.teacher.digest if teaching else None,
        licence=init.card.licence if init else "",
    )
    done = Bundle(card, tensors)
    return done.save(out / FLOAT) if rank == 0 else done


def make_ready(
    d: Data,
    training: Split,
    arch: Arch,
    recipe: Recipe,
    seed: int,
    init: Bundle | None = None,
    teaching: Teaching | None = None,
) -> Ready:
    """Network, objective and augmented images of a training on `training`, a split of `d`."""
    import torch

    from mobilenets import loader, model
    from mobilenets.learner import Learner
    from mobilenets.objectives import Labels, Objective, class_weights
    from mobilenets.precision import fast_bf16

    arch = arch.replace(dropout=recipe.dropout)
    kind = d.kind if recipe.augment == "auto" else recipe.augment
    preprocess = init.card.preprocess if init else Preprocess(arch.resolution, crop=1.0 if kind == "shift" else d.crop)
    preprocess = dataclasses.replace(preprocess, resolution=arch.resolution)
    torch.manual_seed(seed)
    net = model.build(arch)
    if init:
        _start_from(net, init, d.labels)
    balanced = recipe.class_weights == "balanced"
    weights = class_weights(np.bincount(training.targets, minlength=arch.classes).tolist()) if balanced else None
    labels = Labels(recipe, arch.classes, weights)
    objective: Objective = labels
    images = loader.TrainImages(training, loader.augmentation(kind, preprocess, recipe), seed)
    if teaching:
        images.taught = teaching.ask_beforehand(images, recipe, kind)
        objective = teaching.objective(labels, arch.width, live=images.taught is None)
    bf16 = recipe.training_precision == "bf16" or (recipe.training_precision == "auto" and fast_bf16())
    learner = Learner(net, preprocess, recipe, seed, bf16 or torch.cuda.is_available(), objective)
    return Ready(learner, images, preprocess, "bf16-mixed" if bf16 else "32-true")


def _start_from(net: Any, init: Bundle, labels: tuple[str, ...]) -> None:
    """Load what fits: everything, or all but the classifier where the classes differ."""
    import torch

    same = init.card.labels == labels
    state = {k: torch.from_numpy(np.array(v)) for k, v in init.tensors.items() if same or "classifier" not in k}
    net.load_state_dict(state, strict=same)
