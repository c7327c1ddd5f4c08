"""The parts of a detector that are arithmetic: anchors, coder, matching, suppression; each against another way."""

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms, box_iou

from mobilenets.arch import detectors
from mobilenets.errors import UserError
from mobilenets.model.images import Preprocess
from mobilenets.tasks.detect import coder, decode
from mobilenets.tasks.detect.anchors import best_overlaps, centres_and_sizes, corners, fit_line, fitted, overlaps
from mobilenets.tasks.detect.config import Anchors, Coder, Config, Suppression
from mobilenets.tasks.detect.matcher import BACKGROUND, match, within
from mobilenets.tasks.detect.mosaic import Mosaic


def config(labels: int = 3, **changes: object) -> Config:
    anchors = Anchors(((4, 5), (2, 2)), (((0.2, 0.3),), ((0.5, 0.5), (0.4, 0.7))))
    names = tuple(f"label {i}" for i in range(labels))
    return Config(
        **{"labels": names, "family": "ssdlite", "background": True, "scores": "sigmoid", "anchors": anchors, **changes}
    )


def some_boxes(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.8, (count, 2))
    return np.concatenate([low, low + rng.uniform(0.05, 0.4, (count, 2))], 1).clip(0, 1).astype(np.float32)


def test_a_config_survives_json() -> None:
    made = config(suppression=Suppression(1e-8, 0.5, 10, 20), coder=Coder("xywh", (10, 10, 5, 5)))
    assert Config.of(made.to_json()) == made
    with_grid = Anchors(((1, 1),), (((0.1, 0.1),),), "tf-pyramid", grids=((0.0, 0.0, 0.1, 0.1),))
    assert Config.of(config(anchors=with_grid).to_json()).anchors == with_grid


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"anchors": {"maps": [[4, 4]], "boxes": []}}, "0 maps, and there are 1"),
        ({"anchors": {"maps": [[4, 4]], "boxes": [[[0.1, float("nan")]]]}}, "fractions of the input's"),
        ({"anchors": {"maps": [[40000, 40000]], "boxes": [[[0.1, 0.1]]]}}, "1,000,000 anchors"),
        ({"coder": {"order": "hwxy"}}, "unknown order of a box's numbers 'hwxy'"),
        ({"suppression": {"iou": -1}}, "not a suppression"),
        ({"suppression": {"speed": 1}}, "malformed"),
        ({"scores": "tanh"}, "unknown kind of scores 'tanh'"),
        ({"anchors": 3}, "malformed"),
    ],
)
def test_a_malformed_config_is_one_line(change: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Config.of({**config().to_json(), **change})


def test_anchors_lie_where_ssd_has_them() -> None:
    """TensorFlow's SSD300 V1: 1,917 anchors; the first and the last by hand."""
    arch = detectors.detector_arch("ssd", "v1", 1.0, 300)
    made = Config.of(detectors.detection_config(arch, ["a"], "ssd")).anchors
    every = centres_and_sizes(made)
    assert every.shape == (1917, 4)
    np.testing.assert_allclose(every[0], [0.5 / 19, 0.5 / 19, 0.1, 0.1], atol=1e-6)
    np.testing.assert_allclose(every[3 * 19 + 1], [0.5 / 19, 1.5 / 19, 0.2 * 2**0.5, 0.2 / 2**0.5], atol=1e-6)
    np.testing.assert_allclose(every[-1], [0.5, 0.5, 0.95**0.5, 0.95**0.5], atol=1e-6)
    clipped = centres_and_sizes(Anchors(made.maps, made.boxes, clip=True))
    assert corners(clipped).min() >= 0
    assert corners(clipped).max() <= 1 + 1e-6


def test_overlaps_are_torchvisions() -> None:
    a, b = some_boxes(20), some_boxes(30, 1)
    np.testing.assert_allclose(overlaps(a, b), box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy(), atol=1e-6)
    assert overlaps(np.zeros((1, 4), np.float32), b).max() == 0


@pytest.mark.parametrize("order", ["xywh", "yxhw"])
def test_decoding_undoes_encoding(order: str) -> None:
    how = Coder(order, (10, 10, 5, 5))
    every = centres_and_sizes(config().anchors)
    boxes = some_boxes(len(every))
    centred = torch.from_numpy(np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1))
    offsets = coder.encode(centred, torch.from_numpy(every.copy()), how).numpy()
    np.testing.assert_allclose(coder.decode(offsets, every, how), boxes, atol=1e-5)
    moved = coder.decode(np.zeros_like(offsets) + np.array([10, 0, 0, 0], np.float32), every, how) - corners(every)
    assert moved[:, 0 if order == "xywh" else 1] == pytest.approx(every[:, 2 if order == "xywh" else 3], abs=1e-5)


def test_every_object_has_an_anchor() -> None:
    anchors = torch.from_numpy(centres_and_sizes(config().anchors).copy())
    tiny = torch.tensor([[0.11, 0.13, 0.01, 0.01]])  # overlaps none by a half
    exact = anchors[7:8]
    index = match(torch.cat([tiny, exact]), anchors)
    assert index[7] == 1
    assert index[0] == 0
    assert (index == 0).sum() == 1
    assert set(index.tolist()) <= {BACKGROUND, 0, 1}
    assert match(torch.zeros(0, 4), anchors).eq(BACKGROUND).all()
    twice = match(torch.cat([exact, exact * torch.tensor([1, 1, 0.95, 1])]), anchors)
    assert twice[7] == 0  # whose it fits better
    assert within(anchors, torch.tensor([[0.5, 0.5, 2.0, 2.0]])).all()
    assert not within(anchors, torch.zeros(0, 4)).any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("least", "most"), [(0.0, 100), (0.3, 100), (0.0, 7)])
