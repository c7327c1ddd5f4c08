"""Whether a classifier's probabilities can be believed: calibration error, thresholds, temperature. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets.errors import UserError

Floats = npt.NDArray[np.floating[Any]]

BINS = 15  # as in Guo and others 2017
DOUBT = 0.05  # a bound that is given holds with 95% confidence
# Thresholds that are tried for a wanted precision: few, as each makes the bound on the one that is found looser.
THRESHOLDS = (*(round(0.01 * i, 2) for i in range(100)), 0.995, 0.999)
WARMEST = 20.0  # the highest temperature, and one over the lowest
# The prior of log T: a normal deviation. Of images that are all right, nothing else keeps T from going to its end.
SPREAD = 0.5
CHANCE = 1.92  # nats over all images, which one in twenty calibrated networks seems to gain: half of chi-square's 3.84


@dataclass(frozen=True)
class Rejection:
    """What is left where answers less probable than `threshold` are unsure.

    `answered` of `count` images are; `right` of these. `least`: with 95% confidence, the precision is at least that on
    images like these, in percent. `wanted`: the precision that the threshold was sought for.
    """

    threshold: float
    count: int
    answered: int
    right: int
    least: float
    wanted: float | None = None

    @property
    def precision(self) -> float:
        """Of the answered images, the share in percent that are right; 0 where none is answered."""
        return 100 * self.right / max(self.answered, 1)

    @property
    def coverage(self) -> float:
        """The share of images in percent that are answered."""
        return 100 * self.answered / max(self.count, 1)

    def to_json(self) -> dict[str, Any]:
        return {
            "reject_below": self.threshold,
            "coverage": self.coverage,
            "precision": self.precision,
            "precision_at_least": self.least,
            "answered": self.answered,
            "wanted_precision": self.wanted,
        }

    def __str__(self) -> str:
        return (
            f"unsure below {self.threshold:g}: {self.answered:,} of {self.count:,} images are answered "
            f"({self.coverage:.1f}%), {self.precision:.2f}% of them right (with 95% confidence at least "
            f"{self.least:.1f}%, on images like these)"
        )


@dataclass(frozen=True)
class Bin:
    """Images whose best label has about the same probability: how many, their mean probability, the share right."""

    count: int
    confidence: float
    right: float

    def to_json(self) -> dict[str, Any]:
        return vars(self).copy()


@dataclass(frozen=True)
class Reliability:
    """Of each image, the probability of the label it was given [N], and whether that is its own [N]."""

    confidence: Floats
    right: npt.NDArray[np.bool_]

    def bins(self, adaptive: bool = False) -> tuple[Bin, ...]:
        """BINS of equal width; or, `adaptive`, with as many images in each. Those without images are left out."""
        if adaptive:
            pieces = np.array_split(np.argsort(self.confidence, kind="stable"), BINS)
        else:
            at = np.clip(np.ceil(self.confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
            pieces = [np.flatnonzero(at == b) for b in range(BINS)]
        return tuple(
            Bin(len(i), float(self.confidence[i].mean(dtype=np.float64)), float(self.right[i].mean()))
            for i in pieces
            if len(i)
        )

    def ece(self, adaptive: bool = False) -> float:
        """The expected calibration error, percent: how far confidence is from accuracy, the mean over images."""
        return error(self.bins(adaptive))

    def rejecting(self, threshold: float, wanted: float | None = None, doubt: float = DOUBT) -> Rejection:
        """What is left at a threshold."""
        answered = self.confidence >= threshold
        n, right = int(answered.sum()), int(self.right[answered].sum())
        return Rejection(threshold, len(answered), n, right, 100 * least_share(right, n, doubt), wanted)

    def precise(self, wanted: float) -> Rejection:
        """The lowest of THRESHOLDS at which the answered images' precision is `wanted`, percent.

        Its bound holds whichever is found (Bonferroni's). Raises `UserError` where none reaches it.
        """
        each = [self.rejecting(t, wanted, DOUBT / len(THRESHOLDS)) for t in THRESHOLDS]
        for r in each:
            if r.answered and r.precision >= wanted:
                return r
        best = max(each, key=lambda r: r.precision)
        raise UserError(
            f"no threshold reaches a precision of {wanted:g}%: the best is {best.precision:.2f}%, of the "
            f"{best.answered:,} of {best.count:,} images with a probability of {best.threshold:g} or more"
        )


def error(bins: Sequence[Bin]) -> float:
    """How far the bins' confidence is from their accuracy, the mean over images, percent."""
    off = sum(b.count * abs(b.confidence - b.right) for b in bins)
    return 100 * off / max(sum(b.count for b in bins), 1)


def check_precision(wanted: float | None) -> None:
    """Raises `UserError` for what is no precision."""
    if wanted is not None and not 0 < wanted <= 100:
        raise UserError(f"wanted_precision is a percentage above 0, up to 100, not {wanted:g}")


def least_share(right: int, count: int, doubt: float = DOUBT) -> float:
    """The share that `right` of `count` stand for at least, but for a doubt of `doubt` (Clopper and Pearson 1934)."""
    if right == 0:
        return 0.0
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])  # of factorials
    k = np.arange(right, count + 1)
    ways = logs[count] - logs[k] - logs[count - k]
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        as_many = float(np.exp(ways + k * math.log(share) + (count - k) * math.log1p(-share)).sum())
        low, high = (low, share) if as_many > doubt else (share, high)
    return low


def tempered(probabilities: Floats, temperature: float) -> Floats:
    """Probabilities [N, C] as they were were their logits divided by `temperature`."""
    x = _logs(probabilities) / temperature
    e = np.exp(x - x.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def nats(probabilities: Floats, targets: npt.NDArray[np.int64], temperature: float = 1.0) -> float:
    """The mean negative log-likelihood of the true classes [N]."""
    x = _logs(probabilities) / temperature
    top = x.max(1)
    of_true = x[np.arange(len(targets)), targets]
    return float((np.log(np.exp(x - top[:, None]).sum(1)) + top - of_true).mean())


def fit_temperature(probabilities: Floats, targets: npt.NDArray[np.int64]) -> float:
    """The temperature that makes probabilities [N, C] most likely for true classes [N].

    To three decimals. A weak prior draws it to 1; and 1 it is where no other does better than by chance, as a
    likelihood-ratio test has it (Wilks 1938).
    """

    def cost(log_t: float) -> float:
        prior = (log_t / SPREAD) ** 2 / 2
        return nats(probabilities, targets, math.exp(log_t)) + prior / len(targets)

    golden = (math.sqrt(5) - 1) / 2
    low, high = -math.log(WARMEST), math.log(WARMEST)
    a, b = high - golden * (high - low), low + golden * (high - low)
    at_a, at_b = cost(a), cost(b)
    while high - low > 1e-4:
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - golden * (high - low)
            at_a = cost(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + golden * (high - low)
            at_b = cost(b)
    found = round(math.exp((low + high) / 2), 3)
    gain = len(targets) * (nats(probabilities, targets) - nats(probabilities, targets, found))
    return found if gain > CHANCE else 1.0


def _logs(probabilities: Floats) -> npt.NDArray[np.float64]:
    return np.log(np.maximum(probabilities.astype(np.float64), 1e-38))  # a float32 can be 0, a probability not
