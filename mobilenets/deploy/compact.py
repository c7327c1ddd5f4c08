"""Weights that have few different values, or many zeros: what a file can keep in their place, without loss. No torch.

Looked for in the numbers themselves, whatever made them so: codebooks, ternary levels and pruning leave them that way,
with BatchNorm folded in too, which multiplies all of a channel by one number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mobilenets.model.codes import Array

TABLE_BITS = (1, 2, 3, 4, 6, 8)  # of a code, as Core ML has them
ANY_BITS = tuple(range(1, 9))


@dataclass(frozen=True)
class Palette:
    """Codes, uint8 of the weights' shape [cout, ...], into tables [n, 2**bits]: one of all channels, or one of each."""

    codes: Array
    tables: Array
    bits: int

    @property
    def nbytes(self) -> int:
        return math.ceil(self.codes.size * self.bits / 8) + self.tables.nbytes


@dataclass(frozen=True)
class Sparse:
    """The weights that aren't zero, in order, and a mask, bool of the weights' shape [cout, ...]."""

    values: Array
    mask: Array

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + math.ceil(self.mask.size / 8)


def palette(weights: Array, bits: Sequence[int] = TABLE_BITS) -> Palette | None:
    """`weights` [cout, ...] by tables with the fewest `bits` a code; None where they have too many values."""
    channels = weights.reshape(len(weights), -1)
    if len(np.unique(channels[0])) > 2 ** bits[-1]:  # as in most networks: nothing to sort all of them for
        return None
    found = [_tables(rows, weights.shape, bits) for rows in (weights.reshape(1, -1), channels)]
    return min((p for p in found if p), key=lambda p: p.nbytes, default=None)


def _tables(rows: Array, shape: tuple[int, ...], allowed: Sequence[int]) -> Palette | None:
    order = np.argsort(rows, 1, kind="stable")
    ordered = np.take_along_axis(rows, order, 1)
    ranks = np.zeros(rows.shape, np.int64)
    np.cumsum(np.diff(ordered, axis=1) != 0, 1, out=ranks[:, 1:])
    bits = next((b for b in allowed if ranks.max(initial=0) < 2**b), None)
    if bits is None:
        return None
    codes, tables = np.empty(rows.shape, np.uint8), np.zeros((len(rows), 2**bits), rows.dtype)
    np.put_along_axis(codes, order, ranks.astype(np.uint8), 1)
    np.put_along_axis(tables, ranks, ordered, 1)
    return Palette(codes.reshape(shape), tables, bits)


def sparse(weights: Array) -> Sparse:
    mask = weights != 0
    return Sparse(weights[mask], mask)


def is_sparse(weights: Array) -> bool:
    """Whether the numbers that aren't zero, if there are any, take fewer bytes with two for the place of each."""
    return bool(0 < np.count_nonzero(weights) * (weights.itemsize + 2) < weights.nbytes)


def smallest(weights: Array, bits: Sequence[int] = TABLE_BITS) -> Palette | Sparse | Array:
    """What takes the fewest bytes for `weights` [cout, ...]: themselves, tables with codes of `bits`, or a mask."""
    few, rest = palette(weights, bits), sparse(weights)
    ways: list[Palette | Sparse | Array] = [weights, *([few] if few else []), *([rest] if rest.values.size else [])]
    return min(ways, key=lambda w: w.nbytes)
