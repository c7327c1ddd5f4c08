"""How boxes are read from what a detector's head says: the numbers of its coder and of its suppression. No torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mobilenets.errors import UserError

Order = Literal["yxhw", "xywh"]
Part = Literal["boxes", "scores", "classes", "count"]
ORDERS: tuple[Order, ...] = get_args(Order)
PARTS: tuple[Part, ...] = get_args(Part)
COLUMNS = 6  # of detections: x1, y1, x2, y2, score, class
MOST = 4096  # detections that an image may have


@dataclass(frozen=True)
class Coder:
    """Offsets from an anchor, in the order of the columns, each times its scale (Faster R-CNN's coder, 1506.01497).

    Of an anchor with its centre at cx and width w, in fractions of the input, x stands for the centre cx + x w / scale,
    and "w" for the width w exp("w" / scale); y and "h" likewise.
    """

    order: Order
    scales: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        if self.order not in ORDERS or len(self.scales) != 4 or not all(_is_number(s) and s > 0 for s in self.scales):
            raise UserError(f"not a box coder: {dataclasses.asdict(self)}")

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Coder:
        """Of the dictionary of its fields. Raises `UserError`."""
        try:
            return cls(d["order"], tuple(d["scales"]))
        except (KeyError, TypeError) as e:
            raise UserError(f"not a box coder: {d}") from e


@dataclass(frozen=True)
class Suppression:
    """Which boxes are detections: of each class those that score above `score` and overlap no better one of it by more
    than `iou`, `per_class` at most; of all classes the `most` best. `background`: column 0 of the scores is no class.
    `together`: a better box of any class counts, and `per_class` doesn't.
    """

    score: float
    iou: float
    per_class: int
    most: int
    background: bool
    together: bool = False

    def __post_init__(self) -> None:
        numbers = _is_number(self.score) and _is_number(self.iou) and 0 <= self.score <= 1 and 0 <= self.iou <= 1
        counts = all(type(n) is int and 1 <= n <= MOST for n in (self.per_class, self.most))
        if not numbers or not counts or {type(self.background), type(self.together)} != {bool}:
            raise UserError(f"not a suppression of boxes: {dataclasses.asdict(self)}")

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Suppression:
        """Of the dictionary of its fields. Raises `UserError`."""
        try:
            return cls(**d)
        except TypeError as e:
            raise UserError(f"not a suppression of boxes: {d}") from e


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
