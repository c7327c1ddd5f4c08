"""The sizes of images, and how their cameras turn them, from the first bytes of their files. No torch."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from mobilenets import console, processor
from mobilenets.data.listing import Listing
from mobilenets.model.images import FORMATS

TRANSPOSED = (5, 6, 7, 8)  # values of EXIF's Orientation for which width and height change places
METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Measure:
    """An image's (width, height) as it lies in its file, and EXIF's Orientation: 1 where nothing turns it."""

    size: tuple[int, int]
    orientation: int = 1

    @property
    def upright(self) -> tuple[int, int]:
        return self.size[::-1] if self.orientation in TRANSPOSED else self.size

    def turn(self, points: npt.NDArray[np.float64], size: tuple[int, int]) -> npt.NDArray[np.float64]:
        """Points [..., 2] of the picture as it lies in the file, drawn at `size`, as points of the upright one."""
        (w, h), x, y = size, points[..., 0], points[..., 1]
        to = {
            2: (w - x, y), 3: (w - x, h - y), 4: (x, h - y), 5: (y, x), 6: (h - y, x), 7: (h - y, w - x), 8: (y, w - x),
        }  # fmt: skip
        return np.stack(to[self.orientation], -1) if self.orientation in to else points


def each(listing: Listing, names: Sequence[str]) -> Iterator[Measure | None]:
    """Of each image; None of one that can't be read."""
    with ThreadPoolExecutor(min(8, processor.cores() + 2)) as pool, console.progress() as bar:
        task = bar.add_task("measuring", total=len(names), status="")
        for found in pool.map(lambda name: _of(listing, name), names):
            bar.advance(task)
            yield found


def _of(listing: Listing, name: str) -> Measure | None:
    for read in (listing.head, listing.read):  # the first bytes say it, but of a few kinds
        try:
            source = read(name)
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS) as image:
                turn = image.getexif().get(ExifTags.Base.Orientation, 1)
                size = image.size
        except (Exception, RecursionError):  # Pillow raises nearly anything on hostile bytes
            continue
        return Measure(size, turn if turn in METHODS else 1) if min(size) > 0 else None
    return None
