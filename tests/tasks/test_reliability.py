"""Calibration error, thresholds and temperature: beside what is known of them, and what numpy says the long way."""

import json
import math

import numpy as np
import pytest

from mobilenets.errors import UserError
from mobilenets.tasks.classify import Tally
from mobilenets.tasks.reliability import (
    THRESHOLDS,
    Reliability,
    error,
    fit_temperature,
    least_share,
    nats,
    tempered,
)


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def sampled(count, classes=10, sharpness=3.0, seed=0):
    """Logits [N, C], and true classes drawn from their softmax: as calibrated as can be."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, sharpness, (count, classes))
    p = softmax(logits)
    return logits, (p.cumsum(1) > rng.random((count, 1))).argmax(1)


def test_the_error_is_what_a_loop_over_bins_says():
    rng = np.random.default_rng(0)
    confidence, right = rng.uniform(0.1, 1, 400), rng.random(400) < 0.6
    off = 0.0
    for b in range(15):
        there = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if there.any():
            off += there.sum() * abs(confidence[there].mean() - right[there].mean())
    made = Reliability(confidence, right)
    assert made.ece() == pytest.approx(100 * off / 400)
    assert sum(b.count for b in made.bins()) == 400
    assert error(made.bins()) == made.ece()


def test_adaptive_bins_hold_as_many_images_each():
    rng = np.random.default_rng(1)
    made = Reliability(0.99 + 0.01 * rng.random(151), rng.random(151) < 0.5)
    assert {b.count for b in made.bins(adaptive=True)} == {10, 11}
    assert len(made.bins()) == 1
    assert made.ece(adaptive=True) >= made.ece() - 1e-9


def test_ends_belong_to_a_bin_and_no_images_are_no_error():
    assert [b.count for b in Reliability(np.array([0.0, 1.0, 1.0]), np.array([False, True, True])).bins()] == [1, 2]
    assert Reliability(np.empty(0), np.empty(0, bool)).ece() == 0


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_the_temperature_that_was_there_is_found(true):
    logits, targets = sampled(5000)
    assert fit_temperature(softmax(logits * true), targets) == pytest.approx(true, rel=0.06)


def test_it_is_never_worse_and_never_at_an_end():
    logits, targets = sampled(60, seed=3)
    p = softmax(logits * 1.01)
    assert nats(p, targets, fit_temperature(p, targets)) <= nats(p, targets)
    separable = softmax(np.eye(5)[np.arange(120) % 5] * 3.0)  # all right: colder would always be likelier
    assert 0.2 < fit_temperature(separable, np.arange(120) % 5) < 1


def test_what_chance_could_be_changes_nothing():
    """Of calibrated networks, some temperature always fits the images at hand a little better than 1."""
    found = [fit_temperature(softmax(logits), targets) for logits, targets in (sampled(120, seed=s) for s in range(40))]
    assert sum(t != 1 for t in found) <= 6


def test_tempering_is_dividing_logits_and_can_be_taken_back():
    logits, _ = sampled(50)
    p = softmax(logits)
    np.testing.assert_allclose(tempered(p, 2.0), softmax(logits / 2), rtol=1e-9)
    np.testing.assert_allclose(tempered(tempered(p, 0.5), 2.0), p, rtol=1e-6)
    assert np.isfinite(tempered(np.array([[1.0, 0.0]], np.float32), 3.0)).all()


@pytest.mark.parametrize(("right", "count"), [(1, 1), (50, 60), (299, 299), (4990, 5000)])
def test_the_bound_leaves_the_doubt_that_it_says(right, count):
    share = least_share(right, count)
    tail = sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(right, count + 1)) \
        if count < 1000 else 0.05  # fmt: skip
    assert tail == pytest.approx(0.05, rel=1e-3)
    assert share < right / count
    assert least_share(0, 10) == 0


def test_the_lowest_threshold_that_does():
    confidence = np.array([0.95] * 50 + [0.8] * 50 + [0.5] * 50)
    right = np.array([True] * 50 + [True] * 45 + [False] * 5 + [False] * 50)
    made = Reliability(confidence, right)
    found = made.precise(95)
    assert (found.threshold, found.answered, found.right, found.precision) == (0.51, 100, 95, 95)
    assert found.coverage == pytest.approx(200 / 3)
    assert found.least < made.rejecting(found.threshold).least < 95  # looser, as it was sought among many
    assert made.precise(96).threshold == 0.81
    assert "100 of 150 images are answered" in str(found)
    assert found.threshold in THRESHOLDS
    assert json.loads(json.dumps(found.to_json()))["reject_below"] == 0.51


def test_a_precision_that_nothing_reaches():
    with pytest.raises(UserError, match=r"no threshold reaches a precision of 99%: the best is 50\.00%, of the 2 of 2"):
        Reliability(np.array([0.9, 0.9]), np.array([True, False])).precise(99)


def test_scores_say_how_it_was_before_the_temperature():
    logits, targets = sampled(300)
    p = softmax(logits / 3).astype(np.float32)  # as if T 3 were in the weights
    before = Reliability(softmax(logits).max(1), p.argmax(1) == targets).ece()
    for temperature, expected in ((3.0, before), (1.0, None)):
        tally = Tally(tuple("abcdefghij"), temperature)
        for i in range(0, 300, 100):
            tally.update({"probabilities": p[i : i + 100]}, targets[i : i + 100])
        made = tally.compute("d", "val")
        assert made.to_json()["ece"] == Reliability(p.max(1), p.argmax(1) == targets).ece()
        assert made.to_json().get("ece_uncalibrated") == (expected and pytest.approx(expected, rel=1e-3))
        assert ("reliability_uncalibrated" in made.details()) == (temperature != 1)
