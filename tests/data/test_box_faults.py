"""What is wrong with boxes: listed and left out, or one clear line; hostile files are bounded."""

import json
import time
import tracemalloc

import annotated
import numpy as np
import pytest
from annotated import TRUTH, found
from PIL import Image

from mobilenets.data import rle
from mobilenets.data.annotations.measure import METHODS, TRANSPOSED, Measure
from mobilenets.data.annotations.open import open_boxes
from mobilenets.errors import UserError

NAN, INFINITY = float("nan"), float("inf")


def opened(tmp_path, change=lambda _: None, **how):
    """COCO's JSON of the small images, changed."""
    annotated.images(tmp_path / "photos", **how)
    value = annotated.coco()
    change(value)
    (tmp_path / "boxes.json").write_text(json.dumps(value))
    return open_boxes(str(tmp_path))


def boxed(bbox):
    return lambda v: v["annotations"][0].update(bbox=bbox)


def set_size(name, width, height, scale=(1.0, 1.0)):
    """Say that an image is of another size; its boxes are scaled."""

    def change(value):
        image = next(i for i in value["images"] if i["file_name"] == name)
        image.update(width=width, height=height)
        for a in value["annotations"]:
            if a["image_id"] == image["id"]:
                x, y, w, h = a["bbox"]
                a["bbox"] = [x * scale[0], y * scale[1], w * scale[0], h * scale[1]]
                a["area"] *= scale[0] * scale[1]

    return change


@pytest.mark.parametrize(
    ("bbox", "kind"),
    [
        ([5, 5, 0, 8], "degenerate"), ([5, 5, 8, 0], "degenerate"), ([5, 5, -3, 8], "degenerate"),
        ([NAN, 5, 3, 8], "degenerate"), ([5, 5, INFINITY, 8], "degenerate"), ([5, 5, 3], "degenerate"),
        ("5 5 3 8", "degenerate"), ([5, 5, "3", None], "degenerate"), ([1e300, 5, 3, 8], "degenerate"),
        ([[5], 5, 3, 8], "degenerate"), (None, "degenerate"), ([True, 5, 3, 8], "degenerate"),
        ([70, 5, 3, 8], "outside"), ([-30, 5, 10, 8], "outside"),
        ([60, 40, 30, 30], "clipped"), ([-5, -5, 20, 20], "clipped"), ([30, 10, 30, 30], "duplicate"),
    ],
)  # fmt: skip
def test_boxes_that_cant_be(bbox, kind, tmp_path):
    def change(value):
        boxed(bbox)(value)
        if kind == "duplicate":
            value["annotations"][0]["category_id"] = 3

    data = opened(tmp_path, change)
    assert {*data.faults} == {kind, "no_boxes"}
    assert data.faults[kind][0].startswith("photos/a.png: ")
    assert len(found(data)["a"]) == 2 - (kind in ("degenerate", "outside"))
    every = data.split("all").targets
    assert all((t.xyxy >= 0).all() and (t.xyxy <= [64, 48, 64, 48]).all() for t in every)
    assert all((t.xyxy[:, 2:] > t.xyxy[:, :2]).all() for t in every)
    assert any(kind in ("duplicate",) or "left out" in line or "clipped" in line for line in data.left_out)


def test_a_pixel_over_the_edge_is_a_rounding(tmp_path):
    data = opened(tmp_path, boxed([30, 10, 34.5, 38.9]))
    assert {*data.faults} == {"no_boxes"}
    assert found(data)["a"][0] == ("cat", 30, 10, 64, 48)


