"""Core ML predicts on macOS alone, so what was converted is read back and computed here, operation by operation."""

import functools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from small import quantized
from torch.nn import functional as F

import mobilenets
from mobilenets.arch.graph import Head, Output
from mobilenets.arch.operations import Op
from mobilenets.compression.quantize import quantize_bundle
from mobilenets.compression.scheme import Scheme
from mobilenets.deploy import engines, export
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.errors import UserError
from mobilenets.files import size_on_disk
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card
from mobilenets.model.encodings import fold, half
from mobilenets.tasks import features

coreml = pytest.importorskip("mobilenets.deploy.engines.coreml")
coreml_graph = pytest.importorskip("mobilenets.deploy.writers.coreml")
ct = coreml.ct
# coremltools leaves its temporary folders to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
PRECISIONS = ["float32", "float16", "int8", "dynamic", "int4"]
WEIGHTS = "Data/com.apple.CoreML/weights"
HALF = ct.converters.mil.mil.types.fp16


@pytest.fixture(scope="module")
def bundle(make_bundle, pixels):
    """`bundle("v1", "int8")`: what a file of that precision is made from."""

    def make(name, precision, **variant):
        b = make_bundle(name, **variant)
        return quantized(b, pixels) if precision == "int8" else b

    return make


@pytest.fixture(scope="module")
def package(bundle, pixels, tmp_path_factory):
    """`package("v1", "int8")`: the folder as exported, once by each writer."""
    made = {}

    def make(name, precision, **variant):
        key = (name, precision, coreml_graph._Writer, *sorted(variant.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("coreml") / f"{name}-{precision}.mlpackage"
            export.export_bundle(bundle(name, precision, **variant), pixels, made[key], "noise", "coreml", precision)
        return made[key]

    return make


def save(spec, source, path):
    ct.models.MLModel(spec, weights_dir=str(source / WEIGHTS), skip_model_load=True).save(str(path))


def reference(b, precision, pixels):
    return TorchEngine(Bundle(b.card.replace(precision=precision), b.tensors), 1)(pixels)["probabilities"]


def program(path):
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = ct.utils.load_spec(str(path))
    return load(spec, spec.specificationVersion, str(path / WEIGHTS)).functions["main"].operations


def per_channel(v):
    return torch.as_tensor(np.asarray(v, np.float32)).reshape(-1, 1, 1, 1)


def computed(op, x):
    """One of MIL's operations, as its documentation defines it; `x`: its inputs by name."""
    match op.op_type:
        case "constexpr_affine_dequantize":
            return (x["quantized_data"].float() - float(x["zero_point"])) * per_channel(x["scale"])
        case "constexpr_blockwise_shift_scale":
            sizes = [n // m for n, m in zip(x["data"].shape, x["scale"].shape, strict=True)]
            return x["data"] * functools.reduce(
                lambda s, axis: s.repeat_interleave(sizes[axis], axis), range(len(sizes)), x["scale"]
            )
        case "constexpr_lut_to_dense":
            codes, tables = x["indices"].long(), x["lut"].flatten(1)
            return tables.expand(len(codes), -1).gather(1, codes.flatten(1)).reshape(codes.shape)
        case "constexpr_sparse_to_dense":
            return torch.zeros(x["mask"].shape).masked_scatter(x["mask"].bool(), x["nonzero_data"])
        case "cast" | "identity":
            return x["x"].float()
        case "sub":
            return x["x"] - x["y"]
        case "add":
            return x["x"] + x["y"]
        case "mul":
            return x["x"] * x["y"]
        case "real_div":
            return x["x"] / x["y"]
        case "maximum":
            return torch.maximum(x["x"], x["y"])
        case "concat":
            return torch.cat(x["values"], int(x["axis"]))
        case "reduce_l2_norm":
            return x["x"].norm(dim=[int(a) for a in x["axes"]], keepdim=bool(x["keep_dims"]))
        case "quantize":
            low, high = {"int8": (-128, 127), "uint8": (0, 255)}[x["output_dtype"]]
            return ((x["input"] / x["scale"]).round() + x.get("zero_point", 0)).clamp(low, high)
        case "dequantize":
            return (x["input"] - x.get("zero_point", 0)) * x["scale"]
        case "conv":
            top, bottom, left, right = (int(p) for p in x["pad"])
            padded = F.pad(x["x"], (left, right, top, bottom))
            return F.conv2d(padded, x["weight"], x["bias"], [int(s) for s in x["strides"]], groups=int(x["groups"]))
        case "relu" | "relu6":
            return getattr(F, op.op_type)(x["x"])
        case "sigmoid_hard":
            return (x["x"] * x["alpha"] + x["beta"]).clamp(0, 1)
        case "reduce_mean":
            return x["x"].mean([int(a) for a in x["axes"]], keepdim=bool(x["keep_dims"]))
        case "reshape":
            return x["x"].reshape([int(s) for s in x["shape"]])
        case "sigmoid":
            return x["x"].sigmoid()
        case "softmax":
            return x["x"].softmax(int(x["axis"]))
        case "matmul":
            a, b = (x[k].mT if x[f"transpose_{k}"] else x[k] for k in ("x", "y"))
            return a @ b
    raise AssertionError(f"{op.op_type} isn't known here")


def given(var, values):
    if isinstance(var, list | tuple):
        return [given(v, values) for v in var]
    if var.name in values:
        return values[var.name]
    v = var.val
    if isinstance(v, np.ndarray | np.number) and np.asarray(v).dtype.kind in "fiu":
        return torch.as_tensor(np.asarray(v, np.float32))
    return v


def run(path, pixels):
    """What the package at `path` computes of `pixels`, 16-bit where it says so."""
    operations = program(path)
    classify = [op.probabilities.name for op in operations if op.op_type == "classify"]
    names = classify or [o.name for o in ct.utils.load_spec(str(path)).description.output]
    out = []
    for image in pixels:
        values = {"image": torch.from_numpy(image).permute(2, 0, 1)[None].float()}
        for op in operations:
            if op.op_type not in ("const", "classify"):
                y = computed(op, {k: given(v, values) for k, v in op.inputs.items() if v is not None})
                values[op.outputs[0].name] = y.half().float() if op.outputs[0].dtype == HALF else y
        out.append([values[name].numpy() for name in names])
    made = {name: np.concatenate(rows) for name, rows in zip(names, zip(*out, strict=True), strict=True)}
    return made.popitem()[1] if classify else made


def agree(path, b, precision, pixels):
    x, y = reference(b, precision, pixels), run(path, pixels)
    assert x.std(0).max() > 0.05
    # An int8 network rounds what 16-bit floats have made uncertain: in random ones, that is carried far.
    most, median = {"float32": (1e-3, 1e-5), "int8": (0.25, 0.06)}.get(precision, (0.03, 0.01))
    assert np.abs(x - y).max() <= most
    assert np.median(np.abs(x - y).max(1)) <= median


@pytest.mark.sampled(1)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_program_is_the_network(package, bundle, pixels, precision):
    path = package("v1", precision)
    agree(path, bundle("v1", precision), precision, pixels[:8])
    assert coreml.stored_precision(path) == precision


class Wide(coreml_graph._Writer):
    """Without the 16-bit floats, an int8 program's numbers are those of the bundle."""

    def __init__(self, lowered):
        super().__init__(lowered)
        self.dtype = np.float32


@pytest.mark.slow
def test_int8_numbers_are_the_bundles(package, bundle, pixels, monkeypatch):
    monkeypatch.setattr(coreml_graph, "_Writer", Wide)
    b = bundle("v1", "int8")
    difference = np.abs(run(package("v1", "int8"), pixels) - reference(b, "int8", pixels)).max(1)
    assert np.median(difference) < 1e-6
    assert difference.max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("v2", {"padding": "same"}),
        ("v3-small", {}),
        ("v4-conv-s", {}),
        ("v4-hybrid-m", {"mean": (123.675, 116.28, 103.53)}),
    ],
)
def test_every_kind_of_network(package, bundle, pixels, monkeypatch, name, variant, precision):
    if precision == "int8":
        monkeypatch.setattr(coreml_graph, "_Writer", Wide)
    b = bundle(name, precision, **variant)
    difference = np.abs(run(package(name, precision, **variant), pixels[:8]) - reference(b, precision, pixels[:8])).max(
        1
    )
    assert np.median(difference) < (1e-5 if precision in ("float32", "int8") else 0.01)
    assert difference.max() < {"float32": 1e-4, "int8": 0.25}.get(precision, 0.03)


@pytest.mark.parametrize(
    ("encoding", "form", "share"),
    [
        ("kmeans-4", "constexpr_lut_to_dense", 0.5),
        pytest.param("ternary", "constexpr_lut_to_dense", 0.3, marks=pytest.mark.slow),
        ("sparse-80", "constexpr_sparse_to_dense", 0.4),
    ],
)
def test_weights_of_few_values_stay_few(package, bundle, tmp_path, pixels, encoding, form, share):
    """Codebooks as codes and tables, pruned weights as those that are left: the numbers are those of float16."""
    b = bundle("v1", "float32").encoded(encoding)
    path = tmp_path / "m.mlpackage"
    export.export_bundle(b, pixels, path, "noise", "coreml", "float16")
    assert coreml.stored_precision(path) == "float16"
    packed = {op.outputs[0].name: op for op in program(path) if op.op_type == form}
    assert len(packed) >= 10
    for name, (weight, _) in fold(b.card, b.dense().tensors).items():
        if op := packed.get(f"{name}.weight"):
            found = computed(op, {k: given(v, {}) for k, v in op.inputs.items() if v is not None})
            np.testing.assert_array_equal(found, half(weight).astype(np.float32))
    assert ct.utils.load_spec(str(path)).specificationVersion == ct.target.iOS18.value
    assert size_on_disk(path) < share * size_on_disk(package("v1", "float16"))


@pytest.mark.slow
def test_operations_kept_in_float(bundle, pixels, tmp_path):
    names = ("blocks.2.depthwise", "blocks.3.project", "blocks.3.sum")
    b = quantize_bundle(bundle("v2", "float32"), pixels, Scheme(float_ops=names))
    export.export_bundle(b, pixels, tmp_path / "m.mlpackage", "noise", "coreml")
    agree(tmp_path / "m.mlpackage", b, "int8", pixels[:8])


def test_what_an_app_finds(package, bundle):
    b = bundle("v1", "int8")
    path = package("v1", "int8")
    spec = ct.utils.load_spec(str(path))
    (image,) = spec.description.input
    assert (image.name, image.type.imageType.width, image.type.imageType.height) == ("image", 32, 32)
    assert image.type.imageType.colorSpace == ct.proto.FeatureTypes_pb2.ImageFeatureType.RGB
    assert {o.name for o in spec.description.output} == {"classLabel", "classLabel_probs"}
    (classify,) = [op for op in program(path) if op.op_type == "classify"]
    assert list(classify.classes.val) == list(b.card.labels)
    meta = spec.description.metadata
    assert Card.from_json(json.loads(meta.userDefined[coreml.CARD_KEY])) == b.card.replace(parent=b.digest)
    assert meta.license == "Apache-2.0"
    assert spec.specificationVersion == ct.target.iOS17.value


def with_outputs(b, ops, **outputs):
    """The same network, which gives the values `outputs`, of its own operations and `ops`."""
    head = Head((*b.card.head.ops, *ops), tuple(Output(name, op) for name, op in outputs.items()))
    return Bundle(b.card.replace(head=head, task="features", config={}), b.tensors)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_other_networks_give_their_outputs_by_name(make_bundle, pixels, tmp_path, precision):
    """Maps and vectors, values that others read, and one by two names."""
    b = make_bundle("v2")
    ops = (
        Op("both", "concat", 0, 0, inputs=("pool", "pool")),
        Op("flat", "flatten", 0, 0, inputs=("both",)),
        Op("unit", "l2norm", 0, 0, inputs=("flat",)),
        Op("directions", "l2norm", 0, 0, inputs=("blocks.2.project",)),
        Op("gates", "sigmoid", 0, 0, inputs=("flat",)),
    )
    outputs = {"map": "blocks.2.project", "directions": "directions", "embedding": "unit", "features": "flat"}
    b = with_outputs(b, ops, **outputs, gates="gates", probabilities="probabilities", logits="logits", scores="logits")
    b = Bundle(b.card.replace(precision=precision), b.tensors)
    coreml.write(b, tmp_path / "m.mlpackage", None)
    spec = ct.utils.load_spec(str(tmp_path / "m.mlpackage"))
    assert sorted(o.name for o in spec.description.output) == sorted(b.card.outputs)
    got, expected = run(tmp_path / "m.mlpackage", pixels[:4]), TorchEngine(b, 1)(pixels[:4])
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        assert got[name].shape == values.shape
        tolerance = {"float32": 1e-5, "float16": 2e-2}[precision]
        np.testing.assert_allclose(got[name], values, atol=tolerance * max(np.abs(values).max(), 1))


@pytest.mark.slow
def test_lengths_beyond_16_bits(make_bundle, pixels, tmp_path):
    """Squares of features may be larger than the largest 16-bit float; a vector of zeros has no direction."""
    b = features.of_bundle(make_bundle("v1"))
    big, none = (dict(b.tensors) for _ in range(2))
    last = [op.name for op in b.card.graph.layers][-1]
    for tensors, factor in ((big, 30), (none, 0)):
        for name in ("weight", "bias"):
            tensors[f"{last}.norm.{name}"] = b.tensors[f"{last}.norm.{name}"] * np.float32(factor)
    unit = (Op("unit", "l2norm", 0, 0, inputs=("features",)),)
    for name, tensors in (("big", big), ("none", none)):
        made = with_outputs(Bundle(b.card.replace(precision="float16"), tensors), unit, unit="unit")
        coreml.write(made, tmp_path / f"{name}.mlpackage", None)
        got, expected = run(tmp_path / f"{name}.mlpackage", pixels[:2]), TorchEngine(made, 1)(pixels[:2])
        np.testing.assert_allclose(got["unit"], expected["unit"], atol=2e-2)
        assert got["unit"].any() == (name == "big")


def test_an_operation_that_isnt_known(make_bundle, tmp_path):
    b = with_outputs(make_bundle("v1"), (Op("more", "pad", 3, 3, inputs=("input",)),), more="more")
    with pytest.raises(UserError, match=r"Core ML has no pad \(more\); export to another format"):
        coreml.write(b, tmp_path / "m.mlpackage", None)


def test_float_weights_are_no_int8_whatever_the_card_says(package, tmp_path):
    path = package("v1", "float16")
    spec = ct.utils.load_spec(str(path))
    card = json.loads(spec.description.metadata.userDefined[coreml.CARD_KEY]) | {"precision": "int8"}
    spec.description.metadata.userDefined[coreml.CARD_KEY] = json.dumps(card)
    ct.models.MLModel(spec, weights_dir=str(path / WEIGHTS), skip_model_load=True).save(
        str(tmp_path / "other.mlpackage")
    )
    assert coreml.stored_precision(tmp_path / "other.mlpackage") == "float16"


def test_labels_that_classes_share_stay_apart(make_bundle):
    card = make_bundle("v1").card
    labels = ("crane", *card.labels[1:9], "crane")
    assert coreml.class_names(card.with_labels(labels)) == ["crane (0)", *card.labels[1:9], "crane (9)"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="runs here")
def test_elsewhere_it_is_exported_without_proof(bundle, pixels, tmp_path):
    made = export.export_bundle(bundle("v1", "float16"), pixels, tmp_path / "m.mlpackage", "noise", "coreml", "float16")
    assert (made.agreement, made.difference, made.precision) == (None, None, "float16")
    with pytest.raises(UserError, match="Core ML runs on macOS alone"):
        engines.load(tmp_path / "m.mlpackage")
    (card,) = mobilenets.show(tmp_path / "m.mlpackage").cards.values()
    assert card.precision == "float16"


@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML predicts on macOS alone")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_predictions(package, bundle, pixels, precision):
    got = engines.load(package("v1", precision))(pixels)["probabilities"]
    assert np.abs(got - reference(bundle("v1", precision), precision, pixels)).max() <= 0.25


# ---- faults --------------------------------------------------------------------------------------------------------


def test_batches(bundle, pixels, tmp_path):
    with pytest.raises(UserError, match="one image in every call"):
        export.export_bundle(bundle("v1", "float32"), pixels, tmp_path / "m.mlpackage", "noise", "coreml", batch=8)
    assert not list(tmp_path.iterdir())


def test_damaged_packages(package, tmp_path):
    path = package("v1", "float16")
    (tmp_path / "empty.mlpackage").mkdir()
    shutil.copytree(path, tmp_path / "cut.mlpackage")
    (model,) = (tmp_path / "cut.mlpackage").rglob("*.mlmodel")
    model.write_bytes(model.read_bytes()[:1000])
    for name in ("empty", "cut"):
        with pytest.raises(UserError, match=rf"{name}\.mlpackage: not a readable \.mlpackage") as e:
            engines.load(tmp_path / f"{name}.mlpackage")
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("card", "message"), [(None, "has no card inside"), ("{", "isn't JSON"), ("[]", "not a mobile")]
)
def test_another_card(package, tmp_path, card, message):
    path = package("v1", "float16")
    spec = ct.utils.load_spec(str(path))
    del spec.description.metadata.userDefined[coreml.CARD_KEY]
    if card is not None:
        spec.description.metadata.userDefined[coreml.CARD_KEY] = card
    ct.models.MLModel(spec, weights_dir=str(path / WEIGHTS), skip_model_load=True).save(
        str(tmp_path / "other.mlpackage")
    )
    with pytest.raises(UserError, match=message):
        engines.load(tmp_path / "other.mlpackage")


@pytest.mark.slow
def test_nothing_is_said(bundle, tmp_path):
    """No progress bars, no words on other libraries' versions."""
    bundle("v1", "float32").save(tmp_path / "float")
    code = """
from pathlib import Path
from mobilenets.deploy import engines
from mobilenets.model.bundle import Bundle
engines.module("coreml").write(Bundle.load(Path("float")), Path("m.mlpackage"), None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
