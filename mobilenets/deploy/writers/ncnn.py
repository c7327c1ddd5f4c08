"""A lowered network -> ncnn's two files: layers as text (.param), their weights one after another (.bin). No torch.

In: float pixels 0..255, as `ncnn.Mat.from_pixels` gives them, as blob "image"; out: blobs by the names of the card's
outputs, of one image a call.

int8: the weights are an int8 bundle's codes and scales, but ncnn knows no zero points. Of its activations, -127..127,
half the codes would be lost on those that are never negative. Those are stored turned: 127 minus the bundle's code, so
that 127 is zero, and the next layer's weights and bias make up for it; only the largest code, 255, becomes 254. (The
code less 127 would do too, but ncnn's x86 layers pad wrongly with negative values.) Other activations have ncnn's
symmetric scale, over a range that reaches as far as the bundle's. Sums, gates and whatever else no integer layer reads
stay float. So an int8 file's answers are near the bundle's, not the same.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets.arch.operations import Activation, Op
from mobilenets.deploy.lowering import Lowered, lower, unsupported
from mobilenets.deploy.writers import ncnn_detect
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Precision
from mobilenets.model.encodings import half

Array = npt.NDArray[Any]
Value = int | float | tuple[int, ...] | tuple[float, ...]
MAGIC = "7767517"
HARD: Mapping[int, Value] = {0: 1 / 6, 1: 0.5}
ACTIVATIONS: dict[Activation, tuple[str, Mapping[int, Value]]] = {
    "hard_swish": ("HardSwish", HARD),
    "hard_sigmoid": ("HardSigmoid", HARD),
    "gelu": ("GELU", {}),
}
# How weights begin in the .bin, and what follows.
TAGS: dict[Precision, int] = {"float32": 0, "float16": 0x01306B47, "int8": 0x000D4B38}
TYPES: dict[Precision, str] = {"float32": "<f4", "float16": "<f2", "int8": "i1"}
# Layers with weights, and the parameter that says how many.
WEIGHTS = {"Convolution": "6", "ConvolutionDepthWise": "6", "InnerProduct": "2"}
# Parameters of theirs. INT8: 1 with a float output, 101 with an int8 one; PAD: in codes, where the input is in int8.
INT8, ACTIVATION, PAD = 8, 9, 18
ADD, MUL, DIV, MAX, RSUB = 0, 2, 3, 4, 7  # kinds of BinaryOp; the last is of a number minus the input
BINARY = {"add": ADD, "mul": MUL}
L2 = 8  # of Reduction
TINY = 1e-12  # what PyTorch takes for the length of a vector that has none


@dataclass(frozen=True)
class _Layer:
    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[int, Value]

    def line(self) -> str:
        parameters = (_parameter(k, v) for k, v in self.parameters.items())
        counts = len(self.inputs), len(self.outputs)
        return " ".join(map(str, (self.kind, self.name, *counts, *self.inputs, *self.outputs, *parameters)))


def _parameter(key: int, value: Value) -> str:
    """An array is told by its key, and has its length first."""
    if isinstance(value, tuple):
        return f"{-23300 - key}={len(value)}," + ",".join(map(_number, value))
    return f"{key}={_number(value)}"


def _number(value: float) -> str:
    """A float is told from an int by its exponent."""
    return f"{value:.8e}" if isinstance(value, float) else str(value)


class _Writer:
    """Layers and weights of a network."""

    def __init__(self, lowered: Lowered) -> None:
        self.lowered, self.graph = lowered, lowered.graph
        self.card, self.tensors = lowered.card, lowered.tensors
        self.layers: list[_Layer] = []
        self.weights: list[bytes] = []
        self.flat: set[str] = set()  # of one value a channel: ncnn drops the other two dimensions
        self.turned: set[str] = set()  # stored as 127 - code
        self.blobs: dict[str, str] = {}  # value -> the blob that holds it
        self.given = {o.op for o in self.graph.outputs}

    def add(
        self,
        kind: str,
        name: str,
        inputs: tuple[str, ...],
        parameters: Mapping[int, Value] | None = None,
        output: str = "",
    ) -> str:
        """A layer whose output is the blob `output`, or that of its name; gives that."""
        self.layers.append(_Layer(kind, name, inputs, (output or name,), parameters or {}))
        return output or name

    def floats(self, *values: Any) -> None:
        self.weights += [np.asarray(v, "<f4").tobytes() for v in values]

    def image(self, op: Op, image: str) -> None:
        """The pixels, 0..255, normalized."""
        p = self.card.preprocess
        mean, std = np.array(p.mean), np.array(p.std)
        height, width, planes = self.graph.source_shape
        self.add("Input", image, (), {0: width, 1: height, 2: planes})
        self.floats(1 / std, -mean / std)
        self.add("Scale", op.name, (image,), {0: 3, 1: 1})

    # ---- layers with weights

    def in_int8(self, op: Op) -> bool:
        return self.card.precision == "int8" and op.is_layer and op.name not in self.card.float_ops

    def layer(self, op: Op, x: str, end: Op) -> None:
        """`op` with its activation, or with that of `end`; on flat input a fully connected layer."""
        flat, groups = x in self.flat, op.groups
        size = math.prod(op.weight_shape)
        parameters: dict[int, Value] = {0: op.cout, 1: 1, 2: size}
        if not flat:
            (above, left, below, right), (rows, columns) = op.pads or (0, 0, 0, 0), op.kernels
            parameters = {0: op.cout, 1: columns, 3: op.stride, 4: left, 14: above, 15: right, 16: below}
            parameters |= {5: 1, 6: size} | ({7: groups} if groups > 1 else {})
            parameters |= {11: rows} if rows != columns else {}
        match end.activation:
            case "relu":
                parameters |= {9: 1}
            case "relu6":
                parameters |= {9: 3, 10: (0.0, 6.0)}
            case "hard_swish":
                parameters |= {9: 6, 10: (1 / 6, 0.5)}
        if self.in_int8(op):
            if flat and self.zero(x) == 0:
                self.turned.add(x)
                x = self.add("BinaryOp", f"{op.name}.turned", (x,), {0: RSUB, 1: 1, 2: 127 * self.step(x)})
            parameters |= self.int8_weights(op, end, flat)
        else:
            self.float_weights(op)
        kind = "InnerProduct" if flat else "ConvolutionDepthWise" if groups > 1 else "Convolution"
        self.add(kind, op.name, (x,), parameters, end.name)
        if flat:
            self.flat.add(end.name)

    def tagged(self, weight: Array, precision: Precision) -> None:
        data = (half(weight) if precision == "float16" else weight).astype(TYPES[precision]).tobytes()
        self.weights.append(struct.pack("<I", TAGS[precision]) + data + bytes(-len(data) % 4))

    def float_weights(self, op: Op) -> None:
        weight, bias = self.lowered.folded[op.name]
        self.tagged(weight, "float16" if self.card.precision == "float16" else "float32")
        self.floats(bias)

    def int8_weights(self, op: Op, end: Op, flat: bool) -> dict[int, Value]:
        """Writes codes, biases and scales of `op`; gives the parameters that say how they are read."""
        codes, scale = self.tensors[f"{op.name}.weight"], self.tensors[f"{op.name}.weight_scale"].astype(np.float64)
        source, sign = op.inputs[0], 1
        parameters: dict[int, Value] = {}
        bias = self.tensors[f"{op.name}.bias"].astype(np.float64)
        if source in self.turned:  # w x = w (127 - turned)
            sign = -1
            bias += 127 * codes.sum((1, 2, 3), dtype=np.int64)
            parameters |= {} if flat else {PAD: 127.0}
        bias *= self.step(source) * scale
        # Between two integer convolutions the values stay integers.
        readers = self.graph.readers[end.name]
        between = not flat and end.name not in self.given and all(self.in_int8(reader) for reader in readers)
        if between and self.zero(end.name) == 0 and end is op:
            self.turned.add(end.name)
            sign = -sign
            bias = 127 * self.step(end.name) - bias
            parameters[ACTIVATION] = 0  # rounding to -127..127 cuts off at zero, and at the top, by itself
        self.tagged(sign * codes, "int8")
        self.floats(bias, 1 / scale, self.scale(source), *([self.scale(end.name)] if between else []))
        return parameters | {INT8: 101 if between else 1}

    def step(self, activation: str) -> float:
        return float(self.tensors[f"{activation}.scale"])

    def zero(self, activation: str) -> int:
        return int(self.tensors[f"{activation}.zero_point"])

    def scale(self, activation: str) -> float:
        """What a value is multiplied by before it is rounded to -127..127."""
        reach = max(self.zero(activation), 255 - self.zero(activation))
        # The image's pixels, of 128 codes below zero, stay what they are, all but the darkest.
        return (1 if activation in self.turned or reach <= 128 else 127 / reach) / self.step(activation)

    # ---- the others

    def attend(self, op: Op, query: str, key: str, value: str) -> None:
        """Multi-query attention: the heads see one key and value, so that all queries are rows of one matrix."""
        name, dim, (_, rows, columns) = op.name, op.cin, self.graph.shapes[op.name]
        positions, seen = rows * columns, math.prod(self.graph.shapes[op.inputs[1]][1:])
        q = self.add("Reshape", f"{name}.queries", (query,), {0: positions, 1: dim, 2: op.heads})
        q = self.add("Permute", f"{name}.turned", (q,), {0: 1})
        q = self.add("Reshape", f"{name}.rows", (q,), {0: dim, 1: positions * op.heads})
        k = self.add("Reshape", f"{name}.keys", (key,), {0: seen, 1: dim})
        v = self.add("Reshape", f"{name}.values", (value,), {0: seen, 1: dim})
        y = self.add("MatMul", f"{name}.scores", (q, k))
        y = self.add("BinaryOp", f"{name}.scaled", (y,), {0: MUL, 1: 1, 2: dim**-0.5})
        y = self.add("Softmax", f"{name}.softmax", (y,), {0: 1, 1: 1})
        y = self.add("MatMul", f"{name}.mix", (y, v), {0: 1})
        y = self.add("Reshape", f"{name}.heads", (y,), {0: dim, 1: positions, 2: op.heads})
        y = self.add("Permute", f"{name}.mix.turned", (y,), {0: 1})
        self.add("Reshape", name, (y,), {0: columns, 1: rows, 2: op.cout})

    def activation(self, op: Op, x: str) -> None:
        if op.activation in ACTIVATIONS:
            kind, parameters = ACTIVATIONS[op.activation]
        else:
            kind, parameters = ("ReLU", {}) if op.activation == "relu" else ("Clip", {0: 0.0, 1: 6.0})
        self.add(kind, op.name, (x,), parameters)

    def pool(self, op: Op, x: str) -> None:
        self.add("Pooling", op.name, (x,), {0: 1, 4: 1})

    def binary(self, op: Op, x: str, y: str) -> None:
        """A sum or product; of a map and a value for each channel too."""
        if y in self.flat and x not in self.flat:
            y = self.add("Reshape", f"{op.name}.gate", (y,), {0: 1, 1: 1, 2: op.cout})
        self.add("BinaryOp", op.name, (x, y), {0: BINARY[op.kind]})

    def concat(self, op: Op, *inputs: str) -> None:
        self.add("Concat", op.name, inputs, {0: 0})

    def flatten(self, op: Op, x: str) -> None:
        if x in self.flat:
            self.blobs[op.name] = x
        else:
            self.add("Flatten", op.name, (x,))

    def softmax(self, op: Op, x: str) -> None:
        rows = len(self.graph.shapes[op.name]) == 2
        self.add("Softmax", op.name, (x,), {0: int(rows), 1: 1})

    def sigmoid(self, op: Op, x: str) -> None:
        self.add("Sigmoid", op.name, (x,))

    def l2norm(self, op: Op, x: str) -> None:
        length = self.add("Reduction", f"{op.name}.length", (x,), {0: L2, 1: 0, 3: (0,), 4: 1, 5: 1})
        length = self.add("BinaryOp", f"{op.name}.divisor", (length,), {0: MAX, 1: 1, 2: TINY})
        self.add("BinaryOp", op.name, (x, length), {0: DIV})

    def is_flat(self, op: Op, inputs: tuple[str, ...]) -> bool:
        """Whether an operation's output has one value a channel, for which ncnn keeps one dimension."""
        return op.kind in ("pool", "flatten") or (op.kind != "attend" and all(x in self.flat for x in inputs))

    def write(self) -> None:
        inside = set()  # activations that layers end in
        self.blobs[self.graph.source] = self.graph.source
        for op in self.graph.ops:
            if op.name in inside:
                continue
            if op.kind not in EMIT:
                raise unsupported("ncnn", op)
            inputs = tuple(self.blobs[name] for name in op.inputs)
            end = op
            if op.is_layer:
                readers = self.graph.readers[op.name]
                alone = len(readers) == 1 and op.name not in self.given and op.activation is None
                end = readers[0] if alone and readers[0].activation == "hard_swish" else op
                inside.add(end.name)
                self.layer(op, inputs[0], end)
            else:
                EMIT[op.kind](self, op, *inputs)
                if self.is_flat(op, inputs):
                    self.flat.add(op.name)
            for name in (op.name, end.name):
                self.blobs.setdefault(name, end.name)
        for o in self.graph.outputs:
            if self.graph.by_name[o.op].kind == "detected":  # made of the blob of all detections
                continue
            if self.blobs[o.op] != o.name:  # a dropout of nothing gives it the name that it is asked for by
                self.add("Dropout", f"{o.name}.named", (self.blobs[o.op],), {0: 1.0}, o.name)


