"""Arch and weights -> a TFLite graph, operation by operation. No torch, no TensorFlow.

Maps are [N, H, W, C], so that the image's own pixels are the input and attention's heads are rows without a transpose.
An int8 bundle's numbers are kept as they are, but that TFLite counts activations from -128: codes and zero points are
128 less.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from mobilenets.arch.graph import Op
from mobilenets.arch.spec import same_padding
from mobilenets.deploy.writers.tflite_graph import CARD_KEY, Graph, quantization
from mobilenets.deploy.writers.tflite_metadata import KEY, metadata, normalization, with_labels
from mobilenets.model.card import Card
from mobilenets.model.encodings import Tensors, fold, half, int8_weights, unpack

Array = npt.NDArray[Any]
SHIFT = 128  # from uint8 codes to int8's
FUSED = {None: "NONE", "relu": "RELU", "relu6": "RELU6"}
SAME, VALID = schema.Padding.SAME, schema.Padding.VALID


class _Writer:
    """Walks an Arch's operations. A value may exist in two forms, int8 and float: the second is made when it's read."""

    def __init__(self, card: Card, tensors: Tensors, batch: int | None, micro: bool) -> None:
        self.card, self.tensors, self.arch, self.micro = card, tensors, card.arch, micro
        self.turned = micro and self.arch.padding == "symmetric"
        self.graph = Graph(batch)
        self.forms: dict[str, dict[bool, int]] = {}  # of each activation, by whether it is int8
        int8 = card.precision == "int8"
        self.int8 = frozenset(self.arch.activations) - set(card.float_ops) if int8 else frozenset()
        self.folded = unpack(card, tensors) if int8 else fold(self.arch, tensors)

    # ---- values

    def value(self, name: str, source: str, int8: bool, channels: int) -> int:
        """A map [N, H, W, channels] in int8 or float, of the size and scale of the activation `source`."""
        side = self.arch.sides[source]
        return self.graph.value(name, (side, side, channels), "int8" if int8 else "float32", self.affine(source, int8))

    def affine(self, name: str, int8: bool) -> Any:
        if not int8:
            return None
        zero = self.tensors[f"{name}.zero_point"].astype(np.int64) - SHIFT
        return quantization(self.tensors[f"{name}.scale"], zero)

    def read(self, name: str, int8: bool, channels: int) -> int:
        """The activation in the form that its reader takes."""
        forms = self.forms[name]
        if int8 not in forms:
            out = self.value(f"{name}.{'int8' if int8 else 'float'}", name, int8, channels)
            forms[int8] = self.graph.op("QUANTIZE" if int8 else "DEQUANTIZE", [forms[not int8]], out)
        return forms[int8]

    def number(self, name: str, value: float, int8: bool) -> int:
        """A positive constant; in int8 exactly too."""
        if int8:
            return self.graph.const(name, np.array([127], np.int8), quantization(np.array(value / 127), np.array(0)))
        return self.graph.const(name, np.array([value], np.float32))

    def integers(self, name: str, *values: Any) -> int:
        return self.graph.const(name, np.array(values, np.int32))

    # ---- operations

    def image(self) -> int:
        """uint8 [N, H, W, 3], normalized to the activation "input"; gives the image."""
        p, side = self.card.preprocess, self.arch.resolution
        mean, std = normalization(self.card)
        whole = (p.mean, p.std) == ((mean,) * 3, (std,) * 3)  # then the pixels are the quantized input
        int8 = whole and "input" in self.int8
        scale, zero = np.array(1 / std), np.array(mean)
        if int8:
            scale, zero = self.tensors["input.scale"], self.tensors["input.zero_point"]
        affine = quantization(scale, zero)
        image = pixels = self.graph.value("image", (side, side, 3), "uint8", affine)
        if self.turned:
            out = self.graph.value("image.turned", (side, side, 3), "uint8", affine)
            axes = self.integers("image.axes", 1, 2)
            pixels = self.graph.op("REVERSE_V2", [image, axes], out, schema.ReverseV2OptionsT())
        if whole:
            x = self.graph.op("QUANTIZE" if int8 else "DEQUANTIZE", [pixels], self.value("input", "input", int8, 3))
        else:
            x = self.graph.op("DEQUANTIZE", [pixels], self.value("image.float", "input", False, 3))
            centre = self.graph.const("image.mean", np.array(p.mean, np.float32))
            x = self.graph.op("SUB", [x, centre], self.value("image.centred", "input", False, 3), _options("SUB"))
            factor = self.graph.const("image.factor", (1 / np.array(p.std)).astype(np.float32))
            out = self.value("image.normalized", "input", False, 3)
            x = self.graph.op("MUL", [x, factor], out, _options("MUL"))
        self.made("input", x, int8, 3)
        return image

    def made(self, name: str, x: int, int8: bool, channels: int) -> None:
        """The activation `name` is there; where it is int8's but was computed in float, it is rounded."""
        self.forms[name] = {int8: x}
        if name in self.int8 and not int8:
            self.forms[name] = {True: self.read(name, True, channels)}

    def layer(self, op: Op, x: int, int8: bool) -> int:
        depthwise = op.kind in ("depthwise", "norm")
        side = self.arch.sides[op.inputs[0]]
        half = op.kernel // 2
        same = same_padding(side, op.kernel, op.stride)
        if self.arch.padding == "symmetric" and same != (half, half) and not self.turned:
            padded = self.graph.value(
                f"{op.name}.pad", (side + 2 * half, side + 2 * half, op.cin), "int8" if int8 else "float32",
                self.affine(op.inputs[0], int8),
            )  # fmt: skip
            around = self.integers(f"{op.name}.pads", (0, 0), (half, half), (half, half), (0, 0))
            x = self.graph.op("PAD", [x, around], padded, schema.PadOptionsT())
            padding = VALID
        else:
            padding = SAME
        kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        options = schema.DepthwiseConv2DOptionsT(depthMultiplier=1) if depthwise else schema.Conv2DOptionsT()
        options.padding, options.strideH, options.strideW = padding, op.stride, op.stride
        options.fusedActivationFunction = _fused(op.activation)
        out = self.value(op.name, op.name, int8, op.cout)
        return self.graph.op(kind, [x, *self.parameters(op, int8, depthwise)], out, options)

    def parameters(self, op: Op, int8: bool, depthwise: bool) -> tuple[int, int]:
        """Weights [cout, K, K, cin], or [1, K, K, cout] where each channel is by itself, and the bias."""
        name, axis = f"{op.name}.weight", 3 if depthwise else 0
        weight, bias = self.folded[op.name]

        def laid(w: Array) -> Array:
            w = w[:, :, ::-1, ::-1] if self.turned else w
            return np.ascontiguousarray(w.transpose(1, 2, 3, 0) if depthwise else w.transpose(0, 2, 3, 1))

        if int8:
            scale = self.tensors[f"{op.name}.weight_scale"]
            product = scale * self.tensors[f"{op.inputs[0]}.scale"]
            zeros = np.zeros(len(scale), np.int64)
            return (
                self.graph.const(name, laid(self.tensors[name]), quantization(scale, zeros, axis)),
                self.graph.const(f"{op.name}.bias", self.tensors[f"{op.name}.bias"], quantization(product, zeros)),
            )
        added = self.graph.const(f"{op.name}.bias", bias)
        match self.card.precision:
            case "dynamic":
                codes, scale = int8_weights(weight)
                affine = quantization(scale, np.zeros(len(scale)), axis)
                if not depthwise and op.inputs != ("input",):
                    return self.graph.const(name, laid(codes), affine), added
                # For few inputs to an output, float is faster than rounding them, and nearer.
                return self.graph.unpacked(name, self.graph.const(f"{name}.int8", laid(codes), affine)), added
            case "float16":
                stored = self.graph.const(f"{name}.float16", laid(half(weight)))
                return self.graph.unpacked(name, stored), added
            case _:
                return self.graph.const(name, laid(weight)), added

    def activation(self, op: Op, x: int, int8: bool) -> int:
        out = self.value(op.name, op.name, int8, op.cout)
        match op.activation:
            case "hard_swish":
                return self.graph.op("HARD_SWISH", [x], out, schema.HardSwishOptionsT())
            case "hard_sigmoid":
                return self.hard_sigmoid(op, x, out, int8)
            case _:
                return self.graph.op("GELU", [x], out, schema.GeluOptionsT(approximate=False))

    def hard_sigmoid(self, op: Op, x: int, out: int, int8: bool) -> int:
        """relu6(x + 3) / 6. In int8 the sum has six times the output's scale: it rounds once, and dividing is exact."""
        side, affine = self.arch.sides[op.name], self.affine(op.name, int8)
        if int8:
            affine.scale = affine.scale * np.float32(6)
        total = self.graph.value(f"{op.name}.sum", (side, side, op.cout), "int8" if int8 else "float32", affine)
        self.graph.op("ADD", [x, self.number(f"{op.name}.three", 3, int8)], total, _options("ADD", "relu6"))
        return self.graph.op("MUL", [total, self.number(f"{op.name}.sixth", 1 / 6, int8)], out, _options("MUL"))

    def attend(self, op: Op, query: int, key: int, value: int) -> int:
        """Multi-query attention in float: the heads see one key and value, so all queries are rows of one matrix."""
        name, dim, side = op.name, op.cin, self.arch.sides[op.name]
        rows, columns = side * side * op.heads, self.arch.sides[op.inputs[1]] ** 2

        def product(part: str, a: int, b: int, shape: tuple[int, int], transposed: bool) -> int:
            options = schema.BatchMatMulOptionsT(adjY=transposed)
            return self.graph.op("BATCH_MATMUL", [a, b], self.graph.value(f"{name}.{part}", shape, "float32"), options)

        q = self.reshape(f"{name}.queries", query, rows, dim)
        k, v = (self.reshape(f"{name}.{n}", t, columns, dim) for n, t in (("keys", key), ("values", value)))
        scores = product("scores", q, k, (rows, columns), True)
        scaled = self.graph.value(f"{name}.scaled", (rows, columns), "float32")
        self.graph.op("MUL", [scores, self.number(f"{name}.scale", dim**-0.5, False)], scaled, _options("MUL"))
        weights = self.softmax(f"{name}.softmax", scaled, rows, columns)
        mixed = product("mix", weights, v, (rows, dim), False)
        return self.reshape(name, mixed, side, side, op.cout)

    def reshape(self, name: str, x: int, *shape: int) -> int:
        out = self.graph.value(name, shape, "float32")
        to = self.integers(f"{name}.shape", self.graph.batch or -1, *shape)
        return self.graph.op("RESHAPE", [x, to], out, schema.ReshapeOptionsT())

    def softmax(self, name: str, x: int, *shape: int) -> int:
        out = self.graph.value(name, shape, "float32")
        return self.graph.op("SOFTMAX", [x], out, schema.SoftmaxOptionsT(beta=1.0))

    def operation(self, op: Op, inputs: list[int], int8: bool) -> int:
        if op.is_layer:
            return self.layer(op, inputs[0], int8)
        match op.kind:
            case "activation":
                return self.activation(op, inputs[0], int8)
            case "attend":
                return self.attend(op, *inputs)
            case "pool":
                axes = self.integers(f"{op.name}.axes", 1, 2)
                out = self.value(op.name, op.name, int8, op.cout)
                return self.graph.op("MEAN", [*inputs, axes], out, schema.ReducerOptionsT(keepDims=True))
            case kind:
                out = self.value(op.name, op.name, int8, op.cout)
                return self.graph.op(kind.upper(), inputs, out, _options(kind.upper()))

    def in_float(self, op: Op) -> bool:
        """Whether an int8 network's operation is computed in float, between int8 values.

        What is inside attention has no scales. XNNPACK has no int8 hard swish: with TFLite's own, V3-Small takes 15
        times as long (x86). A microcontroller has no memory for maps in float.
        """
        return op.kind == "attend" or (op.activation in ("hard_swish", "gelu") and not self.micro)

    def write(self, metadata: dict[str, bytes]) -> bytes:
        image = self.image()
        channels = {"input": 3} | {op.name: op.cout for op in self.arch.ops}
        for op in self.arch.ops:
            int8 = op.name in self.int8 and not self.in_float(op)
            inputs = [self.read(name, int8, channels[name]) for name in op.inputs]
            self.made(op.name, self.operation(op, inputs, int8), int8, op.cout)
        last = self.arch.ops[-1]
        logits = self.reshape("logits", self.read(last.name, False, last.cout), last.cout)
        output = self.softmax("probabilities", logits, last.cout)
        return self.graph.write(self.arch.title, image, output, metadata)


