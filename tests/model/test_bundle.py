import errno
import hashlib
import json
import resource
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from mobilenets import files
from mobilenets.arch import zoo
from mobilenets.errors import UserError
from mobilenets.model.bundle import CARD, WEIGHTS, Bundle, find_bundle, is_bundle
from mobilenets.model.card import FORMAT, Metric, classifier_card
from mobilenets.model.encodings import tensor_shapes
from mobilenets.model.images import Preprocess


def small(value=0.5, **changes):
    """A Bundle of the smallest network, every tensor full of `value`."""
    card = classifier_card(
        zoo.arch("v1", 0.25, 32, 2), Preprocess(32), ("cat", "dög"),
        metrics=(Metric("top1", 98.5, "pets", "val", 200),), recipe={"epochs": 3}, data={"source": "pets"},
        licence="CC0", parent="abc",
    )  # fmt: skip
    shapes = tensor_shapes(card)
    tensors = {k: np.full(v, value, np.int64 if k.endswith("tracked") else np.float32) for k, v in shapes.items()}
    return Bundle(card.replace(**changes), tensors)


def rewrite_card(path, resign=False, **changes):
    card = json.loads((path / CARD).read_text())
    card.update(changes)
    if resign:
        body = {k: v for k, v in card.items() if k != "digest"}
        card["digest"] = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (path / CARD).write_text(json.dumps(card))


@pytest.fixture
def saved(tmp_path):
    small().save(tmp_path / "b")
    return tmp_path / "b"


def tree(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_round_trip(tmp_path):
    b = small()
    written = b.save(tmp_path / "deep" / "b")
    read = Bundle.load(tmp_path / "deep" / "b")
    assert read.card == written.card
    assert read.card.replace(created="", versions={}) == b.card
    assert read.digest == written.digest
    assert set(read.tensors) == set(b.tensors)
    for name, value in b.tensors.items():
        assert read.tensors[name].dtype == value.dtype
        assert read.tensors[name].shape == value.shape
        assert np.array_equal(read.tensors[name], value)


def test_a_networks_weights_round_trip(tmp_path, make_bundle):
    b = make_bundle("v2")
    b.save(tmp_path / "b")
    read = Bundle.load(tmp_path / "b")
    assert all(np.array_equal(read.tensors[k], v) for k, v in b.tensors.items())
    assert read.card.arch == b.card.arch


def test_the_card_is_stamped(saved):
    card = Bundle.load(saved).card
    assert set(card.versions) == {"python", "mobilenets", "torch", "numpy"}
    assert card.versions["numpy"] == np.__version__
    assert card.created.startswith("20")


def test_transposed_tensors_are_saved_as_they_look(tmp_path):
    b = small()
    turned = np.arange(512, dtype=np.float32).reshape(256, 2).T
    Bundle(b.card, {**b.tensors, "classifier.weight": turned}).save(tmp_path / "b")
    assert np.array_equal(Bundle.load(tmp_path / "b").tensors["classifier.weight"], turned)


def test_the_digest_depends_on_weights_and_card(tmp_path):
    def digest(name, b):
        return b.save(tmp_path / name).digest

    base = digest("a", small())
    assert base != digest("b", small(value=0.25))
    assert base != digest("c", small(licence="MIT"))


def test_altered_weights(saved):
    data = bytearray((saved / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (saved / WEIGHTS).write_bytes(data)
    with pytest.raises(UserError, match=r"weights\.safetensors: altered or damaged"):
        Bundle.load(saved)


def test_altered_card(saved):
    rewrite_card(saved, config={"labels": ["cat", "cow"]})
    with pytest.raises(UserError, match=r"card\.json: altered since it was written"):
        Bundle.load(saved)


def test_missing_weights(saved):
    (saved / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors is missing"):
        Bundle.load(saved)


def test_missing_card(saved):
    (saved / CARD).unlink()
    assert not is_bundle(saved)
    with pytest.raises(UserError, match=r"not a bundle: card\.json is missing"):
        Bundle.load(saved)


def test_newer_format(saved):
    rewrite_card(saved, resign=True, format=FORMAT + 1)
    with pytest.raises(UserError, match=f"newer mobilenets .card format {FORMAT + 1}.*pip install --upgrade"):
        Bundle.load(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": "1"}', '{"labels": []}'])
def test_a_card_that_is_none(saved, text):
    (saved / CARD).write_text(text)
    with pytest.raises(UserError, match=r"card\.json: not "):
        Bundle.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"labels": ["cat"]}}, "1 labels for a network of 2 classes"),
        ({"config": {"labels": [1, 2]}}, "labels aren't a list of names"),
        ({"head": {"ops": [], "outputs": [], "own": []}}, "names no outputs"),
        ({"head": {"ops": [{"kind": "convolve"}], "outputs": [], "own": []}}, "unknown operation kind 'convolve'"),
        (
            {"head": {"ops": [], "outputs": [{"name": "a", "op": "classifer", "meaning": ""}], "own": []}},
            "did you mean 'classifier'",
        ),
        ({"encodings": {"classifier": "hlaf"}}, "unknown encoding 'hlaf': did you mean 'half'"),
        ({"encodings": {"pool": "half"}}, "weights of pool, which has none"),
        ({"precision": "int9"}, "unknown precision 'int9': did you mean 'int8'"),
        ({"arch": {"rows": []}}, "not an Arch"),
        ({"arch": None}, "malformed"),
        ({"preprocess": {}}, "not a Preprocess"),
        ({"metrics": [{"name": "top1"}]}, "malformed"),
        ({"config": {"labels": ["cat", "\x1b[31mdog"]}}, "labels aren't a list of names"),
        ({"config": {"labels": ["cat", "\ud800"]}}, "labels aren't a list of names"),
        ({"config": []}, "malformed"),
        ({"licence": ["x"]}, r"card.licence is \['x'\], not a text"),
        ({"parent": 3}, "card.parent is 3, not str | None"),
        ({"versions": []}, "card.versions is"),
        ({"recipe": 1.5}, "card.recipe is 1.5"),
        ({"recipe": {"teacher": {"digest": 3}}}, "recipe.teacher.digest is 3, not a text"),
        ({"data": {"counts": {"train": "3"}}}, "data.counts.train is '3', not a whole number"),
        (
            {"metrics": [{"name": "top1", "value": "x", "data": "d", "split": "val", "count": 1}]},
            "metrics.0..value is 'x'",
        ),
        ({"float_ops": 3}, "malformed"),
        ({"files": True}, "lists files True"),
        ({"files": [WEIGHTS]}, "lists files"),
        ({"files": {}}, r"lists files \[\]"),
        ({"files": {"../../secret": "0", WEIGHTS: "0"}}, "lists files"),
    ],
)
def test_a_malformed_card_with_a_right_digest(saved, changes, message):
    rewrite_card(saved, resign=True, **changes)
    with pytest.raises(UserError, match=message):
        Bundle.load(saved)


