"""Arch and weights -> an ONNX graph, row by row. No torch.

Written here rather than traced, because the rows are at hand: milliseconds instead of a tracing exporter's seconds (the
whole grid of `choose` is written in the time of one trace), and the input stays the image's own uint8 pixels.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from mobilenets.bundle import Card, Tensors
from mobilenets.engines.onnxruntime import CARD_KEY
from mobilenets.quantize import fold
from mobilenets.spec import Op, same_padding

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

    def parameters(self, name: str, _source: str) -> list[str]:
        w, b = self.folded[name]
        return [self.const(f"{name}.weight", w), self.const(f"{name}.bias", b)]

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

    def conv(self, x: str, name: str, op: Op, size: int, source: str) -> str:
        pads = [op.kernel // 2] * 4
        if self.card.arch.padding == "same":
            before, after = same_padding(size, op.kernel, op.stride)
            pads = [before, before, after, after]
        y = self.node(
            "Conv", [x, *self.parameters(name, source)], f"{name}.conv",
            kernel_shape=[op.kernel] * 2, strides=[op.stride] * 2, pads=pads, group=op.groups,
        )  # fmt: skip
        if op.activation == "relu6":
            bounds = [self.const("zero", np.array(0, np.float32)), self.const("six", np.array(6, np.float32))]
            y = self.node("Clip", [y, *bounds], f"{name}.act")
        elif op.activation == "relu":
            y = self.node("Relu", [y], f"{name}.act")
        return self.after(y, name)

    def write(self) -> None:
        arch = self.card.arch
        x, size, source = self.after(self.image(), "input"), arch.resolution, "input"
        for block in arch.blocks:
            shortcut = x
            for op in block.ops:
                name = f"{block.name}.{op.name}"
                x, source, size = self.conv(x, name, op, size, source), name, -(-size // op.stride)
            if block.shortcut:
                x, source = self.after(self.node("Add", [shortcut, x], f"{block.name}.sum"), block.name), block.name
        x = self.after(self.node("GlobalAveragePool", [x], "pooled"), "pool")
        if arch.classifier:
            x = self.conv(x, "classifier", arch.classifier, 1, "pool")
        x = self.node("Flatten", [x], "logits")
        self.node("Softmax", [x], "probabilities", axis=1)

    @property
    def folded(self) -> dict[str, tuple[Array, Array]]:
        if not hasattr(self, "_folded"):
            self._folded = fold(self.card.arch, self.tensors)
        return self._folded


class _Int8Writer(_Writer):
    """Quantize/dequantize pairs round every tensor as an int8 bundle says; runtimes fuse them into integer layers."""

    def parameters(self, name: str, source: str) -> list[str]:
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


def onnx_model(card: Card, tensors: Tensors) -> onnx.ModelProto:
    """The whole network: input `image` uint8 [N, H, W, 3], output `probabilities` float32 [N, classes].

    Preprocessing and softmax are inside; the card is metadata under the key "mobilenets.card".
    """
    writer = (_Int8Writer if card.precision == "int8" else _Writer)(card, tensors)
    writer.write()
    r = card.arch.resolution
    graph = helper.make_graph(
        writer.nodes,
        card.arch.title,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", r, r, 3])],
        [
            helper.make_tensor_value_info(
                "probabilities", TensorProto.FLOAT, ["N", card.arch.classes or card.arch.width]
            )
        ],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in writer.constants.items()],
    )
    model = helper.make_model(
        graph, producer_name="mobilenets", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR
    )
    helper.set_model_props(model, {CARD_KEY: json.dumps(card.to_json())})
    return model
