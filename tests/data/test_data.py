"""Opening data of folders and zips: classes, splits, samples."""

import shutil
import zipfile

import numpy as np
import pytest
from opened import sizes, zipped
from PIL import Image

from mobilenets.arch import zoo
from mobilenets.data import checks
from mobilenets.data.dataset import gather, in_order
from mobilenets.data.open import of_card, open_data
from mobilenets.data.splitting import stratified
from mobilenets.errors import UserError
from mobilenets.model.card import classifier_card
from mobilenets.model.images import Preprocess

# ---- opening -------------------------------------------------------------------------------------------------------


def test_class_folders_are_split(tmp_path, write_images):
    write_images(tmp_path, {"cat": 10, "dog": 5})
    data = open_data(str(tmp_path))
    assert data.labels == ("cat", "dog")
    assert sizes(data) == {"train": 12, "val": 3}
    assert data.held_out == "val"
    assert data.val_fraction == 0.2
    assert data.describe()["counts"] == {"train": 12, "val": 3}
    assert not set(data.split("train").names) & set(data.split("val").names)


def test_each_image_has_its_own_folders_class_and_pixels(tmp_path, write_images):
    write_images(tmp_path, {"cat": 6, "dog": 6})
    data = open_data(str(tmp_path))
    for split in data.splits.values():
        for i, name in enumerate(split.names):
            assert data.labels[split.targets[i]] == name.split("/")[0]
            assert np.array_equal(np.asarray(split.rgb(i)), np.asarray(Image.open(tmp_path / name)))


def test_the_split_follows_the_seed(tmp_path, write_images):
    write_images(tmp_path, {"cat": 30, "dog": 30})

    def val(seed):
        return open_data(str(tmp_path), seed=seed).split("val").names

    assert val(0) == val(0)
    assert val(0) != val(1)
    assert len(val(0)) == len(val(1)) == 12


@pytest.mark.parametrize("seed", range(5))
def test_stratified_takes_a_share_of_every_class(seed):
    targets = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    held = stratified(targets, 0.2, seed)
    assert np.bincount(targets[held], minlength=4).tolist() == [20, 2, 1, 0]
    assert len(set(held)) == len(held)


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_a_folders_own_split_is_kept(tmp_path, write_images, val):
    write_images(tmp_path, {"train/cat": 4, "train/dog": 3, f"{val}/cat": 2, f"{val}/dog": 1})
    data = open_data(str(tmp_path))
    assert sizes(data) == {"train": 7, "val": 3}
    assert data.labels == ("cat", "dog")
    assert data.val_fraction is None
    assert all(n.startswith("train/") for n in data.split("train").names)


def test_a_test_split_is_held_out_and_val_is_a_tenth_of_train(tmp_path, write_images):
    write_images(tmp_path, {"train/cat": 20, "train/dog": 20, "test/cat": 3, "test/dog": 3})
    data = open_data(str(tmp_path))
    assert sizes(data) == {"train": 36, "test": 6, "val": 4}
    assert data.held_out == "test"
    assert data.val_fraction == 0.1


def test_another_share_is_held_out_where_it_is_asked_for(tmp_path, write_images):
    write_images(tmp_path / "d", {"train/cat": 20, "train/dog": 20, "test/cat": 3, "test/dog": 3})
    source = str(tmp_path / "d")
    more, less = (open_data(source, val=v) for v in (0.2, 0.1))
    assert sizes(more) == {"train": 32, "test": 6, "val": 8}
    assert more.val_fraction == 0.2
    assert set(less.split("val").names) < set(more.split("val").names)  # seen by neither training
    for wrong in (0, 1, -0.1, float("nan")):
        with pytest.raises(UserError, match="val is a share of the training images, above 0 and below 1"):
            open_data(source, val=wrong)
    write_images(tmp_path / "own", {"train/cat": 4, "train/dog": 3, "val/cat": 2, "val/dog": 1})
    with pytest.raises(UserError, match="has a val split of its own: leave out --val"):
        open_data(str(tmp_path / "own"), val=0.1)


def test_train_alone_is_split(tmp_path, write_images):
    write_images(tmp_path, {"train/cat": 10, "train/dog": 10})
    data = open_data(str(tmp_path))
    assert data.labels == ("cat", "dog")
    assert sizes(data) == {"train": 16, "val": 4}


