"""Readers of other frameworks' files, on small files written here as those frameworks write them."""

import io
import json
import math
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from mobilenets import formats
from mobilenets.errors import UserError
from mobilenets.formats import hdf5, pytorch, tf_checkpoint
from mobilenets.formats import tflite as lite

h5py = pytest.importorskip("h5py")
tflite = pytest.importorskip("tflite")


def line(read, path):
    """The one line that reading `path` fails with, without the path it starts with."""
    with pytest.raises(UserError) as e:
        read(path)
    message = str(e.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(f"{path}").removeprefix(": ")


def same(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array.astype(np.float32), err_msg=name)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "conv1/kernel": rng.normal(0, 1, (3, 3, 3, 8)).astype(np.float32),
        "conv1_bn/gamma": rng.normal(1, 0.1, 8).astype(np.float32),
        "conv1_bn/beta": rng.normal(0, 1, 8).astype(np.float32),
        "conv1_bn/moving_mean": rng.normal(0, 1, 8).astype(np.float32),
        "conv1_bn/moving_variance": rng.uniform(0.5, 1.5, 8).astype(np.float32),
        "conv_dw_1/depthwise_kernel": rng.normal(0, 1, (3, 3, 8, 1)).astype(np.float32),
        "conv_preds/kernel": rng.normal(0, 1, (1, 1, 8, 5)).astype(np.float32),
        "conv_preds/bias": rng.normal(0, 1, 5).astype(np.float32),
    }


# ---- HDF5 ----------------------------------------------------------------------------------------------------------


def write_h5(path, arrays, root="", suffix=":0", group=None, **options):
    """Keras's legacy layout; all in one `group` as for a model in a model."""
    with h5py.File(path, "w") as f:
        top = f.create_group(root) if root else f
        layers = {}
        for name, array in arrays.items():
            layers.setdefault(group or name.split("/")[0], {})[name + suffix] = array
        top.attrs["layer_names"] = [b"input_1", *(n.encode() for n in layers)]
        top.create_group("input_1").attrs["weight_names"] = []
        for layer, variables in layers.items():
            g = top.create_group(layer)
            g.attrs["weight_names"] = [n.encode() for n in variables]
            for name, array in variables.items():
                g.create_dataset(name, data=array, **options)
    return path


def write_keras3(path, layers, named=True):
    """Keras 3's `.weights.h5`: {("conv2d", "conv1"): [array, ...]}."""
    with h5py.File(path, "w") as f:
        for i, ((kind, name), variables) in enumerate(layers.items()):
            g = f.create_group(f"layers/{kind}_{i}/vars" if i else f"layers/{kind}/vars")
            if named:
                g.attrs["name"] = name
            for j, array in enumerate(variables):
                g[str(j)] = array
        f["optimizer/vars/0"] = np.int64(3)
    return path


@pytest.mark.parametrize("root", ["", "model_weights"])
@pytest.mark.parametrize("suffix", [":0", ""])
def test_keras_weights(tmp_path, arrays, root, suffix):
    same(hdf5.read(write_h5(tmp_path / "w.h5", arrays, root, suffix)), arrays)


def test_keras_weights_compressed_and_of_other_precision(tmp_path, arrays):
    for dtype in (np.float16, np.float64, ">f4"):
        other = {k: a.astype(dtype) for k, a in arrays.items()}
        same(hdf5.read(write_h5(tmp_path / "w.h5", other, compression="gzip")), other)


def test_a_keras_model_in_a_model(tmp_path, arrays):
    same(hdf5.read(write_h5(tmp_path / "w.h5", arrays, group="mobilenet_1.00_224")), arrays)


def test_keras_1_names(tmp_path, arrays):
    with h5py.File(write_h5(tmp_path / "w.h5", {}), "a") as f:
        f.attrs["layer_names"] = [b"conv1"]
        f["conv1/conv1_1/kernel:0"] = arrays["conv1/kernel"]
        f["conv1"].attrs["weight_names"] = [b"conv1_1/kernel:0"]
    same(hdf5.read(tmp_path / "w.h5"), {"conv1/kernel": arrays["conv1/kernel"]})


def test_keras_splits_long_lists_of_names(tmp_path, arrays):
    with h5py.File(write_h5(tmp_path / "w.h5", arrays), "a") as f:
        names = f.attrs["layer_names"]
        del f.attrs["layer_names"]
        f.attrs["layer_names0"], f.attrs["layer_names1"] = names[:2], names[2:]
    same(hdf5.read(tmp_path / "w.h5"), arrays)


def keras3_layers(arrays):
    bn = [arrays[f"conv1_bn/{n}"] for n in ("gamma", "beta", "moving_mean", "moving_variance")]
    return {
        ("conv2d", "conv1"): [arrays["conv1/kernel"]],
        ("batch_normalization", "conv1_bn"): bn,
        ("depthwise_conv2d", "conv_dw_1"): [arrays["conv_dw_1/depthwise_kernel"]],
        ("conv2d", "conv_preds"): [arrays["conv_preds/kernel"], arrays["conv_preds/bias"]],
        ("activation", "relu"): [],
    }


def test_keras_3_weights(tmp_path, arrays):
    expected = {k.replace("depthwise_kernel", "kernel"): a for k, a in arrays.items()}
    same(hdf5.read(write_keras3(tmp_path / "a.weights.h5", keras3_layers(arrays))), expected)


