"""Average precision: how well scores put what is so before what isn't. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

HALF = 0.5
Floats = npt.NDArray[Any]


def average_precision(scores: Floats, true: Floats) -> float:
    """The area under precision over recall, 0 to 1, of scores [N] and truths [N]; NaN where no image has the tag.

    The sum of precisions, each times the recall that it brings (as scikit-learn's and torchmetrics'): equal scores are
    one step.
    """
    known = ~np.isnan(true)
    scores, true = scores[known], true[known] > HALF
    if not true.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # the last of each equal score
    hits = np.cumsum(true[order])[ends]
    return float((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / hits[-1])
