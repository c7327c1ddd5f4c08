import numpy as np
import pytest
import torch
from torch import nn

from mobilenets.compression import calibrate
from mobilenets.compression.calibrate import (
    BINS,
    CUT,
    SAMPLE,
    Histogram,
    LeastErrorObserver,
    MinMaxObserver,
    PercentileObserver,
)
from mobilenets.compression.quantize import measure_ranges, quantize_bundle
from mobilenets.compression.scheme import DEFAULT, Scheme
from mobilenets.errors import UserError
from mobilenets.model import reference as simulate
from mobilenets.model.bundle import Bundle
from mobilenets.model.encodings import affine, fold
from mobilenets.model.reference import FoldedNetwork


def fill(observer, values, batches=5):
    x = np.ascontiguousarray(values, np.float32)
    for part in np.array_split(x, min(batches, len(x))):
        observer.add(torch.from_numpy(part)[None])
    return observer


def values(outliers=True, seed=0):
    """Like a linear layer's output: a bell, and a few values far from it."""
    rng = np.random.default_rng(seed)
    return np.append(rng.normal(0.5, 1, 50_000), [25.0, -12.0] if outliers else [])


def rounding_error(x, low, high):
    step, zero = affine(low, high)
    levels = np.clip(np.rint(x / step) + float(zero), 0, 255)
    return (((levels - float(zero)) * step - x) ** 2).mean()


def test_a_histogram_grows_and_loses_no_count():
    h = Histogram("a")
    for scale in (1e-3, 5.0, 0.2, -300.0):  # the third is within what the second reached
        h.add(torch.full((2, 10), scale))
    assert h.counts.sum() == 80
    assert h.counts.shape == (2 * BINS,)
    assert (h.low, h.high) == (-300, 5)
    assert BINS * h.width / 2 < 300 <= BINS * h.width
    found = {float(m): int(n) for m, n in zip(h.middles, h.counts, strict=True) if n}
    assert sorted(found.values()) in ([20, 20, 20, 20], [20, 20, 40])  # 0.001 and 0.2 may share a bin
    for value in (1e-3, 5.0, 0.2, -300.0):
        assert min(abs(m - value) for m in found) <= h.width


def test_a_histogram_does_not_depend_on_the_order():
    x = values()
    a, b = fill(Histogram("a"), x), fill(Histogram("a"), x[::-1], batches=9)
    assert (a.width, a.low, a.high) == (b.width, b.low, b.high)
    assert a.counts.sum() == b.counts.sum() == len(x)
    assert np.abs(np.cumsum(a.counts) - np.cumsum(b.counts)).max() <= 2  # values at an edge, in float32


def test_large_maps_are_sampled_evenly():
    h = Histogram("a")
    h.add(torch.linspace(0, 1, 10 * SAMPLE + 3)[None])
    assert SAMPLE / 2 < h.counts.sum() < 2 * SAMPLE
    used = h.counts[BINS : BINS + int(1 / h.width)]
    assert used.min() > 0.8 * used.max()


def test_minmax_is_what_was_seen_and_zero():
    assert fill(MinMaxObserver("a"), values()).range() == (-12, 25)
    assert fill(MinMaxObserver("a"), [2, 3, 4]).range() == (0, 4)


def test_a_percentile_cuts_off_what_is_rare():
    x = values()
    low, high = fill(PercentileObserver("a"), x).range()
    h = fill(Histogram("a"), x)
    assert low == pytest.approx(np.quantile(x, CUT), abs=2 * h.width + 0.1)
    assert high == pytest.approx(np.quantile(x, 1 - CUT), abs=2 * h.width + 0.1)
    assert fill(PercentileObserver("a"), [1.0, 2.0, 3.0]).range() == (0, 3)


@pytest.mark.parametrize("x", [values(), values(False), np.abs(values()), np.minimum(np.maximum(values(), 0), 6)])
def test_the_least_error_is_least(x):
    low, high = fill(LeastErrorObserver("a"), x).range()
    found = rounding_error(x, low, high)
    candidates = [(p * x.min(), q * x.max()) for p in np.linspace(0.04, 1, 40) for q in np.linspace(0.04, 1, 40)]
    assert found <= 1.05 * min(rounding_error(x, *c) for c in candidates)
    assert min(x.min(), 0) <= low <= 0 <= high <= x.max()


