import json
import subprocess
import sys
import threading
import zipfile

import flatbuffers
import numpy as np
import pytest
from conftest import smooth_images

pytest.importorskip("ai_edge_litert")

from ai_edge_litert import schema_py_generated as schema

from mobilenets.arch import zoo
from mobilenets.arch.graph import Head, Op, Output
from mobilenets.arch.spec import scale
from mobilenets.compression import quantize
from mobilenets.deploy import engines, export
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.deploy.writers import tflite, tflite_graph, tflite_metadata
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, random_bundle, with_random_weights
from mobilenets.model.card import PRECISIONS, Card
from mobilenets.model.convert.formats import tflite as reader
from mobilenets.model.encodings import fold
from mobilenets.model.images import Preprocess

NETWORKS = ["v1", "v2", "v3-small", "v4-conv-s"]
OURS = ("float32", "float16", "dynamic", "int8")
PER_CHANNEL = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}


@pytest.fixture(scope="module")
def bundle(make_bundle):
    """`bundle("int8", "v2")`: what a file of that precision is made from, the precision on its card."""
    made = {}

    def make(precision, name="v1", **options):
        key = (precision, name, *sorted(options.items()))
        if key not in made:
            source = make_bundle(name, **options)
            if precision == "int8":
                made[key] = quantize.quantize_bundle(source, smooth_images(24, seed=100))
            else:
                made[key] = Bundle(source.card.replace(precision=precision), source.tensors)
        return made[key]

    return make


def sure(b, count=24, of=64):
    """Images that the network is sure of: rounding decides between two classes that are alike."""
    images = smooth_images(of, b.card.arch.resolution, seed=5)
    best = np.sort(TorchEngine(b, 1)(images)["probabilities"], 1)
    return images[np.argsort(best[:, -2] - best[:, -1])[:count]]


def written(b, path, batch=None):
    engines.module("litert").write(b, path, batch)
    return path


def source_of(b):
    """As `export_bundle` takes it: precisions other than int8 are asked of a float32 bundle."""
    return b if b.card.precision == "int8" else Bundle(b.card.replace(precision="float32"), b.tensors)


# ---- parity


