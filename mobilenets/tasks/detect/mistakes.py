"""What a detector gets wrong in an image, by kind. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mobilenets.data.boxes import Boxes
from mobilenets.tasks.detect.anchors import overlaps
from mobilenets.tasks.detect.answers import Detection

Kind = Literal["missed", "double", "wrong class", "badly placed", "nothing there"]
RIGHT, NEAR = 0.5, 0.1  # overlaps: of a box in its place; of one that means an object, but is badly placed


@dataclass(frozen=True)
class Mistake:
    """One of them: its `kind`, the `box` x1, y1, x2, y2 that was said, or missed; how sure, 0 of a missed one.

    `true`: the label's index of the object, None where there is none; `said`: of the answer, None of a missed one.
    """

    kind: Kind
    box: tuple[float, float, float, float]
    score: float
    true: int | None
    said: int | None


def mistakes(found: tuple[Detection, ...], target: Boxes) -> tuple[list[Mistake], list[tuple[int, int]]]:
    """An image's mistakes, and (true, said) of the objects that were found; both in pixels of the image.

    The surest answer takes the object that it overlaps most, as in COCO's evaluation at an overlap of one half. An
    object that is taken for another class isn't missed besides; an answer on a crowd is neither right nor wrong.
    """
    crowd = target.crowd
    true, classes = target.xyxy[~crowd], target.classes[~crowd]
    boxes = np.array([d.box for d in found], np.float32).reshape(-1, 4)
    near, on_crowd = overlaps(boxes, true), overlaps(boxes, target.xyxy[crowd])
    taken, mistaken = np.zeros(len(true), bool), np.zeros(len(true), bool)
    wrong: list[Mistake] = []
    right: list[tuple[int, int]] = []
    for i in np.argsort([-d.score for d in found], kind="stable").tolist():
        d, same = found[i], classes == found[i].index
        free = np.where(same & ~taken, near[i], 0.0)
        if len(true) and free.max() >= RIGHT:
            taken[free.argmax()] = True
            right.append((d.index, d.index))
            continue
        if on_crowd.shape[1] and on_crowd[i].max() >= NEAR:
            continue
        at = int(near[i].argmax()) if len(true) else -1
        overlap = float(near[i, at]) if len(true) else 0.0
        kind: Kind = "nothing there"
        if overlap >= RIGHT:
            kind = "double" if same[at] else "wrong class"
            mistaken[at] |= not same[at]
        elif overlap >= NEAR:
            kind = "badly placed"
        wrong.append(Mistake(kind, d.box, d.score, int(classes[at]) if overlap >= NEAR else None, d.index))
    for j in np.flatnonzero(~taken & ~mistaken).tolist():
        x1, y1, x2, y2 = true[j].tolist()
        wrong.append(Mistake("missed", (x1, y1, x2, y2), 0.0, int(classes[j]), None))
    return wrong, right
