"""The loss of a student that learns of a teacher by a lesson (see `tasks.lesson`), in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from mobilenets.tasks.lesson import Learning
from mobilenets.tasks.task import Objective


class Off(Protocol):
    """The part of a lesson that is the loss."""

    def off(self, outputs: Mapping[str, Tensor], said: Tensor, labels: Any, temperature: float) -> Tensor:
        """How far a student's taps are from what a teacher `said`, [N, width]; `labels`: the loss of what is true."""


class Taught(nn.Module):
    """What is true and what a teacher says, each with its share of the loss."""

    def __init__(self, labels: Objective, lesson: Off, how: Learning, ask: Callable[[Tensor], Tensor] | None) -> None:
        """`ask` gives what a lesson reads of a live teacher, for uint8 images; without it, batches bring that."""
        super().__init__()
        self.labels, self.lesson, self.how, self.ask = labels, lesson, how, ask

    def targets(self, batch: Sequence[Any]) -> tuple[Any, Tensor]:
        """Of the images what is true, and what the teacher says, [N, width]."""
        said = self.ask(batch[0]).to(batch[0].device) if self.ask else batch[2]
        return self.labels.targets(batch), said.float()

    def forward(self, outputs: Mapping[str, Tensor], targets: tuple[Any, Tensor]) -> Tensor:
        true, said = targets
        loss, share = said.new_zeros(()), self.how.share
        if share:
            loss = loss + share * self.labels(outputs, true)
        if share < 1:
            loss = loss + (1 - share) * self.lesson.off(outputs, said, self.labels, self.how.temperature)
        return loss

    def mixes(self) -> tuple[()]:
        """None: of a mixed image the teacher has said nothing."""
        return ()
