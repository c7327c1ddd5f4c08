"""Who or what images show, for embeddings: numbers, since what a network has learned tells others apart. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets.data.labelling import Classes, Encode, in_order_of
from mobilenets.data.source import Source
from mobilenets.data.table import Table
from mobilenets.errors import UserError


class Identities(Classes):
    """One identity for each image, a folder or a table's label: int64 [N]. No card has their names."""

    noun, least = "identity", 0

    def too_few(self, labels: tuple[str, ...]) -> str:  # noqa: ARG002
        return "no identities"

    def check(self, asked: Source) -> None:
        if asked.reading.label_delimiter is not None:
            raise UserError(f"{asked.path}: --label-delimiter is for tags, and an image shows one identity")

    def targets(self, source: str, said: set[Any], tables: Sequence[Table] = ()) -> tuple[tuple[str, ...], Encode]:  # noqa: ARG002
        """By name, from 0 on."""
        if len(said) < 2:
            raise UserError(f"{source}: one identity alone; vectors are learned from at least two, a folder for each")
        number = {who: i for i, who in enumerate(in_order_of(source, said, ()))}
        return (), lambda rows: np.array([number[who] for who in rows], np.int64)

    def strata(self, targets: Any) -> npt.NDArray[np.int64]:
        """All alike: whole identities are held out, by their groups."""
        return np.zeros(len(targets), np.int64)


IDENTITIES = Identities()
