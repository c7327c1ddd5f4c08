"""Arch -> PyTorch: one builder and one class for every network."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from mobilenets import spec, zoo
from mobilenets.spec import Activation, Arch, Block, Op, Padding, same_padding

ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6}


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad `x` [N, C, H, W] as TensorFlow's "SAME" does."""
    top, bottom = same_padding(x.shape[2], kernel, stride)
    left, right = same_padding(x.shape[3], kernel, stride)
    return F.pad(x, (left, right, top, bottom))


class ConvNormAct(nn.Module):
    """A convolution, BatchNorm and, unless the layer is linear, its activation: [N, cin, H, W] -> [N, cout, H', W']."""

    def __init__(self, op: Op, padding: Padding, bn_eps: float, bn_momentum: float) -> None:
        super().__init__()
        self.same = padding == "same" and op.stride > 1  # at stride 1 and an odd kernel, "SAME" is symmetric
        pad = 0 if self.same else op.kernel // 2
        self.conv = nn.Conv2d(op.cin, op.cout, op.kernel, op.stride, pad, groups=op.groups, bias=False)
        self.norm = nn.BatchNorm2d(op.cout, eps=bn_eps, momentum=bn_momentum)
        self.act = ACTIVATIONS[op.activation](inplace=True) if op.activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            x = pad_same(x, self.conv.kernel_size[0], self.conv.stride[0])
        return cast(Tensor, self.act(self.norm(self.conv(x))))


class BlockModule(nn.Module):
    """A row of the table; its layers are children named as in the `Arch`."""

    def __init__(self, block: Block, arch: Arch) -> None:
        super().__init__()
        self.shortcut = block.shortcut
        for op in block.ops:
            self.add_module(op.name, ConvNormAct(op, arch.padding, arch.bn_eps, arch.bn_momentum))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.children():
            y = layer(y)
        return x + y if self.shortcut else y


class MobileNet(nn.Module):
    """The network an `Arch` describes: images [N, 3, H, W], preprocessed, to logits [N, classes].

    H and W may differ from `arch.resolution`: the network is fully convolutional up to its pooling.
    """

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.blocks = nn.ModuleList(BlockModule(b, arch) for b in arch.blocks)
        self.dropout = nn.Dropout(arch.dropout)
        self.classifier = nn.Linear(arch.width, arch.classes) if arch.classes else nn.Identity()
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out")
            elif isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=0.01)
                nn.init.zeros_(m.bias)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Each stage's map, [N, 3, H, W] -> {"stage1": [N, C, H/2, W/2], ..., "stage5": [N, C, H/32, W/32]}."""
        taps = {s.block: s.name for s in self.arch.stages}
        maps = {}
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in taps:
                maps[taps[i]] = x
        return maps

    def pooled(self, x: Tensor) -> Tensor:
        """The last map averaged over its positions: [N, 3, H, W] -> [N, arch.width]."""
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.classifier(self.dropout(self.pooled(x))))


def build(arch: Arch) -> MobileNet:
    """The network `arch` describes, randomly initialised from torch's global generator."""
    return MobileNet(arch)


def create(
    name: str,
    alpha: float = 1.0,
    resolution: int = 224,
    classes: int = 1000,
    *,
    activation: Activation | None = None,
    padding: Padding = "symmetric",
    bn_eps: float = 1e-5,
    bn_momentum: float = 0.1,
    dropout: float = 0.0,
    divisor: int = 8,
    min_depth: int = 8,
    keep_head: bool | None = None,
) -> MobileNet:
    """Build a network by name: `create("v2", alpha=0.5, resolution=160, classes=10)`.

    Arguments are those of `spec.scale`; None takes the paper's convention. Raises `UserError` on a bad one.
    """
    arch = spec.scale(
        zoo.network(name), alpha, resolution, classes,
        activation=activation, padding=padding, bn_eps=bn_eps, bn_momentum=bn_momentum, dropout=dropout,
        divisor=divisor, min_depth=min_depth, keep_head=keep_head,
    )  # fmt: skip
    return build(arch)
