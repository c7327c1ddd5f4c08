"""Train a network on labelled images: data + Arch + recipe -> Bundle. PyTorch Lightning runs the loop."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilenets.arch import zoo
from mobilenets.arch.spec import Arch
from mobilenets.data.dataset import Data, Split
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card, Metric
from mobilenets.model.images import Preprocess
from mobilenets.training import loop, run
from mobilenets.training.distributed import world
from mobilenets.training.loop import Ready
from mobilenets.training.recipes import Recipe
from mobilenets.training.run import CHECKPOINTS, FLOAT, LOGS, METRICS

if TYPE_CHECKING:
    from mobilenets.training.distill import Teaching


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

    from mobilenets.training.callbacks import EpochLog

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

    from mobilenets.model import module as model
    from mobilenets.training import loader
    from mobilenets.training.distributed import fast_bf16
    from mobilenets.training.learner import Learner
    from mobilenets.training.objectives import Labels, Objective, class_weights

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
