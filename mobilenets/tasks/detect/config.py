"""What a detector's answers mean, as its card has it: labels, anchors, box coder, suppression. No torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mobilenets.arguments import checked
from mobilenets.errors import UserError, unknown

Scores = Literal["sigmoid", "softmax"]
DetectorFamily = Literal["ssd", "ssdlite", "ssdlite-torchvision", "ssd-fpnlite", "faster-rcnn-fpn", "mask-rcnn"]
Shape = tuple[float, float]  # width, height, as fractions of the input's
SCORES: tuple[Scores, ...] = ("sigmoid", "softmax")
CONVENTIONS = ("tf", "torchvision", "tf-pyramid", "fitted")
ORDERS = ("yxhw", "xywh")
MOST_ANCHORS = 1_000_000
LONGEST = 64  # times the input's side: a pyramid's last map has anchors of 725 pixels, whatever the input's size
FOCAL = ("ssd-fpnlite",)  # families that TensorFlow trains by the focal loss, all anchors at once

OFFSETS, LOGITS, SCORE, BOXES, CLASSES, COUNT = "offsets", "logits", "scores", "boxes", "classes", "count"
MASKS = "masks"


@checked
@dataclass(frozen=True)
class DetectorOptions:
    """What a detector is built of, where that is neither the default nor what the network to start from has."""

    detector: DetectorFamily | None = field(
        default=None,
        metadata={
            "help": "Of --task detect: ssd, ssdlite (by default), ssdlite-torchvision; ssd-fpnlite, for small objects; "
            "faster-rcnn-fpn, of two stages; mask-rcnn, which gives masks too."
        },
    )
    anchors: Literal["default", "auto"] | None = field(
        default=None,
        metadata={
            "help": "Of --task detect: the detector's own anchors, or auto: of the sizes that the training's boxes "
            "have (k-means by overlap), where they fit these better."
        },
    )


@dataclass(frozen=True)
class Anchors:
    """Boxes that a detector's answers are relative to: at each position of each map, each of that map's shapes.

    `maps`: (height, width) of each; `boxes`: for each map (width, height) of its shapes, as fractions of the input.
    `offset`: where in its cell a centre lies. `clip`: anchors are cut at the image's edge. `grids`: where centres are
    those of no cells, of each map the first, x and y, and the steps to the next, as fractions of the input.
    """

    maps: tuple[tuple[int, int], ...]
    boxes: tuple[tuple[Shape, ...], ...]
    convention: str = "tf"
    offset: float = 0.5
    clip: bool = False
    grids: tuple[tuple[float, float, float, float], ...] | None = None

    def __post_init__(self) -> None:
        if len(self.maps) != len(self.boxes) or not self.maps:
            raise UserError(f"a detector's anchors are of {len(self.boxes)} maps, and there are {len(self.maps)}")
        if self.convention not in CONVENTIONS:
            raise unknown("convention of anchors", self.convention, CONVENTIONS)
        if self.grids is not None and len(self.grids) != len(self.maps):
            raise UserError(f"a detector's anchors have {len(self.grids)} grids for {len(self.maps)} maps")
        sides = [side for shapes in self.boxes for shape in shapes for side in shape]
        if not all(0 < side <= LONGEST for side in sides):  # False of NaN too
            raise UserError(f"an anchor's width and height are fractions of the input's, above 0, at most {LONGEST}")
        if not all(h > 0 and w > 0 for h, w in self.maps) or self.count > MOST_ANCHORS:
            raise UserError(f"a detector has from one to {MOST_ANCHORS:,} anchors")

    def to_json(self) -> dict[str, Any]:
        grids = {} if self.grids is None else {"grids": [list(g) for g in self.grids]}
        return {
            "maps": [list(m) for m in self.maps], "convention": self.convention,
            "boxes": [[list(shape) for shape in shapes] for shapes in self.boxes],
            "offset": self.offset, "clip": self.clip, **grids,
        }  # fmt: skip

    @property
    def count(self) -> int:
        return sum(h * w * len(shapes) for (h, w), shapes in zip(self.maps, self.boxes, strict=True))


@dataclass(frozen=True)
class Coder:
    """How an anchor's four numbers say where its box is: in which `order`, and times what (`scales`, of x, y and w, h).

    Centres are in units of the anchor's width and height, sizes are logarithms of what they are of the anchor's.
    `scales` are in the order of `order`: TensorFlow's 10 10 5 5 are torchvision's weights, Caffe's variances' inverses.
    """

    order: str = "yxhw"
    scales: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise unknown("order of a box's numbers", self.order, ORDERS)
        if len(self.scales) != 4 or not all(0 < s < math.inf for s in self.scales):
            raise UserError("a box coder has four scales above 0")


@dataclass(frozen=True)
class Suppression:
    """Which boxes are answers: of at least this `score`, and of those that overlap by more than `iou` the best.

    `per_class` of one class at most, `most` in all. `together`: a better box of any class pushes one out, as TFLite's
    operator has it unless it is told otherwise, and `per_class` doesn't count.
    """

    score: float = 0.01
    iou: float = 0.6
    per_class: int = 100
    most: int = 100
    together: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.score < 1 and 0 < self.iou <= 1 and self.per_class > 0 and self.most > 0):
            raise UserError(f"not a suppression of boxes: {dataclasses.asdict(self)}")


@dataclass(frozen=True)
class Config:
    """A detector's config. `background`: the first of the logits is of no object, and no label is its."""

    labels: tuple[str, ...]
    family: str
    background: bool
    scores: Scores
    anchors: Anchors
    coder: Coder = Coder()
    suppression: Suppression = Suppression()

    def __post_init__(self) -> None:
        if self.scores not in SCORES:
            raise unknown("kind of scores", self.scores, SCORES)

    @property
    def columns(self) -> int:
        """Logits of an anchor."""
        return len(self.labels) + self.background

    @property
    def focal(self) -> bool:
        return self.family in FOCAL

    def to_json(self) -> dict[str, Any]:
        return {
            "labels": list(self.labels), "family": self.family, "background": self.background, "scores": self.scores,
            "anchors": self.anchors.to_json(),
            "coder": {"order": self.coder.order, "scales": list(self.coder.scales)},
            "suppression": {k: v for k, v in vars(self.suppression).items() if k != "together" or v},
        }  # fmt: skip

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Config:
        """The inverse of `to_json`, of a card's config. Raises `UserError`."""
        try:
            a, c = config["anchors"], config.get("coder", {})
            anchors = Anchors(
                tuple((int(h), int(w)) for h, w in a["maps"]),
                tuple(tuple((float(w), float(h)) for w, h in shapes) for shapes in a["boxes"]),
                str(a.get("convention", "tf")),
                float(a.get("offset", 0.5)),
                bool(a.get("clip", False)),
                None if a.get("grids") is None else tuple(map(_four, a["grids"])),
            )
            scales = c.get("scales", Coder.scales)
            coder = Coder(str(c.get("order", Coder.order)), _four(scales))
            return cls(
                tuple(config["labels"]),
                str(config["family"]),
                bool(config["background"]),
                config["scores"],
                anchors,
                coder,
                Suppression(**config.get("suppression", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
            raise UserError(f"the card's detector is malformed: {e!r}") from e


def _four(values: Sequence[float]) -> tuple[float, float, float, float]:
    a, b, c, d = map(float, values)
    return a, b, c, d
