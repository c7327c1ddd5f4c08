"""COCO's average precision: against its own tool, and by hand."""

import contextlib
import importlib.util
import io
import sys

import numpy as np
import pytest

from mobilenets.errors import UserError
from mobilenets.tasks.detect.decode import Found
from mobilenets.tasks.detect.scoring import NUMBERS, Evaluation, scorer

pytest.importorskip("faster_coco_eval")


def random_case(rng: np.random.Generator, labels: int) -> tuple[Found, tuple[np.ndarray, ...]]:
    """An image's objects of all sizes, some of them crowds, and answers: near them, doubled, of other classes, wild."""
    m = int(rng.integers(0, 9))
    low = rng.uniform(0, 300, (m, 2))
    boxes = np.concatenate([low, low + rng.uniform(4, 200, (m, 2)) ** rng.uniform(0.6, 1, (m, 1))], 1)
    classes, crowd = rng.integers(0, labels, m), rng.random(m) < 0.15
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1) * rng.uniform(0.3, 1, m)
    n = int(rng.integers(0, 130))
    which = rng.integers(0, max(m, 1), n)
    near = boxes[which] + rng.normal(0, 8, (n, 4)) if m else rng.uniform(0, 400, (n, 4))
    near = np.concatenate([near[:, :2], np.maximum(near[:, 2:], near[:, :2] + 1)], 1)
    told = np.where(rng.random(n) < 0.8, classes[which] if m else 0, rng.integers(0, labels, n))
    scores = np.round(rng.random(n), 2)  # some are the same
    order = np.argsort(-scores, kind="stable")
    found = Found(near[order].astype(np.float32), scores[order].astype(np.float32), told[order].astype(np.int64))
    return found, (boxes, classes, crowd, area)


def test_the_numbers_are_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    rng, labels = np.random.default_rng(0), [f"label {i}" for i in range(5)]
    ours = Evaluation(labels)
    for _ in range(60):
        found, truth = random_case(rng, len(labels))
        ours.add(found, *truth)
    got, each = ours.result()
    with contextlib.redirect_stdout(io.StringIO()):
        true = coco.COCO()
        images, categories = (
            [{"id": i + 1} for i in range(60)],
            [{"id": i + 1, "name": n} for i, n in enumerate(labels)],
        )
        true.dataset = {"images": images, "annotations": ours.there, "categories": categories}
        true.createIndex()
        how = cocoeval.COCOeval(true, true.loadRes([dict(d) for d in ours.said]), "bbox")
        how.evaluate()
        how.accumulate()
        how.summarize()
    np.testing.assert_allclose([got[n] for n in NUMBERS], 100 * how.stats, atol=1e-6)
    assert any(a["iscrowd"] for a in ours.there)
    assert max(np.bincount([d["image_id"] for d in ours.said])) > 100
    for k, one in enumerate(each):
        theirs = how.eval["precision"][:, :, k, 0, -1]
        assert one.ap == pytest.approx(100 * theirs[theirs > -1].mean(), abs=1e-6)


def boxes(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def test_by_hand() -> None:
    """Two objects, one found and one wrong answer between: precision 1 to a recall of one half, then none."""
    ours = Evaluation(["a", "b"])
    found = Found(boxes((0, 0, 50, 50), (200, 200, 250, 250)), np.array([0.9, 0.8], np.float32), np.array([0, 0]))
    truth = boxes((0, 0, 50, 50), (100, 100, 150, 150))
    ours.add(found, truth, np.array([0, 0]), np.array([False, False]), np.array([2500.0, 2500.0]))
    numbers, each = ours.result()
    assert numbers["ap"] == pytest.approx(100 * 51 / 101)  # recalls 0 to .5
    assert numbers["ap"] == pytest.approx(numbers["ap50"])
    assert np.isnan(numbers["ap_small"])
    assert numbers["ar1"] == numbers["ar100"] == pytest.approx(50)
    assert np.isnan(each[1].ap)
    assert each[0].objects == 2


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"a detector's score needs faster-coco-eval: pip install 'mobilenets\[detect"):
        scorer()


def test_nothing_to_find_is_no_number() -> None:
    ours = Evaluation(["a"])
    none = boxes()
    ours.add(Found(none, np.zeros(0, np.float32), np.zeros(0, np.int64)), none, *(np.zeros(0, int) for _ in range(3)))
    numbers, _ = ours.result()
    assert all(np.isnan(v) for v in numbers.values())
