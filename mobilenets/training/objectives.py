"""What a student minimises: its task's objective, and what a teacher says of each image.

An objective turns a batch into targets, which mixup can mix, and compares the network's answers with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mobilenets.arch.heads import LOGITS

if TYPE_CHECKING:
    from torchvision.transforms import v2

    from mobilenets.tasks.task import Objective
    from mobilenets.training.recipes import Distillation


@runtime_checkable
class Answering(Protocol):
    """An objective of answers that are probabilities of labels (see `tasks.losses.CrossEntropy`)."""

    num_classes: int

    def rows(self, targets: Tensor) -> Tensor: ...

    def soften(self, logits: Tensor, temperature: float) -> Tensor: ...

    def off(self, logits: Tensor, soft: Tensor, temperature: float) -> Tensor: ...

    def mixes(self, rows: bool = False) -> Sequence[v2.Transform]: ...


class Distilled(nn.Module):
    """A teacher's softened probabilities, its embedding, the true targets: each with its share of the loss.

    Softened probabilities (Hinton, Vinyals, Dean 2015): T^2 x the Kullback-Leibler divergence from the teacher's at
    temperature T. Embedding: the squared difference between the teacher's and a linear map of the student's, as a share
    of the teacher's own square. Only tasks of labels have the first, and targets that can be mixed; the second can be
    had for any task.

    `ask` gives a live teacher's answers, logits then embedding, [N, K], for uint8 images; without it, batches bring
    them. `teacher_classes` and `teacher_width` are their widths, 0 for what isn't compared. `embedding` names the value
    of `width` numbers in the student that is compared.
    """

    def __init__(
        self,
        objective: Objective,
        how: Distillation,
        width: int,
        teacher_classes: int,
        teacher_width: int,
        ask: Callable[[Tensor], Tensor] | None = None,
        embedding: str = "",
        matched: bool = False,
    ) -> None:
        """`matched`: what is compared is to become the teacher's embedding itself, without a linear map."""
        super().__init__()
        self.labels, self.how, self.ask, self.embedding = objective, how, ask, embedding
        self.answers = objective if isinstance(objective, Answering) else None
        self.widths = [teacher_classes, teacher_width]
        self.taps = (embedding,) if teacher_width else ()
        self.to_teacher: nn.Module | None = None
        if teacher_width:
            self.to_teacher = nn.Identity() if matched else nn.Linear(width, teacher_width)

    def targets(self, batch: Sequence[Any]) -> Any:
        """What is true, the teacher's softened probabilities, its embedding; of labels, as rows of one tensor."""
        said = (self.ask(batch[0]).to(batch[0].device) if self.ask else batch[2]).float()
        logits, embedding = torch.split(said, self.widths, dim=1)
        true = self.labels.targets(batch)
        if self.answers is None:
            return true, logits, embedding
        soft = self.answers.soften(logits, self.how.temperature)
        return torch.cat([self.answers.rows(true), soft, embedding], dim=1)

    def forward(self, outputs: Mapping[str, Tensor], targets: Any) -> Tensor:
        """The taps' values, and `targets` of these images, mixed or not -> the loss."""
        if self.answers is not None:
            targets = torch.split(targets, [self.answers.num_classes, *self.widths], dim=1)
        true, soft, wanted = targets
        how = self.how
        loss: Tensor = wanted.new_zeros(())
        if how.share:
            loss = loss + how.share * self.labels(outputs, true)
        if self.answers is not None and self.widths[0] and how.share < 1:
            loss = loss + (1 - how.share) * self.answers.off(outputs[LOGITS], soft, how.temperature)
        if self.to_teacher is not None:
            off = self.to_teacher(outputs[self.embedding].flatten(1)).float() - wanted
            loss = loss + how.embedding * off.square().sum() / wanted.square().sum().clamp(min=1e-12)
        return loss

    def mixes(self) -> Sequence[v2.Transform]:
        """The objective's own ways, of rows."""
        return self.answers.mixes(rows=True) if self.answers is not None else ()
