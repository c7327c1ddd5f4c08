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
import onnx
from onnx import TensorProto, helper, numpy_helper

from mobilenets.bundle import Card, Precision, Tensors
from mobilenets.engines.onnxruntime import CARD_KEY
from mobilenets.quantize import fold
from mobilenets.rows import Op
from mobilenets.spec import same_padding

OPSET, IR = 17, 8  # 2022's: every runtime in use reads them, and they have all that int8 needs
Array = npt.NDArray[Any]


class _Writer:
    """Nodes and constants of a float network; `_Int8Writer` puts quantization between its layers."""

    def __init__(self, card: Card, tensors: Tensors) -> None:
        self.card, self.tensors = card, tensors
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def const(self, name: str, value: Array) -> str:
        self.constants[name] = value
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def parameters(self, op: Op) -> list[str]:
        w, b = self.folded[op.name]
        return [self.const(f"{op.name}.weight", w), self.const(f"{op.name}.bias", b)]

    def after(self, x: str, _name: str) -> str:
        """What becomes of a layer's output."""
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
        x = self.node("Cast", [x], "image.cast", to=TensorProto.FLOAT)
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
        scores = self.node("Mul", [scores, self.number(f"{name}.scale", dim**-0.5)], f"{name}.scaled")
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
        values = {"input": self.after(self.image(), "input")}
        x = ""
        for op in self.card.arch.ops:
            x = values[op.name] = self.after(self.operation(op, [values[name] for name in op.inputs]), op.name)
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
        scale = self.const(f"{name}.weight_scale", self.tensors[f"{name}.weight_scale"])
        b = self.const(f"{name}.bias", self.tensors[f"{name}.bias"])
        product = self.tensors[f"{name}.weight_scale"] * self.tensors[f"{source}.scale"]
        bias_scale = self.const(f"{name}.bias_scale", product.astype(np.float32))
        return [
            self.node("DequantizeLinear", [w, scale], f"{name}.weight.float", axis=0),
            self.node("DequantizeLinear", [b, bias_scale], f"{name}.bias.float", axis=0),
        ]

    def after(self, x: str, name: str) -> str:
        if name == "input" and x == "image.float" and self.nodes[-1].op_type == "DequantizeLinear":
            return x  # the image's own pixels are the quantized input already
        scale = self.const(f"{name}.scale", self.tensors[f"{name}.scale"])
        zero = self.const(f"{name}.zero_point", self.tensors[f"{name}.zero_point"])
        q = self.node("QuantizeLinear", [x, scale, zero], f"{name}.q")
        return self.node("DequantizeLinear", [q, scale, zero], f"{name}.dq")


def onnx_model(card: Card, tensors: Tensors, batch: int | None = None) -> onnx.ModelProto:
    """The whole network: input `image` uint8 [N, H, W, 3], output `probabilities` float32 [N, classes].

    `batch`: the N of every call; any, if None.
    Preprocessing and softmax are inside; the card is metadata under the key "mobilenets.card".
    """
    writer = (_Int8Writer if card.precision == "int8" else _Writer)(card, tensors)
    writer.write()
    r = card.arch.resolution
    graph = helper.make_graph(
        writer.nodes,
        card.arch.title,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [batch or "N", r, r, 3])],
        [
            helper.make_tensor_value_info(
                "probabilities", TensorProto.FLOAT, [batch or "N", card.arch.classes or card.arch.width]
            )
        ],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in writer.constants.items()],
    )
    model = helper.make_model(
        graph, producer_name="mobilenets", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR
    )
    helper.set_model_props(model, {CARD_KEY: json.dumps(card.to_json())})
    return model


def stored_precision(path: Path) -> Precision:
    """What the convolutions of a file read their weights from: int8 only if every one of them reads int8."""
    graph = onnx.load(path).graph
    made = {o: n for n in graph.node for o in n.output}
    types = {c.name: c.data_type for c in graph.initializer}
    found = set()
    for node in graph.node:
        if node.op_type == "Conv":
            source = node.input[1]
            while source in made:
                source = made[source].input[0]
            found.add(types[source])
    return "int8" if found == {TensorProto.INT8} else "float32"
