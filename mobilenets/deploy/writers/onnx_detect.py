"""What detectors end in, as ONNX nodes: rows of answers, boxes, and the best of them. No torch.

Suppressing 90 classes of 2,000 boxes each takes ONNX Runtime a quarter of a network's time. So the best pairs of a box
and a class are taken first, and all classes suppressed at once, their boxes moved apart. NonMaxSuppression gives what
it keeps of all images as one list: the scores of that are put back where they were, zeros around them, and the best of
each image taken from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mobilenets.arch.graph import Graph
from mobilenets.arch.operations import Op
from mobilenets.deploy.lowering import Lowered, Weights
from mobilenets.deploy.writers import proto

Array = npt.NDArray[Any]
LOOKED_AT = 10  # pairs of a box and a class, for each that may be kept
APART = 8.0  # sides of the image


class Writer(Protocol):
    """The part of `onnx`'s writer that is used here."""

    lowered: Lowered
    graph: Graph
    nodes: list[bytes]
    parts: dict[str, Mapping[str, str]]

    def parameters(self, op: Op, w: Weights, axis: int | None = None) -> list[str]: ...

    def activation(self, op: Op, x: str) -> str: ...

    def const(self, name: str, value: Array) -> str: ...

    def number(self, name: str, value: float) -> str: ...

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str: ...


def whole(w: Writer, name: str, *values: int) -> str:
    return w.const(name, np.array(values, np.int64))


def rows(w: Writer, op: Op, x: str) -> str:
    last = w.node("Transpose", [x], f"{op.name}.last", perm=[0, 2, 3, 1])
    return w.node("Reshape", [last, whole(w, f"{op.name}.shape", 0, -1, op.cout)], f"{op.name}.out")


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


def columns(w: Writer, name: str, x: str, axis: int, first: int, end: int) -> str:
    bounds = [whole(w, f"{name}.{k}", v) for k, v in (("first", first), ("end", end), ("axis", axis))]
    return w.node("Slice", [x, *bounds], name)


def boxes(w: Writer, op: Op, offsets: str) -> str:
    assert op.coder is not None
    name = op.name
    anchors = w.lowered.tensors[f"{name}.anchors"]
    scales = np.array(op.coder.scales, np.float32)
    if op.coder.order == "yxhw":
        scales = scales[[1, 0, 3, 2]]
        offsets = w.node("Gather", [offsets, whole(w, f"{name}.order", 1, 0, 3, 2)], f"{name}.xywh", axis=2)
    at, size = (columns(w, f"{name}.{k}", offsets, 2, i, i + 2) for k, i in (("at", 0), ("size", 2)))
    at = w.node("Mul", [at, w.const(f"{name}.step", anchors[None, :, 2:] / scales[:2])], f"{name}.shift")
    middle = w.node("Add", [at, w.const(f"{name}.anchors.centre", anchors[None, :, :2])], f"{name}.middle")
    size = w.node("Mul", [size, w.const(f"{name}.unit", 1 / scales[2:])], f"{name}.log")
    size = w.node("Exp", [size], f"{name}.times")
    half = w.node("Mul", [size, w.const(f"{name}.anchors.half", anchors[None, :, 2:] / 2)], f"{name}.half")
    corners = [w.node(kind, [middle, half], f"{name}.{kind.lower()}") for kind in ("Sub", "Add")]
    return w.node("Concat", corners, f"{name}.out", axis=2)


def best(w: Writer, name: str, x: str, count: int) -> tuple[str, str]:
    """The `count` largest of each image's numbers, and where they are."""
    values, which = f"{name}.values", f"{name}.which"
    w.nodes.append(proto.node("TopK", [x, whole(w, f"{name}.count", count)], [values, which], values, axis=1))
    return values, which


def gathered(w: Writer, name: str, rows: str, which: str) -> str:
    """Of each image's rows those that are named."""
    index = w.node("Unsqueeze", [which, whole(w, "last", -1)], f"{name}.index")
    return w.node("GatherND", [rows, index], name, batch_dims=1)


def apart(w: Writer, name: str, places: str, label: str) -> str:
    """Boxes moved so that those of two classes never overlap: by classes in rows of 16, since floats keep fewer places
    of large numbers.
    """
    parts = []
    for kind, by in (("Mod", "across"), ("Div", "down")):
        steps = w.node(kind, [label, whole(w, "sixteen", 16)], f"{name}.{by}")
        steps = w.node("Cast", [steps], f"{name}.{by}.float", to=proto.TYPES["float32"])
        steps = w.node("Mul", [steps, w.number("apart", APART)], f"{name}.{by}.moved")
        parts.append(w.node("Unsqueeze", [steps, whole(w, "last", -1)], f"{name}.{by}.column"))
    moved = w.node("Concat", [*parts, *parts], f"{name}.moves", axis=2)
    return w.node("Add", [places, moved], f"{name}.apart")


