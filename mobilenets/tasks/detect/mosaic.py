"""Four images in one, as YOLOv4 trains (Bochkovskiy and others 2020, section 3.3): more small objects, other places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAST = 0.008  # of the input: an object narrower than that is none any more


class Mosaic(nn.Module):
    """Images [N, 3, H, W] and their boxes (centre x, y, w, h as fractions) -> as many mosaics of four of them.

    `share`: of the batches; the others stay as they are.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(
        self, images: Tensor, targets: Sequence[dict[str, Tensor]]
    ) -> tuple[Tensor, Sequence[dict[str, Tensor]]]:
        if float(torch.rand(())) >= self.share:
            return images, targets
        count, _, height, width = images.shape
        parts = [torch.randperm(count) for _ in range(4)]
        rows, columns = (height // 2, height - height // 2), (width // 2, width - width // 2)
        out = torch.empty_like(images)
        boxes: list[list[dict[str, Tensor]]] = [[] for _ in range(count)]
        for quarter, order in enumerate(parts):
            down, right = divmod(quarter, 2)
            top, left = down * rows[0], right * columns[0]
            size = rows[down], columns[right]
            small = F.interpolate(images[order], size, mode="bilinear", antialias=True, align_corners=False)
            out[:, :, top : top + size[0], left : left + size[1]] = small
            place = images.new_tensor([left / width, top / height, 0, 0])
            scale = images.new_tensor([size[1] / width, size[0] / height] * 2)
            for n, i in enumerate(order.tolist()):
                moved = targets[i]["boxes"] * scale + place
                keep = (moved[:, 2:] >= LEAST).all(1)
                boxes[n].append({**{k: v[keep] for k, v in targets[i].items()}, "boxes": moved[keep]})
        together = [{k: torch.cat([one[k] for one in four]) for k in four[0]} for four in boxes]
        return out, together
