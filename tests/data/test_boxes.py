"""The boxes of an image: subsets, other sizes, other numbers, and back from JSON."""

import json

import numpy as np
import pytest

from mobilenets.data import rle
from mobilenets.data.boxes import Boxes, Masks, presence
from mobilenets.data.splitting import folds, stratified

SQUARE = [np.array([[2, 1], [6, 1], [6, 4], [2, 4]], np.float64)]


def boxes(masks=True):
    dot = np.zeros((20, 30), bool)
    dot[5:9, 10:20] = True
    return Boxes.of(
        [[2, 1, 6, 4], [10, 5, 20, 9], [0.1, 0.2, 29.7, 20]], [2, 0, 2], (30, 20), crowd=[False, True, False],
        area=[12, 40, 300.25], ids=[7, 8, 9],
        masks=Masks([SQUARE, rle.encode(dot), rle.encode(~dot)], (30, 20)) if masks else None,
    )  # fmt: skip


def test_what_is_left_out_is_plain():
    made = Boxes.of([[0, 0, 2, 3]], [1], (10, 10))
    assert (made.area.tolist(), made.crowd.tolist(), made.masks, made.ids) == ([6], [False], None, None)
    none = Boxes.of([], [], (10, 10))
    assert (len(none), none.xyxy.shape, none.classes.dtype) == (0, (0, 4), np.int64)
    with pytest.raises(ValueError, match="1 boxes with other numbers"):
        Boxes.of([[0, 0, 2, 3]], [1, 2], (10, 10))


@pytest.mark.parametrize("keep", [[2, 0], np.array([True, False, True])])
def test_a_subset_keeps_what_belongs_together(keep):
    some = boxes().subset(keep)
    order = [2, 0] if isinstance(keep, list) else [0, 2]
    assert some.ids.tolist() == [[7, 8, 9][i] for i in order]
    assert some.area.tolist() == [[12, 40, 300.25][i] for i in order]
    assert [rle.area(m) for m in some.masks] == [[12, 40, 560][i] for i in order]
    assert len(boxes().subset([])) == 0


def test_boxes_follow_their_image():
    large = boxes().resized((60, 40))
    assert large.size == (60, 40)
    assert large.xyxy[0].tolist() == [4, 2, 12, 8]
    assert large.area[0] == 48
    assert [rle.area(m) for m in large.masks] == [48, 160, 2240]
    assert large.masks[1]["size"] == [40, 60]
    back = large.resized((30, 20))
    np.testing.assert_allclose(back.xyxy, boxes().xyxy, rtol=1e-6)
    wide = boxes(masks=False).resized((90, 20))
    np.testing.assert_allclose(wide.xyxy[1], [30, 5, 60, 9])


@pytest.mark.parametrize("masks", [True, False])
def test_json_and_back(masks):
    made = boxes(masks)
    back = Boxes.from_json(json.loads(json.dumps(made.to_json())))
    for name in ("xyxy", "classes", "crowd", "area", "ids"):
        np.testing.assert_array_equal(getattr(back, name), getattr(made, name), name)
    assert back.size == made.size
    assert (list(back.masks) == list(made.masks)) if masks else back.masks is None
    plain = Boxes.of([[0, 0, 2, 3]], [1], (10, 10)).to_json()
    assert set(plain) == {"size", "boxes", "classes"}


@pytest.mark.parametrize(
    "change",
    [
        {"size": [0, 5]}, {"size": [1 << 40, 5]}, {"size": "ab"}, {"boxes": [[0, 0, 1]]}, {"boxes": [[0, 0, 999, 3]]},
        {"boxes": [[float("nan"), 0, 1, 3]]}, {"classes": [-1]}, {"classes": [1, 2]}, {"area": [float("nan")]},
        {"masks": [{"size": [1, 1], "counts": "1"}]}, {"masks": [[[0, 0, 1e30, 4, 5, 6]]]}, {"masks": 3},
        {"boxes": [{}]}, {"ids": [1 << 90]},
    ],
)  # fmt: skip
def test_what_can_be_no_boxes(change):
    good = {"size": [10, 10], "boxes": [[0, 0, 2, 3]], "classes": [1]}
    assert len(Boxes.from_json(good)) == 1
    with pytest.raises((KeyError, TypeError, ValueError, OverflowError)):
        Boxes.from_json({**good, **change})


def many(count=200, classes=5):
    rng = np.random.default_rng(0)
    out = []
    for _ in range(count):
        n = int(rng.integers(0, 4))
        out.append(Boxes.of(np.tile([0, 0, 5, 5], (n, 1)), rng.integers(0, classes, n), (10, 10)))
    return out


def test_splits_hold_every_class_in_its_share():
    targets = many()
    held = presence(targets)
    assert held.shape == (200, 6)
    assert (held[:, 5] == [not len(t) for t in targets]).all()
    index = stratified(targets, 0.2, 3)
    assert len(index) == 40
    assert (index == stratified(targets, 0.2, 3)).all()
    np.testing.assert_allclose(held[index].sum(0) / held.sum(0), 0.2, atol=0.06)
    number = folds(targets, None, 4, 0)
    for k in range(4):
        np.testing.assert_allclose(held[number == k].sum(0) / held.sum(0), 0.25, atol=0.08)
