import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mobilenets.commands import bench as runtimes
from mobilenets.commands import pipeline as exports
from mobilenets.compression.quantize import quantize_bundle
from mobilenets.deploy import engines, peers
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle


@pytest.fixture(scope="module")
def made(make_bundle, pixels, tmp_path_factory):
    """A run's folder with a float and an int8 bundle, and the data it was trained on."""
    root = tmp_path_factory.mktemp("run")
    for split in ("train", "val"):
        for i in range(10):
            folder = root / "data" / split / f"class {i}"
            folder.mkdir(parents=True)
            for j in range(2):
                Image.fromarray(pixels[2 * i + j]).save(folder / f"{j:03d}.png")
    b = make_bundle("v2")
    b = Bundle(b.card.replace(data={"source": str(root / "data")}), b.tensors).save(root / "out" / "float")
    quantize_bundle(b, pixels).save(root / "out" / "int8")
    (root / "out" / "run.json").write_text("{}")
    return root / "out"


@pytest.fixture
def run(made, tmp_path):
    """A test's own copy of it."""
    return shutil.copytree(made, tmp_path / "out")


@pytest.mark.slow
def test_a_run_on_an_engine_with_its_accuracy(run, command):
    line = ("bench", run, "--engine", "onnxruntime", "--precision", "float32,int8", "--rounds", 1, "--batch", "1,2")
    rows = command(*line, "--json").json
    assert [(r["engine"], r["precision"]) for r in rows] == [("onnxruntime", "float32"), ("onnxruntime", "int8")]
    for r in rows:
        assert r["agreement"] >= 90
        assert 0 <= r["top1"] <= 100
        assert set(r["images_per_s"]) == {"1", "2"}
    kept = run / exports.FOLDER
    assert {p.name for p in kept.iterdir()} == {"exports.json", "onnxruntime-float32.onnx", "onnxruntime-int8.onnx"}
    before = {p.name: p.stat().st_mtime_ns for p in kept.iterdir()}
    ran = command(*line)
    assert ran.code == 0, ran.err
    assert "as PyTorch" in ran.out
    assert {p.name: p.stat().st_mtime_ns for p in kept.iterdir()} == before  # made once


def test_a_changed_network_is_exported_again(run):
    record = run / exports.FOLDER / exports.RECORD
    pairs = exports.combinations(["onnxruntime"], ["float32"], "float32")
    (first,) = exports.make(run, pairs, run / exports.FOLDER, None, None)
    made = json.loads(record.read_text())
    made["onnxruntime-float32.onnx"]["of"][0] = "another"
    record.write_text(json.dumps(made))
    first.path.write_bytes(b"old")
    (again,) = exports.make(run, pairs, run / exports.FOLDER, None, None)
    assert again.score == first.score
    assert engines.load(again.path).card.precision == "float32"


@pytest.mark.slow
def test_another_int8_bundle_is_exported_again(run, pixels):
    pairs = exports.combinations(["onnxruntime"], ["int8"], "float32")
    (first,) = exports.make(run, pairs, run / exports.FOLDER, None, None)
    before = first.path.stat().st_mtime_ns
    quantize_bundle(Bundle.load(run / "float"), pixels[:4]).save(run / "int8")
    (again,) = exports.make(run, pairs, run / exports.FOLDER, None, None)
    assert again.path.stat().st_mtime_ns > before
    assert engines.load(again.path).card.parent == Bundle.load(run / "int8").digest


def test_a_file_that_fails_is_a_line_and_the_others_are_measured(run, command, monkeypatch):
    from mobilenets.deploy import export

    right = export.export_bundle

    def fails(source, *a):
        if a[4] == "int8":
            raise UserError("no such operator")
        return right(source, *a)

    monkeypatch.setattr(exports, "export_bundle", fails)
    (run / exports.FOLDER / exports.RECORD).unlink(missing_ok=True)
    ran = command("bench", run, "--engine", "onnxruntime", "--precision", "float32,int8", "--rounds", 1, "--batch", 1)
    assert ran.code == 0
    assert "onnxruntime int8: no such operator" in ran.out
    assert ["onnxruntime", "float32"] in [row.split()[:2] for row in ran.out.splitlines()]


def test_all_engines_and_precisions_are_those_that_are_there():
    pairs = exports.combinations(["all"], ["all"], "float32")
    assert ("onnxruntime", "int8") in pairs
    assert {n for n, _ in pairs} <= set(engines.installed())
    assert all(p == "int8" for _, p in exports.combinations(["all"], ["all"], "int8"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("OUT", "--engine", "onnxrutime"), "did you mean 'onnxruntime'"),
        (("OUT", "--precision", "int9"), "unknown precision 'int9'"),
        (("OUT", "OUT", "--engine", "all"), "take one bundle or run"),
        (("INT8", "--engine", "onnxruntime", "--precision", "float32"), "can't run a int8 bundle in float32"),
        (("gone", "--peers"), "no such file or folder"),
    ],
)
def test_bad_arguments(run, command, monkeypatch, line, message):
    monkeypatch.chdir(run)
    words = {"OUT": ".", "INT8": "int8"}
    assert message in command("bench", *(words.get(w, w) for w in line)).line


# ---- peers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["PyTorch eager", "PyTorch channels_last", pytest.param("torch.onnx.export, onnxruntime", marks=pytest.mark.slow)],
)
def test_a_peer_of_our_own_module_answers_as_the_bundle(run, pixels, name):
    import torch

    before = torch.get_num_threads()
    peer = peers.load(name, run / "float", 1)
    ours = engines.load(run / "float")
    torch.set_num_threads(before)
    assert peer.name == name
    x, y = (engine(pixels[:3])["probabilities"] for engine in (peer, ours))
    np.testing.assert_allclose(x, y, atol=1e-4)


@pytest.mark.parametrize("name", ["torchvision eager", "timm eager"])
def test_a_librarys_network_has_our_size(run, pixels, name):
    import torch

    before = torch.get_num_threads()
    peer = peers.load(name, run / "float", 1)
    torch.set_num_threads(before)
    ours = sum(v.size for k, v in Bundle.load(run / "float").tensors.items() if "num_batches" not in k)
    theirs = sum(v.numel() for k, v in peer.run.state_dict().items() if "num_batches" not in k)
    assert theirs == ours
    scores = peer(pixels[:3])["probabilities"]
    assert scores.shape == (3, 10)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)


def test_which_peers_there_are(make_bundle):
    assert "torchvision eager" not in peers.available(make_bundle("v1").card.arch)
    assert {"torchvision eager", "timm eager", "torch.compile"} <= set(peers.available(make_bundle("v2").card.arch))
    with pytest.raises(UserError, match="did you mean 'timm eager'"):
        peers.load("timm eagre", None, 1)


@pytest.mark.slow
def test_peers_are_measured_beside_a_file(run, command, monkeypatch):
    monkeypatch.setattr(peers, "PEERS", ("PyTorch eager",))
    rows = command("bench", run / "float", "--peers", "--rounds", 1, "--batch", 1, "--json").json
    assert [(r["path"], r["engine"]) for r in rows] == [
        (str(run / "float"), "torch"),
        ("PyTorch eager", "PyTorch eager"),
    ]
    assert isinstance(runtimes.bench(run / "float", rounds=1, batch=(1,)), runtimes.Bench)


@pytest.mark.skipif(not engines.available("native"), reason="the native engine isn't built here")
def test_what_each_layer_takes(make_bundle, command, tmp_path):
    engines.module("native").write(make_bundle("v1"), tmp_path / "m.mnet", None)
    (row,) = command("bench", tmp_path / "m.mnet", "--layers", "--batch", 1, "--rounds", 1, "--json").json
    names = [r["name"] for r in row["layers"]]
    assert names[:3] == ["input", "blocks.0.conv", "blocks.1.depthwise"]
    assert all(r["median_ms"] >= 0 for r in row["layers"])
    assert sum(r["median_ms"] for r in row["layers"]) > 0


def test_layers_of_an_engine_that_cannot_tell(make_bundle, command, tmp_path):
    engines.module("onnxruntime").write(make_bundle("v1"), tmp_path / "m.onnx", None)
    line = command("bench", tmp_path / "m.onnx", "--layers", "--batch", 1, "--rounds", 1).line
    assert "onnxruntime doesn't tell what each layer takes; give a .mnet file, as export --to native writes" in line
