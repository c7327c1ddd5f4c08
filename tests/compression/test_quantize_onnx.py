"""An int8 network in ONNX Runtime: as the simulation, in integers."""

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from answers import KEPT, PREPROCESS, nearly_equal, onnx_session, optimized, run_onnx, run_torch
from small import quantized
from torch import nn

from mobilenets.compression.quantize import quantize_bundle
from mobilenets.compression.scheme import Scheme
from mobilenets.deploy import engines
from mobilenets.deploy.export import export_bundle
from mobilenets.deploy.writers import onnx as onnx_graph
from mobilenets.model import reference as simulate
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import CARD_KEY, Card
from mobilenets.model.encodings import (
    fold,
    for_pixels,
)

# Each padding with each network, each preprocessing with one.
VARIANTS = [
    pytest.param(name, {"padding": padding, **PREPROCESS[p]}, id=f"{name} {padding} {p}")
    for name, padding, p in [
        ("v1", "symmetric", "128"), ("v2", "symmetric", "128"), ("v1", "same", "128"), ("v2", "same", "per channel"),
        ("v1", "symmetric", "per channel"), ("v1", "symmetric", "127.5"), ("v2", "symmetric", "0..1"),
    ]
]  # fmt: skip


# ---- operations kept in float --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mixed_onnx_is_the_simulation(make_bundle, pixels, tmp_path):
    source = make_bundle("v2")
    bundle = quantize_bundle(source, pixels, Scheme(float_ops=KEPT))
    nearly_equal(run_onnx(bundle, pixels), run_torch(bundle, pixels), run_torch(source, pixels))
    kinds = Counter(n.op_type for n in optimized(bundle, tmp_path / "o.onnx").node)
    assert kinds["Conv"] + kinds["FusedConv"] == 3
    assert kinds["QLinearConv"] == len(source.card.graph.layers) - 3
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_graph.onnx_model(bundle))
    assert onnx_graph.stored_precision(path) == "int8"
    named = json.dumps(KEPT).encode()
    path.write_bytes(path.read_bytes().replace(named, b"[" + b" " * (len(named) - 2) + b"]"))
    assert onnx_graph.stored_precision(path) == "float32"  # a layer in float that the card doesn't speak of


# ---- ONNX ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_float_onnx_is_the_torch_network(make_bundle, pixels, name, variant):
    bundle = make_bundle(name, **variant)
    expected = run_torch(bundle, pixels)
    assert expected.std(0).max() > 0.05
    np.testing.assert_allclose(run_onnx(bundle, pixels), expected, atol=1e-4)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_int8_onnx_is_the_simulation(make_bundle, pixels, name, variant):
    bundle = quantized(make_bundle(name, **variant), pixels)
    nearly_equal(run_onnx(bundle, pixels), run_torch(bundle, pixels), run_torch(make_bundle(name, **variant), pixels))


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_int8_layer_runs_in_integers(make_bundle, pixels, name, variant, tmp_path):
    bundle = quantized(make_bundle(name, **variant), pixels)
    arch = bundle.card.arch
    kinds = Counter(n.op_type for n in optimized(bundle, tmp_path / "o.onnx").node)
    assert kinds["QLinearConv"] == len(arch.layers)
    assert kinds["QLinearAdd"] == sum(b.shortcut for b in arch.blocks)
    assert kinds["QLinearGlobalAveragePool"] == 1
    assert not {"Conv", "FusedConv", "Add", "Clip", "Relu", "GlobalAveragePool", "Gemm", "MatMul"} & set(kinds)
    assert kinds["DequantizeLinear"] == 1  # the logits
    assert kinds["QuantizeLinear"] == 0  # the image is quantized already


@pytest.mark.sampled(2)
@pytest.mark.parametrize("precision", ["float16", "int4"])
@pytest.mark.parametrize("name", ["v1", "v2", "v3-small"])
def test_weights_alone_in_fewer_bits_are_proved_and_smaller(make_bundle, pixels, tmp_path, name, precision):
    source = make_bundle(name)
    whole, made = (
        export_bundle(source, pixels, tmp_path / f"{p}.onnx", "noise", precision=p) for p in ("float32", precision)
    )
    assert made.precision == onnx_graph.stored_precision(made.path) == precision
    assert made.agreement == 100
    assert made.difference < 1e-4
    assert made.size_bytes < whole.size_bytes * {"float16": 0.65, "int4": 0.5}[precision]
    model = onnx.load(made.path)
    onnx.checker.check_model(model, full_check=True)
    assert engines.load(made.path).card.precision == precision


def test_weights_in_4_bits_are_widened_once(make_bundle, tmp_path, monkeypatch):
    source, plain = make_bundle("v1"), ort.InferenceSession
    path, runs = tmp_path / "m.onnx", tmp_path / "runs.onnx"
    path.write_bytes(onnx_graph.onnx_model(Bundle(source.card.replace(precision="int4"), source.tensors)))

    def seen(model, options, **how):
        options.optimized_model_filepath = str(runs)
        return plain(model, options, **how)

    monkeypatch.setattr(ort, "InferenceSession", seen)
    engines.load(path)  # what it loads last is what it runs
    stored, run = (
        [n.input[0] for n in onnx.load(p).graph.node if n.op_type == "DequantizeLinear"] for p in (path, runs)
    )
    assert len(stored) == len(source.card.graph.layers)
    assert run == []


