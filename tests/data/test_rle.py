"""Run lengths and polygons: COCO's text, COCO's pixels."""

import numpy as np
import pytest

from mobilenets.data import rle


def drawn(seed, height=23, width=31):
    rng = np.random.default_rng(seed)
    return rng.random((height, width)) < rng.random()


@pytest.mark.parametrize("seed", range(20))
def test_a_mask_comes_back(seed):
    mask = drawn(seed)
    made = rle.encode(mask)
    assert (rle.decode(made) == mask).all()
    assert rle.area(made) == mask.sum()
    counts = rle.from_text(made["counts"])
    assert rle.of_counts(counts.tolist(), *mask.shape) == made
    assert rle.to_text(counts) == made["counts"]


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3)])
def test_empty_and_full(fill, shape):
    made = rle.encode(np.full(shape, fill))
    assert (rle.decode(made) == fill).all()
    assert rle.bounds(made) == ((0, 0, shape[1], shape[0]) if fill else (0, 0, 0, 0))


def test_the_text_is_cocos():
    mask = np.zeros((3, 4), bool)
    mask[1, 1:3] = True  # counts 4 1 2 1 4: the fourth is 1 - 1, the fifth 4 - 2
    assert rle.encode(mask) == {"size": [3, 4], "counts": "41202"}
    assert rle.from_text(rle.to_text(np.array([100_000, 5, 3, 70_000, 1]))).tolist() == [100_000, 5, 3, 70_000, 1]


@pytest.mark.parametrize("seed", range(5))
def test_polygons_are_pycocotools(seed):
    tools = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(seed)
    for _ in range(100):
        height, width = (int(n) for n in rng.integers(1, 60, 2))
        polygons = [rng.uniform(-20, 80, (int(rng.integers(3, 9)), 2)) for _ in range(rng.integers(1, 4))]
        theirs = tools.merge(tools.frPyObjects([p.ravel().tolist() for p in polygons], height, width))
        ours = rle.of_polygons(polygons, height, width)
        assert ours["counts"].encode() == theirs["counts"]
        x1, y1, x2, y2 = rle.bounds(ours)
        assert tools.toBbox(theirs).tolist() == [x1, y1, x2 - x1, y2 - y1]


def test_polygons_as_recorded():
    """As pycocotools 2.0.11 answers: frPyObjects, and merge of both, on 10 rows and 12 columns."""
    one = np.array([[1.2, 1.1], [8.7, 2.3], [7.9, 7.6], [2.2, 6.4]])
    two = np.array([[-3, 2], [5.5, -2], [14, 6.6], [4.1, 9.3], [4, 4]])
    assert rle.of_polygons([one], 10, 12)["counts"] == ";283N0O00000000Mo0"
    assert rle.of_polygons([two], 10, 12)["counts"] == "037001O005K0000O2O1O1O1NM"
    assert rle.of_polygons([one, two], 10, 12)["counts"] == "037003M1O2N0000O2O1O1O1NM"


def test_a_polygons_pixels():
    square = np.array([[2, 1], [6, 1], [6, 4], [2, 4]], np.float64)
    mask = rle.decode(rle.of_polygons([square], 8, 10))
    assert mask.sum() == 12
    assert mask[1:4, 2:6].all()
    assert rle.polygon_area([square]) == 12
    beside = square + np.array([4, 0])  # they share an edge: no pixel is in both, none between is in neither
    other = rle.decode(rle.of_polygons([beside], 8, 10))
    assert not (mask & other).any()
    assert rle.area(rle.of_polygons([square, beside], 8, 10)) == 24
    assert rle.area(rle.of_polygons([square, square + 1], 8, 10)) == 12 + 12 - 6
    assert rle.area(rle.of_polygons([], 8, 10)) == 0
    assert rle.area(rle.of_polygons([square - 100], 8, 10)) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rle.decode({"size": [3, 4], "counts": "41203"}), "of 13 pixels in a mask of 12"),
        (lambda: rle.decode({"size": [30000, 30000], "counts": "4"}), "a mask of 30000x30000"),
        (lambda: rle.decode({"size": [3, 4], "counts": "é"}), "run lengths"),
        (lambda: rle.from_text("P"), "no run lengths"),
        (lambda: rle.from_text("oooooooooooo0"), "can't be"),
        (lambda: rle.decode({"size": [2, 2], "counts": rle.to_text(np.array([5, -1]))}), "can't be"),
        (lambda: rle.of_counts([1, 2.5], 1, 3), "can't be"),
        (lambda: rle.of_counts([True, 2], 1, 3), "can't be"),
        (lambda: rle.of_counts([0] * 100, 1, 3), "can't be"),
        (lambda: rle.of_counts([10**30], 1, 3), "can't be"),
        (lambda: rle.of_polygons([np.array([[0, 0], [1e9, 0], [0, 1e9]])], 5, 5), "far outside"),
        (lambda: rle.of_polygons([np.array([[0, 0], [np.nan, 0], [0, 1]])], 5, 5), "far outside"),
    ],
)
def test_what_can_be_no_mask(make, message):
    with pytest.raises(ValueError, match=message):
        make()
