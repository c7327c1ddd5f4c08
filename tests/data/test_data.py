import os
import shutil
import struct
import urllib.error
import zipfile

import numpy as np
import pytest
from PIL import Image

from mobilenets.arch import zoo
from mobilenets.data import checks, dataset, named
from mobilenets.data.checks import check, scan
from mobilenets.data.dataset import cache_side, gather, in_order
from mobilenets.data.open import of_card, open_data
from mobilenets.data.splitting import stratified
from mobilenets.errors import UserError
from mobilenets.model.card import classifier_card
from mobilenets.model.images import BadImage, Preprocess
from mobilenets.tasks.augment import augmentation
from mobilenets.training.loader import TrainImages
from mobilenets.training.recipes import Recipe


def zipped(folder, path, prefix="", folders=False):
    with zipfile.ZipFile(path, "w") as z:
        for p in sorted(folder.rglob("*")):
            if p.is_file():
                z.write(p, prefix + p.relative_to(folder).as_posix())
            elif folders:
                z.writestr(prefix + p.relative_to(folder).as_posix() + "/", "")
    return path


def sizes(data):
    return {name: len(split) for name, split in data.splits.items()}


def printed(found):
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as capture:
        console.print(found)
    return capture.get()


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


# ---- checking ------------------------------------------------------------------------------------------------------


def test_a_clean_scan_finds_nothing_and_keeps_training_pixels(tmp_path, write_images):
    data = open_data(str(write_images(tmp_path, {"cat": 10, "dog": 5}, side=20)))
    found = scan(data)
    assert found.counts == {"train": {"cat": 8, "dog": 4}, "val": {"cat": 2, "dog": 1}}
    assert list(found.findings()) == []
    assert found.native_side == 20
    assert len(data.split("train").cache) == 12
    assert not data.split("val").cache
    shutil.rmtree(tmp_path)  # so what follows comes from memory
    assert data.split("train").cached(0).shape == (20, 20, 3)
    with pytest.raises(BadImage):
        data.split("val").cached(0)


def test_the_cache_is_bounded(tmp_path, write_images, monkeypatch):
    monkeypatch.setattr(checks, "CACHE_BYTES", 5 * 20 * 20 * 3)
    data = open_data(str(write_images(tmp_path, {"cat": 10, "dog": 10}, side=20)))
    scan(data)
    assert len(data.split("train").cache) == 5


def test_large_images_are_cached_small(tmp_path, write_images):
    data = open_data(str(write_images(tmp_path, {"cat": 2, "dog": 2}, side=300)))
    assert data.split("train").cached(0).shape == (256, 256, 3)
    assert scan(data).native_side == 300
    assert data.split("train").cached(0).shape == (256, 256, 3)


@pytest.mark.parametrize(("resolution", "side"), [(32, 256), (224, 256), (225, 258), (256, 293), (384, 439)])
def test_large_networks_have_larger_images_cached(resolution, side):
    assert cache_side(resolution) == side


