import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mobilenets.commands.quantize import quantize
from mobilenets.compression.quantize import measure_ranges, quantize_bundle
from mobilenets.compression.scheme import Scheme
from mobilenets.deploy import engines
from mobilenets.deploy.export import export_bundle
from mobilenets.deploy.writers import onnx as onnx_graph
from mobilenets.errors import UserError
from mobilenets.model import reference as simulate
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import CARD_KEY, Card
from mobilenets.model.encodings import (
    affine,
    fits_int4,
    fold,
    for_pixels,
    half,
    input_range,
    int4_weights,
    int8_weights,
    pack,
    unpack,
)
from mobilenets.model.images import Preprocess
from mobilenets.model.module import ConvNormAct
from mobilenets.tasks import features

PREPROCESS = {
    "128": {},
    "per channel": {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
    "127.5": {"mean": (127.5,) * 3, "std": (127.5,) * 3},
    "0..1": {"mean": (0.0,) * 3, "std": (255.0,) * 3},
}
# Each padding with each network, each preprocessing with one.
VARIANTS = [
    pytest.param(name, {"padding": padding, **PREPROCESS[p]}, id=f"{name} {padding} {p}")
    for name, padding, p in [
        ("v1", "symmetric", "128"), ("v2", "symmetric", "128"), ("v1", "same", "128"), ("v2", "same", "per channel"),
        ("v1", "symmetric", "per channel"), ("v1", "symmetric", "127.5"), ("v2", "symmetric", "0..1"),
    ]
]  # fmt: skip


def run_torch(bundle, pixels):
    x = torch.from_numpy(bundle.card.preprocess.normalize(pixels))
    with torch.inference_mode():
        return simulate.module(bundle).answers(x)["probabilities"].numpy()


def onnx_session(bundle, **options):
    o = ort.SessionOptions()
    o.add_session_config_entry("session.x64quantprecision", "1")  # exact where a processor has AVX2 alone
    o.intra_op_num_threads, o.log_severity_level = 1, 3
    for k, v in options.items():
        setattr(o, k, v)
    model = onnx_graph.onnx_model(bundle)
    return ort.InferenceSession(model, o, providers=["CPUExecutionProvider"])


def run_onnx(bundle, pixels, **options):
    return onnx_session(bundle, **options).run(None, {"image": pixels})[0]


def nearly_equal(runtime, simulated, floating):
    """The same integers for most images; where a value fell half-way between two, a random network carries it far."""
    assert np.median(np.abs(runtime - simulated).max(1)) < 1e-5
    assert np.abs(runtime - simulated).mean() < np.abs(simulated - floating).mean() / 3
    assert (runtime.argmax(1) == simulated.argmax(1)).mean() > 0.9


def optimized(bundle, path):
    """The graph onnxruntime really runs."""
    onnx_session(bundle, optimized_model_filepath=str(path))
    return onnx.load(path).graph


# ---- folding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_a_folded_convolution_is_the_convolution_and_its_batchnorm(make_bundle, name):
    bundle = make_bundle(name)
    folded = fold(bundle.card, bundle.tensors)
    model = simulate.float_model(bundle)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, ConvNormAct)}
    assert set(folded) == {*layers, "classifier"}
    for n, layer in layers.items():
        w, b = (torch.from_numpy(a) for a in folded[n])
        x = torch.randn(2, layer.conv.in_channels, 9, 9, generator=torch.Generator().manual_seed(0))
        ours = F.conv2d(x, w, b, layer.conv.stride, layer.conv.padding, groups=layer.conv.groups)
        with torch.no_grad():
            expected = layer.norm(layer.conv(x))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_the_fixtures_batchnorm_is_worth_folding(make_bundle):
    tensors = make_bundle("v2").tensors
    for k in (".norm.weight", ".norm.running_mean", ".norm.running_var", ".norm.bias"):
        assert np.std(np.concatenate([v for n, v in tensors.items() if n.endswith(k)])) > 0.05, k


