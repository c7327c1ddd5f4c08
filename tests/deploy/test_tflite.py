import json
import subprocess
import sys
import threading

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from lite import NETWORKS, OURS, PER_CHANNEL, source_of, sure, written
from small import quantized, smooth_images

from mobilenets.arch import zoo
from mobilenets.arch.spec import scale
from mobilenets.deploy import engines, export
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.deploy.writers import tflite, tflite_graph, tflite_metadata
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, random_bundle
from mobilenets.model.card import PRECISIONS
from mobilenets.model.encodings import fold
from mobilenets.model.images import Preprocess

pytest.importorskip("ai_edge_litert")


# ---- parity


@pytest.mark.sampled(6)
@pytest.mark.parametrize("precision", OURS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_and_its_proof(lite_bundle, tmp_path, name, precision):
    b = lite_bundle(precision, name)
    made = export.export_bundle(source_of(b), sure(b), tmp_path / "m.tflite", "noise", "litert", precision)
    assert made.precision == precision
    assert made.agreement > 95
    assert made.difference < {"float32": 1e-4, "float16": 1e-4, "dynamic": 0.15, "int8": 0.15}[precision]


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(
    ("name", "precision", "options"),
    [
        ("v1", "float32", {"padding": "same", **PER_CHANNEL}),
        ("v1", "float16", PER_CHANNEL),
        ("v2", "float32", {"padding": "same", "mean": (127.5,) * 3, "std": (127.5,) * 3}),
        ("v3-small", "float32", {"padding": "same"}),
        ("v4-conv-s", "float16", {"padding": "same"}),
        ("v4-hybrid-m", "float32", {}),
    ],
)
def test_padding_and_preprocessing_of_every_kind(lite_bundle, tmp_path, pixels, name, precision, options):
    b = lite_bundle(precision, name, **options)
    y = engines.load(written(b, tmp_path / "m.tflite"))(pixels)["probabilities"]
    np.testing.assert_allclose(y, TorchEngine(b, 1)(pixels)["probabilities"], atol=1e-4)


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_an_odd_side_is_padded_as_in_pytorch(tmp_path, padding):
    b = random_bundle(scale(zoo.network("v2"), 0.35, 45, 10, padding=padding), "float32")
    images = smooth_images(8, 45)
    y = engines.load(written(b, tmp_path / "m.tflite"))(images)["probabilities"]
    np.testing.assert_allclose(y, TorchEngine(b, 1)(images)["probabilities"], atol=1e-4)


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(("precision", "limit"), [("float32", 1e-4), ("int8", 0.05)])
def test_gelu(tmp_path, precision, limit):
    b = random_bundle(scale(zoo.network("v1"), 0.25, 32, 10, activation="gelu"), precision)
    images = smooth_images(8)
    y = engines.load(written(b, tmp_path / "m.tflite"))(images)["probabilities"]
    np.testing.assert_allclose(y, TorchEngine(b, 1)(images)["probabilities"], atol=limit)


@pytest.mark.usefixtures("ours")
def test_attention_between_int8_layers(tmp_path):
    b = random_bundle(zoo.arch("v4-hybrid-m", 0.25, 64, 10), "int8")
    images = smooth_images(8, 64)
    x, y = (
        TorchEngine(b, 1)(images)["probabilities"],
        engines.load(written(b, tmp_path / "m.tflite"))(images)["probabilities"],
    )
    assert x.std(0).max() > 0.02
    assert np.abs(x - y).max(1).min() < 1e-6  # where no rounding falls otherwise, nothing differs


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(("name", "share"), [("v1", 0.9), ("v2", 0.8), ("v3-small", 0.2), ("v4-conv-s", 0.8)])
def test_int8_is_what_onnx_runtime_computes(lite_bundle, tmp_path, name, share):
    """Integers of the same bundle: but for images with a rounding at a tie, nothing differs."""
    b, images = lite_bundle("int8", name), smooth_images(48, seed=5)
    engines.module("onnxruntime").write(b, tmp_path / "m.onnx", None)
    x, y = (
        engines.load(tmp_path / "m.onnx")(images)["probabilities"],
        engines.load(written(b, tmp_path / "m.tflite"))(images)["probabilities"],
    )
    assert (np.abs(x - y).max(1) < 1e-6).mean() > share


@pytest.mark.sampled(1)
@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("name", ["v2", "v3-small", "v4-conv-s"])
def test_operations_kept_in_float(make_bundle, tmp_path, name):
    source = make_bundle(name)
    arch, preprocess = source.card.arch, source.card.preprocess
    layers = [op.name for op in arch.layers]
    joins = [op.name for op in arch.ops if op.kind in ("add", "mul", "activation", "pool")]
    kept = (layers[1], layers[4], layers[5], layers[-1], *joins[:3])
    whole = quantized(source, smooth_images(24, seed=100))
    folded = fold(source.card, source.tensors)
    tensors = dict(whole.tensors)
    for op in layers:
        if op in kept:
            tensors[f"{op}.weight"], tensors[f"{op}.bias"] = folded[op]
            del tensors[f"{op}.weight_scale"]
    b = Bundle(whole.card.replace(float_ops=kept), tensors)
    assert whole.card.preprocess == preprocess
    engine = engines.load(written(b, tmp_path / "m.tflite"))
    assert engines.module("litert").stored_precision(tmp_path / "m.tflite") == "int8"
    images = sure(b)
    assert np.abs(engine(images)["probabilities"] - TorchEngine(b, 1)(images)["probabilities"]).mean(0).max() < 0.02
    assert (
        np.abs(engine(images)["probabilities"] - TorchEngine(whole, 1)(images)["probabilities"]).max() > 1e-3
    )  # they do make a difference


@pytest.mark.parametrize("precision", OURS)
def test_a_wrong_file_is_not_kept(lite_bundle, tmp_path, monkeypatch, precision):
    b, right = lite_bundle(precision), tflite_graph.Graph.const

    def wrong(graph, name, value, quantized=None):
        return right(graph, name, np.roll(value, 1, 0) if name == "classifier.bias" else value, quantized)

    monkeypatch.setattr(tflite_graph.Graph, "const", wrong)
    with pytest.raises(UserError, match=r"m\.tflite was not kept: it differs from PyTorch"):
        export.export_bundle(source_of(b), sure(b), tmp_path / "m.tflite", "noise", "litert", precision)
    assert not list(tmp_path.iterdir())


# ---- running


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("batch", [None, 1, 5])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_any_number_of_images(lite_bundle, tmp_path, pixels, precision, batch):
    engine = engines.load(written(lite_bundle(precision), tmp_path / "m.tflite", batch))
    assert engine.batch == batch
    whole = engine(pixels)["probabilities"]
    assert whole.shape == (24, 10)
    assert whole.dtype == np.float32
    for n in (1, 3, 8, 1):
        np.testing.assert_allclose(engine(pixels[:n])["probabilities"], whole[:n], atol=1e-6)
    np.testing.assert_allclose(
        engine(pixels[::2])["probabilities"], whole[::2], atol=1e-6
    )  # not in one piece of memory


@pytest.mark.usefixtures("ours")
def test_a_headless_network(tmp_path, pixels):
    b = random_bundle(zoo.arch("v1", 0.25, 32, 0), "float32")
    y = engines.load(written(b, tmp_path / "m.tflite"))(pixels[:3])["features"]
    np.testing.assert_allclose(y, TorchEngine(b, 1)(pixels[:3])["features"], atol=1e-5)
    assert not np.allclose(y.sum(1), 1)  # features, and no softmax of them


@pytest.mark.usefixtures("ours")
def test_several_threads_at_once(lite_bundle, tmp_path, pixels):
    engine = engines.load(written(lite_bundle("int8"), tmp_path / "m.tflite"))
    assert engine.concurrent
    expected, found = [engine(pixels[i : i + 3])["probabilities"] for i in range(8)], [None] * 8

    def work(i):
        for _ in range(20):
            found[i] = engine(pixels[i : i + 3])["probabilities"]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)
    made = len(engine.idle)
    assert 1 <= made <= 8
    engine(pixels[:3])
    assert len(engine.idle) == made  # those there are used again


