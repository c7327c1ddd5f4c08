"""The training loop: PyTorch Lightning's, with our checkpoints, progress and words. What is trained is a `Setup`."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mobilenets import console
from mobilenets.data.dataset import Split
from mobilenets.errors import Interrupted, disk_errors
from mobilenets.model.images import Preprocess
from mobilenets.tasks.task import Shaped
from mobilenets.training.distributed import environment, machines, world

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from pytorch_lightning.loggers import Logger

    from mobilenets.training.learner import Learner
    from mobilenets.training.loader import TrainImages

LAST = "last.ckpt"
MINUTES = 10.0  # between checkpoints within an epoch


@dataclass(frozen=True)
class Setup:
    """What is to be trained, and on what; a trainer is all it lacks. `precision` is Lightning's word for it.

    `measured`: on how many images the network's BatchNorm statistics were measured anew; 0 where they fitted.
    """

    learner: Learner
    images: TrainImages
    preprocess: Preprocess
    precision: Literal["bf16-mixed", "32-true"]
    measured: int = 0


def train(
    setup: Setup,
    val: Split,
    folder: Path,
    *,
    resume: bool,
    where: Path,
    resume_hint: str,
    minutes: float = MINUTES,
    callbacks: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
) -> None:
    """Train for the recipe's epochs, on all processes, with a checkpoint in `folder` every `minutes` and epoch.

    `resume`: from the last of them, where there is one. Raises `UserError` (a full disk, a worker process that died),
    and on Ctrl-C `Interrupted`, which says `where` things are and how to go on, the `resume_hint`.
    """
    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.callbacks import ModelCheckpoint

    from mobilenets.training import loader
    from mobilenets.training.callbacks import Averaging, Checkpoints, MidEpoch, ProgressBar

    size, rank = world()
    learner, recipe, last = setup.learner, setup.learner.recipe, folder / LAST
    if torch.cuda.is_available() and size == 1:
        setup.images.to(torch.device("cuda"))
    batches = loader.train_loader(setup.images, recipe, size, rank)
    ragged, at_once = learner.task.ragged, max(recipe.batch, 128) // size
    tensors = learner.task.tensors if isinstance(learner.task, Shaped) else None
    held_out = loader.held_out_loader(val, setup.preprocess, at_once, size, rank, ragged, tensors)
    assert isinstance(batches.sampler, loader.EpochSampler)
    every: list[pl.Callback] = [
        *callbacks,
        ModelCheckpoint(folder, last.stem, enable_version_counter=False, save_on_train_epoch_end=True),
        ProgressBar(len(val)),
        MidEpoch(last, minutes, batches.sampler, batches.batch_size or 1),
    ]
    if recipe.ema:
        every.append(Averaging(recipe.ema * recipe.epochs * len(batches) / recipe.accumulate))
    if resume and rank == 0 and not last.exists():
        console.note(f"no checkpoint in {folder} yet: training starts from the beginning")
    idle = recipe.frozen_epochs or learner.idle  # parameters without a gradient, in some step
    trainer = pl.Trainer(
        max_epochs=recipe.epochs,
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        devices=size // machines(),
        num_nodes=machines(),
        strategy=("ddp_find_unused_parameters_true" if idle else "ddp") if size > 1 else "auto",
        precision=setup.precision,
        gradient_clip_val=recipe.clip or None,
        accumulate_grad_batches=recipe.accumulate,
        logger=list(loggers) or False,
        callbacks=every,
        plugins=[Checkpoints(), *filter(None, [environment()])],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1_000_000,  # by epoch
    )
    on_ctrl_c = contextlib.suppress(SystemExit)  # by which Lightning ends
    with disk_errors(f"a checkpoint in {folder}"), loader.worker_errors(setup.images), on_ctrl_c:
        trainer.fit(learner, batches, held_out, ckpt_path=last if resume and last.exists() else None)
    if trainer.interrupted:
        how = resume_hint if last.exists() else "no epoch was finished"
        raise Interrupted(f"interrupted; what was finished is in {where} ({how})")


@contextlib.contextmanager
def suppress_warnings() -> Iterator[None]:
    """Lightning's advice is for authors of training code; our users get our own words."""
    import pytorch_lightning  # noqa: F401  (importing it sets up its logging)

    with warnings.catch_warnings():
        for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
            warnings.filterwarnings("ignore", module=rf"{name}.*")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield
