import json
import shutil

import numpy as np
import onnx
import pytest
from small import quantized

from mobilenets.arch import zoo
from mobilenets.commands.evaluate import evaluate
from mobilenets.deploy import engines, export, lowering
from mobilenets.deploy.writers import onnx as onnx_graph
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, random_bundle
from mobilenets.model.card import CARD_KEY, Card

PRECISIONS = ["float32", "int8"]


@pytest.fixture
def bundle(make_bundle, pixels, tmp_path):
    """`bundle("int8")`: saved, with digest."""

    def make(precision, name="v1"):
        b = make_bundle(name)
        if precision == "int8":
            b = quantized(b, pixels)
        return b.save(tmp_path / precision)

    return make


@pytest.fixture
def images(write_images, tmp_path):
    """Data with the network's classes."""
    return write_images(tmp_path / "data", {f"{s}/class {i}": 3 for s in ("train", "val") for i in range(10)}, side=40)


@pytest.mark.parametrize("name", ["v1", "v2"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_file_and_its_proof(bundle, pixels, tmp_path, precision, name):
    b = bundle(precision, name)
    made = export.export_bundle(b, pixels, tmp_path / "m.onnx", "noise")
    assert made.path == tmp_path / "m.onnx"
    assert made.size_bytes == made.path.stat().st_size
    assert made.images == 24
    a, o = (engines.load(p)(pixels)["probabilities"] for p in (tmp_path / precision, made.path))
    assert made.difference == pytest.approx(np.abs(a - o).max(), rel=1e-3, abs=1e-6)
    assert made.agreement == pytest.approx(100 * (a.argmax(1) == o.argmax(1)).mean())
    assert not [p for p in tmp_path.iterdir() if "tmp" in p.name]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_card_is_inside_with_its_parent(bundle, pixels, tmp_path, precision):
    b = bundle(precision)
    export.export_bundle(b, pixels, tmp_path / "m.onnx", "noise")
    meta = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    card = Card.from_json(json.loads(meta[CARD_KEY]))
    assert card == b.card.replace(parent=b.digest)
    assert b.digest


def turned(tensors, precision):
    """The classes of the last layer moved by one: same shapes, another network."""
    names = {"classifier.weight", "classifier.bias", *({"classifier.weight_scale"} if precision == "int8" else ())}
    return {k: np.roll(v, 1, 0) if k in names else v for k, v in tensors.items()}


def shrunk(tensors, precision):
    """One layer's weights changed a little: the answers stay alike, the probabilities don't."""
    name = "blocks.3.pointwise.weight_scale" if precision == "int8" else "blocks.3.pointwise.norm.weight"
    return {k: (v * 0.7).astype(v.dtype) if k == name else v for k, v in tensors.items()}


@pytest.mark.parametrize("spoil", [turned, shrunk])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_wrong_export_leaves_no_file(bundle, pixels, tmp_path, monkeypatch, precision, spoil):
    b, right = bundle(precision), onnx_graph.onnx_model
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(onnx_graph, "onnx_model", lambda b, *a: right(Bundle(b.card, spoil(b.tensors, precision)), *a))
    with pytest.raises(UserError, match=r"m\.onnx was not kept: it differs from PyTorch"):
        export.export_bundle(b, pixels, tmp_path / "m.onnx", "noise")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["fold", "pads"])
def test_a_wrong_lowering_is_caught(make_bundle, pixels, tmp_path, monkeypatch, name):
    b = make_bundle("v1", padding="same")
    right = getattr(lowering, name)
    wrong = {
        "fold": lambda card, tensors: right(card.replace(arch=card.arch.replace(bn_eps=0.3)), tensors),
        "pads": lambda *of: (*right(*of)[2:], *right(*of)[:2]),
    }
    monkeypatch.setattr(lowering, name, wrong[name])
    with pytest.raises(UserError, match="differs from PyTorch"):
        export.export_bundle(b, pixels, tmp_path / "m.onnx", "noise")
    assert not list(tmp_path.iterdir())


def test_a_wrong_export_leaves_the_old_file(bundle, pixels, tmp_path, monkeypatch):
    b = bundle("float32")
    export.export_bundle(b, pixels, tmp_path / "m.onnx", "noise")
    before = (tmp_path / "m.onnx").read_bytes()
    right = onnx_graph.onnx_model
    monkeypatch.setattr(onnx_graph, "onnx_model", lambda b, *a: right(Bundle(b.card, turned(b.tensors, "float32")), *a))
    with pytest.raises(UserError):
        export.export_bundle(b, pixels, tmp_path / "m.onnx", "noise")
    assert (tmp_path / "m.onnx").read_bytes() == before


def test_a_network_that_gives_no_numbers_is_not_kept(make_bundle, pixels, tmp_path):
    b = make_bundle("v1")
    tensors = dict(b.tensors) | {"classifier.bias": np.full(10, np.nan, np.float32)}
    with pytest.raises(UserError, match="was not kept"):
        export.export_bundle(Bundle(b.card, tensors), pixels, tmp_path / "m.onnx", "noise")
    assert not list(tmp_path.iterdir())


def test_no_images_no_export(bundle, pixels, tmp_path):
    with pytest.raises(UserError, match="none of nothing can be read"):
        export.export_bundle(bundle("float32"), pixels[:0], tmp_path / "m.onnx", "nothing")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_int8_is_under_two_fifths_of_float(tmp_path, name):
    sizes = {}
    for precision in PRECISIONS:
        b = random_bundle(zoo.arch(name, 0.25 if name == "v1" else 0.35, 32, 1000), precision)
        path = tmp_path / f"{precision}.onnx"
        path.write_bytes(onnx_graph.onnx_model(b))
        sizes[precision] = path.stat().st_size
    assert sizes["int8"] < 0.4 * sizes["float32"]


# ---- the verb ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_verb(bundle, images, command, tmp_path, precision):
    bundle(precision)
    got = command("export", tmp_path / precision, images, "--out", tmp_path / "new" / "m.onnx", "--json").json
    assert set(got) == {
        "path", "engine", "precision", "size_bytes", "agreement", "difference", "images", "data",
        "task", "sha256", "top1", "split", "limits", "ties", "ram_bytes",
    }  # fmt: skip
    assert got["engine"] == "onnxruntime"
    assert got["split"] == "val"
    assert got["top1"] == pytest.approx(evaluate(tmp_path / "new" / "m.onnx", str(images)).top1)
    assert got["path"] == str(tmp_path / "new" / "m.onnx")
    assert got["precision"] == precision
    assert got["images"] == 30  # all of val
    assert got["agreement"] > 96  # one of 30 at a tie
    assert got["data"] == str(images)
    ran = command("export", tmp_path / precision, images, "--out", tmp_path / "m.onnx")
    assert ran.code == 0
    assert "agreement" in ran.out
    assert f"{got['agreement']:.2f}" in ran.out


def test_without_data_named_the_cards_own_is_opened(make_bundle, images, command, tmp_path):
    b = make_bundle("v1")
    Bundle(b.card.replace(data={"source": str(images), "split_seed": 3}), b.tensors).save(tmp_path / "float")
    got = command("export", tmp_path, "--out", tmp_path / "m.onnx", "--json").json
    assert got["data"] == str(images)
    assert (tmp_path / "m.onnx").is_file()
    shutil.rmtree(images)
    ran = command("export", tmp_path, "--out", tmp_path / "n.onnx", "--json")
    assert (ran.json["data"], ran.json["images"]) == ("generated noise", 256)
    assert "top1" not in ran.json or ran.json["top1"] is None
    assert "proved on generated images, and accuracy isn't measured" in ran.err
    line = command("export", tmp_path, "--out", tmp_path / "i.onnx", "--precision", "int8").line
    assert "int8 needs images, labelled or not; name a folder of some" in line
    assert "can't be opened" in line
    assert not (tmp_path / "i.onnx").exists()


@pytest.mark.parametrize("precision", ["float16", "int8"])
@pytest.mark.parametrize("folders", [{".": 12}, {"holiday": 6, "garden/2024": 6}])
def test_images_without_the_networks_labels_prove_a_file(bundle, write_images, command, tmp_path, precision, folders):
    bundle("float32")
    source = write_images(tmp_path / "some", folders, side=40)
    ran = command(
        "export", tmp_path / "float32", source, "--precision", precision, "--out", tmp_path / "m.onnx", "--json"
    )
    got = ran.json
    assert (got["data"], got["images"], got["precision"]) == (str(source), 12, precision)
    assert got["top1"] is None
    assert got["agreement"] >= 11 / 12 * 100 - 0.01
    assert "accuracy isn't measured, as the labels aren't the network's" in ran.err


def test_quantizing_takes_any_images(bundle, write_images, command, tmp_path):
    bundle("float32")
    source = write_images(tmp_path / "some", {".": 12}, side=40)
    ran = command("quantize", tmp_path / "float32", source, "--out", tmp_path / "int8")
    assert ran.code == 0, ran.err
    assert Bundle.load(tmp_path / "int8").card.precision == "int8"
    line = command("quantize", tmp_path / "float32", source, "--max-drop", "1", "--out", tmp_path / "q").line
    assert "no class folders" in line


def test_generated_images_are_all_different_and_the_same_each_time(make_bundle):
    preprocess = make_bundle("v1").card.preprocess
    some = export.generated(preprocess, 12)
    assert some.shape == (12, 32, 32, 3)
    assert len({image.tobytes() for image in some}) == 12
    np.testing.assert_array_equal(some, export.generated(preprocess, 12))
    assert some.std((1, 2)).min() > 5


def test_card_and_labels_lie_beside_the_file(bundle, images, command, tmp_path):
    bundle("float32")
    line = ("export", tmp_path / "float32", images, "--json", "--out")
    for name in ("m.onnx", "m.ncnn"):
        assert command(*line, tmp_path / name).code == 0
        card = Card.from_json(json.loads((tmp_path / f"{name}.card.json").read_text()))
        assert card == engines.load(tmp_path / name).card
        assert (tmp_path / f"{name}.labels.txt").read_text().splitlines() == list(card.labels)
    ran = command(*line, tmp_path / "m.onnx", "--task", "features")  # what an export left there is replaced
    assert ran.code == 0, ran.err
    assert not (tmp_path / "m.onnx.labels.txt").exists()
    assert json.loads((tmp_path / "m.onnx.card.json").read_text())["task"] == "features"


@pytest.mark.parametrize("name", ["m.onnx.labels.txt", "m.onnx.card.json"])
def test_the_users_own_files_beside_it_are_not_replaced(bundle, images, command, tmp_path, name):
    bundle("float32")
    (tmp_path / name).write_text("mine")
    got = command("export", tmp_path / "float32", images, "--out", tmp_path / "m.onnx")
    assert f"{name} is there already, and not of an export" in got.line
    assert (tmp_path / name).read_text() == "mine"
    assert not (tmp_path / "m.onnx").exists()


def test_the_limits_are_shown_and_ties_counted(bundle, pixels, tmp_path):
    from mobilenets.tasks import classify

    made = export.export_bundle(bundle("int8"), pixels, tmp_path / "m.onnx", "noise")
    assert made.limits == classify.LIMITS["int8"]
    assert made.to_json()["limits"] == made.limits
    assert export.Export.from_json(json.loads(json.dumps(made.to_json()))) == made
    reference = np.array([[0.51, 0.49], [0.9, 0.1], [0.2, 0.8], [0.52, 0.48]], np.float32)
    other = np.array([[0.49, 0.51], [0.4, 0.6], [0.2, 0.8], [0.53, 0.47]], np.float32)
    found = classify.TASK.parity({"probabilities": reference}, {"probabilities": other}, "int8")
    assert (found.agreement, found.ties, found.limits) == (50.0, 1, classify.LIMITS["int8"])
    assert not found.ok


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("BUNDLE", "DATA", "--out", "m.onnx", "--to", "onxn"), "unknown format 'onxn': did you mean 'onnx'"),
        (("BUNDLE", "DATA"), "--out"),
        (("BUNDLE", "--out", "m.onnx", "--precision", "int8"), "name a folder of some"),
        (("DATA", "DATA", "--out", "m.onnx"), "no bundle here"),
        (("BUNDLE", "gone", "--out", "m.onnx"), "gone"),
        (("BUNDLE", "DATA", "--out", "FILE/m.onnx"), "can't write"),
        (("BUNDLE", "DATA", "--out", "FOLDER", "--to", "onnx"), "for onnx, its name has to end in .onnx"),
        (("BUNDLE", "DATA", "--out", "FOLDER"), "no format has the suffix ''; end it in one of .onnx"),
        (("BUNDLE", "DATA", "--out", "m.onnx", "--precision", "int9"), "unknown precision for onnxruntime 'int9'"),
        (("BUNDLE", "DATA", "--out", "m.onnx", "--batch", "-1"), "batch must be 0 or more"),
    ],
)
def test_bad_arguments(bundle, images, command, tmp_path, monkeypatch, line, message):
    bundle("float32")
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    words = {"BUNDLE": "float32", "DATA": images, "FILE/m.onnx": "file/m.onnx", "FOLDER": "folder"}
    assert message in command("export", *(words.get(a, a) for a in line)).line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "file", "float32", "folder"]


