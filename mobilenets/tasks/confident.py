"""Labels that are likely wrong, by confident learning (Northcutt, Jiang, Chuang 2021). No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Suspect:
    """Image `index` has the label `given`, and is `likely` of another class.

    `margin`: by how much that is more probable, above -1 and at most 1.
    """

    index: int
    given: int
    likely: int
    margin: float


def suspects(probabilities: npt.NDArray[Any], labels: Sequence[int] | npt.NDArray[Any]) -> tuple[Suspect, ...]:
    """Images whose label is contradicted with confidence, the surest first.

    Probabilities [N, C] are of networks that weren't trained on the image; labels [N]. An image counts as of a class
    that is as probable for it as it is, on average, for the images labelled so; of several, the most probable.
    """
    p, given = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    there = np.bincount(given, minlength=p.shape[1]) > 0
    usual = np.array([p[given == c, c].mean() if there[c] else np.inf for c in range(p.shape[1])])
    confident = p >= usual
    likely = np.where(confident, p, -1.0).argmax(1)
    margin = p[np.arange(len(p)), likely] - p[np.arange(len(p)), given]
    found = np.flatnonzero(confident.any(1) & (likely != given))
    order = found[np.argsort(-margin[found], kind="stable")]
    return tuple(Suspect(int(i), int(given[i]), int(likely[i]), float(margin[i])) for i in order)
