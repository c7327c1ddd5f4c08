"""A lowered network -> a torch.export program, operation by operation: uint8 images [N, H, W, 3] in, answers out.

What a .pt2 file holds and what ExecuTorch lowers. An int8 network is written as PyTorch's own quantizers write one:
every tensor between the operations is int8, dequantized for each reader and quantized after it, weights are int8 with
a scale per output channel, biases the float values of their int32 numbers. Runtimes fuse that into integer layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from mobilenets.arch.operations import Op
from mobilenets.deploy.lowering import lower, unsupported
from mobilenets.model.bundle import Bundle
from mobilenets.model.encodings import Array
from mobilenets.model.joints import windowed
from mobilenets.model.module import ACTIVATIONS

NAME = "PyTorch's program"
SHIFT = 128  # int8 values are the bundle's uint8 ones less this
q = torch.ops.quantized_decomposed


class _Weights(nn.Module):
    """A layer's weights as the file holds them, and as its convolution reads them."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    zeros: Tensor

    def __init__(self, weight: Array, scale: Array | None, bias: Array) -> None:
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(weight))
        self.register_buffer("bias", torch.from_numpy(bias))
        if scale is not None:
            self.register_buffer("scale", torch.from_numpy(scale))
            self.register_buffer("zeros", torch.zeros(len(scale), dtype=torch.int64))

    def forward(self) -> tuple[Tensor, Tensor]:
        if self.weight.dtype == torch.int8:
            w = q.dequantize_per_channel(self.weight, self.scale, self.zeros, 0, -127, 127, torch.int8)
            return w, self.bias
        return self.weight.float() if self.weight.dtype == torch.float16 else self.weight, self.bias


class Network(nn.Module):
    """The bundle as a module of plain operations, in its card's precision.

    uint8 [N, H, W, 3] -> the card's outputs [N, ...] in their order: a tensor, or a tuple of several. Raises
    `UserError` for an operation that isn't in the table.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        lowered = lower(bundle)
        self.graph = lowered.graph
        preprocess = lowered.card.preprocess
        self.register_buffer("mean", torch.tensor(preprocess.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(preprocess.std)[:, None, None])
        self.affine: dict[str, tuple[float, int]] = {}  # scale and zero point of what is held in whole numbers
        for name in self.graph.integers:
            scale, zero = lowered.scale(name)
            self.affine[self.graph.activation_of(name)] = float(scale), int(zero) - SHIFT
        self.weights = nn.ModuleDict()
        for op in self.graph.ops:
            if op.kind not in (*COMPUTE, "dequantize"):
                raise unsupported(NAME, op)
            if op.is_layer:
                w, (_, bias) = lowered.weights(op), lowered.folded[op.name]  # the bias in float, in every precision
                self.weights[op.name.replace(".", "_")] = _Weights(w.values, w.scale, bias)

    def _quantized(self, x: Tensor, name: str) -> Tensor:
        scale, zero = self.affine[self.graph.activation_of(name)]
        y: Tensor = q.quantize_per_tensor(x, scale, zero, -SHIFT, SHIFT - 1, torch.int8)
        return y

    def _read(self, x: Tensor, name: str) -> Tensor:
        """A value as one reader takes it, in float: runtimes fuse a layer with what dequantizes for it alone."""
        if x.dtype != torch.int8:
            return x
        scale, zero = self.affine[self.graph.activation_of(name)]
        y: Tensor = q.dequantize_per_tensor(x, scale, zero, -SHIFT, SHIFT - 1, torch.int8)
        return y

    def normalize(self, _op: Op, images: Tensor) -> Tensor:
        return (images.permute(0, 3, 1, 2).float() - self.mean) / self.std

    def layer(self, op: Op, x: Tensor) -> Tensor:
        assert op.pads is not None
        weight, bias = self.weights[op.name.replace(".", "_")]()
        above, left, below, right = op.pads
        pad = above, left
        if pad != (below, right):  # a convolution's own padding is as wide on both sides
            x, pad = F.pad(x, (left, right, above, below)), (0, 0)
        y = F.conv2d(x, weight, bias, op.stride, pad, groups=op.groups)
        return activated(op, y) if op.activation else y

    def concat(self, op: Op, *maps: Tensor) -> Tensor:
        if op.name in self.graph.integers:  # XNNPACK joins no whole numbers but those of its result's own scale
            maps = tuple(self._read(self._quantized(x, op.name), op.name) for x in maps)
        return torch.cat(maps, 1)

    def windows(self, op: Op, x: Tensor) -> Tensor:
        assert op.pads is not None
        return windowed(op, x, op.pads)

    def shuffle(self, op: Op, x: Tensor) -> Tensor:
        channels, height, width = self.graph.shapes[op.name]
        apart = x.contiguous().view(-1, op.grouped, channels // op.grouped, height * width)
        return apart.transpose(1, 2).contiguous().view(-1, channels, height, width)

    def rows(self, op: Op, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).contiguous().view(-1, *self.graph.shapes[op.name])

    def flatten(self, op: Op, x: Tensor) -> Tensor:
        if math.prod(x.shape[2:]) > 1:  # a map, whose channels may lie last in memory
            x = x.contiguous()
        return x.view(-1, *self.graph.shapes[op.name])

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = {self.graph.source: images}
        for op in self.graph.ops:
            if op.kind == "dequantize":  # whoever reads it does that
                values[op.name] = values[op.inputs[0]]
                continue
            x = COMPUTE[op.kind](self, op, *(self._read(values[name], name) for name in op.inputs))
            values[op.name] = self._quantized(x, op.name) if op.name in self.graph.integers else x
        answers = tuple(self._read(values[o.op], o.op) for o in self.graph.outputs)
        return answers if len(answers) > 1 else answers[0]


def activated(op: Op, x: Tensor) -> Tensor:
    if (
        op.activation == "hard_sigmoid"
    ):  # PyTorch's own has whole numbers inside, which ExecuTorch converts at each call
        return (x * (1 / 6) + 0.5).clamp(0, 1)
    assert op.activation
    y: Tensor = ACTIVATIONS[op.activation]()(x)
    return y


def attend(op: Op, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Multi-query attention, its heads the rows of one matrix: query [N, heads*D, H, W], key and value [N, D, h, w]."""
    dim, wide, h, w = op.cin, op.cout, *query.shape[2:]
    # No size is computed from N: a runtime's own view takes one unknown size, -1, and no others.
    rows = query.view(-1, op.heads, dim, h * w).transpose(2, 3).contiguous().view(-1, op.heads * h * w, dim)
    k, v = (x.view(-1, dim, x.shape[2] * x.shape[3]) for x in (key, value))
    mixed = torch.bmm(torch.softmax(torch.bmm(rows, k) * dim**-0.5, -1), v.transpose(1, 2))
    return mixed.view(-1, op.heads, h * w, dim).transpose(2, 3).contiguous().view(-1, wide, h, w)


