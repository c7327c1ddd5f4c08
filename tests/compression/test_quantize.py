import numpy as np
import pytest
import torch
from answers import KEPT, nearly_equal, run_onnx, run_torch
from small import quantized
from torch.nn import functional as F

from mobilenets.commands.quantize import quantize
from mobilenets.compression.quantize import measure_ranges, quantize_bundle
from mobilenets.compression.scheme import Scheme
from mobilenets.errors import UserError
from mobilenets.model import reference as simulate
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card
from mobilenets.model.encodings import (
    affine,
    fits_int4,
    fold,
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


@pytest.mark.sampled(1)
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
    int8 = quantized(make_bundle("v1"), pixels)
    with pytest.raises(UserError, match="int8 already"):
        quantize_bundle(int8, pixels)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("encoding", ["half", "int4"])
def test_weights_are_quantized_however_they_are_stored(make_bundle, pixels, encoding):
    stored = make_bundle("v2").encoded(encoding)
    made, plain = (quantize_bundle(source, pixels) for source in (stored, stored.dense()))
    assert made.card.encodings == {}
    assert all(np.array_equal(v, made.tensors[k]) for k, v in plain.tensors.items())


@pytest.mark.sampled(1)
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
    bundle = quantized(make_bundle("v2"), pixels)
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
