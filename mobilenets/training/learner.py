"""The LightningModule that trains any recipe. Lightning owns the loop."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torchmetrics
from torch import Tensor, nn
from torchvision.transforms import v2

from mobilenets.errors import UserError
from mobilenets.model.images import Preprocess
from mobilenets.model.module import MobileNet
from mobilenets.tasks import classify
from mobilenets.training.loader import mix
from mobilenets.training.objectives import Labels, Objective
from mobilenets.training.optim import OPTIMIZERS, STRAIGHT_DOWN, parameter_groups, schedule
from mobilenets.training.recipes import Recipe

RECENT = 16  # batches


class Learner(pl.LightningModule):
    """A network in training: batches of uint8 [N, 3, R, R], classes [N], and what else the objective takes."""

    def __init__(
        self,
        model: MobileNet,
        preprocess: Preprocess,
        recipe: Recipe,
        seed: int,
        channels_last: bool,
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.seed = model, recipe, seed
        self.objective = objective or Labels(recipe, model.arch.classes)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        classes = model.arch.classes
        self.recent: deque[Tensor] = deque(maxlen=RECENT * recipe.accumulate)  # images of the epoch's last batches
        self.features: list[tuple[Tensor, Tensor]] = []  # of the frozen epoch so far, with their targets
        self.mixes = [
            mix(alpha=alpha, num_classes=self.objective.classes)
            for mix, alpha in ((v2.MixUp, recipe.mixup), (v2.CutMix, recipe.cutmix))
            if alpha
        ]
        self.scores = nn.ModuleDict(
            {
                "val_top1": torchmetrics.classification.MulticlassAccuracy(classes, average="micro"),
                "val_balanced": torchmetrics.classification.MulticlassAccuracy(classes, average="macro"),
            }
        )
        for name in ("mean", "std"):
            value = torch.tensor(getattr(preprocess, name)).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    mean: Tensor
    std: Tensor

    @property
    def frozen(self) -> bool:
        return self.kind(self.current_epoch)[1]

    @property
    def side(self) -> int:
        return self.kind(self.current_epoch)[0]

    def kind(self, epoch: int) -> tuple[int, bool]:
        """Pixels that training images are shrunk to in `epoch`, a multiple of 4, at least 16; and if it is frozen."""
        full, recipe = self.model.arch.resolution, self.recipe
        grown = min(1.0, epoch / max(1.0, 0.6 * recipe.epochs))
        share = recipe.progressive + (1 - recipe.progressive) * grown
        side = full if share == 1 else min(full, max(16, 4 * math.floor(full * share / 4)))
        return side, epoch < recipe.frozen_epochs

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

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        self.recent.append(batch[0])
        images, targets = self.shrink(batch[0]), self.objective.targets(batch)
        torch.manual_seed(mix(self.seed, self.current_epoch, batch_idx, self.global_rank))  # mixup and dropout
        if self.mixes:
            one = self.mixes[int(torch.randint(len(self.mixes), ()))]
            images, targets = one(images.float(), targets)
        with torch.set_grad_enabled(not self.frozen):
            pooled = self.model.pooled(self.normalize(images))
        if self.frozen:
            self.features.append((pooled.float(), targets))
        loss = self.loss(pooled, targets)
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss became {loss.item()} in epoch {self.current_epoch + 1}: the learning rate is too high for "
                f"this data; try again with --lr {self.recipe.lr / 4:g}"
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def loss(self, pooled: Tensor, targets: Tensor) -> Tensor:
        """What the classifier makes of `pooled`, [N, width], compared with the objective's targets."""
        logits = self.model.classifier(self.model.dropout(pooled))
        return cast(Tensor, self.objective(logits, pooled, targets))

    def on_train_batch_end(self, _outputs: Any, _batch: Any, _batch_idx: int) -> None:
        if self.features and self.trainer.is_last_batch:  # validation comes before the epoch's end
            self._reuse_features()

    def _reuse_features(self) -> None:
        """Train the classifier on the frozen epoch's features, again and again: it costs next to nothing.

        All processes do the same on the features of all.
        """
        recipe = self.recipe
        learnt = [*self.model.classifier.parameters(), *self.objective.parameters()]
        both = [cast(Tensor, self.all_gather(torch.cat(t))) for t in zip(*self.features, strict=True)]
        self.features.clear()
        x, y = (t.flatten(0, 1) if self.trainer.world_size > 1 else t for t in both)
        generator = torch.Generator().manual_seed(mix(self.seed, self.current_epoch))
        optimizer = torch.optim.AdamW(learnt, recipe.lr, weight_decay=recipe.weight_decay)
        passes = [torch.randperm(len(x), generator=generator) for _ in range(recipe.frozen_passes)]
        batches = [index for order in passes for index in torch.split(order, recipe.batch)]
        for step, index in enumerate(batches):
            optimizer.param_groups[0]["lr"] = recipe.lr * schedule(step, len(batches), STRAIGHT_DOWN)
            optimizer.zero_grad()
            torch.autograd.backward(self.loss(x[index], y[index]))
            optimizer.step()

    def validation_step(self, batch: Sequence[Tensor], _batch_idx: int) -> None:
        images, targets = batch
        logits = self(images)
        for score in self.scores.values():
            cast(torchmetrics.Metric, score).update(logits, targets)
        self.log("val_loss", classify.loss(logits, targets), on_epoch=True, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        for name, score in self.scores.items():
            metric = cast(torchmetrics.Metric, score)
            self.log(name, 100 * metric.compute(), sync_dist=True)  # percent
            metric.reset()

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self.model, self.recipe)
        if learnt := list(self.objective.parameters()):
            groups.append({"params": learnt, "weight_decay": 0.0, "lr": self.recipe.peak_lr})
        optimizer = OPTIMIZERS[self.recipe.optimizer](groups, lr=self.recipe.peak_lr)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: schedule(s, total, self.recipe))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
