"""The int8 network in PyTorch: the float operations with every tensor rounded to the values an int8 runtime can hold.

It is the reference that exported int8 files are proved against, and what `eval` of an int8 bundle runs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilenets.bundle import Bundle
from mobilenets.images import Pixels
from mobilenets.model import ACTIVATIONS, MODULES, MobileNet, build, pad_same
from mobilenets.rows import Op
from mobilenets.spec import Arch


class _Layer(nn.Module):
    def __init__(self, op: Op, padding: str) -> None:
        super().__init__()
        self.op, self.same = op, padding == "same" and op.stride > 1
        self.register_buffer("weight", torch.empty(op.cout, op.cin // op.groups, op.kernel, op.kernel))
        self.register_buffer("bias", torch.empty(op.cout))
        self.act = ACTIVATIONS[op.activation]() if op.activation else nn.Identity()

    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        op = self.op
        if self.same:
            x = pad_same(x, op.kernel, op.stride)
        pad = 0 if self.same else op.kernel // 2
        y: Tensor = self.act(F.conv2d(x, self.weight, self.bias, op.stride, pad, groups=op.groups))
        return y


class SimulatedInt8(nn.Module):
    """An int8 bundle as a module: float images [N, 3, H, W] to logits [N, classes]."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.arch: Arch = bundle.card.arch
        tensors = {k: torch.from_numpy(v) for k, v in bundle.tensors.items()}
        self.affine = {
            a: (float(tensors[f"{a}.scale"]), int(tensors[f"{a}.zero_point"])) for a in self.arch.activations
        }
        self.layers = nn.ModuleList(
            self._layer(op, tensors) if op.is_layer else MODULES[op.kind](op, self.arch) for op in self.arch.ops
        )

    def _layer(self, op: Op, tensors: dict[str, Tensor]) -> _Layer:
        layer = _Layer(op, self.arch.padding)
        scale = tensors[f"{op.name}.weight_scale"].double()
        layer.weight = (tensors[f"{op.name}.weight"].double() * scale[:, None, None, None]).float()
        layer.bias = (tensors[f"{op.name}.bias"].double() * scale * self.affine[op.inputs[0]][0]).float()
        return layer

    def _round(self, x: Tensor, name: str) -> Tensor:
        scale, zero = self.affine[name]
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)

    def forward(self, x: Tensor) -> Tensor:
        values = {"input": self._round(x, "input")}
        for op, layer, unread in zip(self.arch.ops, self.layers, self.arch.frees, strict=True):
            x = self._round(layer(*(values[name] for name in op.inputs)), op.name)
            for name in unread:
                del values[name]
            values[op.name] = x
        return x.flatten(1)


def float_model(bundle: Bundle) -> MobileNet:
    """The float network with the bundle's weights, in eval mode."""
    model = build(bundle.card.arch)
    state = {k: torch.from_numpy(v) for k, v in bundle.tensors.items()}
    model.load_state_dict(state)
    return model.eval()


def module(bundle: Bundle) -> nn.Module:
    """The bundle as a PyTorch module in eval mode, float or simulated int8."""
    return float_model(bundle) if bundle.card.precision == "float32" else SimulatedInt8(bundle).eval()


def calibrate(bundle: Bundle, images: Pixels, batch: int = 8) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of every activation over `images`, uint8 [N, H, W, 3]."""
    model = float_model(bundle)
    ranges: dict[str, tuple[float, float]] = {}

    def observe(name: str, y: Tensor) -> None:
        low, high = ranges.get(name, (0.0, 0.0))
        ranges[name] = min(low, float(y.min())), max(high, float(y.max()))

    for op in bundle.card.arch.ops:
        model.get_submodule(op.name).register_forward_hook(lambda _m, _x, y, name=op.name: observe(name, y))
    with torch.inference_mode():
        for i in range(0, len(images), batch):
            model(torch.from_numpy(bundle.card.preprocess.normalize(images[i : i + batch])))
    return ranges
