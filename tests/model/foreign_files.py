"""Other frameworks' weight files, small, written as those frameworks write them; and what reading one should give."""

import io
import struct
import zipfile

import numpy as np
import pytest

from mobilenets.errors import UserError

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


def keras_arrays():
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


def write_archive(path, weights, config="{}"):
    """Keras 3's `.keras`: a zip of the `.weights.h5` and the description of the model."""
    path.write_bytes(zipped({"metadata.json": b"{}", "config.json": config, "model.weights.h5": weights.read_bytes()}))
    return path


def keras3_layers(arrays):
    bn = [arrays[f"conv1_bn/{n}"] for n in ("gamma", "beta", "moving_mean", "moving_variance")]
    return {
        ("conv2d", "conv1"): [arrays["conv1/kernel"]],
        ("batch_normalization", "conv1_bn"): bn,
        ("depthwise_conv2d", "conv_dw_1"): [arrays["conv_dw_1/depthwise_kernel"]],
        ("conv2d", "conv_preds"): [arrays["conv_preds/kernel"], arrays["conv_preds/bias"]],
        ("activation", "relu"): [],
    }


TYPES = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int8": 9}


def write_lite(path, graph, appended=b""):
    """A TFLite file of {"tensors": [...], "ops": [...], "inputs": [0], "outputs": [7]}.

    A tensor is (name, type, shape, constant or None, (scales, zero points, axis) or None); an operator (its name, its
    options or None, inputs, outputs); one whose options are bytes is a custom one.
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
        made = kind = custom = None
        if isinstance(options, bytes):
            custom = b.CreateByteVector(options)
        elif options is not None:
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
                CustomOptions=custom,
            )
        )
    own = {c: b.CreateString(c) for c in codes if not hasattr(tflite.BuiltinOperator, c)}
    numbers = [getattr(tflite.BuiltinOperator, c, tflite.BuiltinOperator.CUSTOM) for c in codes]
    all_codes = [
        built("OperatorCode", DeprecatedBuiltinCode=min(n, 127), BuiltinCode=n, CustomCode=own.get(c))
        for c, n in zip(codes, numbers, strict=True)
    ]
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


def zipped(files, method=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        for name, data in files.items():
            z.writestr(name, data)
    return out.getvalue()


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


def slim_arrays():
    rng = np.random.default_rng(1)
    return {
        "MobilenetV1/Conv2d_0/weights": rng.normal(0, 1, (3, 3, 3, 8)).astype(np.float32),
        "MobilenetV1/Conv2d_0/BatchNorm/gamma": rng.normal(0, 1, 8).astype(np.float32),
        "MobilenetV1/Conv2d_1_depthwise/depthwise_weights": rng.normal(0, 1, (3, 3, 8, 1)).astype(np.float32),
        "MobilenetV1/Logits/Conv2d_1c_1x1/biases": rng.normal(0, 1, 5).astype(np.float32),
    }


def torch_tensors():
    import torch

    torch.manual_seed(0)
    return {
        "features.0.weight": torch.randn(8, 3, 3, 3),
        "features.1.running_var": torch.rand(8).half(),
        "features.1.num_batches_tracked": torch.tensor(7),
        "classifier.weight": torch.randn(5, 8).bfloat16(),
        "classifier.bias": torch.randn(5).double(),
    }
