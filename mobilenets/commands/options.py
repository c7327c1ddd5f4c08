"""Options of the command line that several verbs share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cyclopts import Parameter

from mobilenets.errors import UserError


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