# ---- packing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "low_high", [(0.0, 6.0), (-1.0, 2.0), (-3.0, -1.0), (2.0, 5.0), (-1e-9, 1e-9), (0.0, 0.0), (-7.3, 0.0)]
)
def test_affine_covers_the_range_and_holds_zero(low_high):
    low, high = min(low_high[0], 0), max(low_high[1], 0)
    scale, zero = affine(*low_high)
    assert scale.dtype == np.float32
    assert zero.dtype == np.uint8
    assert (0 - int(zero)) * float(scale) <= low * (1 - 1e-6)
    assert (255 - int(zero)) * float(scale) >= high * (1 - 1e-6)
    assert float(scale) <= max(high - low, 1e-6) / 255 * 1.01


def test_images_normalized_by_127_5_do_not_fall_half_way():
    scale, zero = affine(*input_range(Preprocess(32, mean=(127.5,) * 3, std=(127.5,) * 3)))
    levels = (np.arange(256) - 127.5) / 127.5 / float(scale) + float(zero)
    assert np.abs(levels - np.rint(levels)).mean() < 0.3  # 0.5 were every one half-way


def test_the_default_images_are_their_own_quantized_input():
    assert affine(*input_range(Preprocess(32))) == (np.float32(1 / 128), 128)


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_packed_weights_are_within_half_a_step(make_bundle, pixels, name):
    bundle = make_bundle(name)
    graph, folded = bundle.card.graph, fold(bundle.card, bundle.tensors)
    packed = pack(graph, bundle.card.preprocess, folded, measure_ranges(bundle, pixels).ranges)
    assert set(packed) == {f"{op.name}.{k}" for op in graph.layers for k in ("weight", "weight_scale", "bias")} | {
        f"{a}.{k}" for a in graph.activations for k in ("scale", "zero_point")
    }
    stands_for = unpack(bundle.card, packed)
    for n, source in ((op.name, op.inputs[0]) for op in graph.layers):
        assert packed[f"{n}.weight"].dtype == np.int8
        assert packed[f"{n}.bias"].dtype == np.int32
        peak = np.abs(packed[f"{n}.weight"].astype(int)).reshape(len(packed[f"{n}.bias"]), -1).max(1)
        assert (peak == 127).all()  # every channel uses its whole range
        w, b = stands_for[n]
        step = packed[f"{n}.weight_scale"].astype(np.float64)
        assert (np.abs(w - folded[n][0]) <= 0.5001 * step[:, None, None, None]).all()
        half_step, last_bit = 0.5 * step * float(packed[f"{source}.scale"]), 1e-6 * np.abs(b)
        assert (np.abs(b - folded[n][1]) <= half_step + last_bit).all()


def dead_channel(bundle, layer, bias):
    """The bundle with channel 3 of a layer giving nothing but `bias`."""
    tensors = {k: v.copy() for k, v in bundle.tensors.items()}
    tensors[f"{layer}.norm.weight"][3] = 0
    tensors[f"{layer}.norm.bias"][3] = bias
    return Bundle(bundle.card, tensors)


@pytest.mark.parametrize(
    ("name", "layer", "bias"),
    [("v1", "blocks.1.depthwise", 5.5), ("v2", "blocks.4.project", 40.0), ("v2", "blocks.4.project", -4000.0)],
)
def test_a_dead_channel_with_a_large_bias_does_not_overflow(make_bundle, pixels, name, layer, bias):
    bundle = dead_channel(make_bundle(name), layer, bias)
    int8 = quantize_bundle(bundle, pixels)
    w, b = unpack(int8.card, int8.tensors)[layer]
    assert not w[3].any()
    assert b[3] == pytest.approx(bias, rel=1e-5)
    nearly_equal(run_onnx(int8, pixels), run_torch(int8, pixels), run_torch(bundle, pixels))


def test_per_layer_has_one_scale_for_a_layers_weights(make_bundle, pixels):
    int8 = quantize_bundle(make_bundle("v2"), pixels, Scheme(per_layer=True))
    scales = {k: v for k, v in int8.tensors.items() if k.endswith(".weight_scale")}
    assert len(scales) == len(int8.card.graph.layers)
    assert all(len(v) > 1 and (v == v[0]).all() for v in scales.values())
    for op in int8.card.graph.layers:
        assert np.abs(int8.tensors[f"{op.name}.weight"].astype(int)).max() == 127


