"""What the training of embeddings minimises and is scored by, in PyTorch: pytorch-metric-learning's losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torchmetrics
from torch import Tensor, nn
from torchmetrics.utilities import dim_zero_cat

from mobilenets import console
from mobilenets.tasks.embed.options import USUAL, EmbedOptions
from mobilenets.tasks.embed.scores import COLLAPSED, VECTOR, collapse, mean_cosine
from mobilenets.tasks.embed.verification import drawn_pairs, verify

ALARM = 3  # epochs


def metric_loss(options: EmbedOptions, identities: int, dim: int) -> tuple[nn.Module, nn.Module | None]:
    """The loss of vectors [N, dim] and identities [N], and the miner of its triplets where it has one."""
    from pytorch_metric_learning import losses, miners

    usual_margin, usual_scale = USUAL[options.loss]
    margin, scale = options.margin or usual_margin, options.scale or usual_scale
    match options.loss:
        case "arcface":
            return losses.ArcFaceLoss(identities, dim, margin=math.degrees(margin), scale=scale), None
        case "cosface":
            return losses.CosFaceLoss(identities, dim, margin=margin, scale=scale), None
        case "triplet":
            from pytorch_metric_learning.distances import LpDistance

            squared = LpDistance(normalize_embeddings=True, p=2, power=2)
            miner = miners.TripletMarginMiner(margin=margin, type_of_triplets="semihard", distance=squared)
            return losses.TripletMarginLoss(margin=margin, distance=squared), miner
        case "multi-similarity":
            return losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()


class IdentityLoss(nn.Module):
    """A loss of which images show the same; an `Objective`. `identities`: their number in training."""

    def __init__(self, options: EmbedOptions, identities: int, dim: int) -> None:
        super().__init__()
        self.loss, self.miner = metric_loss(options, identities, dim)

    def targets(self, batch: Sequence[Any]) -> Tensor:
        """Identities [N]."""
        return cast(Tensor, batch[1])

    def forward(self, outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
        """Vectors [N, K] and identities [N] -> the loss, the mean over what it compares."""
        vectors = outputs[VECTOR].float()
        if self.miner is None:
            return cast(Tensor, self.loss(vectors, targets))
        return cast(Tensor, self.loss(vectors, targets, self.miner(vectors, targets)))

    def mixes(self) -> list[Any]:
        """None: an image mixed of two shows nobody."""
        return []


class Unlabelled(nn.Module):
    """No loss of identities: a teacher's vectors say all; an `Objective`."""

    def targets(self, batch: Sequence[Any]) -> Tensor:
        return cast(Tensor, batch[1])

    def forward(self, outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:  # noqa: ARG002
        return outputs[VECTOR].new_zeros(())

    def mixes(self) -> list[Any]:
        return []


def contrast(vectors: Tensor, identities: Tensor) -> Tensor:
    """By how much less the cosine of a batch's same pairs is than that of its different ones, on the mean."""
    v = vectors.float()
    cosine, same = v @ v.T, identities[:, None] == identities[None]
    apart, own = ~same, same & ~torch.eye(len(v), dtype=torch.bool, device=v.device)
    return (cosine * apart).sum() / apart.sum().clamp(min=1) - (cosine * own).sum() / own.sum().clamp(min=1)


class Vectors(torchmetrics.Metric):
    """Keeps the vectors of held-out images and their identities."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("vectors", [], dist_reduce_fx="cat")
        self.add_state("identities", [], dist_reduce_fx="cat")

    vectors: list[Tensor]
    identities: list[Tensor]

    def update(self, vectors: Tensor, identities: Tensor) -> None:
        self.vectors.append(vectors.float())
        self.identities.append(identities)

    def seen(self) -> tuple[Any, Any]:
        return dim_zero_cat(self.vectors).cpu().numpy(), dim_zero_cat(self.identities).cpu().numpy()


class Accuracy(Vectors):
    """The share of pairs of held-out images, drawn alike in each epoch, that is told right."""

    def compute(self) -> Tensor:
        vectors, who = self.seen()
        pairs, same, fold = drawn_pairs(who)
        if not len(pairs):
            return torch.tensor(0.0, device=self.device)
        cosines = (vectors[pairs[:, 0]] * vectors[pairs[:, 1]]).sum(1).astype("float64")
        return torch.tensor(verify(cosines, same, fold).accuracy / 100, device=self.device)


class Alike(Vectors):
    """The mean cosine of held-out images that show different things; a line sounds the alarm where all are the same.

    Random weights see little difference too: it is from the third look on.
    """

    looks = 0

    def compute(self) -> Tensor:
        alike = mean_cosine(*self.seen())
        self.looks += 1
        if alike > COLLAPSED and self.looks == ALARM:
            console.note(collapse(alike))
        return torch.tensor(alike, device=self.device)


def scores() -> nn.ModuleDict:
    """Shares of 1."""
    return nn.ModuleDict({"val_accuracy": Accuracy(), "val_alike": Alike()})
