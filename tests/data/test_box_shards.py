"""Shards of images with boxes: what comes back is what went in; what is damaged is one line."""

import json
import shutil
import tarfile

import annotated
import numpy as np
import pytest

from mobilenets.commands.shards import shards
from mobilenets.data import checks
from mobilenets.data.annotations.open import open_boxes
from mobilenets.data.open import open_data
from mobilenets.data.shard_reader import Names
from mobilenets.errors import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Boxes with masks, one a crowd, in four images."""
    root = tmp_path_factory.mktemp("boxes")
    annotated.images(root / "photos", suffix=".jpg")
    value = annotated.coco(suffix=".jpg")
    for i, one in enumerate(value["annotations"]):
        x, y, w, h = one["bbox"]
        one["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
        one["iscrowd"], one["area"] = i % 2, 7.25 + i
    (root / "boxes.json").write_text(json.dumps(value))
    return root


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "out"
    return shards(str(source), out, task="detect", shard_mb=0.003, workers=1)


def by_name(data):
    return {n.split("/")[-1]: t for s in data.splits.values() for n, t in zip(s.names, s.targets, strict=True)}


def test_boxes_come_back(source, written):
    first, again = open_boxes(str(source)), open_boxes(str(written.out))
    assert len(written.splits["train"]) > 1
    assert again.labels == first.labels
    assert again.category_ids == first.category_ids
    assert {k: len(s) for k, s in again.splits.items()} == {"train": 3, "val": 1}
    for name, target in by_name(first).items():
        got = by_name(again)[name]
        for what in ("xyxy", "classes", "crowd", "area", "ids"):
            if len(target):  # of none, there are no ids to keep
                np.testing.assert_array_equal(getattr(got, what), getattr(target, what), what)
        assert got.size == target.size
        assert [*got.masks] == [*target.masks]
    split = again.splits["train"]
    assert split.rgb(0).size == split.targets[0].size
    found = checks.scan(again)
    assert found.boxes == {k: sum(map(len, s.targets)) for k, s in again.splits.items()}
    assert found.images == {"train": 3, "val": 1}


def test_beside_each_image_is_its_json(written):
    with tarfile.open(sorted(written.out.glob("train-*.tar"))[0]) as tar:
        names = tar.getnames()
        assert {n.rpartition(".")[2] for n in names} == {"jpg", "json"}
        said = json.load(tar.extractfile(names[1]))
    assert set(said) >= {"size", "boxes", "classes"}


def test_boxes_shrink_with_their_image(source, tmp_path):
    made = shards(str(source), tmp_path / "out", task="detect", short_side=32, workers=1)
    data = open_boxes(str(made.out))
    image, target = data.splits["train"].rgb(0), data.splits["train"].targets[0]
    assert image.size == target.size == (43, 32)
    whole = by_name(open_boxes(str(source)))["b.jpg"]
    np.testing.assert_allclose(by_name(data)["b.jpg"].xyxy, whole.xyxy * np.array([43 / 64, 32 / 48] * 2), rtol=1e-5)


def test_each_task_reads_its_own(written, write_images, tmp_path):
    with pytest.raises(UserError, match="shards of images with boxes: --task detect reads them"):
        open_data(str(written.out))
    classes = shards(str(write_images(tmp_path / "photos", {"cat": 3, "dog": 3})), tmp_path / "out", workers=1)
    with pytest.raises(UserError, match="shards of images with a class each, and no boxes"):
        open_boxes(str(classes.out))
    with pytest.raises(UserError, match="unknown task 'detec': did you mean 'detect'"):
        shards("x", tmp_path / "other", task="detec")


@pytest.mark.parametrize(
    "boxes",
    [
        '{"size": [64, 48], "boxes": [[0, 0, 1, 1]], "classes": [9]}',
        '{"size": [64, 48], "boxes": [[0, 0, 1, 1]], "classes": [0, 1]}',
        '{"size": [64, 48]}',
        "[]",
        "[" * 100_000,
        "",
    ],
)
def test_a_damaged_table_is_one_line(boxes, written, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(written.out, out)
    with np.load(out / "val.npz") as t:
        table = {**t}
    table["boxes"], table["target"] = Names.join([boxes]), np.array([1])
    np.savez(out / "val.npz", **table)
    with pytest.raises(UserError, match="its index isn't one of shards, or is damaged") as e:
        open_boxes(str(out))
    assert len(str(e.value)) < 400
