"""Bundles in PyTorch, operation by operation, every tensor rounded to the values that a file of its precision holds.

It is the reference that exported files are proved against, and what `eval` of an int8 bundle runs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilenets.arch.graph import Op
from mobilenets.arch.spec import Arch
from mobilenets.model.bundle import Bundle
from mobilenets.model.encodings import Array, Folded, fold, rounded, unpack
from mobilenets.model.module import ACTIVATIONS, MODULES, MobileNet, build, pad_same


class Layer(nn.Module):
    """A folded layer: its weights are buffers, since nothing trains them."""

    def __init__(self, op: Op, arch: Arch, weight: Array, bias: Array) -> None:
        super().__init__()
        self.op, self.same = op, arch.padding == "same" and op.stride > 1
        self.register_buffer("weight", torch.from_numpy(weight))
        self.register_buffer("bias", torch.from_numpy(bias))
        self.act = ACTIVATIONS[op.activation]() if op.activation else nn.Identity()

    weight: Tensor
    bias: Tensor

    def sums(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer's convolution with other weights of its shape, before its activation."""
        op = self.op
        if self.same:
            x = pad_same(x, op.kernel, op.stride)
        pad = 0 if self.same else op.kernel // 2
        return F.conv2d(x, weight, bias, op.stride, pad, groups=op.groups)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.sums(x, self.weight, self.bias))
        return y


class FoldedNetwork(nn.Module):
    """Folded layers, activations in float: images [N, 3, H, W] to logits [N, classes].

    `layers` has a module for each of `arch.ops`, in their order.
    """

    def __init__(self, arch: Arch, folded: Folded) -> None:
        super().__init__()
        self.arch = arch
        self.layers = nn.ModuleList(
            Layer(op, arch, *folded[op.name]) if op.is_layer else MODULES[op.kind](op, arch) for op in arch.ops
        )

    def made(self, x: Tensor, _name: str) -> Tensor:
        """What becomes of the activation `name` when it is made."""
        return x

    def read(self, x: Tensor, _name: str, _by: Op) -> Tensor:
        """The activation `name` as the operation `by` reads it."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        values = {"input": self.made(x, "input")}
        for op, layer, unread in zip(self.arch.ops, self.layers, self.arch.frees, strict=True):
            x = self.made(layer(*(self.read(values[name], name, op) for name in op.inputs)), op.name)
            for name in unread:
                del values[name]
            values[op.name] = x
        return x.flatten(1)


class SimulatedInt8(FoldedNetwork):
    """An int8 bundle as a module: float images [N, 3, H, W] to logits [N, classes]."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle.card.arch, unpack(bundle.card, bundle.tensors))
        self.float_ops = frozenset(bundle.card.float_ops)
        self.affine = {
            a: (float(bundle.tensors[f"{a}.scale"]), int(bundle.tensors[f"{a}.zero_point"]))
            for a in self.arch.activations
        }

    def round(self, x: Tensor, name: str) -> Tensor:
        """`x` at the 256 values that the activation `name` can have."""
        scale, zero = self.affine[name]
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)

    def made(self, x: Tensor, name: str) -> Tensor:
        return x if name in self.float_ops else self.round(x, name)

    def read(self, x: Tensor, name: str, by: Op) -> Tensor:
        return self.round(x, name) if name in self.float_ops and by.name not in self.float_ops else x


def float_model(bundle: Bundle) -> MobileNet:
    """The float network with the bundle's weights, in eval mode."""
    model = build(bundle.card.arch)
    state = {k: torch.from_numpy(v) for k, v in bundle.tensors.items()}
    model.load_state_dict(state)
    return model.eval()


def folded_network(bundle: Bundle) -> FoldedNetwork:
    """A float bundle's network with BatchNorm folded and its weights rounded as its card's precision says."""
    arch = bundle.card.arch
    folded = rounded(fold(arch, bundle.tensors), bundle.card.precision)
    return FoldedNetwork(arch, folded).eval()


def module(bundle: Bundle) -> nn.Module:
    """The bundle as a PyTorch module in eval mode, as its card's precision says.

    int8 tensors are an int8 bundle's, all others' a float bundle's. float16, dynamic and int4 round the weights alone.
    """
    match bundle.card.precision:
        case "float32":
            return float_model(bundle)
        case "int8":
            return SimulatedInt8(bundle).eval()
        case _:
            return folded_network(bundle)
