"""What a task says of learning from another network, where answers are no probabilities of an image's labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mobilenets.tasks.task import Objective

if TYPE_CHECKING:
    from torch import Tensor


class Learning(Protocol):
    """How a student learns (see `training.recipes.Distillation`): `share` of the loss is of what is true."""

    @property
    def share(self) -> float: ...

    @property
    def temperature(self) -> float: ...


class Lesson(Protocol):
    """What a student learns of a teacher: `width` numbers of each image, and how it is off from them.

    `learns`: what those numbers depend on beside teacher and image.
    """

    @property
    def width(self) -> int: ...

    @property
    def learns(self) -> str: ...

    def read(self, said: Mapping[str, Tensor]) -> Tensor:
        """[N, width] of a teacher's outputs by name, of N images."""

    def objective(self, labels: Objective, how: Learning, ask: Callable[[Tensor], Tensor] | None) -> Objective:
        """The loss of a student, `labels` that of what is true; `ask` gives what is read of images, uint8 [N, 3, H, W].

        Without `ask` a batch brings that as its third part.
        """


@runtime_checkable
class Instructed(Protocol):
    """A task whose networks learn of others by answers that are no probabilities of an image's labels, as boxes."""

    def lesson(
        self, labels: Sequence[str], config: Mapping[str, Any], student: Mapping[str, Any], taps: bool
    ) -> Lesson:
        """What a network with the config `student` learns of a teacher with these labels and config.

        `taps`: whether the teacher says what its task's taps are, or its answers alone. Raises `UserError` where it is
        nothing.
        """
