"""Large images in tiles: where these lie, and how what is found in them is told once."""

import itertools

import numpy as np
import pytest
from PIL import Image

import mobilenets
from mobilenets.arch import detectors
from mobilenets.arch.detectors import two_stage
from mobilenets.arch.rows import Conv
from mobilenets.arch.spec import Arch
from mobilenets.data import rle
from mobilenets.deploy.predict import Model
from mobilenets.deploy.tiles import Tiles
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.images import Preprocess
from mobilenets.tasks.detect.answers import Detection, Detections
from mobilenets.tasks.detect.config import Suppression
from mobilenets.tasks.detect.task import Detect
from mobilenets.tasks.detect.tiled import joined
from mobilenets.tasks.detect.two_stage import TwoStage

BLUE = (40, 60, 220)
HALF = Suppression(iou=0.5)


@pytest.mark.parametrize(
    ("size", "side", "overlap"), [((1000, 700), 300, 0.2), ((641, 640), 640, 0.0), ((90, 500), 100, 0.5)]
)
def test_tiles_cover_the_image_and_overlap_as_asked(size, side, overlap):
    whole, *tiles = Tiles(side, overlap).of(size)
    assert whole == (0, 0, *size)
    seen = np.zeros(size[::-1], bool)
    for left, top, right, bottom in tiles:
        assert (right - left, bottom - top) == (min(side, size[0]), min(side, size[1]))
        seen[top:bottom, left:right] = True
    assert seen.all()
    for axis in (0, 1):
        starts = sorted({t[axis] for t in tiles})
        assert all(b - a <= side * (1 - overlap) + 1 for a, b in itertools.pairwise(starts))


def test_an_image_no_larger_than_a_tile_is_seen_once():
    assert Tiles(640).of((640, 200)) == [(0, 0, 640, 200)]


@pytest.mark.parametrize(("side", "overlap"), [(31, None), (64, 1.0), (64, -0.1), (64, float("nan")), (None, 0.2)])
def test_tiles_that_cannot_be(side, overlap):
    with pytest.raises(UserError):
        Tiles.asked(side, overlap)


def said(*found):
    return Detections(tuple(Detection("ab"[c], score, box, None, c) for c, score, box in found), 0.3)


def test_what_is_found_twice_is_told_once():
    """In an image of 200 x 100, in tiles of 100 that have 20 pixels in common."""
    tiles = [(0, 0, 200, 100), (0, 0, 100, 100), (80, 0, 180, 100), (100, 0, 200, 100)]
    answers = [
        said((0, 0.6, (60.0, 10.0, 150.0, 90.0))),  # larger than what tiles share: each of them has a part
        said((0, 0.9, (61.0, 10.0, 100.0, 90.0)), (1, 0.5, (82.0, 5.0, 98.0, 25.0))),
        said((1, 0.8, (2.0, 5.0, 18.0, 25.0)), (0, 0.7, (0.0, 11.0, 70.0, 90.0)), (0, 0.4, (2.0, 5.0, 18.0, 25.0))),
        said((1, 0.2, (50.0, 50.0, 99.0, 90.0))),
    ]
    got = joined(answers, tiles, (200, 100), HALF)
    assert [(d.label, d.score, d.box) for d in got.every] == [
        ("b", 0.8, (82.0, 5.0, 98.0, 25.0)),
        ("a", 0.6, (60.0, 10.0, 150.0, 90.0)),
        ("a", 0.4, (82.0, 5.0, 98.0, 25.0)),  # of another class than the first, and whole
        ("b", 0.2, (150.0, 50.0, 199.0, 90.0)),  # at the image's own edge nothing is cut
    ]
    assert len(got.boxes) == 3
    together = joined(answers, tiles, (200, 100), Suppression(iou=0.5, together=True))
    assert [(d.label, d.score) for d in together.every] == [("b", 0.8), ("a", 0.6), ("b", 0.2)]


