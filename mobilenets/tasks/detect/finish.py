"""A detector's bundle with what makes boxes of its offsets and scores, as operations of its graph. No torch.

So they are in every file whose runtime has them; of any other file, `decode` makes them.
"""

from __future__ import annotations

import dataclasses

from mobilenets.arch.boxes import MOST, PARTS, Coder, Part, Suppression
from mobilenets.arch.detectors.heads import OFFSETS, PREFIX, SCORES
from mobilenets.arch.graph import Head, Output
from mobilenets.arch.operations import Op
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card
from mobilenets.tasks.detect.anchors import centres_and_sizes
from mobilenets.tasks.detect.config import Config

BOXES, FOUND = f"{PREFIX}.boxes", f"{PREFIX}.found"
MEANINGS: dict[Part, str] = {
    "boxes": "x1, y1, x2, y2, from 0 to 1 of the image, the surest first; zeros past the count",
    "scores": "of each box",
    "classes": "of each box, the first label 0",
    "count": "boxes that there are",
}


def is_finished(bundle: Bundle) -> bool:
    """Whether a bundle's outputs are boxes already."""
    return BOXES in bundle.card.graph.by_name


def box_layers(card: Card) -> tuple[str, ...]:
    """The last layers before the offsets, of either stage where there are two."""
    graph = card.graph
    found: list[str] = []
    todo = [o.op for o in card.head.outputs if o.name == OFFSETS]
    todo += [op.inputs[-1] for op in graph.ops if op.coder]  # which reads offsets last
    while todo:
        op = graph.by_name.get(todo.pop())
        if op is not None and op.is_layer:
            found.append(op.name)
        elif op is not None:
            todo += op.inputs
    return tuple(op.name for op in graph.ops if op.name in found)


def finished(bundle: Bundle) -> Bundle:
    """The same detector whose outputs are `boxes` [K, 4], `scores` [K], `classes` [K] and `count` []."""
    if is_finished(bundle):
        return bundle
    card, config = bundle.card, Config.of(bundle.card.config)
    how = config.suppression
    coder = Coder("yxhw" if config.coder.order == "yxhw" else "xywh", config.coder.scales)
    per_class, most = (min(n, MOST) for n in (how.per_class, how.most))
    suppression = Suppression(how.score, how.iou, per_class, most, config.background, how.together)
    given = {o.name: o.op for o in card.head.outputs}
    # An output is called scores too: a file has each name once.
    scores = f"{PREFIX}.{SCORES}"
    renamed = {given[SCORES]: scores} if given[SCORES] == SCORES else {}
    scores = renamed.get(given[SCORES], given[SCORES])
    raw = tuple(
        dataclasses.replace(
            op, name=renamed.get(op.name, op.name), inputs=tuple(renamed.get(i, i) for i in op.inputs)
        )
        for op in card.head.ops
    )  # fmt: skip
    columns = config.columns
    ops = (
        Op(BOXES, "boxes", 4, 4, inputs=(given[OFFSETS],), coder=coder),
        Op(FOUND, "suppress", columns, 6, inputs=(BOXES, scores), suppression=suppression),
        *(Op(f"{FOUND}.{part}", "detected", 6, 4 if part == "boxes" else 1, inputs=(FOUND,), part=part)
          for part in PARTS),
    )  # fmt: skip
    outputs = tuple(Output(part, f"{FOUND}.{part}", MEANINGS[part]) for part in PARTS)
    head = Head((*raw, *ops), outputs, card.head.own)
    tensors = {**bundle.tensors, f"{BOXES}.anchors": centres_and_sizes(config.anchors).copy()}
    return Bundle(card.replace(head=head), tensors, bundle.digest)
