"""The rows that networks are made of, and the operations a row becomes. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mobilenets.arch.operations import CLIPS, Activation, Op


@dataclass(frozen=True)
class Scaling:
    """What a row has to know of its network: the activation, and how channels are rounded (see `spec.scale`)."""

    activation: Activation
    linear_bottleneck: bool = True
    divisor: int = 8
    min_depth: int = 8


@dataclass(frozen=True)
class Row:
    """A line of a paper's table. `WIDTHS`: its fields that count channels, which a width multiplier scales.

    `RESIDUAL`: its input is added to its output where their shapes are the same.
    """

    WIDTHS: ClassVar[tuple[str, ...]] = ("channels",)
    RESIDUAL: ClassVar[bool] = False

    if TYPE_CHECKING:  # what every row has, as a field or worked out

        @property
        def channels(self) -> int:
            """Of its output, where the input has no part in that."""

        @property
        def stride(self) -> int:
            """Of all its operations together."""

    def ops(self, cin: int, scaling: Scaling) -> tuple[Op, ...]:
        """Its operations on a map of `cin` channels; their names are the block's own, "" is its input."""
        raise NotImplementedError  # pragma: no cover

    def scaled(self, of: Callable[[int], int]) -> Row:
        """The row with `of` its numbers of channels."""
        return dataclasses.replace(self, **{name: of(getattr(self, name)) for name in self.WIDTHS})


def chain(*ops: Op, source: str = "") -> tuple[Op, ...]:
    """Each operation reads the one before it, the first `source`, the block's input, unless it says otherwise."""
    out: list[Op] = []
    for op in ops:
        after = out[-1].name if out else source
        out.append(op if op.inputs else dataclasses.replace(op, inputs=(after,)))
    return tuple(out)


def layer(op: Op) -> tuple[Op, ...]:
    """`op` with its activation inside where it clips, beside it where it doesn't."""
    if op.activation is None or op.activation in CLIPS:
        return (op,)
    plain = dataclasses.replace(op, activation=None)
    return plain, Op(f"{op.name}_act", "activation", op.cout, op.cout, activation=op.activation)


def conv(
    name: str, cin: int, cout: int, kernel: int = 1, stride: int = 1, act: Activation | None = None
) -> tuple[Op, ...]:
    """A standard convolution, BatchNorm, activation."""
    kind = "pointwise" if kernel == 1 else "conv"
    return layer(Op(name, kind, cin, cout, kernel, stride, act, norm=True))


def depthwise(
    name: str, channels: int, kernel: int = 3, stride: int = 1, act: Activation | None = None
) -> tuple[Op, ...]:
    """A depthwise convolution, BatchNorm, activation."""
    return layer(Op(name, "depthwise", channels, channels, kernel, stride, act, norm=True))


def squeeze_excite(gated: str, channels: int, squeezed: int) -> tuple[Op, ...]:
    """Channels of `gated` weighed by a gate computed from their means (V3 paper, section 5.3)."""
    return (
        Op("se_pool", "pool", channels, channels),
        *layer(Op("se_reduce", "pointwise", channels, squeezed, activation="relu", bias=True)),
        *layer(Op("se_expand", "pointwise", squeezed, channels, activation="hard_sigmoid", bias=True)),
        Op("se", "mul", channels, channels, inputs=(gated, "se_expand_act")),
    )


@dataclass(frozen=True)
class Conv(Row):
    """A standard convolution, BatchNorm, activation; without `norm`, a bias in its place."""

    channels: int
    kernel: int = 3
    stride: int = 1
    norm: bool = True

    def ops(self, cin: int, scaling: Scaling) -> tuple[Op, ...]:
        if self.norm:
            return chain(*conv("conv", cin, self.channels, self.kernel, self.stride, scaling.activation))
        kind = "pointwise" if self.kernel == 1 else "conv"
        op = Op("conv", kind, cin, self.channels, self.kernel, self.stride, scaling.activation, bias=True)
        return chain(*layer(op))


