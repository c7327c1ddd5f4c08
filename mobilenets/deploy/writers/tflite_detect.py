"""What detectors end in, as TFLite has it: rows of answers, boxes, and its own operator for what comes after. No torch.

TFLite_Detection_PostProcess decodes and suppresses at once, of one image: so programs for TensorFlow's detectors read
these files too. Its regular suppression is by class, as ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

from mobilenets.arch import graph as graphs
from mobilenets.arch.operations import Op
from mobilenets.deploy.lowering import Lowered, unsupported
from mobilenets.deploy.writers.tflite_graph import Graph
from mobilenets.errors import UserError

NAME = "TFLite"
# Boxes that are looked at, for each that may be kept: TFLite compares them class by class, 2,000 of 80 classes in three
# times the network's time. Five where PAIRS of a box and a class allow it; of many classes two, which cost .02 AP.
FEWEST, LOOKED_AT, PAIRS = 2, 5, 10_000
POSTPROCESS = "TFLite_Detection_PostProcess"
TURNED = [1, 0, 3, 2]  # columns y, x, ... as x, y, ...
# The order in which TensorFlow's detectors give their answers.
ORDER = ("boxes", "classes", "scores", "count")
Array = npt.NDArray[Any]


class Writer(Protocol):
    """The part of `tflite`'s writer that is used here."""

    lowered: Lowered
    source: graphs.Graph
    graph: Graph
    values: dict[str, int]
    parts: dict[str, Mapping[str, int]]

    def shape(self, name: str) -> tuple[int, ...]: ...

    def value(self, name: str, like: str) -> int: ...

    def integers(self, name: str, *values: Any) -> int: ...

    def reshape(self, name: str, x: int, *shape: int) -> int: ...

    def affine(self, name: str) -> Any: ...


def rows(w: Writer, op: Op, x: int) -> int:
    """Channels are last here already."""
    return w.reshape(op.name, x, *w.shape(op.name))


def stack(w: Writer, op: Op, *inputs: int) -> int:
    out = w.graph.value(op.name, w.shape(op.name), "float32")
    return w.graph.op("CONCATENATION", inputs, out, schema.ConcatenationOptionsT(axis=1))


def upsample(w: Writer, op: Op, x: int, _like: int) -> int:
    height, width, _ = w.shape(op.name)
    kind = "int8" if op.name in w.source.integers else "float32"
    like = w.affine(op.inputs[0]) if kind == "int8" else None
    made = w.graph.value(f"{op.name}.nearest", w.shape(op.name), kind, like)
    size = w.integers(f"{op.name}.size", height, width)
    made = w.graph.op("RESIZE_NEAREST_NEIGHBOR", [x, size], made, schema.ResizeNearestNeighborOptionsT())
    return w.graph.op("QUANTIZE", [made], w.value(op.name, op.name)) if kind == "int8" else made


def _binary(w: Writer, kind: str, name: str, x: int, y: int, columns: int) -> int:
    count = int(w.graph.tensors[x].shape[1])
    out = w.graph.value(name, (count, columns), "float32")
    return w.graph.op(kind, [x, y], out, getattr(schema, f"{kind.capitalize()}OptionsT")())


def _turned(w: Writer, name: str, x: int) -> int:
    """Columns y, x of rows [N, A, 4] as x, y, or back."""
    out = w.graph.value(name, (int(w.graph.tensors[x].shape[1]), 4), "float32")
    order = w.integers(f"{name}.order", *TURNED)
    return w.graph.op("GATHER", [x, order], out, schema.GatherOptionsT(axis=2))


def boxes(w: Writer, op: Op, offsets: int) -> int:
    """By the operator that suppresses, if nothing else reads them."""
    assert op.coder is not None
    name, given = op.name, {o.op for o in w.source.outputs}
    if name not in given and all(r.kind == "suppress" for r in w.source.readers[name]):
        return offsets
    anchors = w.lowered.tensors[f"{name}.anchors"]
    scales = np.array(op.coder.scales, np.float32)
    if op.coder.order == "yxhw":
        scales, offsets = scales[TURNED], _turned(w, f"{name}.xywh", offsets)
    parts = [w.graph.value(f"{name}.{k}", (len(anchors), 2), "float32") for k in ("at", "size")]
    axis, options = w.integers(f"{name}.axis", 2), schema.SplitOptionsT(numSplits=2)
    at, size = w.graph.ops("SPLIT", [w.graph.scalar(axis), offsets], parts, options)
    at = _binary(w, "MUL", f"{name}.shift", at, w.graph.const(f"{name}.step", anchors[None, :, 2:] / scales[:2]), 2)
    middle = _binary(w, "ADD", f"{name}.middle", at, w.graph.const(f"{name}.centre", anchors[None, :, :2].copy()), 2)
    size = _binary(w, "MUL", f"{name}.log", size, w.graph.const(f"{name}.unit", (1 / scales[2:])[None, None]), 2)
    grown = w.graph.value(f"{name}.times", (len(anchors), 2), "float32")
    grown = w.graph.op("EXP", [size], grown, schema.ExpOptionsT())
    half = _binary(w, "MUL", f"{name}.half", grown, w.graph.const(f"{name}.wide", anchors[None, :, 2:] / 2), 2)
    corners = [_binary(w, kind, f"{name}.{kind.lower()}", middle, half, 2) for kind in ("SUB", "ADD")]
    out = w.graph.value(name, (len(anchors), 4), "float32")
    return w.graph.op("CONCATENATION", corners, out, schema.ConcatenationOptionsT(axis=2))