EMIT: dict[str, Callable[..., None]] = {
    "pixels": _Writer.image,
    "normalize": _Writer.image,
    **dict.fromkeys(("conv", "depthwise", "pointwise", "linear", "global", "norm"), _Writer.layer),
    "activation": _Writer.activation,
    "pool": _Writer.pool,
    "add": _Writer.binary,
    "mul": _Writer.binary,
    "attend": _Writer.attend,
    "concat": _Writer.concat,
    "flatten": _Writer.flatten,
    "softmax": _Writer.softmax,
    "sigmoid": _Writer.sigmoid,
    "l2norm": _Writer.l2norm,
    "stack": _Writer.concat,
    **ncnn_detect.EMIT,
}


def _split(layers: list[_Layer]) -> list[_Layer]:
    """In ncnn a blob has one reader: where there are more, a layer that gives each its own."""
    counts = Counter(x for layer in layers for x in layer.inputs)
    copies = {name: iter([f"{name}.{i}" for i in range(n)]) for name, n in counts.items() if n > 1}
    out = []
    for layer in layers:
        inputs = tuple(next(copies[x]) if x in copies else x for x in layer.inputs)
        out.append(dataclasses.replace(layer, inputs=inputs))
        (name,) = layer.outputs
        if (n := counts[name]) > 1:
            names = tuple(f"{name}.{i}" for i in range(n))
            out.append(_Layer("Split", f"{name}.split", (name,), names, {}))
    return out