def test_keras_3_weights_without_names_are_refused(tmp_path, arrays):
    path = write_keras3(tmp_path / "a.weights.h5", keras3_layers(arrays), named=False)
    assert "doesn't say which layer's variables it holds; write it with model.save('name.h5')" in line(hdf5.read, path)
    layers = keras3_layers(arrays)
    layers["batch_normalization", "conv1_bn"].pop()  # scale=False or center=False: which of the four?
    assert "doesn't say which" in line(hdf5.read, write_keras3(tmp_path / "b.weights.h5", layers))


def test_damaged_hdf5(tmp_path, arrays):
    path = write_h5(tmp_path / "w.h5", arrays)
    data = path.read_bytes()
    for cut in (0, 7, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        assert line(hdf5.read, path).startswith("damaged HDF5 file (")
    with h5py.File(path, "w") as f:
        f["a"] = 1
    assert line(hdf5.read, path) == "an HDF5 file, but without Keras weights in it"


def test_an_hdf5_bomb(tmp_path):
    """A gigabyte of zeros in a few kilobytes of file."""
    zeros = {"conv1/kernel": np.zeros((1, 1, 1, 1), np.float32)}
    with h5py.File(write_h5(tmp_path / "w.h5", zeros), "a") as f:
        del f["conv1/conv1/kernel:0"]
        f["conv1"].create_dataset("conv1/kernel:0", (1024, 1024, 256), "f4", compression="gzip", chunks=(64, 1024, 16))
    assert line(hdf5.read, tmp_path / "w.h5") == "damaged HDF5 file (it unpacks to far more than its size)"


def test_hdf5_that_reads_other_files(tmp_path, arrays):
    write_h5(tmp_path / "other.h5", arrays)
    with h5py.File(write_h5(tmp_path / "w.h5", arrays), "a") as f:
        del f["conv1/conv1/kernel:0"]
        f["conv1/conv1/kernel:0"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "conv1/conv1/kernel:0")
    assert "isn't an array in this file" in line(hdf5.read, tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5", "a") as f:
        del f["conv1/conv1/kernel:0"]
        f["conv1"].create_dataset("conv1/kernel:0", (4,), "f4", external=[(str(tmp_path / "other.h5"), 0, 16)])
    assert "isn't an array in this file" in line(hdf5.read, tmp_path / "w.h5")


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("os.kill(os.getpid(), 11)", "the HDF5 library stopped with code -11"),
        ("time.sleep(60)", "reading it takes too long"),
        ("bytearray(8 << 30)", "the HDF5 library stopped with code 1"),
        ("[sys.stdout.write('x' * (1 << 20)) for _ in range(32)]", "damaged HDF5 file ("),
        ("sys.stdout.write('not tensors')", "damaged HDF5 file ("),
    ],
)
def test_the_hdf5_library_crashes_or_hangs(tmp_path, arrays, monkeypatch, does, said):
    """The child imports an h5py that misbehaves."""
    path = write_h5(tmp_path / "w.h5", arrays)
    (tmp_path / "h5py.py").write_text(f"import os, sys, time\ntry:\n    {does}\nfinally:\n    os._exit(0)\n")
    if "bytearray" in does:
        (tmp_path / "h5py.py").write_text(
            f"import os\ntry:\n    {does}\nexcept MemoryError:\n    os._exit(1)\nos._exit(0)\n"
        )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    run = subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda *a, timeout, **k: run(*a, timeout=1 if "sleep" in does else timeout, **k)
    )
    started = time.monotonic()
    with pytest.raises(UserError, match="damaged HDF5 file") as e:
        hdf5.read(path)
    assert said in str(e.value)
    assert time.monotonic() - started < 30


