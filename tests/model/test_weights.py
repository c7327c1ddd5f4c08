"""Weights that others trained: the same network, computing the same, whatever library or file they come from."""

import dataclasses
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from foreign_files import write_checkpoint, write_h5, write_keras3, write_lite
from torch import nn
from torchvision import models
from torchvision.models import mobilenetv3

from mobilenets.arch import zoo
from mobilenets.arch.spec import scale
from mobilenets.deploy import export
from mobilenets.errors import UserError
from mobilenets.model import imagenet
from mobilenets.model import reference as simulate
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import classifier_card
from mobilenets.model.convert import namings, recognise, weights
from mobilenets.model.convert.foreign import Foreign, Stated
from mobilenets.model.convert.labels import read_labels
from mobilenets.model.convert.weights import IMAGENET_PREPROCESS, foreign_bundle

h5py = pytest.importorskip("h5py")
timm = pytest.importorskip("timm")


def randomised(net, side=64, seed=0):
    """`net` with every tensor random, its BatchNorm near the statistics of what it is shown: values of order one."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        for name, p in net.named_parameters():
            if name.endswith("gamma"):  # timm's layer scale
                p.copy_(2.0 ** torch.randint(-2, 1, p.shape))  # powers of two, so that folding them rounds nothing
            elif p.ndim > 1:
                p.normal_(0, (1.5 / p[0].numel()) ** 0.5)
            else:
                p.normal_(0, 0.3)
        for m in norms:
            m.weight.uniform_(0.5, 1.5)
            m.bias.normal_(0.5, 0.5)
            m.momentum = 1.0
        net.train()(torch.randn(8, 3, side, side))
        for m in norms:
            m.running_mean += torch.randn_like(m.running_mean) * 0.05
            m.running_var.clamp_(min=0.05).mul_(torch.rand_like(m.running_var) * 0.4 + 0.8)
    return net.eval()


def state(net):
    return {k: v.numpy().copy() for k, v in net.state_dict().items()}


def worst(a, b):
    return float((a - b).abs().max().detach() / a.abs().max().detach())


def compare(net, ours, found, side):
    """Outputs are equal, and gradients by the image and by some weights, of a loss that every class is part of."""
    plain = [s for s in found.found if s.role == "weight" and s.op.name not in scaled(found)]
    some = [plain[i] for i in sorted({0, 1, len(plain) // 3, len(plain) // 2, len(plain) - 2, len(plain) - 1})]
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        results = []
        for module, names in ((net, [found.found[s] for s in some]), (ours, [s.ours for s in some])):
            image = x.to(dtype).clone().requires_grad_()
            y = module.to(dtype)(image)
            loss = (y * torch.linspace(-1, 1, y.shape[1], dtype=dtype)).sum() / y.shape[1]
            results.append([y, *torch.autograd.grad(loss, [image, *(module.get_parameter(n) for n in names)])])
        assert results[0][0].std() > 0.1  # random, but not dead
        assert all(r.abs().max() > 1e-6 for r in results[0])
        for what, a, b in zip(["output", "image", *(s.ours for s in some)], *results, strict=True):
            # in float32 gradients gather the rounding of both ways through the deepest networks
            slack = 5 if what != "output" and dtype == torch.float32 else 1
            assert worst(a, b.reshape(a.shape)) < slack * limit, what


def scaled(found):
    return [s.op.name for s in found.found if s.role == "scale"]


def check(make, arch, alpha, convention="slim", keep_stem=False, side=64, **known):
    net = randomised(make(), side)
    tensors = state(net)
    found = recognise.identify(tensors)
    got = found.arch
    assert (got.name, got.alpha, got.convention, got.keep_stem) == (arch, alpha, convention, keep_stem)
    assert got.num_classes == 1000
    bundle = foreign_bundle(Foreign("test", tensors, Stated(**known)))
    compare(net, simulate.float_model(bundle), found, side)
    return bundle


big = pytest.mark.slow
TORCHVISION = [
    *(("v2", lambda w=w: models.mobilenet_v2(width_mult=w), w, "slim") for w in (0.35, 0.5, 0.75, 1.0, 1.4)),
    *(
        (
            f"v3-{size}",
            lambda s=size, w=w: mobilenetv3.MobileNetV3(
                *mobilenetv3._mobilenet_v3_conf(f"mobilenet_v3_{s}", width_mult=w)
            ),
            w,
            "slim" if w == 1 else "torchvision",
        )
        for size in ("large", "small")
        for w in (0.35, 0.5, 0.75, 1.0, 1.4)
    ),
]


@pytest.mark.parametrize(
    ("arch", "make", "alpha", "convention"),
    [
        pytest.param(*case, marks=[big] * (case[0] != "v2" and case[2] in (0.5, 1.4)), id=f"{case[0]}-{case[2]}")
        for case in TORCHVISION
    ],
)
def test_torchvision_is_computed_exactly(arch, make, alpha, convention):
    bundle = check(make, arch, alpha, convention)
    assert bundle.card.arch.bn_eps == (1e-5 if arch == "v2" else 1e-3)


TIMM = [
    ("mobilenetv1_100", "v1", 1.0),
    pytest.param("mobilenetv1_125", "v1", 1.25, marks=big),
    *((f"mobilenetv2_{round(100 * w):03d}", "v2", w) for w in (0.35, 0.5, 0.75, 1.0, 1.4)),
    ("mobilenetv3_small_050", "v3-small", 0.5, True),
    ("mobilenetv3_small_075", "v3-small", 0.75),
    ("mobilenetv3_small_100", "v3-small", 1.0),
    ("mobilenetv3_large_075", "v3-large", 0.75),
    pytest.param("mobilenetv3_large_100", "v3-large", 1.0, marks=big),
    ("tf_mobilenetv3_small_075", "v3-small", 0.75),
    pytest.param("tf_mobilenetv3_small_100", "v3-small", 1.0, marks=big),
    pytest.param("tf_mobilenetv3_large_075", "v3-large", 0.75, marks=big),
    pytest.param("tf_mobilenetv3_large_100", "v3-large", 1.0, marks=big),
    ("tf_mobilenetv3_small_minimal_100", "v3-small-minimalistic", 1.0),
    pytest.param("tf_mobilenetv3_large_minimal_100", "v3-large-minimalistic", 1.0, marks=big),
    ("mobilenetv4_conv_small_035", "v4-conv-s", 0.35, True),
    pytest.param("mobilenetv4_conv_small_050", "v4-conv-s", 0.5, True, marks=big),
    ("mobilenetv4_conv_small", "v4-conv-s", 1.0),
    pytest.param("mobilenetv4_conv_medium", "v4-conv-m", 1.0, marks=big),
    pytest.param("mobilenetv4_conv_large", "v4-conv-l", 1.0, marks=big),
    pytest.param("mobilenetv4_hybrid_medium", "v4-hybrid-m", 1.0, marks=big),
    pytest.param("mobilenetv4_hybrid_medium_075", "v4-hybrid-m", 0.75, True, marks=big),
    pytest.param("mobilenetv4_hybrid_large", "v4-hybrid-l", 1.0, marks=big),
    pytest.param("mobilenetv4_hybrid_large_075", "v4-hybrid-l", 0.75, marks=big),
]
TIMM = [p if hasattr(p, "marks") else pytest.param(*p) for p in TIMM]


@pytest.mark.parametrize("case", [pytest.param(p.values, marks=p.marks, id=p.values[0]) for p in TIMM])
def test_timm_is_computed_exactly(case):
    name, arch, alpha, *keep_stem = case
    tf = name.startswith("tf_")
    known = {"padding": "same", "bn_eps": 1e-3} if tf else {}
    check(lambda: timm.create_model(name), arch, alpha, "slim", bool(keep_stem), 97 if tf else 64, **known)


def test_timms_layer_scale_is_folded():
    found = recognise.identify(state(timm.create_model("mobilenetv4_hybrid_medium")))
    kinds = {s.op.name.rsplit(".", 1)[1] for s in found.found if s.role == "scale"}
    assert kinds == {"project", "output"}


# ---- files of other frameworks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(make_bundle):
    """`trained("v2")`: a network as TensorFlow trains it, padding and epsilon too."""

    def make(name, **options):
        bundle = make_bundle(name, "same", **options)
        return dataclasses.replace(bundle, card=bundle.card.replace(arch=bundle.card.arch.replace(bn_eps=1e-3)))

    return make


def hwio(array, depthwise=False):
    return array.transpose(2, 3, 0, 1) if depthwise else array.transpose(2, 3, 1, 0)


def named_arrays(bundle, layer, kernel, bias, leaves):
    """The bundle's tensors by the names of another framework; `layer(i, kind)` gives a layer's and its BatchNorm's."""
    out = {}
    t = bundle.tensors
    for op in bundle.card.arch.layers:
        part, _, rest = op.name.partition(".")
        i, _, kind = rest.partition(".")
        conv, norm = layer(part, int(i or 0), kind, len(bundle.card.arch.rows) - 1)
        if op.kind == "linear":
            wide = bundle.card.arch.name != "v2" or "Mobilenet" in conv
            weight = t["classifier.weight"].T
            out[f"{conv}/{kernel}"] = weight[None, None] if wide else weight
            out[f"{conv}/{bias}"] = t["classifier.bias"]
            continue
        depthwise = op.kind == "depthwise"
        out[f"{conv}/{'depthwise_' * depthwise}{kernel}"] = hwio(t[f"{op.name}.conv.weight"], depthwise)
        if op.bias:
            out[f"{conv}/{bias}"] = t[f"{op.name}.conv.bias"]
        if op.norm:
            roles = ("weight", "bias", "running_mean", "running_var")
            out |= {f"{norm}/{leaf}": t[f"{op.name}.norm.{r}"] for leaf, r in zip(leaves, roles, strict=True)}
    return {k: np.ascontiguousarray(v, np.float32) for k, v in out.items()}


