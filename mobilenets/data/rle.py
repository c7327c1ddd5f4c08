"""Masks as COCO stores them: run lengths down the columns, and polygons. No torch.

The formats are those of COCO's annotations (Lin et al. 2014; cocodataset.org, "Data format"): counts of pixels outside
and inside the object by turns, down each column from the left one on, as a list or as text. Polygons become the pixels
that COCO's own tools take, so that areas and scores are theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
Polygon = npt.NDArray[np.float64]

FINE = 5  # COCO's tools draw a polygon's outline on a grid so many times as fine as the pixels'
MOST_PIXELS = 100_000_000  # of a mask: as of an image
MOST_OUTLINE = 50_000_000  # points of the fine grid on a polygon's outline


class Rle(TypedDict):
    """A mask: `size` [height, width], `counts` as text."""

    size: list[int]
    counts: str


def encode(mask: npt.NDArray[Any]) -> Rle:
    """A mask, bool [H, W] -> its run lengths as text."""
    height, width = mask.shape
    line = np.asarray(mask, bool).T.ravel()
    ends = np.flatnonzero(line[1:] != line[:-1]) + 1
    counts = np.diff(np.concatenate([[0], ends, [line.size]]))
    if line.size and line[0]:  # the first count is of pixels outside
        counts = np.concatenate([[0], counts])
    return {"size": [int(height), int(width)], "counts": to_text(counts)}


def decode(rle: Rle) -> Mask:
    """Run lengths -> bool [H, W]. Raises ValueError for counts that don't fill the mask."""
    height, width = rle["size"]
    counts = from_text(rle["counts"])
    check(counts, height, width)
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def area(rle: Rle) -> int:
    """Pixels inside."""
    return int(from_text(rle["counts"])[1::2].sum())


def bounds(rle: Rle) -> tuple[float, float, float, float]:
    """The box around the pixels inside, x1, y1, x2, y2; four zeros where there are none."""
    mask = decode(rle)
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(columns):
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def check(counts: Counts, height: int, width: int) -> None:
    """Raises ValueError for counts that aren't of a mask of that size."""
    if height < 0 or width < 0 or height * width > MOST_PIXELS:
        raise ValueError(f"a mask of {width}x{height} pixels")
    if len(counts) > 2 * height * width + 2 or (len(counts) and (counts.min() < 0 or counts.max() > height * width)):
        raise ValueError("run lengths that can't be")
    if counts.sum() != height * width:
        raise ValueError(f"run lengths of {int(counts.sum()):,} pixels in a mask of {height * width:,}")


def to_text(counts: npt.NDArray[Any]) -> str:
    """Counts as COCO's text: from the fourth on what they are more than the last but one, in digits of 5 bits."""
    values = np.asarray(counts, np.int64).copy()
    values[3:] -= np.asarray(counts, np.int64)[1:-2]
    letters = []
    for value in values.tolist():
        more = True
        while more:
            digit, value = value & 31, value >> 5
            more = value != (-1 if digit & 16 else 0)  # the last digit's highest bit is the sign
            letters.append(48 + digit + 32 * more)
    return bytes(letters).decode("ascii")


