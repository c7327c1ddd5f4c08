"""`data check`: what is found in a data set, as a table, as JSON, and on a contact sheet."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mobilenets
from mobilenets.data.annotations import faults

sys.path.append(str(Path(__file__).parents[1] / "data"))
import annotated


@pytest.fixture
def boxes(tmp_path):
    """COCO's JSON with a box without width, one half outside, and an image that isn't there."""
    root = annotated.write_coco(tmp_path / "set")
    value = annotated.coco()
    value["annotations"][0]["bbox"] = [5, 5, 0, 9]
    value["annotations"][1]["bbox"] = [50, 10, 40, 20]
    value["images"].append({"id": 7, "file_name": "gone.png", "width": 9, "height": 9})
    (root / "boxes.json").write_text(json.dumps(value))
    return root


def test_what_is_found(boxes, command):
    ran = command("data", "check", boxes, "--json")
    assert ran.code == 0
    said = ran.json
    assert (said["task"], said["form"], said["good"]) == ("detect", "COCO JSON", False)
    assert {k: len(v) for k, v in said["faults"].items()} == {
        "degenerate": 1,
        "clipped": 1,
        "missing": 1,
        "no_boxes": 1,
    }
    assert said["faults"]["degenerate"] == ["photos/a.png: 5, 5, 5, 14"]
    assert {k: v["images"] for k, v in said["splits"].items()} == {"train": 3, "val": 1}
    assert sum(v["boxes"] for v in said["splits"].values()) == 5 == said["objects"]["boxes"]
    assert said["objects"]["images_without"] == 1
    assert said["objects"]["small"] + said["objects"]["medium"] + said["objects"]["large"] == 5
    text = " ".join(command("data", "check", boxes).out.split())
    assert "1 box without width and height, or of no numbers, left out: photos/a.png: 5, 5, 5, 14" in text
    assert "nothing was found wrong" not in text


def test_good_data_is_said_to_be_good(tmp_path, command):
    root = annotated.write_coco(tmp_path / "set")
    ran = command("data", "check", root)
    assert "nothing was found wrong" in ran.out
    assert "1 image without boxes, kept" in ran.out
    assert command("data", "check", root, "--json").json["good"]


@pytest.mark.parametrize("name", ["sheet.png", "sheet.jpg", "sheet.html"])
def test_a_contact_sheet(boxes, command, tmp_path, name):
    out = tmp_path / name
    assert command("data", "check", boxes, "--sheet", out, "--images", 4).code == 0
    if name.endswith("html"):
        text = out.read_text()
        assert text.count("<img src=") == 4
        assert "photos/a.png" in text
        assert "without width and height" in text
        return
    pixels = np.asarray(Image.open(out))
    if name.endswith("png"):
        assert (pixels == (0xE6, 0x9F, 0x00)).all(-1).any()  # a dog's box
        assert (pixels == (0x56, 0xB4, 0xE9)).all(-1).any()  # a cat's
    assert pixels.shape[1] > 2 * 320


def test_masks_are_counted_and_drawn(tmp_path, command):
    """Triangles in the boxes: tinted inside, and not in the box's other corner."""
    root, value = annotated.write_coco(tmp_path / "set"), annotated.coco()
    plain = command("data", "check", root, "--sheet", tmp_path / "plain.png", "--json").json
    for one in value["annotations"]:
        x, y, w, h = one["bbox"]
        one["segmentation"] = [[x, y, x + w, y, x, y + h]]
    (root / "boxes.json").write_text(json.dumps(value))
    said = command("data", "check", root, "--sheet", tmp_path / "masks.png", "--json").json
    assert plain["objects"]["masks"] == 0
    assert said["objects"]["masks"] == said["objects"]["boxes"] == len(value["annotations"])
    assert f"{said['objects']['masks']} masks" in " ".join(command("data", "check", root).out.split())
    pixels = [np.asarray(Image.open(tmp_path / f"{n}.png")).astype(int) for n in ("plain", "masks")]
    changed = np.abs(pixels[0] - pixels[1]).max(-1) > 8
    assert 0 < changed.mean() < 0.5


def test_classes_are_looked_at_too(tmp_path, write_images, command):
    root = write_images(tmp_path / "photos", {"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2})
    (root / "train/cat/bad.png").write_bytes(b"no picture")
    said = command("data", "check", root, "--json").json
    assert said["task"] == "classify"
    assert not said["good"]
    assert "1 damaged image" in said["findings"][0]
    assert mobilenets.check_data(str(root)).found.totals == {"train": 8, "val": 4}


def test_positions_are_looked_at_too(tmp_path, write_images, command):
    root = write_images(tmp_path / "photos", {"here": 4})
    rows = [f"{p.relative_to(tmp_path)},{48 + i},16" for i, p in enumerate(sorted(root.rglob("*.png")))]
    table = tmp_path / "places.csv"
    table.write_text("\n".join(["file,lat,lon", *rows]))
    said = command("data", "check", table, "--task", "geolocate", "--json").json
    assert (said["task"], sum(v["images"] for v in said["splits"].values())) == ("geolocate", 4)
    table.write_text("\n".join(["file,lat,lon", *(r.replace(",48,", ",100,") for r in rows)]))
    assert "1 latitude beyond 90 degrees" in command("data", "check", table, "--task", "geolocate").line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--task", "detekt"), "unknown task 'detekt': did you mean 'detect'"),
        (("--images", 0), "images must be 1 or more"),
        (("--sheet", "x.gif"), "x.gif: a contact sheet is .html, .png"),
        (("--root", "x", "--seed", -1), "seed must be 0 or more"),
    ],
)
def test_what_cant_be_asked(boxes, command, line, message):
    ran = command("data", "check", boxes, *line)
    assert ran.code == 2
    assert message in ran.line


def test_every_kind_of_fault_has_words():
    source = Path(faults.__file__).parent
    used = {w for p in source.glob("*.py") for w in faults.KINDS if f'"{w}"' in p.read_text() and p.name != "faults.py"}
    assert used == {*faults.KINDS}