def keras_v1(part, i, kind, _last):
    name = "conv_preds" if part == "classifier" else f"conv_{kind[0]}{'w'}_{i}" if i else "conv1"
    return name, f"{name}_bn"


def keras_v2(part, i, kind, last, classifier="predictions"):
    if part == "classifier":
        return classifier, ""
    if i in (0, last):
        return ("Conv1", "bn_Conv1") if i == 0 else ("Conv_1", "Conv_1_bn")
    block = "expanded_conv" if i == 1 else f"block_{i - 1}"
    return f"{block}_{kind}", f"{block}_{kind}_BN"


def keras_v3(part, i, kind, last):
    names = {"classifier": "logits", "head": "conv_2"}
    edges = {0: "conv", last: "conv_1"}
    name = names.get(part) or edges.get(i) or "expanded_conv" + (f"_{i - 1}" if i > 1 else "")
    if name.startswith("exp"):
        name += "_" + {"se_reduce": "squeeze_excite_conv", "se_expand": "squeeze_excite_conv_1"}.get(kind, kind)
    return name, f"{name}_bn"


def slim_names(scope):
    def layer(part, i, kind, last):
        if part == "classifier":
            name = "Logits/Conv2d_1c_1x1"
        elif scope == "MobilenetV1":
            name = f"Conv2d_{i}_{kind}" if i else "Conv2d_0"
        elif part == "head" or i in (0, last):
            name = "Conv_2" if part == "head" else "Conv_1" if i else "Conv"
        else:
            inner = {"se_reduce": "squeeze_excite/Conv", "se_expand": "squeeze_excite/Conv_1"}.get(kind, kind)
            name = f"expanded_conv{f'_{i - 1}' if i > 1 else ''}/{inner}"
        return f"{scope}/{name}", f"{scope}/{name}/BatchNorm"

    return layer


