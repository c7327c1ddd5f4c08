"""What a detector gets wrong, by kind."""

import numpy as np
import pytest

from mobilenets.data.boxes import Boxes
from mobilenets.tasks.detect.answers import Detection
from mobilenets.tasks.detect.mistakes import mistakes

TRUE = Boxes.of([(10, 10, 50, 50), (60, 10, 90, 40)], [0, 1], (100, 100))
FOUND = Detection("a", 0.9, (10, 10, 50, 50), index=0), Detection("b", 0.8, (60, 10, 90, 40), index=1)


def test_what_is_right_is_no_mistake() -> None:
    assert mistakes(FOUND, TRUE) == ([], [(0, 0), (1, 1)])


@pytest.mark.parametrize(
    ("more", "kind", "true"),
    [
        (Detection("a", 0.5, (11, 10, 50, 50), index=0), "double", 0),
        (Detection("b", 0.5, (11, 10, 50, 50), index=1), "wrong class", 0),
        (Detection("a", 0.5, (35, 10, 75, 50), index=0), "badly placed", 0),
        (Detection("a", 0.5, (10, 60, 50, 99), index=0), "nothing there", None),
    ],
)
def test_each_kind_is_told(more: Detection, kind: str, true: int | None) -> None:
    wrong, right = mistakes((*FOUND, more), TRUE)
    assert [(m.kind, m.true, m.said) for m in wrong] == [(kind, true, more.index)]
    assert len(right) == 2


def test_objects_that_nothing_found_are_missed() -> None:
    wrong, right = mistakes(FOUND[:1], TRUE)
    assert [(m.kind, m.true, m.said) for m in wrong] == [("missed", 1, None)]
    assert right == [(0, 0)]
    assert [m.kind for m in mistakes((), TRUE)[0]] == ["missed", "missed"]


def test_an_object_of_another_class_is_not_missed_besides() -> None:
    other = Detection("a", 0.7, FOUND[1].box, index=0)
    wrong, right = mistakes((FOUND[0], other), TRUE)
    assert [(m.kind, m.true, m.said) for m in wrong] == [("wrong class", 1, 0)]
    assert right == [(0, 0)]


def test_an_answer_on_a_crowd_is_neither_right_nor_wrong() -> None:
    crowd = Boxes.of([(0, 0, 100, 100)], [0], (100, 100), crowd=np.array([True]))
    assert mistakes(FOUND[:1], crowd) == ([], [])