def test_cards_nested_too_deep(saved):
    (saved / CARD).write_text('{"format": 1, "x": ' + "[" * 100_000)
    with pytest.raises(UserError, match=r"card\.json: not readable as JSON: nested too deep"):
        Bundle.load(saved)


def test_weights_that_are_no_numbers_with_a_right_digest(saved):
    tensors = {k: np.zeros(v.shape, bool) for k, v in small().tensors.items()}
    (saved / WEIGHTS).write_bytes(safetensors.numpy.save(tensors))
    rewrite_card(saved, resign=True, files={WEIGHTS: files.sha256(saved / WEIGHTS)})
    with pytest.raises(UserError, match="is bool, no numbers"):
        Bundle.load(saved)


def test_weights_of_another_format_with_a_right_digest(saved):
    (saved / WEIGHTS).write_bytes(b"no safetensors")
    rewrite_card(saved, resign=True, files={WEIGHTS: files.sha256(saved / WEIGHTS)})
    with pytest.raises(UserError, match="not readable as safetensors"):
        Bundle.load(saved)


def test_saving_again_replaces(saved):
    small(value=0.125).save(saved)
    assert Bundle.load(saved).tensors["classifier.bias"][0] == 0.125
    assert [p.name for p in saved.parent.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission denied")],
)
def test_a_failing_write_leaves_the_old_bundle(saved, monkeypatch, number, message):
    before = tree(saved.parent)

    def fail(*_args, **_kwargs):
        raise OSError(number, "no")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(UserError, match=f"can't write .*{message}; nothing was left half-written"):
        small(value=0.125).save(saved)
    assert tree(saved.parent) == before
    with pytest.raises(UserError, match=message):
        small().save(saved.parent / "new")
    assert [p.name for p in saved.parent.iterdir()] == ["b"]