def test_what_is_nowhere_or_has_no_name(tmp_path):
    def change(value):
        value["annotations"][0]["category_id"] = 99
        value["annotations"][1]["image_id"] = 12345
        value["images"].append({"id": 1, "file_name": "gone.png", "width": 5, "height": 5})

    data = opened(tmp_path, change)
    (tmp_path / "photos" / "new.png").write_bytes((tmp_path / "photos" / "a.png").read_bytes())
    assert found(data)["a"] == []
    assert data.faults["missing"] == ("gone.png",)
    assert data.faults["unknown_class"] == ("photos/a.png: 99",)
    assert data.faults["unknown_image"] == ("annotation 2 of image 12345",)
    assert open_boxes(str(tmp_path)).faults["unannotated"] == ("photos/new.png",)
    assert "1 image in the annotations that isn't there, left out: gone.png" in data.left_out


def test_shares_where_pixels_are_meant(tmp_path):
    def change(value):
        for a in value["annotations"]:
            x, y, w, h = a["bbox"]
            a["bbox"] = [x / 64, y / 48, w / 64, h / 48]

    data = opened(tmp_path, change)
    assert found(data) == TRUTH
    assert data.left_out[0] == "all boxes are in shares of the image, from 0 to 1: read so"
    assert data.split("all").targets[0].area[0] > 5


def test_pixels_where_shares_are_meant(tmp_path):
    pytest.importorskip("yaml")
    root = annotated.write_yolo(tmp_path)
    for name, boxes in TRUTH.items():
        if boxes:
            (root / "labels" / f"{name}.txt").write_text(annotated.yolo_rows(boxes, size=(1, 1)))
    data = open_boxes(str(root))
    assert found(data) == TRUTH
    assert "boxes are in pixels, where YOLO text has shares of the image" in data.left_out[0]


def test_corners_where_sides_are_meant(tmp_path):
    def change(value):
        for a in value["annotations"]:
            x, y, w, h = a["bbox"]
            a["bbox"] = [max(x, 30), max(y, 25), max(x, 30) + min(w, 30), max(y, 25) + min(h, 20)]

    with pytest.raises(UserError, match="these look like x1, y1, x2, y2"):
        opened(tmp_path, change)


def test_no_boxes_at_all(tmp_path):
    with pytest.raises(UserError, match="no boxes in COCO JSON: 4 images of none"):
        opened(tmp_path, lambda v: v.update(annotations=[]))
    with pytest.raises(UserError, match="no boxes in COCO JSON: 6 boxes without width and height"):
        opened(tmp_path, lambda v: [a.update(bbox=[1, 1, 0, 0]) for a in v["annotations"]])


def test_one_class_and_ten_thousand_boxes(tmp_path):
    rng = np.random.default_rng(0)

    def change(value):
        value["categories"] = value["categories"][:1]
        corners = rng.uniform(0, 30, (10_000, 2)).round(3)
        boxes = [[x, y, 4.5, 3.5] for x, y in corners.tolist()]
        value["annotations"] = [{"id": i, "image_id": 100, "category_id": 3, "bbox": b} for i, b in enumerate(boxes)]

    since = time.monotonic()
    data = opened(tmp_path, change)
    assert time.monotonic() - since < 5
    assert data.labels == ("dog",)
    assert sorted(len(t) for t in data.split("all").targets) == [0, 0, 0, 10_000]


# ---- sizes, and what cameras turn


def test_another_size_in_the_same_proportions_is_scaled(tmp_path):
    data = opened(tmp_path, set_size("a.png", 640, 480, (10, 10)))
    assert found(data) == TRUTH
    assert data.faults["resized"] == ("photos/a.png (640x480, is 64x48)",)
    area = next(t for s in data.splits.values() for n, t in zip(s.names, s.targets, strict=True) if "a.png" in n).area
    assert area.tolist() == [256, 900]


def test_other_proportions(tmp_path):
    data = opened(tmp_path, set_size("a.png", 480, 500, (10, 10)))
    assert "a" not in found(data)
    assert data.faults["mismatched"] == ("photos/a.png (480x500, is 64x48)",)
    fits = opened(tmp_path, set_size("a.png", 300, 70))
    assert found(fits) == TRUTH
    assert fits.faults["misstated"] == ("photos/a.png (300x70, is 64x48)",)


