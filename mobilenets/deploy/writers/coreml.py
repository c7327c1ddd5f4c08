"""A lowered network -> a Core ML program in Apple's model intermediate language (MIL).

Written here rather than traced: the input can be an image, as apps give it, and the numbers are a bundle's own. The
program computes in 16-bit floats, which the Neural Engine needs, but for float32. Where the card says int8, every
tensor between the operations is quantized to a bundle's uint8 values and weights are int8 with a scale per channel;
their scales and biases are 16-bit floats, the nearest to the bundle's. Core ML runs it in integers where the chip can.

Float weights with few values are kept as codes and tables, those with many zeros as the rest and a mask, and int4 as
two weights a byte: forms that iOS 18 reads, and only files with any of them ask for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb  # noqa: N813  as Apple's own programs call it
from coremltools.converters.mil.mil import Program, types

from mobilenets.arch.operations import Op
from mobilenets.deploy.compact import Palette, Sparse, smallest
from mobilenets.deploy.lowering import Lowered, Weights, lower, unsupported
from mobilenets.deploy.writers import coreml_detect
from mobilenets.model.bundle import Bundle
from mobilenets.model.encodings import BLOCK, Array, half

TARGET = ct.target.iOS17  # the first that quantizes activations
PACKED = ct.target.iOS18  # the first that reads codes of any bits, tables for each channel, and masks of bits


class _Writer:
    """Walks a lowered graph, calling coremltools' builder for each operation."""

    def __init__(self, lowered: Lowered) -> None:
        self.lowered, self.graph = lowered, lowered.graph
        self.parts: dict[str, Mapping[str, Any]] = {}  # of detections
        self.dtype = np.float32 if lowered.precision == "float32" else np.float16
        self.weights = {op.name: self.stored(op) for op in self.graph.ops if op.is_layer}

    def number(self, value: Any) -> Array:
        out: Array = np.asarray(value, np.float32).astype(self.dtype)
        return out

    def stored(self, op: Op) -> Weights | Palette | Sparse | Array:
        """A layer's weights: codes with their scales, or floats in the form in which they take the fewest bytes."""
        w = self.lowered.weights(op)
        return w if w.scale is not None else smallest(w.values if self.dtype is np.float32 else half(w.values))

    @property
    def target(self) -> Any:
        """The first system that reads what weights are stored as."""
        new = self.lowered.precision == "int4" or any(isinstance(w, Palette | Sparse) for w in self.weights.values())
        return PACKED if new else TARGET

    def weight(self, op: Op) -> Any:
        name = f"{op.name}.weight"
        match self.weights[op.name]:
            case Palette(codes, tables, bits):
                kind = types.string_to_nptype(f"uint{bits}")
                lut = tables.reshape(len(tables), *[1] * (codes.ndim - 1), -1, 1)
                return mb.constexpr_lut_to_dense(indices=codes.astype(kind), lut=lut, name=name)
            case Sparse(values, mask):
                return mb.constexpr_sparse_to_dense(
                    nonzero_data=values, mask=mask.astype(types.np_uint1_dtype), name=name
                )
            case Weights() as w if self.lowered.precision == "int4":
                codes = w.values.astype(types.np_int4_dtype) if w.bits == 4 else w.values
                return mb.constexpr_blockwise_shift_scale(data=codes, scale=self.number(_blocks(w)), name=name)
            case Weights() as w:
                return mb.constexpr_affine_dequantize(
                    quantized_data=w.values, zero_point=np.int8(0), scale=self.number(w.scale), axis=0, name=name
                )
            case plain:
                return plain

    def rounded(self, x: Any, value: str) -> Any:
        name = self.graph.activation_of(value)
        numbers, point = self.lowered.scale(value)
        scale, zero = self.number(numbers), np.uint8(point)
        q = mb.quantize(input=x, scale=scale, zero_point=zero, output_dtype="uint8", name=f"{name}.q")
        return mb.dequantize(input=q, scale=scale, zero_point=zero, name=f"{name}.dq")

    def image(self, _op: Op, image: Any) -> Any:
        """The image's pixels, float [1, 3, H, W] in 0..255, normalized."""
        p = self.lowered.card.preprocess
        mean, std = (self.number(v)[None, :, None, None] for v in (p.mean, p.std))
        x = image if self.dtype is np.float32 else mb.cast(x=image, dtype="fp16", name="image.half")
        return mb.real_div(x=mb.sub(x=x, y=mean, name="image.centred"), y=std, name="image.float")

    def layer(self, op: Op, x: Any) -> Any:
        above, left, below, right = op.pads or (0, 0, 0, 0)
        bias = self.lowered.folded[op.name][1]
        y = mb.conv(
            x=x, weight=self.weight(op), bias=half(bias) if self.dtype is np.float16 else bias,
            strides=[op.stride] * 2, pad_type="custom", pad=[above, below, left, right], groups=op.groups,
            name=f"{op.name}.conv",
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
        name, dim, shape = op.name, op.cin, self.graph.shapes[op.name]
        q = mb.reshape(x=query, shape=[1, op.heads, dim, shape[1] * shape[2]], name=f"{name}.queries")
        k, v = (mb.reshape(x=x, shape=[1, 1, dim, -1], name=f"{x.name}.flat") for x in (key, value))
        q = mb.mul(x=q, y=self.number(dim**-0.5), name=f"{name}.scaled")
        scores = mb.matmul(x=q, y=k, transpose_x=True, name=f"{name}.scores")
        mixed = mb.matmul(x=v, y=mb.softmax(x=scores, axis=-1), transpose_y=True, name=f"{name}.mix")
        return mb.reshape(x=mixed, shape=[1, *shape], name=f"{name}.map")

    def pool(self, op: Op, x: Any) -> Any:
        return mb.reduce_mean(x=x, axes=[2, 3], keep_dims=True, name=f"{op.name}.out")

    def concat(self, op: Op, *inputs: Any) -> Any:
        return mb.concat(values=inputs, axis=1, name=f"{op.name}.out")

    def flatten(self, op: Op, x: Any) -> Any:
        return mb.reshape(x=x, shape=[1, -1], name=f"{op.name}.out")

    def l2norm(self, op: Op, x: Any) -> Any:
        """In 32-bit floats: 16 bits hold neither the squares of large values nor the least length."""
        wide = x if self.dtype is np.float32 else mb.cast(x=x, dtype="fp32", name=f"{op.name}.wide")
        length = mb.reduce_l2_norm(x=wide, axes=[1], keep_dims=True, name=f"{op.name}.length")
        length = mb.maximum(x=length, y=np.float32(1e-12), name=f"{op.name}.divisor")
        y = mb.real_div(x=wide, y=length, name=f"{op.name}.out")
        return y if self.dtype is np.float32 else mb.cast(x=y, dtype="fp16", name=f"{op.name}.half")

    def write(self, image: Any) -> Any:
        """The image's pixels, float [1, 3, H, W] in 0..255, to the card's outputs, [1, ...] each."""
        values = {self.graph.source: image}
        for op in self.graph.ops:
            if op.kind not in EMIT:
                raise unsupported("Core ML", op)
            x = EMIT[op.kind](self, op, *(values[name] for name in op.inputs))
            values[op.name] = self.rounded(x, op.name) if self.lowered.in_integers(op) else x
        out = []
        named: dict[str, Any] = {}  # value -> the output that it is
        for o in self.graph.outputs:
            x = values[o.op]
            if x.name in named:  # Core ML would leave out a second cast, and the output with it
                out.append(mb.identity(x=named[x.name], name=o.name))
            else:
                named[x.name] = mb.cast(x=x, dtype="fp32", name=o.name)
                out.append(named[x.name])
        return out if len(out) > 1 else out[0]


EMIT: dict[str, Callable[..., Any]] = {
    "pixels": _Writer.image,
    "normalize": _Writer.image,
    "quantize": lambda writer, op, x: writer.rounded(x, op.name),
    "dequantize": lambda _writer, _op, x: x,  # values are floats again as soon as they are rounded
    **dict.fromkeys(("conv", "depthwise", "pointwise", "linear", "global", "norm"), _Writer.layer),
    "activation": _Writer.activation,
    "pool": _Writer.pool,
    "add": lambda _writer, op, x, y: mb.add(x=x, y=y, name=f"{op.name}.out"),
    "mul": lambda _writer, op, x, y: mb.mul(x=x, y=y, name=f"{op.name}.out"),
    "attend": _Writer.attend,
    "concat": _Writer.concat,
    "flatten": _Writer.flatten,
    "softmax": lambda _writer, op, x: mb.softmax(x=x, axis=1, name=f"{op.name}.out"),
    "sigmoid": lambda _writer, op, x: mb.sigmoid(x=x, name=f"{op.name}.out"),
    "l2norm": _Writer.l2norm,
    **coreml_detect.EMIT,
}


def _blocks(w: Weights) -> Array:
    """The scales of codes, of as many inputs each as divide a channel's evenly, which Core ML asks for."""
    scale, cin = np.asarray(w.scale), w.values.shape[1]
    if w.bits != 4:
        return scale.reshape(-1, 1, 1, 1)
    even = math.gcd(BLOCK, cin)
    return np.repeat(scale, BLOCK // even, 1)[:, : cin // even, None, None]


def program(bundle: Bundle) -> Program:
    """The network as a MIL program of one image, `image` float32 [1, 3, H, W], to the card's outputs."""
    height, width = bundle.card.preprocess.input_size
    writer = _Writer(lower(bundle))

    def main(image: Any) -> Any:
        return writer.write(image)

    image = mb.TensorSpec(shape=(1, 3, height, width), dtype=types.fp32)
    made: Program = mb.program(input_specs=[image], opset_version=writer.target)(main)
    return made
