"""A lowered network -> an ONNX graph, operation by operation. No torch.

Written here rather than traced, because the operations are at hand: milliseconds instead of a tracing exporter's
seconds (the whole grid of `choose` is written in the time of one trace), and the input stays the image's own pixels.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets.arch.operations import Op
from mobilenets.deploy.lowering import Lowered, Weights, lower, unsupported
from mobilenets.deploy.writers import onnx_detect, onnx_two_stage, proto
from mobilenets.files import parse_json
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import CARD_KEY, Precision
from mobilenets.model.encodings import BLOCK

NAME = "ONNX"

OPSET, IR = 17, 8  # 2022's: every runtime in use reads them, and they have all that int8 needs
INT4_OPSET, INT4_IR = 21, 10  # 2024's, the first with 4 bits, and scales for blocks of weights
# By these names OpenVINO's engine finds in its graph, which is this one's, the normalized image and layers: a layer's
# convolution is called as the operation with this at the end.
NORMALIZED, CONV = "image.float", ".conv"
Array = npt.NDArray[Any]


class _Writer:
    """Nodes and constants of a lowered network. Values are known by the names of the nodes' outputs."""

    def __init__(self, lowered: Lowered) -> None:
        self.lowered, self.graph = lowered, lowered.graph
        self.nodes: list[bytes] = []
        self.constants: dict[str, Array] = {}
        self.int4: set[str] = set()  # the constants that are packed two to a byte
        self.quantized: dict[str, str] = {}  # float value -> the whole numbers that it stands for
        self.parts: dict[str, Mapping[str, str]] = {}  # of detections: the values that they are made of
        # What is behind a crop, and runs for each box.
        self.of_boxes = {op.name for op in self.graph.after([op.name for op in self.graph.ops if op.kind == "crop"])}

    def const(self, name: str, value: Array) -> str:
        self.constants[name] = value
        return name

    def number(self, name: str, value: float) -> str:
        return self.const(name, np.array(value, np.float32))

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(proto.node(kind, inputs, [output], output, **attributes))
        return output

    # ---- the image

    def pixels(self, op: Op, image: str) -> str:
        """uint8 [N, H, W, 3] -> the float numbers [N, 3, H, W] that its bytes stand for.

        To float and back comes first: OpenCV takes only what it has quantized itself for whole numbers, and would
        forget the zero point of an image's own. ONNX Runtime leaves the two out, OpenVINO never sees them.
        """
        if op.name not in self.graph.integers:
            return self.normalize(op, image)
        p = self.lowered.card.preprocess
        x = self.node("Transpose", [image], "image.nchw", perm=[0, 3, 1, 2])
        unit = self.number("image.unit", 1)
        x = self.node("DequantizeLinear", [x, unit], "image.cast")
        x = self.node("QuantizeLinear", [x, unit, self.const("image.nought", np.asarray(0, np.uint8))], "image.q")
        scale = self.const("image.scale", np.asarray(1 / np.float32(p.std[0])))
        zero = self.const("image.zero_point", np.asarray(p.mean[0], np.uint8))
        out = self.node("DequantizeLinear", [x, scale, zero], NORMALIZED)
        self.quantized[out] = x
        return out

    def normalize(self, _op: Op, image: str) -> str:
        """uint8 [N, H, W, 3] -> normalized float [N, 3, H, W]."""
        p = self.lowered.card.preprocess
        mean, std = np.array(p.mean, np.float32), np.array(p.std, np.float32)
        x = self.node("Transpose", [image], "image.nchw", perm=[0, 3, 1, 2])
        x = self.node("Cast", [x], "image.cast", to=proto.TYPES["float32"])
        x = self.node("Sub", [x, self.const("image.mean", mean[None, :, None, None])], "image.centred")
        return self.node("Mul", [x, self.const("image.std", (1 / std)[None, :, None, None])], NORMALIZED)

    # ---- int8: quantize/dequantize pairs, which runtimes fuse into integer layers

    def rounded(self, x: str, value: str) -> str:
        """`x` at the 256 values of an activation."""
        name = self.graph.activation_of(value)
        scale, zero = self.lowered.scale(value)
        affine = [self.const(f"{name}.scale", scale), self.const(f"{name}.zero_point", zero)]
        q = self.node("QuantizeLinear", [x, *affine], f"{name}.q")
        out = self.node("DequantizeLinear", [q, *affine], f"{name}.dq")
        self.quantized[out] = q
        return out

    def dequantize(self, op: Op, x: str) -> str:
        """Whole numbers as layers in float read them: by their scale once for every channel.

        Given one scale, ONNX Runtime takes such a layer for one whose weights were forgotten, and rounds them to int8.
        """
        if not any(reader.is_layer for reader in self.graph.readers[op.name]):
            return x
        scale, zero = (np.full(op.cin, v) for v in self.lowered.scale(op.inputs[0]))
        affine = [self.const(f"{op.name}.scale", scale), self.const(f"{op.name}.zero_point", zero)]
        return self.node("DequantizeLinear", [self.quantized[x], *affine], op.name, axis=1)

    # ---- layers

    def parameters(self, op: Op, w: Weights, axis: int | None = None) -> list[str]:
        """The weights and the bias that a layer reads, in float, of what is stored.

        `axis`: the one that channels lie along, of what is no convolution. ONNX Runtime gives the codes of such a layer
        one zero point in all, which it then refuses for having too few.
        """
        name = f"{op.name}.weight"
        stored = self.const(name, w.values)
        if w.scale is not None:
            how: dict[str, int] = {"axis": axis or 0}
            scale = w.scale
            if w.bits == 4:
                self.int4.add(name)
                how, scale = {"axis": 1, "block_size": BLOCK}, scale.reshape(*scale.shape, *[1] * (w.values.ndim - 2))
            inputs = [stored, self.const(f"{op.name}.weight_scale", scale)]
            if axis is not None and w.bits == 8:
                inputs.append(self.const(f"{op.name}.weight_zero", np.zeros(len(scale), np.int8)))
            stored = self.node("DequantizeLinear", inputs, f"{name}.float", **how)
        elif w.values.dtype == np.float16:
            # Activations stay in 32 bits: a processor has no 16-bit convolutions, and converting back and forth takes
            # longer (V1 .25-224: 1.3 times as long, weights alone: as long as in float32).
            stored = self.node("Cast", [stored], f"{name}.float", to=proto.TYPES["float32"])
        bias = self.const(f"{op.name}.bias", w.bias)
        if w.bias_scale is not None:
            inputs = [bias, self.const(f"{op.name}.bias_scale", w.bias_scale)]
            bias = self.node("DequantizeLinear", inputs, f"{op.name}.bias.float", axis=0)
        return [stored, bias]

    def layer(self, op: Op, x: str) -> str:
        assert op.pads is not None
        w, kernels, pads = self.lowered.weights(op), op.kernels, op.pads
        if any(pads) and self.graph.shapes[op.inputs[0]][1:] == (1, 1):
            # All other weights meet zeros, where OpenCV 4 reads what lies behind the map's one pixel.
            above, left = pads[:2]
            w = dataclasses.replace(w, values=w.values[..., above : above + 1, left : left + 1])
            kernels, pads = (1, 1), (0, 0, 0, 0)
        if self.steep(op):
            w = _sixth(w)
        y = self.node(
            "Conv", [x, *self.parameters(op, w)], f"{op.name}{CONV}",
            kernel_shape=[*kernels], strides=[op.stride] * 2, pads=[*pads], group=op.groups,
        )  # fmt: skip
        return self.activation(op, y) if op.activation else y

    def linear(self, op: Op, x: str) -> str:
        return onnx_two_stage.linear(self, op, x) if op.name in self.of_boxes else self.layer(op, x)

    def steep(self, op: Op) -> bool:
        """Whether a layer gives x/6 + 1/2, for the hard sigmoid that alone reads it."""
        if not op.is_layer or op.activation or self.lowered.in_integers(op) or self.lowered.precision == "float16":
            return False  # a sixth of weights in 16 bits would be rounded again
        readers = [reader.activation for reader in self.graph.readers[op.name]]
        return readers == ["hard_sigmoid"] and op.name not in {o.op for o in self.graph.outputs}

    def activation(self, op: Op, x: str) -> str:
        """What follows a layer, or stands alone.

        OpenCV takes HardSigmoid and the multiplication that follows for a hard swish of one input; a Clip it reads as
        it is, and ONNX Runtime makes it a part of the layer.
        """
        out = f"{op.name}.act"
        match op.activation:
            case "relu":
                return self.node("Relu", [x], out)
            case "relu6":
                return self.node("Clip", [x, self.number("zero", 0), self.number("six", 6)], out)
            case "hard_swish":
                return self.node("HardSwish", [x], out)
            case "hard_sigmoid" if self.lowered.in_integers(op):
                return self.node("HardSigmoid", [x], out, alpha=1 / 6, beta=0.5)
            case "hard_sigmoid":
                source = self.graph.by_name.get(op.inputs[0])
                if source is None or not self.steep(source):
                    x = self.node("Mul", [x, self.number("sixth", 1 / 6)], f"{op.name}.scaled")
                    x = self.node("Add", [x, self.number("half", 0.5)], f"{op.name}.shifted")
                return self.node("Clip", [x, self.number("zero", 0), self.number("one", 1)], out)
            case _:  # gelu, which this opset spells out: x/2 (1 + erf(x / sqrt 2))
                y = self.node("Mul", [x, self.number("root_half", 0.5**0.5)], f"{op.name}.scaled")
                y = self.node("Erf", [y], f"{op.name}.erf")
                y = self.node("Add", [y, self.number("one", 1)], f"{op.name}.erf1")
                y = self.node("Mul", [x, y], f"{op.name}.product")
                return self.node("Mul", [y, self.number("half", 0.5)], out)

    # ---- what joins layers

    def attend(self, op: Op, query: str, key: str, value: str) -> str:
        """Multi-query attention: the heads see one key and value, so that all queries are rows of one matrix."""
        name, dim = op.name, op.cin
        fold = self.const(f"{name}.fold", np.array([0, op.heads, dim, -1], np.int64))
        flat = self.const(f"{name}.flat", np.array([0, 1, dim, -1], np.int64))
        unfold = self.const(f"{name}.unfold", np.array([0, *self.graph.shapes[name]], np.int64))
        q = self.node(
            "Transpose",
            [self.node("Reshape", [query, fold], f"{name}.queries")],
            f"{name}.queries.t",
            perm=[0, 1, 3, 2],
        )
        k = self.node("Reshape", [key, flat], f"{name}.keys")
        v = self.node(
            "Transpose", [self.node("Reshape", [value, flat], f"{name}.values")], f"{name}.values.t", perm=[0, 1, 3, 2]
        )
        scores = self.node("MatMul", [q, k], f"{name}.scores")
        scores = self.node("Mul", [scores, self.number(f"{name}.root", dim**-0.5)], f"{name}.scaled")
        y = self.node("MatMul", [self.node("Softmax", [scores], f"{name}.softmax", axis=-1), v], f"{name}.mix")
        y = self.node("Transpose", [y], f"{name}.mix.t", perm=[0, 1, 3, 2])
        return self.node("Reshape", [y, unfold], f"{name}.map")

    def pool(self, op: Op, x: str) -> str:
        return self.node("GlobalAveragePool", [x], f"{op.name}.out")

    def windows(self, op: Op, x: str) -> str:
        kind, more = ("MaxPool", {}) if op.kind == "maxpool" else ("AveragePool", {"count_include_pad": 1})
        assert op.pads is not None
        return self.node(
            kind, [x], f"{op.name}.out", kernel_shape=[*op.kernels], strides=[op.stride] * 2, pads=[*op.pads], **more
        )

    def shuffle(self, op: Op, x: str) -> str:
        channels, height, width = self.graph.shapes[op.name]
        apart = self.const(f"{op.name}.apart", np.array([0, op.grouped, channels // op.grouped, -1], np.int64))
        whole = self.const(f"{op.name}.whole", np.array([0, channels, height, width], np.int64))
        y = self.node("Reshape", [x, apart], f"{op.name}.groups")
        y = self.node("Transpose", [y], f"{op.name}.turned", perm=[0, 2, 1, 3])
        return self.node("Reshape", [y, whole], f"{op.name}.out")

    def slice(self, op: Op, x: str) -> str:
        ends = {"first": op.first, "last": op.first + op.cout, "axis": 1}
        inputs = [self.const(f"{op.name}.{k}", np.array([v], np.int64)) for k, v in ends.items()]
        return self.node("Slice", [x, *inputs], f"{op.name}.out")

    def add(self, op: Op, *inputs: str) -> str:
        return self.node("Add", [*inputs], f"{op.name}.out")

    def mul(self, op: Op, *inputs: str) -> str:
        return self.node("Mul", [*inputs], f"{op.name}.out")

    def concat(self, op: Op, *inputs: str) -> str:
        return self.node("Concat", [*inputs], f"{op.name}.out", axis=1)

    def flatten(self, op: Op, x: str) -> str:
        return self.node("Flatten", [x], op.name)

    def softmax(self, op: Op, x: str) -> str:
        return self.node("Softmax", [x], op.name, axis=1 if len(self.graph.shapes[op.name]) == 3 else -1)

    def sigmoid(self, op: Op, x: str) -> str:
        return self.node("Sigmoid", [x], op.name)

    def l2norm(self, op: Op, x: str) -> str:
        return self.node("LpNormalization", [x], op.name, axis=1, p=2)

    def write(self) -> None:
        values = {self.graph.source: self.graph.source}
        for op in self.graph.ops:
            if op.kind not in EMIT:
                raise unsupported(NAME, op)
            x = EMIT[op.kind](self, op, *(values[name] for name in op.inputs))
            if self.lowered.in_integers(op) and x not in self.quantized:
                x = self.rounded(x, op.name)
            values[op.name] = x
        for o in self.graph.outputs:
            if values[o.op] != o.name:
                self.node("Identity", [values[o.op]], o.name)


def _sixth(w: Weights) -> Weights:
    """Weights of x/6 + 1/2, which a hard sigmoid clips to 0 to 1, in the place of those of x."""
    bias = w.bias / np.float32(6) + np.float32(0.5)
    if w.scale is not None:
        return dataclasses.replace(w, scale=w.scale / np.float32(6), bias=bias)
    return dataclasses.replace(w, values=w.values / np.float32(6), bias=bias)


EMIT: dict[str, Callable[..., str]] = {
    "pixels": _Writer.pixels,
    "normalize": _Writer.normalize,
    "quantize": lambda writer, op, x: writer.rounded(x, op.name),
    "dequantize": _Writer.dequantize,
    **dict.fromkeys(("conv", "depthwise", "pointwise", "global", "norm"), _Writer.layer),
    "linear": _Writer.linear,
    "transposed": onnx_two_stage.transposed,
    "activation": _Writer.activation,
    "pool": _Writer.pool,
    **dict.fromkeys(("maxpool", "avgpool"), _Writer.windows),
    "shuffle": _Writer.shuffle,
    "slice": _Writer.slice,
    "add": _Writer.add,
    "mul": _Writer.mul,
    "attend": _Writer.attend,
    "concat": _Writer.concat,
    "flatten": _Writer.flatten,
    "softmax": _Writer.softmax,
    "sigmoid": _Writer.sigmoid,
    "l2norm": _Writer.l2norm,
    "rows": onnx_detect.rows,
    "stack": _Writer.concat,
    "upsample": onnx_detect.upsample,
    "boxes": onnx_detect.boxes,
    "suppress": onnx_detect.suppress,
    "detected": onnx_detect.detected,
    "subsample": onnx_two_stage.subsample,
    "propose": onnx_two_stage.propose,
    "crop": onnx_two_stage.crop,
    "refine": onnx_two_stage.refine,
    "masks": onnx_two_stage.masks,
}


def onnx_model(bundle: Bundle, batch: int | None = None) -> bytes:
    """The whole network as a file: input `image` uint8 [N, H, W, 3], the card's outputs, float32 [N, ...].

    `batch`: the N of every call; any, if None. Preprocessing is inside; the card is metadata under the key
    "mobilenets.card". Raises `UserError` for an operation that ONNX has no node for here.

    4-bit weights are widened in every call by ONNX Runtime (V1 .25-224: 2.6 times as long as float32), unless its
    session is opened with session.disable_quant_qdq = 1, as our engine's is (as long as float32).
    """
    lowered = lower(bundle)
    writer = _Writer(lowered)
    writer.write()
    card, n = lowered.card, batch or "N"
    return proto.model(
        card.arch.title,
        writer.nodes,
        [proto.tensor(k, np.asarray(v), "int4" if k in writer.int4 else "") for k, v in writer.constants.items()],
        [proto.value("image", "uint8", [n, *lowered.graph.source_shape])],
        [proto.value(name, "float32", [n, *shape]) for name, shape in card.outputs.items()],
        *((INT4_OPSET, INT4_IR) if card.precision == "int4" else (OPSET, IR)),
        {CARD_KEY: json.dumps(bundle.card.to_json())},
    )


def stored_precision(path: Path) -> Precision:
    """What the convolutions of a file read their weights from, and for int8, that activations are quantized too.

    It is int8 only if every convolution is, but for those that the card inside names as kept in float.
    """
    graph = proto.read(path)
    card = parse_json(graph.metadata.get(CARD_KEY, "{}"))
    spared = {f"{name}{CONV}" for name in card.get("float_ops", ())}
    convs = [n for n in graph.nodes if n.kind == "Conv" and len(n.inputs) > 1]
    found = {graph.origin(n.inputs[1]) for n in convs if not spared & {*n.outputs}}
    if found == {"int8"}:
        return "int8" if any(n.kind == "QuantizeLinear" for n in graph.nodes) else "dynamic"
    return "float16" if found == {"float16"} else "int4" if found in ({"int4"}, {"int4", "int8"}) else "float32"
