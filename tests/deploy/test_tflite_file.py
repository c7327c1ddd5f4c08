"""What is in a .tflite file: precisions, constants, card and metadata."""

import re
import zipfile

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from lite import NETWORKS, OURS, PER_CHANNEL, source_of, sure, written
from small import smooth_images

from mobilenets.arch import zoo
from mobilenets.arch.graph import Head, Output
from mobilenets.arch.operations import Op
from mobilenets.deploy import engines, export
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.deploy.writers import tflite, tflite_graph
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, random_bundle, with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.convert.formats import tflite as reader
from mobilenets.model.encodings import fold
from mobilenets.model.images import Preprocess

pytest.importorskip("ai_edge_litert")


# ---- what is in the file


@pytest.mark.sampled(6)
@pytest.mark.parametrize("precision", OURS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_precision_is_found_in_the_file(lite_bundle, tmp_path, name, precision):
    path = written(lite_bundle(precision, name), tmp_path / "m.tflite")
    assert engines.module("litert").stored_precision(path) == precision


def test_no_file_says_int8_and_is_float(lite_bundle, tmp_path, monkeypatch):
    b = lite_bundle("int8")
    monkeypatch.setattr(tflite, "computed_in_float", lambda _op, _micro: True)
    with pytest.raises(UserError, match="was not kept: litert made it float32, not the int8 that was asked for"):
        export.export_bundle(b, sure(b), tmp_path / "m.tflite", "noise", "litert")
    assert not list(tmp_path.iterdir())


def test_one_float_layer_is_not_int8(lite_bundle, tmp_path, monkeypatch):
    b = lite_bundle("int8")
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


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_pruned_weights_are_kept_without_their_zeros(lite_bundle, tmp_path, precision):
    """A smaller file of the same answers, which says what it is, and is imported with the same weights."""
    whole = lite_bundle("float32").encoded("sparse-80").dense()
    b = Bundle(whole.card.replace(precision=precision), whole.tensors)
    path = tmp_path / "m.tflite"
    export.export_bundle(whole, sure(whole), path, "noise", "litert", precision)
    data = path.read_bytes()
    assert len(data) < {"float32": 0.45, "float16": 0.6}[precision] * len(tflite.tflite_model(lite_bundle(precision)))
    assert "DENSIFY" in tflite_graph.operators(tflite_graph.open_model(data))
    assert engines.module("litert").stored_precision(path) == precision
    folded = fold(b.card, b.tensors)
    network = reader.read(path)
    for layer, (weight, _) in zip(network.layers, folded.values(), strict=True):
        np.testing.assert_allclose(layer.weight, weight, rtol=1e-3 if precision == "float16" else 0)


def beyond(sparsity):
    sparsity.dimMetadata[-1].arrayIndices.values = np.full_like(sparsity.dimMetadata[-1].arrayIndices.values, 255)


def too_few(sparsity):
    sparsity.dimMetadata[-1].arraySegments.values = sparsity.dimMetadata[-1].arraySegments.values[1:]


def backwards(sparsity):
    sparsity.dimMetadata[-1].arraySegments.values = sparsity.dimMetadata[-1].arraySegments.values[::-1].copy()


def nowhere(sparsity):
    sparsity.dimMetadata[-1].arrayIndices, sparsity.dimMetadata[-1].arrayIndicesType = None, 0


def turned(sparsity):
    sparsity.traversalOrder = np.array([3, 1, 2, 0], np.int32)


def by_blocks(sparsity):
    sparsity.blockMap = np.array([3], np.int32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *((change, "damaged TFLite file (sparse weights whose places") for change in (beyond, too_few, backwards)),
        (nowhere, "damaged TFLite file (sparse weights without places)"),
        *((change, "weights in it that are sparse by blocks, or in another order") for change in (turned, by_blocks)),
    ],
)
def test_sparse_weights_that_cant_be(lite_bundle, tmp_path, change, said):
    data = tflite.tflite_model(lite_bundle("float32").encoded("sparse-80").dense())
    model = schema.ModelT.InitFromPackedBuf(data)
    change(next(t.sparsity for t in model.subgraphs[0].tensors if t.sparsity))
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), tflite_graph.IDENTIFIER)
    (tmp_path / "m.tflite").write_bytes(builder.Output())
    with pytest.raises(UserError, match=re.escape(said)):
        reader.read(tmp_path / "m.tflite")


def test_the_bundles_own_numbers_are_in_the_file(lite_bundle, tmp_path):
    b = lite_bundle("int8", "v2")
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


def test_constants_are_aligned(lite_bundle, tmp_path):
    data = written(lite_bundle("int8"), tmp_path / "m.tflite").read_bytes()
    model = tflite_graph.open_model(data)
    start = np.frombuffer(data, np.uint8).ctypes.data
    places = [model.Buffers(i).DataAsNumpy() for i in range(model.BuffersLength())]
    found = [p.ctypes.data - start for p in places if not isinstance(p, int)]
    assert len(found) > 50
    assert not any(place % 16 for place in found)


@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_layers_of_few_inputs_are_not_dynamic(lite_bundle, padding):
    """The first, whether its image is padded before it or by it, those of single channels, and those of groups."""
    model = schema.ModelT.InitFromPackedBuf(tflite.tflite_model(lite_bundle("dynamic", padding=padding)))
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
def test_the_oldest_runtime_is_told(lite_bundle, precision, least):
    b = lite_bundle(precision)
    model = tflite_graph.open_model(tflite.tflite_model(b))
    assert tflite_graph.entry(model, "min_runtime_version") == least.encode().ljust(16, b"\0")


def test_the_card_is_inside_with_its_parent(lite_bundle, tmp_path):
    b = source_of(lite_bundle("float32"))
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
def test_metadata(lite_bundle, options, expected):
    b = lite_bundle("float32", **options)
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


def test_labels_are_a_file_inside(lite_bundle, tmp_path):
    b = lite_bundle("int8")
    labels = ("café", "a b", *b.card.labels[2:])
    path = written(Bundle(b.card.with_labels(labels), b.tensors), tmp_path / "m.tflite")
    with zipfile.ZipFile(path) as z:
        assert z.namelist() == ["labels.txt"]
        assert z.read("labels.txt").decode().splitlines() == ["café", "a b", *labels[2:]]
    assert engines.load(path).card.labels == labels


def test_the_same_bundle_gives_the_same_bytes(lite_bundle):
    b = lite_bundle("int8")
    assert tflite.tflite_model(b) == tflite.tflite_model(b)


@pytest.mark.usefixtures("ours")
def test_names_of_the_signature(lite_bundle, tmp_path, pixels):
    from ai_edge_litert.interpreter import Interpreter

    path = written(lite_bundle("float32"), tmp_path / "m.tflite")
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
def test_the_importer_reads_what_we_write(lite_bundle, tmp_path, imported, pixels, name, padding):
    b = lite_bundle("float32", name, padding=padding)
    path = written(b, tmp_path / "m.tflite")
    assert reader.read(path).labels == b.card.labels
    again = imported(path, "--padding", padding)
    again = Bundle(again.card.replace(preprocess=b.card.preprocess), again.tensors)
    np.testing.assert_allclose(
        TorchEngine(again, 1)(pixels)["probabilities"], TorchEngine(b, 1)(pixels)["probabilities"], atol=1e-3
    )
