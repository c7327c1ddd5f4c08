"""Weights that others trained: the same network, computing the same, whatever library or file they come from."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from foreign_files import write_checkpoint, write_h5, write_keras3
from layouts import (
    NORM,
    assert_same,
    keras_v1,
    keras_v3,
    named_arrays,
    randomised,
    slim_names,
    state,
    worst,
)
from torchvision import models
from torchvision.models import mobilenetv3

from mobilenets.model import reference as simulate
from mobilenets.model.bundle import Bundle
from mobilenets.model.convert import recognise
from mobilenets.model.convert.foreign import Foreign, Stated
from mobilenets.model.convert.weights import IMAGENET_PREPROCESS, foreign_bundle

h5py = pytest.importorskip("h5py")
timm = pytest.importorskip("timm")


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


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("arch", "make", "alpha", "convention"),
    [
        pytest.param(*case, marks=[big] * (case[2] in (0.5, 0.75, 1.4)), id=f"{case[0]}-{case[2]}")
        for case in TORCHVISION
    ],
)
def test_torchvision_is_computed_exactly(arch, make, alpha, convention):
    bundle = check(make, arch, alpha, convention)
    assert bundle.card.arch.bn_eps == (1e-5 if arch == "v2" else 1e-3)


TIMM = [
    ("mobilenetv1_100", "v1", 1.0),
    pytest.param("mobilenetv1_125", "v1", 1.25, marks=big),
    *((f"mobilenetv2_{round(100 * w):03d}", "v2", w) for w in (0.35, 0.75)),
    *(pytest.param(f"mobilenetv2_{round(100 * w):03d}", "v2", w, marks=big) for w in (0.5, 1.0, 1.4)),
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
    pytest.param("mobilenetv4_conv_small", "v4-conv-s", 1.0, marks=big),
    pytest.param("mobilenetv4_conv_medium", "v4-conv-m", 1.0, marks=big),
    pytest.param("mobilenetv4_conv_large", "v4-conv-l", 1.0, marks=big),
    pytest.param("mobilenetv4_hybrid_medium", "v4-hybrid-m", 1.0, marks=big),
    pytest.param("mobilenetv4_hybrid_medium_075", "v4-hybrid-m", 0.75, True, marks=big),
    pytest.param("mobilenetv4_hybrid_large", "v4-hybrid-l", 1.0, marks=big),
    pytest.param("mobilenetv4_hybrid_large_075", "v4-hybrid-l", 0.75, marks=big),
]
TIMM = [p if hasattr(p, "marks") else pytest.param(*p) for p in TIMM]


@pytest.mark.sampled(4)
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


def keras_v2(part, i, kind, last, classifier="predictions"):
    if part == "classifier":
        return classifier, ""
    if i in (0, last):
        return ("Conv1", "bn_Conv1") if i == 0 else ("Conv_1", "Conv_1_bn")
    block = "expanded_conv" if i == 1 else f"block_{i - 1}"
    return f"{block}_{kind}", f"{block}_{kind}_BN"


def keras2_v3(*where):
    """As Keras 2 names V3's layers: Conv, Conv/BatchNorm, expanded_conv_1/squeeze_excite/Conv, ..., Logits."""
    return tuple(
        n.removeprefix("MobilenetV3/").removesuffix("/Conv2d_1c_1x1") for n in slim_names("MobilenetV3")(*where)
    )


KERAS = {
    "v1": keras_v1,
    "v2": keras_v2,
    "v2, Logits": lambda *where: keras_v2(*where, classifier="Logits"),
    "v3-small": keras_v3,
    "v3-large": keras_v3,
    "v3-large-minimalistic": keras_v3,
    "v3-small, Keras 2": keras2_v3,
}


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


@pytest.mark.sampled(3)
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
