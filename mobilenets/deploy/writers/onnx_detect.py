"""What detectors end in, as ONNX nodes: rows of answers, boxes, NonMaxSuppression and the best of what it keeps. No torch.

NonMaxSuppression gives what it keeps of all images and classes as one list. For any number of images in a call, the
scores of what is kept are put back where they were, zeros around them, and the best of each image taken from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mobilenets.arch.graph import Graph, Op
from mobilenets.deploy.lowering import Lowered
from mobilenets.deploy.writers import proto

Array = npt.NDArray[Any]


class Writer(Protocol):
    """The part of `onnx`'s writer that is used here."""

    lowered: Lowered
    graph: Graph
    nodes: list[bytes]
    parts: dict[str, Mapping[str, str]]

    def const(self, name: str, value: Array) -> str: ...

    def number(self, name: str, value: float) -> str: ...

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str: ...


def _whole(w: Writer, name: str, *values: int) -> str:
    return w.const(name, np.array(values, np.int64))


def rows(w: Writer, op: Op, x: str) -> str:
    last = w.node("Transpose", [x], f"{op.name}.last", perm=[0, 2, 3, 1])
    return w.node("Reshape", [last, _whole(w, f"{op.name}.shape", 0, -1, op.cout)], f"{op.name}.out")


def upsample(w: Writer, op: Op, x: str, _like: str) -> str:
    """By a whole factor as runtimes do it; else rows and columns are picked, which no rounding changes."""
    name = op.name
    (_, *before), (_, *after) = w.graph.shapes[op.inputs[0]], w.graph.shapes[name]
    if all(b % a == 0 for a, b in zip(before, after, strict=True)):
        scales = np.array([1, 1, *(b // a for a, b in zip(before, after, strict=True))], np.float32)
        how = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
        return w.node("Resize", [x, "", w.const(f"{name}.scales", scales)], f"{name}.out", **how)
    for axis, (a, b) in enumerate(zip(before, after, strict=True), 2):
        nearest = w.const(f"{name}.nearest.{axis}", np.arange(b, dtype=np.int64) * a // b)
        x = w.node("Gather", [x, nearest], f"{name}.{'rows' if axis == 2 else 'out'}", axis=axis)
    return x


def _columns(w: Writer, name: str, x: str, axis: int, first: int, end: int) -> str:
    bounds = [_whole(w, f"{name}.{k}", v) for k, v in (("first", first), ("end", end), ("axis", axis))]
    return w.node("Slice", [x, *bounds], name)


def boxes(w: Writer, op: Op, offsets: str) -> str:
    assert op.coder is not None
    name = op.name
    anchors = w.lowered.tensors[f"{name}.anchors"]
    scales = np.array(op.coder.scales, np.float32)
    if op.coder.order == "yxhw":
        scales = scales[[1, 0, 3, 2]]
        offsets = w.node("Gather", [offsets, _whole(w, f"{name}.order", 1, 0, 3, 2)], f"{name}.xywh", axis=2)
    at, size = (_columns(w, f"{name}.{k}", offsets, 2, i, i + 2) for k, i in (("at", 0), ("size", 2)))
    at = w.node("Mul", [at, w.const(f"{name}.step", anchors[None, :, 2:] / scales[:2])], f"{name}.shift")
    middle = w.node("Add", [at, w.const(f"{name}.anchors.centre", anchors[None, :, :2])], f"{name}.middle")
    size = w.node("Mul", [size, w.const(f"{name}.unit", 1 / scales[2:])], f"{name}.log")
    size = w.node("Exp", [size], f"{name}.times")
    half = w.node("Mul", [size, w.const(f"{name}.anchors.half", anchors[None, :, 2:] / 2)], f"{name}.half")
    corners = [w.node(kind, [middle, half], f"{name}.{kind.lower()}") for kind in ("Sub", "Add")]
    return w.node("Concat", corners, f"{name}.out", axis=2)


def suppress(w: Writer, op: Op, corners: str, scores: str) -> str:
    assert op.suppression is not None
    how, name = op.suppression, op.name
    count, classes = w.graph.shapes[op.inputs[1]]
    if how.background:
        classes -= 1
        scores = _columns(w, f"{name}.classes", scores, 2, 1, classes + 1)
    by_class = w.node("Transpose", [scores], f"{name}.by_class", perm=[0, 2, 1])  # [N, C, A]
    limits = [
        _whole(w, f"{name}.per_class", how.per_class),
        w.const(f"{name}.iou", np.array([how.iou], np.float32)),
        w.const(f"{name}.least", np.array([how.score], np.float32)),
    ]
    kept = w.node("NonMaxSuppression", [corners, by_class, *limits], f"{name}.kept")  # [M, 3]: image, class, box
    values = w.node("GatherND", [by_class, kept], f"{name}.values")
    zeros = w.node("ConstantOfShape", [w.node("Shape", [by_class], f"{name}.shape")], f"{name}.zeros")
    there = w.node("ScatterND", [zeros, kept, values], f"{name}.there")
    flat = w.node("Reshape", [there, _whole(w, f"{name}.flat", 0, -1)], f"{name}.all")
    if how.most > classes * count:
        room = _whole(w, f"{name}.room", 0, 0, 0, how.most - classes * count)
        flat = w.node("Pad", [flat, room], f"{name}.more")
    best, which = f"{name}.best", f"{name}.which"
    w.nodes.append(proto.node("TopK", [flat, _whole(w, f"{name}.most", how.most)], [best, which], best, axis=1))
    number = _whole(w, f"{name}.number", count)
    used = w.node("Greater", [best, w.number("zero", 0)], f"{name}.used")
    label = w.node("Cast", [w.node("Div", [which, number], f"{name}.class")], f"{name}.label", to=proto.TYPES["float32"])
    label = w.node("Where", [used, label, w.number("zero", 0)], f"{name}.labels")
    last = _whole(w, f"{name}.last", -1)
    index = w.node("Unsqueeze", [w.node("Mod", [which, number], f"{name}.box"), last], f"{name}.index")
    found = w.node("GatherND", [corners, index], f"{name}.found", batch_dims=1)
    row = w.node("Unsqueeze", [used, last], f"{name}.row")
    places = w.node("Where", [row, found, w.number("zero", 0)], f"{name}.places")
    w.parts[name] = {"boxes": places, "scores": best, "classes": label, "used": used}
    if op.name not in {o.op for o in w.graph.outputs}:
        return best  # its parts are what is read
    columns = [w.node("Unsqueeze", [x, last], f"{x}.column") for x in (best, label)]
    return w.node("Concat", [places, *columns], f"{name}.out", axis=2)


def detected(w: Writer, op: Op, _detections: str) -> str:
    parts = w.parts[op.inputs[0]]
    if op.part != "count":
        return parts[op.part or ""]
    used = w.node("Cast", [parts["used"]], f"{op.name}.ones", to=proto.TYPES["float32"])
    return w.node("ReduceSum", [used, _whole(w, f"{op.name}.axis", 1)], f"{op.name}.out", keepdims=0)