def over_channels(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function`, of the last axis, over the channels [N, C] or [N, C, H, W]: XNNPACK computes over no other axis.

    Maps become [N, H*W, C]: with four axes, XNNPACK may take another for the last.
    """
    if x.ndim < 4:  # rows have what they are of last
        return function(x)
    channels, h, w = x.shape[1:]
    rows = x.contiguous().view(-1, channels, h * w).transpose(1, 2).contiguous()
    return function(rows).transpose(1, 2).contiguous().view(-1, channels, h, w)


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, x.ndim - 1)


def normalized(x: Tensor) -> Tensor:
    """Vectors of length 1 along the last axis; XNNPACK has no sum, but the mean of a map [N, C, H, W] over H and W."""
    *grid, count = x.shape[1:]
    mean = (x * x).contiguous().view(-1, math.prod(grid), count, 1).mean((2, 3), keepdim=True)
    length = mean.view(-1, *grid, 1).sqrt() * math.sqrt(count)
    return x / length.clamp(min=1e-12)


# What each kind of operation computes, in float.
COMPUTE: dict[str, Callable[..., Tensor]] = {
    "pixels": Network.normalize,
    "normalize": Network.normalize,
    "quantize": lambda _network, _op, x: x,  # rounded as every value in whole numbers is
    **dict.fromkeys(("conv", "depthwise", "pointwise", "linear", "global", "norm"), Network.layer),
    "activation": lambda _network, op, x: activated(op, x),
    "pool": lambda _network, _op, x: x.mean((2, 3), keepdim=True),
    **dict.fromkeys(("maxpool", "avgpool"), Network.windows),
    "shuffle": Network.shuffle,
    "slice": lambda _network, op, x: x.narrow(1, op.first, op.cout),
    "add": lambda _network, _op, x, y: torch.add(x, y),
    "mul": lambda _network, _op, x, y: torch.mul(x, y),
    "attend": lambda _network, op, *inputs: attend(op, *inputs),
    "concat": Network.concat,
    "flatten": Network.flatten,
    "softmax": lambda _network, _op, x: over_channels(softmax, x),
    "sigmoid": lambda _network, _op, x: torch.sigmoid(x),
    "l2norm": lambda _network, _op, x: over_channels(normalized, x),
    "rows": Network.rows,
    "stack": lambda _network, _op, *rows: torch.cat(rows, 1),
    "upsample": lambda _network, _op, x, like: F.interpolate(x, like.shape[2:]),
}


def export_program(bundle: Bundle, batch: int | None, most: int | None = None) -> ExportedProgram:
    """`bundle` as a program of its card's precision. `batch`: the N of every call; None: any up to `most`."""
    network = Network(bundle).eval()
    shapes = None if batch else ({0: Dim("N", min=1, max=most)},)
    # PyTorch chooses a convolution by its batch, and ExecuTorch takes that for a bound on it: the largest is shown.
    example = torch.zeros(batch or most or 2, *network.graph.source_shape, dtype=torch.uint8)
    with torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes=shapes)
