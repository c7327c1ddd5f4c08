"""Copies of another size, compression or format are found across splits; other images aren't taken for copies."""

import numpy as np
import pytest
from PIL import Image
from small import smooth_images

from mobilenets.data import checks, duplicates
from mobilenets.data.dataset import shrink
from mobilenets.data.open import open_data


def thumbs(images):
    return np.array([duplicates.thumbnail(shrink(i)) for i in images])


def scene(seed, side=160):
    """An image with structure at several scales, as a photo has."""
    rng = np.random.default_rng(seed)
    layers = [rng.integers(0, 256, (n, n, 3)).astype(np.uint8) for n in (3, 8, 24)]
    made = [np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC), float) for p in layers]
    return Image.fromarray((made[0] * 0.5 + made[1] * 0.35 + made[2] * 0.15).clip(0, 255).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Train and val in two classes, other images all."""
    for seed, (split, c) in enumerate((s, c) for s in ("train", "val") for c in "ab"):
        (tmp_path / split / c).mkdir(parents=True)
        for i in range(6):
            scene(100 * seed + i).save(tmp_path / split / c / f"{split}{c}{i}.png")
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        lambda image, path: image.save(path.with_suffix(".jpg"), quality=50),
        lambda image, path: image.resize((97, 97), Image.Resampling.LANCZOS).save(path.with_suffix(".png")),
        lambda image, path: image.resize((400, 400)).save(path.with_suffix(".webp"), quality=70),
    ],
    ids=["recompressed", "smaller", "larger"],
)
def test_a_copy_is_found(change, folder):
    change(scene(3), folder / "val" / "a" / "copy")
    found = checks.scan(open_data(str(folder)))
    ((train, val),) = found.near
    assert (train, val.rpartition(".")[0]) == ("train/a/traina3.png", "val/a/copy")
    assert found.leaks == []
    (line,) = (f for f in found.findings() if "nearly the same" in f)
    assert line.startswith("1 pair of a training and a held-out image nearly the same")


def test_nothing_is_found_where_there_is_nothing(folder):
    assert checks.scan(open_data(str(folder))).near == []


def test_an_exact_copy_is_named_once(folder):
    scene(3).save(folder / "val" / "a" / "copy.png")
    found = checks.scan(open_data(str(folder)))
    assert found.leaks == [("train/a/traina3.png", "val/a/copy.png")]
    assert found.near == []


def test_no_false_alarm_among_many_smooth_images():
    a, b = (thumbs(map(Image.fromarray, smooth_images(400, 64, seed))) for seed in (1, 2))
    assert list(duplicates.near(a, b)) == []
    assert list(duplicates.near(a, a)) == [(i, i) for i in range(400)]


def test_images_without_contrast_are_no_copies():
    flat = np.full((3, 72), 128, np.uint8)
    assert list(duplicates.near(flat, flat)) == []


def test_handwriting_is_not_searched():
    assert checks.scan(open_data("digits")).near == []
