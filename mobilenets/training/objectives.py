"""What training minimises: the labels' cross-entropy, or what a teacher says of each image.

An objective turns a batch into targets, which mixup can mix, and compares the network's answers with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilenets.tasks import classify
from mobilenets.training.recipes import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from mobilenets.training.recipes import Distillation


Batch = Sequence[Tensor]  # uint8 images [N, 3, R, R], classes [N], and perhaps what the teacher says of them [N, K]


def class_weights(counts: Sequence[int]) -> Tensor:
    """Weights [C] that make every class count the same, their mean over the images 1; 0 for a class without images."""
    n = torch.tensor(counts, dtype=torch.float32)
    return torch.where(n > 0, n.sum() / ((n > 0).sum() * n.clamp(min=1)), 0.0)


class Labels(nn.Module):
    """Cross-entropy with the true classes, smoothed and weighted as the recipe says."""

    def __init__(self, recipe: Recipe, classes: int, weights: Tensor | None = None) -> None:
        super().__init__()
        self.smoothing = recipe.label_smoothing
        self.classes: int | None = classes  # for targets that are class numbers; None where they are rows
        self.register_buffer("weights", weights, persistent=False)

    weights: Tensor | None

    def targets(self, batch: Batch) -> Tensor:
        """Classes [N]."""
        return batch[1]

    def forward(self, logits: Tensor, _embedding: Tensor, targets: Tensor) -> Tensor:
        """Logits [N, C] and classes [N] or, mixed, [N, C] -> nats."""
        return classify.loss(logits, targets, self.smoothing, self.weights)


class Distilled(nn.Module):
    """A teacher's softened probabilities, its embedding, the true classes: each with its share of the loss.

    Softened probabilities (Hinton, Vinyals, Dean 2015): T^2 x the Kullback-Leibler divergence from the teacher's at
    temperature T. Embedding: the squared difference between the teacher's and a linear map of the student's, as a share
    of the teacher's own square.

    `ask` gives a live teacher's answers, logits then embedding, [N, K], for uint8 images; without it, batches bring
    them. `teacher_classes` and `teacher_width` are their widths, 0 for what isn't compared.
    """

    def __init__(
        self,
        labels: Labels,
        how: Distillation,
        width: int,
        teacher_classes: int,
        teacher_width: int,
        ask: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        assert labels.classes is not None
        self.labels, self.how, self.ask = labels, how, ask
        self.sizes = [labels.classes, teacher_classes, teacher_width]
        self.classes = None
        self.to_teacher = nn.Linear(width, teacher_width) if teacher_width else None

    def targets(self, batch: Batch) -> Tensor:
        """[N, C + teacher's classes + teacher's width]: the class, the teacher's softened probabilities, embedding."""
        said = (self.ask(batch[0]) if self.ask else batch[2]).float()
        logits, embedding = said[:, : self.sizes[1]], said[:, self.sizes[1] :]
        return torch.cat(
            [F.one_hot(batch[1], self.sizes[0]), (logits / self.how.temperature).softmax(1), embedding], dim=1
        )

    def forward(self, logits: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
        """Logits [N, C], the student's embedding [N, width], `targets` of these images, mixed or not."""
        true, soft, wanted = torch.split(targets, self.sizes, dim=1)
        how, loss = self.how, logits.new_zeros((), dtype=torch.float32)
        if how.labels:
            loss = loss + how.labels * self.labels(logits, embedding, true)
        if self.sizes[1] and how.labels < 1:
            log_p = F.log_softmax(logits.float() / how.temperature, dim=1)
            divergence = F.kl_div(log_p, soft, reduction="batchmean")
            loss = loss + (1 - how.labels) * how.temperature**2 * divergence
        if self.to_teacher is not None:
            off = self.to_teacher(embedding).float() - wanted
            loss = loss + how.embedding * off.square().sum() / wanted.square().sum().clamp(min=1e-12)
        return loss


Objective = Labels | Distilled
