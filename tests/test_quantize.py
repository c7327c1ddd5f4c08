import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mobilenets import quantize, simulate
from mobilenets.bundle import Bundle, Card
from mobilenets.engines.onnxruntime import CARD_KEY
from mobilenets.errors import UserError
from mobilenets.graphs import onnx as onnx_graph
from mobilenets.images import Preprocess
from mobilenets.model import ConvNormAct
from mobilenets.quantize import affine, fold, pack, quantize_bundle

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
        return torch.softmax(simulate.module(bundle)(x), 1).numpy()


def onnx_session(bundle, **options):
    o = ort.SessionOptions()
    o.intra_op_num_threads, o.log_severity_level = 1, 3
    for k, v in options.items():
        setattr(o, k, v)
    model = onnx_graph.onnx_model(bundle.card, bundle.tensors).SerializeToString()
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


def dequantized(packed, name, source):
    scale = packed[f"{name}.weight_scale"].astype(np.float64)
    return (
        packed[f"{name}.weight"] * scale[:, None, None, None],
        packed[f"{name}.bias"] * scale * float(packed[f"{source}.scale"]),
    )


# ---- folding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_a_folded_convolution_is_the_convolution_and_its_batchnorm(make_bundle, name):
    bundle = make_bundle(name)
    folded = fold(bundle.card.arch, bundle.tensors)
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
    scale, zero = affine(*quantize.input_range(Preprocess(32, mean=(127.5,) * 3, std=(127.5,) * 3)))
    levels = (np.arange(256) - 127.5) / 127.5 / float(scale) + float(zero)
    assert np.abs(levels - np.rint(levels)).mean() < 0.3  # 0.5 were every one half-way


def test_the_default_images_are_their_own_quantized_input():
    assert affine(*quantize.input_range(Preprocess(32))) == (np.float32(1 / 128), 128)


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_packed_weights_are_within_half_a_step(make_bundle, pixels, name):
    bundle = make_bundle(name)
    arch, folded = bundle.card.arch, fold(bundle.card.arch, bundle.tensors)
    packed = pack(arch, bundle.card.preprocess, folded, simulate.calibrate(bundle, pixels))
    assert set(packed) == {f"{op.name}.{k}" for op in arch.layers for k in ("weight", "weight_scale", "bias")} | {
        f"{a}.{k}" for a in arch.activations for k in ("scale", "zero_point")
    }
    for n, source in ((op.name, op.inputs[0]) for op in arch.layers):
        assert packed[f"{n}.weight"].dtype == np.int8
        assert packed[f"{n}.bias"].dtype == np.int32
        peak = np.abs(packed[f"{n}.weight"].astype(int)).reshape(len(packed[f"{n}.bias"]), -1).max(1)
        assert (peak == 127).all()  # every channel uses its whole range
        w, b = dequantized(packed, n, source)
        step = packed[f"{n}.weight_scale"].astype(np.float64)
        assert (np.abs(w - folded[n][0]) <= 0.5001 * step[:, None, None, None]).all()
        assert (np.abs(b - folded[n][1]) <= 0.5001 * step * float(packed[f"{source}.scale"])).all()


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
    source = {op.name: op.inputs[0] for op in bundle.card.arch.layers}
    w, b = dequantized(int8.tensors, layer, source[layer])
    assert not w[3].any()
    assert b[3] == pytest.approx(bias, rel=1e-5)
    nearly_equal(run_onnx(int8, pixels), run_torch(int8, pixels), run_torch(bundle, pixels))


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


def test_no_calibration_images(make_bundle, pixels):
    with pytest.raises(UserError, match="at least one calibration image"):
        quantize_bundle(make_bundle("v1"), pixels[:0])


def test_the_verb(make_bundle, write_images, tmp_path):
    bundle = make_bundle("v1")
    bundle = Bundle(bundle.card.replace(labels=tuple(f"class {i}" for i in range(10))), bundle.tensors)
    bundle.save(tmp_path / "float")
    write_images(tmp_path / "data", {f"class {i}": 3 for i in range(10)}, side=40)
    quantize.quantize(tmp_path / "float", str(tmp_path / "data"), out=tmp_path / "int8")
    assert Bundle.load(tmp_path / "int8").card.precision == "int8"


def test_ranges_do_not_depend_on_the_batch(make_bundle, pixels):
    bundle = make_bundle("v2")
    whole, parts = (simulate.calibrate(bundle, pixels, batch=n) for n in (24, 7))
    assert set(whole) == set(bundle.card.arch.activations) - {"input"}
    for name, (low, high) in whole.items():
        assert parts[name] == pytest.approx((low, high), rel=1e-4, abs=1e-4), name
        assert low <= 0 <= high


def test_ranges_are_those_of_the_tensors_between_the_layers(make_bundle, pixels):
    bundle = make_bundle("v2")
    ranges, model = simulate.calibrate(bundle, pixels), simulate.float_model(bundle)
    x = torch.from_numpy(bundle.card.preprocess.normalize(pixels))
    with torch.inference_mode():
        maps, pooled, logits = model.features(x), model.pooled(x), model(x)
    last = maps["stage5"]
    assert ranges["blocks.18.conv"] == pytest.approx((min(0.0, last.min().item()), last.max().item()), rel=1e-5)
    assert ranges["pool"][1] == pytest.approx(pooled.max().item(), rel=1e-5)
    assert ranges["classifier"] == pytest.approx((logits.min().item(), logits.max().item()), rel=1e-5)
    shortcut = nn.Sequential(*list(model.blocks)[:4])
    with torch.inference_mode():
        assert ranges["blocks.3.sum"][1] == pytest.approx(shortcut(x).max().item())


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
    original = module._round
    module._round = lambda x, name: seen.setdefault(name, original(x, name))
    module(torch.from_numpy(bundle.card.preprocess.normalize(pixels[:2])))
    assert set(seen) == set(bundle.card.arch.activations)
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
        model = onnx_graph.onnx_model(bundle.card, bundle.tensors)
        onnx.checker.check_model(model, full_check=True)
        meta = {p.key: p.value for p in model.metadata_props}
        assert Card.from_json(json.loads(meta[CARD_KEY])) == bundle.card
        (image,), (out,) = model.graph.input, model.graph.output
        assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == ["N", 32, 32, 3]
        assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert [d.dim_param or d.dim_value for d in out.type.tensor_type.shape.dim] == ["N", 10]


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
    card, folded = bundle.card, fold(bundle.card.arch, bundle.tensors)
    new, changed = quantize.for_pixels(card.arch, card.preprocess, folded)
    first = card.arch.layers[0]
    before, after = (
        torch.nn.functional.conv2d(
            torch.from_numpy(p.normalize(pixels)), *map(torch.from_numpy, f[first.name]), stride=2, padding=1
        )
        for p, f in ((card.preprocess, folded), (new, changed))
    )
    torch.testing.assert_close(after[:, :, 1:, 1:], before[:, :, 1:, 1:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after[:, :, 0], before[:, :, 0], atol=1e-3)
