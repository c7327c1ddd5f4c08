"""What happens around the training loop: checkpoints, a log of the epochs, the progress bar."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import TorchCheckpointIO

from mobilenets import console, files, pace
from mobilenets.learner import Learner


class Checkpoints(TorchCheckpointIO):
    """Checkpoints written beside and renamed into place.

    Lightning's own are written in the temporary folder and moved: from another disk, that is a copy over the last one,
    which a full disk or a kill leaves half-written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        buffer = io.BytesIO()  # torch.save to a file hides a full disk's OSError
        torch.save(checkpoint, buffer)
        with files.atomic_file(Path(path)) as tmp:
            tmp.write_bytes(buffer.getbuffer())


class EpochLog(pl.Callback):
    """A row per epoch in a CSV file, kept whole over `--resume` (Lightning's own logger starts the file anew)."""

    COLUMNS = ("epoch", "train_loss", "val_loss", "val_top1", "val_balanced", "lr", "seconds")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as f:
                self.rows = list(csv.DictReader(f))

    def top1(self, epoch: int) -> float:
        """The validation score of an epoch, counted from 1, in percent."""
        return next(float(r["val_top1"]) for r in self.rows if r["epoch"] == str(epoch))

    def on_train_start(self, trainer: pl.Trainer, _module: pl.LightningModule) -> None:
        self.since = time.monotonic()
        self.rows = [r for r in self.rows if int(r["epoch"]) <= trainer.current_epoch]

    def on_train_epoch_end(self, trainer: pl.Trainer, _module: pl.LightningModule) -> None:
        now = time.monotonic()
        m = {k: f"{float(v):.6g}" for k, v in trainer.callback_metrics.items()}
        lr = trainer.optimizers[0].param_groups[-1]["lr"]
        row = {**m, "epoch": str(trainer.current_epoch + 1), "lr": f"{lr:.6g}", "seconds": f"{now - self.since:.2f}"}
        self.since = now
        self.rows.append({c: row.get(c, "") for c in self.COLUMNS})
        if trainer.is_global_zero:
            with files.atomic_file(self.path) as tmp, tmp.open("w", newline="") as f:
                writer = csv.DictWriter(f, self.COLUMNS)
                writer.writeheader()
                writer.writerows(self.rows)


class ProgressBar(pl.Callback):
    """Epoch, rate, last validation score and time left, on rank 0; without a terminal, a line for each epoch."""

    def __init__(self, held_out: int) -> None:
        self.held_out = held_out  # images of a validation

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Learner)
        recipe, batches = module.recipe, int(trainer.num_training_batches)
        self.pace = pace.measure(module, batches, recipe.batch // recipe.accumulate, self.held_out)
        self.bar = console.progress("steps", left=False) if trainer.is_global_zero else None
        if self.bar:
            self.bar.start()
            steps = int(trainer.estimated_stepping_batches)
            self.task = self.bar.add_task("training", total=steps, completed=trainer.global_step, status="")
        self.images, self.since, self.score = 0, time.monotonic(), ""
        done = (trainer.fit_loop.epoch_loop.batch_idx + 1) % batches  # of an epoch that was interrupted
        self.started, self.start = self.since, (trainer.current_epoch, done)

    def left(self, epoch: int, step: int) -> str:
        """Time left when `epoch` epochs and `step` steps are done."""
        seconds = self.pace.left(self.start, (epoch, step), time.monotonic() - self.started)
        return console.duration(seconds)

    def on_train_batch_end(
        self, trainer: pl.Trainer, _module: pl.LightningModule, _out: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch[0]) * trainer.world_size
        if self.bar:
            rate = self.images / (time.monotonic() - self.since)
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            left = self.left(trainer.current_epoch, batch_idx + 1)
            status = f"{left} left, {rate:.0f} images/s{self.score}"
            self.bar.update(self.task, completed=trainer.global_step, description=epoch, status=status)

    def on_validation_end(self, trainer: pl.Trainer, _module: pl.LightningModule) -> None:
        if "val_top1" in trainer.callback_metrics:
            self.score = f", val top-1 {float(trainer.callback_metrics['val_top1']):.2f}%"
        if self.bar and self.bar.disable:
            done = trainer.current_epoch + 1
            console.note(f"epoch {done}/{trainer.max_epochs}{self.score}, {self.left(done, 0)} left")
        self.images, self.since = 0, time.monotonic()

    def teardown(self, _trainer: pl.Trainer, _module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        bar = getattr(self, "bar", None)
        if bar:
            bar.stop()
