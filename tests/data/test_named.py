"""torchvision's sets by their names."""

import struct
import urllib.error

import numpy as np
import pytest
from opened import sizes

from mobilenets.data import named
from mobilenets.data.open import open_data
from mobilenets.errors import UserError


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
