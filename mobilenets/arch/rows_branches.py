"""Rows of convolutions and poolings side by side, as before MobileNets: SqueezeNet's fire, Inception. No torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from mobilenets.arch.operations import Op
from mobilenets.arch.rows import Row, Scaling, layer
from mobilenets.errors import UserError

Pooling = Literal["", "max", "mean"]
POOLINGS = {"max": "maxpool", "mean": "avgpool"}
SAME = -1  # as many pixels around as keep a map's size at stride 1
NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Step:
    """A convolution of `channels`, or a `pooling` ("max", "mean"), its window `kernel` x `kernel_width` or square.

    `reads`: the step of its row whose output it reads, the row's input if empty. `pad`: pixels around. `ceil`: the
    last window of a pooling may stand over the edge (Caffe's rule).
    """

    name: str
    channels: int = 0
    kernel: int = 1
    stride: int = 1
    pad: int = SAME
    kernel_width: int = 0
    reads: str = ""
    pooling: Pooling = ""
    ceil: bool = False

    def __post_init__(self) -> None:
        whole = (self.channels, self.kernel, self.stride, self.pad, self.kernel_width)
        if not all(type(v) is int and v <= 65536 for v in whole) or not isinstance(self.ceil, bool):
            raise UserError(f"not an Arch: a step needs whole numbers up to 65536, not {whole}")
        if min(self.channels, self.kernel_width, self.kernel - 1, self.stride - 1, self.pad - SAME) < 0:
            raise UserError(f"not an Arch: a step of {whole}")
        if not (isinstance(self.name, str) and NAME.fullmatch(self.name)) or self.pooling not in ("", *POOLINGS):
            raise UserError(f"not an Arch: a step called {self.name!r} that pools by {self.pooling!r}")
        if bool(self.channels) == bool(self.pooling):
            raise UserError(f"not an Arch: the step {self.name} has to be a convolution or a pooling")

    @property
    def pads(self) -> tuple[int, int, int, int] | None:
        return None if self.pad == SAME else (self.pad,) * 4

    def op(self, cin: int, scaling: Scaling, norm: bool) -> Op:
        if self.pooling:
            kind = POOLINGS[self.pooling]
            return Op(self.name, kind, cin, cin, self.kernel, self.stride, pads=self.pads, ceil=self.ceil)
        dense = self.kernel == 1 and self.kernel_width in (0, 1)
        return Op(
            self.name, "pointwise" if dense else "conv", cin, self.channels, self.kernel, self.stride,
            scaling.activation, norm=norm, bias=not norm, kernel_width=self.kernel_width,
            pads=None if dense else self.pads,
        )  # fmt: skip


@dataclass(frozen=True)
class Branches(Row):
    """`steps`, each after those that it reads; what no step reads is joined, channel after channel, in their order.

    A convolution is followed by the network's activation, and has BatchNorm before it, or a bias, without `norm`.
    """

    steps: tuple[Step, ...]
    norm: bool = True
    WIDTHS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        there = {""}
        for step in self.steps:
            if step.reads not in there or step.name in there:
                raise UserError(f"not an Arch: the step {step.name!r} reads {step.reads!r}, or is there twice")
            there.add(step.name)
        if not self.steps:
            raise UserError("not an Arch: branches without a step")

    @property
    def ends(self) -> tuple[Step, ...]:
        """What no step reads."""
        read = {s.reads for s in self.steps}
        return tuple(s for s in self.steps if s.name not in read)

    @property
    def channels(self) -> int:
        """Of the convolutions that are joined; a pooling among them has the input's."""
        return sum(s.channels for s in self.ends)

    @property
    def stride(self) -> int:
        return max(s.stride for s in self.steps)

    def ops(self, cin: int, scaling: Scaling) -> tuple[Op, ...]:
        out: list[Op] = []
        made = {"": ("", cin)}  # a step -> the operation that gives its output, and its channels
        for step in self.steps:
            before, channels = made[step.reads]
            ops = layer(step.op(channels, scaling, self.norm))
            for op in ops:
                out.append(dataclasses.replace(op, inputs=(before,)))
                before = op.name
            made[step.name] = before, ops[-1].cout
        ends = [made[s.name] for s in self.ends]
        if len(ends) > 1:
            total = sum(channels for _, channels in ends)
            out.append(Op("concat", "concat", total, total, inputs=tuple(name for name, _ in ends)))
        return tuple(out)

    def scaled(self, of: Callable[[int], int]) -> Branches:
        steps = (dataclasses.replace(s, channels=of(s.channels)) if s.channels else s for s in self.steps)
        return dataclasses.replace(self, steps=tuple(steps))


def convolution(
    channels: int, kernel: int = 3, stride: int = 1, pad: int = SAME, kernel_width: int = 0, norm: bool = True
) -> Branches:
    """A convolution by itself; without `norm` with a bias."""
    return Branches((Step("conv", channels, kernel, stride, pad, kernel_width),), norm)


def pooling(kernel: int = 3, stride: int = 2, pad: int = 0, ceil: bool = False, kind: Pooling = "max") -> Branches:
    """A pooling by itself."""
    return Branches((Step("pool", 0, kernel, stride, pad, pooling=kind, ceil=ceil),))


def fire(squeeze: int, expand: int) -> Branches:
    """A fire module (SqueezeNet paper, section 3.1): to few channels, then to `expand` by 1x1 and as many by 3x3."""
    return Branches(
        (
            Step("squeeze", squeeze),
            Step("expand1x1", expand, reads="squeeze"),
            Step("expand3x3", expand, 3, reads="squeeze"),
        ),
        norm=False,
    )
