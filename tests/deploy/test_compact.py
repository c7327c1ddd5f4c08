"""Weights of few values, and of many zeros: the forms that files keep them in give the same numbers back."""

import numpy as np
import pytest

from mobilenets.deploy.compact import Palette, Sparse, is_sparse, palette, smallest


def back(p):
    rows = p.codes.reshape(len(p.tables), -1)
    return np.take_along_axis(p.tables, rows, 1).reshape(p.codes.shape)


@pytest.mark.parametrize(("levels", "bits"), [(2, 1), (3, 2), (8, 3), (15, 4), (33, 6), (256, 8)])
def test_codes_have_as_many_bits_as_there_are_values(levels, bits):
    rng = np.random.default_rng(levels)
    weights = rng.permutation(np.arange(32 * 64) % levels).reshape(32, 64, 1, 1).astype(np.float32) - 1.5
    found = palette(weights)
    assert (found.bits, found.tables.shape, found.codes.dtype) == (bits, (1, 2**bits), np.uint8)
    np.testing.assert_array_equal(back(found), weights)


def test_channels_of_other_sizes_have_tables_of_their_own():
    """As BatchNorm leaves codes, when it is folded in."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(16)[rng.integers(0, 16, (64, 256, 1, 1))] * rng.uniform(0.5, 2, (64, 1, 1, 1))
    weights = weights.astype(np.float16)
    found = smallest(weights)
    assert isinstance(found, Palette)
    assert (found.bits, found.tables.shape) == (4, (64, 16))
    assert found.nbytes == 64 * 256 // 2 + 64 * 16 * 2
    np.testing.assert_array_equal(back(found), weights)


def test_mostly_zeros():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((32, 64, 1, 1)).astype(np.float32)
    weights[rng.random(weights.shape) < 0.8] = 0
    found = smallest(weights)
    assert isinstance(found, Sparse)
    assert found.nbytes == 4 * np.count_nonzero(weights) + weights.size // 8
    whole = np.zeros_like(weights)
    whole[found.mask] = found.values
    np.testing.assert_array_equal(whole, weights)


def test_what_is_smaller_as_it_is_stays():
    """Many values; and few of them, whose tables would be larger: a depthwise channel has nine."""
    rng = np.random.default_rng(0)
    for weights in (rng.standard_normal((32, 512, 1, 1)), rng.standard_normal((64, 1, 3, 3))):
        assert smallest(weights) is weights
    assert palette(rng.standard_normal((32, 512, 1, 1))) is None


@pytest.mark.parametrize(("zeros", "half", "whole"), [(0.3, False, False), (0.4, False, True), (0.6, True, True)])
def test_zeros_that_pay_for_the_places_of_the_others(zeros, half, whole):
    weights = np.ones(1000, np.float32)
    weights[: int(1000 * zeros)] = 0
    assert is_sparse(weights) == whole
    assert is_sparse(weights.astype(np.float16)) == half


def test_nothing_but_zeros():
    """A list of nothing is no constant to most formats."""
    weights = np.zeros((4, 64, 1, 1), np.float32)
    assert not is_sparse(weights)
    found = smallest(weights)
    assert isinstance(found, Palette)
    assert not back(found).any()
