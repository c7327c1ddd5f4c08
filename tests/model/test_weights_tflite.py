"""Weights from .tflite files, floats and whole numbers."""

import numpy as np
import pytest
from foreign_files import write_lite
from layouts import assert_same, logits

from mobilenets.errors import UserError
from mobilenets.model.convert import weights
from mobilenets.model.convert.foreign import Stated
from mobilenets.model.convert.weights import foreign_bundle

h5py = pytest.importorskip("h5py")
timm = pytest.importorskip("timm")


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


@pytest.mark.sampled(2)
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