def keras2_v3(*where):
    """As Keras 2 names V3's layers: Conv, Conv/BatchNorm, expanded_conv_1/squeeze_excite/Conv, ..., Logits."""
    return tuple(
        n.removeprefix("MobilenetV3/").removesuffix("/Conv2d_1c_1x1") for n in slim_names("MobilenetV3")(*where)
    )


NORM = ("gamma", "beta", "moving_mean", "moving_variance")
KERAS = {
    "v1": keras_v1,
    "v2": keras_v2,
    "v2, Logits": lambda *where: keras_v2(*where, classifier="Logits"),
    "v3-small": keras_v3,
    "v3-large": keras_v3,
    "v3-large-minimalistic": keras_v3,
    "v3-small, Keras 2": keras2_v3,
}


def logits(bundle, images):
    x = torch.from_numpy(np.ascontiguousarray(images))
    with torch.inference_mode():
        return simulate.float_model(bundle)(x)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(7).uniform(-1, 1, (4, 3, 32, 32)).astype(np.float32)


def assert_same(bundle, source, images, limit=1e-5):
    ours, theirs = logits(bundle, images), logits(source, images)
    assert theirs.std() > 0.1
    assert worst(theirs, ours) < limit
    for field in ("name", "alpha", "rows", "head", "activation", "padding", "num_classes"):
        assert getattr(bundle.card.arch, field) == getattr(source.card.arch, field), field


