"""The linear probe: a classifier of fixed features, and how good it will be on other images."""

from __future__ import annotations

import numpy as np
import pytest

from mobilenets.tasks import linear


def blobs(classes, each, apart, width=12, seed=0):
    """Features of `each` images of every class, around centres that are `apart`."""
    rng = np.random.default_rng(seed)
    centres = apart * rng.normal(size=(classes, width))
    targets = np.repeat(np.arange(classes), each)
    return (centres[targets] + rng.normal(size=(len(targets), width))).astype(np.float32), targets


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_it_tells_apart_what_is_apart(classes):
    x, y = blobs(classes, 30, 4.0)
    probe = linear.fit(x, y, classes, 0)
    assert probe.score > 98
    assert ((x @ probe.weight.T + probe.bias).argmax(1) == y).mean() > 0.98
    assert probe.weight.shape == (classes, 12)


def test_its_accuracy_is_that_on_other_images():
    """Noise can be learnt by heart; cross-validation sees that nothing was learnt."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 150)).astype(np.float32), rng.integers(0, 2, 200)
    probe = linear.fit(x, y, 2, 0)
    assert 35 < probe.score < 65
    low, high = probe.interval
    assert low < probe.score < high
    assert high - low == pytest.approx(13.7, abs=0.5)  # of 200 images


def test_the_estimate_holds_on_new_images():
    x, y = blobs(4, 400, 0.6, seed=3)
    old, new = np.arange(len(y)) % 2 == 0, np.arange(len(y)) % 2 == 1
    probe = linear.fit(x[old], y[old], 4, 0)
    found = 100 * ((x[new] @ probe.weight.T + probe.bias).argmax(1) == y[new]).mean()
    assert probe.interval[0] < found < probe.interval[1]
    assert probe.score < 95  # else it says little


def test_the_scale_of_features_changes_nothing():
    x, y = blobs(3, 40, 0.7)
    small, large = linear.fit(x, y, 3, 0), linear.fit(1000 * x, y, 3, 0)
    assert small.penalty == large.penalty
    assert small.score == pytest.approx(large.score, abs=1.0)


def test_the_mean_of_features_changes_nothing():
    """Features behind an activation are all above 0; around their mean, a fit ends well before its limit of steps."""
    x, y = blobs(3, 40, 0.7)
    near, far = (linear._regression(x + off, y, 3, 1.0, False) for off in (0, 30))
    assert np.allclose(near[0], far[0], atol=1e-3)
    assert np.allclose(near[1] - far[1], 30 * far[0].sum(1), atol=0.02)


def test_classes_with_few_images_or_none():
    x, y = blobs(3, 20, 3.0)
    x, y = np.concatenate([x, x[:1] + 50]), np.append(y, 4)  # class 3 has none, class 4 one
    probe = linear.fit(x, y, 5, 0)
    said = (x @ probe.weight.T + probe.bias).argmax(1)
    assert 3 not in said
    assert probe.weight.shape == (5, 12)
    assert len(probe.right) == 61


def test_balanced_classes_count_the_same():
    x, y = blobs(2, 300, 0.35, width=4, seed=5)
    keep = (y == 0) | (np.arange(len(y)) % 10 == 0)  # 300 and 30
    plain, balanced = (linear.fit(x[keep], y[keep], 2, 0, b) for b in (False, True))
    given = [((x @ p.weight.T + p.bias).argmax(1) == 1).mean() for p in (plain, balanced)]
    assert given[0] < 0.3
    assert abs(given[1] - 0.5) < 0.15


def test_the_same_seed_gives_the_same():
    x, y = blobs(3, 15, 0.5)
    a, b = linear.fit(x, y, 3, 7), linear.fit(x, y, 3, 7)
    assert np.array_equal(a.weight, b.weight)
    assert np.array_equal(a.right, b.right)


def test_wilson() -> None:
    lo, hi = linear.wilson(50, 100)  # textbook: 0.404 to 0.596
    assert lo == pytest.approx(40.4, abs=0.05)
    assert hi == pytest.approx(59.6, abs=0.05)
    assert linear.wilson(100, 10)[1] == pytest.approx(100)
    assert linear.wilson(0, 0) == (0, 100)


def test_a_single_class_is_always_said():
    x, _ = blobs(1, 10, 1.0)
    probe = linear.fit(x, np.full(10, 2), 4, 0)
    assert ((x @ probe.weight.T + probe.bias).argmax(1) == 2).all()
    assert probe.score == 100
