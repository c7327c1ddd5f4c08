"""The linear probe: the best linear head of fixed features, and how good it is on images that it wasn't fitted to.

Kornblith, Shlens and Le, "Do Better ImageNet Models Transfer Better?" (2019), rank networks by it. No torch.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets.data import splitting
from mobilenets.tasks.precision import average_precision

FOLDS = 4
CS = (1e-2, 1e-1, 1.0, 10.0, 100.0)  # inverse penalties, of features whose mean square is 1
STEPS = 100  # of L-BFGS: fits that would take more are as good by then
DRAWS = 40  # of all images, for an interval
ALWAYS = 10.0  # the logit of a tag that all have
TOLERANCE = 1e-5  # of the loss, where fits to tags end: less changes what they say by nothing
Z = 1.96  # standard errors on each side of a 95% interval


def wilson(percent: float, count: int) -> tuple[float, float]:
    """The 95% interval of an accuracy measured on `count` images, in percent (Wilson's score interval)."""
    if count < 1:
        return 0.0, 100.0
    p, z2 = percent / 100, Z**2
    middle = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2) * math.sqrt(p * (1 - p) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return 100 * (middle - half), 100 * (middle + half)


@dataclass(frozen=True)
class Probe:
    """A linear head: `weight` float32 [C, K] and `bias` [C] give logits of features [N, K].

    `right` [N] says of each image that it was fitted to how right a head fitted without its fold was about it, from 0
    to 1: about its class, or the share of its tags. `penalty` is scikit-learn's C. `mean_ap`: of tags, the mean average
    precision so found, and its 95% interval, percent.
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    right: npt.NDArray[Any]
    penalty: float
    mean_ap: tuple[float, float, float] | None = None

    @property
    def score(self) -> float:
        """Cross-validated, percent: the accuracy, or of tags the mean average precision."""
        return self.mean_ap[0] if self.mean_ap else 100 * float(self.right.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The score's 95% interval, percent."""
        return self.mean_ap[1:] if self.mean_ap else wilson(self.score, len(self.right))


def fit(
    features: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], classes: int, seed: int, balanced: bool = False
) -> Probe:
    """Multinomial logistic regression of features [N, K] to classes [N], its penalty chosen by cross-validation.

    The penalty with the least loss on what was left out; `balanced`: every class counts the same in the fit.
    """
    scale = float(np.sqrt(np.square(features, dtype=np.float64).mean())) or 1.0
    x, folds = features / np.float32(scale), splitting.folds(targets, None, FOLDS, seed)
    best: tuple[float, float, npt.NDArray[np.bool_]] | None = None
    for penalty in CS:
        loss, right = 0.0, np.zeros(len(x), bool)
        for k in range(FOLDS):
            out = folds == k
            if not out.any() or out.all():
                continue
            weight, bias = _regression(x[~out], targets[~out], classes, penalty, balanced)
            logits = x[out] @ weight.T + bias
            right[out] = logits.argmax(1) == targets[out]
            loss += float((_log_sum(logits) - logits[np.arange(len(logits)), targets[out]]).sum())
        if best is None or loss < best[0]:
            best = loss, penalty, right
        else:  # it has one minimum
            break
    assert best is not None
    _, penalty, right = best
    weight, bias = _regression(x, targets, classes, penalty, balanced)
    return Probe((weight / scale).astype(np.float32), bias.astype(np.float32), right, penalty)


