"""The linear probe: the best linear classifier of fixed features, and how good it is on images it wasn't fitted to.

Kornblith, Shlens and Le, "Do Better ImageNet Models Transfer Better?" (2019), rank networks by it. No torch.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mobilenets.data import splitting

FOLDS = 4
CS = (1e-2, 1e-1, 1.0, 10.0, 100.0)  # inverse penalties, of features whose mean square is 1
STEPS = 100  # of L-BFGS: fits that would take more are as good by then
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
    """A linear classifier: `weight` float32 [C, K] and `bias` [C] give logits of features [N, K].

    `right` [N] says of each image that it was fitted to if a classifier fitted without its fold was right about it;
    `penalty` is scikit-learn's C.
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    right: npt.NDArray[np.bool_]
    penalty: float

    @property
    def accuracy(self) -> float:
        """Cross-validated, percent."""
        return 100 * float(self.right.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The accuracy's 95% interval, percent."""
        return wilson(self.accuracy, len(self.right))


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
    """Weight [C, K] and bias [C]; a class without images has no say."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, -20.0)
    if len(np.unique(targets)) == 1:
        bias[targets[0]] = 0.0
        return weight, bias
    model = LogisticRegression(C=penalty, max_iter=STEPS, tol=1e-3, class_weight="balanced" if balanced else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, targets)
    if len(model.classes_) == 2:  # one row for two classes
        weight[model.classes_] = np.concatenate([-model.coef_, model.coef_]) / 2
        bias[model.classes_] = np.concatenate([-model.intercept_, model.intercept_]) / 2
    else:
        weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    return weight, bias


def _log_sum(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    most = logits.max(1)
    total: npt.NDArray[np.float64] = most + np.log(np.exp(logits - most[:, None]).sum(1))
    return total
