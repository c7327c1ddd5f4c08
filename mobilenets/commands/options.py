"""Options of the command line that several verbs share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mobilenets.errors import UserError

if TYPE_CHECKING:
    from mobilenets.model.bundle import Bundle

NumClasses = Annotated[int, Parameter(name="--classes")]


def commas(kind: type) -> Any:
    """A converter of "1,.5" to a tuple of `kind`, which is int, float or str."""

    def convert(_type: Any, tokens: Sequence[Any]) -> tuple[Any, ...]:
        words = [word for t in tokens for word in t.value.split(",")]
        try:
            return tuple(kind(word) for word in words)
        except ValueError as e:
            name = {int: "whole numbers", float: "numbers"}[kind]
            raise UserError(f"{tokens[0].keyword} takes {name} with commas between, not {','.join(words)!r}") from e

    return Parameter(converter=convert)


if TYPE_CHECKING:
    Words = str | Sequence[str]
    Ints = int | Sequence[int]
    Floats = float | Sequence[float]
else:  # on the command line, with commas between
    Words = Annotated[tuple[str, ...], commas(str)]
    Ints = Annotated[tuple[int, ...], commas(int)]
    Floats = Annotated[tuple[float, ...], commas(float)]


def as_task(source: Bundle, task: str, tap: str = "") -> Bundle:
    """The bundle, or the features of it where the command line asks for them. Raises `UserError`."""
    from mobilenets.tasks import features, find  # with NumPy and Pillow: what only counts needs neither

    if task:
        find(task)  # says what there is
    if tap and task not in ("", features.TASK.name):
        raise UserError(f"--tap is for features, not for {task}")
    if not (task or tap) or (task == source.card.task and not tap):
        return source
    if task and task != features.TASK.name:
        raise UserError(f"a network for {source.card.task} gives no answers for {task}; it can give its features")
    return features.of_bundle(source, tap)
