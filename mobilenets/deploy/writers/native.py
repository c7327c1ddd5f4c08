"""A lowered network -> the steps of our own engine (`native/`), and the .mnet file that it runs. No torch.

An int8 network's sums become bytes by one multiplier for each channel; activations that are rounded by themselves are
tables of 256 bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mobilenets.arch.operations import Op
from mobilenets.deploy.lowering import Lowered, lower, unsupported
from mobilenets.deploy.writers import native_detect, native_plan
from mobilenets.deploy.writers.native_file import (
    FLOAT16,
    FLOAT32,
    INT8,
    Constants,
    Names,
    filled,
    joined,
    panels,
    piece,
    record,
    rows_of,
)
from mobilenets.deploy.writers.native_plan import F32, IMAGE, U8, Plan, Step, Value
from mobilenets.model.bundle import Bundle
from mobilenets.model.encodings import Array
from mobilenets.tasks.looking import last_map

NAME = "native"
ACTS = {"hard_swish": 1, "hard_sigmoid": 2, "gelu": 3}
ONE = np.float32(1)


def activated(x: Array, activation: str | None) -> Array:
    """An activation of float32 values."""
    match activation:
        case "relu":
            return np.maximum(x, 0)
        case "relu6":
            return np.clip(x, 0, 6)
        case "hard_swish":
            return np.asarray(x * np.clip(x + 3, 0, 6) / np.float32(6), np.float32)
        case "hard_sigmoid":
            return np.asarray(np.clip(x + 3, 0, 6) / np.float32(6), np.float32)
        case "gelu":
            return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(float)], np.float32)
    return x


class _Writer:
    """Steps and values of a lowered network. Steps have a value's name as theirs, but for a concatenation's copies."""

    def __init__(self, lowered: Lowered) -> None:
        self.lowered, self.graph = lowered, lowered.graph
        height, width, _ = self.graph.source_shape
        self.image = self.graph.source
        self.values = {self.image: Value(self.image, U8, 3, height, width, pitch=3, place=IMAGE)}
        self.steps: list[Step] = []
        self.alias: dict[str, str] = {}  # a value that is another's bytes
        self.outputs = {o.op for o in self.graph.outputs}
        self.scores: dict[str, int] = {}  # what is left of scores to compute, for the suppression that reads them

    # ---- values

    def whole(self, name: str) -> bool:
        return name in self.graph.integers

    def affine(self, name: str) -> tuple[np.float32, int]:
        scale, zero = self.lowered.scale(name)
        return np.float32(scale), int(zero)

    def value(self, name: str) -> Value:
        """The map that an operation gives; a vector is one of one pixel, rows are one row of pixels."""
        shape = self.graph.shapes[name]
        rows = (shape[1], 1, shape[0]) if len(shape) == 2 else (*(shape or (1,)), 1, 1)
        channels, height, width = rows[:3]
        whole = self.whole(name)
        pad = self.affine(name)[1] if whole else 0
        v = self.values[name] = Value(name, U8 if whole else F32, channels, height, width, pad)
        return v

    def step(self, op: Op, kind: str, **numbers: Any) -> Step:
        self.value(op.name)
        made = Step(op.name, kind, tuple(self.alias.get(n, n) for n in op.inputs), op.name, numbers=numbers)
        if self.whole(op.name):
            made.numbers = {"zero": self.affine(op.name)[1], **made.numbers}
        self.steps.append(made)
        return made

    def rounded(self, x: Array, name: str) -> Array:
        """Float values as the bytes of a value's scale."""
        scale, zero = self.affine(name)
        codes: Array = np.clip(np.rint(x * (ONE / scale)) + zero, 0, 255).astype(np.uint8)
        return codes

    def meant(self, name: str) -> Array:
        """What each of 256 bytes of a value stands for."""
        scale, zero = self.affine(name)
        return np.asarray((np.arange(256) - zero).astype(np.float32) * scale, np.float32)

    def table(self, name: str, out: str, activation: str | None = None) -> Array:
        """The byte of `out` for each byte of the value `name`."""
        return self.rounded(activated(self.meant(name), activation), out)

    # ---- the image

    def pixels(self, op: Op) -> None:
        if self.whole(op.name):
            self.step(op, "pixels", lut=np.tile(np.arange(256, dtype=np.uint8), (3, 1)), first=1)
        else:
            self.normalize(op)

    def normalize(self, op: Op) -> None:
        p = self.lowered.card.preprocess
        mean, std = (np.array(v, np.float32)[:, None] for v in (p.mean, p.std))
        self.step(op, "pixels", lut=(np.arange(256, dtype=np.float32)[None] - mean) / std)

    def quantize(self, op: Op) -> None:
        before = self.made(op.inputs[0])
        if before is not None and before.kind == "pixels":
            self.step(op, "pixels", lut=self.rounded(before.numbers["lut"], op.name)).inputs = (self.image,)
        else:
            self.step(op, "quantize", a=ONE / self.affine(op.name)[0])

    def dequantize(self, op: Op) -> None:
        before = self.made(op.inputs[0])
        scale, zero = self.affine(op.inputs[0])
        if before is not None and before.kind == "pixels":
            table = self.meant(op.inputs[0])[before.numbers["lut"]]
            self.step(op, "pixels", lut=table).inputs = (self.image,)
        else:
            self.step(op, "dequantize", a=scale, za=zero)

    def made(self, name: str) -> Step | None:
        """The step that gives a value."""
        name = self.alias.get(name, name)
        return next((s for s in reversed(self.steps) if s.out == name), None)

    # ---- layers

    def layer(self, op: Op) -> None:
        assert op.pads is not None
        above, left, _, _ = op.pads
        depthwise = op.kind in ("depthwise", "global", "norm")
        dense = op.kernels == (1, 1) and not any(op.pads)
        made = self.step(op, "depthwise" if depthwise else "pointwise" if dense else "conv")
        made.kernels, made.stride, made.top, made.left = op.kernels, op.stride, above, left
        made.numbers["op"] = op
        if self.whole(op.name):
            scale, zero = self.affine(op.name)
            if op.activation:
                made.numbers["low"] = zero
            if op.activation == "relu6":
                made.numbers["high"] = min(255, zero + int(np.rint(np.float32(6) * (ONE / scale))))
        elif op.activation:
            made.numbers["least"] = 0.0
            made.numbers["most"] = 6.0 if op.activation == "relu6" else math.inf

    def activation(self, op: Op) -> None:
        """A part of the layer before it, where nothing else reads that layer."""
        before = self.made(op.inputs[0])
        source = op.inputs[0]
        fused = (
            before is not None and before.out == source and before.kind in ("conv", "depthwise", "pointwise")
            and len(self.graph.readers[source]) == 1 and source not in self.outputs
        )  # fmt: skip
        if self.whole(op.name):
            table = self.table(source, op.name, op.activation)
            if fused and before is not None and "lut" not in before.numbers:
                before.numbers["lut"] = table
                self.rename(before, op)
            else:
                self.step(op, "lut", lut=table)
            return
        clips = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
        least, most = clips.get(op.activation or "", (-math.inf, math.inf))
        act = ACTS.get(op.activation or "", 0)
        plain = before is not None and not {"least", "act"} & before.numbers.keys()
        if fused and plain and before is not None and op.activation != "gelu":
            before.numbers.update(least=least, most=most, act=act)
            self.rename(before, op)
        else:
            self.step(op, "act", least=least, most=most, act=act)

    def rename(self, step: Step, op: Op) -> None:
        """Let a step give the value of the operation that it has taken in."""
        del self.values[step.out]
        self.value(op.name)
        step.out = op.name

    # ---- what joins layers

    def pool(self, op: Op) -> None:
        _, height, width = self.graph.shapes[op.inputs[0]]
        if not self.whole(op.name):
            self.step(op, "pool", a=1 / (height * width))
            return
        (scale, zero), out = self.affine(op.inputs[0]), self.affine(op.name)[0]
        # As PyTorch rounds on the way: where the scales are alike, a mean is often just between two bytes.
        self.step(op, "pool", a=float(scale), b=float(np.float32(1) / out), za=zero)

    def windows(self, op: Op) -> None:
        assert op.pads is not None
        made = self.step(op, op.kind)
        made.kernels, made.stride, (made.top, made.left) = op.kernels, op.stride, op.pads[:2]
        if op.kind == "avgpool":
            pixels = math.prod(op.kernels)
            whole = self.whole(op.name)
            scales = self.affine(op.inputs[0])[0] / self.affine(op.name)[0] if whole else ONE
            made.numbers |= {"a": float(scales) / pixels} | ({"za": self.affine(op.inputs[0])[1]} if whole else {})

    def select(self, op: Op) -> None:
        """A shuffle or a slice: which channel of the input each is."""
        if op.kind == "slice":
            source = op.first + np.arange(op.cout)
        else:
            source = np.arange(op.cout).reshape(op.grouped, -1).T.reshape(-1)
        self.step(op, "select", lut=source.astype("<u4"))

    def add(self, op: Op) -> None:
        if self.graph.shapes[op.inputs[0]] != self.graph.shapes[op.inputs[1]]:
            raise unsupported(NAME, op)
        if len({*op.inputs}) < 2:
            raise unsupported(NAME, op)
        if not self.whole(op.name):
            self.step(op, "add")
            return
        (sa, za), (sb, zb), out = *(self.affine(n) for n in op.inputs), float(self.affine(op.name)[0])
        self.step(op, "add", a=float(sa) / out, b=float(sb) / out, za=za, zb=zb)

    def mul(self, op: Op) -> None:
        shape, gate = (self.graph.shapes[n] for n in op.inputs)
        if gate != (shape[0], 1, 1) or len({*op.inputs}) < 2:
            raise unsupported(NAME, op)
        if not self.whole(op.name):
            self.step(op, "mul")
            return
        (sa, za), (sb, zb), out = *(self.affine(n) for n in op.inputs), float(self.affine(op.name)[0])
        self.step(op, "mul", a=float(sa) * float(sb) / out, za=za, zb=zb)

    def concat(self, op: Op) -> None:
        first = 0
        for name in op.inputs:
            numbers: dict[str, Any] = {"first": first}
            if self.whole(op.name):
                numbers["lut"] = self.table(name, op.name)
            self.step(op, "copy", **numbers).inputs = (self.alias.get(name, name),)
            first += self.graph.shapes[name][0]

    def flatten(self, op: Op) -> None:
        shape = self.graph.shapes[op.inputs[0]]
        if math.prod(shape[1:]) == 1:
            self.alias[op.name] = self.alias.get(op.inputs[0], op.inputs[0])
        else:
            self.step(op, "flatten")

    def each(self, op: Op) -> None:
        self.step(op, op.kind)

    # ---- the whole

    def walk(self) -> None:
        for op in self.graph.ops:
            if op.kind not in EMIT:
                raise unsupported(NAME, op)
            EMIT[op.kind](self, op)
        given = {self.alias.get(n, n) for n in self.outputs}
        while True:  # what only pixels read that have become something else
            read = given | {n for s in self.steps for n in s.inputs}
            kept = [s for s in self.steps if s.out in read]
            if len(kept) == len(self.steps):
                break
            self.steps = kept
        made = {s.out for s in self.steps} | {self.image}
        self.values = {n: v for n, v in self.values.items() if n in made}
        for s in self.steps:
            v = self.values[s.out]
            readers = {r.kind for r in self.steps if s.out in r.inputs}
            if s.kind == "pixels" and s.out not in given and readers <= {"conv", "pointwise"}:
                v.pitch = 3