def test_an_activation_that_is_all_zero():
    for observer in calibrate.OBSERVERS.values():
        assert fill(observer("a"), np.zeros(20)).range() == (0, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", calibrate.OBSERVERS)
def test_values_that_are_not_finite(method, bad):
    with pytest.raises(UserError, match="conv7 gives values that aren't finite"):
        fill(calibrate.OBSERVERS[method]("conv7"), [1.0, bad, 2.0])


# ---- of a network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", calibrate.OBSERVERS)
def test_ranges_do_not_depend_on_the_batch(make_bundle, pixels, monkeypatch, method):
    bundle = make_bundle("v2")
    network = FoldedNetwork(bundle.card.arch, bundle.card.graph, fold(bundle.card, bundle.tensors)).eval()
    found = []
    for size in (24, 7):
        monkeypatch.setattr(calibrate.batches, "__defaults__", (size,))
        found.append(calibrate.calibrate(network, bundle.card.preprocess, pixels, method))
    whole, parts = found
    assert set(whole) == {op.name for op in bundle.card.arch.ops}  # what comes after, answers, isn't rounded
    for name, (low, high) in whole.items():
        assert parts[name] == pytest.approx((low, high), rel=2e-3, abs=1e-3), name
        assert low <= 0 <= high


def test_ranges_are_those_of_the_tensors_between_the_layers(make_bundle, pixels):
    bundle = make_bundle("v2")
    ranges, model = measure_ranges(bundle, pixels, Scheme("minmax")).ranges, simulate.float_model(bundle)
    x = torch.from_numpy(bundle.card.preprocess.normalize(pixels))
    with torch.inference_mode():
        maps, pooled, logits = model.features(x), model.pooled(x), model(x)
    last = maps["stage5"]
    assert ranges["blocks.18.conv"] == pytest.approx((min(0.0, last.min().item()), last.max().item()), rel=1e-5)
    assert ranges["pool"][1] == pytest.approx(pooled.max().item(), rel=1e-5)
    assert ranges["classifier"] == pytest.approx((logits.min().item(), logits.max().item()), rel=1e-5)
    shortcut = nn.Sequential(*list(model.blocks)[:4])
    with torch.inference_mode():
        assert ranges["blocks.3.sum"][1] == pytest.approx(shortcut(x).max().item(), rel=1e-5)


def test_the_least_error_forgives_an_outlier(make_bundle, pixels):
    """One image that drives the logits far: the others' are rounded as if it weren't there."""
    bundle = make_bundle("v2")
    tensors = {k: v.copy() for k, v in bundle.tensors.items()}
    tensors["classifier.bias"][0] = 40  # a class's logit, far beyond all others
    spoiled = Bundle(bundle.card, tensors)
    ranges = {m: measure_ranges(spoiled, pixels, Scheme(m)).ranges["classifier"] for m in calibrate.OBSERVERS}
    assert ranges["minmax"][1] > 35
    assert ranges["mse"][1] <= ranges["minmax"][1]
    assert ranges["mse"][0] >= ranges["minmax"][0]


def test_an_unknown_calibration(make_bundle, pixels):
    with pytest.raises(UserError, match="unknown calibration 'mes': did you mean 'mse'"):
        quantize_bundle(make_bundle("v1"), pixels, Scheme("mes"))


def test_a_damaged_network_is_named(make_bundle, pixels):
    bundle = make_bundle("v1")
    tensors = {**bundle.tensors, "classifier.bias": np.full(10, np.nan, np.float32)}
    with pytest.raises(UserError, match="classifier gives values that aren't finite"):
        quantize_bundle(Bundle(bundle.card, tensors), pixels)


def test_no_hook_is_left_behind(make_bundle, pixels):
    bundle = make_bundle("v1")
    network = FoldedNetwork(bundle.card.arch, bundle.card.graph, fold(bundle.card, bundle.tensors)).eval()
    calibrate.calibrate(network, bundle.card.preprocess, pixels[:2])
    assert not any(layer._forward_hooks for layer in network.layers)
    assert DEFAULT.calibration in calibrate.OBSERVERS