def test_int8_of_a_float_bundle_is_quantized_on_the_way(bundle, images, command, tmp_path):
    bundle("float32")
    line = ("export", tmp_path / "float32", images, "--precision", "int8", "--json")
    got = command(*line, "--out", tmp_path / "m.onnx").json
    assert got["precision"] == "int8"
    assert engines.load(tmp_path / "m.onnx").card.precision == "int8"
    assert onnx_graph.stored_precision(tmp_path / "m.onnx") == "int8"


def test_a_file_of_one_batch_takes_any_number_of_images(bundle, pixels, tmp_path):
    b = bundle("float32")
    made = export.export_bundle(b, pixels[:9], tmp_path / "m.onnx", "noise", batch=4)
    assert made.agreement >= 88  # of 9 images, over 3 calls
    engine = engines.load(made.path)
    assert onnx.load(made.path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4
    for n in (1, 4, 7):
        x, y = (e(pixels[:n])["probabilities"] for e in (engine, engines.load(tmp_path / "float32")))
        np.testing.assert_allclose(x, y, atol=1e-4)


def test_a_file_of_another_precision_is_not_kept(bundle, pixels, tmp_path, monkeypatch):
    b = bundle("int8")
    monkeypatch.setattr("mobilenets.deploy.engines.onnxruntime.stored_precision", lambda _path: "float32")
    with pytest.raises(UserError, match=r"m\.onnx was not kept: onnxruntime made it float32, not the int8"):
        export.export_bundle(b, pixels, tmp_path / "m.onnx", "noise")
    assert not (tmp_path / "m.onnx").exists()


def test_a_float_bundle_is_not_called_int8(bundle, pixels, tmp_path):
    with pytest.raises(UserError, match="a float32 bundle gives no int8 file; quantize makes an int8 bundle"):
        export.export_bundle(bundle("float32"), pixels, tmp_path / "m.onnx", "noise", precision="int8")


@pytest.mark.parametrize("suffix", [".openvino", ".ncnn"])
def test_a_folder_with_the_users_own_files_is_not_replaced(make_bundle, pixels, tmp_path, suffix):
    path, engine = tmp_path / f"x{suffix}", {".openvino": "openvino", ".ncnn": "ncnn"}[suffix]
    export.export_bundle(make_bundle("v1"), pixels, path, "noise", engine)
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    export.export_bundle(make_bundle("v2"), pixels, path, "noise", engine)  # another export's folder is
    assert {p.name for p in path.iterdir()} == set(before)
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    (path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files too \(notes\.txt\): choose another name"):
        export.export_bundle(make_bundle("v1"), pixels, path, "noise", engine)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before | {"notes.txt": b"mine"}
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []
