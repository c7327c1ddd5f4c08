"""What detectors end in, in Core ML's intermediate language: rows of answers, boxes, and their suppression.

From the offsets and scores on, in 32-bit floats: 16 bits have three digits, too few for a box's place. Of the pairs of
a box and a class the best are suppressed at once, those of two classes moved apart so that they never overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from coremltools.converters.mil import Builder as mb  # noqa: N813  as Apple's own programs call it

from mobilenets.arch.graph import Graph
from mobilenets.arch.operations import Op
from mobilenets.deploy.lowering import Lowered, unsupported

NAME = "Core ML"
LOOKED_AT = 10  # pairs of a box and a class, for each that may be kept
APART = np.float32(8)  # sides of the image
GRID = 16  # classes side by side


class Writer(Protocol):
    """The part of `coreml`'s writer that is used here."""

    lowered: Lowered
    graph: Graph
    parts: dict[str, Mapping[str, Any]]


def _wide(x: Any, name: str) -> Any:
    return mb.cast(x=x, dtype="fp32", name=name)


def rows(w: Writer, op: Op, x: Any) -> Any:
    last = mb.transpose(x=x, perm=[0, 2, 3, 1], name=f"{op.name}.last")
    return mb.reshape(x=last, shape=[1, *w.graph.shapes[op.name]], name=f"{op.name}.out")


def stack(_w: Writer, op: Op, *inputs: Any) -> Any:
    return mb.concat(values=inputs, axis=1, name=f"{op.name}.out")


def upsample(w: Writer, op: Op, x: Any, _like: Any) -> Any:
    """Rows and columns are picked: a whole factor or not."""
    (_, *before), (_, *after) = w.graph.shapes[op.inputs[0]], w.graph.shapes[op.name]
    for axis, (a, b) in enumerate(zip(before, after, strict=True), 2):
        nearest = (np.arange(b) * a // b).astype(np.int32)
        x = mb.gather(x=x, indices=nearest, axis=axis, name=f"{op.name}.{'rows' if axis == 2 else 'out'}")
    return x


def boxes(w: Writer, op: Op, offsets: Any) -> Any:
    assert op.coder is not None
    name = op.name
    anchors = w.lowered.tensors[f"{name}.anchors"].astype(np.float32)[None]
    scales = np.array(op.coder.scales, np.float32)
    x = _wide(offsets, f"{name}.wide")
    if op.coder.order == "yxhw":
        scales = scales[[1, 0, 3, 2]]
        x = mb.gather(x=x, indices=np.array([1, 0, 3, 2], np.int32), axis=2, name=f"{name}.xywh")
    at, size = mb.split(x=x, num_splits=2, axis=2, name=f"{name}.halves")
    middle = mb.add(x=mb.mul(x=at, y=anchors[..., 2:] / scales[:2]), y=anchors[..., :2], name=f"{name}.middle")
    half = mb.mul(x=mb.exp(x=mb.mul(x=size, y=1 / scales[2:])), y=anchors[..., 2:] / 2, name=f"{name}.half")
    corners = [mb.sub(x=middle, y=half, name=f"{name}.low"), mb.add(x=middle, y=half, name=f"{name}.high")]
    return mb.concat(values=corners, axis=2, name=f"{name}.out")


def suppress(w: Writer, op: Op, corners: Any, scores: Any) -> Any:
    how, name = op.suppression, op.name
    assert how is not None
    count, classes = w.graph.shapes[op.inputs[1]]
    first = int(how.background)
    classes -= first
    pairs = min(LOOKED_AT * how.most, count * classes)
    if how.per_class < how.most or not 1 < how.most <= pairs:
        raise unsupported(NAME, op)
    of_labels = mb.slice_by_size(
        x=_wide(scores, f"{name}.wide"), begin=[0, 0, first], size=[1, count, classes], name=f"{name}.labels"
    )
    flat = mb.reshape(x=of_labels, shape=[1, count * classes], name=f"{name}.flat")
    values, which = mb.topk(x=flat, k=pairs, axis=1, name=f"{name}.pairs")
    box = mb.reshape(x=mb.floor_div(x=which, y=np.int32(classes)), shape=[pairs], name=f"{name}.box")
    label = mb.mod(x=which, y=np.int32(classes), name=f"{name}.label")
    places = mb.gather(x=_wide(corners, f"{name}.corners"), indices=box, axis=1, name=f"{name}.places")
    steps = [
        mb.mul(x=_wide(kind(x=label, y=np.int32(GRID)), f"{name}.{by}"), y=np.float32(0) if how.together else APART)
        for kind, by in ((mb.mod, "across"), (mb.floor_div, "down"))
    ]
    moves = mb.stack(values=steps, axis=2, name=f"{name}.moves")
    low, high = mb.split(x=places, num_splits=2, axis=2, name=f"{name}.ends")
    middle = mb.add(x=mb.mul(x=mb.add(x=low, y=high), y=np.float32(0.5)), y=moves, name=f"{name}.middle")
    apart = mb.concat(values=[middle, mb.sub(x=high, y=low)], axis=2, name=f"{name}.apart")  # centres and sizes
    _, _, index = mb.non_maximum_suppression(
        boxes=mb.transpose(x=apart, perm=[0, 2, 1]), scores=mb.expand_dims(x=values, axes=[1]),
        iou_threshold=np.float32(how.iou), max_boxes=how.most, per_class_suppression=False, name=f"{name}.kept",
    )  # fmt: skip
    # Pairs are in the order of their scores, so that the numbers of those that are kept rise; what the operation fills
    # its output up with doesn't, whatever it is.
    before = mb.slice_by_size(x=index, begin=[0, 0], size=[1, how.most - 1], name=f"{name}.but_last")
    before = mb.concat(values=[np.full((1, 1), -1, np.int32), before], axis=1, name=f"{name}.before")
    at = mb.reshape(x=mb.maximum(x=index, y=np.int32(0)), shape=[how.most], name=f"{name}.at")
    kept = mb.gather(x=values, indices=at, axis=1, name=f"{name}.of_pairs")
    good = mb.greater(x=kept, y=np.float32(how.score), name=f"{name}.good")
    used = mb.logical_and(x=good, y=mb.greater(x=index, y=before), name=f"{name}.used")
    ones = _wide(used, f"{name}.ones")
    zero = np.float32(0)
    chosen = mb.gather(x=places, indices=at, axis=1, name=f"{name}.chosen")
    chosen = mb.select(cond=mb.expand_dims(x=used, axes=[2]), a=chosen, b=zero, name=f"{name}.boxes")
    best = mb.select(cond=used, a=kept, b=zero, name=f"{name}.scores")
    labels = _wide(mb.gather(x=label, indices=at, axis=1), f"{name}.of_kept")
    labels = mb.mul(x=labels, y=ones, name=f"{name}.classes")
    total = mb.reduce_sum(x=ones, axes=[1], keep_dims=False, name=f"{name}.count")
    w.parts[name] = {"boxes": chosen, "scores": best, "classes": labels, "count": total}
    columns = [mb.expand_dims(x=x, axes=[2]) for x in (best, labels)]
    return mb.concat(values=[chosen, *columns], axis=2, name=f"{name}.out")


def detected(w: Writer, op: Op, _detections: Any) -> Any:
    return w.parts[op.inputs[0]][op.part or ""]


EMIT: Mapping[str, Any] = {
    "rows": rows,
    "stack": stack,
    "upsample": upsample,
    "boxes": boxes,
    "suppress": suppress,
    "detected": detected,
}
