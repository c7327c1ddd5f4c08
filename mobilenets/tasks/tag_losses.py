"""What the training for tags minimises and is scored by, in PyTorch: each tag is a yes or a no of its own.

Targets [N, C] are 1, 0, something between where images were mixed, or NaN where nobody knows, which counts nowhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.utilities import dim_zero_cat
from torchvision.transforms import v2

from mobilenets.arch.heads import LOGITS
from mobilenets.tasks.losses import LabelLoss, mixes_of

UNKNOWN = -1  # how torchmetrics is told of what counts nowhere


def binary_cross_entropy(
    logits: Tensor, targets: Tensor, smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy of logits [N, C], the mean over the tags that are known, in nats; `weights` [2, C] of no and yes.

    `smoothing`: a yes is that much, halved, below 1, and a no as much above 0.
    """
    known = ~targets.isnan()
    true = torch.where(known, targets, 0.0)
    each = F.binary_cross_entropy_with_logits(logits.float(), true * (1 - smoothing) + smoothing / 2, reduction="none")
    if weights is not None:
        each = each * torch.lerp(weights[0].expand_as(true), weights[1].expand_as(true), true)
    return (each * known).sum() / known.sum().clamp(min=1)


def bernoulli_divergence(logits: Tensor, soft: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of tags' logits [N, C] from probabilities, the mean over all of them, nats."""
    entropy = -(torch.xlogy(soft, soft) + torch.xlogy(1 - soft, 1 - soft))
    crossed = F.binary_cross_entropy_with_logits(logits.float(), soft, reduction="none")
    return (crossed - entropy).mean()


def tag_weights(targets: npt.NDArray[np.float32]) -> Tensor:
    """Weights [2, C] of no and yes that make both count the same for each tag, their mean over the images 1.

    Of a tag that all have, or none has, there is nothing to make up for.
    """
    yes, known = np.nansum(targets, 0), (~np.isnan(targets)).sum(0)
    both = (yes > 0) & (yes < known)
    each = [np.where(both, known / np.maximum(2 * n, 1), 1.0) for n in (known - yes, yes)]
    return torch.tensor(np.stack(each), dtype=torch.float32)


class BinaryCrossEntropy(LabelLoss):
    """Cross-entropy with each tag's yes or no [N, C], smoothed, weighted and mixed as the recipe says."""

    def forward(self, outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
        """Logits [N, C] and tags [N, C] -> nats."""
        return binary_cross_entropy(outputs[LOGITS], targets, self.recipe.label_smoothing, self.weights)

    def mixes(self, rows: bool = True) -> list[v2.Transform]:  # noqa: ARG002  (they are rows)
        """MixUp and CutMix where the recipe has them: a mixed tag is known where both images' are."""
        return mixes_of(self.recipe, None)

    def rows(self, targets: Tensor) -> Tensor:
        return targets

    def soften(self, logits: Tensor, temperature: float) -> Tensor:
        """A teacher's logits [N, C] as probabilities that can be mixed."""
        return (logits / temperature).sigmoid()

    def off(self, logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
        """T^2 x the divergence of a student's logits from softened probabilities, nats."""
        return temperature**2 * bernoulli_divergence(logits / temperature, soft)


def _as_metrics_take_it(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and whole numbers, of two tags at least, which torchmetrics asks for: a single one twice."""
    true = torch.where(targets.isnan(), UNKNOWN, targets).long()
    pair = (logits.float().sigmoid(), true)
    return (pair[0].repeat(1, 2), pair[1].repeat(1, 2)) if true.shape[1] == 1 else pair


class MeanAP(torchmetrics.classification.MultilabelAveragePrecision):
    """The mean over tags of their average precision, of those that some image has; others have none."""

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, average=None, ignore_index=UNKNOWN)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        super().update(*_as_metrics_take_it(logits, targets))

    def compute(self) -> Tensor:  # type: ignore[override]  # the one that it overrides has a curve for a value
        had = (dim_zero_cat(self.target) == 1).any(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(No positive samples|score for one or more classes).*")
            each = super().compute()
        return torch.where(had, each, torch.nan).nanmean().nan_to_num(0.0)


class TagAccuracy(torchmetrics.classification.MultilabelStatScores):
    """The mean over tags of the share of images that are right at one half; `balanced`: of yes and of no, the mean."""

    def __init__(self, num_labels: int, balanced: bool = False) -> None:
        super().__init__(num_labels, average=None, ignore_index=UNKNOWN)
        self.balanced = balanced

    def update(self, logits: Tensor, targets: Tensor) -> None:
        super().update(*_as_metrics_take_it(logits, targets))

    def compute(self) -> Tensor:
        hit, false, right, missed, _ = super().compute().double().unbind(-1)
        yes, no = hit / (hit + missed), right / (right + false)
        each = (yes + no) / 2 if self.balanced else (hit + right) / (hit + right + false + missed)
        return each.nanmean().nan_to_num(0.0).float()


def tag_scores(count: int) -> nn.ModuleDict:
    """Shares of 1."""
    wide = max(count, 2)
    return nn.ModuleDict({
        "val_map": MeanAP(wide),
        "val_accuracy": TagAccuracy(wide),
        "val_balanced": TagAccuracy(wide, balanced=True),
    })  # fmt: skip
