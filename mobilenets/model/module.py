"""Arch -> PyTorch: one builder and one class for every network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilenets.arch import matrices
from mobilenets.arch.graph import Graph, Head, same_padding
from mobilenets.arch.matrices import DENSE
from mobilenets.arch.operations import KINDS, Activation, Op
from mobilenets.arch.spec import CLASSIFIER, Arch, Block
from mobilenets.errors import UserError
from mobilenets.model.conv import Conv2d
from mobilenets.model.detections import Boxes, Detected, Suppress
from mobilenets.model.joints import (
    Add,
    Attend,
    Concat,
    L2Norm,
    Mul,
    Pool,
    Rows,
    Shuffle,
    Sigmoid,
    Slice,
    Softmax,
    Upsample,
    Windows,
)

Taps = dict[str, Tensor]  # values by the names of operations, or outputs by theirs
ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hard_swish": nn.Hardswish,
    "hard_sigmoid": nn.Hardsigmoid,
    "gelu": nn.GELU,
}


def pad_same(x: Tensor, kernels: Sequence[int], stride: int) -> Tensor:
    """Pad `x` [N, C, H, W] as TensorFlow's "SAME" does."""
    top, bottom = same_padding(x.shape[2], kernels[0], stride)
    left, right = same_padding(x.shape[3], kernels[1], stride)
    return F.pad(x, (left, right, top, bottom))


def pads_same(op: Op, arch: Arch) -> bool:
    """Whether a layer pads by `pad_same` before its convolution: at stride 1 and an odd kernel, "SAME" is symmetric."""
    return arch.padding == "same" and op.stride > 1 and op.pads is None


def own_padding(op: Op, arch: Arch) -> tuple[int, int]:
    """What a layer's convolution itself adds above and below, left and right."""
    if pads_same(op, arch) or op.kind == "global":
        return 0, 0
    return (op.kernels[0] // 2, op.kernels[1] // 2) if op.pads is None else op.pads[:2]


class ConvNormAct(nn.Module):
    """A convolution, BatchNorm or a bias, an activation, as `op` says: [N, cin, H, W] -> [N, cout, H', W']."""

    def __init__(self, op: Op, arch: Arch) -> None:
        super().__init__()
        self.same, pad = pads_same(op, arch), own_padding(op, arch)
        self.conv = Conv2d(op.cin, op.cout, op.kernels, op.stride, pad, groups=op.groups, bias=op.bias)
        self.norm = nn.BatchNorm2d(op.cout, arch.bn_eps, arch.bn_momentum) if op.norm else nn.Identity()
        self.act = ACTIVATIONS[op.activation](inplace=True) if op.activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            x = pad_same(x, self.conv.kernel_size, self.conv.stride[0])
        return cast(Tensor, self.act(self.norm(self.conv(x))))


class Transposed(ConvNormAct):
    """A transposed convolution that makes a 2x2 square of each position: [N, cin, H, W] -> [N, cout, 2 H, 2 W]."""

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        return cast(Tensor, self.act(self.norm(F.conv_transpose2d(x, conv.weight.transpose(0, 1), conv.bias, 2))))


class MapClassifier(ConvNormAct):
    """A classifier at every position of a map, dropout before it: [N, C, H, W] -> [N, classes, H, W]."""

    def __init__(self, op: Op, arch: Arch) -> None:
        super().__init__(op, arch)
        self.dropout = arch.dropout

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, self.dropout, self.training))


class Linear(nn.Linear):
    """A fully connected layer for features [N, C] or [N, C, 1, 1], dropout before it: as many axes come out."""

    def __init__(self, op: Op, arch: Arch) -> None:
        super().__init__(op.cin, op.cout)
        self.dropout = arch.dropout

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(F.dropout(x.flatten(1), self.dropout, self.training))
        return y if x.ndim == 2 else y[:, :, None, None]


class Structured(nn.Module):
    """A fully connected layer whose matrix is made of a few vectors (see `arch.matrices`), dropout before it."""

    def __init__(self, op: Op, arch: Arch) -> None:
        super().__init__()
        self.op, self.dropout = op, arch.dropout
        self.parts = matrices.vectors(op.structure, op.cin, op.cout)
        for name, shape in self.parts.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.bias = nn.Parameter(torch.empty(op.cout))

    @property
    def weight(self) -> Tensor:
        parts = {name: self.get_parameter(name).float() for name in self.parts}
        return cast(Tensor, matrices.matrix(self.op.structure, self.op.cin, self.op.cout, parts, torch))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(F.dropout(x.flatten(1), self.dropout, self.training), self.weight, self.bias)
        return y if x.ndim == 2 else y[:, :, None, None]


