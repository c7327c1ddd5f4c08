"""Arch and weights -> a torch.export program, row by row: uint8 images [N, H, W, 3] in, probabilities out.

What a .pt2 file holds and what ExecuTorch lowers. An int8 network is written as PyTorch's own quantizers write one:
every tensor between the operations is int8, dequantized for each reader and quantized after it, weights are int8 with
a scale per output channel, biases the float values of their int32 numbers. Runtimes fuse that into integer layers.
"""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed  # defines torch.ops.quantized_decomposed
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from mobilenets.arch.graph import Op
from mobilenets.arch.spec import Arch
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Precision
from mobilenets.model.encodings import Array, Tensors, fold, half, int8_weights, unpack
from mobilenets.model.module import ACTIVATIONS, pad_same

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
    """The bundle as a module of plain operations, in its card's precision."""

    mean: Tensor
    std: Tensor

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        card, arch = bundle.card, bundle.card.arch
        self.arch: Arch = arch
        self.precision: Precision = card.precision
        self.float_ops = frozenset(card.float_ops)
        self.register_buffer("mean", torch.tensor(card.preprocess.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(card.preprocess.std)[:, None, None])
        self.affine: dict[str, tuple[float, int]] = {}
        if self.precision == "int8":
            for a in arch.activations:
                zero = int(bundle.tensors[f"{a}.zero_point"])
                self.affine[a] = float(bundle.tensors[f"{a}.scale"]), zero - SHIFT
        floats = unpack(card, bundle.tensors) if self.precision == "int8" else fold(arch, bundle.tensors)
        self.weights = nn.ModuleDict()
        for op in arch.layers:
            weight, bias = floats[op.name]
            self.weights[op.name.replace(".", "_")] = _Weights(*self._held(op, weight, bundle.tensors), bias)

    def _held(self, op: Op, weight: Array, tensors: Tensors) -> tuple[Array, Array | None]:
        """A layer's weights as its precision holds them, and their scales where they are int8."""
        match self.precision:
            case "int8" if op.name not in self.float_ops:
                return tensors[f"{op.name}.weight"], tensors[f"{op.name}.weight_scale"]
            case "dynamic":
                return int8_weights(weight)
            case "float16":
                return half(weight), None
            case _:
                return weight, None

    def _quantized(self, x: Tensor, name: str) -> Tensor:
        scale, zero = self.affine[name]
        y: Tensor = q.quantize_per_tensor(x, scale, zero, -SHIFT, SHIFT - 1, torch.int8)
        return y

    def _dequantized(self, x: Tensor, name: str) -> Tensor:
        scale, zero = self.affine[name]
        y: Tensor = q.dequantize_per_tensor(x, scale, zero, -SHIFT, SHIFT - 1, torch.int8)
        return y

    def _read(self, x: Tensor, name: str, op: Op) -> Tensor:
        """What `op` reads of `name`: float values, rounded to int8's unless both sides are float."""
        if not self.affine or (x.dtype != torch.int8 and op.name in self.float_ops):
            return x
        return self._dequantized(x if x.dtype == torch.int8 else self._quantized(x, name), name)

    def _layer(self, op: Op, x: Tensor) -> Tensor:
        weight, bias = self.weights[op.name.replace(".", "_")]()
        pad = op.kernel // 2
        if self.arch.padding == "same" and op.stride > 1:
            x, pad = pad_same(x, op.kernel, op.stride), 0
        y = F.conv2d(x, weight, bias, op.stride, pad, groups=op.groups)
        return activated(op, y) if op.activation else y

    def _operation(self, op: Op, inputs: list[Tensor]) -> Tensor:
        if op.is_layer:
            return self._layer(op, *inputs)
        match op.kind:
            case "activation":
                return activated(op, *inputs)
            case "pool":
                return inputs[0].mean((2, 3), keepdim=True)
            case "attend":
                return attend(op, *inputs)
            case kind:
                return torch.add(*inputs) if kind == "add" else torch.mul(*inputs)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] -> probabilities [N, classes]."""
        x = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        values = {"input": self._quantized(x, "input") if self.affine else x}
        for op, unread in zip(self.arch.ops, self.arch.frees, strict=True):
            x = self._operation(op, [self._read(values[name], name, op) for name in op.inputs])
            for name in unread:
                del values[name]
            values[op.name] = self._quantized(x, op.name) if self.affine and op.name not in self.float_ops else x
        (last,) = values
        if values[last].dtype == torch.int8:
            x = self._dequantized(values[last], last)
        return torch.softmax(x.view(-1, x.shape[1]), 1)


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


def exported(bundle: Bundle, batch: int | None, most: int | None = None) -> ExportedProgram:
    """`bundle` as a program of its card's precision. `batch`: the N of every call; None: any up to `most`."""
    r = bundle.card.arch.resolution
    shapes = None if batch else ({0: Dim("N", min=1, max=most)},)
    # PyTorch chooses a convolution by its batch, and ExecuTorch takes that for a bound on it: the largest is shown.
    example = torch.zeros(batch or most or 2, r, r, 3, dtype=torch.uint8)
    with torch.no_grad():
        return torch.export.export(Network(bundle).eval(), (example,), dynamic_shapes=shapes)
