"""What detectors end in, as steps of our own engine (`native/src/detect.c`). No torch.

Rows [A, C] are a map of one row, A pixels and C channels. Those that are stacked are written where they belong at once;
scores that only the suppression reads are left to it, which computes those that it needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mobilenets.arch.boxes import PARTS
from mobilenets.arch.graph import Graph
from mobilenets.arch.operations import Op
from mobilenets.deploy.lowering import Lowered
from mobilenets.deploy.writers.native_plan import Step, Value

COLUMNS = dict(zip(PARTS, (0, 4, 5, 4), strict=True))  # of detections: where a part begins; the count is of scores
READY, LOGITS, SOFTMAXED = 0, 1, 2  # what scores are when the suppression reads them


class Writer(Protocol):
    """The part of `native`'s writer that is used here."""

    lowered: Lowered
    graph: Graph
    steps: list[Step]
    alias: dict[str, str]
    outputs: set[str]
    scores: dict[str, int]

    def value(self, name: str) -> Value: ...

    def step(self, op: Op, kind: str, **numbers: Any) -> Step: ...

    def whole(self, name: str) -> bool: ...

    def table(self, name: str, out: str, activation: str | None = None) -> npt.NDArray[Any]: ...

    def each(self, op: Op) -> None: ...


def rows(w: Writer, op: Op) -> None:
    if not _only(w, op.name, "stack"):
        w.step(op, "spread", first=0)


def stack(w: Writer, op: Op) -> None:
    w.value(op.name)
    first = 0
    for name in op.inputs:
        before = w.graph.by_name.get(name)
        direct = before is not None and before.kind == "rows" and _only(w, name, "stack")
        source = before.inputs[0] if direct and before is not None else name
        made = w.step(op, "spread", first=first)
        made.name, made.inputs = name, (w.alias.get(source, source),)
        first += w.graph.shapes[name][0]


def upsample(w: Writer, op: Op) -> None:
    numbers = {"lut": w.table(op.inputs[0], op.name)} if w.whole(op.name) else {}
    made = w.step(op, "upsample", **numbers)
    made.inputs = made.inputs[:1]


def scores(w: Writer, op: Op) -> None:
    """A sigmoid or a softmax."""
    (suppressing, *others), before = w.graph.readers[op.name] or (None,), op.inputs[0]
    if suppressing and suppressing.kind == "suppress" and not others and op.name not in w.outputs:
        how = suppressing.suppression
        mine = len(w.graph.readers[before]) == 1 and before not in w.outputs  # the softmax is computed in its place
        if op.kind == "sigmoid" or (op.kind == "softmax" and how is not None and how.background and mine):
            w.scores[op.name] = LOGITS if op.kind == "sigmoid" else SOFTMAXED
            w.alias[op.name] = w.alias.get(before, before)
            return
    w.each(op)


def boxes(w: Writer, op: Op) -> None:
    assert op.coder is not None
    anchors = w.lowered.tensors[f"{op.name}.anchors"].astype(np.float32)
    turned = op.coder.order == "yxhw"
    x, y, width, height = np.array(op.coder.scales, np.float32)[[1, 0, 3, 2] if turned else [0, 1, 2, 3]]
    half = anchors[:, 2:] / 2
    table = np.concatenate([anchors[:, :2], anchors[:, 2:] / np.array([x, y]), half], 1).astype("<f4")
    w.step(op, "boxes", lut=table, a=float(1 / width), b=float(1 / height), first=int(turned))


def suppress(w: Writer, op: Op) -> None:
    assert op.suppression is not None
    how, kind = op.suppression, w.scores.get(op.inputs[1], READY)
    least = how.score if kind == READY else _logit(how.score)
    made = w.step(op, "suppress", a=least, b=how.iou, first=int(how.background), act=kind)
    made.stride = 0 if how.together else how.per_class


def detected(w: Writer, op: Op) -> None:
    assert op.part is not None
    w.step(op, "count" if op.part == "count" else "part", first=COLUMNS[op.part])


def _only(w: Writer, name: str, kind: str) -> bool:
    """Whether a value is for operations of one kind alone."""
    return name not in w.outputs and {r.kind for r in w.graph.readers[name]} == {kind}


def _logit(p: float) -> float:
    return math.log(p / (1 - p)) if 0 < p < 1 else math.inf * (1 if p else -1)


EMIT: Mapping[str, Any] = {
    "rows": rows,
    "stack": stack,
    "upsample": upsample,
    "sigmoid": scores,
    "softmax": scores,
    "boxes": boxes,
    "suppress": suppress,
    "detected": detected,
}