def test_without_the_optional_packages(tmp_path, arrays, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for read, path, name in (
        (hdf5.read, write_h5(tmp_path / "w.h5", arrays), "h5py"),
        (lite.read, write_lite(tmp_path / "m.tflite", network("float32")), "tflite"),
    ):
        with pytest.raises(UserError, match=rf"needs {name}: pip install 'mobilenets\[weights\]'$"):
            read(path)


# ---- TFLite --------------------------------------------------------------------------------------------------------

TYPES = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int8": 9}


def write_lite(path, graph, appended=b""):
    """A TFLite file of {"tensors": [...], "ops": [...], "inputs": [0], "outputs": [7]}.

    A tensor is (name, type, shape, constant or None, (scales, zero points, axis) or None); an operator (its name, its
    options or None, inputs, outputs).
    """
    import flatbuffers

    b = flatbuffers.Builder(1024)

    def vector(start, values, prepend):
        start(b, len(values))
        for v in reversed(values):
            getattr(b, prepend)(v)
        return b.EndVector()

    def built(name, **fields):
        getattr(tflite, f"{name}Start")(b)
        for field, value in fields.items():
            if value is not None:
                getattr(tflite, f"{name}Add{field}")(b, value)
        return getattr(tflite, f"{name}End")(b)

    buffers, tensors = [built("Buffer")], []
    for name, kind, shape, constant, quantization in graph["tensors"]:
        number = 0
        if constant is not None:
            data = b.CreateByteVector(np.ascontiguousarray(constant).tobytes())
            number = len(buffers)
            buffers.append(built("Buffer", Data=data))
        q = None
        if quantization is not None:
            scales, zeros, axis = quantization
            s = vector(tflite.QuantizationParametersStartScaleVector, scales, "PrependFloat32")
            z = vector(tflite.QuantizationParametersStartZeroPointVector, zeros, "PrependInt64")
            q = built("QuantizationParameters", Scale=s, ZeroPoint=z, QuantizedDimension=axis)
        label = b.CreateString(name)
        dims = vector(tflite.TensorStartShapeVector, shape, "PrependInt32")
        tensors.append(built("Tensor", Shape=dims, Type=TYPES[kind], Buffer=number, Name=label, Quantization=q))
    ops, codes = [], []
    for name, options, inputs, outputs in graph["ops"]:
        if name not in codes:
            codes.append(name)
        made = kind = None
        if options is not None:
            kind = getattr(tflite.BuiltinOptions, options[0])
            made = built(options[0], **options[1])
        i = vector(tflite.OperatorStartInputsVector, inputs, "PrependInt32")
        o = vector(tflite.OperatorStartOutputsVector, outputs, "PrependInt32")
        ops.append(
            built(
                "Operator",
                OpcodeIndex=codes.index(name),
                Inputs=i,
                Outputs=o,
                BuiltinOptionsType=kind,
                BuiltinOptions=made,
            )
        )
    numbers = [getattr(tflite.BuiltinOperator, c) for c in codes]
    all_codes = [built("OperatorCode", DeprecatedBuiltinCode=min(n, 127), BuiltinCode=n) for n in numbers]
    parts = {
        "Tensors": vector(tflite.SubGraphStartTensorsVector, tensors, "PrependUOffsetTRelative"),
        "Inputs": vector(tflite.SubGraphStartInputsVector, graph["inputs"], "PrependInt32"),
        "Outputs": vector(tflite.SubGraphStartOutputsVector, graph["outputs"], "PrependInt32"),
        "Operators": vector(tflite.SubGraphStartOperatorsVector, ops, "PrependUOffsetTRelative"),
    }
    main = built("SubGraph", **parts)
    model = {
        "OperatorCodes": vector(tflite.ModelStartOperatorCodesVector, all_codes, "PrependUOffsetTRelative"),
        "Subgraphs": vector(
            tflite.ModelStartSubgraphsVector, [main] * graph.get("graphs", 1), "PrependUOffsetTRelative"
        ),
        "Buffers": vector(tflite.ModelStartBuffersVector, buffers, "PrependUOffsetTRelative"),
    }
    b.Finish(built("Model", Version=3, **model), b"TFL3")
    path.write_bytes(bytes(b.Output()) + appended)
    return path


def weights(seed=0):
    """The layers of `network`: conv [8, 3, 3, 3], depthwise [8, 1, 3, 3], linear [5, 8, 1, 1], each with its bias."""
    rng = np.random.default_rng(seed)
    shapes = [(8, 3, 3, 3), (8, 1, 3, 3), (5, 8, 1, 1)]
    return [(rng.normal(0, 1, s).astype(np.float32), rng.normal(0, 1, s[0]).astype(np.float32)) for s in shapes]


def network(kind, per_channel=True, seed=0):
    """A small classifier as TFLite has it: `kind` is float32, float16, uint8, int8, or dynamic (int8 weights only).

    conv 3x3/2, PAD, depthwise 3x3/2 valid, MEAN, fully connected, SOFTMAX.
    """
    stored = kind if kind in ("uint8", "int8") else "float32"
    act = ([0.05], [3], 0) if stored != "float32" else None
    tensors = [("input", stored, [1, 16, 16, 3], None, ([0.0078125], [128 if kind == "uint8" else 0], 0))]
    tensors[0] = tensors[0] if act else (*tensors[0][:4], None)
    ops = []

    def constant(name, array, axis):
        """The tensor's index, after a DEQUANTIZE for float16."""
        if kind == "float32" or (kind == "dynamic" and array.ndim == 1):
            tensors.append((name, "float32", array.shape, array, None))
        elif kind == "float16":
            tensors.append((name, "float16", array.shape, array.astype(np.float16), None))
            tensors.append((name + "_d", "float32", array.shape, None, None))
            ops.append(("DEQUANTIZE", None, [len(tensors) - 2], [len(tensors) - 1]))
        elif array.ndim == 1:
            q = np.round(array / 0.001).astype(np.int32)
            tensors.append((name, "int32", array.shape, q, ([0.001], [0], 0)))
        else:
            count = array.shape[axis] if per_channel else 1
            other = tuple(i for i in range(array.ndim) if i != axis) if per_channel else None
            scale = np.abs(array).max(axis=other).astype(np.float32).reshape(-1) / 100
            zero = 110 if kind == "uint8" else 0
            along = [-1 if i == axis else 1 for i in range(array.ndim)] if per_channel else [1]
            q = np.round(array / scale.reshape(along)) + zero
            q = q.astype(np.uint8 if kind == "uint8" else np.int8)
            tensors.append((name, str(q.dtype), array.shape, q, (scale.tolist(), [zero] * count, axis)))
        return len(tensors) - 1

    def computed(name, shape):
        tensors.append((name, stored, shape, None, act))
        return len(tensors) - 1

    (conv, conv_bias), (dw, dw_bias), (fc, fc_bias) = weights(seed)
    strides = {"StrideH": 2, "StrideW": 2}
    w, b = constant("w1", conv.transpose(0, 2, 3, 1), 0), constant("b1", conv_bias, 0)
    a = computed("conv1/Relu6", [1, 8, 8, 8])
    ops.append(("CONV_2D", ("Conv2DOptions", {"Padding": 0, **strides, "FusedActivationFunction": 3}), [0, w, b], [a]))
    tensors.append(("pads", "int32", [4, 2], np.array([[0, 0], [0, 1], [0, 1], [0, 0]], np.int32), None))
    p = computed("pad", [1, 9, 9, 8])
    ops.append(("PAD", ("PadOptions", {}), [a, len(tensors) - 2], [p]))
    w, b = constant("w2", dw.transpose(1, 2, 3, 0), 3), constant("b2", dw_bias, 0)
    d = computed("conv_dw_1/Relu", [1, 4, 4, 8])
    options = {"Padding": 1, **strides, "DepthMultiplier": 1, "FusedActivationFunction": 1}
    ops.append(("DEPTHWISE_CONV_2D", ("DepthwiseConv2DOptions", options), [p, w, b], [d]))
    tensors.append(("axes", "int32", [2], np.array([1, 2], np.int32), None))
    m = computed("mean", [1, 8])
    ops.append(("MEAN", ("ReducerOptions", {}), [d, len(tensors) - 2], [m]))
    w, b = constant("w3", fc[:, :, 0, 0], 0), constant("b3", fc_bias, 0)
    f = computed("logits", [1, 5])
    ops.append(("FULLY_CONNECTED", ("FullyConnectedOptions", {}), [m, w, b], [f]))
    s = computed("softmax", [1, 5])
    ops.append(("SOFTMAX", ("SoftmaxOptions", {"Beta": 1.0}), [f], [s]))
    return {"tensors": tensors, "ops": ops, "inputs": [0], "outputs": [s]}


OPS = ("CONV_2D", "PAD", "DEPTHWISE_CONV_2D", "MEAN", "FULLY_CONNECTED", "SOFTMAX")


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", ["float32", "float16", "dynamic", "uint8", "int8"])
def test_tflite(tmp_path, kind, per_channel):
    g = lite.read(write_lite(tmp_path / "m.tflite", network(kind, per_channel)))
    stored = kind if kind in ("uint8", "int8") else "float32"
    assert (g.input_size, g.classes, g.input_type, g.precision, g.labels) == (16, 5, stored, stored, None)
    assert g.ops == OPS
    assert g.wires == ((-1,), (0,), (1,), (2,), (3,), (4,))
    zero = 128 if kind == "uint8" else 0
    assert g.input_quantization == (None if stored == "float32" else (0.0078125, zero))
    assert [(x.name, x.kind, x.stride, x.padding, x.pad, x.activation) for x in g.layers] == [
        ("conv1/Relu6", "conv", 2, "same", (0, 0, 0, 0), "relu6"),
        ("conv_dw_1/Relu", "depthwise", 2, "valid", (0, 1, 0, 1), "relu"),
        ("logits", "linear", 1, "valid", (0, 0, 0, 0), "linear"),
    ]
    for layer, (weight, bias) in zip(g.layers, weights(), strict=True):
        assert layer.output_quantization == (None if stored == "float32" else (pytest.approx(0.05), 3))
        for found, expected in ((layer.weight, weight), (layer.bias, bias)):
            assert found.shape == expected.shape
            assert found.dtype == np.float32
        other = (1, 2, 3) if per_channel else None
        step = np.abs(weight).max(axis=other, keepdims=True) / 100
        error = {"float32": 0, "float16": 2e-3}.get(kind, step * 0.501)
        assert (np.abs(layer.weight - weight) <= error).all()
        assert np.abs(layer.bias - bias).max() <= {"float32": 0, "float16": 2e-3, "dynamic": 0}.get(kind, 0.00051)


def test_tflite_dequantizes_exactly(tmp_path):
    graph = network("int8")
    (_, _, shape, q, (scale, _, _)) = next(t for t in graph["tensors"] if t[0] == "w2")
    found = lite.read(write_lite(tmp_path / "m.tflite", graph)).layers[1].weight
    expected = q.astype(np.float32) * np.array(scale, np.float32)
    np.testing.assert_array_equal(found, expected.reshape(shape).transpose(3, 0, 1, 2))


def test_tflite_without_a_bias(tmp_path):
    graph = network("float32")
    for i, left in ((0, 2), (2, 3)):  # left out, or -1
        name, options, inputs, outputs = graph["ops"][i]
        graph["ops"][i] = (name, options, [*inputs[:2], -1][:left], outputs)
    g = lite.read(write_lite(tmp_path / "m.tflite", graph))
    assert not g.layers[0].bias.any()
    assert not g.layers[1].bias.any()
    assert g.layers[2].bias.any()


def zipped(files, method=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        for name, data in files.items():
            z.writestr(name, data)
    return out.getvalue()


def test_tflite_labels(tmp_path):
    path = tmp_path / "m.tflite"
    text = "rose\ntulip, red\nüber\n\nlast\n"
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        write_lite(path, network("uint8"), zipped({"labels.txt": text, "vocab.bin": b"x"}, method))
        assert lite.read(path).labels == ("rose", "tulip, red", "über", "", "last")
    write_lite(path, network("uint8"), zipped({"readme.txt": text}))
    assert lite.read(path).labels is None
    write_lite(path, network("uint8"), zipped({"labels.txt": b"x" * 2**24}, zipfile.ZIP_DEFLATED))
    assert line(lite.read, path) == "damaged TFLite file (labels of more than 1,048,576 bytes)"


def changed(graph, tensor=None, op=None, **top):
    """The graph with a tensor's or an operator's fields replaced: `tensor=("w1", 2, [8])`, `op=(0, 2, [0, 1, 2])`."""
    graph = {**graph, "tensors": list(graph["tensors"]), "ops": list(graph["ops"]), **top}
    for part, change in (("tensors", tensor), ("ops", op)):
        if change:
            which, field, value = change
            names = [t[0] for t in graph[part]]
            i = names.index(which)
            graph[part][i] = (*graph[part][i][:field], value, *graph[part][i][field + 1 :])
    return graph


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tensor": ("w1", 2, [8, 3, 3, 4])}, "damaged TFLite file (tensor 1 has 216 bytes, not [8, 3, 3, 4] of 1)"),
        ({"tensor": ("w1", 2, [8, -3, -3, 3])}, "damaged TFLite file (tensor 1 has 216 bytes"),
        ({"tensor": ("w1", 3, None)}, "the weights at tensor 1 aren't constant"),
        ({"tensor": ("w1", 4, None)}, "damaged TFLite file (tensor 1 is quantized, without a scale)"),
        ({"tensor": ("w1", 4, ([0.1] * 3, [0] * 3, 0))}, "damaged TFLite file (tensor 1 has 3 scales for"),
        ({"tensor": ("w1", 4, ([math.nan], [0], 0))}, "damaged TFLite file (tensor 1 has scales that aren't positive"),
        ({"tensor": ("conv1/Relu6", 4, None)}, "damaged TFLite file"),
        ({"tensor": ("b1", 2, [2, 4])}, "damaged TFLite file (conv1/Relu6: a bias of shape (2, 4) for 8 channels)"),
        ({"tensor": ("input", 2, [1, 16, 20, 3])}, "its input is [1, 16, 20, 3], not [1, size, size, 3]"),
        ({"tensor": ("softmax", 2, [1, 4, 5])}, "its output is [1, 4, 5], not [1, classes]"),
        ({"op": ("CONV_2D", 2, [0, 999, 2])}, "damaged TFLite file (tensor 999 of"),
        ({"op": ("CONV_2D", 2, [0, -5, 2])}, "damaged TFLite file (tensor -5 of"),
        ({"op": ("CONV_2D", 2, [0, 0, 2])}, "the weights at tensor 0 aren't constant"),
        ({"op": ("CONV_2D", 1, ("Conv2DOptions", {"StrideH": 2, "StrideW": 1}))}, "conv1/Relu6: strides 2 and 1"),
        ({"op": ("CONV_2D", 1, ("Conv2DOptions", {}))}, "conv1/Relu6: strides 0 and 0"),
        ({"op": ("CONV_2D", 1, None)}, "damaged TFLite file (conv1/Relu6: no options)"),
        ({"op": ("PAD", 2, [3, 0])}, "a PAD in it that isn't of height and width"),
        ({"graphs": 2}, "more than one graph in it, or none"),
        ({"inputs": [0, 0]}, "not a classifier: it needs one input and one output"),
        ({"ops": []}, "no layers in it"),
        ({"outputs": [1], "tensors": None}, "its output is"),
    ],
)
def test_tflite_that_no_mobilenet_is(tmp_path, change, said):
    graph = network("int8")
    if "tensors" in change:
        change = {**change, "tensors": graph["tensors"]}
    assert said in line(lite.read, write_lite(tmp_path / "m.tflite", changed(graph, **change)))


