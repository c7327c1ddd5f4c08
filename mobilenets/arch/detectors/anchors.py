"""The shapes of anchors, by the conventions of those who published detectors. No torch, no numpy.

A shape is (width, height) in fractions of the input. At each position of a map stands one anchor of each of its
shapes, in their order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

from mobilenets.errors import unknown

Convention = Literal["tf", "torchvision", "tf-pyramid"]
CONVENTIONS: tuple[Convention, ...] = ("tf", "torchvision", "tf-pyramid")
Shapes = tuple[tuple[float, float], ...]  # (width, height) of each anchor at a position
Size = tuple[int, int]  # height, width

LEAST, MOST = 0.2, 0.95  # scales of the first map and of the last (SSD paper, arXiv 1512.02325, section 2.2)
OCTAVE = (1.0, 2**0.5)  # RetinaNet (arXiv 1708.02002) has three scales an octave, the API's configurations two


def anchor_shapes(convention: Convention, maps: Sequence[Size], size: Size) -> tuple[Shapes, ...]:
    """Of each map the shapes of its anchors, by a convention:

    "tf": the TensorFlow Object Detection API's `ssd_anchor_generator`: 3 at a position of the first map, 6 on others;
    scales of the input's shorter side. "torchvision": its `DefaultBoxGenerator` with ratios 2 and 3: 6 everywhere,
    scales of each side, none larger than the input. "tf-pyramid": the API's `multiscale_anchor_generator` as its
    FPNLite networks have it: 6 everywhere, from four times the map's stride on. `maps` and `size`, the input's, are
    (height, width). Raises `UserError`.
    """
    if convention not in CONVENTIONS:
        raise unknown("convention of anchors", str(convention), CONVENTIONS)
    if convention == "tf-pyramid":
        return tuple(_pyramid(stride, size) for stride in _strides(maps, size))
    scales = [*_scales(len(maps)), 1.0]
    each = itertools.pairwise(scales)
    if convention == "torchvision":
        return tuple(_torchvision(scale, after) for scale, after in each)
    return tuple(_tf(scale, after, size, first=i == 0) for i, (scale, after) in enumerate(each))


def grids(convention: Convention, maps: Sequence[Size], size: Size) -> list[list[float]] | None:
    """Of each map the first centre and the steps to the next, [x, y, dx, dy] in fractions of the input.

    None where centres are those of the map's cells, (x + 0.5) / width: everywhere but on "tf-pyramid"'s maps whose
    stride doesn't divide the input's side: the API puts their first anchor at 0.
    """
    if convention != "tf-pyramid":
        return None
    height, width = size
    strides = _strides(maps, size)
    if not any(side % stride for stride in strides for side in size):
        return None
    return [
        [(0.0 if width % s else s / 2) / width, (0.0 if height % s else s / 2) / height, s / width, s / height]
        for s in strides
    ]


def _scales(maps: int) -> list[float]:
    return [LEAST + (MOST - LEAST) * i / max(maps - 1, 1) for i in range(maps)]


def _strides(maps: Sequence[Size], size: Size) -> list[int]:
    """Pixels from one position of each map to the next: a power of two, doubled from map to map."""
    first = 2 ** round(math.log2(max(side / of for side, of in zip(size, maps[0], strict=True))))
    return [first * 2**i for i in range(len(maps))]


def _tf(scale: float, after: float, size: Size, first: bool) -> Shapes:
    height, width = (min(size) / side for side in size)
    if first:
        some = [(0.1, 1.0), (scale, 2.0), (scale, 0.5)]
    else:
        some = [(scale, r) for r in (1.0, 2.0, 0.5, 3.0, 0.3333)]  # as the configurations print it
        some.append((math.sqrt(scale * after), 1.0))
    return tuple((s * math.sqrt(r) * width, s / math.sqrt(r) * height) for s, r in some)


def _torchvision(scale: float, after: float) -> Shapes:
    between = math.sqrt(scale * after)
    shapes = [(scale, scale), (between, between)]
    for r in (2, 3):
        w, h = scale * math.sqrt(r), scale / math.sqrt(r)
        shapes += [(w, h), (h, w)]
    return tuple((min(w, 1.0), min(h, 1.0)) for w, h in shapes)


def _pyramid(stride: int, size: Size) -> Shapes:
    height, width = size
    return tuple(
        (4 * stride * s * math.sqrt(r) / width, 4 * stride * s / math.sqrt(r) / height)
        for r in (1.0, 2.0, 0.5)
        for s in OCTAVE
    )
