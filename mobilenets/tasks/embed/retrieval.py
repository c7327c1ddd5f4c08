"""Finding the same among many, and telling who isn't there: retrieval and open-set identification. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets.tasks.embed.verification import at_rate

Vectors = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
RANKS = (1, 5, 10)
AT_ONCE = 512  # queries
ALARMS = (1e-2, 1e-1)  # false alarms among those that aren't enrolled


@dataclass(frozen=True)
class Retrieved:
    """Each image with another of its identity asks for those, among all others. Percent.

    `recall`: by rank, images that have one of theirs among so many of the nearest; `map`: mean average precision.
    """

    recall: dict[int, float]
    map: float
    queries: int

    def to_json(self) -> dict[str, Any]:
        return {"recall": {str(k): v for k, v in self.recall.items()}, "map": self.map, "queries": self.queries}


def retrieve(vectors: Vectors, identities: Ints) -> Retrieved | None:
    """Of unit vectors [N, K] and identities [N]; None where no identity has two images."""
    _, which, counts = np.unique(identities, return_inverse=True, return_counts=True)
    asking = np.flatnonzero(counts[which] > 1)
    if not len(asking):
        return None
    hits, precisions = dict.fromkeys(RANKS, 0), []
    for start in range(0, len(asking), AT_ONCE):
        q = asking[start : start + AT_ONCE]
        near = vectors[q] @ vectors.T
        near[np.arange(len(q)), q] = -np.inf
        right = which[np.argsort(-near, axis=1, kind="stable")] == which[q][:, None]
        for k in RANKS:
            hits[k] += int(right[:, :k].any(1).sum())
        right = right[:, :-1]  # the last is the image itself
        found = np.cumsum(right, 1)
        at = found / np.arange(1, right.shape[1] + 1)
        precisions.append((at * right).sum(1) / right.sum(1))
    n = len(asking)
    return Retrieved({k: 100 * hits[k] / n for k in RANKS}, 100 * float(np.concatenate(precisions).mean()), n)


@dataclass(frozen=True)
class Identified:
    """One image of each identity with more is enrolled; the others ask who they are, and strangers do too. Percent.

    `rate`: by the share of strangers that are taken for somebody, the share of the others that are told by their own
    identity (detection and identification rate); None where strangers are too few for that share.
    """

    rate: dict[float, float | None]
    enrolled: int
    known: int
    strangers: int

    def to_json(self) -> dict[str, Any]:
        return {
            "rate": {f"{k:g}": v for k, v in self.rate.items()}, "enrolled": self.enrolled, "known": self.known,
            "strangers": self.strangers,
        }  # fmt: skip


def identify(vectors: Vectors, identities: Ints) -> Identified | None:
    """Of unit vectors [N, K] and identities [N]; strangers are those with one image. None where either is missing."""
    _, first, which, counts = np.unique(identities, return_index=True, return_inverse=True, return_counts=True)
    several = counts > 1
    enrolled = first[several]
    alone = np.flatnonzero(~several[which])
    known = np.setdiff1d(np.flatnonzero(several[which]), enrolled)
    if not len(enrolled) or not len(alone):
        return None
    near = vectors[known] @ vectors[enrolled].T
    best, right = near.max(1), which[enrolled][near.argmax(1)] == which[known]
    strange = (vectors[alone] @ vectors[enrolled].T).max(1)
    scores = np.concatenate([best, strange]).astype(np.float64)
    is_known = np.arange(len(scores)) < len(best)
    rates: dict[float, float | None] = {}
    for alarm in ALARMS:
        at = at_rate(scores, is_known, alarm).threshold
        rates[alarm] = None if at is None else 100 * float((right & (best >= at)).mean())
    return Identified(rates, len(enrolled), len(known), len(alone))
