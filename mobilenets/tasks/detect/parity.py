"""How a file's boxes compare with PyTorch's. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mobilenets.model.card import Precision
from mobilenets.tasks.detect.anchors import overlaps
from mobilenets.tasks.detect.config import OFFSETS, SCORE
from mobilenets.tasks.detect.decode import Found, found, is_finished
from mobilenets.tasks.task import Outputs, Parity

SEEN = 0.3  # a score from which an answer counts
NEAR = 0.05  # from SEEN: roundings decide whether it is there
# The least percent of answers that are in both, and the largest difference of a score that a right export may have.
LIMITS: dict[Precision, tuple[float, float]] = {
    "float32": (99.0, 1e-3),
    "float16": (98.0, 0.05),
    "int8": (85.0, 0.5),
    "dynamic": (85.0, 0.5),
    "int4": (98.0, 0.05),
}
# What an answer's box may differ by: its overlap with PyTorch's at least; of raw offsets, in units of a box coder's.
OVERLAP: dict[Precision, float] = {"float32": 0.98, "float16": 0.9, "int8": 0.6, "dynamic": 0.6, "int4": 0.9}
OFF: dict[Precision, float] = {"float32": 0.02, "float16": 0.5, "int8": 3.0, "dynamic": 3.0, "int4": 0.5}


def parity(reference: Outputs, other: Outputs, precision: Precision, limits: tuple[float, float] | None) -> Parity:
    """Answers (a score of SEEN or more in either) that are in both, of one class and nearly one place; and the scores.

    Of raw heads anchor by anchor. Of decoded and suppressed boxes each with that of the nearest score which overlaps it
    enough; one whose score is further off than the limit isn't in both. So a few may be, as where an int8 network's
    second stage looks at a proposal that lies a little elsewhere, but no more than agreement leaves room for.
    """
    if is_finished(reference) and is_finished(other):
        most = (limits or LIMITS[precision])[1]
        same, differ, ties, difference = _of_boxes(
            list(found(reference, None)), list(found(other, None)), OVERLAP[precision], most
        )
    else:
        same, differ, ties, difference = _of_anchors(reference, other, precision)
    total = same + differ
    agreement = 100 * same / total if total else 100.0
    least, most = bounds = limits or LIMITS[precision]
    kept = (differ - ties <= 1 or agreement >= least) and difference <= most
    reason = (
        f"{agreement:.2f}% of the boxes agree, needs {least}%; largest difference of a score {difference:.3g}, limit "
        f"{most}"
    )
    return Parity(agreement, difference, "" if kept else reason, bounds, ties)


def _of_anchors(reference: Outputs, other: Outputs, precision: Precision) -> tuple[int, int, int, float]:
    a, b = (_best(x[SCORE]) for x in (reference, other))
    seen = (a[1] >= SEEN) | (b[1] >= SEEN)
    off = np.abs(reference[OFFSETS] - other[OFFSETS]).max(-1)
    both = (a[1] >= SEEN) & (b[1] >= SEEN) & (a[0] == b[0]) & (off <= OFF[precision])
    ties = seen & ~both & (off <= OFF[precision]) & (np.abs(np.maximum(a[1], b[1]) - SEEN) < NEAR)
    difference = float(np.abs(reference[SCORE] - other[SCORE]).max(initial=0))
    return int((seen & both).sum()), int((seen & ~both).sum()), int(ties.sum()), difference


def _best(scores: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The best class of each anchor and its score; the first column may be the background's, which is no answer."""
    labels = scores[..., 1:] if scores.shape[-1] > 1 else scores
    return labels.argmax(-1), labels.max(-1)


def _of_boxes(
    reference: Sequence[Found], other: Sequence[Found], overlap: float, most: float
) -> tuple[int, int, int, float]:
    same = differ = ties = 0
    difference = 0.0
    for a, b in zip(reference, other, strict=True):
        for one, two in ((a, b), (b, a)):
            seen = one.scores >= SEEN
            over = overlaps(one.boxes[seen], two.boxes) * (one.classes[seen][:, None] == two.classes[None])
            off = np.where(over >= overlap, np.abs(one.scores[seen][:, None] - two.scores[None]), np.inf)
            nearest = off.min(1, initial=np.inf)
            fits = nearest <= most
            same += int(fits.sum())
            differ += int((~fits).sum())
            ties += int((one.scores[seen][~fits] < SEEN + NEAR).sum())
            difference = max(difference, float(nearest[fits].max(initial=0)))
    return same, differ, ties, difference
