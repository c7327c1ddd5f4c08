"""Arch and weights -> a Core ML program in Apple's model intermediate language (MIL), row by row.

Written here rather than traced: the input can be an image, as apps give it, and the numbers are a bundle's own. The
program computes in 16-bit floats, which the Neural Engine needs, but for float32. Where the card says int8, every
tensor between the operations is quantized to a bundle's uint8 values and weights are int8 with a scale per channel;
their scales and biases are 16-bit floats, the nearest to the bundle's. Core ML runs it in integers where the chip can.
"""

from __future__ import annotations

from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb  # noqa: N813  as Apple's own programs call it
from coremltools.converters.mil.mil import Program, types

from mobilenets.arch.graph import Op
from mobilenets.arch.spec import same_padding
from mobilenets.model.card import Card
from mobilenets.model.encodings import Array, Tensors, fold, half, int8_weights, unpack

TARGET = ct.target.iOS17  # the first that quantizes activations


class _Writer:
    """Walks an arch's operations, calling coremltools' builder for each."""

    def __init__(self, card: Card, tensors: Tensors) -> None:
        self.card, self.arch, self.tensors = card, card.arch, tensors
        self.int8 = card.precision == "int8"
        self.dtype = np.float32 if card.precision == "float32" else np.float16
        self.floats = unpack(card, tensors) if self.int8 else fold(card.arch, tensors)

    def number(self, value: Any) -> Array:
        out: Array = np.asarray(value, np.float32).astype(self.dtype)
        return out

    def weight(self, op: Op) -> Any:
        name, weight = op.name, self.floats[op.name][0]
        if self.int8 and name not in self.card.float_ops:
            codes, scale = self.tensors[f"{name}.weight"], self.tensors[f"{name}.weight_scale"]
        elif self.card.precision == "dynamic":
            codes, scale = int8_weights(weight)
        else:
            return weight if self.dtype is np.float32 else half(weight)
        return mb.constexpr_affine_dequantize(
            quantized_data=codes, zero_point=np.int8(0), scale=self.number(scale), axis=0, name=f"{name}.weight"
        )

    def rounded(self, x: Any, name: str) -> Any:
        scale = self.number(self.tensors[f"{name}.scale"])
        zero = np.uint8(self.tensors[f"{name}.zero_point"])
        q = mb.quantize(input=x, scale=scale, zero_point=zero, output_dtype="uint8", name=f"{name}.q")
        return mb.dequantize(input=q, scale=scale, zero_point=zero, name=f"{name}.dq")

    def made(self, x: Any, name: str) -> Any:
        return self.rounded(x, name) if self.int8 and name not in self.card.float_ops else x

    def read(self, x: Any, name: str, by: Op) -> Any:
        """A float operation's output is rounded for the int8 ones that read it."""
        made_float, read_float = (n in self.card.float_ops for n in (name, by.name))
        return self.rounded(x, name) if made_float and not read_float else x

    def layer(self, op: Op, x: Any) -> Any:
        pads = [op.kernel // 2] * 4
        if self.arch.padding == "same":
            before, after = same_padding(self.arch.sides[op.inputs[0]], op.kernel, op.stride)
            pads = [before, after, before, after]
        bias = half(self.floats[op.name][1]) if self.dtype is np.float16 else self.floats[op.name][1]
        y = mb.conv(
            x=x, weight=self.weight(op), bias=bias, strides=[op.stride] * 2, pad_type="custom", pad=pads,
            groups=op.groups, name=f"{op.name}.conv",
        )  # fmt: skip
        return self.activation(op, y) if op.activation else y

    def activation(self, op: Op, x: Any) -> Any:
        name = f"{op.name}.act"
        match op.activation:
            case "relu":
                return mb.relu(x=x, name=name)
            case "relu6":
                return mb.relu6(x=x, name=name)
            case "gelu":
                return mb.gelu(x=x, mode="EXACT", name=name)
            case "hard_sigmoid":
                return mb.sigmoid_hard(x=x, alpha=self.number(1 / 6), beta=self.number(0.5), name=name)
            case _:  # hard_swish
                gate = mb.sigmoid_hard(x=x, alpha=self.number(1 / 6), beta=self.number(0.5), name=f"{op.name}.gate")
                return mb.mul(x=x, y=gate, name=name)

    def attend(self, op: Op, query: Any, key: Any, value: Any) -> Any:
        """Multi-query attention of one image: the heads see one key and value."""
        name, dim, side = op.name, op.cin, self.arch.sides[op.name]
        q = mb.reshape(x=query, shape=[1, op.heads, dim, side * side], name=f"{name}.queries")
        k, v = (mb.reshape(x=x, shape=[1, 1, dim, -1], name=f"{x.name}.flat") for x in (key, value))
        q = mb.mul(x=q, y=self.number(dim**-0.5), name=f"{name}.scaled")
        scores = mb.matmul(x=q, y=k, transpose_x=True, name=f"{name}.scores")
        mixed = mb.matmul(x=v, y=mb.softmax(x=scores, axis=-1), transpose_y=True, name=f"{name}.mix")
        return mb.reshape(x=mixed, shape=[1, op.cout, side, side], name=f"{name}.map")

    def operation(self, op: Op, inputs: list[Any]) -> Any:
        if op.is_layer:
            return self.layer(op, *inputs)
        match op.kind:
            case "activation":
                return self.activation(op, *inputs)
            case "attend":
                return self.attend(op, *inputs)
            case "pool":
                return mb.reduce_mean(x=inputs[0], axes=[2, 3], keep_dims=True, name=f"{op.name}.out")
            case kind:
                return {"add": mb.add, "mul": mb.mul}[kind](x=inputs[0], y=inputs[1], name=f"{op.name}.out")

    def write(self, image: Any) -> Any:
        """The image's pixels, float [1, 3, H, W] in 0..255, to probabilities [1, classes]."""
        mean, std = (self.number(v)[None, :, None, None] for v in (self.card.preprocess.mean, self.card.preprocess.std))
        x = image if self.dtype is np.float32 else mb.cast(x=image, dtype="fp16", name="image.half")
        x = mb.real_div(x=mb.sub(x=x, y=mean, name="image.centred"), y=std, name="image.float")
        values = {"input": self.made(x, "input")}
        for op in self.arch.ops:
            x = self.operation(op, [self.read(values[name], name, op) for name in op.inputs])
            x = values[op.name] = self.made(x, op.name)
        x = mb.softmax(x=mb.reshape(x=x, shape=[1, -1], name="logits"), axis=1, name="softmax")
        return mb.cast(x=x, dtype="fp32", name="probabilities")


def program(card: Card, tensors: Tensors) -> Program:
    """The network as a MIL program of one image, `image` float32 [1, 3, H, W], to `probabilities` [1, classes]."""
    r = card.arch.resolution

    def main(image: Any) -> Any:
        return _Writer(card, tensors).write(image)

    image = mb.TensorSpec(shape=(1, 3, r, r), dtype=types.fp32)
    made: Program = mb.program(input_specs=[image], opset_version=TARGET)(main)
    return made
