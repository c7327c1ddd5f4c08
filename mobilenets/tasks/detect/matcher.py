"""Which anchor is to find which object, as SSD has it (Liu and others 2016, section 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

MATCHED = 0.5  # overlap from which an anchor is an object's, and below which it is background
BACKGROUND, IGNORED = -1, -2


def match(boxes: Tensor, anchors: Tensor) -> Tensor:
    """The object of each anchor, int64 [A], or BACKGROUND: of boxes [M, 4] and anchors [A, 4], centre x, y, w, h.

    The one that it overlaps most, by at least MATCHED; and of each object the anchor that fits best is its, whatever
    the overlap, where there is any.
    """
    out = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    if not len(boxes):
        return out
    over = box_iou(box_convert(boxes, "cxcywh", "xyxy"), box_convert(anchors, "cxcywh", "xyxy"))  # [M, A]
    best, which = over.max(0)
    out = torch.where(best >= MATCHED, which, out)
    most, anchor = over.max(1)
    order = most.argsort()  # of two objects with one best anchor, it is whose it fits better
    order = order[most[order] > 0]
    out[anchor[order]] = order
    return out


def within(anchors: Tensor, regions: Tensor) -> Tensor:
    """Which anchors have their centre in one of the regions [R, 4], centre x, y, w, h: bool [A]."""
    if not len(regions):
        return torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    off = (anchors[:, None, :2] - regions[None, :, :2]).abs()
    return (off <= regions[None, :, 2:] / 2).all(-1).any(-1)
