"""A convolution whose training in bf16 on processors is right and fast: the same results, two routes of our own.

Where oneDNN is not to be relied on: a tap of the kernel that meets padding alone, as the outer ones do on a map of one
pixel, has a gradient of 0. oneDNN's bf16 routine for the weights of depthwise convolutions leaves there what was in the
memory before (seen with PyTorch 2.14 on AVX512-bf16 and AMX). Such convolutions are summed tap by tap, in float32,
over the taps that meet the map: these maps are small.

Where it is slow: the gradient of a strided depthwise convolution with respect to its input is itself a depthwise
convolution, of stride 1, of the output's gradient with zeros between its values. oneDNN has a fast one of those, while
its own routine for the strided gradient in bf16 takes two to ninety times as long.
"""

from __future__ import annotations

from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def seen(side: int, kernel: int, stride: int, padding: int) -> list[int]:
    """The taps of a kernel, along one axis, that meet at least one pixel of a map of `side`."""
    starts = range(-padding, side + padding - kernel + 1, stride)
    return [t for t in range(kernel) if any(0 <= start + t < side for start in starts)]


def by_taps(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, int]) -> Tensor:
    """`x` [N, C, H, W] convolved by `weight` [D, C/groups, KH, KW]: a sum over the taps that meet the map."""
    n, c, *sides = x.shape
    d, share, *kernels = weight.shape
    groups = c // share
    across = list(zip(sides, kernels, padding, strict=True))
    rows, columns = (seen(side, k, stride, p) for side, k, p in across)
    height, width = ((side + 2 * p - k) // stride + 1 for side, k, p in across)
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    padded = padded.reshape(n, groups, share, *padded.shape[2:])
    y = x.new_zeros(n, groups, d // groups, height, width)
    for i, j in product(rows, columns):
        pixels = padded[..., i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        tap = weight[:, :, i, j].reshape(groups, d // groups, share)
        if share == 1:
            y = y + pixels * tap[..., None]
        else:
            y = y + torch.einsum("ngchw,gdc->ngdhw", pixels, tap)
    y = y.flatten(1, 2)
    return y if bias is None else y + bias[:, None, None]


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution [N, C, H, W] by [C, 1, K, K], gradients as above."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        s, p, k, c = ctx.stride, ctx.padding, weight.shape[2], x.shape[1]
        dx = dw = None
        if ctx.needs_input_grad[0]:
            shape = (x.shape[0], c, *(side + 2 * p - k + 1 for side in x.shape[2:]))
            spread = torch.empty(shape, dtype=grad.dtype, memory_format=torch.channels_last).zero_()
            spread[:, :, ::s, ::s] = grad
            dx = F.conv2d(spread, weight.flip(2, 3), None, 1, k - 1 - p, groups=c)
        if ctx.needs_input_grad[1]:
            dw = torch.ops.aten.convolution_backward(
                grad, x, weight, None, [s, s], [p, p], [1, 1], False, [0, 0], c, [False, True, False]
            )[1]
        return dx, dw, None, None


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` of one stride, undilated, that trains by the routes above in bf16 on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        training = torch.is_grad_enabled() and torch.is_autocast_enabled("cpu") and x.device.type == "cpu"
        if not training:
            return super().forward(x)
        stride, padding = self.stride[0], cast(tuple[int, int], self.padding)
        across = zip(x.shape[2:], self.kernel_size, padding, strict=True)
        dtype = torch.get_autocast_dtype("cpu")
        if any(len(seen(side, k, stride, p)) < k for side, k, p in across):
            with torch.autocast("cpu", enabled=False):
                return by_taps(x.float(), self.weight, self.bias, stride, padding).to(dtype)
        square = self.kernel_size[0] == self.kernel_size[1]
        if stride > 1 and self.weight.shape[1] == 1 and square and self.bias is None:
            return cast(Tensor, _Depthwise.apply(x.to(dtype), self.weight.to(dtype), stride, padding[0]))
        return super().forward(x)