# ---- weights alone -------------------------------------------------------------------------------------------------


def test_int8_weights_round_each_channel_to_its_own_scale():
    weight = (
        np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(np.float32)
        * np.array([1, 10, 0.1, 0, 3])[:, None, None, None]
    )
    codes, scale = int8_weights(weight)
    assert (codes.dtype, codes.shape, scale.dtype, scale.shape) == (np.int8, weight.shape, np.float32, (5,))
    assert np.abs(codes.astype(int)).max((1, 2, 3)).tolist() == [127, 127, 127, 0, 127]
    assert (np.abs(codes * scale[:, None, None, None] - weight) <= 0.5001 * scale[:, None, None, None]).all()


@pytest.mark.parametrize("cin", [32, 64, 40])
def test_int4_weights_round_blocks_of_32_inputs_with_the_least_error(cin):
    rng = np.random.default_rng(1)
    weight = (rng.standard_t(4, (6, cin, 1, 1)) * np.logspace(-2, 1, cin)[None, :, None, None]).astype(np.float32)
    weight[2] = 0
    codes, scale = int4_weights(weight)
    blocks = -(-cin // 32)
    assert (codes.dtype, codes.shape, scale.dtype, scale.shape) == (np.int8, weight.shape, np.float32, (6, blocks))
    assert codes.min() >= -8
    assert codes.max() <= 7
    assert (scale > 0).all()
    assert not codes[2].any()
    for i in range(6):
        for j in range(blocks):
            w, c = (x[i, 32 * j : 32 * j + 32, 0, 0] for x in (weight, codes))
            error = ((c * scale[i, j] - w) ** 2).sum()
            tried = np.abs(w).max() / 7 * np.linspace(0.4, 1, 301)[:, None] + 1e-30
            least = ((np.clip(np.rint(w / tried), -8, 7) * tried - w) ** 2).sum(1).min()
            assert error <= 1.1 * least + 1e-12


def test_weights_that_go_into_4_bits():
    shapes = {(8, 32, 1, 1): True, (8, 31, 1, 1): False, (8, 64, 3, 3): False, (64, 1, 1, 1): False}
    assert {shape: fits_int4(np.zeros(shape)) for shape in shapes} == shapes


@pytest.mark.parametrize(("precision", "bits"), [("float16", 11), ("dynamic", 7), ("int4", 3)])
def test_a_reference_rounds_the_weights_alone(make_bundle, pixels, precision, bits):
    source = make_bundle("v1")
    bundle = Bundle(source.card.replace(precision=precision), source.tensors)
    module, exact = simulate.module(bundle), fold(source.card, source.tensors)
    for op, layer in zip(source.card.graph.ops, module.layers, strict=True):
        if op.is_layer:
            weight, bias = exact[op.name]
            error = np.sqrt(((layer.weight.numpy() - weight) ** 2).mean())
            assert 0 < error <= np.abs(weight).max() * 0.5**bits / 2
            np.testing.assert_array_equal(layer.bias.numpy(), bias)
    a, b = run_torch(source, pixels), run_torch(bundle, pixels)
    assert np.abs(a - b).max() > 0
    assert np.abs(a - b).mean() < {11: 1e-3, 7: 0.02, 3: 0.1}[bits]


def test_half_keeps_what_16_bits_cannot_hold_finite():
    assert half(np.array([1e6, -1e6, 0.1], np.float32)).tolist() == [65504, -65504, np.float16(0.1)]


# ---- operations kept in float --------------------------------------------------------------------------------------

KEPT = ("blocks.0.conv", "blocks.3.depthwise", "blocks.3.sum", "blocks.4.project", "pool")


def test_an_int8_bundle_with_operations_in_float(make_bundle, pixels, tmp_path):
    source = make_bundle("v2")
    plain, bundle = (quantize_bundle(source, pixels, Scheme(float_ops=kept)) for kept in ((), KEPT))
    assert bundle.card.float_ops == KEPT
    folded = fold(source.card, source.tensors)
    for name in set(KEPT) & set(folded):
        np.testing.assert_array_equal(bundle.tensors[f"{name}.weight"], folded[name][0])
        np.testing.assert_array_equal(bundle.tensors[f"{name}.bias"], folded[name][1])
        assert f"{name}.weight_scale" not in bundle.tensors
    others = [k for k in plain.tensors if k.rsplit(".", 1)[0] not in KEPT]
    assert all(np.array_equal(plain.tensors[k], bundle.tensors[k]) for k in others)
    read = Bundle.load(bundle.save(tmp_path / "b") and tmp_path / "b")
    assert read.card.float_ops == KEPT
    assert np.array_equal(run_torch(read, pixels), run_torch(bundle, pixels))


def test_everything_in_float_is_the_float_network(make_bundle, pixels):
    source = make_bundle("v2")
    bundle = quantize_bundle(source, pixels, Scheme(float_ops=source.card.graph.activations[1:]))
    np.testing.assert_allclose(run_torch(bundle, pixels), run_torch(source, pixels), atol=1e-4)


def test_int8_reads_a_float_output_rounded_and_float_reads_it_as_it_is(make_bundle, pixels):
    bundle = quantize_bundle(make_bundle("v2"), pixels, Scheme(float_ops=("blocks.2.project", "blocks.3.expand")))
    module = simulate.module(bundle)
    read = [module.graph.op(f"blocks.3.{by}").inputs for by in ("expand", "sum")]
    assert read == [("blocks.2.project",), ("blocks.2.project.int8", "blocks.3.project")]
    x = torch.from_numpy(bundle.card.preprocess.normalize(pixels[:2]))
    values = module.run({"input": x}, module.graph.shapes)
    as_float, as_int8 = values["blocks.2.project"], values["blocks.2.project.int8"]
    scale = float(bundle.tensors["blocks.2.project.scale"])
    assert len(as_int8.unique()) <= 256 < len(as_float.unique())
    assert 0 < (as_float - as_int8).abs().max() <= scale * 0.51


@pytest.mark.parametrize("change", [{"float_ops": ("blocks.0.cnv",), "precision": "int8"}, {"float_ops": ("pool",)}])
def test_a_card_that_names_operations_wrongly(make_bundle, change):
    with pytest.raises(UserError, match=r"did you mean 'blocks.0.conv'|only int8's can"):
        make_bundle("v1").card.replace(**change)


def test_a_wrong_name_to_keep_in_float_is_told_before_any_work(make_bundle, pixels):
    with pytest.raises(UserError, match=r"unknown operation 'blocks.1.depthwse': did you mean 'blocks.1.depthwise'"):
        quantize_bundle(make_bundle("v1"), pixels, Scheme(float_ops=("blocks.1.depthwse",)))


def test_a_card_from_before_there_were_float_operations(make_bundle):
    card = make_bundle("v1").card
    newer = ("float_ops", "head", "config", "encodings")
    old = {k: v for k, v in card.to_json().items() if k not in newer}
    assert Card.from_json({**old, "format": 1, "labels": list(card.labels)}) == card


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


# ---- the int8 bundle -----------------------------------------------------------------------------------------------


def test_an_int8_bundle_saves_and_loads_and_names_its_parent(make_bundle, pixels, tmp_path):
    source = make_bundle("v2").save(tmp_path / "float")
    int8 = quantize_bundle(source, pixels)
    int8.save(tmp_path / "int8")
    read = Bundle.load(tmp_path / "int8")
    assert read.card.precision == "int8"
    assert read.card.parent == source.digest
    assert read.card.labels == source.card.labels
    assert np.array_equal(run_torch(read, pixels), run_torch(int8, pixels))
    size = {k: (tmp_path / k / "weights.safetensors").stat().st_size for k in ("float", "int8")}
    assert size["int8"] < size["float"] / 3


def test_quantizing_twice_is_refused(make_bundle, pixels):
    int8 = quantize_bundle(make_bundle("v1"), pixels)
    with pytest.raises(UserError, match="int8 already"):
        quantize_bundle(int8, pixels)


@pytest.mark.parametrize("encoding", ["half", "int4"])
def test_weights_are_quantized_however_they_are_stored(make_bundle, pixels, encoding):
    stored = make_bundle("v2").encoded(encoding)
    made, plain = (quantize_bundle(source, pixels) for source in (stored, stored.dense()))
    assert made.card.encodings == {}
    assert all(np.array_equal(v, made.tensors[k]) for k, v in plain.tensors.items())


@pytest.mark.parametrize("tap", ["", "blocks.3.depthwise"])
def test_features_are_the_same_in_int8_as_within_the_classifier(make_bundle, pixels, tap):
    """What a network gives before its classifier, or from inside it, is rounded as it is on the way to the classes."""
    whole = make_bundle("v2")
    made, classifier = quantize_bundle(features.of_bundle(whole, tap), pixels), quantize_bundle(whole, pixels)
    assert set(made.tensors) < set(classifier.tensors)
    assert all(np.array_equal(v, classifier.tensors[k]) for k, v in made.tensors.items())
    x = torch.from_numpy(made.card.preprocess.normalize(pixels))
    given = simulate.module(made).answers(x)["features"]
    assert tuple(given.shape[1:]) == made.card.outputs["features"]
    inside = simulate.module(classifier).run({"input": x}, [tap or "pool"])[tap or "pool"]
    assert torch.equal(given, inside if tap else inside.flatten(1))


def test_no_calibration_images(make_bundle, pixels):
    with pytest.raises(UserError, match="at least one calibration image"):
        quantize_bundle(make_bundle("v1"), pixels[:0])


def test_the_verb(make_bundle, write_images, tmp_path):
    bundle = make_bundle("v1")
    bundle = Bundle(bundle.card.with_labels([f"class {i}" for i in range(10)]), bundle.tensors)
    bundle.save(tmp_path / "float")
    write_images(tmp_path / "data", {f"class {i}": 3 for i in range(10)}, side=40)
    quantize(tmp_path / "float", str(tmp_path / "data"), out=tmp_path / "int8")
    assert Bundle.load(tmp_path / "int8").card.precision == "int8"


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_int8_is_near_float(make_bundle, pixels, name):
    bundle = make_bundle(name)
    a, b = run_torch(bundle, pixels), run_torch(quantize_bundle(bundle, pixels), pixels)
    assert a.std(0).max() > 0.05  # the images do get different answers
    assert 1e-3 < np.abs(a - b).mean() < 0.03
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.97


def test_the_simulation_holds_nothing_but_int8_values(make_bundle, pixels):
    """Every tensor between the layers is one of the 256 values its scale and zero point allow."""
    bundle = quantize_bundle(make_bundle("v2"), pixels)
    module, seen = simulate.module(bundle), {}
    original = module.compute
    module.compute = lambda op, inputs: seen.setdefault(op.name, original(op, inputs))
    module(torch.from_numpy(bundle.card.preprocess.normalize(pixels[:2])))
    seen = {name: y for name, y in seen.items() if name in bundle.card.graph.activations}
    assert seen.keys() == {op.name for op in bundle.card.arch.ops}
    for name, y in seen.items():
        levels = y.double() / float(bundle.tensors[f"{name}.scale"]) + int(bundle.tensors[f"{name}.zero_point"])
        assert (levels - levels.round()).abs().max() < 1e-3
        assert levels.round().min() >= 0
        assert levels.round().max() <= 255


# ---- ONNX ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_float_onnx_is_the_torch_network(make_bundle, pixels, name, variant):
    bundle = make_bundle(name, **variant)
    expected = run_torch(bundle, pixels)
    assert expected.std(0).max() > 0.05
    np.testing.assert_allclose(run_onnx(bundle, pixels), expected, atol=1e-4)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_int8_onnx_is_the_simulation(make_bundle, pixels, name, variant):
    bundle = quantize_bundle(make_bundle(name, **variant), pixels)
    nearly_equal(run_onnx(bundle, pixels), run_torch(bundle, pixels), run_torch(make_bundle(name, **variant), pixels))


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_int8_layer_runs_in_integers(make_bundle, pixels, name, variant, tmp_path):
    bundle = quantize_bundle(make_bundle(name, **variant), pixels)
    arch = bundle.card.arch
    kinds = Counter(n.op_type for n in optimized(bundle, tmp_path / "o.onnx").node)
    assert kinds["QLinearConv"] == len(arch.layers)
    assert kinds["QLinearAdd"] == sum(b.shortcut for b in arch.blocks)
    assert kinds["QLinearGlobalAveragePool"] == 1
    assert not {"Conv", "FusedConv", "Add", "Clip", "Relu", "GlobalAveragePool", "Gemm", "MatMul"} & set(kinds)
    assert kinds["DequantizeLinear"] == 1  # the logits
    assert kinds["QuantizeLinear"] == 0  # the image is quantized already


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
    bundle = quantize_bundle(source, pixels)
    kinds = Counter(n.op_type for n in optimized(bundle, tmp_path / "o.onnx").node)
    assert kinds["QLinearConv"] == 28
    assert "Relu" not in kinds
    nearly_equal(run_onnx(bundle, pixels), run_torch(bundle, pixels), run_torch(source, pixels))


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_the_graph_is_valid_and_carries_the_card(make_bundle, pixels, name):
    for bundle in (make_bundle(name), quantize_bundle(make_bundle(name), pixels)):
        model = onnx.load_from_string(onnx_graph.onnx_model(bundle))
        onnx.checker.check_model(model, full_check=True)
        meta = {p.key: p.value for p in model.metadata_props}
        assert Card.from_json(json.loads(meta[CARD_KEY])) == bundle.card
        (image,), (out,) = model.graph.input, model.graph.output
        assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == ["N", 32, 32, 3]
        assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert [d.dim_param or d.dim_value for d in out.type.tensor_type.shape.dim] == ["N", 10]


@pytest.mark.parametrize("name", ["v3-small", "v4-hybrid-m"])
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
    session = onnx_session(quantize_bundle(make_bundle("v2"), pixels))
    whole = session.run(None, {"image": pixels})[0]
    single = np.concatenate([session.run(None, {"image": pixels[i : i + 1]})[0] for i in range(len(pixels))])
    np.testing.assert_allclose(whole, single, atol=1e-6)
    np.testing.assert_allclose(whole.sum(1), 1, atol=1e-5)


def test_every_class_can_win(make_bundle, pixels):
    """The classifier's rows end up in the labels' order: a bias makes each class win in turn."""
    b = make_bundle("v1")
    for c in range(10):
        tensors = {**b.tensors, "classifier.bias": np.eye(10, dtype=np.float32)[c] * 100}
        bundle = Bundle(b.card, tensors)
        assert (run_onnx(bundle, pixels[:2]).argmax(1) == c).all()
        assert (run_onnx(quantize_bundle(bundle, pixels[:2]), pixels[:2]).argmax(1) == c).all()


def test_simulated_layers_are_no_parameters(make_bundle, pixels):
    module = simulate.module(quantize_bundle(make_bundle("v1"), pixels))
    assert isinstance(module, nn.Module)
    assert not list(module.parameters())
    assert not module.training


# ---- preprocessing that isn't one whole number ---------------------------------------------------------------------

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@pytest.mark.parametrize(("mean", "std"), [((127.5,) * 3, (127.5,) * 3), IMAGENET])
@pytest.mark.parametrize("name", ["v1", "v2"])
def test_int8_takes_the_pixels_themselves_whatever_the_preprocessing(make_bundle, pixels, tmp_path, name, mean, std):
    bundle = make_bundle(name, mean=mean, std=std)
    int8 = quantize_bundle(bundle, pixels)
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
