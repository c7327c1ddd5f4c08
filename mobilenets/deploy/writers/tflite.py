"""A lowered network -> a TFLite graph, operation by operation. No torch, no TensorFlow.

Maps are [N, H, W, C], so that the image's own pixels are the input and attention's heads are rows without a transpose.
An int8 bundle's numbers are kept as they are, but that TFLite counts activations from -128: codes and zero points are
128 less.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from mobilenets.arch import graph as graphs
from mobilenets.arch.graph import pads
from mobilenets.arch.operations import KINDS, Op
from mobilenets.deploy.compact import is_sparse
from mobilenets.deploy.lowering import Lowered, lower, unsupported
from mobilenets.deploy.writers import tflite_detect
from mobilenets.deploy.writers.tflite_graph import CARD_KEY, Graph, quantization
from mobilenets.deploy.writers.tflite_metadata import (
    KEY,
    class_names,
    detected_names,
    metadata,
    normalization,
    with_labels,
)
from mobilenets.model.bundle import Bundle

Array = npt.NDArray[Any]
SHIFT = 128  # from uint8 codes to int8's
FUSED = {None: "NONE", "relu": "RELU", "relu6": "RELU6"}
SAME, VALID = schema.Padding.SAME, schema.Padding.VALID


class _Writer:
    """Walks a lowered graph. Values are known by their names, tensors by their index; maps are [N, H, W, C]."""

    def __init__(self, lowered: Lowered, batch: int | None, turned: bool = False, zeros: bool = False) -> None:
        """`turned`: see `tflite_graph`; `zeros`: they are written too, for a runtime that reads no sparse weights."""
        self.lowered, self.source, self.turned, self.zeros = lowered, lowered.graph, turned, zeros
        self.graph = Graph(batch)
        self.values: dict[str, int] = {}
        self.parts: dict[str, Mapping[str, int]] = {}  # of detections

    # ---- values

    def shape(self, name: str) -> tuple[int, ...]:
        """A value's shape here, without the batch: a map's channels come last."""
        shape = self.source.shapes[name]
        return (*shape[1:], shape[0]) if len(shape) == 3 and name != self.source.source else shape

    def is_int8(self, name: str) -> bool:
        return name in self.source.integers

    def value(self, name: str, like: str) -> int:
        """A tensor of the size, type and scale of the value `like`."""
        kind = "int8" if self.is_int8(like) else "float32"
        return self.graph.value(name, self.shape(like), kind, self.affine(like))

    def affine(self, name: str) -> Any:
        if not self.is_int8(name):
            return None
        scale, zero = self.lowered.scale(name)
        return quantization(scale, zero.astype(np.int64) - SHIFT)

    def number(self, name: str, value: float, int8: bool) -> int:
        """A positive constant; in int8 exactly too."""
        if int8:
            return self.graph.const(name, np.array([127], np.int8), quantization(np.array(value / 127), np.array(0)))
        return self.graph.const(name, np.array([value], np.float32))

    def integers(self, name: str, *values: Any) -> int:
        return self.graph.const(name, np.array(values, np.int32))

    # ---- operations

    def pixels(self, op: Op, image: int) -> int:
        """The image's own bytes as the numbers they stand for, in int8 or in float."""
        return self.graph.op(
            "QUANTIZE" if self.is_int8(op.name) else "DEQUANTIZE", [image], self.value(op.name, op.name)
        )

    def normalize(self, op: Op, image: int) -> int:
        p = self.lowered.card.preprocess
        x = self.graph.op("DEQUANTIZE", [image], self.value("image.float", op.name))
        centre = self.graph.const("image.mean", np.array(p.mean, np.float32))
        x = self.graph.op("SUB", [x, centre], self.value("image.centred", op.name), _options("SUB"))
        factor = self.graph.const("image.factor", (1 / np.array(p.std)).astype(np.float32))
        return self.graph.op("MUL", [x, factor], self.value("image.normalized", op.name), _options("MUL"))

    def quantize(self, op: Op, x: int) -> int:
        return self.graph.op("QUANTIZE", [x], self.value(op.name, op.name))

    def dequantize(self, op: Op, x: int) -> int:
        return self.graph.op("DEQUANTIZE", [x], self.value(op.name, op.name))

    def pad(self, op: Op, x: int) -> int:
        above, left, below, right = op.pads or (0, 0, 0, 0)
        out = self.value(op.name, op.name)
        around = self.integers(f"{op.name}s", (0, 0), (above, below), (left, right), (0, 0))
        if all(reader.kind != "maxpool" for reader in self.source.readers[op.name]):
            return self.graph.op("PAD", [x, around], out, schema.PadOptionsT())
        if self.is_int8(op.name):  # what is never the largest
            least = self.graph.const(f"{op.name}.least", np.array([-SHIFT], np.int8), self.affine(op.name))
        else:
            least = self.graph.const(f"{op.name}.least", np.array([np.finfo(np.float32).min], np.float32))
        return self.graph.op("PADV2", [x, around, least], out, schema.PadV2OptionsT())

    def padding(self, op: Op) -> int:
        """What isn't SAME was padded before."""
        _, height, width = self.source.shapes[op.inputs[0]]
        same = self.source.shapes[op.name][1:] == (-(-height // op.stride), -(-width // op.stride))
        return int(SAME if op.pads != (0, 0, 0, 0) or same else VALID)

    def windows(self, op: Op, x: int) -> int:
        kind = "MAX_POOL_2D" if op.kind == "maxpool" else "AVERAGE_POOL_2D"
        options = schema.Pool2DOptionsT()
        options.padding, options.strideH, options.strideW = self.padding(op), op.stride, op.stride
        options.filterHeight, options.filterWidth = op.kernels
        return self.graph.op(kind, [x], self.value(op.name, op.name), options)

    def shuffle(self, op: Op, x: int) -> int:
        height, width, channels = self.shape(op.name)
        groups, each = op.grouped, channels // op.grouped
        affine, kind = self.affine(op.name), "int8" if self.is_int8(op.name) else "float32"

        def shaped(name: str, x: int, *shape: int) -> int:
            out = self.graph.value(name, shape, kind, affine)
            to = self.integers(f"{name}.shape", self.graph.batch or -1, *shape)
            return self.graph.op("RESHAPE", [x, to], out, schema.ReshapeOptionsT())

        x = shaped(f"{op.name}.groups", x, height * width, groups, each)
        out = self.graph.value(f"{op.name}.turned", (height * width, each, groups), kind, affine)
        axes = self.integers(f"{op.name}.axes", 0, 1, 3, 2)
        x = self.graph.op("TRANSPOSE", [x, axes], out, schema.TransposeOptionsT())
        return shaped(op.name, x, height, width, channels)

    def slice(self, op: Op, x: int) -> int:
        height, width, _ = self.shape(op.name)
        begin = self.integers(f"{op.name}.begin", 0, 0, 0, op.first)
        size = self.integers(f"{op.name}.size", -1, height, width, op.cout)
        return self.graph.op("SLICE", [x, begin, size], self.value(op.name, op.name), schema.SliceOptionsT())

    def layer(self, op: Op, x: int) -> int:
        depthwise = op.kind in ("depthwise", "global", "norm")
        kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        options = schema.DepthwiseConv2DOptionsT(depthMultiplier=1) if depthwise else schema.Conv2DOptionsT()
        options.padding, options.strideH, options.strideW = self.padding(op), op.stride, op.stride
        options.fusedActivationFunction = _fused(op.activation)
        out = self.value(op.name, op.name)
        return self.graph.op(kind, [x, *self.parameters(op, depthwise)], out, options)

    def reads_image(self, op: Op) -> bool:
        """Whether an operation's input is the normalized image, padded or not."""
        before = self.source.by_name[op.inputs[0]]
        return self.reads_image(before) if before.kind == "pad" else before.kind in ("pixels", "normalize")

    def parameters(self, op: Op, depthwise: bool) -> tuple[int, int]:
        """Weights [cout, KH, KW, cin], or [1, KH, KW, cout] where each channel is by itself, and the bias."""
        name, axis = f"{op.name}.weight", 3 if depthwise else 0
        w = self.lowered.weights(op)
        laid = w.values[:, :, ::-1, ::-1] if self.turned else w.values
        laid = np.ascontiguousarray(laid.transpose(1, 2, 3, 0) if depthwise else laid.transpose(0, 2, 3, 1))
        if w.bias_scale is not None and w.scale is not None:
            zeros = np.zeros(len(w.scale), np.int64)
            return (
                self.graph.const(name, laid, quantization(w.scale, zeros, axis)),
                self.graph.const(f"{op.name}.bias", w.bias, quantization(w.bias_scale, zeros)),
            )
        added = self.graph.const(f"{op.name}.bias", w.bias)
        if w.scale is not None:
            affine = quantization(w.scale, np.zeros(len(w.scale)), axis)
            if op.groups == 1 and not depthwise and not self.reads_image(op):
                return self.graph.const(name, laid, affine), added
            # For few inputs to an output, float is faster than rounding them, and nearer.
            return self.graph.unpacked(name, self.graph.const(f"{name}.int8", laid, affine)), added
        halves = w.values.dtype == np.float16
        part = f"{name}.float16" if halves else name
        without = not self.zeros and op.kernels == (1, 1) and is_sparse(laid)
        kept = self.graph.sparse if without else self.graph.const
        return (self.graph.unpacked(name, kept(part, laid)) if halves else kept(part, laid)), added

    def activation(self, op: Op, x: int) -> int:
        out = self.value(op.name, op.name)
        match op.activation:
            case "hard_sigmoid":
                return self.hard_sigmoid(op, x, out)
            case "hard_swish":
                return self.graph.op("HARD_SWISH", [x], out, schema.HardSwishOptionsT())
            case "gelu":
                return self.graph.op("GELU", [x], out, schema.GeluOptionsT(approximate=False))
            case clip:
                return self.graph.op(str(FUSED[clip]), [x], out)

    def hard_sigmoid(self, op: Op, x: int, out: int) -> int:
        """relu6(x + 3) / 6. In int8 the sum has six times the output's scale: it rounds once, and dividing is exact."""
        int8, affine = self.is_int8(op.name), self.affine(op.name)
        if int8:
            affine.scale = affine.scale * np.float32(6)
        kind = "int8" if int8 else "float32"
        total = self.graph.value(f"{op.name}.sum", self.shape(op.name), kind, affine)
        self.graph.op("ADD", [x, self.number(f"{op.name}.three", 3, int8)], total, _options("ADD", "relu6"))
        sixth = self.number(f"{op.name}.sixth", 1 / 6, int8)
        return self.graph.op("MUL", [total, sixth], out, _options("MUL"))

    def attend(self, op: Op, query: int, key: int, value: int) -> int:
        """Multi-query attention in float: the heads see one key and value, so all queries are rows of one matrix."""
        name, dim, shape = op.name, op.cin, self.shape(op.name)
        rows, columns = shape[0] * shape[1] * op.heads, math.prod(self.shape(op.inputs[1])[:2])

        def product(part: str, a: int, b: int, shape: tuple[int, int], transposed: bool) -> int:
            options = schema.BatchMatMulOptionsT(adjY=transposed)
            return self.graph.op("BATCH_MATMUL", [a, b], self.graph.value(f"{name}.{part}", shape, "float32"), options)

        q = self.reshape(f"{name}.queries", query, rows, dim)
        k, v = (self.reshape(f"{name}.{n}", t, columns, dim) for n, t in (("keys", key), ("values", value)))
        scores = product("scores", q, k, (rows, columns), True)
        scaled = self.graph.value(f"{name}.scaled", (rows, columns), "float32")
        self.graph.op("MUL", [scores, self.number(f"{name}.scale", dim**-0.5, False)], scaled, _options("MUL"))
        weights = self.soft(f"{name}.softmax", scaled, rows, columns)
        mixed = product("mix", weights, v, (rows, dim), False)
        return self.reshape(name, mixed, *shape)

    def reshape(self, name: str, x: int, *shape: int) -> int:
        out = self.graph.value(name, shape, "float32")
        to = self.integers(f"{name}.shape", self.graph.batch or -1, *shape)
        return self.graph.op("RESHAPE", [x, to], out, schema.ReshapeOptionsT())

    def soft(self, name: str, x: int, *shape: int) -> int:
        out = self.graph.value(name, shape, "float32")
        return self.graph.op("SOFTMAX", [x], out, schema.SoftmaxOptionsT(beta=1.0))

    def channels_first(self, name: str, x: int, shape: tuple[int, ...]) -> int:
        """A map [N, H, W, C] as [N, C, H, W]."""
        out = self.graph.value(name, shape, "float32")
        axes = self.integers(f"{name}.axes", 0, 3, 1, 2)
        return self.graph.op("TRANSPOSE", [x, axes], out, schema.TransposeOptionsT())

    def pool(self, op: Op, x: int) -> int:
        axes = self.integers(f"{op.name}.axes", 1, 2)
        out = self.value(op.name, op.name)
        return self.graph.op("MEAN", [x, axes], out, schema.ReducerOptionsT(keepDims=True))

    def joint(self, op: Op, *inputs: int) -> int:
        kind = op.kind.upper()
        return self.graph.op(kind, inputs, self.value(op.name, op.name), _options(kind))

    def concat(self, op: Op, *inputs: int) -> int:
        """Of int8 maps: each is brought to the output's scale first, which TFLite's own operation asks for."""
        if self.is_int8(op.name):
            like = [
                self.graph.value(f"{op.name}.{i}", self.shape(n), "int8", self.affine(op.name))
                for i, n in enumerate(op.inputs)
            ]
            inputs = tuple(self.graph.op("QUANTIZE", [x], out) for x, out in zip(inputs, like, strict=True))
        options = schema.ConcatenationOptionsT(axis=len(self.shape(op.name)))
        return self.graph.op("CONCATENATION", inputs, self.value(op.name, op.name), options)

    def flatten(self, op: Op, x: int) -> int:
        """Channels first, as everywhere."""
        shape = self.source.shapes[op.inputs[0]]
        if len(shape) == 3 and shape[1] * shape[2] > 1:
            x = self.channels_first(f"{op.name}.planes", x, shape)
        return self.reshape(op.name, x, *self.shape(op.name))

    def softmax(self, op: Op, x: int) -> int:
        return self.soft(op.name, x, *self.shape(op.name))

    def sigmoid(self, op: Op, x: int) -> int:
        return self.graph.op("LOGISTIC", [x], self.value(op.name, op.name))

    def l2norm(self, op: Op, x: int) -> int:
        return self.graph.op("L2_NORMALIZATION", [x], self.value(op.name, op.name), schema.L2NormOptionsT())

    def write(self, metadata: dict[str, bytes]) -> bytes:
        card, source = self.lowered.card, self.source
        mean, std = normalization(card)
        scale, zero = np.array(1 / std), np.array(mean)
        if self.is_int8(source.ops[0].name):
            scale, zero = self.lowered.scale(source.ops[0].name)
        affine = quantization(scale, zero)
        image = x = self.graph.value(source.source, source.source_shape, "uint8", affine)
        if self.turned:
            out = self.graph.value("image.turned", source.source_shape, "uint8", affine)
            x = self.graph.op("REVERSE_V2", [x, self.integers("image.axes", 1, 2)], out, schema.ReverseV2OptionsT())
        self.values[source.source] = x
        for op in source.ops:
            if op.kind not in EMIT:
                raise unsupported("TFLite", op)
            self.values[op.name] = EMIT[op.kind](self, op, *(self.values[name] for name in op.inputs))
        outputs = {}
        for o in source.outputs:
            x, shape = self.values[o.op], source.shapes[o.op]
            outputs[o.name] = self.channels_first(f"{o.name}.planes", x, shape) if len(shape) == 3 else x
        if {*outputs} == {*tflite_detect.ORDER}:  # in which programs for TensorFlow's detectors look for them
            outputs = {name: outputs[name] for name in tflite_detect.ORDER}
        return self.graph.write(card.arch.title, image, outputs, metadata)


EMIT: dict[str, Callable[..., int]] = {
    "pixels": _Writer.pixels,
    "normalize": _Writer.normalize,
    "quantize": _Writer.quantize,
    "dequantize": _Writer.dequantize,
    "pad": _Writer.pad,
    **dict.fromkeys(("conv", "depthwise", "pointwise", "linear", "global", "norm"), _Writer.layer),
    "activation": _Writer.activation,
    "pool": _Writer.pool,
    **dict.fromkeys(("maxpool", "avgpool"), _Writer.windows),
    "shuffle": _Writer.shuffle,
    "slice": _Writer.slice,
    "add": _Writer.joint,
    "mul": _Writer.joint,
    "attend": _Writer.attend,
    "concat": _Writer.concat,
    "flatten": _Writer.flatten,
    "softmax": _Writer.softmax,
    "sigmoid": _Writer.sigmoid,
    "l2norm": _Writer.l2norm,
    "rows": tflite_detect.rows,
    "stack": tflite_detect.stack,
    "upsample": tflite_detect.upsample,
    "boxes": tflite_detect.boxes,
    "suppress": tflite_detect.suppress,
    "detected": tflite_detect.detected,
}


def computed_in_float(op: Op, micro: bool = False) -> bool:
    """Whether an int8 network's operation is computed in float, between int8 values.

    What is inside attention has no scales; TFLite's means of windows keep their input's. XNNPACK has no int8 hard
    swish: with TFLite's own, V3-Small takes 15 times as long (x86). A microcontroller has no memory for maps in float.
    """
    return op.kind in ("attend", "avgpool") or (op.activation in ("hard_swish", "gelu") and not micro)


def can_be_turned(graph: graphs.Graph) -> bool:
    """Whether nothing but TFLite's own padding is needed, and no answer changes, with the image and kernels turned."""
    if graph.padding != "symmetric":
        return False
    places = [graph.shapes[o.op][1:] for o in graph.outputs]  # where a turned map would be seen
    places += [graph.shapes[op.inputs[0]][1:] for op in graph.ops if op.kind == "flatten"]
    windows = (op for op in graph.ops if op.is_layer or KINDS[op.kind].windowed)
    return all(math.prod(p) == 1 for p in places) and all(_turns(op, graph) for op in windows)


def _turns(op: Op, graph: graphs.Graph) -> bool:
    """Whether what symmetric padding reads beyond the end of a map is what TFLite adds before it."""
    _, *sides = graph.shapes[op.inputs[0]]
    _, *counts = graph.shapes[op.name]
    shape = graph.shapes[op.inputs[0]]
    before = pads(dataclasses.replace(op, pads=None), shape, "same")[:2]
    own = zip(counts, op.kernels, pads(op, shape, graph.padding)[:2], strict=True)
    ends = [(n - 1) * op.stride + k - p for n, k, p in own]
    return all(end - side == b for end, side, b in zip(ends, sides, before, strict=True))


def _fused(activation: str | None) -> int:
    return int(getattr(schema.ActivationFunctionType, FUSED[activation]))


def _options(kind: str, activation: str | None = None) -> Any:
    """Of the operators that take two tensors."""
    return getattr(schema, f"{kind.capitalize()}OptionsT")(fusedActivationFunction=_fused(activation))


def tflite_graph(
    bundle: Bundle, batch: int | None, entries: dict[str, bytes] | None = None, micro: bool = False
) -> bytes:
    """The network alone: input `image` uint8 [N, H, W, 3], the card's outputs, float32, maps [N, C, H, W].

    Preprocessing is inside. `batch`: the N of every call; any, if None. `entries`: metadata, by name.

    `micro`: as TensorFlow Lite Micro runs it in the least memory. The image is turned by half a circle first, and all
    kernels with it: the answers are the same, and "symmetric" padding at stride 2 becomes TFLite's own, without padded
    copies of maps, which would be the largest values. (XNNPACK makes none anyhow.) A map that is given out would be
    turned too: then nothing is.
    """
    turned = micro and can_be_turned(bundle.card.graph)
    lowered = lower(bundle, in_float=lambda op: computed_in_float(op, micro), same_only=not turned)
    batch = tflite_detect.check_batch(lowered.graph, batch)
    return _Writer(lowered, batch, turned, zeros=micro).write(entries or {})


def tflite_model(bundle: Bundle, batch: int | None = None) -> bytes:
    """The network with all that is known of it: TFLite's own metadata, the labels behind it as a zip, the card."""
    entries = {KEY: metadata(bundle.card), CARD_KEY: json.dumps(bundle.card.to_json()).encode()}
    model = tflite_graph(bundle, batch, entries)
    names = class_names(bundle.card) or detected_names(bundle.card)
    return with_labels(model, names) if names else model
