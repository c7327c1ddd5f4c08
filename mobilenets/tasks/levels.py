"""Classes whose names are paths, as dog/beagle: how often an answer is right at each level. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mobilenets.data.labelling import SEPARATOR
from mobilenets.tasks.confusion import Confusion


@dataclass(frozen=True)
class Level:
    """The first `level` parts of the classes' names: `classes` differ, and `top1` percent of the images are right.

    `balanced`: the mean over those classes of their top-1, percent.
    """

    level: int
    classes: int
    top1: float
    balanced: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def levels(labels: Sequence[str], confusion: Confusion) -> tuple[Level, ...]:
    """Every level above the classes themselves, the coarsest first; none where some class has no path.

    A level that tells nothing apart is left out. An answer is right at a level where its class's name begins as the
    true one's does.
    """
    paths = [label.split(SEPARATOR) for label in labels]
    if not all(len(path) > 1 for path in paths):
        return ()
    found = []
    for depth in range(1, max(map(len, paths))):
        names = [tuple(path[:depth]) for path in paths]
        place = {name: i for i, name in enumerate(dict.fromkeys(names))}
        if not 1 < len(place) < len(labels):
            continue
        merged = confusion.merged([place[name] for name in names])
        images, right = merged.images, merged.right
        there = images > 0
        balanced = 100 * float((right[there] / images[there]).mean()) if there.any() else 0.0
        top1 = 100 * int(right.sum()) / max(merged.total, 1)
        found.append(Level(depth, len(place), top1, balanced))
    return tuple(found)