@pytest.mark.parametrize("precision", OURS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_and_its_proof(bundle, tmp_path, name, precision):
    b = bundle(precision, name)
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
def test_padding_and_preprocessing_of_every_kind(bundle, tmp_path, pixels, name, precision, options):
    b = bundle(precision, name, **options)
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
def test_int8_is_what_onnx_runtime_computes(bundle, tmp_path, name, share):
    """Integers of the same bundle: but for images with a rounding at a tie, nothing differs."""
    b, images = bundle("int8", name), smooth_images(48, seed=5)
    engines.module("onnxruntime").write(b, tmp_path / "m.onnx", None)
    x, y = (
        engines.load(tmp_path / "m.onnx")(images)["probabilities"],
        engines.load(written(b, tmp_path / "m.tflite"))(images)["probabilities"],
    )
    assert (np.abs(x - y).max(1) < 1e-6).mean() > share


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("name", ["v2", "v3-small", "v4-conv-s"])
def test_operations_kept_in_float(make_bundle, tmp_path, name):
    source = make_bundle(name)
    arch, preprocess = source.card.arch, source.card.preprocess
    layers = [op.name for op in arch.layers]
    joins = [op.name for op in arch.ops if op.kind in ("add", "mul", "activation", "pool")]
    kept = (layers[1], layers[4], layers[5], layers[-1], *joins[:3])
    whole = quantize.quantize_bundle(source, smooth_images(24, seed=100))
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
def test_a_wrong_file_is_not_kept(bundle, tmp_path, monkeypatch, precision):
    b, right = bundle(precision), tflite_graph.Graph.const

    def wrong(graph, name, value, quantized=None):
        return right(graph, name, np.roll(value, 1, 0) if name == "classifier.bias" else value, quantized)

    monkeypatch.setattr(tflite_graph.Graph, "const", wrong)
    with pytest.raises(UserError, match=r"m\.tflite was not kept: it differs from PyTorch"):
        export.export_bundle(source_of(b), sure(b), tmp_path / "m.tflite", "noise", "litert", precision)
    assert not list(tmp_path.iterdir())


# ---- what is in the file


@pytest.mark.parametrize("precision", OURS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_precision_is_found_in_the_file(bundle, tmp_path, name, precision):
    path = written(bundle(precision, name), tmp_path / "m.tflite")
    assert engines.module("litert").stored_precision(path) == precision


def test_no_file_says_int8_and_is_float(bundle, tmp_path, monkeypatch):
    b = bundle("int8")
    monkeypatch.setattr(tflite, "computed_in_float", lambda _op, _micro: True)
    with pytest.raises(UserError, match="was not kept: litert made it float32, not the int8 that was asked for"):
        export.export_bundle(b, sure(b), tmp_path / "m.tflite", "noise", "litert")
    assert not list(tmp_path.iterdir())


def test_one_float_layer_is_not_int8(bundle, tmp_path, monkeypatch):
    b = bundle("int8")
    monkeypatch.setattr(tflite, "computed_in_float", lambda op, _micro: op.name == "blocks.3.pointwise")
    assert engines.module("litert").stored_precision(written(b, tmp_path / "m.tflite")) == "float32"


def test_sizes(tmp_path):
    b = random_bundle(zoo.arch("v1", 0.5, 64, 10), "float32")
    size = {}
    for precision in ("float32", "float16", "dynamic"):
        path = written(Bundle(b.card.replace(precision=precision), b.tensors), tmp_path / precision)
        size[precision] = path.stat().st_size
    assert size["float16"] < 0.55 * size["float32"]
    assert size["dynamic"] < 0.32 * size["float32"]


def test_the_bundles_own_numbers_are_in_the_file(bundle, tmp_path):
    b = bundle("int8", "v2")
    model = schema.ModelT.InitFromPackedBuf(written(b, tmp_path / "m.tflite").read_bytes())
    tensors = {t.name.decode(): t for t in model.subgraphs[0].tensors}
    for op in b.card.arch.layers:
        weight, bias = tensors[f"{op.name}.weight"], tensors[f"{op.name}.bias"]
        stored = model.buffers[weight.buffer].data.view(np.int8).reshape(weight.shape)
        stored = stored.transpose(3, 0, 1, 2) if op.kind == "depthwise" else stored.transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(stored, b.tensors[f"{op.name}.weight"])
        np.testing.assert_array_equal(weight.quantization.scale, b.tensors[f"{op.name}.weight_scale"])
        assert not weight.quantization.zeroPoint.any()
        np.testing.assert_array_equal(model.buffers[bias.buffer].data.view(np.int32), b.tensors[f"{op.name}.bias"])
        product = b.tensors[f"{op.name}.weight_scale"] * b.tensors[f"{op.inputs[0]}.scale"]
        np.testing.assert_array_equal(bias.quantization.scale, product)
    for name in b.card.graph.activations:
        q = tensors[name].quantization
        assert (q.scale[0], q.zeroPoint[0] + 128) == (b.tensors[f"{name}.scale"], b.tensors[f"{name}.zero_point"])


def test_constants_are_aligned(bundle, tmp_path):
    data = written(bundle("int8"), tmp_path / "m.tflite").read_bytes()
    model = tflite_graph.open_model(data)
    start = np.frombuffer(data, np.uint8).ctypes.data
    places = [model.Buffers(i).DataAsNumpy() for i in range(model.BuffersLength())]
    found = [p.ctypes.data - start for p in places if not isinstance(p, int)]
    assert len(found) > 50
    assert not any(place % 16 for place in found)


@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_layers_of_few_inputs_are_not_dynamic(bundle, padding):
    """The first, whether its image is padded before it or by it, those of single channels, and those of groups."""
    model = schema.ModelT.InitFromPackedBuf(tflite.tflite_model(bundle("dynamic", padding=padding)))
    tensors = {t.name.decode(): tflite_graph.TYPES[t.type] for t in model.subgraphs[0].tensors}
    assert tensors["blocks.0.conv.weight"] == tensors["blocks.1.depthwise.weight"] == "float32"
    assert tensors["blocks.1.pointwise.weight"] == tensors["classifier.weight"] == "int8"
    arch = zoo.arch("v1", 0.25, 32, 0)
    last = arch.graph.op("blocks.2.pointwise")
    grouped = Op("extra", "conv", last.cout, last.cout, 3, bias=True, grouped=4, inputs=(last.name,))
    head = Head((grouped,), (Output("map", "extra"),))
    data = tflite.tflite_model(with_random_weights(Card(arch, Preprocess(32), head, task="features"), "dynamic"))
    model = schema.ModelT.InitFromPackedBuf(data)
    assert {t.name.decode(): t.type for t in model.subgraphs[0].tensors}["extra.weight"] == schema.TensorType.FLOAT32
    assert 6 in {c.version for c in model.operatorCodes if c.builtinCode == schema.BuiltinOperator.CONV_2D}


@pytest.mark.parametrize(("precision", "least"), [("float32", "1.13.1"), ("dynamic", "2.7.0"), ("int8", "1.14.0")])
def test_the_oldest_runtime_is_told(bundle, precision, least):
    b = bundle(precision)
    model = tflite_graph.open_model(tflite.tflite_model(b))
    assert tflite_graph.entry(model, "min_runtime_version") == least.encode().ljust(16, b"\0")


def test_the_card_is_inside_with_its_parent(bundle, tmp_path):
    b = source_of(bundle("float32"))
    saved = b.save(tmp_path / "float")
    export.export_bundle(saved, sure(b), tmp_path / "m.tflite", "noise", "litert", "float16")
    card = engines.load(tmp_path / "m.tflite").card
    assert card == saved.card.replace(precision="float16", parent=saved.digest)


# ---- TFLite's own metadata


class Table:
    """A flatbuffer table without its schema: fields by number."""

    def __init__(self, data, at):
        self.t = flatbuffers.table.Table(data, at)

    @classmethod
    def root(cls, data):
        return cls(data, flatbuffers.encode.Get(flatbuffers.packer.uoffset, data, 0))

    def at(self, field):
        return self.t.Offset(4 + 2 * field)

    def table(self, field):
        return Table(self.t.Bytes, self.t.Indirect(self.at(field) + self.t.Pos))

    def tables(self, field):
        start, count = self.t.Vector(self.at(field)), self.t.VectorLen(self.at(field))
        return [Table(self.t.Bytes, self.t.Indirect(start + 4 * i)) for i in range(count)]

    def text(self, field):
        return self.t.String(self.at(field) + self.t.Pos).decode()

    def enum(self, field):
        return self.t.Get(flatbuffers.number_types.Uint8Flags, self.at(field) + self.t.Pos)

    def floats(self, field):
        return self.t.GetVectorAsNumpy(flatbuffers.number_types.Float32Flags, self.at(field)).tolist()


@pytest.mark.parametrize(
    ("options", "expected"), [({}, (128, 128)), (PER_CHANNEL, (0, 1)), ({"mean": (127.5,) * 3}, (0, 1))]
)
def test_metadata(bundle, options, expected):
    b = bundle("float32", **options)
    data = tflite.tflite_model(b)
    text = tflite_graph.entry(tflite_graph.open_model(data), "TFLITE_METADATA")
    assert text[4:8] == b"M001"
    root = Table.root(text)
    assert root.text(0) == "MobileNet v1 0.25-32"
    assert (root.text(5), root.text(7)) == ("Apache-2.0", "1.0.0")
    (graph,) = root.tables(3)
    (image,), (output,) = graph.tables(2), graph.tables(3)
    assert (image.text(0), output.text(0)) == ("image", "probabilities")
    assert (image.table(3).enum(0), image.table(3).table(1).enum(0)) == (2, 1)  # an image, in RGB
    (unit,) = image.tables(4)
    assert unit.enum(0) == 1
    mean, std = expected
    assert (unit.table(1).floats(0), unit.table(1).floats(1)) == ([mean], [std])
    tensor = schema.ModelT.InitFromPackedBuf(data).subgraphs[0]
    q = tensor.tensors[tensor.inputs[0]].quantization  # normalized and quantized, a pixel is itself
    assert (1 / q.scale[0], q.zeroPoint[0]) == (pytest.approx(std), mean)
    (labels,) = output.tables(6)
    assert (labels.text(0), labels.enum(2)) == ("labels.txt", 2)


def test_labels_are_a_file_inside(bundle, tmp_path):
    b = bundle("int8")
    labels = ("café", "a b", *b.card.labels[2:])
    path = written(Bundle(b.card.with_labels(labels), b.tensors), tmp_path / "m.tflite")
    with zipfile.ZipFile(path) as z:
        assert z.namelist() == ["labels.txt"]
        assert z.read("labels.txt").decode().splitlines() == ["café", "a b", *labels[2:]]
    assert engines.load(path).card.labels == labels


def test_the_same_bundle_gives_the_same_bytes(bundle):
    b = bundle("int8")
    assert tflite.tflite_model(b) == tflite.tflite_model(b)


@pytest.mark.usefixtures("ours")
def test_names_of_the_signature(bundle, tmp_path, pixels):
    from ai_edge_litert.interpreter import Interpreter

    path = written(bundle("float32"), tmp_path / "m.tflite")
    run = Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    y = run(image=pixels[:1])["probabilities"]
    np.testing.assert_allclose(y, engines.load(path)(pixels[:1])["probabilities"], atol=1e-6)


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_outputs_of_another_task(tmp_path, precision):
    """Each by its name in the signature, whatever their order in the file; no labels, though its config has some."""
    arch = zoo.arch("v1", 0.25, 32, 0)
    tap, last = "blocks.3.depthwise", arch.ops[-1]
    flat = Op("probabilities", "flatten", last.cout, last.cout, inputs=(last.name,))
    head = Head((flat,), (Output("probabilities", "probabilities", "that isn't so"), Output("map", tap, "of edges")))
    card = Card(arch, Preprocess(32), head, task="segment", config={"labels": ["a", "b"]})
    b = with_random_weights(card, precision)
    path = written(b, tmp_path / "m.tflite")
    assert not zipfile.is_zipfile(path)
    root = Table.root(tflite_graph.entry(tflite_graph.open_model(path.read_bytes()), "TFLITE_METADATA"))
    assert root.text(1) == f"{precision} network for segment"
    outputs = root.tables(3)[0].tables(3)
    assert [(o.text(0), o.text(1)) for o in outputs] == [("probabilities", "that isn't so"), ("map", "of edges")]
    assert not any(o.at(6) for o in outputs)
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    model.subgraphs[0].outputs = model.subgraphs[0].outputs[::-1]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), tflite_graph.IDENTIFIER)
    (tmp_path / "other.tflite").write_bytes(builder.Output())
    images = smooth_images(3)
    expected = TorchEngine(b, 1)(images)
    for file in (path, tmp_path / "other.tflite"):
        got = engines.load(file)(images)
        assert {k: v.shape for k, v in got.items()} == {
            "probabilities": (3, last.cout),
            "map": (3, *card.outputs["map"]),
        }
        for name, y in got.items():
            step = 1e-6 if precision == "float32" else np.ptp(expected[name]) / 255
            assert np.quantile(np.abs(y - expected[name]), 0.99) <= 1.01 * step