EMIT: dict[str, Callable[[_Writer, Op], None]] = {
    "pixels": _Writer.pixels,
    "normalize": _Writer.normalize,
    "quantize": _Writer.quantize,
    "dequantize": _Writer.dequantize,
    **dict.fromkeys(("conv", "depthwise", "pointwise", "linear", "global", "norm"), _Writer.layer),
    "activation": _Writer.activation,
    "pool": _Writer.pool,
    **dict.fromkeys(("maxpool", "avgpool"), _Writer.windows),
    **dict.fromkeys(("shuffle", "slice"), _Writer.select),
    "add": _Writer.add,
    "mul": _Writer.mul,
    "concat": _Writer.concat,
    "flatten": _Writer.flatten,
    "l2norm": _Writer.each,
    **native_detect.EMIT,
}


# ---- the file


def _constants(writer: _Writer, step: Step, weights: Constants, coded: Callable[[Op], bool]) -> dict[str, int]:
    """Where a step's constants lie. `coded`: layers that may be stored as what they are."""
    found: dict[str, int] = {}
    if "lut" in step.numbers:
        found["lut"] = weights.add(step.numbers["lut"])
    if "op" not in step.numbers:
        return found
    op: Op = step.numbers["op"]
    w = writer.lowered.weights(op)
    x = writer.values[step.inputs[0]]
    rows, lanes, group = rows_of(step, op, w.values, x.pitch)
    found["encoding"] = {"int8": INT8, "float32": FLOAT32, "float16": FLOAT16}[str(rows.dtype)]
    few = piece(rows, lanes, group) if coded(op) else None
    found["weights"] = weights.add(panels(rows, group, lanes), few)
    if w.scale is None:
        found["bias"] = weights.add(filled(w.bias, "<f4"))
        return found
    (scale_in, zero), scale_out = writer.affine(op.inputs[0]), writer.affine(op.name)[0]
    sums = w.values.astype(np.int64).reshape(op.cout, -1).sum(1)
    most = 2**31 - 1 - (rows.shape[1] + 4) * 255 * 128  # so that no sum overflows
    bias = np.clip(w.bias.astype(np.int64) - zero * sums, -most, most)
    found["bias"] = weights.add(filled(bias, "<i4"))
    multiplier = w.scale.astype(np.float64) * float(scale_in) / float(scale_out)
    found["multiplier"] = weights.add(filled(multiplier, "<f4"))
    return found


