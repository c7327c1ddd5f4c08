"""Boxes that were found in tiles of an image, as boxes of the image. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mobilenets.data import rle
from mobilenets.data.rle import Rle
from mobilenets.tasks.detect.anchors import Floats, overlaps
from mobilenets.tasks.detect.answers import Detection, Detections
from mobilenets.tasks.task import Tile

NEAR = 0.01  # of a tile's side: a box that ends so near to its edge may go on beyond it
PART = 0.5  # of a box, from which on it is a part of another


class Overlap(Protocol):
    """Which boxes push out others: by more than `iou`, of a class or of all `together`."""

    @property
    def iou(self) -> float: ...

    @property
    def together(self) -> bool: ...


def joined(answers: Sequence[Detections], tiles: Sequence[Tile], size: tuple[int, int], how: Overlap) -> Detections:
    """What is found in an image of `size` (width, height), of what was found in each of its tiles.

    Of boxes that overlap by more than `how` allows, the surest stays, as within a tile. A box that a tile's edge
    cuts counts after all others, and goes where a better one covers half of it: the object is whole in another tile, or
    in all of the image.
    """
    every = [
        (dataclasses.replace(d, box=_moved(d.box, tile)), tile, _is_cut(d.box, tile, size))
        for said, tile in zip(answers, tiles, strict=True)
        for d in said.every
    ]
    classes = np.array([d.index for d, *_ in every], np.int64)
    boxes = np.array([d.box for d, *_ in every], np.float32).reshape(-1, 4)
    scores = np.array([d.score for d, *_ in every], np.float32)
    cut = np.array([c for *_, c in every], bool)
    kept: list[int] = []
    groups = np.zeros_like(classes) if how.together else classes
    for group in np.unique(groups):
        of = np.flatnonzero(groups == group)
        kept += of[_kept(boxes[of], scores[of], cut[of], how.iou)].tolist()
    kept.sort(key=lambda i: -scores[i])
    return Detections(tuple(_with_mask(*every[i][:2], size) for i in kept), answers[0].least)


def _kept(boxes: Floats, scores: Floats, cut: npt.NDArray[np.bool_], iou: float) -> list[int]:
    """Places of those of the boxes [N, 4] that stay where each may push out any."""
    kept, alive = [], np.ones(len(boxes), bool)
    area = ((boxes[:, 2:] - boxes[:, :2]).prod(1)).clip(1e-9)
    for i in np.lexsort((-scores, cut)).tolist():
        if not alive[i]:
            continue
        kept.append(i)
        one = boxes[i]
        shared = (np.minimum(boxes[:, 2:], one[2:]) - np.maximum(boxes[:, :2], one[:2])).clip(0).prod(1)
        alive &= (overlaps(boxes, one[None])[:, 0] <= iou) & ~(cut & (shared > PART * area))
    return kept


def _moved(box: tuple[float, float, float, float], tile: Tile) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    left, top = tile[:2]
    return x1 + left, y1 + top, x2 + left, y2 + top


def _is_cut(box: tuple[float, float, float, float], tile: Tile, size: tuple[int, int]) -> bool:
    """Whether a box on a tile ends where the tile does and the image doesn't."""
    sides = (tile[2] - tile[0], tile[3] - tile[1])
    return any(
        (tile[axis] > 0 and box[axis] < NEAR * sides[axis])
        or (tile[axis + 2] < size[axis] and box[axis + 2] > (1 - NEAR) * sides[axis])
        for axis in (0, 1)
    )


def _with_mask(one: Detection, tile: Tile, size: tuple[int, int]) -> Detection:
    """The object, with its mask, if it has one of the tile, of the image."""
    if one.mask is None:
        return one
    whole = np.zeros(size[::-1], bool)
    whole[tile[1] : tile[3], tile[0] : tile[2]] = rle.decode(one.mask)
    mask: Rle = rle.encode(whole)
    return dataclasses.replace(one, mask=mask)
