"""Arch and weights -> an ONNX graph, row by row. No torch.

Written here rather than traced, because the rows are at hand: milliseconds instead of a tracing exporter's seconds (the
whole grid of `choose` is written in the time of one trace), and the input stays the image's own uint8 pixels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets.arch.graph import Op
from mobilenets.arch.spec import same_padding
from mobilenets.deploy.writers import proto
from mobilenets.model.card import CARD_KEY, Card, Precision
from mobilenets.model.encodings import BLOCK, Tensors, fits_int4, fold, half, int4_weights, int8_weights

OPSET, IR = 17, 8  # 2022's: every runtime in use reads them, and they have all that int8 needs
INT4_OPSET, INT4_IR = 21, 10  # 2024's, the first with 4 bits, and scales for blocks of weights
Array = npt.NDArray[Any]


class _Writer:
    """Nodes and constants of a float network; `_Int8Writer` puts quantization between its layers."""

    def __init__(self, card: Card, tensors: Tensors) -> None:
        self.card, self.tensors = card, tensors
        self.nodes: list[bytes] = []
        self.constants: dict[str, Array] = {}
        self.int4: set[str] = set()  # the constants that are packed two to a byte

    def const(self, name: str, value: Array) -> str:
        self.constants[name] = value
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(proto.node(kind, inputs, [output], output, **attributes))
        return output

    def parameters(self, op: Op) -> list[str]:
        w, b = self.folded[op.name]
        return [self.const(f"{op.name}.weight", w), self.const(f"{op.name}.bias", b)]

    def made(self, x: str, _name: str) -> str:
        """What becomes of the activation `name` when it is made."""
        return x

    def read(self, x: str, _name: str, _by: Op) -> str:
        """The activation `name` as the operation `by` reads it."""
        return x

    def image(self) -> str:
        """uint8 [N, H, W, 3] -> normalized float [N, 3, H, W]."""
        p = self.card.preprocess
        mean, std = np.array(p.mean, np.float32), np.array(p.std, np.float32)
        x = self.node("Transpose", ["image"], "image.nchw", perm=[0, 3, 1, 2])
        if len(set(p.mean)) == len(set(p.std)) == 1 and float(mean[0]).is_integer() and 0 <= mean[0] <= 255:
            scale = self.const("image.scale", np.asarray(1 / std[0]))
            zero = self.const("image.zero_point", np.asarray(mean[0], np.uint8))
            return self.node("DequantizeLinear", [x, scale, zero], "image.float")
        x = self.node("Cast", [x], "image.cast", to=proto.TYPES["float32"])
        x = self.node("Sub", [x, self.const("image.mean", mean[None, :, None, None])], "image.centred")
        return self.node("Mul", [x, self.const("image.std", (1 / std)[None, :, None, None])], "image.float")

    def layer(self, op: Op, x: str) -> str:
        pads = [op.kernel // 2] * 4
        if self.card.arch.padding == "same":
            before, after = same_padding(self.card.arch.sides[op.inputs[0]], op.kernel, op.stride)
            pads = [before, before, after, after]
        y = self.node(
            "Conv", [x, *self.parameters(op)], f"{op.name}.conv",
            kernel_shape=[op.kernel] * 2, strides=[op.stride] * 2, pads=pads, group=op.groups,
        )  # fmt: skip
        return self.activation(op, y) if op.activation else y

    def activation(self, op: Op, x: str) -> str:
        out = f"{op.name}.act"
        match op.activation:
            case "relu":
                return self.node("Relu", [x], out)
            case "relu6":
                return self.node("Clip", [x, self.number("zero", 0), self.number("six", 6)], out)
            case "hard_swish":
                return self.node("HardSwish", [x], out)
            case "hard_sigmoid":
                return self.node("HardSigmoid", [x], out, alpha=1 / 6, beta=0.5)
            case _:  # gelu, which this opset spells out: x/2 (1 + erf(x / sqrt 2))
                y = self.node("Mul", [x, self.number("root_half", 0.5**0.5)], f"{op.name}.scaled")
                y = self.node("Erf", [y], f"{op.name}.erf")
                y = self.node("Add", [y, self.number("one", 1)], f"{op.name}.erf1")
                y = self.node("Mul", [x, y], f"{op.name}.product")
                return self.node("Mul", [y, self.number("half", 0.5)], out)

    def attend(self, op: Op, query: str, key: str, value: str) -> str:
        """Multi-query attention: the heads see one key and value, so that all queries are rows of one matrix."""
        name, dim, side = op.name, op.cin, self.card.arch.sides[op.name]
        fold = self.const(f"{name}.fold", np.array([0, op.heads, dim, -1], np.int64))
        flat = self.const(f"{name}.flat", np.array([0, 1, dim, -1], np.int64))
        unfold = self.const(f"{name}.unfold", np.array([0, op.cout, side, side], np.int64))
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

    def number(self, name: str, value: float) -> str:
        return self.const(name, np.array(value, np.float32))

    def operation(self, op: Op, inputs: list[str]) -> str:
        if op.is_layer:
            return self.layer(op, *inputs)
        match op.kind:
            case "activation":
                return self.activation(op, *inputs)
            case "attend":
                return self.attend(op, *inputs)
            case kind:
                names = {"pool": "GlobalAveragePool", "add": "Add", "mul": "Mul"}
                return self.node(names[kind], inputs, f"{op.name}.out")

    def write(self) -> None:
        values = {"input": self.made(self.image(), "input")}
        x = ""
        for op in self.card.arch.ops:
            inputs = [self.read(values[name], name, op) for name in op.inputs]
            x = values[op.name] = self.made(self.operation(op, inputs), op.name)
        x = self.node("Flatten", [x], "logits")
        self.node("Softmax", [x], "probabilities", axis=1)

    @property
    def folded(self) -> dict[str, tuple[Array, Array]]:
        if not hasattr(self, "_folded"):
            self._folded = fold(self.card.arch, self.tensors)
        return self._folded


class _Int8Writer(_Writer):
    """Quantize/dequantize pairs round every tensor as an int8 bundle says; runtimes fuse them into integer layers."""

    def parameters(self, op: Op) -> list[str]:
        name, source = op.name, op.inputs[0]
        w = self.const(f"{name}.weight", self.tensors[f"{name}.weight"])
        b = self.const(f"{name}.bias", self.tensors[f"{name}.bias"])
        if name in self.card.float_ops:
            return [w, b]
        scale = self.const(f"{name}.weight_scale", self.tensors[f"{name}.weight_scale"])
        product = self.tensors[f"{name}.weight_scale"] * self.tensors[f"{source}.scale"]
        bias_scale = self.const(f"{name}.bias_scale", product.astype(np.float32))
        return [
            self.node("DequantizeLinear", [w, scale], f"{name}.weight.float", axis=0),
            self.node("DequantizeLinear", [b, bias_scale], f"{name}.bias.float", axis=0),
        ]

    def made(self, x: str, name: str) -> str:
        if name == "input" and "image.zero_point" in self.constants:
            return x  # the image's own pixels are the quantized input already
        return x if name in self.card.float_ops else self.rounded(x, name)

    def read(self, x: str, name: str, by: Op) -> str:
        made_float, read_float = (n in self.card.float_ops for n in (name, by.name))
        if made_float and not read_float:
            return self.rounded(x, name)
        return self.spread(name, by) if read_float and not made_float and by.is_layer else x

    def spread(self, name: str, by: Op) -> str:
        """An int8 activation as a layer in float reads it: dequantized by its scale once for every channel.

        Given one scale, ONNX Runtime takes the layer for one whose weights were forgotten, and rounds them to int8.
        """
        q = "image.nchw" if name == "input" and "image.zero_point" in self.constants else f"{name}.q"
        scale, zero = (
            self.const(f"{by.name}.input_{k}", np.full(by.cin, self.tensors[f"{name}.{k}"]))
            for k in ("scale", "zero_point")
        )
        return self.node("DequantizeLinear", [q, scale, zero], f"{by.name}.input", axis=1)

    def rounded(self, x: str, name: str) -> str:
        if f"{name}.scale" in self.constants:  # another operation reads it too
            return f"{name}.dq"
        scale = self.const(f"{name}.scale", self.tensors[f"{name}.scale"])
        zero = self.const(f"{name}.zero_point", self.tensors[f"{name}.zero_point"])
        q = self.node("QuantizeLinear", [x, scale, zero], f"{name}.q")
        return self.node("DequantizeLinear", [q, scale, zero], f"{name}.dq")


class _HalfWriter(_Writer):
    """Weights in 16-bit floats, for half the bytes; a runtime widens them once, as it loads the file.

    Activations stay in 32 bits: a processor has no 16-bit convolutions, and converting back and forth takes longer
    (V1 .25-224: 1.3 times as long, weights alone: as long as in float32).
    """

    def parameters(self, op: Op) -> list[str]:
        w, b = self.folded[op.name]
        stored = self.const(f"{op.name}.weight", half(w))
        wide = self.node("Cast", [stored], f"{op.name}.weight.float", to=proto.TYPES["float32"])
        return [wide, self.const(f"{op.name}.bias", b)]


class _Int4Writer(_Writer):
    """Weights of 1x1 layers in 4 bits, a scale for each block of inputs; the others' int8, a scale for each channel.

    ONNX Runtime widens them in every call (V1 .25-224: 2.6 times as long as float32), unless its session is opened with
    session.disable_quant_qdq = 1, as our engine's is (as long as float32).
    """

    def parameters(self, op: Op) -> list[str]:
        name, (w, b) = op.name, self.folded[op.name]
        if fits_int4(w):
            codes, scale = int4_weights(w)
            self.int4.add(f"{name}.weight")
            how = {"axis": 1, "block_size": BLOCK}
            scale = scale[:, :, None, None]
        else:
            codes, scale = int8_weights(w)
            how = {"axis": 0}
        inputs = [self.const(f"{name}.weight", codes), self.const(f"{name}.weight_scale", scale)]
        return [self.node("DequantizeLinear", inputs, f"{name}.weight.float", **how), self.const(f"{name}.bias", b)]


WRITERS: dict[Precision, type[_Writer]] = {
    "float32": _Writer, "float16": _HalfWriter, "int8": _Int8Writer, "int4": _Int4Writer
}  # fmt: skip


def onnx_model(card: Card, tensors: Tensors, batch: int | None = None) -> bytes:
    """The whole network as a file: input `image` uint8 [N, H, W, 3], output `probabilities` float32 [N, classes].

    `batch`: the N of every call; any, if None.
    Preprocessing and softmax are inside; the card is metadata under the key "mobilenets.card".
    """
    writer = WRITERS[card.precision](card, tensors)
    writer.write()
    n, r = batch or "N", card.arch.resolution
    return proto.model(
        card.arch.title,
        writer.nodes,
        [proto.tensor(k, np.asarray(v), "int4" if k in writer.int4 else "") for k, v in writer.constants.items()],
        [proto.value("image", "uint8", [n, r, r, 3])],
        [proto.value("probabilities", "float32", [n, card.arch.classes or card.arch.width])],
        *((INT4_OPSET, INT4_IR) if card.precision == "int4" else (OPSET, IR)),
        {CARD_KEY: json.dumps(card.to_json())},
    )


def stored_precision(path: Path) -> Precision:
    """What the convolutions of a file read their weights from, and for int8, that activations are quantized too.

    It is int8 only if every convolution is, but for those that the card inside names as kept in float.
    """
    graph = proto.read(path)
    card = json.loads(graph.metadata.get(CARD_KEY, "{}"))
    spared = {f"{name}.conv" for name in card.get("float_ops", ())}
    convs = [n for n in graph.nodes if n.kind == "Conv" and len(n.inputs) > 1]
    found = {graph.origin(n.inputs[1]) for n in convs if not spared & {*n.outputs}}
    if found == {"int8"}:
        return "int8" if any(n.kind == "QuantizeLinear" for n in graph.nodes) else "dynamic"
    return "float16" if found == {"float16"} else "int4" if found in ({"int4"}, {"int4", "int8"}) else "float32"