@pytest.mark.parametrize("orientation", METHODS)
def test_points_turn_as_pillow_turns_pictures(orientation):
    picture = np.zeros((6, 9), np.uint8)
    picture[1, 2] = 255  # the pixel's middle is at x 2.5, y 1.5
    turned = np.asarray(Image.fromarray(picture).transpose(METHODS[orientation]))
    (y,), (x,) = np.nonzero(turned)
    size = Measure((9, 6), orientation)
    assert size.upright == turned.shape[::-1]
    assert size.turn(np.array([2.5, 1.5]), (9, 6)).tolist() == [x + 0.5, y + 0.5]


@pytest.mark.parametrize("orientation", [1, *METHODS])
def test_boxes_of_the_unturned_picture_turn_with_it(orientation, tmp_path):
    def change(value):
        shape = [[4, 8, 20, 8, 20, 24, 4, 24]]
        mask = np.zeros((48, 64), bool)
        mask[10:40, 30:60] = True
        value["annotations"][0]["segmentation"] = shape
        value["annotations"][1]["segmentation"] = rle.encode(mask)

    data = opened(tmp_path, change, orientation=orientation)
    target = next(t for s in data.splits.values() for n, t in zip(s.names, s.targets, strict=True) if "a.png" in n)
    image = data.split("all").rgb([n[-5] for n in data.split("all").names].index("a"))
    assert target.size == image.size
    if orientation in TRANSPOSED:
        assert len(data.faults["turned"]) == 4
        size = Measure((64, 48), orientation)
        corners = size.turn(target_corners(), (64, 48))
        np.testing.assert_allclose(target.xyxy[:, :2], corners.min(1))
        np.testing.assert_allclose(target.xyxy[:, 2:], corners.max(1))
    elif orientation > 1:
        assert len(data.faults["maybe_turned"]) == 4
    for box, mask in zip(target.xyxy.tolist(), target.masks, strict=True):
        assert rle.bounds(mask) == tuple(box)


def target_corners():
    return np.array([[[x1, y1], [x2, y2]] for _, x1, y1, x2, y2 in TRUTH["a"]], np.float64)


def test_boxes_of_the_upright_picture_stay(tmp_path):
    turned = {"a": [("cat", 5, 6, 40, 50)]}
    annotated.images(tmp_path / "photos", "a", orientation=6)
    (tmp_path / "boxes.json").write_text(json.dumps(annotated.coco(turned, size=(48, 64))))
    data = open_boxes(str(tmp_path))
    assert found(data) == turned
    assert data.faults == {}


def test_an_image_that_cant_be_read_is_left_to_the_check(tmp_path):
    annotated.images(tmp_path / "photos")
    (tmp_path / "photos" / "a.png").write_bytes(b"not a picture")
    value = annotated.coco()
    (tmp_path / "boxes.json").write_text(json.dumps(value))
    assert found(open_boxes(str(tmp_path))) == TRUTH  # its size is in the annotations
    for image in value["images"]:
        del image["width"]
    (tmp_path / "boxes.json").write_text(json.dumps(value))
    data = open_boxes(str(tmp_path))
    assert data.faults["unreadable"] == ("photos/a.png",)


