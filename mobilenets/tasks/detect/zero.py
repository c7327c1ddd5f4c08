"""Why a detector finds nothing: what users meet most with SSDs is a loss that falls and an mAP of 0. No torch.

Each known cause is tried on what the network said: where the boxes come right by undoing it, it is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mobilenets.tasks.detect.anchors import best_overlaps, overlaps
from mobilenets.tasks.detect.config import Config
from mobilenets.tasks.detect.decode import Found

NOTHING = 1.0  # percent of AP50 below which nothing was found
SURE = 0.3  # of the objects' share that another reading has to find
FEW = 0.25  # of the objects with an anchor that matches
LOW = 0.05  # a score that says nothing
LOOKED_AT = 64  # images
MOST = 10  # boxes of each


@dataclass(frozen=True)
class Case:
    """One image's answers and objects, boxes in 0..1 of it: what was found, boxes [M, 4] and classes [M]."""

    found: Found
    boxes: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]


def recall(cases: Sequence[Case], by_class: bool = True) -> float:
    """The share of objects that one of the best boxes of their image overlaps by one half, and calls rightly."""
    right = total = 0
    for case in cases:
        total += len(case.boxes)
        some = case.found.some(slice(MOST))
        if not len(some) or not len(case.boxes):
            continue
        fits = overlaps(case.boxes, some.boxes) >= 0.5
        if by_class:
            fits &= case.classes[:, None] == some.classes[None]
        right += int(fits.any(1).sum())
    return right / max(total, 1)


def _moved(cases: Sequence[Case], how: Callable[[Found], Found]) -> list[Case]:
    return [replace(c, found=how(c.found)) for c in cases]


def _columns(order: tuple[int, int, int, int]) -> Callable[[Found], Found]:
    return lambda f: replace(f, boxes=f.boxes[:, list(order)])


def _shifted(by: int) -> Callable[[Found], Found]:
    return lambda f: replace(f, classes=f.classes + by)


def _from_centres(found: Found) -> Found:
    half = found.boxes[:, 2:] / 2
    return replace(found, boxes=np.concatenate([found.boxes[:, :2] - half, found.boxes[:, :2] + half], 1))


def _from_length(found: Found) -> Found:
    return replace(found, boxes=np.concatenate([found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]], 1))


def why(cases: Sequence[Case], config: Config | None, epochs: int = 0) -> str:
    """A line that says why next to nothing was found, or what was ruled out; empty where there is nothing to find.

    `epochs`: after how many of a training it is asked; 0 of a finished network.
    """
    cases = list(cases)[:LOOKED_AT]
    if not any(len(c.boxes) for c in cases):
        return ""
    said = "nothing was found: "
    boxes = np.concatenate([c.boxes for c in cases])
    sizes = boxes[:, 2:] - boxes[:, :2]
    if sizes.max() > 2 or np.median(sizes) < 1e-3:
        return f"{said}the objects' boxes aren't on their images: were they in pixels, or relative?"
    if config is not None:
        near = best_overlaps(config.anchors, boxes) >= 0.5
        if near.mean() < FEW:
            median = np.median(sizes, 0) * 100
            return (
                f"{said}only {100 * near.mean():.0f}% of the boxes have an anchor that matches (their median is "
                f"{median[0]:.1f}% x {median[1]:.1f}% of the image): fit anchors to them (--anchors auto), or take a "
                "larger --resolution"
            )
    everything = np.concatenate([c.found.boxes for c in cases])
    if not len(everything):
        return f"{said}no box has a score: the background takes all; {_patience(epochs)}"
    if everything.max() > 4:
        return f"{said}the network's boxes go to {everything.max():.0f} where 1 is the whole image: they are in pixels"
    for text, how in (
        ("the order of the boxes' numbers: x and y are exchanged (y x h w and x y w h coders)", _columns((1, 0, 3, 2))),
        ("the boxes' form: they are a centre and a size, read as corners", _from_centres),
        ("the boxes' form: they are a corner and a size, read as corners", _from_length),
    ):
        if recall(_moved(cases, how), by_class=False) > max(SURE, 2 * recall(cases, by_class=False)):
            return f"{said}it is {text}"
    if recall(cases, by_class=False) > SURE:
        for by in (1, -1):
            if recall(_moved(cases, _shifted(by))) > SURE:
                side = "too low" if by == 1 else "too high"
                return f"{said}the boxes are right and their classes {side} by one: is the background counted twice?"
        if recall(cases) < SURE:
            return f"{said}the boxes are right and their classes aren't: are the labels in the network's order?"
    best = max(float(c.found.scores.max(initial=0)) for c in cases)
    if best < LOW:
        return f"{said}no score is above {best:.3f} yet; {_patience(epochs)}"
    same = np.ptp(np.stack([c.found.boxes[0] for c in cases if len(c.found)]), 0).max() < 0.02
    if same and len(cases) > 2:
        return (
            f"{said}the best box is the same one in every image: images come in another range than in training "
            "(mean and std), or the BatchNorm statistics aren't of these images"
        )
    return f"{said}box order, classes and anchors are as they should be; {_patience(epochs)}"


def _patience(epochs: int) -> str:
    if epochs:
        return f"after {epochs} epoch{'s' * (epochs > 1)} that may be too early to say, unless the loss doesn't fall"
    return "is the preprocessing (mean, std, framing) the one that it was trained with?"