@pytest.mark.parametrize("name", ["v1", "v2", "v3-small"])
@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_the_importer_reads_what_we_write(bundle, tmp_path, imported, pixels, name, padding):
    b = bundle("float32", name, padding=padding)
    path = written(b, tmp_path / "m.tflite")
    assert reader.read(path).labels == b.card.labels
    again = imported(path, "--padding", padding)
    again = Bundle(again.card.replace(preprocess=b.card.preprocess), again.tensors)
    np.testing.assert_allclose(
        TorchEngine(again, 1)(pixels)["probabilities"], TorchEngine(b, 1)(pixels)["probabilities"], atol=1e-3
    )


# ---- running


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("batch", [None, 1, 5])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_any_number_of_images(bundle, tmp_path, pixels, precision, batch):
    engine = engines.load(written(bundle(precision), tmp_path / "m.tflite", batch))
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
def test_several_threads_at_once(bundle, tmp_path, pixels):
    engine = engines.load(written(bundle("int8"), tmp_path / "m.tflite"))
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
def test_nothing_is_said_on_stderr(bundle, tmp_path, pixels, capfd):
    engines.load(written(bundle("float32"), tmp_path / "m.tflite"))(pixels[:2])
    assert capfd.readouterr() == ("", "")


def test_it_is_written_and_run_without_torch(bundle, tmp_path):
    bundle("int8").save(tmp_path / "int8")
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
def test_a_damaged_file(bundle, tmp_path, fraction):
    data = written(bundle("float32"), tmp_path / "m.tflite").read_bytes()
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
def test_a_file_with_another_card(bundle, tmp_path, card, message):
    b = bundle("float32")
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
def test_a_file_of_other_outputs(bundle, tmp_path, signatures):
    model = schema.ModelT.InitFromPackedBuf(tflite.tflite_model(bundle("float32")))
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
