"""An object's mask on its image: what a network says of its box, as COCO's run lengths. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets.data import rle
from mobilenets.data.rle import Rle

INSIDE = 0.5  # probability from which a pixel is the object's


def pasted(mask: npt.NDArray[np.float32], box: Sequence[float], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """A mask [M, M] of a box x1, y1, x2, y2 in pixels, on an image of `size` (width, height): bool [H, W].

    Between the mask's cells it is bilinear, around it there is nothing, as Mask R-CNN's are pasted (1703.06870).
    """
    width, height = size
    out = np.zeros((height, width), bool)
    side = len(mask)
    x1, y1, x2, y2 = box
    wide, high = (x2 - x1) / side, (y2 - y1) / side  # pixels of a cell
    if wide <= 0 or high <= 0:
        return out
    left, top = max(0, math.floor(x1)), max(0, math.floor(y1))
    right, bottom = min(width, math.ceil(x2)), min(height, math.ceil(y2))
    if right <= left or bottom <= top:
        return out
    around = Image.fromarray(np.pad(mask.astype(np.float32), 1 + side))  # wide enough for the whole pixels at the edge
    at = [(left - x1) / wide, (top - y1) / high, (right - x1) / wide, (bottom - y1) / high]
    inner = [min(max(v + 1 + side, 0.0), 3 * side + 2.0) for v in at]
    here = around.resize((right - left, bottom - top), Image.Resampling.BILINEAR, (*inner,))  # type: ignore[arg-type]
    out[top:bottom, left:right] = np.asarray(here) >= INSIDE
    return out


def run_lengths(masks: npt.NDArray[np.float32], boxes: npt.NDArray[np.float32], size: tuple[int, int]) -> list[Rle]:
    """Masks [K, M, M] of boxes [K, 4] in pixels, as COCO has them."""
    return [rle.encode(pasted(m, b.tolist(), size)) for m, b in zip(masks, boxes, strict=True)]
