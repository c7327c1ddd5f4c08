"""Boxes as what a network says of its anchors, and back. Torch for what training encodes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mobilenets.tasks.detect.config import Coder

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]
ORDER = {"xywh": (0, 1, 2, 3), "yxhw": (1, 0, 3, 2)}  # its own inverse
LONGEST = 4.135  # log(1000 / 16): a size beyond that many times the anchor's is none; torchvision's limit too


def decode(offsets: Floats, anchors: Floats, coder: Coder) -> Floats:
    """Offsets [..., A, 4] of anchors [A, 4] (centre x, y, width, height) -> x1, y1, x2, y2 in the anchors' unit."""
    t = (offsets / np.array(coder.scales, np.float32))[..., ORDER[coder.order]]
    centres = t[..., :2] * anchors[:, 2:] + anchors[:, :2]
    half = np.exp(np.minimum(t[..., 2:], LONGEST)) * (anchors[:, 2:] / 2)
    return np.concatenate([centres - half, centres + half], -1)


def encode(boxes: Tensor, anchors: Tensor, coder: Coder) -> Tensor:
    """Boxes [..., 4] (centre x, y, width, height), each of the anchor [..., 4] in its place -> offsets [..., 4]."""
    import torch

    centres = (boxes[..., :2] - anchors[..., :2]) / anchors[..., 2:]
    sizes = (boxes[..., 2:].clamp(min=1e-6) / anchors[..., 2:]).log()
    together = torch.cat([centres, sizes], -1)[..., list(ORDER[coder.order])]
    return together * together.new_tensor(coder.scales)