def suppress(w: Writer, op: Op, corners: str, scores: str) -> str:
    """Of the pairs of box and class with the best scores, LOOKED_AT times as many as may be kept."""
    assert op.suppression is not None
    how, name = op.suppression, op.name
    count, classes = w.graph.shapes[op.inputs[1]]
    if how.background:
        classes -= 1
        scores = columns(w, f"{name}.classes", scores, 2, 1, classes + 1)
    pairs = min(LOOKED_AT * how.most, count * classes)
    flat = w.node("Reshape", [scores, whole(w, f"{name}.flat", 0, -1)], f"{name}.all")  # [N, A * C]
    values, which = best(w, f"{name}.pairs", flat, pairs)
    divisor, one = whole(w, f"{name}.number", classes), whole(w, "one_axis", 1)
    box = w.node("Div", [which, divisor], f"{name}.box")
    label = w.node("Mod", [which, divisor], f"{name}.class")
    places = gathered(w, f"{name}.of_pairs", corners, box)
    wide = w.node("Unsqueeze", [values, one], f"{name}.wide")  # [N, 1, pairs]
    if how.together:
        separate, by_class = places, wide
    elif how.per_class >= how.most:
        separate, by_class = apart(w, name, places, label), wide
    else:  # [N, C, pairs]: each score in the row of its class
        numbers = w.const(f"{name}.numbers", np.arange(classes, dtype=np.int64)[None, :, None])
        own = w.node("Equal", [w.node("Unsqueeze", [label, one], f"{name}.row"), numbers], f"{name}.own")
        separate, by_class = places, w.node("Where", [own, wide, w.number("zero", 0)], f"{name}.by_class")
    values, which = surest(w, op, separate, by_class, values, pairs)
    label = w.node("Cast", [label], f"{name}.label", to=proto.TYPES["float32"])
    return told(w, op, places, label, values, which)


def surest(w: Writer, op: Op, separate: str, by_class: str, values: str, count: int) -> tuple[str, str]:
    """Of each image's candidates, scored `values` [N, count], those that its `suppression` keeps, the best first.

    It looks at the boxes `separate` [N, count, 4] and their scores `by_class` [N, C, count]. Gives scores, zeros past
    the last, and where they are among the candidates: [N, most] each.
    """
    assert op.suppression is not None
    how, name = op.suppression, op.name
    limits = [
        whole(w, f"{name}.per_class", how.most if how.together else min(how.per_class, how.most)),
        w.const(f"{name}.iou", np.array([how.iou], np.float32)),
        w.const(f"{name}.least", np.array([how.score], np.float32)),
    ]
    kept = w.node("NonMaxSuppression", [separate, by_class, *limits], f"{name}.kept")  # [M, 3]: image, class, candidate
    at = w.node("Gather", [kept, whole(w, f"{name}.ends", 0, 2)], f"{name}.at", axis=1)
    zeros = w.node("ConstantOfShape", [w.node("Shape", [values], f"{name}.shape")], f"{name}.zeros")
    there = w.node("ScatterND", [zeros, at, w.node("GatherND", [values, at], f"{name}.scores")], f"{name}.there")
    if how.most > count:
        room = whole(w, f"{name}.room", 0, 0, 0, how.most - count)
        there = w.node("Pad", [there, room], f"{name}.more")
    values, which = best(w, f"{name}.best", there, how.most)
    if how.most > count:  # what was added is no candidate
        which = w.node("Mod", [which, whole(w, f"{name}.there_are", count)], f"{name}.real")
    return values, which


def picked(w: Writer, name: str, rows: str, which: str, used: str) -> str:
    """Of each image's rows [P] or [P, C] those that are named, zeros where none is used."""
    found = gathered(w, f"{name}.found", rows, which)
    return w.node("Where", [used, found, w.number("zero", 0)], name)


def told(w: Writer, op: Op, places: str, label: str, scores: str, which: str) -> str:
    """Detections, of candidates' `places` [N, P, 4] and labels [N, P] in float."""
    name = op.name
    used = w.node("Greater", [scores, w.number("zero", 0)], f"{name}.used")
    label = picked(w, f"{name}.classes.kept", label, which, used)
    row = w.node("Unsqueeze", [used, whole(w, "last", -1)], f"{name}.rows")
    places = picked(w, f"{name}.boxes.kept", places, which, row)
    w.parts[name] = {"boxes": places, "scores": scores, "classes": label, "used": used}
    if op.name not in {o.op for o in w.graph.outputs}:
        return scores  # its parts are what is read
    others = [w.node("Unsqueeze", [x, whole(w, "last", -1)], f"{x}.column") for x in (scores, label)]
    return w.node("Concat", [places, *others], f"{name}.out", axis=2)


def detected(w: Writer, op: Op, _detections: str) -> str:
    parts = w.parts[op.inputs[0]]
    if op.part != "count":
        return parts[op.part or ""]
    used = w.node("Cast", [parts["used"]], f"{op.name}.ones", to=proto.TYPES["float32"])
    return w.node("ReduceSum", [used, whole(w, f"{op.name}.axis", 1)], f"{op.name}.out", keepdims=0)