def write_keras(path, arrays):
    """Keras's legacy layout; a layer's name may have slashes in it."""
    with h5py.File(path, "w") as f:
        layers = list(dict.fromkeys(name.rpartition("/")[0] for name in arrays))
        f.attrs["layer_names"] = [n.encode() for n in layers]
        for layer in layers:
            names = [n for n in arrays if n.rpartition("/")[0] == layer]
            group = f.require_group(layer)
            group.attrs["weight_names"] = [f"{n}:0".encode() for n in names]
            for n in names:
                group[f"{n}:0"] = arrays[n]


@pytest.mark.parametrize("kind", KERAS)
def test_keras_h5(imported, trained, images, tmp_path, kind):
    source = trained(kind.split(",")[0])
    arrays = named_arrays(source, KERAS[kind], "kernel", "bias", NORM)
    write_keras(tmp_path / "w.h5", arrays)
    bundle = imported(tmp_path / "w.h5", "--resolution", 32)
    assert_same(bundle, source, images)
    assert bundle.card.preprocess.mean == bundle.card.preprocess.std == (127.5,) * 3
    assert bundle.card.recipe["library"] == "Keras"
    assert re.fullmatch("[0-9a-f]{64}", bundle.card.recipe["sha256"])


def test_keras_3_weights(imported, trained, images, tmp_path):
    source = trained("v1")
    layers = {}
    for name, array in named_arrays(source, keras_v1, "kernel", "bias", NORM).items():
        layer = name.split("/")[0]
        kind = "batch_normalization" if layer.endswith("_bn") else "conv2d"
        layers.setdefault(("depthwise_conv2d" if layer.startswith("conv_dw") and kind == "conv2d" else kind, layer), [])
        layers[next(k for k in layers if k[1] == layer)].append(array)
    assert_same(imported(write_keras3(tmp_path / "a.weights.h5", layers), "--resolution", 32), source, images)


def test_keras_without_its_top(imported, trained, images, tmp_path):
    source = trained("v2")
    arrays = named_arrays(source, keras_v2, "kernel", "bias", NORM)
    body = {k: a for k, a in arrays.items() if not k.startswith("predictions")}
    bundle = imported(write_h5(tmp_path / "mobilenet_v2_0.35_128_no_top.h5", body))
    assert (bundle.card.arch.num_classes, bundle.card.labels, bundle.card.arch.resolution) == (0, (), 128)
    x = torch.from_numpy(images)
    with torch.inference_mode():
        ours, theirs = (simulate.float_model(b).pooled(x) for b in (bundle, source))
    assert worst(theirs, ours) < 1e-5


