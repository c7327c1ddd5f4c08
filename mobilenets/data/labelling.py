"""What labels are read from tables and folders, and what targets they become: here, one class for each image. No torch.

Tags, of which an image may have any number, are in `data.tags`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mobilenets.arch.fields import is_text
from mobilenets.data.listing import Listing
from mobilenets.data.source import Reading, Source
from mobilenets.data.table import Table, called
from mobilenets.errors import UserError

SEPARATOR = "/"  # between the levels of a class's name, as dog/beagle
Encode = Callable[[Sequence[Any]], npt.NDArray[Any]]  # what is said of images -> their targets


class Labelling(Protocol):
    """How labels are read. What is said of an image is any value that can be compared; None where nothing is.

    `noun`: what an image without any lacks. `least`: how many labels there have to be. `loose`: an image needs no
    folder that names its label.
    """

    noun: str
    least: int
    loose: bool

    def check(self, asked: Source) -> None:
        """Raises `UserError` for a way of reading that has no meaning here."""

    def too_few(self, labels: tuple[str, ...]) -> str:
        """What to say where there are fewer than `least`."""

    def check_numbered(self, asked: Source) -> None:
        """Raises `UserError` where classes that are known by their numbers, as in shards, will not do."""

    def kinds(self, reading: Reading) -> tuple[str, ...]:
        """The kinds of columns, among those that are found by name, that labels are in."""

    def among(self, listing: Listing, reading: Reading) -> Sequence[str]:
        """Tables among images that may say what they are, where none is called metadata."""

    def is_meant(self, table: Table, reading: Reading) -> bool:
        """Whether a table that lies among images says what they are."""

    def said(self, table: Table, columns: Mapping[str, str], reading: Reading, count: int) -> Sequence[Any]:
        """By row of a table of `count`, of which `columns` are known by kind. Raises `UserError`."""

    def in_folders(self, source: str, listing: Listing, rows: Sequence[tuple[str, str]]) -> list[tuple[str, Any]]:
        """Files, each with the folder that names its label -> images, each with what is said of it."""

    def targets(self, source: str, said: set[Any], tables: Sequence[Table] = ()) -> tuple[tuple[str, ...], Encode]:
        """All labels, in order, and how what is said becomes targets. Raises `UserError`."""

    def strata(self, targets: Any) -> npt.NDArray[Any] | None:
        """Classes [N] of which a like share is held out, where the targets aren't such themselves."""


class Classes:
    """One class for each image: targets are int64 [N]."""

    noun, least, loose = "class", 2, False

    def check(self, asked: Source) -> None:
        if asked.reading.label_delimiter is not None:
            raise UserError(f"{asked.path}: --label-delimiter is for tags, any number for an image: --task attributes")

    def too_few(self, labels: tuple[str, ...]) -> str:
        have = f"only one class, {labels[0]!r}" if labels else "no class folders with images"
        return f"{have}; classification needs at least two classes, a folder of images for each, or in a table"

    def check_numbered(self, asked: Source) -> None:
        """They will do."""

    def kinds(self, reading: Reading) -> tuple[str, ...]:  # noqa: ARG002
        return ("label",)

    def among(self, listing: Listing, reading: Reading) -> Sequence[str]:
        return listing.tables if reading.columns else ()

    def is_meant(self, table: Table, reading: Reading) -> bool:
        return bool(reading.columns) or any(called(c, "label") for c in table.columns)

    def said(self, table: Table, columns: Mapping[str, str], reading: Reading, count: int) -> Sequence[Any]:  # noqa: ARG002
        return table.values(columns["label"])

    def in_folders(self, source: str, listing: Listing, rows: Sequence[tuple[str, str]]) -> list[tuple[str, Any]]:  # noqa: ARG002
        return [*rows]

    def targets(self, source: str, said: set[Any], tables: Sequence[Table] = ()) -> tuple[tuple[str, ...], Encode]:
        """The classes that there are: in the order that the tables give them, or by number, or by name."""
        labels = _ordered(source, said, [t.order[c] for t in tables for c in t.order])
        known = {c: i for i, c in enumerate(labels)}
        return labels, lambda rows: np.array([known[c] for c in rows], np.int64)

    def strata(self, targets: Any) -> npt.NDArray[Any] | None:  # noqa: ARG002
        return None


class Nothing(Classes):
    """No labels: every image is of one class, "images"."""

    least = 1

    def kinds(self, reading: Reading) -> tuple[str, ...]:  # noqa: ARG002
        return ()

    def said(self, table: Table, columns: Mapping[str, str], reading: Reading, count: int) -> Sequence[Any]:  # noqa: ARG002
        return ["images"] * count


CLASSES: Labelling = Classes()
NOTHING: Labelling = Nothing()


def _ordered(source: str, found: set[str], orders: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    check_names(source, found)
    for order in orders:
        if found <= {*order}:
            return tuple(c for c in order if c in found)
    numbers = all(re.fullmatch(r"-?\d{1,9}", c) for c in found)
    return tuple(sorted(found, key=lambda c: (int(c), c) if numbers else (0, c)))


def check_names(source: str, found: set[str]) -> None:
    """Raises `UserError` for a label that can't be shown."""
    for c in found:
        if not is_text(c):
            raise UserError(f"{source}: the class {c!a} isn't UTF-8 text, or has control characters")