def _fused(activation: str | None) -> int:
    return int(getattr(schema.ActivationFunctionType, FUSED[activation]))


def _options(kind: str, activation: str | None = None) -> Any:
    """Of the operators that take two tensors."""
    return getattr(schema, f"{kind.capitalize()}OptionsT")(fusedActivationFunction=_fused(activation))


def tflite_graph(
    card: Card, tensors: Tensors, batch: int | None, entries: dict[str, bytes] | None = None, micro: bool = False
) -> bytes:
    """The network alone: input `image` uint8 [N, H, W, 3], output `probabilities` float32 [N, classes].

    Preprocessing and softmax are inside. `batch`: the N of every call; any, if None. `entries`: metadata, by name.

    `micro`: as TensorFlow Lite Micro runs it in the least memory. The image is turned by half a circle first, and all
    kernels with it: the answers are the same, and "symmetric" padding at stride 2 becomes TFLite's own, without padded
    copies of maps, which would be the largest values. (XNNPACK makes none anyhow.)
    """
    return _Writer(card, tensors, batch, micro).write(entries or {})


def tflite_model(card: Card, tensors: Tensors, batch: int | None = None) -> bytes:
    """The network with all that is known of it: TFLite's own metadata, the labels behind it as a zip, the card."""
    entries = {KEY: metadata(card), CARD_KEY: json.dumps(card.to_json()).encode()}
    return with_labels(tflite_graph(card, tensors, batch, entries), card.labels)
