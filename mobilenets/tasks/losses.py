"""What classifiers' training minimises and is scored by, in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from mobilenets.arch.heads import LOGITS


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy in nats, float32: logits [N, C], targets [N] or, mixed, [N, C]; `weights` [C] of the classes.

    With weights, the sum over images is divided by their number, whatever their classes weigh.
    """
    total = F.cross_entropy(logits.float(), targets, weights, label_smoothing=smoothing, reduction="sum")
    return total / len(logits)


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 x the Kullback-Leibler divergence of logits [N, C] at temperature T, nats (Hinton, Vinyals, Dean 2015)."""
    log_p, soft = F.log_softmax(student.float() / temperature, 1), (teacher.float() / temperature).softmax(1)
    return temperature**2 * F.kl_div(log_p, soft, reduction="batchmean")


def class_weights(counts: Sequence[int]) -> Tensor:
    """Weights [C] that make every class count the same, their mean over the images 1; 0 for a class without images."""
    n = torch.tensor(counts, dtype=torch.float32)
    return torch.where(n > 0, n.sum() / ((n > 0).sum() * n.clamp(min=1)), 0.0)


class LabelLoss(nn.Module):
    """What losses of labels have in common: targets are a batch's second part; `weights` of the labels, as each has."""

    def __init__(self, recipe: Any, num_classes: int, weights: Tensor | None = None) -> None:
        super().__init__()
        self.recipe, self.num_classes = recipe, num_classes
        self.register_buffer("weights", weights, persistent=False)

    weights: Tensor | None

    def targets(self, batch: Sequence[Any]) -> Tensor:
        """Of the batch's images, [N] or [N, C]."""
        return cast(Tensor, batch[1])


class CrossEntropy(LabelLoss):
    """Cross-entropy with the true classes [N], smoothed, weighted and mixed as the recipe says."""

    def forward(self, outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
        """Logits [N, C] and classes [N] or, mixed, [N, C] -> nats."""
        return cross_entropy(outputs[LOGITS], targets, self.recipe.label_smoothing, self.weights)

    def mixes(self, rows: bool = False) -> list[v2.Transform]:
        """MixUp and CutMix where the recipe has them; `rows`: targets are rows already, not numbers of classes."""
        return mixes_of(self.recipe, None if rows else self.num_classes)

    def rows(self, targets: Tensor) -> Tensor:
        """Classes [N] as shares of each [N, C]."""
        return F.one_hot(targets, self.num_classes)

    def soften(self, logits: Tensor, temperature: float) -> Tensor:
        """A teacher's logits [N, C] as probabilities that can be mixed."""
        return (logits / temperature).softmax(1)

    def off(self, logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
        """T^2 x the divergence of a student's logits from softened probabilities, nats."""
        log_p = F.log_softmax(logits.float() / temperature, 1)
        return temperature**2 * F.kl_div(log_p, soft, reduction="batchmean")


class Bootstrapped(CrossEntropy):
    """Hard bootstrapping (Reed and others 2015): a share of each target, the recipe's `noise`, is the network's answer.

    Targets that the network has come to doubt count for less.
    """

    def forward(self, outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
        logits = outputs[LOGITS]
        own = F.one_hot(logits.detach().argmax(1), self.num_classes)
        mixed = torch.lerp(shares(targets, self.num_classes), own.float(), self.recipe.noise)
        return cross_entropy(logits, mixed, self.recipe.label_smoothing, self.weights)


class Symmetric(CrossEntropy):
    """Symmetric cross-entropy (Wang and others 2019): .1 of it, and all of what the labels cost under the answers.

    The second part is at most 4 for an image, however wrong its label, as log 0 is set to -4 there.
    """

    FORTH, LOG_0 = 0.1, -4.0

    def forward(self, outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
        logits, rows = outputs[LOGITS].float(), shares(targets, self.num_classes)
        back = -(logits.softmax(1) * rows.log().clamp(min=self.LOG_0)).sum(1)
        if self.weights is not None:
            back = back * (rows @ self.weights)
        forth = cross_entropy(logits, targets, self.recipe.label_smoothing, self.weights)
        return self.FORTH * forth + back.mean()


# By the recipe's `loss`. Co-teaching needs a second network, and is in `training.co_teaching`.
LOSSES: Mapping[str, type[CrossEntropy]] = {
    "cross-entropy": CrossEntropy,
    "bootstrap": Bootstrapped,
    "symmetric": Symmetric,
    "co-teaching": CrossEntropy,
}


def shares(targets: Tensor, num_classes: int) -> Tensor:
    """Classes [N], or shares of each [N, C] already -> shares, float32."""
    return targets.float() if targets.is_floating_point() else F.one_hot(targets, num_classes).float()


def mixes_of(recipe: Any, num_classes: int | None) -> list[v2.Transform]:
    ways = ((v2.MixUp, recipe.mixup), (v2.CutMix, recipe.cutmix))
    return [way(alpha=alpha, num_classes=num_classes) for way, alpha in ways if alpha]


def accuracies(num_classes: int) -> nn.ModuleDict:
    """Of all images, and the mean over classes; shares of 1."""
    accuracy = torchmetrics.classification.MulticlassAccuracy
    return nn.ModuleDict(
        {"val_top1": accuracy(num_classes, average="micro"), "val_balanced": accuracy(num_classes, average="macro")}
    )
