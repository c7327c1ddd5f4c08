"""Checkpoints in the middle of an epoch, and how a resumed run goes on from one: with the same weights, bit for bit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from mobilenets.learner import Learner
from mobilenets.loader import EpochSampler

MEANS = "means_so_far"  # in a checkpoint: what the epoch has logged
AGREE = 16  # steps between two looks at the clock by several processes, which wait for each other then


class MidEpoch(Checkpoint):
    """Writes the checkpoint `path` every so many minutes, and starts a resumed epoch's batches where it was stopped.

    What a checkpoint doesn't hold is an accumulated gradient, a frozen epoch's features, or the last batches' images
    that `averaging` measures on: there, it waits for the next step, or for the end of the epoch.
    """

    def __init__(self, path: Path, minutes: float, sampler: EpochSampler, batch: int) -> None:
        self.path, self.seconds, self.sampler, self.batch = path, 60 * minutes, sampler, batch
        self.means: dict[str, list[float]] = {}  # of a resumed epoch, from before it was stopped

    def on_train_start(self, _trainer: pl.Trainer, _module: pl.LightningModule) -> None:
        self.since = time.monotonic()

    def on_train_epoch_end(self, _trainer: pl.Trainer, _module: pl.LightningModule) -> None:
        self.since = time.monotonic()  # the epoch's own checkpoint is written now

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, _outputs: Any, _batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, Learner)
        self._go_on_with_means(trainer)
        to_come = trainer.num_training_batches - (batch_idx + 1)
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not stepped or module.frozen or to_come < (module.recent.maxlen or 0):
            return
        if trainer.world_size > 1 and trainer.global_step % AGREE:
            return
        if trainer.strategy.broadcast(time.monotonic() - self.since >= self.seconds):  # all processes or none
            trainer.save_checkpoint(self.path)
            self.since = time.monotonic()

    def on_save_checkpoint(self, trainer: pl.Trainer, _module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[MEANS] = {
            k: [float(trainer.strategy.reduce(m.value.clone(), reduce_op="mean")), float(m.cumulated_batch_size)]
            for k, m in trainer.fit_loop.epoch_loop._results.items()
            if m.meta.on_epoch and m.meta.is_mean_reduction and m.is_tensor
        }

    def on_load_checkpoint(self, _trainer: pl.Trainer, _module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        # Lightning has the workers draw the first batches before it tells the sampler the epoch.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        whole = progress["is_last_batch"]
        self.sampler.go_on(checkpoint["epoch"] + whole, 0 if whole else self.batch * progress["current"]["ready"])
        self.means = {} if whole else checkpoint.get(MEANS, {})

    def _go_on_with_means(self, trainer: pl.Trainer) -> None:
        """Lightning's means of an epoch start with the process; those of a resumed epoch start with the epoch."""
        results = trainer.fit_loop.epoch_loop._results
        for key, (total, images) in self.means.items():
            mean = results[key]
            mean.value = torch.as_tensor(total, dtype=mean.value.dtype, device=mean.value.device) + mean.value
            mean.cumulated_batch_size = mean.cumulated_batch_size + int(images)
        self.means = {}