# ---- hostile


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(images={"a": 1}), "images isn't a list"),
        (lambda v: v["images"].append(3), "the 5. entry is 3, not an object"),
        (lambda v: v["images"].append({"id": [1], "file_name": "x"}), "an image without an id and a file_name"),
        (lambda v: v["images"].append(v["images"][0]), "two images have the id 100"),
        (lambda v: v["annotations"].append([]), "not an object"),
        (lambda v: v.update(categories=[]), "no categories"),
        (lambda v: v["categories"].append({"id": 4}), "a category without an id and a name"),
        (lambda v: v["categories"].append({"id": 3, "name": "cow"}), "two categories have the id 3"),
        (lambda v: v["categories"].append({"id": 4, "name": "cat"}), "two classes are called 'cat'"),
        (lambda v: v["categories"].append({"id": 4, "name": "c\nt"}), "has no name that can be shown"),
        (lambda v: [i.update(file_name="../../../etc/passwd") for i in v["images"]], "none of its images is there"),
    ],
)
def test_json_that_is_no_coco(change, message, tmp_path):
    with pytest.raises(UserError, match=message) as e:
        opened(tmp_path, change)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "shape",
    [
        {"size": [48, 64], "counts": [10**18]},
        {"size": [48, 64], "counts": [-1, 3073]},
        {"size": [48, 64], "counts": "oooooooooooooooo"},
        {"size": [10**9, 10**9], "counts": "0"},
        {"size": [48, 65], "counts": [3120]},
        {"size": "ab", "counts": [3072]},
        {"counts": [3072]},
        [[0, 0, 1]],
        [[NAN] * 6],
        [["a"] * 6],
        "text",
        7,
    ],
)
def test_masks_that_cant_be_leave_the_box(shape, tmp_path):
    data = opened(tmp_path, lambda v: v["annotations"][0].update(segmentation=shape))
    assert found(data) == TRUTH
    assert data.faults["bad_mask"][0].startswith("a.png: annotation 1 (")


def test_a_polygon_far_outside_is_bounded(tmp_path):
    data = opened(tmp_path, lambda v: v["annotations"][0].update(segmentation=[[0, 0, 1e8, 0, 0, 1e8]]))
    assert data.faults["bad_mask"] == ("photos/a.png (a polygon far outside of its image)",)
    assert found(data) == TRUTH
    masks = [t.masks for t in data.split("all").targets]
    assert all(m["size"] == [48, 64] for of_image in masks for m in of_image)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"images": ' * 5000, "nothing", '{"a": 1e999999999}', "1" * 5000, '"\\ud800"', "[]", "{}", ""],
)
def test_json_that_is_nothing(text, tmp_path):
    annotated.images(tmp_path)
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(UserError) as e:
        open_boxes(str(tmp_path))
    assert len(str(e.value)) < 600


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 20))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]><annotation>&l19;</annotation>', "XML that defines entities"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', "XML that defines"),
        ("<annotation>" + "<a>" * 5000, "nested over 100 deep"),
        ("<annotation><object></annotation>", "not readable as XML"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "not readable as XML"),
        ("<annotation><object><bndbox/></object></annotation>", "an object without a name"),
        (annotated.voc_xml("a", [("cat", "nan", "1e999", "", "x")]), "no boxes in Pascal VOC XML: 1 box without width"),
        (annotated.voc_xml("elsewhere", [("cat", 1, 2, 3, 4)]), "none of its images is there, as elsewhere.png"),
        ("<annotation/>", "no boxes in Pascal VOC XML: 1 image of none"),
    ],
)  # fmt: skip
def test_hostile_xml(text, message, tmp_path):
    pytest.importorskip("defusedxml")
    annotated.images(tmp_path, "a")
    (tmp_path / "a.xml").write_text(text)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as e:
            open_boxes(str(tmp_path))
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "text",
    [
        "names: [" * 3000,
        "names: *x",
        "names: &x [*x]",
        "names: {a: b}",
        "names: [1, [2]]",
        "names: !!python/object:x {}",
        "a: ]",
    ],
)
def test_hostile_yaml(text, tmp_path):
    pytest.importorskip("yaml")
    root = annotated.write_yolo(tmp_path, text)
    with pytest.raises(UserError) as e:
        open_boxes(str(root))
    assert "\n" not in str(e.value)


def test_an_image_that_may_be_two(tmp_path):
    annotated.images(tmp_path / "x")
    with pytest.raises(UserError, match=r"a\.png may be photos/a\.png or x/a\.png: say which"):
        opened(tmp_path)
