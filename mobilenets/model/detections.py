"""Boxes out of a detector's offsets and scores in PyTorch: what the operations that make detections compute."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobilenets.arch.boxes import COLUMNS, Suppression
from mobilenets.arch.operations import Op

FIRST = 2000  # of the best candidates, those that are looked at first


class Boxes(nn.Module):
    """Offsets [N, A, 4] from anchors [A, 4] (centre x, y, width, height) -> boxes [N, A, 4]: x1, y1, x2, y2."""

    anchors: Tensor

    def __init__(self, op: Op) -> None:
        super().__init__()
        assert op.coder is not None
        self.coder = op.coder
        self.register_buffer("anchors", torch.zeros(0, 4))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """The number of anchors is known once they are there."""
        if (given := state_dict.get(f"{prefix}anchors")) is not None:
            self.anchors = torch.empty_like(given, device=self.anchors.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, offsets: Tensor) -> Tensor:
        scaled = offsets / offsets.new_tensor(self.coder.scales)
        if self.coder.order == "yxhw":
            scaled = scaled[..., [1, 0, 3, 2]]
        (at, size), (centre, wide) = torch.split(scaled, 2, -1), torch.split(self.anchors, 2, -1)
        middle, half = centre + at * wide, torch.exp(size) * wide / 2
        return torch.cat((middle - half, middle + half), -1)


class Suppress(nn.Module):
    """Boxes [N, A, 4] and scores [N, A, C] -> detections [N, most, 6], as `arch.graph.KINDS` says."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        assert op.suppression is not None
        self.how = op.suppression

    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        return torch.stack([suppressed(b, s, self.how) for b, s in zip(boxes, scores, strict=True)])


class Detected(nn.Module):
    """A part of detections [N, K, 6]: boxes [N, K, 4], scores [N, K], classes [N, K], or their count [N]."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.part = op.part

    def forward(self, x: Tensor) -> Tensor:
        match self.part:
            case "boxes":
                return x[..., :4]
            case "scores":
                return x[..., 4]
            case "classes":
                return x[..., 5]
            case _:
                return (x[..., 4] > 0).sum(-1).to(x.dtype)


def suppressed(boxes: Tensor, scores: Tensor, how: Suppression) -> Tensor:
    """The detections [most, 6] of one image's boxes [A, 4] and scores [A, C].

    A box is kept or not by those with better scores alone, so that the best candidates decide by themselves: more are
    looked at only where they leave too few.
    """
    from torchvision.ops import nms  # which takes as long to import as all of PyTorch

    by_class = scores[:, int(how.background) :].T.flatten()  # [C * A]
    order = (by_class > how.score).nonzero()[:, 0]
    order = order[by_class[order].argsort(descending=True, stable=True)]
    number = len(boxes)
    out = boxes.new_zeros(how.most, COLUMNS)
    first = min(FIRST, len(order))
    while len(order):
        best = order[:first]
        classes = best // number
        if how.together:
            found = best[nms(boxes[best % number], by_class[best], how.iou)]
        else:
            kept = []
            for c in torch.unique(classes):
                of_class = best[classes == c]
                kept.append(of_class[nms(boxes[of_class % number], by_class[of_class], how.iou)[: how.per_class]])
            found = torch.cat(kept)
        if len(found) >= how.most or first == len(order):
            found = found[by_class[found].argsort(descending=True, stable=True)][: how.most]
            rows = boxes[found % number], by_class[found][:, None], (found // number)[:, None].to(boxes.dtype)
            out[: len(found)] = torch.cat(rows, 1)
            break
        first = min(4 * first, len(order))
    return out