@pytest.mark.parametrize(("name", "scope"), [("v1", "MobilenetV1"), ("v3-small", "MobilenetV3"), ("v2", "MobilenetV2")])
def test_slim_checkpoints(imported, trained, images, tmp_path, name, scope):
    source = trained(name)
    arrays = named_arrays(source, slim_names(scope), "weights", "biases", NORM)
    left = {f"{k}/RMSProp{n}": np.zeros(1, np.float32) for k in list(arrays)[:3] for n in ("", "_1")}
    left |= {"global_step": np.array(7, np.int64), f"{scope}/Conv2d_0/weights_quant/min": np.zeros((), np.float32)}
    left["beta1_power"] = np.zeros((), np.float32)
    arrays = {**arrays, **left}
    if name == "v1":
        bundle = imported(write_checkpoint(tmp_path / "m.ckpt", arrays), "--resolution", 32)
        assert bundle.card.recipe["library"] == "TF-slim"
    else:
        bundle = foreign_bundle(Foreign("m.ckpt", arrays), Stated(resolution=32))
    assert_same(bundle, source, images)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_pytorch_files(imported, command, tmp_path, suffix):
    import safetensors.torch

    net = randomised(models.mobilenet_v3_small(num_classes=7))
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, path)
    else:
        safetensors.torch.save_file(net.state_dict(), path)
    bundle = imported(path)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert worst(net(x), simulate.float_model(bundle)(x)) < 1e-5
    assert bundle.card.preprocess == dataclasses.replace(IMAGENET_PREPROCESS, resolution=224)
    assert bundle.card.arch.padding == "symmetric"
    told = command("import", path, "--out", tmp_path / "b", "--padding", "same", "--bn-eps", 0.01, "--resolution", 96)
    arch = Bundle.load(tmp_path / "b").card.arch
    assert (told.code, arch.padding, arch.bn_eps, arch.resolution) == (0, "same", 0.01, 96)


# ---- TFLite --------------------------------------------------------------------------------------------------------


def folded(bundle, op):
    """(weight, bias) of a layer, BatchNorm within."""
    t = bundle.tensors
    if op.kind == "linear":
        return t["classifier.weight"][:, :, None, None], t["classifier.bias"]
    weight = t[f"{op.name}.conv.weight"].astype(np.float64)
    if not op.norm:
        return weight, t[f"{op.name}.conv.bias"].astype(np.float64)
    gamma, beta, mean, var = (
        t[f"{op.name}.norm.{r}"].astype(np.float64) for r in ("weight", "bias", "running_mean", "running_var")
    )
    factor = gamma / np.sqrt(var + bundle.card.arch.bn_eps)
    return weight * factor[:, None, None, None], beta - mean * factor


FUSED = {None: 0, "relu": 1, "relu6": 3}


def lite_graph(bundle, quantized=False):
    """The graph that TensorFlow's converter makes of a network; `quantized`: uint8, a scale for each tensor."""
    arch = bundle.card.arch
    stored = "uint8" if quantized else "float32"
    q = ([0.05], [100], 0) if quantized else None
    tensors = [("input", stored, [1, arch.resolution, arch.resolution, 3], None, ([1 / 128], [128], 0) if q else None)]
    ops = []
    made = {"input": 0}

    def add(name, kind, shape, constant=None, quantization=None):
        tensors.append((name, kind, shape, constant, quantization))
        return len(tensors) - 1

    def constant(name, array, step=None):
        if not quantized:
            return add(name, "float32", array.shape, array.astype(np.float32))
        if step:
            return add(name, "int32", array.shape, np.round(array / step).astype(np.int32), ([step], [0], 0))
        low, high = min(array.min(), 0), max(array.max(), 0)
        step = float(np.float32((high - low) / 255))
        zero = round(-low / step)
        return add(name, "uint8", array.shape, lite_integers(array, step, zero), ([step], [zero], 0))

    def emit(kind, options, inputs, name, shape):
        out = add(name, stored, shape, None, q)
        ops.append((kind, options, inputs, [out]))
        return out

    axes = add("axes", "int32", [2], np.array([1, 2], np.int32))
    for op in arch.ops:
        side = arch.sides[op.name]
        shape, inputs = [1, side, side, op.cout], [made[x] for x in op.inputs]
        if op.is_layer:
            weight, bias = folded(bundle, op)
            act = op.activation
            if op.name.endswith("se_expand"):
                bias, act = bias + 3, "relu6"
            options = {"FusedActivationFunction": FUSED[act]}
            if op.kind == "linear":
                kind, weight = ("FULLY_CONNECTED", "FullyConnectedOptions"), weight[:, :, 0, 0]
                shape = [1, op.cout]
            else:
                options |= {"Padding": 0, "StrideH": op.stride, "StrideW": op.stride}
                depthwise = op.kind == "depthwise"
                kind = ("CONV_2D", "Conv2DOptions")
                if depthwise:
                    kind, options["DepthMultiplier"] = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"), 1
                weight = weight.transpose(1, 2, 3, 0) if depthwise else weight.transpose(0, 2, 3, 1)
            w = constant(f"{op.name}/w", weight)
            step = (tensors[inputs[0]][4][0][0] * tensors[w][4][0][0]) if quantized else None
            made[op.name] = emit(
                kind[0], (kind[1], options), [*inputs, w, constant(f"{op.name}/b", bias, step)], op.name, shape
            )
        elif op.activation == "hard_sigmoid":
            sixth = add("sixth", "float32", [1], np.array([1 / 6], np.float32))
            made[op.name] = emit("MUL", ("MulOptions", {}), [*inputs, sixth], op.name, shape)
        else:
            kind, options, more = {
                "pool": ("MEAN", ("ReducerOptions", {"KeepDims": True}), [axes]),
                "add": ("ADD", ("AddOptions", {}), []),
                "mul": ("MUL", ("MulOptions", {}), []),
                "activation": ("HARD_SWISH", None, []),
            }[op.kind]
            made[op.name] = emit(kind, options, [*inputs, *more], op.name, shape)
    out = emit("SOFTMAX", ("SoftmaxOptions", {"Beta": 1.0}), [made["classifier"]], "softmax", [1, arch.num_classes])
    return {"tensors": tensors, "ops": ops, "inputs": [0], "outputs": [out]}


