"""Wrong labels, found by what networks say that weren't trained on them."""

import numpy as np
import pytest

from mobilenets.tasks.confident import suspects


def test_wrong_labels_are_found_the_surest_first():
    rng = np.random.default_rng(0)
    true = np.repeat([0, 1, 2], 100)
    p = rng.dirichlet(np.ones(3), 300) + 2.0 * np.eye(3)[true]
    p /= p.sum(1, keepdims=True)
    given = true.copy()
    wrong = rng.permutation(300)[:40]
    given[wrong] = (given[wrong] + 1) % 3
    found = suspects(p, given)
    assert {s.index for s in found} <= {*wrong.tolist()}
    assert len(found) > 20
    assert all(s.likely == true[s.index] and s.given == given[s.index] for s in found)
    margins = [s.margin for s in found]
    assert margins == sorted(margins, reverse=True)
    assert margins[0] == pytest.approx(p[found[0].index, found[0].likely] - p[found[0].index, found[0].given])


def test_nobody_is_suspected_where_the_network_agrees():
    assert suspects(np.eye(3)[[0, 1, 1, 2]], [0, 1, 1, 2]) == ()


def test_a_class_that_no_image_has_suspects_nothing():
    assert suspects(np.array([[0.1, 0.9], [0.6, 0.4]]), [0, 0]) == ()