def test_a_network_of_384_pixels_trains_on_images_that_are_not_enlarged(tmp_path):
    side, rng = cache_side(384), np.random.default_rng(0)
    for name in ("cat/0", "cat/1", "cat/2", "dog/0", "dog/1", "dog/2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (600, 600, 3), np.uint8)).save(tmp_path / f"{name}.png")
    data = open_data(str(tmp_path))
    train = data.split("train")
    assert train.cached(0, side).shape == (439, 439, 3)  # read again for it
    scan(data, side=side)
    assert {p.shape for p in train.cache.values()} == {(439, 439, 3)}
    assert train.cached(0, side) is train.cache[0]
    assert train.subset([1, 0]).cached(1, side) is train.cache[0]
    assert train.cached(0) is train.cache[0]  # a smaller network takes it as it is
    scan(data)  # the network isn't known yet: a larger one reads the file again
    assert train.cache[0].shape == (256, 256, 3)
    images = TrainImages(train, augmentation("none", Preprocess(384), Recipe()), 0, side=side)
    assert images[0, 0][0].shape == (3, 384, 384)
    assert train.cached(0, side).shape == (439, 439, 3)
    enlarged = TrainImages(train, images.transform, 0)
    assert detail(images[0, 0][0]) > 1.5 * detail(enlarged[0, 0][0])


def detail(image):
    """How much neighbouring pixels differ."""
    return float(image.float().diff(dim=2).abs().mean())


def test_small_images_are_cached_as_they_are_for_any_network(tmp_path, write_images):
    data = open_data(str(write_images(tmp_path, {"cat": 2, "dog": 2}, side=100)))
    scan(data)
    train = data.split("train")
    assert train.cached(0, 439) is train.cache[0]


def test_memory_is_known_or_guessed(monkeypatch):
    assert 1 << 28 < dataset.memory() < 1 << 46
    monkeypatch.delattr(os, "sysconf")  # as on Windows
    assert dataset.memory() == 4 << 30


def test_pictures_without_contrast_are_told_of(tmp_path, write_images):
    root = write_images(tmp_path / "d", {"a": 4, "b": 4})
    deep = np.linspace(0, 4095, 24 * 24 * 3).reshape(24, 24, 3).astype(np.uint16) >> 8  # 12 bits, read as 16
    Image.fromarray(deep.astype(np.uint8)).save(root / "a" / "dark.png")
    Image.new("RGB", (9, 9), (40, 40, 40)).save(root / "b" / "one.png")
    said = "2 images without contrast, as 8 bits (their least and largest value): "
    assert [f for f in scan(open_data(str(root))).findings() if "contrast" in f] in (
        [f"{said}a/dark.png (0..15); b/one.png (40..40)"],
        [f"{said}b/one.png (40..40); a/dark.png (0..15)"],
    )


def test_damaged_images_are_found_and_leave(tmp_path, write_images):
    write_images(tmp_path, {"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2})
    (tmp_path / "train/cat/002.png").write_bytes((tmp_path / "train/cat/002.png").read_bytes()[:60])
    (tmp_path / "val/dog/000.png").write_text("no image")
    data = open_data(str(tmp_path))
    found = scan(data)
    assert [d.split(":")[0] for d in found.damaged] == ["train/cat/002.png", "val/dog/000.png"]
    assert found.counts == {"train": {"cat": 3, "dog": 4}, "val": {"cat": 2, "dog": 1}}
    train = data.split("train")
    assert "train/cat/002.png" not in train.names
    assert train.targets.tolist() == [0, 0, 0, 1, 1, 1, 1]
    for i in range(len(train)):  # the cache moved along with what is left
        assert np.array_equal(train.cache[i], np.asarray(Image.open(tmp_path / train.names[i])))


def test_an_entry_damaged_inside_a_zip(tmp_path, write_images):
    path = zipped(write_images(tmp_path / "f", {"cat": 4, "dog": 4}), tmp_path / "a.zip")
    with zipfile.ZipFile(path) as z:
        info = z.getinfo("cat/001.png")
    raw = bytearray(path.read_bytes())
    raw[info.header_offset + 200] ^= 0xFF
    path.write_bytes(raw)
    found = scan(open_data(str(path)))
    assert len(found.damaged) == 1
    assert found.damaged[0].startswith("cat/001.png: can't be read from the zip")


@pytest.mark.parametrize("split", ["", "train/"])
def test_empty_classes_are_listed(tmp_path, write_images, split):
    write_images(tmp_path, {f"{split}cat": 5, f"{split}dog": 5, f"{split}cow": 0})
    data = open_data(str(tmp_path))
    assert data.labels == ("cat", "dog")
    assert scan(data).empty == ("cow",)
    assert "1 class without an image: cow" in list(scan(data).findings())


def test_an_empty_class_in_a_zip(tmp_path, write_images):
    folder = write_images(tmp_path / "f", {"cat": 5, "dog": 5, "cow": 0})
    assert open_data(str(zipped(folder, tmp_path / "a.zip", "pets/", folders=True))).empty == ("cow",)


def test_classes_that_differ_between_the_splits(tmp_path, write_images):
    write_images(tmp_path, {"train/cat": 3, "train/dog": 3, "val/cat": 2, "val/cow": 2})
    data = open_data(str(tmp_path))
    found = scan(data)
    assert data.labels == ("cat", "cow", "dog")
    assert (found.only_train, found.only_held_out) == (["dog"], ["cow"])
    with pytest.raises(UserError, match="class 'cow' has no training images"):
        check(data)


def test_duplicates_that_leak(tmp_path, write_images):
    write_images(tmp_path, {"train/cat": 3, "train/dog": 3, "val/cat": 2, "val/dog": 2})
    shutil.copy(tmp_path / "train/cat/001.png", tmp_path / "val/cat/copy.png")
    Image.open(tmp_path / "train/dog/000.png").save(tmp_path / "val/dog/again.bmp")  # other bytes, same pixels
    assert set(scan(open_data(str(tmp_path))).leaks) == {
        ("train/cat/001.png", "val/cat/copy.png"),
        ("train/dog/000.png", "val/dog/again.bmp"),
    }


def test_check_stops_at_damaged_images_unless_told_to_go_on(tmp_path, write_images, capsys):
    write_images(tmp_path, {"cat": 5, "dog": 5})
    (tmp_path / "cat/000.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 damaged image .*--skip-bad"):
        check(open_data(str(tmp_path)))
    assert "cat/000.png" in capsys.readouterr().err
    data = open_data(str(tmp_path))
    assert len(check(data, skip_bad=True).damaged) == 1
    assert sum(sizes(data).values()) == 9


def test_a_scan_prints_names_as_they_are(tmp_path, write_images):
    write_images(tmp_path, {"cat": 5, "dog": 5})
    (tmp_path / "cat" / "photo [copy].png").write_bytes(b"")
    text = printed(scan(open_data(str(tmp_path))))
    assert "photo [copy].png" in text
    assert "1 damaged image" in text


# ---- torchvision's sets --------------------------------------------------------------------------------------------


def write_idx(root, count):
    """Fashion-MNIST's four files, uncompressed, `count` images each."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    written = {}
    for part in ("train", "t10k"):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, count, 28, 28) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())
        written[part] = images, labels
    return written


def test_fashion_mnist_from_a_local_copy(tmp_path):
    written = write_idx(tmp_path, 100)
    data = open_data("fashion-mnist", root=tmp_path)
    assert data.labels[0] == "T-shirt/top"
    assert len(data.labels) == 10
    assert sizes(data) == {"train": 90, "test": 100, "val": 10}
    assert data.held_out == "test"
    images, labels = written["t10k"]
    test = data.split("test")
    assert test.targets.tolist() == labels.tolist()
    assert np.array_equal(np.asarray(test.rgb(3)), np.repeat(images[3][..., None], 3, 2))
    assert len(data.split("val")) == len(np.unique(data.split("val").targets)) == 10


class Absent:
    """A torchvision set without a local copy, on a machine without a network."""

    def __init__(self, root, train=True, download=False):  # noqa: ARG002
        if download:
            raise urllib.error.URLError("Name or service not known")
        raise RuntimeError("Dataset not found. You can use download=True to download it")


class AbsentForGood:
    def __init__(self, root, split="train"):  # noqa: ARG002
        raise FileNotFoundError("no such file")


class Damaged:
    def __init__(self, root, train=True, download=False):  # noqa: ARG002
        raise ValueError("wrong magic number")


@pytest.mark.parametrize(
    ("name", "stand_in", "message"),
    [
        ("fashion-mnist", Absent, "fashion-mnist: not in .*can't be downloaded .*Name or service not known.*--root"),
        ("stanford-cars", AbsentForGood, "stanford-cars: not in .*, and torchvision can't download it"),
        ("cifar10", Damaged, "cifar10: the copy in .* can't be read: wrong magic number"),
    ],
)
def test_without_a_copy_or_a_network(tmp_path, monkeypatch, name, stand_in, message):
    import torchvision

    monkeypatch.setattr(torchvision.datasets, named.NAMED[name].cls, stand_in)
    with pytest.raises(UserError, match=message):
        open_data(name, root=tmp_path)


def test_every_named_set_is_torchvisions_and_takes_its_arguments():
    import inspect

    import torchvision

    for name, entry in named.NAMED.items():
        parameters = inspect.signature(getattr(torchvision.datasets, entry.cls)).parameters
        for arguments in entry.splits.values():
            assert set(arguments) <= set(parameters), name


def test_the_download_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MOBILENETS_DATA", str(tmp_path))
    assert named.default_root() == tmp_path
    monkeypatch.delenv("MOBILENETS_DATA")
    assert named.default_root().name == "data"


@pytest.mark.parametrize("verb", ["train", "fit", "sweep"])
def test_one_image_of_each_class_is_told_before_anything_is_trained(tmp_path, write_images, command, verb):
    root = write_images(tmp_path / "d", {"cat": 1, "dog": 1, "fox": 1})
    options = {"train": ("--epochs", 1), "fit": ("--max-macs-m", 4), "sweep": ("--alphas", 0.25, "--resolutions", 32)}
    ran = command(verb, root, "--out", tmp_path / "r", *options[verb])
    assert ran.code == 2
    assert "no class has an image to hold out" in ran.err.splitlines()[-1]
    assert not (tmp_path / "r" / "checkpoints").exists()
    assert len(open_data(str(root)).split("all")) == 3  # to be scored, they will do


def test_a_named_sets_folder_that_cannot_be_made(tmp_path, command, monkeypatch):
    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(named.Path, "mkdir", refuse)
    said = command("train", "cifar10", "--root", tmp_path / "data", "--out", tmp_path / "r").line
    assert "data can't be made (Permission denied); name a folder for it with --root" in said