def suppress(w: Writer, op: Op, _corners: int, scores: int) -> int:
    before = w.source.by_name.get(op.inputs[0])
    if before is None or before.coder is None or op.name in {o.op for o in w.source.outputs}:
        raise unsupported(NAME, op)
    assert op.suppression is not None
    how, coder, name = op.suppression, before.coder, op.name
    turned = coder.order == "yxhw"  # the operator's own order; given x first, it takes x for y, and gives it first
    anchors = np.ascontiguousarray(w.lowered.tensors[f"{before.name}.anchors"])
    anchors = anchors[:, TURNED] if turned else anchors
    columns = w.source.shapes[op.inputs[1]][1]
    options: dict[str, bool | int | float] = {
        "max_detections": how.most,
        "max_classes_per_detection": 1,
        "detections_per_class": how.per_class,
        "use_regular_nms": not how.together,
        "nms_score_threshold": how.score,
        "nms_iou_threshold": how.iou,
        "num_classes": columns - how.background,
        **dict(zip(("y_scale", "x_scale", "h_scale", "w_scale"), map(float, coder.scales), strict=True)),
    }
    shapes = {"boxes": (how.most, 4), "classes": (how.most,), "scores": (how.most,), "count": ()}
    outs = {k: w.graph.value(f"{name}.{k}", shapes[k], "float32") for k in ORDER}
    inputs = [w.values[before.inputs[0]], scores, w.graph.const(f"{before.name}.anchors", anchors)]
    few = min(max(PAIRS // (columns - how.background), FEWEST * how.most), LOOKED_AT * how.most)
    if len(anchors) > few:
        inputs = _best(w, name, few, inputs, how.background)
    w.graph.custom(POSTPROCESS, inputs, list(outs.values()), _flexible(options))
    if turned:
        outs["boxes"] = _turned(w, f"{name}.xyxy", outs["boxes"])
    w.parts[name] = outs
    return outs["scores"]


def _best(w: Writer, name: str, count: int, inputs: Sequence[int], background: bool) -> list[int]:
    """Offsets [1, A, 4], scores [1, A, C], anchors [A, 4] of the boxes that have the best score of any class."""
    g, (offsets, scores, anchors) = w.graph, inputs
    _, boxes, columns = map(int, g.tensors[scores].shape)
    labels = columns - background
    of_labels = scores
    if background:
        begin, size = (w.integers(f"{name}.{k}", *v) for k, v in (("begin", (0, 0, 1)), ("extent", (1, boxes, labels))))
        of_labels = g.value(f"{name}.labels", (boxes, labels), "float32")
        of_labels = g.op("SLICE", [scores, begin, size], of_labels, schema.SliceOptionsT())
    most, axis = g.value(f"{name}.greatest", (boxes,), "float32"), w.integers(f"{name}.axis", 2)
    most = g.op("REDUCE_MAX", [of_labels, axis], most, schema.ReducerOptionsT(keepDims=False))
    top = [g.value(f"{name}.top", (count,), "float32"), g.value(f"{name}.places", (count,), "int32")]
    _, places = g.ops("TOPK_V2", [most, g.scalar(w.integers(f"{name}.number", count))], top, schema.TopKV2OptionsT())
    which = g.op("RESHAPE", [places, w.integers(f"{name}.vector", count)], g.alone(f"{name}.which", (count,), "int32"),
                 schema.ReshapeOptionsT())  # fmt: skip
    few = [
        g.op("GATHER", [x, which], g.value(f"{name}.few.{k}", (count, n), "float32"), schema.GatherOptionsT(axis=1))
        for k, x, n in (("offsets", offsets, 4), ("scores", scores, columns))
    ]
    own = g.alone(f"{name}.few.anchors", (count, 4), "float32")
    return [*few, g.op("GATHER", [anchors, which], own, schema.GatherOptionsT(axis=0))]


def detected(w: Writer, op: Op, _detections: int) -> int:
    return w.parts[op.inputs[0]][op.part or ""]


def _flexible(options: Mapping[str, bool | int | float]) -> bytes:
    """A map as an operator of TFLite's own extensions reads it."""
    builder = flexbuffers.Builder()
    with builder.Map():
        for key, value in options.items():
            builder.Key(key)
            {bool: builder.Bool, int: builder.Int}.get(type(value), builder.Float)(value)
    return bytes(builder.Finish())


def check_batch(graph: graphs.Graph, batch: int | None) -> int | None:
    """The batch of a file: one where it suppresses boxes. Raises `UserError` for any other."""
    if not any(op.kind == "suppress" for op in graph.ops):
        return batch
    if batch not in (None, 1):
        raise UserError(f"a TFLite file that gives boxes takes one image in a call, not {batch}; leave the batch out")
    return 1