@dataclass(frozen=True)
class Separable(Row):
    """A depthwise separable convolution (V1 paper, section 3.1, figure 3): depthwise, then pointwise."""

    channels: int
    stride: int = 1
    kernel: int = 3

    def ops(self, cin: int, scaling: Scaling) -> tuple[Op, ...]:
        return chain(
            *depthwise("depthwise", cin, self.kernel, self.stride, scaling.activation),
            *conv("pointwise", cin, self.channels, 1, 1, scaling.activation),
        )


@dataclass(frozen=True)
class InvertedResidual(Row):
    """An inverted residual with a linear bottleneck (V2 paper, table 1): expand, depthwise, project.

    `expand` is the paper's t: the expanded channels are t x the input's, rounded as all channels are, or `mid` where a
    convention gives their number; where they are the input's own, the expansion is left out. `se` adds a
    squeeze-and-excite to a quarter of the expanded channels (V3). V4's universal inverted bottleneck (section 4):
    `start` is the kernel of a depthwise layer before the expansion, 0 for none, and `kernel` may be 0 too; the stride
    is the last depthwise layer's. `activation` None is the network's.
    """

    RESIDUAL: ClassVar[bool] = True

    channels: int
    stride: int = 1
    expand: float = 6
    kernel: int = 3
    se: bool = False
    activation: Activation | None = None
    start: int = 0
    mid: int = 0

    def ops(self, cin: int, scaling: Scaling) -> tuple[Op, ...]:
        act = self.activation or scaling.activation
        mid = self.mid or round_channels(cin * self.expand, scaling.divisor, 1)
        ops: list[Op] = []
        if self.start:
            ops += depthwise("start", cin, self.start, 1 if self.kernel else self.stride, None)
        if mid != cin:
            ops += conv("expand", cin, mid, 1, 1, act)
        if self.kernel:
            ops += depthwise("depthwise", mid, self.kernel, self.stride, act)
        if self.se:
            ops += squeeze_excite(ops[-1].name, mid, round_channels(mid / 4, scaling.divisor, scaling.min_depth))
        ops += conv("project", mid, self.channels, 1, 1, None if scaling.linear_bottleneck else act)
        return chain(*ops)


@dataclass(frozen=True)
class FusedInvertedResidual(Row):
    """An inverted residual whose expansion and depthwise layer are one standard convolution (V4 paper, appendix)."""

    RESIDUAL: ClassVar[bool] = True

    channels: int
    stride: int = 1
    expand: float = 4
    kernel: int = 3

    def ops(self, cin: int, scaling: Scaling) -> tuple[Op, ...]:
        mid = round_channels(cin * self.expand, scaling.divisor, 1)
        return chain(
            *conv("expand", cin, mid, self.kernel, self.stride, scaling.activation),
            *conv("project", mid, self.channels, 1, 1, None),
        )


@dataclass(frozen=True)
class Attention(Row):
    """Mobile multi-query attention (V4 paper, section 5): `heads` queries of `dim` channels share one key and value.

    With `kv_stride` 2, key and value are seen at half the resolution, through a depthwise layer of `kernel` each.
    """

    RESIDUAL: ClassVar[bool] = True

    channels: int
    heads: int
    dim: int
    kv_stride: int = 1
    kernel: int = 3
    stride: int = 1

    def ops(self, cin: int, scaling: Scaling) -> tuple[Op, ...]:  # noqa: ARG002
        def branch(name: str) -> tuple[Op, ...]:
            project = Op(name, "pointwise", cin, self.dim, inputs=("norm",))
            if self.kv_stride == 1:
                return (project,)
            down = Op(f"{name}_down", "depthwise", cin, cin, self.kernel, self.kv_stride, norm=True, inputs=("norm",))
            return down, dataclasses.replace(project, inputs=(down.name,))

        wide = self.heads * self.dim
        return chain(
            Op("norm", "norm", cin, cin, norm=True),
            Op("query", "pointwise", cin, wide),
            *branch("key"),
            *branch("value"),
            Op("attend", "attend", self.dim, wide, heads=self.heads, inputs=("query", "key", "value")),
            Op("output", "pointwise", wide, self.channels),
        )


def round_channels(channels: float, divisor: int = 8, min_depth: int = 8) -> int:
    """The nearest multiple of `divisor`, at least `min_depth`, never more than 10% below `channels` (V2's rule)."""
    rounded = max(min_depth, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
