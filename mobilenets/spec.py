"""What a network is, as data: rows, the `Network` they form in a paper, and the `Arch` that scaling gives.

    Network (a paper's table) --scale(alpha, resolution, classes)--> Arch (final integer channels)

Everything else (the model, its cost, its exported files, its pictures) walks `Arch.blocks`, so they can't disagree.
This module imports nothing of ours but the errors, and no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mobilenets.errors import UserError, unknown

Activation = Literal["relu", "relu6"]
Padding = Literal["symmetric", "same"]
OpKind = Literal["conv", "depthwise", "pointwise", "linear"]


@dataclass(frozen=True)
class Op:
    """One layer with weights: a convolution (BatchNorm and activation follow it) or the classifier."""

    name: str
    kind: OpKind
    cin: int
    cout: int
    kernel: int
    stride: int
    activation: Activation | None

    @property
    def groups(self) -> int:
        return self.cin if self.kind == "depthwise" else 1


@dataclass(frozen=True)
class Conv:
    """A standard convolution, BatchNorm, activation."""

    channels: int
    kernel: int = 3
    stride: int = 1

    def ops(self, cin: int, act: Activation) -> tuple[Op, ...]:
        kind: OpKind = "pointwise" if self.kernel == 1 else "conv"
        return (Op("conv", kind, cin, self.channels, self.kernel, self.stride, act),)


@dataclass(frozen=True)
class Separable:
    """A depthwise separable convolution (V1 paper, section 3.1, figure 3): depthwise, then pointwise."""

    channels: int
    stride: int = 1
    kernel: int = 3

    def ops(self, cin: int, act: Activation) -> tuple[Op, ...]:
        return (
            Op("depthwise", "depthwise", cin, cin, self.kernel, self.stride, act),
            Op("pointwise", "pointwise", cin, self.channels, 1, 1, act),
        )


@dataclass(frozen=True)
class InvertedResidual:
    """An inverted residual with a linear bottleneck (V2 paper, table 1): expand, depthwise, project.

    `expand` is the paper's t; at 1 the expansion is left out. A shortcut joins the bottlenecks where the stride is 1
    and input and output have the same number of channels.
    """

    channels: int
    stride: int = 1
    expand: int = 6
    kernel: int = 3

    def ops(self, cin: int, act: Activation) -> tuple[Op, ...]:
        mid = cin * self.expand
        wide = (Op("expand", "pointwise", cin, mid, 1, 1, act),) if self.expand != 1 else ()
        return (
            *wide,
            Op("depthwise", "depthwise", mid, mid, self.kernel, self.stride, act),
            Op("project", "pointwise", mid, self.channels, 1, 1, None),
        )


Row = Conv | Separable | InvertedResidual
ROW_TYPES: dict[str, type[Row]] = {t.__name__: t for t in (Conv, Separable, InvertedResidual)}


@dataclass(frozen=True)
class Block:
    """A row with its layers laid out: what every walker of an `Arch` walks."""

    name: str
    ops: tuple[Op, ...]
    shortcut: bool
    total_stride: int

    @property
    def cin(self) -> int:
        return self.ops[0].cin

    @property
    def cout(self) -> int:
        return self.ops[-1].cout


@dataclass(frozen=True)
class Stage:
    """The last block at one stride: where detection heads tap the network."""

    name: str
    block: int
    stride: int
    channels: int


@dataclass(frozen=True)
class Network:
    """A paper's table before scaling: the rows at alpha 1 and the conventions for scaling them.

    `keep_head`: the last row isn't narrowed below alpha 1 (V2 paper, section 4).
    """

    name: str
    rows: tuple[Row, ...]
    activation: Activation
    keep_head: bool
    source: str
    alphas: tuple[float, ...]
    resolutions: tuple[int, ...]


@dataclass(frozen=True)
class Arch:
    """A network resolved to final integer channels: the one description the model, its cost and its files share.

    `classes` is 0 for a headless network. `divisor`, `min_depth` and `keep_head` record how the channels were rounded.
    `padding` is "symmetric" (PyTorch's) or "same" (TensorFlow's: a stride-2 convolution pads bottom and right first).
    """

    name: str
    alpha: float
    resolution: int
    classes: int
    rows: tuple[Row, ...]
    activation: Activation = "relu6"
    padding: Padding = "symmetric"
    bn_eps: float = 1e-5
    bn_momentum: float = 0.1
    dropout: float = 0.0
    divisor: int = 8
    min_depth: int = 8
    keep_head: bool = False

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_resolution(self.resolution)
        if self.classes < 0:
            raise UserError(f"classes must be 0 or more, not {self.classes}")
        if self.padding not in ("symmetric", "same"):
            raise unknown("padding", str(self.padding), ("symmetric", "same"))
        if self.activation not in ("relu", "relu6"):
            raise unknown("activation", str(self.activation), ("relu", "relu6"))
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be in [0, 1), not {self.dropout}")
        if not self.rows:
            raise UserError("an Arch needs at least one row")

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        blocks, cin, stride = [], 3, 1
        for i, row in enumerate(self.rows):
            ops = row.ops(cin, self.activation)
            stride *= row.stride
            shortcut = isinstance(row, InvertedResidual) and row.stride == 1 and cin == row.channels
            blocks.append(Block(f"blocks.{i}", ops, shortcut, stride))
            cin = row.channels
        return tuple(blocks)

    @property
    def classifier(self) -> Op | None:
        """The last layer, pooled features to classes; None for a headless network."""
        if not self.classes:
            return None
        return Op("classifier", "linear", self.width, self.classes, 1, 1, None)

    @property
    def width(self) -> int:
        """Channels of the last feature map."""
        return self.rows[-1].channels

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The last block at each stride, from stride 2 to the network's total stride."""
        last = {b.total_stride: i for i, b in enumerate(self.blocks)}
        return tuple(Stage(f"stage{n}", i, s, self.blocks[i].cout) for n, (s, i) in enumerate(last.items(), 1))

    @property
    def layers(self) -> list[tuple[str, Op]]:
        """(name, op) of every layer with weights, the classifier last."""
        named = [(f"{b.name}.{op.name}", op) for b in self.blocks for op in b.ops]
        return named + ([("classifier", self.classifier)] if self.classifier else [])

    @property
    def activations(self) -> list[str]:
        """Names of the tensors between layers, in order: what int8 gives a scale each."""
        names = ["input"]
        for b in self.blocks:
            names += [f"{b.name}.{op.name}" for op in b.ops]
            names += [b.name] if b.shortcut else []
        return [*names, "pool", *(["classifier"] if self.classifier else [])]

    @property
    def layer_inputs(self) -> list[str]:
        """The activation each layer reads, in the order of `layers`."""
        reads, current = [], "input"
        for b in self.blocks:
            for op in b.ops:
                reads.append(current)
                current = f"{b.name}.{op.name}"
            if b.shortcut:
                current = b.name
        return reads + (["pool"] if self.classifier else [])

    @property
    def title(self) -> str:
        return f"{self.name} {self.alpha:g}-{self.resolution}"

    def replace(self, **changes: Any) -> Arch:
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        d = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        d["rows"] = [{"type": type(r).__name__, **dataclasses.asdict(r)} for r in self.rows]
        return d

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Arch:
        """The inverse of `to_json`; a UserError names a field that is missing, unknown or of the wrong type."""
        known = {f.name for f in dataclasses.fields(cls)}
        for k in d:
            if k not in known:
                raise unknown("Arch field", k, known)
        try:
            rows = tuple(_row(r) for r in d["rows"])
            return cls(**{**d, "rows": rows})
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise UserError(f"not an Arch: {e}") from e

    @property
    def digest(self) -> str:
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _row(d: Mapping[str, Any]) -> Row:
    fields = dict(d)
    name = fields.pop("type")
    if name not in ROW_TYPES:
        raise unknown("row type", str(name), ROW_TYPES)
    if not all(isinstance(v, int) and 0 < v <= 65536 for v in fields.values()):
        raise UserError(f"not an Arch: a {name} row needs whole numbers from 1 to 65536, not {fields}")
    return ROW_TYPES[name](**fields)