def test_damaged_tflite(tmp_path):
    path = write_lite(tmp_path / "m.tflite", network("int8"))
    data = path.read_bytes()
    for cut in range(0, len(data) - 4, 97):
        path.write_bytes(data[:cut])
        line(lite.read, path)
    path.write_bytes(b"x" * 100)
    assert line(lite.read, path) == "damaged TFLite file (no TFL3 at its start)"


def test_a_quoted_name_is_fit_for_a_terminal(tmp_path):
    graph = changed(
        network("int8"), op=("CONV_2D", 1, ("Conv2DOptions", {})), tensor=("conv1/Relu6", 0, "\x1b[2J\na" * 99)
    )
    said = line(lite.read, write_lite(tmp_path / "m.tflite", graph))
    assert said.isprintable()
    assert len(said) < 250


def test_tflite_weights_shared_by_many_layers(tmp_path):
    """A small file whose layers all point to the same weights would unpack to any size."""
    graph = network("float32")
    graph["ops"] = graph["ops"][:1] * 4_000 + graph["ops"][1:]
    w = next(i for i, t in enumerate(graph["tensors"]) if t[0] == "w1")
    graph["tensors"][w] = ("w1", "float32", [8, 3, 3, 900], np.zeros((8, 3, 3, 900), np.float32), None)
    said = "damaged TFLite file (its layers unpack to far more than its size)"
    assert line(lite.read, write_lite(tmp_path / "m.tflite", graph)) == said


