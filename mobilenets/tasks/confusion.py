"""Which classes are taken for which: a confusion matrix of any number of classes, by the cells that aren't 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Confusion:
    """`count[k]` images of class `true[k]` were given class `given[k]`: at most as many cells as images."""

    num_classes: int
    true: Ints
    given: Ints
    count: Ints

    @classmethod
    def of(cls, true: Sequence[int] | Ints, given: Sequence[int] | Ints, num_classes: int) -> Confusion:
        """Of each image's class and the one that it was given."""
        cells, count = np.unique(np.asarray(true, np.int64) * num_classes + np.asarray(given), return_counts=True)
        return cls(num_classes, cells // max(num_classes, 1), cells % max(num_classes, 1), count.astype(np.int64))

    @classmethod
    def of_matrix(cls, matrix: Ints | Sequence[Sequence[int]]) -> Confusion:
        """Of all cells [true, given]. Raises ValueError for what isn't a square of counts."""
        m = np.asarray(matrix, np.int64)
        if m.ndim != 2 or m.shape[0] != m.shape[1] or (m < 0).any():
            raise ValueError(f"a confusion matrix is a square of counts, not {m.shape}")
        true, given = np.nonzero(m)
        return cls(len(m), true.astype(np.int64), given.astype(np.int64), m[true, given])

    def to_json(self) -> dict[str, Any]:
        """Cells as text, "true given count": a line each in a file, where numbers would have three."""
        cells = zip(self.true.tolist(), self.given.tolist(), self.count.tolist(), strict=True)
        return {"classes": self.num_classes, "cells": [f"{t} {g} {n}" for t, g, n in cells]}

    @classmethod
    def from_json(cls, d: Any) -> Confusion:
        """The inverse of `to_json`; takes a whole matrix too, as earlier versions wrote it. Raises ValueError."""
        if isinstance(d, list):
            return cls.of_matrix(d)
        try:
            n, cells = d["classes"], [tuple(map(int, cell.split())) for cell in d["cells"]]
        except (TypeError, KeyError, AttributeError) as e:
            raise ValueError(f"not a confusion matrix ({e})") from e
        if type(n) is not int or not all(len(c) == 3 and 0 <= c[0] < n and 0 <= c[1] < n and c[2] > 0 for c in cells):
            raise ValueError("not a confusion matrix: a cell lies outside of its classes")
        true, given, count = (np.array([c[k] for c in cells], np.int64) for k in range(3))
        return cls(n, true, given, count)

    def _summed(self, by: Ints, which: npt.NDArray[np.bool_] | None = None) -> Ints:
        where = slice(None) if which is None else which
        return np.bincount(by[where], self.count[where], self.num_classes).astype(np.int64)

    @property
    def wrong(self) -> npt.NDArray[np.bool_]:
        """Which cells are mistakes."""
        return np.not_equal(self.true, self.given)

    @property
    def images(self) -> Ints:
        """Of each class, how many images there were [C]."""
        return self._summed(self.true)

    @property
    def answers(self) -> Ints:
        """Of each class, how many images were given it [C]."""
        return self._summed(self.given)

    @property
    def right(self) -> Ints:
        """Of each class, how many images were given it and have it [C]."""
        return self._summed(self.true, ~self.wrong)

    @property
    def mistakes(self) -> Ints:
        """How many mistakes each class has a part in, on either side [C]."""
        return self._summed(self.true, self.wrong) + self._summed(self.given, self.wrong)

    def merged(self, group: Sequence[int]) -> Confusion:
        """Of groups of classes: class c is in `group[c]`, from 0 on."""
        to = np.asarray(group, np.int64)
        number = int(to.max(initial=-1)) + 1
        cells, where = np.unique(to[self.true] * number + to[self.given], return_inverse=True)
        count = np.bincount(where, self.count, len(cells)).astype(np.int64)
        return Confusion(number, cells // max(number, 1), cells % max(number, 1), count)

    @property
    def total(self) -> int:
        return int(self.count.sum())

    def among(self, classes: Sequence[int]) -> Ints:
        """The cells [true, given] of some classes."""
        place = np.full(self.num_classes, -1)
        place[list(classes)] = np.arange(len(classes))
        true, given = place[self.true], place[self.given]
        inside = (true >= 0) & (given >= 0)
        out = np.zeros((len(classes), len(classes)), np.int64)
        out[true[inside], given[inside]] = self.count[inside]
        return out

    @property
    def matrix(self) -> Ints:
        """All cells [true, given]."""
        return self.among(range(self.num_classes))