def test_suppression_is_torchvisions_class_by_class(seed: int, least: float, most: int) -> None:
    """Also where the first candidates aren't enough: nearly all boxes overlap."""
    made = config(suppression=Suppression(least, 0.45, 100, most))
    rng = np.random.default_rng(seed)
    anchors = np.tile(np.array([[0.5, 0.5, 0.4, 0.4]], np.float32), (400, 1))
    offsets = rng.normal(0, 3 if seed % 2 else 0.3, (400, 4)).astype(np.float32)
    scores = rng.permutation(np.linspace(0.01, 0.99, 1200)).reshape(400, 3).astype(np.float32)
    got = decode.suppressed(offsets, scores, anchors, made)
    boxes = torch.from_numpy(coder.decode(offsets, anchors, made.coder)).repeat_interleave(3, 0)
    flat, classes = torch.from_numpy(scores).flatten(), torch.arange(3).repeat(400)
    sized = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1) & (flat >= least)
    keep = sized.nonzero()[:, 0]
    keep = keep[batched_nms(boxes[keep], flat[keep], classes[keep], 0.45)][:most]
    assert len(got) == len(keep) > 0
    np.testing.assert_array_equal(got.classes, classes[keep].numpy())
    np.testing.assert_allclose(got.boxes, boxes[keep].clamp(0, 1).numpy(), atol=1e-6)
    np.testing.assert_allclose(got.scores, flat[keep].numpy())


def test_no_more_of_a_class_than_asked_for() -> None:
    made = config(suppression=Suppression(0.0, 1.0, 5, 100))
    anchors = centres_and_sizes(made.anchors)
    scores = np.random.default_rng(0).uniform(0.1, 1, (len(anchors), 3)).astype(np.float32)
    got = decode.suppressed(np.zeros((len(anchors), 4), np.float32), scores, anchors, made)
    assert np.bincount(got.classes).tolist() == [5, 5, 5]


def test_finished_boxes_are_taken_as_they_come() -> None:
    boxes = np.array([[[0, 0, 0.5, 0.5], [0.1, 0.1, 0.2, 0.3], [0, 0, 0, 0]]], np.float32)
    outputs = {
        "boxes": boxes, "scores": np.array([[0.9, 0.4, 0]], np.float32),
        "classes": np.array([[1.0, 0.0, 0.0]], np.float32), "count": np.array([2.0], np.float32),
    }  # fmt: skip
    (one,) = decode.found(outputs, None)
    assert one.classes.tolist() == [1, 0]
    (placed,) = decode.on_images(iter([one]), Preprocess(64, crop=1.0, framing="stretch"), [(200, 100)])
    np.testing.assert_allclose(placed.boxes, [[0, 0, 100, 50], [20, 10, 40, 30]], atol=1e-4)
    (barred,) = decode.on_images(iter([one]), Preprocess(64, crop=1.0, framing="letterbox"), [(200, 100)])
    np.testing.assert_allclose(barred.boxes[0], [0, 0, 100, 50], atol=1e-4)  # above is a bar


def test_fitted_anchors_fit_better() -> None:
    """Tall, narrow objects of two sizes, as people are."""
    rng = np.random.default_rng(0)
    sizes = np.array([[0.09, 0.36], [0.24, 0.8]])[rng.integers(0, 2, 200)] * rng.uniform(0.9, 1.1, (200, 2))
    low = rng.uniform(0, 1, (200, 2)) * (1 - sizes)
    boxes = np.concatenate([low, low + sizes], 1).astype(np.float32)
    arch = detectors.detector_arch("ssdlite", "v2", 0.35, 160)
    made = Config.of(detectors.detection_config(arch, ["a"], "ssdlite")).anchors
    after = fitted(made, boxes)
    assert after.convention == "fitted"
    assert after.boxes[-1] == made.boxes[-1]  # nothing is as large as that map's
    assert best_overlaps(after, boxes).mean() > best_overlaps(made, boxes).mean() + 0.02
    assert fitted(made, boxes) == after
    mean_before, mean_after, line = fit_line(made, after, boxes)
    assert mean_after > mean_before
    assert line.startswith("anchors fitted to 200 boxes: mean best IoU 0.")


def test_a_mosaic_of_four() -> None:
    """Each quarter is one of the images, made smaller, and its boxes are with it."""
    images = torch.arange(1.0, 7).view(6, 1, 1, 1).expand(6, 3, 33, 40).contiguous() * 20
    each = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.1, 0.1, 0.01, 0.01]])
    targets = [{"boxes": each, "labels": torch.tensor([i, 9]), "crowd": torch.tensor([False, False])} for i in range(6)]
    out, moved = Mosaic(1.0)(images, targets)
    assert out.shape == images.shape
    for picture, one in zip(out, moved, strict=True):
        assert one["boxes"].shape == (4, 4)  # the small ones are gone
        for (x, y, w, _), label in zip(one["boxes"].tolist(), one["labels"].tolist(), strict=True):
            assert picture[:, int(y * 33), int(x * 40)].unique().item() == pytest.approx(20 * (label + 1), abs=1e-3)
            assert w == pytest.approx(0.25)
    assert Mosaic(0.0)(images, targets)[0] is images