@pytest.mark.usefixtures("ours")
def test_nothing_is_said_on_stderr(lite_bundle, tmp_path, pixels, capfd):
    engines.load(written(lite_bundle("float32"), tmp_path / "m.tflite"))(pixels[:2])
    assert capfd.readouterr() == ("", "")


def test_it_is_written_and_run_without_torch(lite_bundle, tmp_path):
    lite_bundle("int8").save(tmp_path / "int8")
    code = f"""
import pathlib, sys, numpy
from mobilenets.deploy import engines
from mobilenets.model.bundle import Bundle
here = pathlib.Path({str(tmp_path)!r})
engines.module("litert").write(Bundle.load(here / "int8"), here / "m.tflite", None)
engine = engines.load(here / "m.tflite")
assert engine(numpy.zeros((1, 32, 32, 3), numpy.uint8))["probabilities"].shape == (1, 10)
sys.exit("torch was imported" if "torch" in sys.modules else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- faults


@pytest.mark.parametrize("fraction", [0, 0.001, 0.5, 0.9])
def test_a_damaged_file(lite_bundle, tmp_path, fraction):
    data = written(lite_bundle("float32"), tmp_path / "m.tflite").read_bytes()
    (tmp_path / "cut.tflite").write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(UserError, match=r"cut\.tflite: (not a readable TFLite file|has no card)") as e:
        engines.load(tmp_path / "cut.tflite")
    assert "\n" not in str(e.value)


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"PK\3\4" * 100)
    with pytest.raises(UserError, match=r"m\.tflite: not a readable TFLite file: no TFL3 at its start"):
        engines.load(tmp_path / "m.tflite")


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(
    ("card", "message"),
    [
        (None, "has no card inside; export it with mobilenets"),
        (b"{", "the card inside isn't JSON"),
        (b"[]", "not a mobilenets card"),
        (json.dumps({"format": 99}).encode(), "newer mobilenets"),
    ],
)
def test_a_file_with_another_card(lite_bundle, tmp_path, card, message):
    b = lite_bundle("float32")
    entries = {} if card is None else {tflite_graph.CARD_KEY: card}
    (tmp_path / "m.tflite").write_bytes(tflite.tflite_graph(b, None, entries))
    with pytest.raises(UserError, match=rf"m\.tflite: .*{message}"):
        engines.load(tmp_path / "m.tflite")


def test_a_file_that_has_a_card_and_no_network(tmp_path):
    b = random_bundle(zoo.arch("v1", 0.25, 32, 10), "float32")
    graph = tflite_graph.Graph(None)
    image = graph.value("image", (32, 32, 3), "uint8", tflite_graph.quantization(np.array(1), np.array(0)))
    out = graph.value("out", (32, 32, 3), "float32")
    graph.op("HARD_SWISH", [image], out)  # which takes no uint8 to float32
    data = graph.write(
        "wrong", image, {"probabilities": out}, {tflite_graph.CARD_KEY: json.dumps(b.card.to_json()).encode()}
    )
    (tmp_path / "m.tflite").write_bytes(data)
    with pytest.raises(UserError, match=r"m\.tflite: not a readable TFLite file"):
        engines.load(tmp_path / "m.tflite")


@pytest.mark.parametrize("signatures", [[], ["other"]])
def test_a_file_of_other_outputs(lite_bundle, tmp_path, signatures):
    model = schema.ModelT.InitFromPackedBuf(tflite.tflite_model(lite_bundle("float32")))
    for name in signatures:
        model.signatureDefs[0].outputs[0].name = name
    model.signatureDefs = model.signatureDefs if signatures else []
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), tflite_graph.IDENTIFIER)
    (tmp_path / "m.tflite").write_bytes(builder.Output())
    with pytest.raises(UserError, match=r"m\.tflite: the card inside is another network's.*export it again"):
        engines.load(tmp_path / "m.tflite")


def test_precisions_it_has_not():
    for precision in set(PRECISIONS) - set(OURS):
        with pytest.raises(UserError, match=f"unknown precision for litert '{precision}'"):
            engines.check_precision("litert", precision)


def test_normalization_is_the_networks_own_only_where_pixels_are_codes():
    card = random_bundle(zoo.arch("v1", 0.25, 32, 10), "float32").card
    for mean, std, expected in (
        ((128.0,) * 3, (128.0,) * 3, (128, 128)),
        ((0.0,) * 3, (255.0,) * 3, (0, 255)),
        ((127.5,) * 3, (127.5,) * 3, (0, 1)),
        ((300.0,) * 3, (127.5,) * 3, (0, 1)),
        ((128.0, 128.0, 127.0), (128.0,) * 3, (0, 1)),
    ):
        changed = card.replace(preprocess=Preprocess(32, 0.9, mean, std))
        assert tflite_metadata.normalization(changed) == expected
