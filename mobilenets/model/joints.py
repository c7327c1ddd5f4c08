"""What joins layers, and what has no weights, as PyTorch modules: one for each kind of operation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilenets.arch.graph import pads
from mobilenets.arch.operations import Op
from mobilenets.arch.spec import Arch


class Concat(nn.Module):
    """Maps of one size, their channels one after another; or rows."""

    def forward(self, *maps: Tensor) -> Tensor:
        return torch.cat(maps, 1)


class Rows(nn.Module):
    """What a map says of each of K things at every position: [N, K * width, H, W] -> [N, H * W * K, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(len(x), -1, self.width)


class Upsample(nn.Module):
    """A map in the size of another, of each pixel the nearest."""

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[2:])


class Softmax(nn.Module):
    """Numbers [N, K], or rows of them [N, R, K], as probabilities; of a map [N, K, H, W], at each position."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, 1 if x.ndim == 4 else -1)


class Sigmoid(nn.Module):
    """Each number as a probability of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


class L2Norm(nn.Module):
    """Vectors [N, K, ...] of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


class Pool(nn.Module):
    """The mean over all positions: [N, C, H, W] -> [N, C, 1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class Windows(nn.Module):
    """The largest or the mean of each window of a map, as `op` says: [N, C, H, W] -> [N, C, H', W']."""

    def __init__(self, op: Op, arch: Arch) -> None:
        super().__init__()
        self.op, self.padding = op, arch.padding

    def forward(self, x: Tensor) -> Tensor:
        return windowed(self.op, x, pads(self.op, tuple(x.shape[1:]), self.padding))


def windowed(op: Op, x: Tensor, around: tuple[int, int, int, int]) -> Tensor:
    """The largest or the mean of each window of a map, with so many pixels around (above, left, below, right)."""
    largest = op.kind == "maxpool"
    above, left, below, right = around
    pad = above, left
    if pad != (below, right) or above > op.kernels[0] // 2 or left > op.kernels[1] // 2:
        x = F.pad(x, (left, right, above, below), value=float("-inf") if largest else 0.0)
        pad = 0, 0
    pool = F.max_pool2d if largest else F.avg_pool2d
    return pool(x, op.kernels, op.stride, pad)


class Shuffle(nn.Module):
    """Channels of each of some groups in turn: [N, g * n, H, W], seen as g x n, to n x g."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Slice(nn.Module):
    """Some channels of a map."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.first, self.last = op.first, op.first + op.cout

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.first : self.last]


class Add(nn.Module):
    """The sum of two maps of one shape."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Mul(nn.Module):
    """A map [N, C, H, W] times its gate [N, C, 1, 1]."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * gate


class Attend(nn.Module):
    """Multi-query attention: query [N, heads*D, H, W], one key and value [N, D, H', W'] -> [N, heads*D, H, W]."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        n, c, h, w = query.shape
        q = query.reshape(n, self.heads, c // self.heads, h * w).transpose(2, 3)  # [N, heads, HW, D]
        k, v = (t.flatten(2).transpose(1, 2).unsqueeze(1) for t in (key, value))  # [N, 1, H'W', D]
        k, v = (t.expand(-1, self.heads, -1, -1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return y.transpose(2, 3).reshape(n, c, h, w)
