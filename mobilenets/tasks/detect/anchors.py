"""A detector's anchors, as its config describes them, and how well they fit the boxes of some data. No torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mobilenets.tasks.detect.config import Anchors

Floats = npt.NDArray[np.float32]
ROUNDS = 100  # of k-means at most
LEAST = 0.7  # of a map's cell: a smaller anchor would miss what lies between two of its positions
WORTH = 8  # boxes for each shape that is fitted to them: of fewer it would be chance


@functools.lru_cache(8)
def centres_and_sizes(of: Anchors) -> Floats:
    """All anchors, float32 [A, 4]: centre x, y, width, height, as fractions of the input.

    One map after another; in each row by row, at each position its shapes in order.
    """
    parts = []
    grids = of.grids or [(of.offset / w, of.offset / h, 1 / w, 1 / h) for h, w in of.maps]
    for (rows, columns), shapes, (left, top, dx, dy) in zip(of.maps, of.boxes, grids, strict=True):
        y, x = np.meshgrid(top + dy * np.arange(rows), left + dx * np.arange(columns), indexing="ij")
        centres = np.stack([x, y], -1)[:, :, None].repeat(len(shapes), 2)  # [H, W, K, 2]
        sizes = np.broadcast_to(np.array(shapes).reshape(-1, 2), centres.shape)
        parts.append(np.concatenate([centres, sizes], -1).reshape(-1, 4))
    made = np.concatenate(parts)
    if of.clip:
        low = (made[:, :2] - made[:, 2:] / 2).clip(0, 1)
        high = (made[:, :2] + made[:, 2:] / 2).clip(0, 1)
        made = np.concatenate([(low + high) / 2, high - low], 1)
    out = made.astype(np.float32)
    out.flags.writeable = False  # it is kept
    return out


def corners(boxes: Floats) -> Floats:
    """Centre x, y, width, height [..., 4] -> x1, y1, x2, y2."""
    half = boxes[..., 2:] / 2
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], -1)


def overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection over union of corner boxes [..., M, 4] with [..., N, 4]: [..., M, N]; 0 of empty ones."""
    left, top, right, bottom = (a[..., i][..., :, None] for i in range(4))
    wide = np.minimum(right, b[..., None, :, 2]) - np.maximum(left, b[..., None, :, 0])
    high = np.minimum(bottom, b[..., None, :, 3]) - np.maximum(top, b[..., None, :, 1])
    common = np.maximum(wide, 0) * np.maximum(high, 0)
    areas = [(x[..., 2:] - x[..., :2]).clip(0).prod(-1) for x in (a, b)]
    union = areas[0][..., :, None] + areas[1][..., None, :] - common
    return np.asarray(common / np.maximum(union, 1e-12), np.float32)


def best_overlaps(of: Anchors, boxes: Floats) -> Floats:
    """The overlap [M] of each box [M, 4] (x1 y1 x2 y2, fractions) with the anchor that fits it best."""
    every = corners(centres_and_sizes(of))
    found = [overlaps(boxes[i : i + 256], every).max(1) for i in range(0, len(boxes), 256)]
    return np.concatenate([np.empty(0, np.float32), *found])


def fitted(like: Anchors, boxes: Floats) -> Anchors:
    """Anchors of the sizes that `boxes` [M, 4] (x1 y1 x2 y2, fractions of the input) have, on the maps of `like`.

    Each box is of the map whose shapes are nearest to its size; a map's boxes are clustered by the overlap of their
    shapes (k-means, Redmon and Farhadi 2017, section 2), none smaller than LEAST. A map that few boxes are of keeps its
    shapes.
    """
    sizes = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    sizes = sizes[(sizes > 0).all(1)]
    scales = np.array([np.log(np.prod(shapes, 1)).mean() / 2 for shapes in map(np.array, like.boxes)])
    own = np.abs(np.log(sizes).mean(1)[:, None] - scales).argmin(1)
    most = max(map(len, like.boxes))
    made = []
    for m, shapes in enumerate(like.boxes):
        mine = sizes[own == m]
        k = min(most, len(mine) // WORTH)
        rows, columns = like.maps[m]
        least = np.array([LEAST / columns, LEAST / rows])
        made.append(_clusters(np.maximum(mine, least), k) if k >= len(shapes) else shapes)
    return Anchors(like.maps, tuple(made), "fitted", like.offset, like.clip, like.grids)


def _clusters(sizes: npt.NDArray[np.float64], k: int) -> tuple[tuple[float, float], ...]:
    """`k` shapes that stand for `sizes` [M, 2], the smallest first. No chance in it: they start at quantiles."""
    ordered = sizes[np.argsort(sizes.prod(1) * (sizes[:, 0] / sizes[:, 1]) ** 0.25, kind="stable")]
    centres = ordered[((np.arange(k) + 0.5) / k * len(ordered)).astype(int)]
    for _ in range(ROUNDS):
        nearest = _shape_overlaps(sizes, centres).argmax(1)
        moved = np.array([np.median(sizes[nearest == i], 0) if (nearest == i).any() else centres[i] for i in range(k)])
        if np.allclose(moved, centres, rtol=1e-6):
            break
        centres = moved
    return tuple((round(float(w), 5), round(float(h), 5)) for w, h in sorted(centres.tolist(), key=np.prod))


def _shape_overlaps(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Overlaps [M, K] of shapes (width, height) about one centre."""
    common = np.minimum(a[:, None], b[None]).prod(-1)
    return np.asarray(common / (a.prod(1)[:, None] + b.prod(1)[None] - common))


def fit_line(before: Anchors, after: Anchors, boxes: Sequence[Floats] | Floats) -> tuple[float, float, str]:
    """Mean best overlaps of both with `boxes`, and a line that says them and how many boxes an anchor matches."""
    every = np.concatenate([np.empty((0, 4), np.float32), *boxes]) if isinstance(boxes, Sequence) else boxes
    best = [best_overlaps(a, every) for a in (before, after)]
    means = [float(b.mean()) if len(b) else 0.0 for b in best]
    near = [100 * float((b >= 0.5).mean()) if len(b) else 0.0 for b in best]
    text = (
        f"anchors fitted to {len(every):,} boxes: mean best IoU {means[1]:.3f} ({means[0]:.3f} of the default ones), "
        f"{near[1]:.0f}% of the boxes have one of at least 0.5 ({near[0]:.0f}%)"
    )
    return means[0], means[1], text
