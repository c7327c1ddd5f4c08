"""What the operations of two-stage detectors compute in PyTorch, by torchvision's own parts. Boxes are fractions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign

from mobilenets.arch.boxes import COLUMNS
from mobilenets.arch.operations import SAMPLES, Op
from mobilenets.arch.spec import Arch


def pixels(size: tuple[int, int], like: Tensor) -> Tensor:
    """What fractions are multiplied by, [4], of a picture of `size`, (height, width)."""
    height, width = size
    return like.new_tensor([width, height, width, height])


def padded(boxes: Sequence[Tensor], most: int) -> Tensor:
    """Rows [k, C] of each image as one tensor [N, most, C], zeros behind them."""
    return torch.stack([F.pad(b, (0, 0, 0, most - len(b))) for b in boxes])


class Subsample(nn.Module):
    """Every position of a stride: [N, C, H, W] -> [N, C, ceil(H / stride), ceil(W / stride)]."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.stride = op.stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 1, self.stride)


class Propose(nn.Module):
    """Of each map boxes [N, A, 4] and logits [N, A, 1] -> proposals [N, most, 4]."""

    def __init__(self, op: Op, arch: Arch) -> None:
        super().__init__()
        assert op.suppression is not None
        how = op.suppression
        looked_at, kept = ({"training": n, "testing": n} for n in (how.per_class, how.most))
        self.most, self.size = how.most, arch.input_size
        none: Any = None  # its anchors, head and losses aren't used here
        self.rpn = RegionProposalNetwork(none, none, 0.7, 0.3, 256, 0.5, looked_at, kept, how.iou, how.score)

    def forward(self, *inputs: Tensor) -> Tensor:
        boxes, logits = (torch.cat(list(each), 1).float() for each in (inputs[::2], inputs[1::2]))
        unit = pixels(self.size, boxes)
        counts = [x.shape[1] for x in inputs[::2]]
        found, _ = self.rpn.filter_proposals(boxes * unit, logits, [self.size] * len(boxes), counts)
        return padded(found, self.most) / unit


class Crop(nn.Module):
    """Boxes [N, K, 4 or more] and maps [N, C, H, W] -> [N * K, C, kernel, kernel]."""

    def __init__(self, op: Op, arch: Arch) -> None:
        super().__init__()
        self.size = arch.input_size
        self.names = [str(i) for i in range(len(op.inputs) - 1)]
        self.pool = MultiScaleRoIAlign(self.names, op.kernel, SAMPLES)

    def forward(self, boxes: Tensor, *maps: Tensor) -> Tensor:
        each = list((boxes[..., :4] * pixels(self.size, boxes)).float())
        levels = dict(zip(self.names, (m.float() for m in maps), strict=True))
        return cast(Tensor, self.pool(levels, each, [self.size] * len(each)))


class Refine(nn.Module):
    """Proposals [N, K, 4], logits [N * K, C] and offsets [N * K, C * 4] -> detections [N, most, 6]."""

    def __init__(self, op: Op, arch: Arch) -> None:
        super().__init__()
        assert op.suppression is not None
        assert op.coder is not None
        how = op.suppression
        self.most, self.size = how.most, arch.input_size
        self.heads = RoIHeads(
            None, None, None, 0.5, 0.5, 512, 0.25, op.coder.scales, how.score, how.iou, how.most
        )  # fmt: skip

    def forward(self, proposals: Tensor, logits: Tensor, offsets: Tensor) -> Tensor:
        unit = pixels(self.size, proposals)
        each = list(proposals * unit)
        boxes, scores, labels = self.heads.postprocess_detections(
            logits.flatten(1).float(), offsets.flatten(1).float(), each, [self.size] * len(each)
        )
        rows = [torch.cat((b / unit, s[:, None], (c - 1)[:, None].to(b)), 1)
                for b, s, c in zip(boxes, scores, labels, strict=True)]  # fmt: skip
        return padded(rows, self.most).reshape(len(rows), self.most, COLUMNS)


class Masks(nn.Module):
    """Detections [N, K, 6] and logits [N * K, C, H, W], the background first -> probabilities [N, K, H, W].

    Zeros past the last detection.
    """

    def forward(self, detections: Tensor, logits: Tensor) -> Tensor:
        images, count = detections.shape[:2]
        own = (detections[..., 5].long() + 1).flatten()
        chosen = logits[torch.arange(len(own), device=logits.device), own].float().sigmoid()
        return chosen.view(images, count, *logits.shape[2:]) * (detections[..., 4] > 0)[..., None, None]


MODULES: dict[str, Callable[[Op, Arch], nn.Module]] = {
    "subsample": lambda op, _: Subsample(op),
    "propose": Propose,
    "crop": Crop,
    "refine": Refine,
    "masks": lambda _op, _: Masks(),
}