def lite_integers(array, step, zero):
    return np.clip(np.round(array / step) + zero, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["v1", "v2", "v3-small", "v3-large-minimalistic"])
def test_tflite(imported, trained, images, tmp_path, name):
    source = trained(name)
    bundle = imported(write_lite(tmp_path / "m.tflite", lite_graph(source)))
    assert_same(bundle, source, images)
    assert bundle.card.preprocess.resolution == bundle.card.arch.resolution == 32
    assert bundle.card.preprocess.mean == (127.5,) * 3


def test_tflite_uint8(imported, trained, images, tmp_path):
    source = trained("v1")
    graph = lite_graph(source, quantized=True)
    bundle = imported(write_lite(tmp_path / "m.tflite", graph))
    assert (bundle.card.preprocess.mean, bundle.card.preprocess.std) == ((128.0,) * 3, (128.0,) * 3)
    assert bundle.card.recipe["stored_as"] == "uint8"
    held = {t[0]: t for t in graph["tensors"]}
    for op in source.card.arch.layers:  # the weights are those stored, to the last bit of a float
        weight, _ = folded(source, op)
        (step,), (zero,), _ = held[f"{op.name}/w"][4]
        name = f"{op.name}.weight" if op.kind == "linear" else f"{op.name}.conv.weight"
        rounded = (lite_integers(weight, step, zero).astype(np.float64) - zero) * step
        np.testing.assert_allclose(bundle.tensors[name].reshape(rounded.shape), rounded, rtol=1e-6)
        assert np.abs(bundle.tensors[name].reshape(weight.shape) - weight).max() <= 0.51 * step
    probabilities = [logits(b, images).softmax(1) for b in (bundle, source)]
    assert (probabilities[0] - probabilities[1]).abs().mean() < 0.05


def test_tflite_of_other_networks(trained, tmp_path):
    graph = lite_graph(trained("v2"))
    add = next(i for i, op in enumerate(graph["ops"]) if op[0] == "ADD")
    graph["ops"][add] = ("MUL", ("MulOptions", {}), *graph["ops"][add][2:])  # as many layers, but joined otherwise
    foreign = weights.open_foreign(str(write_lite(tmp_path / "m.tflite", graph)))
    with pytest.raises(UserError, match=r"m\.tflite: not one of these networks: the nearest, V2 at alpha 0\.35, has"):
        foreign_bundle(foreign)
    foreign = weights.open_foreign(str(write_lite(tmp_path / "m.tflite", lite_graph(trained("v1")))))
    with pytest.raises(UserError, match=r"the nearest, V1 at alpha 0\.5, has 28 layers"):
        foreign_bundle(foreign, Stated(arch="v1", alpha=0.5))