def _linear(op: Op, arch: Arch) -> nn.Module:
    return Linear(op, arch) if op.structure == DENSE else Structured(op, arch)


def _norm(op: Op, arch: Arch) -> nn.Module:
    return nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(op.cout, arch.bn_eps, arch.bn_momentum)))


def _of_two_stages(kind: str) -> Callable[[Op, Arch], nn.Module]:
    """What is imported where a network has it: torchvision's detectors take as long to import as all of PyTorch."""

    def made(op: Op, arch: Arch) -> nn.Module:
        from mobilenets.model import two_stage

        return two_stage.MODULES[kind](op, arch)

    return made


MODULES: dict[str, Callable[[Op, Arch], nn.Module]] = {
    "conv": ConvNormAct,
    "depthwise": ConvNormAct,
    "pointwise": ConvNormAct,
    "global": ConvNormAct,
    "linear": _linear,
    "transposed": Transposed,
    "norm": _norm,
    "activation": lambda op, _: ACTIVATIONS[cast(Activation, op.activation)](),
    "pool": lambda _op, _: Pool(),
    "maxpool": Windows,
    "avgpool": Windows,
    "shuffle": lambda op, _: Shuffle(op.grouped),
    "slice": lambda op, _: Slice(op),
    "add": lambda _op, _: Add(),
    "mul": lambda _op, _: Mul(),
    "attend": lambda op, _: Attend(op.heads),
    "concat": lambda _op, _: Concat(),
    "flatten": lambda _op, _: nn.Flatten(),
    "rows": lambda op, _: Rows(op.cout),
    "stack": lambda _op, _: Concat(),
    "upsample": lambda _op, _: Upsample(),
    "softmax": lambda _op, _: Softmax(),
    "sigmoid": lambda _op, _: Sigmoid(),
    "l2norm": lambda _op, _: L2Norm(),
    "boxes": lambda op, _: Boxes(op),
    "suppress": lambda op, _: Suppress(op),
    "detected": lambda op, _: Detected(op),
    **{kind: _of_two_stages(kind) for kind in ("subsample", "propose", "crop", "refine", "masks")},
}


class BlockModule(nn.Module):
    """A row of the table; its operations are children named as in the `Arch`."""

    def __init__(self, block: Block, arch: Arch) -> None:
        super().__init__()
        self.block = block
        for op in block.ops:
            self.add_module(op.name.rsplit(".", 1)[1], module_for(op, arch))

    def forward(self, x: Tensor) -> Tensor:
        values = {self.block.source: x}
        for op, module in zip(self.block.ops, self.children(), strict=True):
            x = module(*(values[name] for name in op.inputs))
            values[op.name] = x
        return x


def module_for(op: Op, arch: Arch) -> nn.Module:
    """What computes an operation. Raises `UserError` for a kind that PyTorch's network has no module for."""
    if op.kind not in MODULES:
        raise UserError(f"PyTorch's network has no {op.kind} ({op.name})")
    return MODULES[op.kind](op, arch)


def _place(root: nn.Module, name: str, module: nn.Module) -> None:
    """Make `module` the one called "a.b.c" below `root`, and what is between them."""
    *way, last = name.split(".")
    for part in way:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(last, module)


class Walker(nn.Module):
    """A graph in PyTorch: any network that computes it operation by operation. Subclasses say by which modules."""

    graph: Graph

    def of(self, op: Op) -> nn.Module:
        """What computes `op`."""
        raise NotImplementedError  # pragma: no cover

    def compute(self, op: Op, inputs: Sequence[Tensor]) -> Tensor:
        """What `op` makes of its inputs."""
        return cast(Tensor, self.of(op)(*inputs))

    def run(self, values: Mapping[str, Tensor], taps: Collection[str], ops: Sequence[Op] | None = None) -> Taps:
        """The values `taps`, of any of the graph's operations, computed from those that are there.

        `ops`: those to run, in order; all that come before the last tap, if left out.
        """
        if ops is None:
            ops = self.graph.upto(taps).ops
        there = dict(values)
        last = {name: i for i, op in enumerate(ops) for name in op.inputs}
        out = {name: there[name] for name in taps if name in there}
        for i, op in enumerate(ops):
            x = there[op.name] = self.compute(op, [there[name] for name in op.inputs])
            if op.name in taps:
                out[op.name] = x
            for name in op.inputs:
                if last[name] == i:
                    there.pop(name, None)
        return out

    def answers(self, x: Tensor) -> Taps:
        """Images [N, 3, H, W], preprocessed, to the graph's outputs by name."""
        made = self.run({self.graph.source: x}, {o.op for o in self.graph.outputs})
        return {o.name: made[o.op] for o in self.graph.outputs}


