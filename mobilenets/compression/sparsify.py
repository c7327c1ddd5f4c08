"""Single weights set to zero by their size: anywhere (unstructured), or N of every M in a row (N:M). No torch.

Only weights of more than one input each are: a depthwise filter's nine all count, and are few. Of an image's three
channels none goes either.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mobilenets.arch.operations import Op
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.encodings import Array, weight_name


class Pattern(Protocol):
    """Where zeros may be. `zeroed`: weights by layer, the smallest set to zero, at `done` of the schedule (0 to 1)."""

    def zeroed(self, weights: Mapping[str, Array], done: float) -> dict[str, Array]: ...

    def to_json(self) -> dict[str, Any]: ...


def progress(step: int, steps: int) -> float:
    """How much of the final sparsity there is after `step` of `steps` (Zhu and Gupta, arXiv 1710.01878, equation 1)."""
    return float(1 - (1 - step / steps) ** 3)


@dataclass(frozen=True)
class Anywhere:
    """A `share` of all weights, the smallest by LAMP's score (Lee and others, arXiv 2010.07611, equation 4).

    It is a weight's square over the sum of all of its layer that are no smaller: so layers are compared, and none goes
    as a whole.
    """

    share: float

    def zeroed(self, weights: Mapping[str, Array], done: float) -> dict[str, Array]:
        scores = {name: _lamp(w) for name, w in weights.items()}
        every = np.concatenate([s.ravel() for s in scores.values()])
        count = round(self.share * done * every.size)
        if not count:
            return dict(weights)
        least = np.partition(every, count - 1)[count - 1]
        return {name: np.where(scores[name] > least, w, np.float32(0)) for name, w in weights.items()}

    def to_json(self) -> dict[str, Any]:
        return {"unstructured": self.share}


def _lamp(weight: Array) -> Array:
    flat = np.square(weight.astype(np.float64)).ravel()
    order = np.argsort(flat, kind="stable")
    no_smaller = np.cumsum(flat[order][::-1])[::-1]
    score = np.empty_like(flat)
    score[order] = flat[order] / np.maximum(no_smaller, 1e-300)
    return score.reshape(weight.shape)


@dataclass(frozen=True)
class NofM:
    """At most `n` weights of every `m` inputs in a row that aren't zero, the largest; of what is left over, all."""

    n: int
    m: int

    @classmethod
    def parse(cls, text: str) -> NofM:
        """Of "2:4". Raises `UserError`."""
        found = re.fullmatch(r"(\d+):(\d+)", text.strip())
        n, m = map(int, found.groups()) if found else (0, 0)
        if not 0 < n < m <= 64:
            raise UserError(f"--sparsity takes how many of how many weights stay, as 2:4, not {text!r}")
        return cls(n, m)

    def zeroed(self, weights: Mapping[str, Array], done: float) -> dict[str, Array]:
        stay = self.m - math.floor((self.m - self.n) * done + 1e-9)
        return {name: self._of(w, stay) for name, w in weights.items()}

    def _of(self, weight: Array, stay: int) -> Array:
        by_input = np.moveaxis(weight, 1, -1).copy()  # [cout, K, K, cin]
        whole = by_input.shape[-1] // self.m * self.m
        groups = by_input[..., :whole].reshape(-1, self.m)
        smallest = np.argsort(np.abs(groups), axis=1, kind="stable")[:, : self.m - stay]
        np.put_along_axis(groups, smallest, 0, 1)
        by_input[..., :whole] = groups.reshape(*by_input.shape[:-1], whole)
        return np.ascontiguousarray(np.moveaxis(by_input, -1, 1))

    def to_json(self) -> dict[str, Any]:
        return {"sparsity": f"{self.n}:{self.m}"}


def thinned(op: Op) -> bool:
    """Whether a layer's weights may be zeros."""
    return op.kind in ("conv", "pointwise", "linear", "transposed") and op.groups == 1 and op.cin > 3 and not op.shares


def sparsified(source: Bundle, pattern: Pattern, done: float) -> Bundle:
    """`source` with the smallest weights zero, at `done` of the schedule."""
    names = {op.name: weight_name(op) for op in source.card.graph.layers if thinned(op)}
    if not names:
        raise UserError("this network has no layer whose weights could be pruned")
    zeroed = pattern.zeroed({name: source.tensors[key] for name, key in names.items()}, done)
    return Bundle(source.card, {**source.tensors, **{names[n]: w for n, w in zeroed.items()}}, source.digest)


def share_of_zeros(bundle: Bundle) -> float:
    """Of the weights that may be zero, how many are, from 0 to 1."""
    weights = [bundle.tensors[weight_name(op)] for op in bundle.card.graph.layers if thinned(op)]
    return sum(int((w == 0).sum()) for w in weights) / max(1, sum(w.size for w in weights))
