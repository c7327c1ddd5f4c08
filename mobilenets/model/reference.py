"""Bundles in PyTorch, operation by operation, every tensor rounded to the values that a file of its precision holds.

It is the reference that exported files are proved against, and what `eval` of an int8 bundle runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilenets.arch.graph import Graph
from mobilenets.arch.operations import KINDS, Op
from mobilenets.arch.rounding import with_rounding
from mobilenets.arch.spec import Arch
from mobilenets.model.bundle import Bundle
from mobilenets.model.encodings import Array, Folded, Tensors, fold, rounded, unpack
from mobilenets.model.module import ACTIVATIONS, MobileNet, Walker, module_for, own_padding, pad_same, pads_same
from mobilenets.model.net import of_tensors


class Layer(nn.Module):
    """A folded layer: its weights are buffers, since nothing trains them."""

    def __init__(self, op: Op, arch: Arch, weight: Array, bias: Array) -> None:
        super().__init__()
        self.op, self.same, self.pad = op, pads_same(op, arch), own_padding(op, arch)
        self.register_buffer("weight", torch.from_numpy(weight))
        self.register_buffer("bias", torch.from_numpy(bias))
        self.act = ACTIVATIONS[op.activation]() if op.activation else nn.Identity()

    weight: Tensor
    bias: Tensor

    def sums(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer's convolution with other weights of its shape, before its activation."""
        op = self.op
        if op.kind == "transposed":
            return F.conv_transpose2d(x, weight.transpose(0, 1), bias, 2)
        if op.kind == "linear":  # [N, cin] or [N, cin, 1, 1]; a convolution of as many inputs takes ten times as long
            return F.linear(x.flatten(1), weight.flatten(1), bias)[:, :, None, None]
        if self.same:
            x = pad_same(x, op.kernels, op.stride)
        return F.conv2d(x, weight, bias, op.stride, self.pad, groups=op.groups)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.sums(x, self.weight, self.bias))
        return y


class FoldedNetwork(Walker):
    """Folded layers, activations in float: images [N, 3, H, W] to the graph's outputs by name.

    `layers` has a module for each of the graph's operations, in their order.
    """

    def __init__(self, arch: Arch, graph: Graph, folded: Folded, constants: Tensors | None = None) -> None:
        """`constants`: what the graph's operations read besides weights, by the tensors' names."""
        super().__init__()
        self.arch, self.graph, self.constants = arch, graph, constants or {}
        self.layers = nn.ModuleList(
            Layer(op, arch, *folded[op.name]) if op.is_layer else self.joint(op) for op in graph.ops
        )
        self.at = {op.name: i for i, op in enumerate(graph.ops)}

    def joint(self, op: Op) -> nn.Module:
        """What computes an operation without weights."""
        made = module_for(op, self.arch)
        if constant := KINDS[op.kind].constant:
            made.load_state_dict({constant: torch.from_numpy(self.constants[f"{op.name}.{constant}"])})
        return made

    def of(self, op: Op) -> nn.Module:
        return self.layers[self.at[op.name]]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.answers(x)


class RoundedNetwork(FoldedNetwork):
    """Folded layers of an int8 network, computed in the floats that its whole numbers stand for.

    `graph` is one that `with_rounding` made; subclasses say what rounds an activation.
    """

    def round(self, x: Tensor, activation: str) -> Tensor:
        """`x` at the 256 values that `activation` can have."""
        raise NotImplementedError  # pragma: no cover

    def joint(self, op: Op) -> nn.Module:
        return nn.Identity() if op.kind in ("quantize", "dequantize") else super().joint(op)

    def compute(self, op: Op, inputs: Sequence[Tensor]) -> Tensor:
        y = super().compute(op, inputs)
        return self.round(y, self.graph.activation_of(op.name)) if op.name in self.graph.integers else y