def test_plain_relu_runs_in_integers_too(make_bundle, pixels, tmp_path):
    b = make_bundle("v1")
    source = Bundle(b.card.replace(arch=b.card.arch.replace(activation="relu")), b.tensors)
    bundle = quantized(source, pixels)
    kinds = Counter(n.op_type for n in optimized(bundle, tmp_path / "o.onnx").node)
    assert kinds["QLinearConv"] == 28
    assert "Relu" not in kinds
    nearly_equal(run_onnx(bundle, pixels), run_torch(bundle, pixels), run_torch(source, pixels))


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_the_graph_is_valid_and_carries_the_card(make_bundle, pixels, name):
    for bundle in (make_bundle(name), quantized(make_bundle(name), pixels)):
        model = onnx.load_from_string(onnx_graph.onnx_model(bundle))
        onnx.checker.check_model(model, full_check=True)
        meta = {p.key: p.value for p in model.metadata_props}
        assert Card.from_json(json.loads(meta[CARD_KEY])) == bundle.card
        (image,), (out,) = model.graph.input, model.graph.output
        assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == ["N", 32, 32, 3]
        assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert [d.dim_param or d.dim_value for d in out.type.tensor_type.shape.dim] == ["N", 10]


@pytest.mark.parametrize("name", ["v3-small", pytest.param("v4-hybrid-m", marks=pytest.mark.slow)])
def test_no_constant_takes_anothers_name(make_bundle, pixels, monkeypatch, name):
    """At 32 pixels, attention has one position to look at: what it computes wouldn't show a wrong constant."""
    int8, constants = quantize_bundle(make_bundle(name), pixels[:2]), {}

    def const(_self, key, value):
        np.testing.assert_array_equal(constants.setdefault(key, value), value, err_msg=key)
        return key

    monkeypatch.setattr(onnx_graph._Writer, "const", const)
    onnx_graph.onnx_model(int8)
    assert f"{int8.card.graph.ops[0].name}.scale" in constants


def test_any_batch_gives_the_same_probabilities(make_bundle, pixels):
    session = onnx_session(quantized(make_bundle("v2"), pixels))
    whole = session.run(None, {"image": pixels})[0]
    single = np.concatenate([session.run(None, {"image": pixels[i : i + 1]})[0] for i in range(len(pixels))])
    np.testing.assert_allclose(whole, single, atol=1e-6)
    np.testing.assert_allclose(whole.sum(1), 1, atol=1e-5)


def test_every_class_can_win(make_bundle, pixels):
    """The classifier's rows end up in the labels' order: a bias makes one after the other win."""
    b = make_bundle("v1")
    for c in (0, 4, 9):
        tensors = {**b.tensors, "classifier.bias": np.eye(10, dtype=np.float32)[c] * 100}
        bundle = Bundle(b.card, tensors)
        assert (run_onnx(bundle, pixels[:2]).argmax(1) == c).all()
        assert (run_onnx(quantize_bundle(bundle, pixels[:2]), pixels[:2]).argmax(1) == c).all()


def test_simulated_layers_are_no_parameters(make_bundle, pixels):
    module = simulate.module(quantized(make_bundle("v1"), pixels))
    assert isinstance(module, nn.Module)
    assert not list(module.parameters())
    assert not module.training


# ---- preprocessing that isn't one whole number ---------------------------------------------------------------------


IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("mean", "std"), [((127.5,) * 3, (127.5,) * 3), IMAGENET])
@pytest.mark.parametrize("name", ["v1", "v2"])
def test_int8_takes_the_pixels_themselves_whatever_the_preprocessing(make_bundle, pixels, tmp_path, name, mean, std):
    bundle = make_bundle(name, mean=mean, std=std)
    int8 = quantized(bundle, pixels)
    assert len(set(int8.card.preprocess.mean)) == len(set(int8.card.preprocess.std)) == 1
    assert int8.card.preprocess.mean[0].is_integer()
    kinds = [n.op_type for n in optimized(int8, tmp_path / "o.onnx").node]
    assert not {"Cast", "Sub", "Mul", "QuantizeLinear"} & set(kinds)
    nearly_equal(run_onnx(int8, pixels), run_torch(int8, pixels), run_torch(bundle, pixels))


def test_folding_the_preprocessing_changes_nothing_away_from_the_border(make_bundle, pixels):
    bundle = make_bundle("v1", mean=IMAGENET[0], std=IMAGENET[1])
    card, folded = bundle.card, fold(bundle.card, bundle.tensors)
    new, changed = for_pixels(card.graph, card.preprocess, folded)
    first = card.graph.layers[0]
    before, after = (
        torch.nn.functional.conv2d(
            torch.from_numpy(p.normalize(pixels)), *map(torch.from_numpy, f[first.name]), stride=2, padding=1
        )
        for p, f in ((card.preprocess, folded), (new, changed))
    )
    torch.testing.assert_close(after[:, :, 1:, 1:], before[:, :, 1:, 1:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after[:, :, 0], before[:, :, 0], atol=1e-3)
