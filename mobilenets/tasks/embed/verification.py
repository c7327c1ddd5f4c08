"""Whether two images show the same, as LFW scores it: accuracy in folds, what is accepted at a rate. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
FOLDS = 10
RATES = (1e-3, 1e-2, 1e-1)  # of false accepts
MOST_PAIRS = 6000  # of either kind, where none are given
ROC_POINTS = 200


def best_threshold(scores: Floats, same: Bools) -> float:
    """From which score on calling two images the same is most often right; in the middle, of several."""
    order = np.argsort(-scores, kind="stable")
    s, y = scores[order], same[order]
    right = np.concatenate([[0], np.cumsum(np.where(y, 1, -1))])  # of accepting the first k, up to a constant
    ends = np.concatenate([[True], s[1:] != s[:-1], [True]]) if len(s) else np.array([True])  # where scores differ
    places = np.flatnonzero(ends & (right == right[ends].max()))
    k = int(places[len(places) // 2])
    above = s[k - 1] if k else s[0] + 1.0
    below = s[k] if k < len(s) else s[-1] - 1.0
    return float((above + below) / 2)


@dataclass(frozen=True)
class Rate:
    """At a rate of false accepts `far`: the share of same pairs that is accepted, `tar`, percent, from `threshold` on.

    `accepts` of the `different` pairs are accepted falsely. None where so few pairs can't measure that rate.
    """

    far: float
    tar: float | None
    threshold: float | None
    accepts: int
    different: int

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    def __str__(self) -> str:
        if self.tar is None:
            return f"not measured: {self.far:g} of {self.different:,} different pairs is less than one"
        return f"{self.tar:.2f}"


def at_rate(scores: Floats, same: Bools, far: float) -> Rate:
    """The lowest threshold at which no more than that share of the different pairs is accepted.

    A rate of less than one pair isn't measured: `tar` is None.
    """
    different = np.sort(scores[~same])[::-1]
    allowed = int(np.floor(far * len(different) + 1e-9))
    if not allowed or not same.any():
        return Rate(far, None, None, 0, len(different))
    least = different[allowed] if allowed < len(different) else -np.inf  # the best that isn't to be accepted
    accepted = scores > least
    kept = float(scores[accepted].min()) if accepted.any() else float(np.nextafter(least, np.inf))
    return Rate(far, 100 * float(accepted[same].mean()), kept, int(accepted[~same].sum()), len(different))


@dataclass(frozen=True)
class Verified:
    """Pairs judged by their vectors' cosine. `accuracy`: the mean over folds, percent, each at the others' threshold.

    `error`: its standard error; `folds`: of each; `threshold`: the best of all pairs, for use.
    """

    accuracy: float
    error: float
    folds: tuple[float, ...]
    threshold: float
    auc: float
    rates: tuple[Rate, ...]
    roc: tuple[tuple[float, float], ...]
    same: int
    different: int

    def to_json(self) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy, "standard_error": self.error, "folds": list(self.folds),
            "threshold": self.threshold, "auc": self.auc, "rates": [r.to_json() for r in self.rates],
            "same": self.same, "different": self.different,
        }  # fmt: skip


def verify(scores: Floats, same: Bools, fold: npt.NDArray[np.int64], rates: Sequence[float] = RATES) -> Verified:
    """Cosines of pairs [N], whether they are the same [N], their folds [N] (Huang and others 2007)."""
    each = []
    for f in np.unique(fold):
        inside = fold == f
        rest = ~inside if (~inside).any() else inside  # of a single fold, its own
        at = best_threshold(scores[rest], same[rest])
        each.append(100 * float(((scores[inside] >= at) == same[inside]).mean()))
    order = np.argsort(-scores, kind="stable")
    tar = np.concatenate([[0.0], np.cumsum(same[order]) / max(int(same.sum()), 1)])
    far = np.concatenate([[0.0], np.cumsum(~same[order]) / max(int((~same).sum()), 1)])
    drawn = np.unique(np.concatenate([np.linspace(0, len(tar) - 1, ROC_POINTS).astype(int), [0, len(tar) - 1]]))
    return Verified(
        float(np.mean(each)),
        float(np.std(each, ddof=1) / np.sqrt(len(each))) if len(each) > 1 else 0.0,
        tuple(each),
        best_threshold(scores, same),
        float(np.trapezoid(tar, far)),
        tuple(at_rate(scores, same, r) for r in rates),
        tuple((float(far[i]), float(tar[i])) for i in drawn),
        int(same.sum()),
        int((~same).sum()),
    )


def drawn_pairs(identities: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Bools, npt.NDArray[np.int64]]:
    """Pairs [P, 2] of images of these identities, as many different as same ones, in folds; the same at every call.

    All same pairs, or MOST_PAIRS of them drawn at random; none where no identity has two images.
    """
    rng = np.random.default_rng(0)
    order = np.argsort(identities, kind="stable")
    _, starts = np.unique(identities[order], return_index=True)
    of_each = [g for g in np.split(order, starts[1:]) if len(g) > 1]
    same = [np.stack(np.triu_indices(len(g), 1), 1) for g in of_each]
    together = [g[i] for g, i in zip(of_each, same, strict=True)]
    pairs = np.concatenate(together) if together else np.empty((0, 2), np.int64)
    if len(pairs) > MOST_PAIRS:
        pairs = pairs[rng.permutation(len(pairs))[:MOST_PAIRS]]
    others = np.empty((0, 2), np.int64)
    for _ in range(100):  # of most sets, one draw has enough
        more = rng.integers(0, max(len(identities), 1), (2 * len(pairs), 2))
        others = np.concatenate([others, more[identities[more[:, 0]] != identities[more[:, 1]]]])
        if len(others) >= len(pairs):
            break
    others = others[: len(pairs)]
    every = np.concatenate([pairs, others])
    fold = np.concatenate([rng.permutation(len(p)) % FOLDS for p in (pairs, others)])
    return every, np.arange(len(every)) < len(pairs), fold