def test_a_disk_that_fills_while_the_weights_are_written(saved):
    """The operating system itself refuses half-way: here for a limit on a file's size, as it would for a full disk."""
    before = tree(saved.parent)
    large = Bundle(small().card, {"w": np.zeros(1_000_000, np.float32)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    try:
        with pytest.raises(UserError, match="can't write"):
            large.save(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(saved.parent) == before


def test_an_unexpected_failure_leaves_the_old_bundle_too(saved, monkeypatch):
    before = tree(saved.parent)
    monkeypatch.setattr("mobilenets.model.bundle.stamp", lambda _card: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        small().save(saved)
    assert tree(saved.parent) == before


def test_interrupted_between_moving_the_old_away_and_the_new_in(saved, monkeypatch):
    before, rename = tree(saved.parent), Path.rename

    def interrupted(self, target):
        if ".tmp." in self.name:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small(value=0.125).save(saved)
    assert tree(saved.parent) == before


def test_atomic_file(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def half(error):
        with files.atomic_file(path) as tmp:
            tmp.write_text("half")
            raise error

    with pytest.raises(KeyboardInterrupt):
        half(KeyboardInterrupt())
    with pytest.raises(UserError, match="disk is full"):
        half(OSError(errno.ENOSPC, "no space"))
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_an_oserror_that_is_no_disks_fault_stays_one(tmp_path):
    with pytest.raises(ConnectionError), files.atomic_file(tmp_path / "a"):
        raise ConnectionError(errno.ECONNRESET, "reset")


def test_find_bundle(saved):
    run = saved.parent / "run"
    small().save(run / "float")
    assert find_bundle(saved) == saved
    assert find_bundle(run) == run / "float"
    with pytest.raises(UserError, match="no bundle here"):
        find_bundle(saved.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("classifier.bias"), "classifier.bias is missing"),
        (lambda t: t.update(extra=np.zeros(3)), "extra is not of this network"),
        (lambda t: t.update({"classifier.bias": np.zeros(3)}), r"classifier.bias is \(3,\), not \(2,\)"),
    ],
)
def test_tensors_that_are_not_the_networks_are_refused(tmp_path, change, message):
    b = small()
    tensors = dict(b.tensors)
    change(tensors)
    Bundle(b.card, tensors).save(tmp_path / "b")
    with pytest.raises(UserError, match=message):
        Bundle.load(tmp_path / "b")


def test_a_folder_that_is_no_bundle_is_never_replaced(make_bundle, tmp_path):
    bundle = make_bundle("v1")
    photos = tmp_path / "photos"
    photos.mkdir()
    bundle.save(photos)  # it is empty
    bundle.save(photos)  # a bundle is there
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"irreplaceable")
    (tmp_path / "file").write_bytes(b"irreplaceable")
    for name in ("mine", "file"):
        with pytest.raises(UserError, match=f"{name} exists and isn't a bundle"):
            bundle.save(tmp_path / name)
    assert (tmp_path / "mine" / "photo.jpg").read_bytes() == (tmp_path / "file").read_bytes() == b"irreplaceable"


# ---- 16-bit weights, and bundles that come with the package ---------------------------------------------------------


def test_weights_in_16_bits(make_bundle, tmp_path):
    bundle = make_bundle("v1")
    whole, half = bundle.save(tmp_path / "whole"), bundle.encoded("half").save(tmp_path / "half")
    sizes = [(tmp_path / n / "weights.safetensors").stat().st_size for n in ("whole", "half")]
    assert 0.5 < sizes[1] / sizes[0] < 0.6
    assert whole.digest != half.digest
    back = Bundle.load(tmp_path / "half").dense().tensors
    for name, was in bundle.tensors.items():
        assert back[name].dtype == was.dtype
        np.testing.assert_allclose(back[name], was, rtol=1e-3, atol=1e-7)
        if was.ndim == 1:  # norms and biases keep all their digits
            assert np.array_equal(back[name], was)


def test_weights_beyond_16_bits_keep_32(tmp_path):
    b = small()
    tensors = {k: v.copy() for k, v in b.tensors.items()}
    tensors["classifier.weight"][0, 0] = 1e6
    Bundle(b.card, tensors).encoded("half").save(tmp_path / "b")
    assert np.array_equal(
        Bundle.load(tmp_path / "b").dense().tensors["classifier.weight"], tensors["classifier.weight"]
    )


@pytest.fixture
def packaged_as(make_bundle, tmp_path, monkeypatch):
    """A bundle that comes with the package under this name; the working folder is empty."""
    from mobilenets.model import bundle

    def package(name):
        monkeypatch.setattr(bundle, "MODELS", tmp_path / "models")
        make_bundle("v1").encoded("half").save(tmp_path / "models" / name)
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        return tmp_path / "models" / name

    return package


def test_a_packaged_network_by_name(packaged_as, write_images, command, tmp_path):
    """Its name serves wherever a path does."""
    path = packaged_as("pets-v1-0.25")
    image = write_images(tmp_path / "images", {"a": 1}) / "a" / "000.png"
    by_name = command("predict", "pets-v1-0.25", image)
    assert by_name.code == 0, by_name.err
    assert by_name.out == command("predict", path, image).out
    assert command("show", "pets-v1-0.25").code == 0
    assert find_bundle(Path("pets-v1-0.25")) == path


def test_what_is_here_goes_before_what_is_packaged(packaged_as, make_bundle):
    packaged_as("mine")
    make_bundle("v2").save(Path("mine"))
    assert find_bundle(Path("mine")) == Path("mine")


def test_a_name_that_is_nearly_a_packaged_one(packaged_as, command):
    packaged_as("pets-v1-0.25")
    assert "did you mean the packaged pets-v1-0.25?" in command("predict", "pets-v1", "x.png").line
    assert "or one of pets-v1-0.25" in command("quantize", "pets-v", "digits", "--out", "b").line
