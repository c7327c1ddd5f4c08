"""The LightningModule that trains any recipe, and the progress bar. Lightning owns the loop."""

from __future__ import annotations

import csv
import io
import math
import time
from collections import deque
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torchmetrics
from pytorch_lightning.plugins import TorchCheckpointIO
from torch import Tensor, nn
from torchvision.transforms import v2

from mobilenets import console, files
from mobilenets.errors import UserError
from mobilenets.images import Preprocess
from mobilenets.loader import mix
from mobilenets.model import MobileNet
from mobilenets.optimizers import OPTIMIZERS
from mobilenets.recipes import Recipe
from mobilenets.tasks import classify


def parameter_groups(model: MobileNet, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters by (decayed or not) x (classifier or body).

    One rule for decay: weights of more than one input each have it; depthwise filters (V1 paper, section 3.2), norms
    and biases don't.
    """
    plain = {
        id(m.weight)
        for m in model.modules()
        if (isinstance(m, nn.Conv2d) and m.groups == 1) or isinstance(m, nn.Linear)
    }
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        groups.setdefault((id(p) in plain, name.startswith("classifier")), []).append(p)
    return [
        {
            "params": params,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
            "lr": recipe.peak_lr * (1.0 if head else recipe.body_lr),
        }
        for (decayed, head), params in groups.items()
    ]


RECENT = 16  # batches
STRAIGHT_DOWN = Recipe(warmup=0.0)  # a schedule


def schedule(step: int, total: int, recipe: Recipe) -> float:
    """Share of the peak learning rate at `step` of `total`: a linear rise, then a cosine to 0 or a fall by epochs."""
    rise = max(1, round(recipe.warmup * total))
    if step < rise:
        return (step + 1) / rise
    if recipe.schedule == "exponential":
        return float(recipe.lr_decay ** (step * recipe.epochs // total))
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


class Learner(pl.LightningModule):
    """A network in training: batches of uint8 [N, 3, R, R] and classes [N]."""

    def __init__(
        self, model: MobileNet, preprocess: Preprocess, recipe: Recipe, seed: int, channels_last: bool
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.seed = model, recipe, seed
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        classes = model.arch.classes
        self.recent: deque[Tensor] = deque(maxlen=RECENT)  # images of the epoch's last batches
        self.features: list[tuple[Tensor, Tensor]] = []  # of the frozen epoch so far, with their targets
        self.mixup = v2.MixUp(alpha=recipe.mixup, num_classes=classes) if recipe.mixup else None
        self.top1 = torchmetrics.classification.MulticlassAccuracy(classes, average="micro")
        for name in ("mean", "std"):
            value = torch.tensor(getattr(preprocess, name)).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    mean: Tensor
    std: Tensor

    @property
    def frozen(self) -> bool:
        return self.current_epoch < self.recipe.frozen_epochs

    @property
    def side(self) -> int:
        """Pixels that training images are shrunk to in this epoch: a multiple of 4, at least 16."""
        full, recipe = self.model.arch.resolution, self.recipe
        grown = min(1.0, self.current_epoch / max(1.0, 0.6 * recipe.epochs))
        share = recipe.progressive + (1 - recipe.progressive) * grown
        return min(full, max(16, 4 * math.floor(full * share / 4)))

    def shrink(self, images: Tensor) -> Tensor:
        if images.shape[-1] == self.side:
            return images
        return cast(Tensor, v2.functional.resize(images.float(), [self.side, self.side], antialias=True))

    def normalize(self, images: Tensor) -> Tensor:
        return ((images.float() - self.mean) / self.std).contiguous(memory_format=self.memory_format)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.model(self.normalize(images)))

    def on_train_epoch_start(self) -> None:
        self.recent.clear()
        self.model.blocks.train(not self.frozen)  # a frozen body keeps its BatchNorm statistics

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.recent.append(batch[0])
        images, targets = self.shrink(batch[0]), batch[1]
        torch.manual_seed(mix(self.seed, self.current_epoch, batch_idx, self.global_rank))  # mixup and dropout
        if self.mixup:
            images, targets = self.mixup(images.float(), targets)
        if self.frozen:
            with torch.no_grad():
                pooled = self.model.pooled(self.normalize(images))
            self.features.append((pooled.float(), targets))
            logits = self.model.classifier(self.model.dropout(pooled))
        else:
            logits = self(images)
        loss = classify.loss(logits, targets, self.recipe.label_smoothing)
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss became {loss.item()} in epoch {self.current_epoch + 1}: the learning rate is too high for "
                f"this data; try again with --lr {self.recipe.lr / 4:g}"
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def on_train_batch_end(self, _outputs: Any, _batch: Any, _batch_idx: int) -> None:
        if self.features and self.trainer.is_last_batch:  # validation comes before the epoch's end
            self._reuse_features()

    def _reuse_features(self) -> None:
        """Train the classifier on the frozen epoch's features, again and again: it costs next to nothing.

        All processes do the same on the features of all.
        """
        recipe, classifier = self.recipe, self.model.classifier
        both = [cast(Tensor, self.all_gather(torch.cat(t))) for t in zip(*self.features, strict=True)]
        self.features.clear()
        x, y = (t.flatten(0, 1) if self.trainer.world_size > 1 else t for t in both)
        generator = torch.Generator().manual_seed(mix(self.seed, self.current_epoch))
        optimizer = torch.optim.AdamW(classifier.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
        passes = [torch.randperm(len(x), generator=generator) for _ in range(recipe.frozen_passes)]
        batches = [index for order in passes for index in torch.split(order, recipe.batch)]
        for step, index in enumerate(batches):
            optimizer.param_groups[0]["lr"] = recipe.lr * schedule(step, len(batches), STRAIGHT_DOWN)
            loss = classify.loss(classifier(self.model.dropout(x[index])), y[index], recipe.label_smoothing)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()

    def validation_step(self, batch: tuple[Tensor, Tensor], _batch_idx: int) -> None:
        images, targets = batch
        logits = self(images)
        self.top1.update(logits, targets)
        self.log("val_loss", classify.loss(logits, targets), on_epoch=True, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        self.log("val_top1", 100 * self.top1.compute(), sync_dist=True)  # percent
        self.top1.reset()

    def configure_optimizers(self) -> Any:
        optimizer = OPTIMIZERS[self.recipe.optimizer](parameter_groups(self.model, self.recipe), lr=self.recipe.peak_lr)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: schedule(s, total, self.recipe))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


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

    COLUMNS = ("epoch", "train_loss", "val_loss", "val_top1", "lr", "seconds")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []

    def on_train_start(self, trainer: pl.Trainer, _module: pl.LightningModule) -> None:
        self.since = time.monotonic()
        if self.path.exists():
            with self.path.open(newline="") as f:
                self.rows = [r for r in csv.DictReader(f) if int(r["epoch"]) <= trainer.current_epoch]

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
    """Epoch, rate, time left and the last validation score, on rank 0."""

    def on_train_start(self, trainer: pl.Trainer, _module: pl.LightningModule) -> None:
        self.bar = console.progress("steps") if trainer.is_global_zero else None
        if self.bar:
            self.bar.start()
            steps = int(trainer.estimated_stepping_batches)
            self.task = self.bar.add_task("training", total=steps, completed=trainer.global_step, status="")
        self.images, self.since, self.score = 0, time.monotonic(), ""

    def on_train_batch_end(
        self, trainer: pl.Trainer, _module: pl.LightningModule, _out: Any, batch: Any, _i: int
    ) -> None:
        self.images += len(batch[0]) * trainer.world_size
        if self.bar:
            rate = self.images / (time.monotonic() - self.since)
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            status = f"{rate:.0f} images/s{self.score}"
            self.bar.update(self.task, completed=trainer.global_step, description=epoch, status=status)

    def on_validation_end(self, trainer: pl.Trainer, _module: pl.LightningModule) -> None:
        if "val_top1" in trainer.callback_metrics:
            self.score = f", val top-1 {float(trainer.callback_metrics['val_top1']):.2f}%"
        self.images, self.since = 0, time.monotonic()

    def teardown(self, _trainer: pl.Trainer, _module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        bar = getattr(self, "bar", None)
        if bar:
            bar.stop()