def native_model(bundle: Bundle, planned: Callable[..., Plan] = native_plan.plan, *, coded: bool = False) -> bytes:
    """The network as a file: uint8 [N, H, W, 3] to the card's outputs, float32, for any N.

    `planned`: what decides how it is run (`native_plan`'s, `lean_plan`'s). `coded`: weights of few values, or mostly
    zeros, may take fewer bytes, but for a classifier's whose map is given out too, with which a page shows where it
    looks. Raises `UserError` for an operation that the engine hasn't got.
    """
    lowered = lower(bundle)
    writer = _Writer(lowered)
    writer.walk()
    layer, shown = last_map(bundle.card) or ("", "")
    as_it_lies = layer if shown in writer.outputs else ""
    card = json.dumps(bundle.card.to_json()).encode()
    return _file(writer, card, planned, lambda op: coded and op.name != as_it_lies)


def _file(writer: _Writer, card: bytes, planned: Callable[..., Plan], coded: Callable[[Op], bool]) -> bytes:
    steps, values, graph = writer.steps, writer.values, writer.graph
    given = [writer.alias.get(o.op, o.op) for o in graph.outputs]
    plan = planned(steps, values, given)
    index = {name: i for i, name in enumerate(values)}
    names, weights = Names(), Constants()
    records = [native_plan.value_record(v) for v in values.values()]
    operations = [record(s, names.add(s.name), index, _constants(writer, s, weights, coded)) for s in steps]
    outputs = [
        [names.add(o.name), index[v], len(graph.shapes[o.op])] for o, v in zip(graph.outputs, given, strict=True)
    ]
    body = b"".join(
        (np.array(records, "<u4").tobytes(), *operations, native_plan.group_records(plan.groups),
         np.array(outputs, "<u4").tobytes())
    )  # fmt: skip
    counts = len(values), len(steps), len(plan.groups), len(outputs)
    return joined(plan, counts, list(values).index(writer.image), card, names.data, body, weights)
