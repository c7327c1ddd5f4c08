"""What detectors end in, as ncnn has it: rows of answers, and DetectionOutput, which decodes and suppresses. No torch.

It gives a blob of one row for each detection, as ncnn's own programs for SSD read it: class (1 for the first, 0 is the
background), score, x1, y1, x2, y2. The blob is called DETECTIONS; `boxes` and the other outputs are made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mobilenets.arch.graph import Graph
from mobilenets.arch.operations import Op
from mobilenets.deploy.lowering import Lowered, unsupported

NAME = "ncnn"
DETECTIONS = "detections"
CHANNELS_FIRST = 3  # an order of Permute: channels become the innermost axis
NEAREST = 1  # of Interp
LOOKED_AT = 2  # boxes of a class, for each that may be kept: the time that ncnn takes grows with their square
Array = npt.NDArray[Any]


class Writer(Protocol):
    """The part of `ncnn`'s writer that is used here."""

    lowered: Lowered
    graph: Graph
    blobs: dict[str, str]
    given: set[str]

    def add(
        self,
        kind: str,
        name: str,
        inputs: tuple[str, ...],
        parameters: Mapping[int, Any] | None = None,
        output: str = "",
    ) -> str: ...

    def floats(self, *values: Any) -> None: ...


def rows(w: Writer, op: Op, x: str) -> None:
    last = w.add("Permute", f"{op.name}.last", (x,), {0: CHANNELS_FIRST})
    count, width = w.graph.shapes[op.name]
    w.add("Reshape", op.name, (last,), {0: width, 1: count})


def upsample(w: Writer, op: Op, x: str, _like: str) -> None:
    _, height, width = w.graph.shapes[op.name]
    w.add("Interp", op.name, (x,), {0: NEAREST, 3: height, 4: width})


def boxes(w: Writer, op: Op, offsets: str) -> None:
    """The suppression decodes them."""
    if op.name in w.given or any(reader.kind != "suppress" for reader in w.graph.readers[op.name]):
        raise unsupported(NAME, op)
    w.blobs[op.name] = offsets


def suppress(w: Writer, op: Op, offsets: str, scores: str) -> None:
    """A coder that has y first gives boxes with y first, of anchors that have it first; then columns change places."""
    how, before = op.suppression, w.graph.by_name.get(op.inputs[0])
    assert how is not None
    coder = before.coder if before is not None else None
    inside = all(reader.kind == "detected" for reader in w.graph.readers[op.name]) and op.name not in w.given
    if coder is None or before is None or not inside or not how.background or how.per_class < how.most or how.together:
        raise unsupported(NAME, op)
    turned = coder.order == "yxhw"
    anchors = w.lowered.tensors[f"{before.name}.anchors"].reshape(-1, 2, 2)
    anchors = anchors[:, :, ::-1] if turned else anchors
    half = anchors[:, 1] / 2
    corners = np.concatenate([anchors[:, 0] - half, anchors[:, 0] + half], 1)
    count, classes = w.graph.shapes[op.inputs[1]]
    # Variances stand beside the anchors: of those that are given as numbers, ncnn reads no fourth one.
    w.floats(corners, np.tile(1 / np.array(coder.scales), count))
    prior = w.add("MemoryData", f"{before.name}.anchors", (), {0: 4 * count, 1: 2})
    flat = [w.add("Flatten", f"{op.name}.{k}", (x,)) for k, x in (("offsets", offsets), ("scores", scores))]
    numbers = {0: classes, 1: float(how.iou), 2: min(LOOKED_AT * how.most, count), 3: how.most, 4: float(how.score)}
    found = f"{op.name}.turned" if turned else DETECTIONS
    w.add("DetectionOutput", found, (*flat, prior), numbers)
    if turned:
        w.add("Permute", DETECTIONS, (_swapped(w, op.name, found),), {0: 1})


def _swapped(w: Writer, name: str, found: str) -> str:
    """Rows of class, score, y, x, y, x as columns of class, score, x, y, x, y."""
    columns = w.add("Permute", f"{name}.columns", (found,), {0: 1})
    order = ((0, 1), (1, 2), (3, 4), (2, 3), (5, 6), (4, 5))
    parts = tuple(
        w.add("Crop", f"{name}.column.{i}", (columns,), {9: (a,), 10: (b,), 11: (0,)}) for i, (a, b) in enumerate(order)
    )
    return w.add("Concat", f"{name}.swapped", parts, {0: 0})


def detected(_w: Writer, _op: Op, _found: str) -> None:
    """A part of DETECTIONS, which is what is given."""


EMIT: Mapping[str, Any] = {
    "rows": rows,
    "upsample": upsample,
    "boxes": boxes,
    "suppress": suppress,
    "detected": detected,
}