# ---- TensorFlow checkpoints ----------------------------------------------------------------------------------------


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def masked_crc(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def block(entries, compression=0):
    """A block of an SSTable: each key shares what it can with the one before it."""
    out, last = b"", b""
    for key, value in entries:
        shared = next((i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last)))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    out += struct.pack("<II", 0, 1) + bytes([compression])
    return out + struct.pack("<I", masked_crc(out))


def entry(array, shard, at, dtype, **fields):
    dims = b"".join(b"\x12" + varint(len(d) + 1) + b"\x08" + d for d in map(varint, array.shape))
    data = array.tobytes()
    out = b"\x08" + varint(fields.get("code", dtype)) + b"\x12" + varint(len(dims)) + dims
    out += (b"\x18" + varint(shard) if shard else b"") + b"\x20" + varint(fields.get("offset", at))
    return out + b"\x28" + varint(len(data)) + b"\x35" + struct.pack("<I", masked_crc(data))


CODES = {"float32": 1, "float64": 2, "int64": 9, "uint16": 14, "float16": 19}  # uint16: bfloat16


def write_checkpoint(prefix, arrays, shards=1, blocks=2, compression=0, header=None, handles=lambda h: h, **fields):
    data = [b""] * shards
    rows = [(b"", header or b"\x08" + varint(shards) + b"\x1a\x02\x08\x01")]
    for i, (name, array) in enumerate(sorted(arrays.items())):
        shard = i % shards
        rows.append((name.encode(), entry(array, shard, len(data[shard]), CODES[str(array.dtype)], **fields)))
        data[shard] += array.tobytes()
    table, index = b"", []
    for part in range(blocks):
        some = rows[part * len(rows) // blocks : (part + 1) * len(rows) // blocks]
        one = block(some, compression)
        index.append((some[-1][0] + b"~", varint(len(table)) + varint(len(one) - 5)))
        table += one
    footer = b""
    for one in (block([]), block(handles(index))):
        footer += varint(len(table)) + varint(len(one) - 5)
        table += one
    table += footer.ljust(40, b"\0") + 0xDB4775248B80FB57.to_bytes(8, "little")
    prefix.with_name(prefix.name + ".index").write_bytes(table)
    for i, d in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{i:05d}-of-{shards:05d}").write_bytes(d)
    return prefix


@pytest.fixture
def slim():
    rng = np.random.default_rng(1)
    return {
        "MobilenetV1/Conv2d_0/weights": rng.normal(0, 1, (3, 3, 3, 8)).astype(np.float32),
        "MobilenetV1/Conv2d_0/BatchNorm/gamma": rng.normal(0, 1, 8).astype(np.float32),
        "MobilenetV1/Conv2d_1_depthwise/depthwise_weights": rng.normal(0, 1, (3, 3, 8, 1)).astype(np.float32),
        "MobilenetV1/Logits/Conv2d_1c_1x1/biases": rng.normal(0, 1, 5).astype(np.float32),
    }


@pytest.mark.parametrize(("shards", "blocks"), [(1, 1), (1, 2), (3, 5)])
def test_checkpoint(tmp_path, slim, shards, blocks):
    prefix = write_checkpoint(tmp_path / "m.ckpt", {**slim, "global_step": np.array(7, np.int64)}, shards, blocks)
    same(tf_checkpoint.read(prefix), slim)
    for path in tmp_path.iterdir():
        same(tf_checkpoint.read(path), slim)
        assert formats.reader(path) == "tf_checkpoint"


def test_checkpoint_of_other_precision(tmp_path, slim):
    names = list(slim)
    other = {names[0]: slim[names[0]].astype(np.float16), names[1]: slim[names[1]].astype(np.float64)}
    rounded = (slim[names[2]].view(np.uint32) >> 16).astype(np.uint16)  # bfloat16
    found = tf_checkpoint.read(write_checkpoint(tmp_path / "m.ckpt", {**other, names[2]: rounded}))
    same(found, {**other, names[2]: (rounded.astype(np.uint32) << 16).view(np.float32)})
    np.testing.assert_allclose(found[names[2]], slim[names[2]], rtol=2**-7)


def test_checkpoint_prefers_moving_averages(tmp_path, slim):
    averaged = {f"{k}/ExponentialMovingAverage": a + 1 for k, a in slim.items() if "gamma" not in k}
    found = tf_checkpoint.read(write_checkpoint(tmp_path / "m.ckpt", slim | averaged))
    same(found, {k: a + ("gamma" not in k) for k, a in slim.items()})


def test_checkpoint_of_objects(tmp_path, slim):
    named = {f"{k}/.ATTRIBUTES/VARIABLE_VALUE": a for k, a in slim.items()}
    same(tf_checkpoint.read(write_checkpoint(tmp_path / "m.ckpt", named)), slim)


def test_crc32c():
    """The values of RFC 3720, B.4."""
    known = {b"123456789": 0xE3069283, bytes(32): 0x8A9136AA, b"\xff" * 32: 0x62A8AB43, bytes(range(32)): 0x46DD794E}
    assert {k: tf_checkpoint.crc32c(k) for k in known} == known
    rng = np.random.default_rng(0)
    for size in (0, 1, 3, 4, 5, 63, 64, 65, 1000, 4097):
        data = rng.bytes(size)
        crc = tf_checkpoint.crc32c(data)
        assert ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF == masked_crc(data)


def failed(path, prefix):
    return line(lambda _: tf_checkpoint.read(prefix), path)


def test_checkpoint_failures(tmp_path, slim):
    prefix = tmp_path / "m.ckpt"
    index, data = tmp_path / "m.ckpt.index", tmp_path / "m.ckpt.data-00000-of-00001"
    assert failed(index, prefix) == "no such file"
    write_checkpoint(prefix, slim)
    data.rename(tmp_path / "elsewhere")
    assert failed(data, prefix) == "no such file"
    whole = (tmp_path / "elsewhere").read_bytes()
    data.write_bytes(whole[:-4])
    assert "reaches past the end of m.ckpt.data-00000-of-00001" in failed(index, prefix)
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "the checksum of MobilenetV1/Logits/Conv2d_1c_1x1/biases doesn't match" in failed(index, prefix)
    (tmp_path / "old.ckpt").write_bytes(b"x")
    said = "not a version 2 checkpoint: there is no old.ckpt.index beside it"
    assert line(tf_checkpoint.read, tmp_path / "old.ckpt") == said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compression": 1}, "its index is compressed with snappy"),
        ({"header": b"\x08\x01\x10\x01"}, "a big-endian checkpoint"),
        ({"header": b"\x08" + varint(2**62)}, "no such file"),
        ({"offset": 2**62}, "reaches past the end"),
        ({"code": 2}, "bytes, not ["),
        ({"handles": lambda h: h * 1000}, "its blocks overlap"),
        ({"handles": lambda h: [(h[0][0], varint(2**40) + varint(9))]}, "a block reaches past its end"),
        ({"handles": lambda h: [(b"k" * 2000, h[0][1])]}, "an entry of its index reaches past its end"),
        ({"handles": lambda _: []}, "no header, so not a version 2 checkpoint"),
    ],
)
def test_checkpoint_with_a_bad_index(tmp_path, slim, options, said):
    prefix = write_checkpoint(tmp_path / "m.ckpt", slim, **options)
    with pytest.raises(UserError) as e:
        tf_checkpoint.read(prefix)
    assert said in str(e.value)
    assert str(e.value).startswith(f"{prefix}.")


