"""The globe in cells that hold about as many photos each: small where many are taken (PlaNet, Weyand and others 2016).

S2's cells, by s2sphere: a face of the cube around the globe is a cell, and so is each quarter of a cell. No torch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets import console
from mobilenets.errors import UserError, needed_by
from mobilenets.tasks.geolocate import sphere

LEVELS = 30  # S2's: a cell of the last is a square centimetre
SLOW = 20_000  # positions that take about a second
Ids = npt.NDArray[np.uint64]


@functools.lru_cache(1 << 16)
def _leaf(lat: float, lon: float) -> int:
    with needed_by("geolocation"):
        import s2sphere

    found: int = s2sphere.CellId.from_lat_lng(s2sphere.LatLng.from_degrees(lat, lon)).id()
    return found


def leaves(positions: npt.ArrayLike) -> Ids:
    """The smallest cell that holds each of positions [N, 2], degrees: S2's ids [N]."""
    rows = np.asarray(positions, np.float64).reshape(-1, 2).tolist()
    if len(rows) < SLOW:
        return np.array([_leaf(*p) for p in rows], np.uint64)
    with console.progress("positions") as bar:
        task = bar.add_task("cells", total=len(rows), status="")
        found = []
        for p in rows:
            found.append(_leaf(*p))
            bar.advance(task)
        return np.array(found, np.uint64)


def lowest_bit(level: int) -> np.uint64:
    return np.uint64(1) << np.uint64(2 * (LEVELS - level))


def parents(ids: Ids, level: int) -> Ids:
    """The cells of a level that hold cells of that level or deeper ones."""
    bit = lowest_bit(level)
    return (ids & ~(bit - np.uint64(1)) & ~bit) | bit


@dataclass(frozen=True)
class Partition:
    """Cells of the globe, none within another, in the order of their ids; what is in none was seen too seldom.

    `means` [C, 2]: the mean position of each cell's photos; `spreads` [C]: the median distance of them from it, km;
    `counts` [C] of photos. `most`, `least`: t_max and t_min, the photos that a cell may and must hold.
    """

    ids: Ids
    means: npt.NDArray[np.float64]
    spreads: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    most: int
    least: int

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def _ranges(self) -> tuple[Ids, Ids]:
        """The first and the last leaf of each cell."""
        beside = (self.ids & (~self.ids + np.uint64(1))) - np.uint64(1)
        return np.asarray(self.ids - beside, np.uint64), np.asarray(self.ids + beside, np.uint64)

    def find(self, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The cell of each of positions [N, 2]: its index [N], -1 where it is in none."""
        return self.holding(leaves(positions))

    def holding(self, ids: Ids) -> npt.NDArray[np.int64]:
        """The cell that holds each of cells [N], of the same level or deeper: its index [N], or -1."""
        first, last = self._ranges
        at = np.searchsorted(first, ids, side="right").astype(np.int64) - 1
        inside = (at >= 0) & (ids <= last[np.maximum(at, 0)])
        return np.where(inside, at, -1)

    def tokens(self) -> list[str]:
        """The cells' names as S2 writes them: hexadecimal, without the zeros at the end."""
        return [f"{int(i):016x}".rstrip("0") for i in self.ids]

    def to_json(self) -> dict[str, Any]:
        return {
            "t_max": self.most,
            "t_min": self.least,
            "cells": self.tokens(),
            "means": np.round(self.means, 5).tolist(),
            "spreads_km": np.round(self.spreads, 3).tolist(),
            "counts": self.counts.tolist(),
        }

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Partition:
        """The inverse of `to_json`. Raises `UserError` for what is none."""
        try:
            ids = np.array([int(t.ljust(16, "0"), 16) for t in d["cells"]], np.uint64)
            means = np.array(d["means"], np.float64).reshape(-1, 2)
            spreads, counts = np.array(d["spreads_km"], np.float64), np.array(d["counts"], np.int64)
            fits = len(ids) == len(means) == len(spreads) == len(counts) > 0 and bool((ids[1:] > ids[:-1]).all())
            if not (fits and np.isfinite(spreads).all() and (np.abs(means) <= (90, 180)).all()):
                raise ValueError("cells that don't fit their positions")
            return cls(ids, means, spreads, counts, int(d["t_max"]), int(d["t_min"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
            raise UserError(f"not a partition of the globe: {e}") from e


def partition(positions: npt.ArrayLike, most: int, least: int) -> Partition:
    """Cells of positions [N, 2]: from the six faces on, one of more than `most` is quartered; those of fewer than
    `least` are left out (PlaNet, section 3). Raises `UserError` where none is left.
    """  # fmt: skip
    if not 1 <= least <= most:
        raise UserError(f"a cell's photos must be 1 or more and at most t_max: not {least} to {most}")
    at = np.asarray(positions, np.float64).reshape(-1, 2)
    ids = leaves(at)
    order = np.argsort(ids, kind="stable")
    ids, at = ids[order], at[order]
    found: list[tuple[int, int, int]] = []  # a cell's id, and its photos' places in the order
    left = np.arange(len(ids))
    for level in range(LEVELS + 1):
        cells, first, counts = np.unique(parents(ids[left], level), return_index=True, return_counts=True)
        done = (counts <= most) | (level == LEVELS)
        found += [
            (int(c), int(left[f]), int(n))
            for c, f, n in zip(cells[done], first[done], counts[done], strict=True)
            if n >= least
        ]
        left = left[~np.repeat(done, counts)]
        if not len(left):
            break
    if not found:
        raise UserError(f"no cell holds {least} photos or more: --cells T_MAX,T_MIN with a smaller T_MIN")
    means, spreads = [], []
    for _, start, count in (found := sorted(found)):
        inside = at[start : start + count]
        means.append(sphere.mean(inside))
        spreads.append(float(np.median(sphere.distance(means[-1], inside))))
    return Partition(
        np.array([c for c, _, _ in found], np.uint64),
        np.array(means),
        np.array(spreads),
        np.array([n for _, _, n in found], np.int64),
        most,
        least,
    )


def parse(text: str) -> tuple[tuple[int, int], ...]:
    """(t_max, t_min) of each partition, the finest first: of "50,5", or of "200,10;50,5". Raises `UserError`."""
    try:
        pairs = [tuple(int(n) for n in part.split(",")) for part in text.split(";")]
        if not all(len(p) == 2 for p in pairs):
            raise ValueError
    except ValueError as e:
        raise UserError(f"--cells takes T_MAX,T_MIN, of several partitions with ; between: not {text!r}") from e
    return tuple(sorted((p[0], p[1]) for p in pairs))


def usual(count: int) -> tuple[tuple[int, int], ...]:
    """The partition where nobody asks for one: cells of a fiftieth of the photos at most, a tenth of that at least."""
    most = max(10, count // 50)
    return ((most, max(2, most // 10)),)


def hierarchy(partitions: Sequence[Partition]) -> list[npt.NDArray[np.int64]]:
    """For each coarser partition, the cell there that holds each cell of the first: indices [C], -1 where none does."""
    fine, *coarser = partitions
    return [p.holding(fine.ids) for p in coarser]
