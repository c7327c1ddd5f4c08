"""A bundle -> the explicit graph that every writer walks: preprocessing, rounding and padding are operations. No torch.

What all runtimes have in common is decided here, once. A writer then makes one node of its own, or a few, of each
operation, by its kind in a table; a kind that isn't in its table is a `UserError` (`unsupported`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mobilenets.arch.graph import Graph, pads
from mobilenets.arch.operations import IMAGE, KINDS, Op
from mobilenets.arch.rounding import with_rounding
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card, Precision
from mobilenets.model.encodings import (
    Array,
    Folded,
    Tensors,
    fits_int4,
    fold,
    half,
    int4_weights,
    int8_weights,
    unpack,
)
from mobilenets.model.images import Preprocess


@dataclass(frozen=True)
class Weights:
    """A layer's folded weights [cout, cin/groups, KH, KW] as a file of its precision holds them, and its bias [cout].

    `values` are float32, float16, or codes in int8; codes have a `scale` for each channel [cout], and those that are
    meant for 4 bits (`bits`) one for each block of inputs [cout, blocks]. The `bias` is float32, or int32 where the
    layer computes in whole numbers: at `bias_scale` [cout] then.
    """

    values: Array
    bias: Array
    scale: Array | None = None
    bits: int = 8
    bias_scale: Array | None = None


@dataclass(frozen=True)
class Lowered:
    """The explicit graph, from uint8 "image" [H, W, 3] to the outputs, and the numbers that go with it."""

    card: Card
    graph: Graph
    tensors: Tensors

    @functools.cached_property
    def folded(self) -> Folded:
        """Every layer's weights and bias in float32, whatever they are stored as."""
        return (unpack if self.precision == "int8" else fold)(self.card, self.tensors)

    @property
    def precision(self) -> Precision:
        return self.card.precision

    def scale(self, value: str) -> tuple[Array, Array]:
        """Scale (float32) and zero point (uint8) of a value that is held in whole numbers."""
        name = self.graph.activation_of(value)
        return self.tensors[f"{name}.scale"], self.tensors[f"{name}.zero_point"]

    def in_integers(self, op: Op) -> bool:
        """Whether an operation computes in whole numbers."""
        return op.name in self.graph.integers and op.kind != "quantize"

    def weights(self, op: Op) -> Weights:
        """A layer's weights as the precision stores them."""
        if self.precision == "int8" and self.in_integers(op):
            scale = self.tensors[f"{op.name}.weight_scale"]
            bias_scale = (scale * self.scale(op.inputs[0])[0]).astype(np.float32)
            codes, whole = self.tensors[f"{op.name}.weight"], self.tensors[f"{op.name}.bias"]
            return Weights(codes, whole, scale, bias_scale=bias_scale)
        values, bias = self.folded[op.name]
        match self.precision:
            case "float16":
                return Weights(half(values), bias)
            case "int4" if fits_int4(values):
                codes, scale = int4_weights(values)
                return Weights(codes, bias, scale, bits=4)
            case "dynamic" | "int4":
                codes, scale = int8_weights(values)
                return Weights(codes, bias, scale)
            case _:
                return Weights(values, bias)


def reads_pixels(preprocess: Preprocess) -> bool:
    """Whether the image's own bytes are quantized numbers, of one scale and whole zero point: nothing to compute."""
    mean, std = preprocess.mean, preprocess.std
    return len(set(mean)) == len(set(std)) == 1 and float(mean[0]).is_integer() and 0 <= mean[0] <= 255


def lower(
    bundle: Bundle,
    *,
    rounding: bool = True,
    in_float: Callable[[Op], bool] = lambda _op: False,
    same_only: bool = False,
) -> Lowered:
    """The explicit graph of a bundle, in its card's precision.

    `rounding` False leaves out where an int8 network rounds, for a runtime that does it inside its layers. `in_float`:
    operations that the runtime computes in float in an int8 network. `same_only`: the runtime knows no padding but
    TensorFlow's "SAME", so that any other is an operation of its own.
    """
    bundle = bundle.dense()
    card = bundle.card
    graph = card.graph
    if card.precision == "int8" and rounding:
        graph = with_rounding(graph, card.float_ops, in_float)
    graph = _with_pads(_from_image(graph, card.preprocess), same_only)
    return Lowered(card, graph, bundle.tensors)


def _from_image(graph: Graph, preprocess: Preprocess) -> Graph:
    """The graph with the operation that makes its source of the image's pixels."""
    height, width = preprocess.input_size
    source, ops = graph.source, graph.ops
    whole = reads_pixels(preprocess)
    integers = graph.integers
    if whole and ops[0].kind == "quantize":  # the pixels are the rounded input already
        rounded = ops[0].name
        ops = tuple(
            dataclasses.replace(op, inputs=tuple(source if x == rounded else x for x in op.inputs)) for op in ops[1:]
        )
        integers = integers - {rounded} | {source}
    first = Op(source, "pixels" if whole else "normalize", 3, 3, inputs=(IMAGE,))
    return graph.replace(ops=(first, *ops), source=IMAGE, source_shape=(height, width, 3), integers=integers)


def _with_pads(graph: Graph, same_only: bool) -> Graph:
    """Every layer's pads, or an operation that pads before it where the runtime can't."""
    out: list[Op] = []
    integers = set(graph.integers)
    for op in graph.ops:
        shape = graph.shapes[op.inputs[0]]
        if not (op.is_layer or KINDS[op.kind].windowed) or len(shape) < 3:
            out.append(op)
            continue
        wanted = pads(op, shape, graph.padding)
        if same_only and wanted not in ((0, 0, 0, 0), pads(dataclasses.replace(op, pads=None), shape, "same")):
            padded = Op(f"{op.name}.pad", "pad", op.cin, op.cin, inputs=op.inputs, pads=wanted)
            out.append(padded)
            if op.inputs[0] in integers:
                integers.add(padded.name)
            op, wanted = dataclasses.replace(op, inputs=(padded.name,)), (0, 0, 0, 0)
        out.append(dataclasses.replace(op, pads=wanted, ceil=False))
    return graph.replace(ops=tuple(out), integers=frozenset(integers))


class Unsupported(UserError):
    """A runtime lacks the operation called `op`."""

    def __init__(self, message: str, op: str = "") -> None:
        super().__init__(message)
        self.op = op


def unsupported(runtime: str, op: Op) -> UserError:
    """The error that says which operation a runtime hasn't got."""
    return Unsupported(f"{runtime} has no {op.kind} ({op.name}); export to another format", op.name)
