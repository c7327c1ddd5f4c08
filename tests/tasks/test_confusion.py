import json

import numpy as np
import pytest

from mobilenets.tasks.classify import Tally
from mobilenets.tasks.confusion import Confusion


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    true, given = rng.integers(0, 7, (2, 500))
    matrix = np.zeros((9, 9), int)
    np.add.at(matrix, (true, given), 1)
    return Confusion.of(true, given, 9), matrix


def test_sums_are_the_matrixs(drawn):
    m, dense = drawn
    off = dense - np.diag(np.diag(dense))
    assert np.array_equal(m.matrix, dense)
    assert np.array_equal(m.images, dense.sum(1))
    assert np.array_equal(m.answers, dense.sum(0))
    assert np.array_equal(m.right, np.diag(dense))
    assert np.array_equal(m.mistakes, off.sum(0) + off.sum(1))
    assert m.total == 500
    assert np.array_equal(m.among([6, 2, 8]), dense[np.ix_([6, 2, 8], [6, 2, 8])])


def test_json_is_as_large_as_its_images(drawn):
    m, dense = drawn
    assert np.array_equal(Confusion.from_json(json.loads(json.dumps(m.to_json()))).matrix, dense)
    assert np.array_equal(Confusion.from_json(dense.tolist()).matrix, dense)  # as it was written before
    few = Confusion.of(np.arange(3000), np.roll(np.arange(3000), 1), 100_000)
    assert len(json.dumps(few.to_json(), indent=2)) < 3000 * 40


@pytest.mark.parametrize(
    "damaged",
    [None, 3, "x", {}, {"classes": 2}, {"classes": "2", "cells": []}, {"classes": 2, "cells": ["0 2 1"]}, [[1, 2]],
     {"classes": 2, "cells": ["0 1"]}, {"classes": 2, "cells": ["0 1 x"]}, {"classes": 2, "cells": 3}, [[-1]],
     {"classes": 2, "cells": [4]}],
)  # fmt: skip
def test_what_is_none_is_a_value_error(damaged):
    with pytest.raises(ValueError, match=r"confusion matrix|int|unpack|array"):
        Confusion.from_json(damaged)


def test_no_images():
    empty = Tally(("a", "b")).compute("d", "val")
    assert (empty.count, empty.top1, empty.per_class, empty.confusion.total) == (0, 0.0, {}, 0)


def test_thousands_of_classes_take_no_more_room_than_images():
    tally = Tally(tuple(map(str, range(20_000))))
    scores = np.zeros((4, 20_000), np.float32)
    scores[:, 5] = 1
    tally.update({"probabilities": scores}, [5, 5, 6, 19_999])
    made = tally.compute("d", "val")
    assert made.top1 == 50
    assert made.confusion.to_json()["cells"] == ["5 5 2", "6 5 1", "19999 5 1"]