# ---- the bundle ----------------------------------------------------------------------------------------------------


def slim_like(trained, classes):
    """A slim V1 with that many classes, and its source."""
    source = trained("v1")
    rng = np.random.default_rng(0)
    tensors = dict(source.tensors)
    tensors["classifier.weight"] = rng.normal(0, 0.1, (classes, source.card.arch.features)).astype(np.float32)
    tensors["classifier.bias"] = rng.normal(0, 0.1, classes).astype(np.float32)
    arch = source.card.arch.replace(num_classes=classes)
    card = classifier_card(arch, source.card.preprocess, [""] * classes)
    source = Bundle(card, tensors)
    return source, named_arrays(source, slim_names("MobilenetV1"), "weights", "biases", NORM)


def test_the_background_is_dropped(trained, images):
    source, arrays = slim_like(trained, 1001)
    bundle = foreign_bundle(Foreign("m.ckpt", arrays), Stated(resolution=128))
    names = [name for _, name in imagenet.classes().items()]
    assert (bundle.card.arch.num_classes, list(bundle.card.labels)) == (1000, names)
    assert (names[0], names[-1]) == ("tench", "toilet tissue")
    assert worst(logits(source, images)[:, 1:], logits(bundle, images)) < 1e-5
    (top1,) = bundle.card.metrics
    assert (top1.value, top1.count) == (41.5, 50_000)  # TF-slim's V1 0.25-128
    assert "as published" in top1.data
    for labels in (("background", *names), names):
        told = foreign_bundle(Foreign("m.ckpt", arrays), Stated(labels=tuple(labels)))
        assert told.card.labels == tuple(names)
        np.testing.assert_array_equal(told.tensors["classifier.bias"], bundle.tensors["classifier.bias"])
    own = tuple(f"thing {i}" for i in range(1001))
    assert foreign_bundle(Foreign("m.ckpt", arrays), Stated(labels=own)).card.labels == own


def test_labels(trained, images, command, tmp_path):
    source, arrays = slim_like(trained, 5)
    path, labels = write_h5(tmp_path / "w.h5", arrays), tmp_path / "labels.txt"
    np.savez(tmp_path / "w.npz", **{k.replace("/", "|"): a for k, a in arrays.items()})
    bundle = foreign_bundle(Foreign("m.ckpt", arrays))
    assert bundle.card.labels == tuple(f"class {i}" for i in range(5))
    assert bundle.card.metrics == ()
    for text, expected, first in (
        ("a\nb\nc\nd\ne\n", "abcde", 0),
        ("background\na\nb\nc\nd\n", "abcd", 1),
        ("background\na\nb\nc\nd\ne\n", "abcde", 0),
    ):
        labels.write_text(text)
        bundle = foreign_bundle(Foreign("m.ckpt", arrays), Stated(labels=read_labels(labels)))
        assert bundle.card.labels == tuple(expected)
        assert worst(logits(source, images)[:, first:], logits(bundle, images)) < 1e-5
    keras = named_arrays(source, keras_v1, "kernel", "bias", NORM)
    write_h5(path, keras)
    for text, said in (
        ("a\nb\n", "there are 2 labels for 5 classes; give the right --labels"),
        ("\n\n", "no labels in it"),
        (None, "not a readable list of labels"),
    ):
        labels.unlink() if text is None else labels.write_text(text)
        assert said in command("import", path, "--out", tmp_path / "b", "--labels", labels).line
        assert not (tmp_path / "b").exists()


def test_thousand_classes_are_imagenets():
    bundle = foreign_bundle(Foreign("x", state(models.mobilenet_v3_small())))
    assert bundle.card.labels[:2] == ("tench", "goldfish")
    assert len(bundle.card.labels) == 1000
    assert bundle.card.metrics == ()  # whose they are isn't known
    ids = [wnid for wnid, _ in imagenet.classes().items()]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000