def test_checkpoint_whose_tensors_all_claim_the_same_bytes(tmp_path):
    arrays = {f"v{i}": np.zeros(256, np.float32) for i in range(50)}
    prefix = write_checkpoint(tmp_path / "m.ckpt", arrays, offset=0)
    data = tmp_path / "m.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:2048])
    assert "v10 reaches past the end" in failed(tmp_path / "m.ckpt.index", prefix)


# ---- PyTorch, safetensors, npz -------------------------------------------------------------------------------------


@pytest.fixture
def tensors():
    import torch

    torch.manual_seed(0)
    return {
        "features.0.weight": torch.randn(8, 3, 3, 3),
        "features.1.running_var": torch.rand(8).half(),
        "features.1.num_batches_tracked": torch.tensor(7),
        "classifier.weight": torch.randn(5, 8).bfloat16(),
        "classifier.bias": torch.randn(5).double(),
    }


def check_tensors(found, tensors):
    assert set(found) == set(tensors)
    for name, t in tensors.items():
        assert found[name].dtype == (np.float32 if t.is_floating_point() else np.int64)
        np.testing.assert_array_equal(found[name], t.float().numpy())


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model", "state_dict_ema", "model_ema"])
def test_pth(tmp_path, tensors, zip_format, wrapper):
    import torch

    saved = {wrapper: {f"module.{k}": t for k, t in tensors.items()}, "epoch": 3} if wrapper else tensors
    if wrapper.endswith("ema"):
        saved[wrapper.removesuffix("_ema")] = {k: t + 1 for k, t in tensors.items()}
    torch.save(saved, tmp_path / "m.pth", _use_new_zipfile_serialization=zip_format)
    check_tensors(pytorch.read(tmp_path / "m.pth"), tensors)