def test_images_may_lie_deeper(tmp_path, write_images):
    write_images(tmp_path, {"cat/2023": 3, "cat/2024": 3, "dog": 4})
    data = open_data(str(tmp_path))
    assert data.labels == ("cat", "dog")
    assert sum(sizes(data).values()) == 10


def test_other_and_hidden_files_are_left_alone(tmp_path, write_images):
    write_images(tmp_path, {"cat": 3, "dog": 3, ".cache": 3})
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "cat" / "._000.png").write_text("macOS")
    data = open_data(str(tmp_path))
    assert data.labels == ("cat", "dog")
    assert sum(sizes(data).values()) == 6


NESTED = {"{train}/cat": 5, "{train}/dog": 5, "{held}/cat": 2, "{held}/dog": 2}


@pytest.mark.parametrize(
    ("train", "held", "split"),
    [("Training", "Testing", "test"), ("training_set", "test_set", "test"), ("train", "eval", "test"),
     ("seg_train", "seg_test", "test"), ("train", "dev", "val"), ("TRAIN", "Validation", "val"),
     ("train-images", "val-images", "val"), ("data/train", "data/valid", "val")],
)  # fmt: skip
@pytest.mark.parametrize("as_zip", [False, True])
def test_splits_by_any_of_their_names(tmp_path, write_images, train, held, split, as_zip):
    root = write_images(tmp_path / "d", {k.format(train=train, held=held): n for k, n in NESTED.items()})
    d = open_data(str(zipped(root, tmp_path / "d.zip", "", False) if as_zip else root))
    assert d.labels == ("cat", "dog")
    assert len(d.split(split)) == 4
    assert len(d.split("train")) == (10 if split == "val" else 8)  # one of each class becomes val
    assert d.left_out == ()


@pytest.mark.parametrize("beside", ["masks", "single_prediction", "runs/exp", "a/b/c"])
def test_what_lies_beside_the_splits_is_left_out_and_named(tmp_path, write_images, beside):
    root = write_images(tmp_path / "d", {k.format(train="train", held="test"): n for k, n in NESTED.items()})
    write_images(root, {beside: 1})
    d = open_data(str(root))
    assert d.labels == ("cat", "dog")
    assert d.left_out == (f"{beside.split('/')[0]}: not a split, left out",)
    assert next(checks.scan(d).findings()) == d.left_out[0]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["one/cat", "one/dog", "two/cat", "two/dog"], r"one, two hold folders of the same names \(cat, dog\), so"),
        (["train/cat", "train/dog", "test/cat", "test/dog", "more/cat", "more/dog"], "more holds the same folders as"),
    ],
)
def test_folders_that_look_like_splits_are_asked_about(tmp_path, write_images, folders, message):
    with pytest.raises(UserError, match=message):
        open_data(str(write_images(tmp_path / "d", dict.fromkeys(folders, 2))))


@pytest.mark.parametrize("folders", [["train", "car", "plane"], ["train/steam", "car", "plane"], ["test", "exam"]])
def test_classes_may_be_called_as_splits_are(tmp_path, write_images, folders):
    d = open_data(str(write_images(tmp_path / "d", dict.fromkeys(folders, 5))))
    assert d.labels == tuple(sorted(f.split("/")[0] for f in folders))


@pytest.mark.parametrize("as_zip", [False, True])
def test_hidden_folders_are_no_classes(tmp_path, write_images, as_zip):
    hidden = {"cat/@eaDir/1.jpg": 2, "$RECYCLE.BIN/cat": 1, ".Trash/cat": 3, ".ipynb_checkpoints": 2, "__MACOSX/cat": 1}
    root = write_images(tmp_path / "d", {"cat": 5, "dog": 5, **hidden})
    d = open_data(str(zipped(root, tmp_path / "d.zip", "", True) if as_zip else root))
    assert (d.labels, d.empty) == (("cat", "dog"), ())
    assert len(d.split("all")) == 10


def test_every_kind_of_image_that_can_be_read_is_used(tmp_path, write_images):
    root = write_images(tmp_path / "d", {"cat": 2, "dog": 2})
    with Image.open(root / "cat" / "000.png") as image:
        for suffix in (".jfif", ".jpe", ".avif", ".JP2", ".tga", ".pnm", ".dib"):
            image.convert("RGB").save(root / "cat" / f"w{suffix}", format="JPEG" if suffix == ".jfif" else None)
    assert len(open_data(str(root)).split("all")) == 11
    assert checks.scan(open_data(str(root))).damaged == []


