"""Downloads as they are unpacked: what is no class is told of before hours go into it."""

import time

import pytest

from mobilenets.data import checks
from mobilenets.data.doubts import class_of, classes_in_names, doubts
from mobilenets.data.open import open_data
from mobilenets.errors import UserError

BREEDS = [f"{b}_{i}" for b in ("Abyssinian", "great_pyrenees", "beagle") for i in range(6)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Abyssinian_12.jpg", "Abyssinian"), ("a/b/great_pyrenees_3.jpg", "great_pyrenees"), ("cat (3).png", "cat"),
        ("cat.17.jpg", "cat"), ("dog7.jpg", "dog"), ("0001.jpg", None), ("holiday.jpg", None), ("12_34.png", None),
        ("Große_Katze-1.jpg", "Große_Katze"),
    ],
)  # fmt: skip
def test_the_class_in_a_name(name, said):
    assert class_of(name) == said


def test_names_of_one_kind_say_no_classes():
    assert not classes_in_names([f"IMG_{i}.jpg" for i in range(20)])
    assert not classes_in_names([f"a{i}_1.jpg" for i in range(20)])  # a class each
    assert len(classes_in_names(f"{b}.jpg" for b in BREEDS)) == 3


def pictures(*stems, suffix="jpg"):
    return [f"{s}.{suffix}" for s in stems]


@pytest.mark.parametrize("by_class", [
    {"images": pictures(*BREEDS), "annotations": pictures(*BREEDS, suffix="png")},
    {"JPEGImages": pictures("a", "b"), "SegmentationClass": pictures("a", "b"), "x": pictures("c")},
    {"left": pictures(*BREEDS), "right": pictures(*BREEDS)},
    {"photos_of_cats": pictures("1", "2", "3", "4"), "theirs": pictures("1", "2", "3", "4", suffix="png")},
    {"photos": pictures("1", "2"), "masks": pictures("1", "2")},
])  # fmt: skip
def test_what_is_no_class(by_class):
    assert doubts("d", by_class)


@pytest.mark.parametrize("by_class", [
    {"cat": pictures(*map(str, range(50))), "dog": pictures(*map(str, range(50)))},
    {"cat": pictures(*(f"IMG_{i}" for i in range(50))), "dog": pictures(*(f"IMG_{i}" for i in range(50)))},
    {"mask": pictures("1", "2"), "no_mask": pictures("x")},
    {"Abyssinian": pictures(*BREEDS[:6]), "beagle": pictures(*BREEDS[12:])},
    {"glasses": pictures("1"), "boxer": pictures("1"), "edges": []},
])  # fmt: skip
def test_what_is(by_class):
    by_class.pop("edges", None)
    assert doubts("d", by_class) == []


def test_thousands_of_classes_are_looked_through_at_once():
    many = {f"c{i}": pictures(*map(str, range(20))) for i in range(5000)}
    start = time.monotonic()
    assert doubts("d", many) == []
    assert time.monotonic() - start < 5


@pytest.fixture
def pets(write_images, tmp_path):
    """images/ with a folder for each breed, annotations/trimaps/ with as many masks."""
    breeds = ("Abyssinian", "Bengal", "beagle")
    return write_images(
        tmp_path / "pets", {f"images/{b}": 6 for b in breeds} | {"annotations/trimaps": 18, "readme_images": 2}
    )


def test_one_level_too_high(pets):
    data = open_data(str(pets))
    with pytest.raises(UserError, match=rf"doesn't look like a folder of classes .*train on {pets}/images\?.*--yes"):
        checks.check(data)
    assert checks.check(data, yes=True).counts["train"]["images"]
    assert open_data(str(pets / "images")).labels == ("Abyssinian", "Bengal", "beagle")


@pytest.mark.parametrize(("photos", "beside"), [("images", "annotations"), ("rgb", "depth"), ("photos", "masks")])
def test_the_photos_are_named_and_not_their_masks(write_images, tmp_path, photos, beside):
    root = write_images(tmp_path / "d", {photos: 18, beside: 18})
    for folder in (photos, beside):
        for f, name in zip(sorted((root / folder).iterdir()), BREEDS, strict=True):
            f.rename(f.with_name(f"{name}.png"))
    (said,) = (d for d in open_data(str(root)).doubts if "--class-from-name" in d)
    assert said.startswith(f"{root}/{photos} --class-from-name")


def test_classes_from_the_files_names(write_images, tmp_path):
    flat = write_images(tmp_path / "flat", {"images": 18}) / "images"
    for f, name in zip(sorted(flat.iterdir()), BREEDS, strict=True):
        f.rename(flat / f"{name}.png")
    with pytest.raises(UserError, match=r"3 of them in the files' names, as Abyssinian, beagle.*--class-from-name"):
        open_data(str(flat))
    data = open_data(f"name:{flat}")
    assert data.labels == ("Abyssinian", "beagle", "great_pyrenees")
    assert sum(map(len, data.splits.values())) == 18
    assert not data.doubts


@pytest.mark.parametrize("verb", ["fit", "train", "sweep", "shards", "tune"])
def test_verbs_stop_before_anything_is_made(verb, pets, command, tmp_path):
    out = tmp_path / "out"
    ran = command(verb, pets, *((out,) if verb == "shards" else () if verb == "tune" else ("--out", out)))
    assert ran.code == 2
    assert "--yes goes on with it" in ran.err.splitlines()[-1]
    assert not list(out.rglob("*.onnx")) + list(out.rglob("*.tar")) + list(out.rglob("*.ckpt"))


@pytest.mark.slow
def test_a_network_trained_by_names_is_scored_by_them(write_images, command, tmp_path):
    flat = write_images(tmp_path / "flat", {"images": 18}) / "images"
    for f, name in zip(sorted(flat.iterdir()), BREEDS, strict=True):
        f.rename(flat / f"{name}.png")
    line = ("train", flat, "--class-from-name", "--arch", "v1", "--alpha", 0.25, "--resolution", 32, "--epochs", 1)
    assert command(*line, "--workers", 0, "--out", tmp_path / "run").code == 0
    assert command("eval", tmp_path / "run", "--json").json["count"] == 3
    assert command("eval", tmp_path / "run", flat, "--class-from-name", "--json").json["split"] == "val"