class Runs:
    def __reduce__(self):
        return os.mkdir, (os.environ["FORMATS_TEST_MARK"],)


def test_pth_with_code_in_it(tmp_path, tensors, monkeypatch):
    import torch

    monkeypatch.setenv("FORMATS_TEST_MARK", str(tmp_path / "it ran"))
    said = "holds code, not only tensors"
    for zip_format in (True, False):
        path = tmp_path / "m.pth"
        torch.save({**tensors, "x": Runs()}, path, _use_new_zipfile_serialization=zip_format)
        found = line(pytorch.read, path)
        assert found.startswith(f"{said} (posix.mkdir), and loading it would run that code; save it with torch.save(")
        torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=zip_format)
        assert line(pytorch.read, path).startswith(f"{said} (torch.nn.modules.linear.Linear), and")
    (tmp_path / "p.pt").write_bytes(pickle.dumps({"x": Runs()}))
    assert "a pickle that torch.save didn't write, which may hold code" in line(pytorch.read, tmp_path / "p.pt")
    (tmp_path / "s.pt").write_bytes(zipped({"s/data.pkl": b"", "s/code/__torch__.py": "import os"}))
    assert line(pytorch.read, tmp_path / "s.pt") == f"{said} (TorchScript); save its state_dict() instead"
    assert not (tmp_path / "it ran").exists()


def test_pth_that_unpacks_to_more_than_its_size(tmp_path):
    import torch

    torch.save({"a": torch.ones(1).expand(1 << 40)}, tmp_path / "m.pth")
    assert line(pytorch.read, tmp_path / "m.pth") == "damaged PyTorch file (it unpacks to far more than its size)"
    torch.save({"a": torch.ones(1 << 16)}, tmp_path / "n.pth")
    with zipfile.ZipFile(tmp_path / "n.pth") as z:
        members = {i.filename: z.read(i) for i in z.infolist()}
    (tmp_path / "n.pth").write_bytes(zipped(members, zipfile.ZIP_DEFLATED))
    assert "PyTorch doesn't compress" in line(pytorch.read, tmp_path / "n.pth")


