"""Large images in overlapping tiles, so that what is small in them is not in the network's input. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mobilenets.errors import UserError
from mobilenets.model.images import BadImage, Pixels, Preprocess
from mobilenets.tasks.task import Tile

LEAST = 32  # pixels of a tile's side
OVERLAP = 0.2


@dataclass(frozen=True)
class Tiles:
    """Squares of `side` pixels that an image is cut into, each with at least a share of `overlap` in common with the
    next; beside them the whole image, in which what is larger than a tile is found.

    Sizes as SAHI has them (Akyon and others 2022).
    """

    side: int
    overlap: float = OVERLAP

    def __post_init__(self) -> None:
        if self.side < LEAST:
            raise UserError(f"tiles must be of {LEAST} pixels or more, not {self.side}")
        if not 0 <= self.overlap < 1:
            raise UserError(f"overlap must be from 0 to below 1, not {self.overlap:g}")

    @classmethod
    def asked(cls, side: int | None, overlap: float | None) -> Tiles | None:
        """What a verb's --tiles and --overlap say; None without tiles."""
        if side is None and overlap is not None:
            raise UserError("--overlap is of --tiles: give that too")
        return None if side is None else cls(side, OVERLAP if overlap is None else overlap)

    def of(self, size: tuple[int, int]) -> list[Tile]:
        """Where the tiles of an image of `size` (width, height) lie, all of it first: left, top, right, bottom."""
        width, height = size
        if width <= self.side and height <= self.side:
            return [(0, 0, width, height)]
        return [
            (0, 0, width, height),
            *(
                (x, y, min(x + self.side, width), min(y + self.side, height))
                for y in self._starts(height)
                for x in self._starts(width)
            ),
        ]

    def _starts(self, length: int) -> list[int]:
        """Where tiles begin on a side of so many pixels, evenly."""
        free = length - self.side
        if free <= 0:
            return [0]
        more = math.ceil(free / max(1, math.floor(self.side * (1 - self.overlap))))
        return [round(i * free / more) for i in range(more + 1)]


@dataclass(frozen=True)
class Piece:
    """A tile of the image of this `number`, decoded; or why that can't be read. `item`: what the image was given as."""

    number: int
    item: Any
    image: Image.Image | BadImage
    tile: Tile = (0, 0, 0, 0)

    def fitted(self, preprocess: Preprocess) -> Pixels:
        """The tile as a network takes it. Raises `BadImage`."""
        if isinstance(self.image, BadImage):
            raise self.image
        return preprocess.fit(self.image.crop(self.tile))


def cut(items: Iterable[Any], opened: Callable[[Any, int], Image.Image], tiles: Tiles) -> Iterator[Piece]:
    """The tiles of one image after another; `opened` decodes an item, of its number, while the one before is seen."""
    with ThreadPoolExecutor(1) as ahead:
        before: tuple[int, Any, Future[Image.Image]] | None = None
        for i, item in enumerate(items):
            coming = i, item, ahead.submit(opened, item, i)
            if before:
                yield from _pieces(*before, tiles)
            before = coming
        if before:
            yield from _pieces(*before, tiles)


def _pieces(number: int, item: Any, decoded: Future[Image.Image], tiles: Tiles) -> Iterator[Piece]:
    try:
        image = decoded.result()
    except BadImage as e:
        yield Piece(number, item, e.with_traceback(None))
    else:
        yield from (Piece(number, item, image, tile) for tile in tiles.of(image.size))