class Sums(nn.Module):
    """A layer whose inputs, weights and sums are whole numbers, held in floats: exact below 2**24."""

    codes: Tensor
    bias: Tensor
    multiplier: Tensor

    def __init__(self, layer: Layer, tensors: Tensors, scale_in: float, scale_out: float) -> None:
        super().__init__()
        self.layer, name = layer, layer.op.name
        self.register_buffer("codes", torch.from_numpy(tensors[f"{name}.weight"].astype(np.float32)))
        self.register_buffer("bias", torch.from_numpy(tensors[f"{name}.bias"].astype(np.float32)))
        multiplier = tensors[f"{name}.weight_scale"].astype(np.float64) * scale_in / scale_out
        self.register_buffer("multiplier", torch.from_numpy(multiplier.astype(np.float32))[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Whole numbers -> what they come to in steps of the output, before it is rounded."""
        return self.layer.sums(x, self.codes, self.bias) * self.multiplier


class SimulatedInt8(RoundedNetwork):
    """An int8 bundle as a module, in the floats that training computes in."""

    def __init__(self, bundle: Bundle) -> None:
        card = bundle.card
        graph = with_rounding(card.graph, card.float_ops)
        super().__init__(card.arch, graph, unpack(card, bundle.tensors), bundle.tensors)
        self.affine = {
            a: (float(bundle.tensors[f"{a}.scale"]), int(bundle.tensors[f"{a}.zero_point"]))
            for a in card.graph.activations
        }

    def round(self, x: Tensor, activation: str) -> Tensor:
        scale, zero = self.affine[activation]
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)


class ExactInt8(SimulatedInt8):
    """An int8 bundle as a module that adds up whole numbers, as the runtimes that compute exactly do.

    Sums in float are off by a ten-millionth, which is one step of the output for one value in 30,000.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        whole = self.graph.integers
        self.sums = nn.ModuleDict()
        self.whole = {
            op.name
            for op in self.graph.ops
            if op.name in whole and (op.is_layer or op.kind in ("pool", "add", "mul")) and {*op.inputs} <= whole
        }
        for i, op in enumerate(self.graph.ops):
            if op.name in self.whole and op.is_layer:
                scales = (self.affine[self.graph.activation_of(name)][0] for name in (op.inputs[0], op.name))
                self.sums[str(i)] = Sums(cast(Layer, self.of(op)), bundle.tensors, *scales)

    def compute(self, op: Op, inputs: Sequence[Tensor]) -> Tensor:
        if op.name not in self.whole:
            return super().compute(op, inputs)
        scales = [self.affine[self.graph.activation_of(name)][0] for name in op.inputs]
        scale, zero = self.affine[self.graph.activation_of(op.name)]
        steps = self.steps(op, [torch.round(x / s) for x, s in zip(inputs, scales, strict=True)], scales, scale)
        low = 0 if op.activation else -zero
        high = 255 - zero
        if op.activation == "relu6":
            high = min(high, int(np.rint(np.float32(6) * (np.float32(1) / np.float32(scale)))))
        return torch.round(steps).clamp(low, high) * scale

    def steps(self, op: Op, inputs: Sequence[Tensor], scales: Sequence[float], scale: float) -> Tensor:
        """What an operation makes of whole numbers, in steps of its output; products rounded as floats are."""
        match op.kind:
            case "pool":
                (x,) = inputs
                return (
                    x.sum((2, 3), keepdim=True) * scales[0] / x[0, 0].numel() * float(np.float32(1) / np.float32(scale))
                )
            case "add":
                a, b = (x * float(np.float32(s / scale)) for x, s in zip(inputs, scales, strict=True))
                return a + b
            case "mul":
                x, gate = inputs
                return x * (gate * float(np.float32(scales[0] * scales[1] / scale)))
            case _:
                return cast(Tensor, self.sums[str(self.at[op.name])](*inputs))


def float_model(bundle: Bundle) -> MobileNet:
    """The float network with the bundle's weights, in eval mode. What its outputs don't need stays as it is made."""
    plain = bundle.dense()
    return of_tensors(plain.card, plain.tensors)


def folded_network(bundle: Bundle) -> FoldedNetwork:
    """A float bundle's network with BatchNorm folded and its weights rounded as its card's precision says."""
    plain = bundle.dense()
    card, tensors = plain.card, plain.tensors
    return FoldedNetwork(card.arch, card.graph, rounded(fold(card, tensors), card.precision), tensors).eval()


def module(bundle: Bundle) -> Walker:
    """The bundle as a PyTorch module in eval mode, as its card's precision says.

    int8 tensors are an int8 bundle's, all others' a float bundle's. float16, dynamic and int4 round the weights alone.
    """
    match bundle.card.precision:
        case "float32":
            return float_model(bundle)
        case "int8":
            return ExactInt8(bundle).eval()
        case _:
            return folded_network(bundle)
