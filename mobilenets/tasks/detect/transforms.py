"""What a detector's training does to images and their boxes, with torchvision's transforms.

Photometric distortion, zoom out, crops by overlap and the mirror are SSD's (Liu and others 2016, section 2.2).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from mobilenets.data import rle
from mobilenets.data.boxes import Boxes
from mobilenets.model.images import GREY, Preprocess

FILL: Any = {tv_tensors.Mask: 0, "others": GREY}  # around a picture that is made smaller
LEAST = 2  # pixels of the input: what is smaller after a crop is no object
ZOOM, CROP, JITTER = 0.3, 0.6, 0.2  # shares of the images that are shrunk into grey, cut, scaled


def tensors(boxes: Boxes, size: tuple[int, int], masks: bool = False) -> dict[str, Any]:
    """What is known of an image as tensors on a picture of it of `size`, (height, width): boxes [M, 4] x1 y1 x2 y2.

    `labels` [M]; `crowd` [M]; `area` [M] in pixels of the image itself; with `masks`, these, uint8 [M, H, W].
    """
    (width, height), (rows, columns) = boxes.size, size
    scale = np.array([columns / width, rows / height] * 2, np.float32)
    xyxy = torch.from_numpy(np.asarray(boxes.xyxy, np.float32).reshape(-1, 4) * scale)
    made = {
        "boxes": tv_tensors.BoundingBoxes(xyxy, format="XYXY", canvas_size=size),
        "labels": torch.from_numpy(np.asarray(boxes.classes, np.int64)),
        "crowd": torch.from_numpy(np.asarray(boxes.crowd, bool)),
        "area": torch.from_numpy(np.asarray(boxes.area, np.float32)),
    }
    if masks:
        each = [] if boxes.masks is None else [torch.from_numpy(rle.decode(m).astype(np.uint8)) for m in boxes.masks]
        whole = tv_tensors.Mask(torch.stack(each) if each else torch.zeros(0, height, width, dtype=torch.uint8))
        made["masks"] = whole if (height, width) == size else v2.functional.resize(whole, list(size))
    return made


def _others(sample: Any) -> tuple[Tensor, ...]:
    """What goes with its box where that leaves the picture."""
    target = sample[1]
    return target["labels"], target["crowd"], target["area"]


class Augmentation(nn.Module):
    """RGB image of any size with its `Boxes` -> uint8 [3, H, W] of the input's size, and tensors on it. Random."""

    def __init__(self, preprocess: Preprocess, kind: str, masks: bool = False) -> None:
        """`masks`: move these too."""
        super().__init__()
        self.masks = masks
        size = list(preprocess.input_size)
        moves: list[nn.Module] = []
        if kind != "none":
            scaled = v2.Compose(
                [
                    v2.ScaleJitter(size, (0.6, 1.6), antialias=True),
                    v2.RandomCrop(size, pad_if_needed=True, fill=FILL),
                ]
            )
            moves = [
                v2.RandomPhotometricDistort(p=0.5),
                v2.RandomApply([v2.RandomZoomOut(fill=FILL, side_range=(1.0, 3.0), p=1.0)], ZOOM),
                v2.RandomChoice([v2.RandomIoUCrop(), scaled, v2.Identity()], [CROP, JITTER, 1 - CROP - JITTER]),
                *([v2.RandomHorizontalFlip()] if kind != "glyph" else []),
            ]
        self.moves = v2.Compose(
            [
                *moves,
                v2.Resize(size, antialias=True),
                v2.ClampBoundingBoxes(),
                v2.SanitizeBoundingBoxes(min_size=LEAST, labels_getter=_others),
                v2.PILToTensor(),
            ]
        )

    def forward(self, image: Image.Image, target: Boxes) -> tuple[Tensor, dict[str, Any]]:
        """`target` may be of the image at another size: training reads large ones smaller."""
        out, moved = self.moves(image, tensors(target, (image.height, image.width), self.masks))
        return out, moved
