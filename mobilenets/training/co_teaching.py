"""Co-teaching: two networks learn from wrong labels, each what the other finds easy (Han and others 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilenets.arch.heads import LOGITS
from mobilenets.model.images import Preprocess
from mobilenets.model.module import Walker
from mobilenets.training.recipes import Recipe

RISE = 0.2  # of the epochs, over which the share that is left out grows: wrong labels are learned late


class CoTeaching(nn.Module):
    """The cross-entropy of each network for the images of the batch that cost its peer least.

    What costs much is wrong, mostly, as long as it isn't learned by heart; and what one network has learned by heart,
    the other, which began elsewhere, still doubts. `peer` is the second network, and goes with the objective: the
    first is what is kept. The recipe's `noise` is the share of images that are left out in the end. `epoch` says which
    it is; images aren't mixed.
    """

    def __init__(self, peer: Walker, preprocess: Preprocess, recipe: Recipe, weights: Tensor | None = None) -> None:
        super().__init__()
        self.peer = peer.to(memory_format=torch.channels_last)  # as the learner's
        self.recipe = recipe
        self.epoch: Callable[[], int] = lambda: 0
        self.register_buffer("weights", weights, persistent=False)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(preprocess, name)).view(1, 3, 1, 1), persistent=False)

    weights: Tensor | None
    mean: Tensor
    std: Tensor

    @property
    def kept(self) -> float:
        """The share of a batch that each network learns in this epoch."""
        grown = min(1.0, self.epoch() / math.ceil(RISE * self.recipe.epochs))
        return 1 - self.recipe.noise * grown

    def targets(self, batch: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Classes [N], and the images, uint8 [N, 3, H, W], which the peer looks at itself."""
        return batch[1], batch[0]

    def forward(self, outputs: Mapping[str, Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
        """Logits [N, C] and what `targets` gave -> nats, of both networks together."""
        classes, images = targets
        seen = ((images.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        theirs = self.peer.run({self.peer.graph.source: seen}, (LOGITS,))[LOGITS]
        ours, costs = (self._costs(logits, classes) for logits in (outputs[LOGITS], theirs))
        count = max(1, round(self.kept * len(classes)))
        easy = [each.detach().topk(count, largest=False).indices for each in (costs, ours)]
        return ours[easy[0]].mean() + costs[easy[1]].mean()

    def _costs(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Of each image [N], nats."""
        smoothing = self.recipe.label_smoothing
        return F.cross_entropy(logits.float(), classes, self.weights, label_smoothing=smoothing, reduction="none")

    def mixes(self) -> Sequence[nn.Module]:
        return ()
