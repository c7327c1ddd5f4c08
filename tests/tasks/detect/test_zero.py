"""An AP of 0 is explained: each known cause, made on purpose, is named."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mobilenets.tasks.detect import zero
from mobilenets.tasks.detect.config import Anchors, Config
from mobilenets.tasks.detect.decode import Found
from mobilenets.tasks.detect.zero import Case

SHAPES = ((0.15, 0.3), (0.3, 0.15), (0.2, 0.2), (0.3, 0.3), (0.4, 0.2), (0.2, 0.4))
CONFIG = Config(("a", "b", "c"), "ssdlite", True, "sigmoid", Anchors(((12, 12),), (SHAPES,)))


def cases(change: Callable[[Found], Found] = lambda f: f, count: int = 12, scale: float = 1.0) -> list[Case]:
    """Images in which everything is found, but for the `change` of what is said."""
    rng, made = np.random.default_rng(0), []
    for _ in range(count):
        low = rng.uniform(0.02, 0.6, (3, 2))
        boxes = np.concatenate([low, low + rng.uniform(0.15, 0.35, (3, 2))], 1).astype(np.float32)
        classes = rng.integers(0, 2, 3)
        said = Found(boxes, np.array([0.9, 0.8, 0.7], np.float32), classes)
        made.append(Case(change(said), boxes * np.float32(scale), classes))
    return made


def columns(*order: int) -> Callable[[Found], Found]:
    return lambda f: replace(f, boxes=f.boxes[:, list(order)])


def sizes(f: Found) -> Found:
    return replace(f, boxes=np.concatenate([f.boxes[:, :2], f.boxes[:, 2:] - f.boxes[:, :2]], 1))


def centred(f: Found) -> Found:
    low, high = f.boxes[:, :2], f.boxes[:, 2:]
    return replace(f, boxes=np.concatenate([(low + high) / 2, high - low], 1))


def same_everywhere(f: Found) -> Found:
    box = np.array([[0.9, 0.9, 0.99, 0.99]], np.float32).repeat(3, 0)
    return replace(f, boxes=box, scores=np.full(3, 0.6, np.float32))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (columns(1, 0, 3, 2), "x and y are exchanged"),
        (sizes, "a corner and a size"),
        (centred, "a centre and a size"),
        (lambda f: replace(f, classes=f.classes + 1), "classes too high by one"),
        (lambda f: replace(f, classes=f.classes - 1), "classes too low by one"),
        (lambda f: replace(f, classes=np.full(3, 7)), "their classes aren't"),
        (lambda f: replace(f, boxes=f.boxes * 300), "they are in pixels"),
        (lambda f: f.some(slice(0)), "the background takes all"),
        (lambda f: replace(f, boxes=f.boxes[::-1] * 0 + 0.01, scores=f.scores / 100), "no score is above 0.009"),
        (same_everywhere, "the same one in every image"),
    ],
)
def test_a_cause_is_named(change: Callable[[Found], Found], said: str) -> None:
    assert said in zero.why(cases(change), CONFIG)


def test_boxes_of_another_scale_and_anchors_that_match_nothing() -> None:
    assert "in pixels, or relative" in zero.why(cases(scale=300), CONFIG)
    large = replace(CONFIG, anchors=Anchors(((2, 2),), (((0.9, 0.9),),)))
    assert "--anchors auto" in zero.why(cases(), large)
    assert zero.why([], CONFIG) == ""


def test_a_training_that_has_just_begun_is_given_time() -> None:
    def elsewhere(f: Found) -> Found:
        return replace(f, boxes=f.boxes[::-1] * np.float32(0.3), scores=np.full(3, 0.2, np.float32))

    assert "after 1 epoch that may be too early" in zero.why(cases(elsewhere), CONFIG, 1)
    assert "preprocessing" in zero.why(cases(elsewhere), CONFIG)
