"""What geolocation's training minimises and is scored by, in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F

from mobilenets.arch.heads import LOGITS
from mobilenets.tasks.geolocate import sphere
from mobilenets.tasks.geolocate.cells import Partition
from mobilenets.tasks.losses import LabelLoss

NOWHERE = -1  # the cell of a photo that lies in none


class CellLoss(LabelLoss):
    """Cross-entropy with the cell that each photo lies in, the mean over partitions, nats (PlaNet; GeoEstimation).

    `softness` km: cells near the true one are partly right, by exp(-distance / softness) from their mean positions; 0:
    one is.
    """

    def __init__(
        self, recipe: Any, partitions: Sequence[Partition], taps: Sequence[str], softness: float = 0.0
    ) -> None:
        super().__init__(recipe, len(partitions[0]))
        self.partitions, self.taps, self.softness = tuple(partitions), tuple(taps), softness

    def targets(self, batch: Sequence[Any]) -> Tensor:
        """Cells [N, P] of positions [N, 2], or shares of them all [N, sum of cells], as the softness says."""
        at = batch[1].double().cpu().numpy()
        if not self.softness:
            columns = [torch.from_numpy(p.find(at)) for p in self.partitions]
            return torch.stack(columns, 1).to(batch[1].device)
        return torch.cat([self._soft(p, at) for p in self.partitions], 1).to(batch[1].device)

    def _soft(self, partition: Partition, at: np.ndarray) -> Tensor:
        away = sphere.distance(at[:, None], partition.means[None])  # [N, C]
        inside = partition.find(at)
        nearest = np.where(inside >= 0, inside, away.argmin(1))
        away[np.arange(len(at)), nearest] = 0.0
        return F.softmax(torch.from_numpy(-away / self.softness), 1).float()

    def forward(self, outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
        """Logits of each partition and what `targets` gave -> nats."""
        logits = [outputs[tap].float() for tap in self.taps]
        if targets.is_floating_point():
            parts: Sequence[Tensor] = torch.split(targets, [x.shape[1] for x in logits], 1)
        else:
            parts = targets.unbind(1)
        each = [_cross_entropy(x, y, self.recipe.label_smoothing) for x, y in zip(logits, parts, strict=True)]
        return torch.stack(each).mean()

    def mixes(self, rows: bool = False) -> list[Any]:  # noqa: ARG002
        """None: a photo mixed of two was taken nowhere."""
        return []


def _cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    if targets.is_floating_point():
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)
    known = (targets != NOWHERE).sum().clamp(min=1)
    return F.cross_entropy(logits, targets, ignore_index=NOWHERE, label_smoothing=smoothing, reduction="sum") / known


class Within(torchmetrics.Metric):
    """The share of photos whose best cell's mean position lies within so many km of where they were taken."""

    full_state_update = False

    def __init__(self, partition: Partition, km: float) -> None:
        super().__init__()
        self.km = km
        self.register_buffer("means", torch.from_numpy(partition.means), persistent=False)
        self.add_state("near", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    means: Tensor
    near: Tensor
    count: Tensor

    def update(self, outputs: Mapping[str, Tensor] | Tensor, targets: Tensor) -> None:
        logits = outputs if isinstance(outputs, Tensor) else outputs[LOGITS]
        guessed = self.means[logits.argmax(1)].cpu().numpy()
        away = sphere.distance(guessed, targets.cpu().numpy())
        self.near += int((away <= self.km).sum())
        self.count += len(away)

    def compute(self) -> Tensor:
        return self.near / self.count.clamp(min=1)


def validation_loss(logits: Tensor, targets: Tensor, partition: Partition) -> Tensor:
    """Cross-entropy with the first partition's cells, nats."""
    cells = torch.from_numpy(partition.find(targets.cpu().numpy())).to(logits.device)
    return _cross_entropy(logits.float(), cells, 0.0)


def scores(partition: Partition, distances: Mapping[str, float]) -> nn.ModuleDict:
    """Shares of 1, by the names that logs have them by."""
    return nn.ModuleDict({f"val_{name}": Within(partition, km) for name, km in distances.items()})