def check_alpha(alpha: float) -> None:
    if not (isinstance(alpha, int | float) and 0 < alpha <= 2):
        raise UserError(f"alpha must be above 0 and at most 2, not {alpha}")


def check_resolution(resolution: int) -> None:
    if not isinstance(resolution, int) or not 32 <= resolution <= 4096:
        raise UserError(f"resolution must be a whole number from 32 to 4096 pixels, not {resolution}")


def round_channels(channels: float, divisor: int = 8, min_depth: int = 8) -> int:
    """The nearest multiple of `divisor`, at least `min_depth`, never more than 10% below `channels` (V2's rule)."""
    rounded = max(min_depth, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels TensorFlow's "SAME" adds before and after a side of `size`: the odd one goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def scale(
    network: Network,
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
) -> Arch:
    """Resolve a paper's table at width `alpha` and input `resolution` in pixels (V1 paper, sections 3.3 and 3.4)."""
    check_alpha(alpha)
    keep = network.keep_head if keep_head is None else keep_head
    widths = [alpha] * len(network.rows)
    if keep:
        widths[-1] = max(alpha, 1.0)
    rows = tuple(
        dataclasses.replace(row, channels=round_channels(row.channels * w, divisor, min_depth))
        for row, w in zip(network.rows, widths, strict=True)
    )
    return Arch(
        name=network.name,
        alpha=float(alpha),
        resolution=resolution,
        classes=classes,
        rows=rows,
        activation=activation or network.activation,
        padding=padding,
        bn_eps=bn_eps,
        bn_momentum=bn_momentum,
        dropout=dropout,
        divisor=divisor,
        min_depth=min_depth,
        keep_head=keep,
    )
