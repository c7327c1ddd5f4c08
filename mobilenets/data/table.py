"""A table: columns by their names, and what they are called where nobody says. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

# What columns are called that are not named by the user, letters alone.
CALLED = {
    "images": ("image", "img", "path", "file", "filename", "filepath", "imagepath", "imagefile", "imagename"),
    "label": ("label", "labels", "class", "classname", "category", "target"),
    "split": ("split", "set", "subset", "partition"),
    "latitude": ("lat", "latitude", "gpslatitude", "latdeg", "decimallatitude"),
    "longitude": ("lon", "lng", "long", "longitude", "gpslongitude", "londeg", "decimallongitude"),
}
Cell = str | None


@dataclass(frozen=True)
class Cells:
    """A column that holds images: their names, sizes in bytes, and how image i is read; a text is a path."""

    names: Sequence[str]
    sizes: Sequence[int]
    read: Callable[[int], bytes | str]


@dataclass(frozen=True)
class Table:
    """Columns of one length. `order`: of a column whose values have one, all of them. `images`: columns of images.

    `folder`: what paths start from, below the place of all; `split`: of all rows, where the table's name says it.
    """

    name: str
    columns: tuple[str, ...]
    values: Callable[[str], Sequence[Cell]]
    images: Mapping[str, Callable[[], Cells]] = field(default_factory=dict)
    order: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folder: str = ""
    split: str | None = None


def called(column: str, kind: str) -> bool:
    return re.sub(r"[^a-z]", "", column.lower()) in CALLED[kind]