def test_pictures_that_cannot_be_read_are_counted_aloud(tmp_path, write_images, command):
    root = write_images(tmp_path / "d", {"cat": 5, "dog": 5})
    heic = b"\0\0\0\x18ftypheic" + bytes(100)
    (root / "phone").mkdir()
    for name in ("phone/a.HEIC", "phone/b.heic", "cat/c.CR2"):
        (root / name).write_bytes(heic)
    (root / "loose.png").write_bytes((root / "cat" / "000.png").read_bytes())
    found = list(checks.scan(open_data(str(root))).findings())
    assert found[:3] == [
        "1 image in no class's folder, left out: loose.png",
        "cat: 1 CR2 file, which can't be read here: convert them to JPEG",
        "phone: 2 HEIC files, which can't be read here: convert them to JPEG",
    ]
    line = ("train", root, "--arch", "v1", "--alpha", 0.25, "--resolution", 32, "--epochs", 1, "--workers", 0,
            "--out", tmp_path / "r")  # fmt: skip
    stopped = command(*line)
    assert stopped.code == 2
    assert "no picture of phone can be read" in stopped.err.splitlines()[-1]
    assert command(*line, "--skip-bad", "--resume").code == 0
    assert "2 HEIC files, which can't be read" in command("predict", "cifar10-v1-0.25", root / "phone").line
    renamed = root / "phone" / "a.jpg"
    (root / "phone" / "a.HEIC").rename(renamed)
    assert "a.jpg: HEIC can't be read here: convert it to JPEG" in command("predict", "cifar10-v1-0.25", renamed).err


def test_no_program_is_started_by_an_image(tmp_path, write_images):
    """PostScript in a .jpg would be run by Ghostscript, where there is one."""
    root = write_images(tmp_path / "d", {"cat": 2, "dog": 2})
    (root / "cat" / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n{ } loop\n")
    (damaged,) = checks.scan(open_data(str(root))).damaged
    assert damaged == "cat/x.jpg: damaged image (not an image, or of an unknown kind)"


@pytest.mark.parametrize("folders", [False, True])
@pytest.mark.parametrize("prefix", ["", "pets/", "a/b/"])
@pytest.mark.parametrize("layout", [{"cat": 5, "dog": 5}, {"train/cat": 5, "train/dog": 4, "val/cat": 2, "val/dog": 2}])
def test_a_zip_is_read_as_its_folder(tmp_path, write_images, layout, prefix, folders):
    folder = write_images(tmp_path / "folder", layout)
    from_zip = open_data(str(zipped(folder, tmp_path / "a.zip", prefix, folders)))
    from_folder = open_data(str(folder))
    assert from_zip.labels == from_folder.labels
    assert from_zip.empty == ()
    assert sizes(from_zip) == sizes(from_folder)
    for name, split in from_zip.splits.items():
        other = from_folder.split(name)
        assert list(split.names) == [prefix + n for n in other.names]
        assert np.array_equal(split.targets, other.targets)
        assert np.array_equal(np.asarray(split.rgb(0)), np.asarray(other.rgb(0)))


def test_a_zip_whose_names_begin_with_a_dot_and_a_slash(tmp_path, write_images):
    root = write_images(tmp_path / "f", {"cat": 2, "dog": 2})
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        for p in sorted(root.rglob("*.png")):
            z.writestr(f"./{p.relative_to(root).as_posix()}", p.read_bytes())
    d = open_data(str(tmp_path / "a.zip"))
    assert d.labels == ("cat", "dog")
    assert d.split("all").rgb(0).size == (24, 24)


def test_what_macos_adds_to_a_zip_is_no_class(tmp_path, write_images):
    path = zipped(write_images(tmp_path / "f", {"cat": 2, "dog": 2}), tmp_path / "a.zip", "pets/", folders=True)
    with zipfile.ZipFile(path, "a") as z:
        z.writestr("__MACOSX/", "")
        z.writestr("__MACOSX/pets/", "")
        z.writestr("__MACOSX/pets/cat/._000.png", "x")
    data = open_data(str(path))
    assert data.labels == ("cat", "dog")
    assert data.empty == ()


def test_one_class_alone(tmp_path, write_images):
    write_images(tmp_path, {"cat": 5})
    with pytest.raises(UserError, match=r"only one class, 'cat'.*at least two classes"):
        open_data(str(tmp_path))


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="no images; expected a folder of images for each class"):
        open_data(str(tmp_path))