def classifier_of(arch: Arch) -> nn.Module:
    """The layer that gives the logits; of a headless network, nothing."""
    if not arch.num_classes:
        return nn.Identity()
    made = MapClassifier if arch.classifies == "map" else _linear
    return made(arch.graph.op(CLASSIFIER), arch)


def initialise(module: nn.Module) -> None:
    """Random weights for one layer, from torch's global generator."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, MapClassifier):  # after its convolution: as SqueezeNet's, whose answers would die else
        nn.init.normal_(module.conv.weight, std=0.01)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Structured):
        rng, op = np.random.default_rng(int(torch.randint(2**31, ()))), module.op
        vectors = matrices.random(op.structure, op.cin, op.cout, op.cin**-0.5, rng)
        with torch.no_grad():
            for name, value in vectors.items():
                module.get_parameter(name).copy_(torch.from_numpy(value))
        nn.init.zeros_(module.bias)


class MobileNet(Walker):
    """The network an `Arch` describes: images [N, 3, H, W], preprocessed, to logits [N, classes].

    H and W may differ from `arch.resolution`: the network is fully convolutional up to its pooling. `head` are a task's
    operations: `answers` gives its outputs.
    """

    def __init__(self, arch: Arch, head: Head | None = None) -> None:
        super().__init__()
        self.arch = arch
        self.graph = arch.graph.whole(head) if head else arch.graph
        self.blocks = nn.ModuleList(BlockModule(b, arch) for b in arch.blocks)
        self.pool = Pool()
        self.head = nn.ModuleList(BlockModule(b, arch) for b in arch.head_blocks)
        self.classifier = classifier_of(arch)
        self.attach(head)
        self.apply(initialise)

    def attach(self, head: Head | None) -> None:
        """Make a task's operations modules of the network: those without weights, whose names are free, apart."""
        self.answering = nn.ModuleDict()
        for op in head.ops if head else ():
            if op.is_layer or KINDS[op.kind].constant:
                module = module_for(op, self.arch)
                if op.shares:
                    module.conv = self._shared(op)
                _place(self, op.name, module)
            else:
                self.answering[op.name.replace(".", "_")] = module_for(op, self.arch)

    def _shared(self, op: Op) -> nn.Module:
        """The convolution of the layer whose weights `op` has. Raises `UserError` where there is none such."""
        like = self.graph.op(op.shares)
        if (like.weight_shape, like.bias) != (op.weight_shape, op.bias) or like.kind not in (
            "conv",
            "depthwise",
            "pointwise",
        ):
            raise UserError(f"{op.name} can't have the weights of {like.name}, which are of another shape")
        return self.get_submodule(f"{like.name}.conv")

    def of(self, op: Op) -> nn.Module:
        key = op.name.replace(".", "_")
        return self.answering[key] if key in self.answering else self.get_submodule(op.name)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Each stage's map, [N, 3, H, W] -> {"stage1": [N, C, H/2, W/2], ..., "stage5": [N, C, H/32, W/32]}."""
        taps = {s.block: s.name for s in self.arch.stages}
        maps = {}
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in taps:
                maps[taps[i]] = x
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map: [N, 3, H, W] -> [N, C, H/32, W/32]."""
        for block in self.blocks:
            x = block(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map [N, C, h, w] to logits [N, num_classes], or to the vector that it is pooled to."""
        if self.arch.classifies == "map" and not pre_logits:  # at every position
            return cast(Tensor, self.pool(self.classifier(x))).flatten(1)
        x = self.pool(x)
        for block in self.head:
            x = block(x)
        x = x.flatten(1)
        return x if pre_logits else cast(Tensor, self.classifier(x))

    def pooled(self, x: Tensor) -> Tensor:
        """What the classifier reads, the last map averaged and through the head: [N, 3, H, W] -> [N, arch.features]."""
        return self.forward_head(self.forward_features(x), pre_logits=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def build(arch: Arch, head: Head | None = None) -> MobileNet:
    """The network `arch` describes, randomly initialised from torch's global generator, with a task's `head`."""
    return MobileNet(arch, head)