def from_text(text: str) -> Counts:
    """The inverse of `to_text`. Raises ValueError for what is no such text."""
    letters = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    if not len(letters):
        return np.empty(0, np.int64)
    if letters.min() < 0 or letters.max() > 63 or letters[-1] & 32:
        raise ValueError("no run lengths of COCO's")
    last = np.flatnonzero(~(letters & 32).astype(bool))
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(letters)) - np.repeat(first, last - first + 1)
    if place.max() > 7:  # 40 bits hold the counts of any image
        raise ValueError("run lengths that can't be")
    values = np.add.reduceat((letters & 31) << (5 * place), first)
    negative = (letters[last] & 16).astype(bool)
    values -= np.where(negative, 1 << (5 * (last - first + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def of_counts(counts: Sequence[Any], height: int, width: int) -> Rle:
    """A list of counts, as crowds have it, as text. Raises ValueError for counts that don't fill the mask."""
    if len(counts) > 2 * height * width + 2 or not all(type(c) is int and 0 <= c <= MOST_PIXELS for c in counts):
        raise ValueError("run lengths that can't be")
    found = np.array(counts, np.int64)
    check(found, height, width)
    return {"size": [height, width], "counts": to_text(found)}


def polygon_area(polygons: Sequence[Polygon]) -> float:
    """What polygons [K, 2] enclose, in pixels; the sum of several, as parts of one object."""
    total = 0.0
    for p in polygons:
        x, y = p[:, 0], p[:, 1]
        total += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return total


def of_polygons(polygons: Sequence[Polygon], height: int, width: int) -> Rle:
    """The pixels in any of the polygons, [K, 2] as x and y in pixels.

    Raises ValueError for an outline far outside of the image.
    """
    whole = height * width
    runs = [_runs(p, height, width) for p in polygons]
    starts = np.concatenate([np.empty(0, np.int64), *(r[::2] for r in runs)])
    ends = np.concatenate([np.empty(0, np.int64), *(r[1::2] for r in runs)])
    at = np.concatenate([starts, ends])
    order = np.argsort(at, kind="stable")
    depth = np.cumsum(np.where(order < len(starts), 1, -1))  # how many of the polygons a pixel is in
    at = at[order]
    last = np.append(at[1:] != at[:-1], True)[: len(at)]
    at, inside = at[last], depth[last] > 0
    at = at[inside != np.concatenate([[False], inside])[:-1]]
    return {"size": [height, width], "counts": to_text(_between(at, whole))}


def _between(at: Counts, whole: int) -> Counts:
    """Where a line of pixels changes sides, from outside on -> its run lengths."""
    counts = np.diff(np.concatenate([[0], at, [whole]]))
    return counts[:-1] if len(counts) > 1 and not counts[-1] else counts


def _runs(polygon: Polygon, height: int, width: int) -> Counts:
    """Where one polygon's pixels begin and end by turns, down the columns, as COCO's tools take them.

    The outline is drawn on the fine grid; where it goes from one column of it to the next in the middle of a pixel's,
    what lies below changes sides.
    """
    fine = np.trunc(FINE * polygon + 0.5)
    steps = np.abs(np.diff(fine, axis=0, append=fine[:1])).max(1)
    if not np.isfinite(steps).all() or steps.sum() + len(steps) > MOST_OUTLINE:
        raise ValueError("a polygon far outside of its image")
    x, y = _outline(fine.astype(np.int64))
    turn = np.flatnonzero(x[1:] != x[:-1]) + 1
    column = np.minimum(x[turn], x[turn - 1]) - FINE // 2
    row = (np.minimum(y[turn], y[turn - 1]) + 0.5) / FINE - 0.5
    here = (column % FINE == 0) & (column >= 0) & (column <= FINE * (width - 1))
    row = np.ceil(np.clip(row[here], 0, height)).astype(np.int64)
    at, times = np.unique(column[here] // FINE * height + row, return_counts=True)
    at = at[times % 2 == 1]
    return np.append(at, height * width) if len(at) % 2 else at


def _outline(corners: npt.NDArray[np.int64]) -> tuple[Counts, Counts]:
    """Points of the fine grid along a closed polygon: on each edge both ends, and one for each step of its long side.

    Edges that go back are walked from their other end, so that an edge that two polygons share is the same for both.
    """
    start, end = corners, np.roll(corners, -1, axis=0)
    wide = np.abs(end - start)
    flat = wide[:, 0] >= wide[:, 1]  # steps along x, else along y
    along = np.where(flat, 0, 1)[:, None]
    back = (np.take_along_axis(start, along, 1) > np.take_along_axis(end, along, 1))[:, 0]
    low = np.where(back[:, None], end, start)
    high = np.where(back[:, None], start, end)
    steps = np.where(flat, wide[:, 0], wide[:, 1])
    rise = np.where(flat, (high - low)[:, 1], (high - low)[:, 0]) / np.maximum(steps, 1)
    edge = np.repeat(np.arange(len(steps)), steps + 1)
    first = np.cumsum(steps + 1) - steps - 1
    t = np.arange(len(edge)) - first[edge]
    t = np.where(back[edge], steps[edge] - t, t)
    long = np.where(flat, low[:, 0], low[:, 1])[edge] + t
    short = np.trunc(np.where(flat, low[:, 1], low[:, 0])[edge] + rise[edge] * t + 0.5).astype(np.int64)
    return np.where(flat[edge], long, short), np.where(flat[edge], short, long)
