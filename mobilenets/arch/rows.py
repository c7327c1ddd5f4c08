"""The rows that networks are made of, and the operations a row becomes. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mobilenets.arch.operations import ACTIVATIONS, CLIPS, Activation, Op
from mobilenets.errors import UserError, unknown


@dataclass(frozen=True)
class Scaling:
    """What a row has to know of its network: the activation, and how channels are rounded (see `spec.scale`)."""

    activation: Activation
    linear_bottleneck: bool = True
    divisor: int = 8
    min_depth: int = 8


def _chain(*ops: Op) -> tuple[Op, ...]:
    """Each operation reads the one before it, the first the block's input, unless it says otherwise."""
    out: list[Op] = []
    for op in ops:
        after = out[-1].name if out else ""
        out.append(op if op.inputs else dataclasses.replace(op, inputs=(after,)))
    return tuple(out)


def _layer(op: Op) -> tuple[Op, ...]:
    """`op` with its activation inside where it clips, beside it where it doesn't."""
    if op.activation is None or op.activation in CLIPS:
        return (op,)
    plain = dataclasses.replace(op, activation=None)
    return plain, Op(f"{op.name}_act", "activation", op.cout, op.cout, activation=op.activation)


def _conv(name: str, cin: int, cout: int, kernel: int, stride: int, act: Activation | None) -> tuple[Op, ...]:
    kind = "pointwise" if kernel == 1 else "conv"
    return _layer(Op(name, kind, cin, cout, kernel, stride, act, norm=True))


def _depthwise(name: str, channels: int, kernel: int, stride: int, act: Activation | None) -> tuple[Op, ...]:
    return _layer(Op(name, "depthwise", channels, channels, kernel, stride, act, norm=True))


def _squeeze_excite(gated: str, channels: int, squeezed: int) -> tuple[Op, ...]:
    """Channels of `gated` weighed by a gate computed from their means (V3 paper, section 5.3)."""
    return (
        Op("se_pool", "pool", channels, channels),
        *_layer(Op("se_reduce", "pointwise", channels, squeezed, activation="relu", bias=True)),
        *_layer(Op("se_expand", "pointwise", squeezed, channels, activation="hard_sigmoid", bias=True)),
        Op("se", "mul", channels, channels, inputs=(gated, "se_expand_act")),
    )


@dataclass(frozen=True)
class Conv:
    """A standard convolution, BatchNorm, activation; without `norm`, a bias in its place."""

    channels: int
    kernel: int = 3
    stride: int = 1
    norm: bool = True

    def ops(self, cin: int, scaling: Scaling) -> tuple[Op, ...]:
        if self.norm:
            return _chain(*_conv("conv", cin, self.channels, self.kernel, self.stride, scaling.activation))
        kind = "pointwise" if self.kernel == 1 else "conv"
        op = Op("conv", kind, cin, self.channels, self.kernel, self.stride, scaling.activation, bias=True)
        return _chain(*_layer(op))


@dataclass(frozen=True)
class Separable:
    """A depthwise separable convolution (V1 paper, section 3.1, figure 3): depthwise, then pointwise."""

    channels: int
    stride: int = 1
    kernel: int = 3

    def ops(self, cin: int, scaling: Scaling) -> tuple[Op, ...]:
        return _chain(
            *_depthwise("depthwise", cin, self.kernel, self.stride, scaling.activation),
            *_conv("pointwise", cin, self.channels, 1, 1, scaling.activation),
        )


@dataclass(frozen=True)
class InvertedResidual:
    """An inverted residual with a linear bottleneck (V2 paper, table 1): expand, depthwise, project.

    `expand` is the paper's t: the expanded channels are t x the input's, rounded as all channels are, or `mid` where a
    convention gives their number; where they are the input's own, the expansion is left out. `se` adds a
    squeeze-and-excite to a quarter of the expanded channels (V3). V4's universal inverted bottleneck (section 4):
    `start` is the kernel of a depthwise layer before the expansion, 0 for none, and `kernel` may be 0 too; the stride
    is the last depthwise layer's. `activation` None is the network's.
    """

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
            ops += _depthwise("start", cin, self.start, 1 if self.kernel else self.stride, None)
        if mid != cin:
            ops += _conv("expand", cin, mid, 1, 1, act)
        if self.kernel:
            ops += _depthwise("depthwise", mid, self.kernel, self.stride, act)
        if self.se:
            ops += _squeeze_excite(ops[-1].name, mid, round_channels(mid / 4, scaling.divisor, scaling.min_depth))
        ops += _conv("project", mid, self.channels, 1, 1, None if scaling.linear_bottleneck else act)
        return _chain(*ops)


@dataclass(frozen=True)
class FusedInvertedResidual:
    """An inverted residual whose expansion and depthwise layer are one standard convolution (V4 paper, appendix)."""

    channels: int
    stride: int = 1
    expand: float = 4
    kernel: int = 3

    def ops(self, cin: int, scaling: Scaling) -> tuple[Op, ...]:
        mid = round_channels(cin * self.expand, scaling.divisor, 1)
        return _chain(
            *_conv("expand", cin, mid, self.kernel, self.stride, scaling.activation),
            *_conv("project", mid, self.channels, 1, 1, None),
        )


@dataclass(frozen=True)
class Attention:
    """Mobile multi-query attention (V4 paper, section 5): `heads` queries of `dim` channels share one key and value.

    With `kv_stride` 2, key and value are seen at half the resolution, through a depthwise layer of `kernel` each.
    """

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
        return _chain(
            Op("norm", "norm", cin, cin, norm=True),
            Op("query", "pointwise", cin, wide),
            *branch("key"),
            *branch("value"),
            Op("attend", "attend", self.dim, wide, heads=self.heads, inputs=("query", "key", "value")),
            Op("output", "pointwise", wide, self.channels),
        )


Row = Conv | Separable | InvertedResidual | FusedInvertedResidual | Attention
ROW_TYPES: dict[str, type[Row]] = {
    t.__name__: t for t in (Conv, Separable, InvertedResidual, FusedInvertedResidual, Attention)
}
RESIDUAL = (InvertedResidual, FusedInvertedResidual, Attention)


def row_from_json(d: Mapping[str, Any]) -> Row:
    """The inverse of `{"type": ..., **asdict(row)}`."""
    fields = dict(d)
    name = fields.pop("type")
    if name not in ROW_TYPES:
        raise unknown("row type", str(name), ROW_TYPES)
    activation = fields.get("activation")
    if activation is not None and activation not in ACTIVATIONS:
        raise unknown("activation", str(activation), ACTIVATIONS)
    numbers = {k: v for k, v in fields.items() if k not in ("activation", "se", "norm")}
    least = {"start": 0, "kernel": 0, "mid": 0}  # 0 is none
    if not all(isinstance(v, int | float) and least.get(k, 1) <= v <= 65536 for k, v in numbers.items()):
        raise UserError(f"not an Arch: a {name} row needs whole numbers from 1 to 65536, not {numbers}")
    if not all(isinstance(v, int) for k, v in numbers.items() if k != "expand"):
        raise UserError(f"not an Arch: a {name} row needs whole numbers, not {numbers}")
    return ROW_TYPES[name](**fields)


def round_channels(channels: float, divisor: int = 8, min_depth: int = 8) -> int:
    """The nearest multiple of `divisor`, at least `min_depth`, never more than 10% below `channels` (V2's rule)."""
    rounded = max(min_depth, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
