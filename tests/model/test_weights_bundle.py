"""The bundle that is made of others' weights, and what is no such file."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from foreign_files import write_h5
from layouts import NORM, keras_v1, keras_v3, logits, named_arrays, slim_names, state, worst
from torchvision import models

from mobilenets.arch import zoo
from mobilenets.arch.spec import scale
from mobilenets.deploy import export
from mobilenets.model import imagenet
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import classifier_card
from mobilenets.model.convert import namings, recognise
from mobilenets.model.convert.foreign import Foreign, Stated
from mobilenets.model.convert.labels import read_labels
from mobilenets.model.convert.weights import foreign_bundle

h5py = pytest.importorskip("h5py")
timm = pytest.importorskip("timm")


# ---- the bundle ----------------------------------------------------------------------------------------------------


def slim_like(trained, classes):
    """A slim V1 with that many classes, and its source."""
    source = trained("v1")
    rng = np.random.default_rng(0)
    tensors = dict(source.tensors)
    tensors["classifier.weight"] = rng.normal(0, 0.1, (classes, source.card.arch.features)).astype(np.float32)
    tensors["classifier.bias"] = rng.normal(0, 0.1, classes).astype(np.float32)
    arch = source.card.arch.replace(num_classes=classes)
    card = classifier_card(arch, source.card.preprocess, [""] * classes)
    source = Bundle(card, tensors)
    return source, named_arrays(source, slim_names("MobilenetV1"), "weights", "biases", NORM)


def test_the_background_is_dropped(trained, images):
    source, arrays = slim_like(trained, 1001)
    bundle = foreign_bundle(Foreign("m.ckpt", arrays), Stated(resolution=128))
    names = [name for _, name in imagenet.classes().items()]
    assert (bundle.card.arch.num_classes, list(bundle.card.labels)) == (1000, names)
    assert (names[0], names[-1]) == ("tench", "toilet tissue")
    assert worst(logits(source, images)[:, 1:], logits(bundle, images)) < 1e-5
    (top1,) = bundle.card.metrics
    assert (top1.value, top1.count) == (41.5, 50_000)  # TF-slim's V1 0.25-128
    assert "as published" in top1.data
    for labels in (("background", *names), names):
        told = foreign_bundle(Foreign("m.ckpt", arrays), Stated(labels=tuple(labels)))
        assert told.card.labels == tuple(names)
        np.testing.assert_array_equal(told.tensors["classifier.bias"], bundle.tensors["classifier.bias"])
    own = tuple(f"thing {i}" for i in range(1001))
    assert foreign_bundle(Foreign("m.ckpt", arrays), Stated(labels=own)).card.labels == own


def test_labels(trained, images, command, tmp_path):
    source, arrays = slim_like(trained, 5)
    path, labels = write_h5(tmp_path / "w.h5", arrays), tmp_path / "labels.txt"
    np.savez(tmp_path / "w.npz", **{k.replace("/", "|"): a for k, a in arrays.items()})
    bundle = foreign_bundle(Foreign("m.ckpt", arrays))
    assert bundle.card.labels == tuple(f"class {i}" for i in range(5))
    assert bundle.card.metrics == ()
    for text, expected, first in (
        ("a\nb\nc\nd\ne\n", "abcde", 0),
        ("background\na\nb\nc\nd\n", "abcd", 1),
        ("background\na\nb\nc\nd\ne\n", "abcde", 0),
    ):
        labels.write_text(text)
        bundle = foreign_bundle(Foreign("m.ckpt", arrays), Stated(labels=read_labels(labels)))
        assert bundle.card.labels == tuple(expected)
        assert worst(logits(source, images)[:, first:], logits(bundle, images)) < 1e-5
    keras = named_arrays(source, keras_v1, "kernel", "bias", NORM)
    write_h5(path, keras)
    for text, said in (
        ("a\nb\n", "there are 2 labels for 5 classes; give the right --labels"),
        ("\n\n", "no labels in it"),
        (None, "not a readable list of labels"),
    ):
        labels.unlink() if text is None else labels.write_text(text)
        assert said in command("import", path, "--out", tmp_path / "b", "--labels", labels).line
        assert not (tmp_path / "b").exists()


def test_thousand_classes_are_imagenets():
    bundle = foreign_bundle(Foreign("x", state(models.mobilenet_v3_small())))
    assert bundle.card.labels[:2] == ("tench", "goldfish")
    assert len(bundle.card.labels) == 1000
    assert bundle.card.metrics == ()  # whose they are isn't known
    ids = [wnid for wnid, _ in imagenet.classes().items()]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000


def test_an_imported_bundle_travels(trained, command, tmp_path, pixels):
    source = trained("v3-small")
    arrays = named_arrays(source, keras_v3, "kernel", "bias", NORM)
    foreign = Foreign("w.h5", arrays, Stated(licence="MIT"), facts={"url": "https://example.org/w.h5"})
    bundle = foreign_bundle(foreign, Stated(resolution=32))
    saved = bundle.save(tmp_path / "b")
    again = Bundle.load(tmp_path / "b")
    assert again.card == saved.card
    assert again.card.replace(created="", versions={}) == bundle.card
    assert again.card.licence == "MIT"
    assert again.card.recipe == {
        "imported_from": "w.h5",
        "library": "Keras",
        "stored_as": "float32",
        "url": "https://example.org/w.h5",
        "assumed": ["padding", "bn_eps", "mean", "std", "crop", "interpolation"],
    }
    done = export.export_bundle(again, pixels, tmp_path / "m.onnx", "random pixels")
    assert done.agreement == 100
    assert done.difference < 1e-4
    assert "V3" in command("show", tmp_path / "b").out.upper()


# ---- faults --------------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_bad_files_leave_nothing(command, tmp_path, trained):
    good = write_h5(tmp_path / "good.h5", named_arrays(trained("v1"), keras_v1, "kernel", "bias", NORM))
    (tmp_path / "cut.h5").write_bytes(good.read_bytes()[:5000])
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"features.0.0.weight": Evil()}))
    torch.save({"a": Evil()}, tmp_path / "evil.zip.pth")
    part = {k: v for k, v in models.mobilenet_v2(width_mult=0.75).state_dict().items() if "3.conv.1" not in k}
    torch.save(part, tmp_path / "part.pth")
    torch.save(models.resnet18().state_dict(), tmp_path / "resnet.pth")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.iterdir())
    for name, said in (
        ("cut.h5", "damaged HDF5 file"),
        ("evil.pth", "evil.pth: "),
        ("evil.zip.pth", "evil.zip.pth: "),
        ("part.pth", "part.pth: the weights fit no network; the nearest network is V2 at alpha 0.75"),
        ("resnet.pth", "resnet.pth: no network here has tensors like these"),
        ("notes.txt", "not a known weight file"),
        ("none.pth", "no such file"),
        (".", "several weight files (cut.h5, evil.pth, evil.zip.pth, good.h5, part.pth, resnet.pth); name one"),
        ("empty", "a folder without weights"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            line = command("import", tmp_path / name, "--out", tmp_path / "b").line
        assert said in line
    assert sorted(tmp_path.iterdir()) == before


def test_where_a_bundle_can_go(command, tmp_path, trained):
    good = write_h5(tmp_path / "good.h5", named_arrays(trained("v1"), keras_v1, "kernel", "bias", NORM))
    photos = tmp_path / "photos"
    photos.mkdir()
    assert command("import", good, "--out", photos).code == 0  # an empty folder
    first = Bundle.load(photos).digest
    assert command("import", good, "--out", photos, "--resolution", 128).code == 0  # a bundle
    assert Bundle.load(photos).digest != first
    holiday = tmp_path / "holiday"
    holiday.mkdir()
    (holiday / "a.jpg").write_bytes(b"x")
    said = "exists and isn't a bundle, and would be replaced; choose another --out"
    assert said in command("import", good, "--out", holiday).line
    assert said in command("import", good, "--out", good).line
    assert (holiday / "a.jpg").exists()
    assert "a part of the path is a file" in command("import", good, "--out", good / "b").line
    assert "the name is too long" in command("import", good, "--out", tmp_path / ("a" * 300)).line
    assert "symmetric" in command("import", good, "--out", tmp_path / "b", "--padding", "sam").line
    assert {p.name for p in tmp_path.iterdir()} == {"good.h5", "photos", "holiday"}


def test_conventions_tell_narrow_v3s_apart():
    for convention in ("slim", "torchvision"):
        arch = scale(zoo.V3_SMALL, 0.75, num_classes=3, convention=convention)
        naming = next(n for n in namings.NAMINGS if n.name == "torchvision's V3")
        tensors = {
            s.theirs[0]: np.zeros(s.shape[:2] if s.op.kind == "linear" else s.shape)
            for s in recognise.slots(naming, arch)
        }
        assert recognise.identify(tensors).arch.convention == convention