def _regression(
    x: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], classes: int, penalty: float, balanced: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Weight [C, K] and bias [C]; a class without images has no say.

    Fitted to features around their mean, which L-BFGS finds the same answer for in a fraction of the steps: a bias has
    no penalty, so moving the features moves only it.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, -20.0)
    if len(np.unique(targets)) == 1:
        bias[targets[0]] = 0.0
        return weight, bias
    model = LogisticRegression(C=penalty, max_iter=STEPS, tol=1e-3, class_weight="balanced" if balanced else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        middle = x.mean(0)
        model.fit(x - middle, targets)
    if len(model.classes_) == 2:  # one row for two classes
        weight[model.classes_] = np.concatenate([-model.coef_, model.coef_]) / 2
        bias[model.classes_] = np.concatenate([-model.intercept_, model.intercept_]) / 2
    else:
        weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    return weight, bias - weight @ middle


def fit_tags(
    features: npt.NDArray[np.float32], targets: npt.NDArray[np.float32], seed: int, balanced: bool = False
) -> Probe:
    """A logistic regression of features [N, K] to each tag of [N, C], NaN where it isn't known; one penalty for all.

    The penalty with the least loss on what was left out; `balanced`: each tag's yes and no count the same in the fit.
    """
    scale = float(np.sqrt(np.square(features, dtype=np.float64).mean())) or 1.0
    x, folds = (features / np.float32(scale)).astype(np.float32), splitting.folds(targets, None, FOLDS, seed)
    known, yes = ~np.isnan(targets), np.nan_to_num(targets)
    best: tuple[float, float, npt.NDArray[np.float32]] | None = None
    for penalty in CS:
        logits = np.zeros(targets.shape, np.float32)
        for k in range(FOLDS):
            out = folds == k
            if out.any() and not out.all():
                weight, bias = _regressions(x[~out], yes[~out], known[~out], penalty, balanced)
                logits[out] = x[out] @ weight.T + bias
        loss = float((np.logaddexp(0, logits) - yes * logits)[known].sum())
        if best is not None and loss >= best[0]:  # it has one minimum
            break
        best = loss, penalty, logits
    assert best is not None
    _, penalty, logits = best
    weight, bias = _regressions(x, yes, known, penalty, balanced)
    equal = ((logits > 0) == (yes > 0.5)) & known
    right = equal.sum(1) / np.maximum(known.sum(1), 1)
    return Probe(weight / np.float32(scale), bias, right, penalty, _resampled(logits, targets, seed))


def _regressions(
    x: npt.NDArray[np.float32],
    yes: npt.NDArray[np.float32],
    known: npt.NDArray[np.bool_],
    penalty: float,
    balanced: bool,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Weight [C, K] and bias [C], all tags at once: each has its own loss, and their sum has its least where each has.

    A tag that all images have, or none has, is given its commoner answer.
    """
    from scipy.optimize import minimize  # scikit-learn's own

    (n, k), tags, middle = x.shape, yes.shape[1], x.mean(0)
    x = x - middle  # which changes no fit, and makes it several times as quick
    counts = known.sum(0)
    positive = (yes * known).sum(0)
    both = (positive > 0) & (positive < counts)
    shares = [np.where(both, counts / np.maximum(2 * of, 1), 1.0) for of in (counts - positive, positive)]
    each = (np.where(yes > 0.5, shares[1], shares[0]) if balanced else np.ones_like(yes)) * known * both
    each = each.astype(np.float32)

    def loss(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        weight, bias = flat[: tags * k].reshape(tags, k).astype(np.float32), flat[tags * k :].astype(np.float32)
        logits = x @ weight.T + bias
        total = float((each * (np.logaddexp(0, logits) - yes * logits)).sum(dtype=np.float64))
        off = each * (1 / (1 + np.exp(-np.clip(logits, -50, 50))) - yes)
        slope = np.concatenate([(off.T @ x + weight / np.float32(penalty)).ravel(), off.sum(0)]).astype(np.float64)
        return (total + float(np.square(weight, dtype=np.float64).sum()) / (2 * penalty)) / n, slope / n

    found = minimize(
        loss, np.zeros(tags * (k + 1)), jac=True, method="L-BFGS-B", options={"maxiter": STEPS, "ftol": TOLERANCE}
    ).x
    weight = found[: tags * k].reshape(tags, k)
    bias = found[tags * k :] - weight @ middle
    only = np.where(2 * positive > counts, ALWAYS, -ALWAYS)
    weight *= both[:, None]
    return weight.astype(np.float32), np.where(both, bias, only).astype(np.float32)


def _resampled(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.float32], seed: int
) -> tuple[float, float, float]:
    """The mean average precision and its 95% interval, percent, by how it spreads where images are drawn again.

    Its deviation is taken, and not its quantiles: images that are drawn twice make every one of them look better.
    """

    def score(some: npt.NDArray[np.int64]) -> float:
        each = [average_precision(logits[some, c], targets[some, c]) for c in range(targets.shape[1])]
        return 100 * float(np.nanmean(each)) if np.isfinite(each).any() else 0.0

    n, rng = len(targets), np.random.default_rng(seed)
    again = [score(rng.integers(0, n, n)) for _ in range(DRAWS)]
    found, off = score(np.arange(n)), Z * float(np.std(again))
    return found, max(found - off, 0.0), min(found + off, 100.0)


def _log_sum(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    most = logits.max(1)
    total: npt.NDArray[np.float64] = most + np.log(np.exp(logits - most[:, None]).sum(1))
    return total
