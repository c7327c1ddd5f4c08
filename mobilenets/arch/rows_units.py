"""Rows of the networks beside MobileNets: ShuffleNet's units, Xception's block, GhostNet's, MobileOne's. No torch.

What follows the idea of one paper is one row, whose docstring says where in the paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from mobilenets.arch.operations import Activation, Op
from mobilenets.arch.rows import (
    InvertedResidual,
    Row,
    Scaling,
    chain,
    conv,
    depthwise,
    layer,
    round_channels,
    squeeze_excite,
)


def after(source: str, *ops: Op) -> tuple[Op, ...]:
    """A branch that begins with what `source` gives."""
    return chain(*ops, source=source)


@dataclass(frozen=True)
class InvertedBottleneck(InvertedResidual):
    """An inverted residual that has no shortcut, whatever its shapes (MobileNetEdgeTPU's fourth stage)."""

    RESIDUAL: ClassVar[bool] = False


@dataclass(frozen=True)
class BiasedSeparable(Row):
    """A depthwise separable convolution with biases: MobileOne's block (2206.04040, section 3) as it is for inference.

    What trains it are branches beside one another, which fold into these two layers.
    """

    channels: int
    stride: int = 1
    kernel: int = 3

    def ops(self, cin: int, scaling: Scaling) -> tuple[Op, ...]:
        act = scaling.activation
        return chain(
            *layer(Op("depthwise", "depthwise", cin, cin, self.kernel, self.stride, act, bias=True)),
            *layer(Op("pointwise", "pointwise", cin, self.channels, activation=act, bias=True)),
        )


@dataclass(frozen=True)
class ShuffleUnit(Row):
    """A unit of ShuffleNet V2 (1807.11164, figure 3c and d): half of the channels pass, or both halves are halved."""

    channels: int
    stride: int = 1

    def ops(self, cin: int, scaling: Scaling) -> tuple[Op, ...]:
        half, act = self.channels // 2, scaling.activation
        left: tuple[Op, ...]
        source: tuple[Op, ...] = ()
        if self.stride == 1:
            left = (Op("left", "slice", cin, half, inputs=("",)),)
            source, fed = (Op("right", "slice", cin, half, first=half, inputs=("",)),), half
        else:
            left = after("", *depthwise("left_depthwise", cin, 3, self.stride), *conv("left", cin, half, act=act))
            fed = cin
        right = after(
            source[0].name if source else "",
            *conv("expand", fed, half, act=act),
            *depthwise("depthwise", half, 3, self.stride),
            *conv("project", half, half, act=act),
        )
        joined = Op("concat", "concat", 2 * half, 2 * half, inputs=(left[-1].name, right[-1].name))
        shuffle = Op("shuffle", "shuffle", 2 * half, 2 * half, grouped=2, inputs=("concat",))
        return *left, *source, *right, joined, shuffle


@dataclass(frozen=True)
class GroupedShuffleUnit(Row):
    """A unit of ShuffleNet (1707.01083, figure 2b and c): two 1x1 convolutions in groups, a shuffle between them.

    `dense`: the first is in one group, as where a network has few channels yet. At stride 2 the input is averaged, and
    joined with what the unit makes.
    """

    channels: int
    stride: int = 1
    groups: int = 3
    dense: bool = False

    def ops(self, cin: int, scaling: Scaling) -> tuple[Op, ...]:
        act, mid = scaling.activation, self.channels // 4
        made = (
            max(self.channels - cin, self.groups) if self.stride > 1 else cin
        )  # the narrowest units grow beyond theirs
        total = made + cin * (self.stride > 1)
        shuffle = [Op("shuffle", "shuffle", mid, mid, grouped=self.groups)] * (self.groups > 1)
        body = chain(
            *self._pointwise("reduce", cin, mid, 1 if self.dense else self.groups, act),
            *shuffle,
            *depthwise("depthwise", mid, 3, self.stride),
            *self._pointwise("expand", mid, made, self.groups, None),
        )
        if self.stride == 1:
            join = [Op("sum", "add", total, total, inputs=("", "expand"))]
        else:
            pads = (1, 1, 1, 1)
            join = [
                Op("mean", "avgpool", cin, cin, 3, self.stride, pads=pads, inputs=("",)),
                Op("concat", "concat", total, total, inputs=("expand", "mean")),
            ]
        last = Op("act", "activation", total, total, activation=act, inputs=(join[-1].name,))
        return *body, *join, last

    def _pointwise(self, name: str, cin: int, cout: int, groups: int, act: Activation | None) -> tuple[Op, ...]:
        if groups == 1:
            return conv(name, cin, cout, act=act)
        return layer(Op(name, "conv", cin, cout, activation=act, norm=True, grouped=groups))

    def scaled(self, of: Callable[[int], int]) -> GroupedShuffleUnit:
        step = 4 * self.groups  # so that a quarter of the channels has as many groups
        return dataclasses.replace(self, channels=max(step, round(of(self.channels) / step) * step))


def _bare(name: str, cin: int, cout: int, act: Activation | None, stride: int = 1) -> tuple[Op, ...]:
    """A separable convolution with nothing between its two layers."""
    return (
        Op(f"{name}depthwise", "depthwise", cin, cin, 3, stride),
        *conv(f"{name}pointwise", cin, cout, act=act),
    )


@dataclass(frozen=True)
class BareSeparable(Row):
    """A separable convolution with nothing between its two layers, as Xception has it (1610.02357, section 4.7)."""

    channels: int
    stride: int = 1

    def ops(self, cin: int, scaling: Scaling) -> tuple[Op, ...]:
        return chain(*_bare("", cin, self.channels, scaling.activation, self.stride))


@dataclass(frozen=True)
class XceptionBlock(Row):
    """`repeats` separable convolutions, an activation before each, with a shortcut (Xception, 1610.02357, figure 5).

    At another stride than 1 a max pooling follows them, and the shortcut is projected. `active`: an activation comes
    before the first too. `late`: the channels grow in the last, in place of the first.
    """

    channels: int
    stride: int = 1
    repeats: int = 3
    active: bool = True
    late: bool = False

    def ops(self, cin: int, scaling: Scaling) -> tuple[Op, ...]:
        cout, made = self.channels, []
        before = cin
        for i in range(1, self.repeats + 1):
            if i > 1 or self.active:
                made.append(Op(f"act{i}", "activation", before, before, activation=scaling.activation))
            wide = cout if not self.late or i == self.repeats else cin
            made += _bare(f"separable{i}_", before, wide, None)
            before = wide
        if self.stride > 1:
            made.append(Op("pool", "maxpool", cout, cout, 3, self.stride, pads=(1, 1, 1, 1)))
        body = chain(*made)
        if self.stride == 1 and cin == cout:
            return *body, Op("sum", "add", cout, cout, inputs=("", body[-1].name))
        skip = after("", *conv("skip", cin, cout, 1, self.stride))
        return *body, *skip, Op("sum", "add", cout, cout, inputs=(body[-1].name, "skip"))


def _ghost(name: str, source: str, cin: int, cout: int, act: Activation | None) -> tuple[Op, ...]:
    """A ghost module (1911.11907, figure 1b): half of the channels by a 1x1 layer, the others from those, cheaply."""
    half = cout // 2
    primary = conv(f"{name}_primary", cin, half, act=act)
    cheap = depthwise(f"{name}_cheap", half, 3, 1, act)
    return (
        *after(source, *primary, *cheap),
        Op(name, "concat", cout, cout, inputs=(primary[-1].name, cheap[-1].name)),
    )


@dataclass(frozen=True)
class GhostBottleneck(Row):
    """GhostNet's bottleneck (1911.11907, figure 3): a ghost module to `mid` channels, one back, a shortcut.

    At stride 2 a depthwise layer is between the two; `se`: a squeeze-and-excite too. Where the shapes differ, the
    shortcut is a separable convolution.
    """

    channels: int
    mid: int
    stride: int = 1
    kernel: int = 3
    se: bool = False
    WIDTHS: ClassVar[tuple[str, ...]] = ("channels", "mid")

    def ops(self, cin: int, scaling: Scaling) -> tuple[Op, ...]:
        act = scaling.activation
        body = [*_ghost("expand", "", cin, self.mid, act)]
        if self.stride > 1:
            body += after(body[-1].name, *depthwise("depthwise", self.mid, self.kernel, self.stride))
        if self.se:
            squeezed = round_channels(self.mid / 4, 4, 4)
            body += after(body[-1].name, *squeeze_excite(body[-1].name, self.mid, squeezed))
        body += _ghost("project", body[-1].name, self.mid, self.channels, None)
        source = ""
        if self.stride > 1 or cin != self.channels:
            body += after(
                "",
                *depthwise("skip_depthwise", cin, self.kernel, self.stride),
                *conv("skip", cin, self.channels),
            )
            source = "skip"
        return *body, Op("sum", "add", self.channels, self.channels, inputs=(source, "project"))


def _line(name: str, channels: int, height: int, width: int, stride: int = 1) -> Op:
    """A depthwise layer along one axis."""
    return Op(name, "depthwise", channels, channels, height, stride, kernel_width=width)


@dataclass(frozen=True)
class Flattened(Row):
    """A convolution as three along one axis each: channels, height, width (flattened networks, 1412.5474)."""

    channels: int
    stride: int = 1
    kernel: int = 3

    def ops(self, cin: int, scaling: Scaling) -> tuple[Op, ...]:
        c, k = self.channels, self.kernel
        horizontal = dataclasses.replace(
            _line("horizontal", c, 1, k, self.stride), norm=True, activation=scaling.activation
        )
        return chain(Op("lateral", "pointwise", cin, c), _line("vertical", c, k, 1), *layer(horizontal))


@dataclass(frozen=True)
class Factorized(Row):
    """A convolution inside each channel with a residual, then a projection (factorized networks, 1608.04337, figure 2).

    The paper's single intra-channel layer: at stride 1 the input is added before the channels are mixed.
    """

    channels: int
    stride: int = 1
    kernel: int = 3

    def ops(self, cin: int, scaling: Scaling) -> tuple[Op, ...]:
        inside = [Op("intra", "depthwise", cin, cin, self.kernel, self.stride, norm=True, inputs=("",))]
        if self.stride == 1:
            inside.append(Op("residual", "add", cin, cin, inputs=("", "intra")))
        return *inside, *after(inside[-1].name, *conv("project", cin, self.channels, act=scaling.activation))
