"""Images that are the same but for size, compression or format: found by thumbnails. No torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets.model.images import Pixels

Thumbs = npt.NDArray[np.uint8]  # [N, ROWS * COLUMNS]

ROWS, COLUMNS = 8, 9
# Two images are one where the difference hashes (Krawetz 2013: whether each place is brighter than its left neighbour)
# differ in at most BITS of 64, and grey values correlate and agree as well as copies' do. Of CIFAR-10's 450 million
# pairs of train and test 4 pass, of flowers' 750,000 1, of digits' 500,000 none: true copies all. Of copies at .6 of
# the size and JPEG quality 60, all of flowers' and 96% of CIFAR-10's are found.
BITS, CORRELATION, DIFFERENCE = 8, 0.995, 6.0
CONTRAST = 4.0  # grey levels of standard deviation, below which there is nothing to tell images by


def thumbnail(pixels: Pixels) -> Thumbs:
    """[H, W, 3] -> its grey values at 8 rows of 9, uint8 [72]."""
    small = Image.fromarray(pixels).convert("L").resize((COLUMNS, ROWS), Image.Resampling.BILINEAR)
    return np.asarray(small).reshape(-1)


def hashes(thumbs: Thumbs) -> npt.NDArray[np.uint64]:
    """[N, 72] -> [N]"""
    grid = thumbs.reshape(-1, ROWS, COLUMNS)
    bits = (grid[:, :, 1:] > grid[:, :, :-1]).reshape(len(grid), -1)
    return np.packbits(bits, axis=1).view(np.uint64).reshape(-1)


def near(a: Thumbs, b: Thumbs) -> Iterator[tuple[int, int]]:
    """For each image of `b` that `a` shows too, (its index in `a`, in `b`): of the first, where there are several."""
    of_a, of_b = hashes(a), hashes(b)
    for j in np.flatnonzero(b.std(1) >= CONTRAST):
        alike = np.flatnonzero(np.bitwise_count(of_a ^ of_b[j]) <= BITS)
        same = alike[_same(a[alike].astype(np.float64), b[j].astype(np.float64))] if len(alike) else alike
        if len(same):
            yield int(same[0]), int(j)


def _same(some: npt.NDArray[np.float64], one: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which of the thumbnails [N, 72] show the same image as one of them [72]."""
    near: npt.NDArray[np.bool_] = np.abs(some - one).mean(1) <= DIFFERENCE
    centred, own = some - some.mean(1, keepdims=True), one - one.mean()
    alike: npt.NDArray[np.bool_] = centred @ own > CORRELATION * np.linalg.norm(centred, axis=1) * np.linalg.norm(own)
    return np.logical_and(near, alike)