def test_the_overlap_is_that_of_the_network():
    """Of a two-stage detector's boxes, not of its proposals."""
    one = detectors.two_stage_arch("faster-rcnn-fpn", "v1", 0.25, 64)
    config = {"family": "faster-rcnn-fpn", "labels": ["a"], "suppression": {"score": 0.1, "iou": 0.9}}
    task = TwoStage(Detect().options, config)
    card = Card(one, Preprocess(64, crop=1.0, framing="stretch"), task.head(one, config), "detect", config)
    assert task.suppression(card).iou == two_stage.FOUND_IOU


def test_what_only_a_cut_box_shows_stays_and_masks_move():
    inside = np.zeros((100, 100), bool)
    inside[10:20, 90:] = True
    one = Detection("a", 0.9, (90.0, 10.0, 100.0, 20.0), rle.encode(inside), 0)
    got = joined([Detections((one,)), Detections(())], [(50, 0, 150, 100), (100, 0, 200, 100)], (200, 100), HALF)
    (only,) = got.every
    assert only.box == (140.0, 10.0, 150.0, 20.0)
    mask = rle.decode(only.mask)
    assert mask.shape == (100, 200)
    assert mask[10:20, 140:150].all()
    assert mask.sum() == 100


class Blue:
    """An engine whose one box is where the input is blue, of a network of `card`."""

    name, concurrent = "blue", True

    def __init__(self, card):
        self.card = card

    def __call__(self, images):
        boxes = np.zeros((len(images), 1, 4), np.float32)
        side = images.shape[1]
        for n, image in enumerate(images):
            rows, columns = np.nonzero((image[..., 2] > 180) & (image[..., 0] < 90))
            if len(rows) > 3:  # what is smaller can't be seen
                boxes[n, 0] = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / side
        found = (boxes[..., 2] > 0).astype(np.float32)
        return {"boxes": boxes, "scores": found * 0.9, "classes": 0 * found, "count": found.sum(1)}


@pytest.fixture(scope="module")
def card():
    arch = Arch("small", 0.25, 64, 0, (Conv(16, stride=2), Conv(32, stride=2)))
    task = Detect()
    config = task.shaped({"labels": ["blue"]}, arch, None)
    return Card(arch, Preprocess(64, crop=1.0, framing="stretch"), task.head(arch, config), "detect", config)


def test_what_is_too_small_for_the_input_is_found_in_its_tile(card):
    pixels = np.full((600, 800, 3), 128, np.uint8)
    pixels[404:416, 610:622] = BLUE  # a pixel of the input
    whole = Model(Blue(card))
    assert not whole.predict(pixels).boxes
    tiled = Model(Blue(card), tiles=Tiles(160))
    said, bad, again = tiled.stream([pixels, b"no image", Image.fromarray(pixels)])
    (one,) = said.boxes
    assert np.allclose(one.box, (610, 404, 622, 416), atol=160 / 64)
    assert bad.error
    assert bad.answer is None
    assert (bad.image, again.boxes) == ("image 1", said.boxes)


def test_the_verb_takes_tiles(card, command, make_bundle, tmp_path):
    bundle: Bundle = with_random_weights(card)
    bundle.save(tmp_path / "det")
    Image.new("RGB", (200, 120), BLUE).save(tmp_path / "one.png")
    run = command("predict", tmp_path / "det", tmp_path / "one.png", "--tiles", "100", "--overlap", ".25", "--json")
    assert run.code == 0, run.err
    (said,) = mobilenets.predict(tmp_path / "det", tmp_path / "one.png", tiles=100, overlap=0.25)
    assert mobilenets.load(tmp_path / "det", tiles=100, overlap=0.25).predict(tmp_path / "one.png") == said
    make_bundle("v1").save(tmp_path / "photos")
    for model, more, message in (("photos", (), "--tiles is of boxes"), ("det", ("--nearest", "1"), "--nearest")):
        run = command("predict", tmp_path / model, tmp_path / "one.png", "--tiles", "100", *more)
        assert run.code == 2
        assert message in run.err
