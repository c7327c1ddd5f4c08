"""What a detector says of an image: boxes with labels and scores; and how they are drawn. No torch."""

from __future__ import annotations

import colorsys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mobilenets.data import rle
from mobilenets.data.rle import Rle
from mobilenets.errors import UserError

LEAST = 0.3  # score from which a box is said, where nobody says otherwise
TURN = 0.618034  # of the colour circle from one class to the next: the golden ratio's, so that near ones differ
SHINE = 0.45  # of a mask


@dataclass(frozen=True)
class Detection:
    """An object: its `label`, how sure that is, its `box` x1, y1, x2, y2 in pixels of the image; its mask, if any."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: Rle | None = None
    index: int = 0  # of its label

    def to_json(self) -> dict[str, Any]:
        mask = {} if self.mask is None else {"mask": dict(self.mask)}
        box = [round(v, 2) for v in self.box]
        return {"label": self.label, "score": round(self.score, 6), "box": box, **mask}

    def __str__(self) -> str:
        return f"{self.label} {100 * self.score:.1f}% at {', '.join(f'{v:.0f}' for v in self.box)}"


@dataclass(frozen=True)
class Detections:
    """An image's objects, the surest first: `every` that the network has, `boxes` those with a score of `least`."""

    every: tuple[Detection, ...]
    least: float = LEAST

    @property
    def boxes(self) -> tuple[Detection, ...]:
        return tuple(d for d in self.every if d.score >= self.least)

    @property
    def counted(self) -> str:
        """How many objects of each label there are, the most first: what stands below a picture that shows them."""
        found = Counter(d.label for d in self.boxes)
        return ", ".join(f"{n} {label}" for label, n in found.most_common()) or "nothing"

    def to_json(self) -> dict[str, Any]:
        return {"boxes": [d.to_json() for d in self.boxes]}

    def _columns(self) -> tuple[Any, Any, Any, Any]:
        """Boxes, float32 [K, 4], x1, y1, x2, y2 in pixels; scores [K]; classes, int64 [K]; masks, bool [K, H, W]."""
        found = self.boxes
        masks = [rle.decode(d.mask).astype(bool) for d in found if d.mask is not None]
        return (
            np.array([d.box for d in found], np.float32).reshape(-1, 4),
            np.array([d.score for d in found], np.float32),
            np.array([d.index for d in found], np.int64),
            np.stack(masks) if masks else None,
        )

    def to_torchvision(self) -> dict[str, Any]:
        """`boxes` as torchvision's detectors give them: tensors boxes, scores, labels from 0, masks if any."""
        import torch

        boxes, scores, classes, masks = (None if x is None else torch.from_numpy(x) for x in self._columns())
        some = {} if masks is None else {"masks": masks[:, None]}
        return {"boxes": boxes, "scores": scores, "labels": classes, **some}

    def to_supervision(self) -> Any:
        """`boxes` as `supervision.Detections`, their labels in its `class_name`. Raises `UserError` without it."""
        try:
            import supervision
        except ImportError:
            raise UserError("this needs supervision: pip install supervision") from None
        boxes, scores, classes, masks = self._columns()
        names = {"class_name": np.array([d.label for d in self.boxes])}
        return supervision.Detections(xyxy=boxes, confidence=scores, class_id=classes, mask=masks, data=names)

    def __str__(self) -> str:
        return "\t".join(map(str, self.boxes)) or "nothing"


def colour(index: int) -> tuple[int, int, int]:
    """A class's colour."""
    r, g, b = colorsys.hsv_to_rgb((0.08 + TURN * index) % 1, 0.85, 0.95)
    return round(255 * r), round(255 * g), round(255 * b)


def draw(image: Image.Image, said: Detections) -> Image.Image:
    """The image with its boxes, labels and masks, the surest on top."""
    out = image.convert("RGB")
    width = max(2, round(min(out.size) / 250))
    size = max(11, round(min(out.size) / 32))
    for one in reversed(said.boxes):
        paint = colour(one.index)
        if one.mask is not None:
            inside = Image.fromarray((rle.decode(one.mask) * np.uint8(255 * SHINE)).astype(np.uint8))
            out.paste(paint, (0, 0), inside)
        pen = ImageDraw.Draw(out)
        pen.rectangle(one.box, outline=paint, width=width)
        text = f"{one.label} {100 * one.score:.0f}%"
        pen.fontmode = "L"
        left, top = one.box[0], max(one.box[1] - 1.3 * size, 0)
        place = pen.textbbox((left + 2, top), text, font_size=size)
        pen.rectangle((left, place[1] - 1, place[2] + 2, place[3] + 1), fill=paint)
        pen.text((left + 2, top), text, fill="black" if sum(paint) > 380 else "white", font_size=size)
    return out