def ncnn_model(bundle: Bundle) -> tuple[str, bytes]:
    """The text of model.param and the bytes of model.bin, in the card's precision. Its int8 rounds inside layers."""
    writer = _Writer(lower(bundle, rounding=False))
    writer.write()
    layers = _split(writer.layers)
    blobs = sum(len(layer.outputs) for layer in layers)
    lines = (MAGIC, f"{len(layers)} {blobs}", *(layer.line() for layer in layers))
    return "\n".join(lines) + "\n", b"".join(writer.weights)


def stored_precision(text: str, data: bytes, but: Collection[str] = ()) -> Precision:
    """What every layer with weights, those named in `but` aside, has its weights as; float32 if they differ."""
    found, at = set(), 0
    for line in text.splitlines()[2:]:
        kind, name, inputs, outputs, *rest = line.split()
        given = dict(pair.split("=") for pair in rest[int(inputs) + int(outputs) :])
        if kind == "Scale":
            at += 4 * 2 * int(given["0"])
        if kind == "MemoryData":
            at += 4 * int(given["0"]) * int(given["1"])
        if kind not in WEIGHTS:
            continue
        (tag,) = struct.unpack_from("<I", data, at)
        precision = next(p for p, t in TAGS.items() if t == tag)
        if name not in but:
            found.add(precision)
        weights, channels = int(given[WEIGHTS[kind]]), int(given["0"])
        term = int(given.get(str(INT8), 0))
        at += 4 + -(-weights * np.dtype(TYPES[precision]).itemsize // 4) * 4 + 4 * channels
        at += 4 * ((channels + 1) * (term > 0) + (term > 100))
    return found.pop() if len(found) == 1 else "float32"
