"""What is wrong with images is found before training; what is kept of them in memory."""

import os
import shutil
import zipfile

import numpy as np
import pytest
from opened import sizes, zipped
from PIL import Image

from mobilenets.data import checks, dataset
from mobilenets.data.checks import check, scan
from mobilenets.data.dataset import cache_side
from mobilenets.data.open import open_data
from mobilenets.errors import UserError
from mobilenets.model.images import BadImage, Preprocess
from mobilenets.tasks.augment import augmentation
from mobilenets.training.loader import TrainImages
from mobilenets.training.recipes import Recipe


def printed(found):
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as capture:
        console.print(found)
    return capture.get()


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