def test_an_imported_bundle_travels(trained, command, tmp_path, pixels):
    source = trained("v3-small")
    arrays = named_arrays(source, keras_v3, "kernel", "bias", NORM)
    foreign = Foreign("w.h5", arrays, Stated(licence="MIT"), facts={"url": "https://example.org/w.h5"})
    bundle = foreign_bundle(foreign, Stated(resolution=32))
    saved = bundle.save(tmp_path / "b")
    again = Bundle.load(tmp_path / "b")
    assert again.card == saved.card
    assert again.card.replace(created="", versions={}) == bundle.card
    assert again.card.licence == "MIT"
    assert again.card.recipe == {
        "imported_from": "w.h5",
        "library": "Keras",
        "stored_as": "float32",
        "url": "https://example.org/w.h5",
        "assumed": ["padding", "bn_eps", "mean", "std", "crop", "interpolation"],
    }
    done = export.export_bundle(again, pixels, tmp_path / "m.onnx", "random pixels")
    assert done.agreement == 100
    assert done.difference < 1e-4
    assert "V3" in command("show", tmp_path / "b").out.upper()


# ---- faults --------------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_bad_files_leave_nothing(command, tmp_path, trained):
    good = write_h5(tmp_path / "good.h5", named_arrays(trained("v1"), keras_v1, "kernel", "bias", NORM))
    (tmp_path / "cut.h5").write_bytes(good.read_bytes()[:5000])
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"features.0.0.weight": Evil()}))
    torch.save({"a": Evil()}, tmp_path / "evil.zip.pth")
    part = {k: v for k, v in models.mobilenet_v2(width_mult=0.75).state_dict().items() if "3.conv.1" not in k}
    torch.save(part, tmp_path / "part.pth")
    torch.save(models.resnet18().state_dict(), tmp_path / "resnet.pth")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.iterdir())
    for name, said in (
        ("cut.h5", "damaged HDF5 file"),
        ("evil.pth", "evil.pth: "),
        ("evil.zip.pth", "evil.zip.pth: "),
        ("part.pth", "part.pth: the weights fit no network; the nearest network is V2 at alpha 0.75"),
        ("resnet.pth", "resnet.pth: no MobileNet has tensors like these"),
        ("notes.txt", "not a known weight file"),
        ("none.pth", "no such file"),
        (".", "several weight files (cut.h5, evil.pth, evil.zip.pth, good.h5, part.pth, resnet.pth); name one"),
        ("empty", "a folder without weights"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            line = command("import", tmp_path / name, "--out", tmp_path / "b").line
        assert said in line
    assert sorted(tmp_path.iterdir()) == before


def test_where_a_bundle_can_go(command, tmp_path, trained):
    good = write_h5(tmp_path / "good.h5", named_arrays(trained("v1"), keras_v1, "kernel", "bias", NORM))
    photos = tmp_path / "photos"
    photos.mkdir()
    assert command("import", good, "--out", photos).code == 0  # an empty folder
    first = Bundle.load(photos).digest
    assert command("import", good, "--out", photos, "--resolution", 128).code == 0  # a bundle
    assert Bundle.load(photos).digest != first
    holiday = tmp_path / "holiday"
    holiday.mkdir()
    (holiday / "a.jpg").write_bytes(b"x")
    said = "exists and isn't a bundle, and would be replaced; choose another --out"
    assert said in command("import", good, "--out", holiday).line
    assert said in command("import", good, "--out", good).line
    assert (holiday / "a.jpg").exists()
    assert "a part of the path is a file" in command("import", good, "--out", good / "b").line
    assert "the name is too long" in command("import", good, "--out", tmp_path / ("a" * 300)).line
    assert "symmetric" in command("import", good, "--out", tmp_path / "b", "--padding", "sam").line
    assert {p.name for p in tmp_path.iterdir()} == {"good.h5", "photos", "holiday"}


def test_conventions_tell_narrow_v3s_apart():
    for convention in ("slim", "torchvision"):
        arch = scale(zoo.V3_SMALL, 0.75, num_classes=3, convention=convention)
        naming = next(n for n in namings.NAMINGS if n.name == "torchvision's V3")
        tensors = {
            s.theirs[0]: np.zeros(s.shape[:2] if s.op.kind == "linear" else s.shape)
            for s in recognise.slots(naming, arch)
        }
        assert recognise.identify(tensors).arch.convention == convention
