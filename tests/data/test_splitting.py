"""Held-out images and folds: every class in its share, groups whole."""

import numpy as np
import pytest

from mobilenets.data.splitting import folds, in_whole_groups, limited


def drawn(seed, images=600, classes=4, groups=60):
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, images), rng.integers(0, groups, images)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shares", [(0.8, 0.2), (0.2,) * 5])
def test_groups_are_whole_and_classes_have_their_share(seed, shares):
    targets, groups = drawn(seed)
    part = in_whole_groups(targets, groups, shares, seed)
    for g in range(60):
        assert len({*part[groups == g].tolist()}) == 1
    for p, share in enumerate(shares):
        assert (part == p).mean() == pytest.approx(share, abs=0.03)
        for c in range(4):
            assert (part[targets == c] == p).mean() == pytest.approx(share, abs=0.06)


def test_a_group_of_one_class_larger_than_the_share_is_trained_on():
    targets, groups = np.array([0] * 10 + [1] * 10), np.array([0] * 10 + [*range(1, 11)])
    part = in_whole_groups(targets, groups, (0.8, 0.2), 0)
    assert (part[:10] == 0).all()
    assert (part[10:] == 1).sum() == 2


def test_folds_without_groups_spread_every_class_evenly():
    targets = np.repeat([0, 1, 2], [50, 7, 11])
    fold = folds(targets, None, 5, 3)
    assert sorted(np.bincount(fold)) == [13, 13, 14, 14, 14]
    for c, least in ((0, 10), (1, 1), (2, 2)):
        counts = np.bincount(fold[targets == c], minlength=5)
        assert counts.min() == least
        assert counts.max() <= least + 1
    assert (folds(targets, None, 5, 3) == fold).all()
    assert (folds(targets, None, 5, 4) != fold).any()


def test_a_smaller_limit_is_part_of_a_larger_one():
    targets, _ = drawn(1)
    few, more = limited(targets, 5, 7), limited(targets, 40, 7)
    assert {*few.tolist()} <= {*more.tolist()}
    assert np.bincount(targets[few]).tolist() == [5] * 4
    assert np.bincount(targets[more]).tolist() == [40] * 4
    assert len(limited(targets, 10_000, 7)) == len(targets)
    assert (limited(targets, 5, 8) != few).any()
