"""What a file of annotations says, before the images are looked at. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets import files
from mobilenets.arch.fields import is_text
from mobilenets.data.folder import split_of
from mobilenets.data.listing import Listing
from mobilenets.data.rle import Polygon, Rle
from mobilenets.errors import UserError
from mobilenets.model.images import BadImage

NAMED = 5  # things named in a line
MOST_TEXT = 2 << 30  # bytes of a file of annotations: LVIS's, the largest in use, is 1.1 GB
MOST_CLASSES = 100_000
LARGEST = 1e9  # of a coordinate, in pixels
Key = str | int  # what a class is called in a file, or its number there
Shape = Rle | Sequence[Polygon] | None


@dataclass(frozen=True)
class Thing:
    """One object. `corners`: x1, y1, x2, y2 in the unit of the whole; `shape`: its mask, polygons in the same unit."""

    key: Key
    corners: tuple[float, float, float, float]
    shape: Shape = None
    crowd: bool = False
    area: float | None = None
    id: int | None = None


@dataclass
class Picture:
    """What is said of one image. `name`: its path, as the file has it; `size`: (width, height) of what was annotated.

    `near`: the folder of the file that says it; `upright`: whether the boxes are known to be of the upright picture.
    """

    name: str
    things: list[Thing] = field(default_factory=list)
    size: tuple[int, int] | None = None
    split: str | None = None
    group: str | None = None
    near: str = ""
    upright: bool = False


@dataclass
class Annotations:
    """All that is said. `keys`: of every class, in the labels' order; `labels`: what they are called.

    `relative`: whether coordinates are shares of the image's width and height, as the format has it. `ids`: the
    classes' own numbers, by label. `notes`: lines on what was read and how. `faults`: what was left out, by kind.
    """

    kind: str
    pictures: list[Picture]
    keys: tuple[Key, ...]
    labels: tuple[str, ...]
    relative: bool = False
    ids: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)


def by_name(keys: Iterable[str]) -> tuple[str, ...]:
    """Classes that have no order of their own: by number where all are numbers, else by name."""
    found = {*keys}
    numbers = all(k.isdecimal() and len(k) < 10 for k in found)
    return tuple(sorted(found, key=lambda k: (int(k), k) if numbers else (0, k)))


def check_labels(where: str, labels: Sequence[Any]) -> tuple[str, ...]:
    """Raises `UserError` for names that can't be shown, or are given to two classes."""
    if len(labels) > MOST_CLASSES:
        raise UserError(f"{where}: {len(labels):,} classes, over the limit of {MOST_CLASSES:,}")
    for name in labels:
        if not isinstance(name, str) or not name.strip() or not is_text(name):
            raise UserError(f"{where}: the class {ascii(name)[:80]} has no name that can be shown")
    stripped = tuple(name.strip() for name in labels)
    if len({*stripped}) < len(stripped):
        twice = next(n for n in stripped if stripped.count(n) > 1)
        raise UserError(f"{where}: two classes are called {twice!r}: give each its own name")
    return stripped


def number(value: Any) -> float:
    """A number, as JSON has it or as text; NaN, which is no box's, of anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return found if abs(found) <= LARGEST else math.nan


def corners(values: Any) -> tuple[float, float, float, float]:
    """Four numbers; NaN where there is none."""
    if not isinstance(values, list | tuple) or len(values) != 4:
        return (math.nan,) * 4
    a, b, c, d = map(number, values)
    return a, b, c, d


def around(polygons: Sequence[Polygon]) -> tuple[float, float, float, float]:
    """The corners of the box around polygons."""
    every = np.concatenate(polygons)
    low, high = every.min(0), every.max(0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def turned_box(x: float, y: float, width: float, height: float, degrees: float, about: tuple[float, float]) -> Polygon:
    """The corners of a box that is turned clockwise about a point, [4, 2]."""
    points = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], np.float64)
    angle = math.radians(degrees) if math.isfinite(degrees) else 0.0
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return np.asarray((points - about) @ turn + about, np.float64)


def polygon(points: Any) -> Polygon | None:
    """x, y, x, y, ... as [K, 2]; None of fewer than three points, and of what has no numbers."""
    if not isinstance(points, list | tuple | np.ndarray) or len(points) < 6 or len(points) % 2:
        return None
    found: npt.NDArray[np.float64] = np.array([number(v) for v in points], np.float64).reshape(-1, 2)
    return found if np.isfinite(found).all() else None


def size_of(width: Any, height: Any) -> tuple[int, int] | None:
    """A size in pixels; None where it isn't said, or can't be."""
    w, h = number(width), number(height)
    return (round(w), round(h)) if w >= 1 and h >= 1 else None  # NaN is not


def content(listing: Listing, name: str, most: int = MOST_TEXT) -> bytes:
    """A file of annotations. Raises `UserError` where it can't be read, or is over `most` bytes."""
    try:
        if listing.size(name) > most:
            raise UserError(f"{name}: over {most >> 20:,} MB, the limit for a file of annotations of this kind")
        found = listing.read(name)
        return found.read_bytes() if isinstance(found, Path) else found
    except BadImage as e:  # of a zip's member
        raise UserError(str(e)) from e
    except OSError as e:
        raise UserError(f"{name}: can't be read ({e.strerror})") from e


def parsed(listing: Listing, name: str) -> Any:
    """A JSON file's value. Raises `UserError`."""
    try:
        return files.parse_json(content(listing, name))
    except ValueError as e:
        raise UserError(f"{name}: not readable as JSON: {str(e)[:200]}") from e
    except MemoryError as e:
        raise UserError(f"{name}: too large for this machine's memory") from e


def folder_of(name: str) -> str:
    found = PurePosixPath(name).parent.as_posix()
    return "" if found == "." else found


def split_in(name: str) -> str | None:
    """The split that a file's name speaks of, or else the nearest of its folders that speaks of one."""
    path = PurePosixPath(name)
    return next((s for part in (path.stem, *reversed(path.parent.parts)) if (s := split_of(part))), None)


def some(items: Iterable[Any]) -> str:
    found = list(items)
    more = f" and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
    return "; ".join(str(i) for i in found[:NAMED]) + more


def objects(value: Any, what: str) -> Iterator[dict[str, Any]]:
    """A JSON list of objects. Raises `UserError` for any other value."""
    if not isinstance(value, list):
        raise UserError(f"{what} isn't a list")
    for i, one in enumerate(value):
        if not isinstance(one, dict):
            raise UserError(f"{what}: the {i + 1:,}. entry is {ascii(one)[:60]}, not an object")
        yield one