def test_images_without_class_folders(tmp_path, write_images):
    write_images(tmp_path, {".": 3})
    with pytest.raises(UserError, match="no class folders with images"):
        open_data(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and then nothing", b"text"])
def test_a_file_that_is_no_zip(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip: not a folder, nor a readable zip"):
        open_data(str(tmp_path / "a.zip"))


@pytest.mark.parametrize(
    ("name", "near"), [("cifar11", "cifar10"), ("digit", "digits"), ("fashion_mnist", "fashion-mnist")]
)
def test_an_unknown_name_suggests_the_near_miss(name, near):
    with pytest.raises(UserError, match=f"unknown data set {name!r}: did you mean {near!r}"):
        open_data(name)


@pytest.mark.parametrize("path", ["photos/cats", "photos.zip", "./flowers"])
def test_a_missing_path_is_told_as_such(path):
    with pytest.raises(UserError, match=f"{path}: no such folder or zip"):
        open_data(path)


def test_a_split_that_is_not_there(tmp_path, write_images):
    data = open_data(str(write_images(tmp_path, {"cat": 5, "dog": 5})))
    with pytest.raises(UserError, match="has no split 'test'; it has train, val"):
        data.split("test")


def test_digits():
    data = open_data("digits")
    assert data.labels == tuple("0123456789")
    assert sum(sizes(data).values()) == 1797
    assert (data.kind, data.crop) == ("glyph", 1.0)
    image = np.asarray(data.split("train").rgb(0))
    assert image.shape == (8, 8, 3)
    assert (image == image[..., :1]).all()
    assert image.max() > 200
    for split in data.splits.values():
        assert set(split.targets) == set(range(10))


# ---- reading -------------------------------------------------------------------------------------------------------


def test_a_sample_is_the_same_each_time_and_preprocessed(tmp_path, write_images):
    data = open_data(str(write_images(tmp_path, {"cat": 10, "dog": 10}, side=48)))
    a, b = (data.sample("train", 8, Preprocess(32)) for _ in range(2))
    assert a.pixels.shape == (8, 32, 32, 3)
    assert a.pixels.dtype == np.uint8
    assert np.array_equal(a.pixels, b.pixels)
    assert np.array_equal(a.targets, b.targets)
    assert len(data.sample("train", 10**6, Preprocess(32)).targets) == 16


def test_gather_leaves_damaged_images_out(tmp_path, write_images):
    write_images(tmp_path, {"train/cat": 3, "train/dog": 3, "val/cat": 1, "val/dog": 1})
    (tmp_path / "train/cat/001.png").write_bytes(b"")
    batch = gather(open_data(str(tmp_path)).split("train"), Preprocess(32))
    assert batch.targets.tolist() == [0, 0, 1, 1, 1]
    assert len(batch.pixels) == 5


def test_classes_are_put_in_a_cards_order(tmp_path, write_images):
    data = open_data(str(write_images(tmp_path, {"cat": 5, "dog": 5})))
    in_order(data, ("dog", "bird", "cat"))
    assert data.labels == ("dog", "bird", "cat")
    for split in data.splits.values():
        for name, t in zip(split.names, split.targets, strict=True):
            assert data.labels[t] == name.split("/")[0]
    with pytest.raises(UserError, match="class 'dog' isn't one the network knows"):
        in_order(data, ("cat", "bird"))


def test_the_data_a_card_names(tmp_path, write_images):
    write_images(tmp_path / "pets", {"cat": 20, "dog": 20})
    used = open_data(str(tmp_path / "pets"), seed=7)
    card = classifier_card(zoo.arch("v1", 0.25, 32, 2), Preprocess(32), ("dog", "cat"), data=used.describe())
    again = of_card(card, None)
    assert again.labels == ("dog", "cat")
    assert again.split("val").names == used.split("val").names
    shutil.rmtree(tmp_path / "pets")
    with pytest.raises(UserError, match="can't be opened; name some"):
        of_card(card, None)
    with pytest.raises(UserError, match="doesn't say what data"):
        of_card(card.replace(data={}), None)
