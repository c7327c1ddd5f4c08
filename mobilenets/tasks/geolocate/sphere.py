"""Distances and means on the globe, taken for a sphere. No torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

RADIUS = 6371.0  # km, as published distances of geolocation have it
Floats = npt.NDArray[np.float64]


def distance(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Great-circle distance in km of positions [..., 2], degrees of latitude and longitude (haversine)."""
    p, q = (np.radians(np.asarray(x, np.float64)) for x in (a, b))
    half = np.sin((p - q) / 2) ** 2
    h = half[..., 0] + np.cos(p[..., 0]) * np.cos(q[..., 0]) * half[..., 1]
    return np.asarray(2 * RADIUS * np.arcsin(np.sqrt(np.clip(h, 0, 1))))


def vectors(positions: npt.ArrayLike) -> Floats:
    """Positions [..., 2] as points [..., 3] of the unit sphere."""
    lat, lon = np.moveaxis(np.radians(np.asarray(positions, np.float64)), -1, 0)
    return np.asarray(np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1))


def positions(points: Floats) -> Floats:
    """Points [..., 3], at any distance from the middle, as positions [..., 2]."""
    x, y, z = np.moveaxis(points, -1, 0)
    return np.asarray(np.degrees(np.stack([np.arctan2(z, np.hypot(x, y)), np.arctan2(y, x)], -1)))


def mean(of: npt.ArrayLike) -> Floats:
    """The position [2] in the middle of positions [N, 2]: the direction of their mean point."""
    return positions(np.asarray(vectors(of).mean(0)))


def best_point(of: npt.ArrayLike, within: float) -> Floats:
    """Of positions [N, 2], the one that has most of the others within so many km: [2].

    Looked for among 2,000 of them at most, evenly spread over their order.
    """
    every = np.asarray(of, np.float64).reshape(-1, 2)
    some = every[np.linspace(0, len(every) - 1, min(len(every), 2000)).astype(int)]
    counts = [int((distance(p, every) <= within).sum()) for p in some]
    return np.asarray(some[int(np.argmax(counts))])