def test_pth_that_asks_for_memory(tmp_path):
    """torch.load(weights_only=True) lets a pickle call bytearray(3 GB)."""
    import torch

    torch.save({"a": torch.ones(1)}, tmp_path / "m.pth")
    with zipfile.ZipFile(tmp_path / "m.pth") as z:
        members = {i.filename: z.read(i) for i in z.infolist()}
    members["m/data.pkl"] = b"\x80\x02cbuiltins\nbytearray\n(\x8a\x05" + (3 << 30).to_bytes(5, "little") + b"tR."
    (tmp_path / "m.pth").write_bytes(zipped(members))
    assert line(pytorch.read, tmp_path / "m.pth").startswith("holds a bytearray, not only tensors; save it with")


def test_pth_with_other_things_in_it(tmp_path):
    import torch

    torch.save({"epoch": 3, "lr": [0.1]}, tmp_path / "m.pth")
    assert line(pytorch.read, tmp_path / "m.pth") == "no tensors in it"
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "m.pth")
    assert "a is a sparse, quantized or empty tensor" in line(pytorch.read, tmp_path / "m.pth")


def test_safetensors(tmp_path, tensors):
    from safetensors.torch import save_file

    save_file({f"module.{k}": t for k, t in tensors.items()}, tmp_path / "m.safetensors")
    check_tensors(pytorch.read(tmp_path / "m.safetensors"), tensors)


def test_damaged_safetensors(tmp_path):
    path = tmp_path / "m.safetensors"
    data = safetensors.numpy.save({"a": np.ones((4, 4), np.float32)})
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 64]}}).encode()
    for bad in (data[:-1], data[:20], struct.pack("<Q", len(header)) + header + bytes(64)):
        path.write_bytes(bad)
        assert line(pytorch.read, path).startswith("damaged safetensors file (")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    a = np.arange(12, dtype=np.float64).reshape(3, 4)
    save(tmp_path / "m.npz", a=a, f=np.asfortranarray(a), h=a.astype(np.float16), n=np.uint8(3), s=np.array(["x"]))
    found = pytorch.read(tmp_path / "m.npz")
    same({k: v for k, v in found.items() if k != "n"}, {"a": a, "f": a, "h": a})
    assert found["n"].dtype == np.int64
    assert found["n"] == 3


def npy(shape, data, dtype="<f4"):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue() + data


def test_bad_npz(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, a=np.array([{}], object))
    assert line(pytorch.read, path) == "holds Python objects, not only arrays; save plain arrays"
    path.write_bytes(zipped({"a.npy": npy((1 << 40,), bytes(64))}))
    assert "a.npy has 64 bytes, not (1099511627776,) of float32" in line(pytorch.read, path)
    path.write_bytes(zipped({"a.npy": npy((1 << 23,), bytes(1 << 25))}, zipfile.ZIP_DEFLATED))
    assert line(pytorch.read, path) == "damaged zip (it unpacks to far more than its size)"
    path.write_bytes(zipped({"a.npy": npy((4,), bytes(16))}, zipfile.ZIP_LZMA))
    assert line(pytorch.read, path) == "damaged zip (compressed in an unknown way)"
    path.write_bytes(zipped({"model.weights.h5": b"", "config.json": b""}))
    assert line(pytorch.read, path) == "a .keras archive; unzip it, and use the model.weights.h5 in it"
    path.write_bytes(zipped({"readme": b""}))
    assert line(pytorch.read, path) == "a zip, but neither a PyTorch file nor an .npz"


# ---- which reader --------------------------------------------------------------------------------------------------


def test_reader(tmp_path, arrays, slim, tensors):
    import torch

    torch.save(tensors, tmp_path / "new.pth")
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    np.savez(tmp_path / "m.npz", **{k.replace("/", "."): a for k, a in arrays.items()})
    (tmp_path / "m.safetensors").write_bytes(safetensors.numpy.save(arrays))
    write_checkpoint(tmp_path / "ckpt", slim)
    write_h5(tmp_path / "w.h5", arrays)
    write_lite(tmp_path / "m.tflite", network("int8"))
    kinds = {
        "new.pth": "pytorch",
        "old.pth": "pytorch",
        "m.npz": "pytorch",
        "m.safetensors": "pytorch",
        "ckpt.index": "tf_checkpoint",
        "w.h5": "hdf5",
        "m.tflite": "tflite",
    }
    for name, kind in kinds.items():
        assert formats.reader(tmp_path / name) == kind
        shutil.copy(tmp_path / name, tmp_path / "unnamed")
        assert formats.reader(tmp_path / "unnamed") == kind
    assert formats.reader(tmp_path / "ckpt") == "tf_checkpoint"
    (tmp_path / "cut.h5").write_bytes(b"")
    assert formats.reader(tmp_path / "cut.h5") == "hdf5"
    (tmp_path / "notes.txt").write_text("hello")
    said = "not a known weight file; known: Keras .h5, TFLite .tflite, TensorFlow checkpoint (.index), PyTorch .pth"
    assert line(formats.reader, tmp_path / "notes.txt").startswith(said)


@pytest.mark.parametrize("read", [formats.reader, hdf5.read, lite.read, pytorch.read])
def test_paths_that_are_no_files(tmp_path, read):
    assert line(read, tmp_path / "none") == "no such file"
    assert line(read, tmp_path) == "not a file"
    os.mkfifo(tmp_path / "pipe")
    assert line(read, tmp_path / "pipe") == "not a file"
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "a\0b")
    with pytest.raises(UserError, match=r"can't be read \(File name too long\)"):
        read(tmp_path / ("a" * 300))
