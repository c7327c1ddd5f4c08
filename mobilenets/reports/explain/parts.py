"""A network's parts: its blocks, each beside standard convolutions, then its tail; and which of them are the same.

Shapes are (channels, height, width); macs, weights and params are `cost`'s, exact; ratios are fractions of 1.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mobilenets.arch.cost import Cost, CostRow
from mobilenets.arch.operations import Op
from mobilenets.arch.rows import Attention, Conv, FusedInvertedResidual, InvertedResidual, Row, Separable
from mobilenets.arch.rows_branches import Branches
from mobilenets.arch.rows_units import (
    BareSeparable,
    BiasedSeparable,
    Factorized,
    Flattened,
    GhostBottleneck,
    GroupedShuffleUnit,
    ShuffleUnit,
    XceptionBlock,
)
from mobilenets.arch.spec import CLASSIFIER, Arch

Shape = tuple[int, int, int]
SEPARABLE, INVERTED = "depthwise separable", "inverted residual"
FUSED, ATTENTION = "fused inverted residual", "attention"
# V4's universal inverted bottleneck by which of its two depthwise layers are there: the first, the second.
VARIANTS = {
    (True, True): "extra depthwise",
    (False, True): "inverted bottleneck",
    (True, False): "ConvNext-like",
    (False, False): "feed-forward",
}

UNITS: dict[type[Row], str] = {
    BareSeparable: SEPARABLE,
    BiasedSeparable: SEPARABLE,
    ShuffleUnit: "shuffle unit",
    GroupedShuffleUnit: "grouped shuffle unit",
    XceptionBlock: "Xception block",
    GhostBottleneck: "ghost bottleneck",
    Flattened: "flattened layers",
    Factorized: "single intra-channel layer",
}


@dataclass(frozen=True)
class Against:
    """A block beside standard convolutions of its kernel K, in macs.

    `standard_macs`: one K x K convolution with the block's own input and output channels and stride, and `ratio` the
    block's macs over it. `expanded_macs`: one among the block's expanded channels. `pair_macs`: the block's depthwise
    layer and the 1x1 layer after it; `pair_standard_macs`: the convolution that those two stand for; `predicted`: their
    ratio by V1's formula, 1/N + 1/K^2 with N output channels (V1 paper, section 3.1, from equation 5). None: has none.
    """

    kernel: int
    macs: int
    standard_macs: int | None
    expanded_macs: int | None
    pair_macs: int | None
    pair_standard_macs: int | None
    predicted: float | None
    note: str

    @property
    def ratio(self) -> float | None:
        return self.macs / self.standard_macs if self.standard_macs else None

    @property
    def expanded_ratio(self) -> float | None:
        return self.macs / self.expanded_macs if self.expanded_macs else None

    @property
    def pair_ratio(self) -> float | None:
        return self.pair_macs / self.pair_standard_macs if self.pair_macs and self.pair_standard_macs else None

    def to_json(self) -> dict[str, Any]:
        ratios = {"ratio": self.ratio, "expanded_ratio": self.expanded_ratio, "pair_ratio": self.pair_ratio}
        return dataclasses.asdict(self) | ratios


@dataclass(frozen=True)
class Part:
    """Consecutive blocks that are all the same, or one thing of the tail (the pooling, a layer of the head, the
    classifier). `ops`, `rows` and the properties are of one of them, under the first one's names.
    """

    name: str
    kind: str
    times: int
    source: str
    ops: tuple[Op, ...]
    rows: tuple[CostRow, ...]
    sides: dict[str, int]
    against: Against | None = None

    @property
    def in_shape(self) -> Shape:
        side = self.sides[self.source]
        return self.ops[0].cin, side, side

    @property
    def out_shape(self) -> Shape:
        side = self.sides[self.ops[-1].name]
        return self.ops[-1].cout, side, side

    @property
    def macs(self) -> int:
        return sum(r.macs for r in self.rows)

    @property
    def params(self) -> int:
        return sum(r.params for r in self.rows)

    @property
    def shortcut(self) -> bool:
        return self.ops[-1].kind == "add"

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two blocks the same: operations, shapes and how they are joined, whatever their names."""
        at = {self.source: 0} | {op.name: i for i, op in enumerate(self.ops, 1)}
        ops = (dataclasses.replace(op, name=short(op), inputs=()) for op in self.ops)
        joined = tuple(tuple(at[x] for x in op.inputs) for op in self.ops)
        return tuple(ops), joined, tuple(self.sides.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "times": self.times,
            "in_shape": self.in_shape,
            "out_shape": self.out_shape,
            "shortcut": self.shortcut,
            "macs_each": self.macs,
            "params_each": self.params,
            "operations": [dataclasses.asdict(op) | {"out_side": self.sides[op.name]} for op in self.ops],
            "against_standard": self.against.to_json() if self.against else None,
        }


def shapes_of(arch: Arch) -> dict[str, Shape]:
    """Of every map of a network, by the name of the operation that gives it."""
    return {name: (c, h, w) for name, (c, h, w) in arch.graph.shapes.items()}


def short(op: Op) -> str:
    """An operation's name inside its block."""
    return op.name.rpartition(".")[2]


def kind_of(row: Row, universal: bool) -> str:
    """What a row is called; `universal` where inverted residuals are V4's universal inverted bottleneck."""
    match row:
        case Conv():
            return f"{row.kernel}x{row.kernel} convolution"
        case Separable():
            return SEPARABLE
        case FusedInvertedResidual():
            return FUSED
        case Attention():
            return ATTENTION
        case InvertedResidual():
            return VARIANTS[bool(row.start), bool(row.kernel)] if universal else INVERTED
        case Branches():
            return _kind_of_branches(row)
    return UNITS.get(type(row), type(row).__name__)


def _kind_of_branches(row: Branches) -> str:
    first, *others = row.steps
    if others:
        return "fire module" if first.name == "squeeze" else "inception module"
    window = f"{first.kernel}x{first.kernel_width or first.kernel}"
    return f"{window} {first.pooling} pooling" if first.pooling else f"{window} convolution"


def every_part(cost: Cost) -> tuple[Part, ...]:
    """Each block by itself, then the tail."""
    arch, rows = cost.arch, {r.layer: r for r in cost.rows}
    uib = any(isinstance(r, InvertedResidual) and (r.start or not r.kernel) for r in arch.rows)

    def part(name: str, kind: str, source: str, ops: Sequence[Op], compare: bool = True) -> Part:
        sides = {source: arch.sides[source]} | {op.name: arch.sides[op.name] for op in ops}
        own = tuple(rows[op.name] for op in ops if op.name in rows)
        against = _against(ops, sides, own) if compare else None
        return Part(name, kind, 1, source, tuple(ops), own, sides, against)

    bodies = zip(itertools.count(), arch.rows, arch.blocks, strict=False)
    out = [part(str(i), kind_of(row, uib), b.source, b.ops) for i, row, b in bodies]
    ends = {"pool": ("pool", "global average pool"), CLASSIFIER: ("classes", "classifier")}
    first, *after = (part(*ends[op.name], op.inputs[0], (op,), compare=False) for op in arch.tail if op.name in ends)
    heads = (part("head", "1x1 convolution", b.source, b.ops, compare=False) for b in arch.head_blocks)
    return (*out, first, *heads, *after)


def merged(parts: Sequence[Part]) -> tuple[Part, ...]:
    """`parts` with neighbours that are the same as one; "7-11" is its name."""
    out = []
    for _, same in itertools.groupby(parts, key=lambda p: p.key):
        first, *others = same
        name = f"{first.name}-{others[-1].name}" if others else first.name
        out.append(dataclasses.replace(first, name=name, times=1 + len(others)))
    return tuple(out)


def distinct(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The blocks that differ, each once, wherever it comes again; "8, 10, 12" is its name."""
    same: dict[tuple[Any, ...], list[Part]] = {}
    for p in parts:
        if p.against:
            same.setdefault(p.key, []).append(p)
    return tuple(
        dataclasses.replace(ps[0], name=", ".join(p.name for p in ps), times=sum(p.times for p in ps))
        for ps in same.values()
    )


def _against(ops: Sequence[Op], sides: dict[str, int], rows: Sequence[CostRow]) -> Against:
    """A block's `Against`."""
    macs = {r.layer: r.macs for r in rows}
    total, by_name = sum(macs.values()), {short(op): op for op in ops}
    cin, cout, side = ops[0].cin, ops[-1].cout, sides[ops[-1].name]

    def standard(k: int, cin: int, cout: int) -> int:
        return k * k * cin * cout * side * side

    deep = next((i for i, op in reversed(list(enumerate(ops))) if op.kind == "depthwise"), None)
    if "attend" in by_name:
        note = "attention isn't a convolution: there is no standard one to set it beside"
        return Against(0, total, None, None, None, None, None, note)
    if not rows:
        return Against(
            0, 0, None, None, None, None, None, "it has no weights: there is no convolution to set it beside"
        )
    if len(rows) == 1:
        k = ops[0].kernel
        note = "a 1x1 convolution has no spatial kernel to separate"
        if k > 1:
            saved = 100 * (1 / cout + 1 / k**2)
            note = f"a standard convolution itself; as a depthwise and a 1x1 layer it would cost {saved:.1f}% of this"
        return Against(k, total, standard(k, cin, cout), None, None, None, None, note)
    expand = by_name.get("expand")
    expanded = expand.cout if expand else 0
    if deep is None:
        k = max(max(op.kernels) for op in ops)
        first = next(op for op in ops if op.is_layer)
        note = f"its {k}x{k} filters are standard convolutions: 1/N + 1/K² doesn't apply"
        if max(first.kernels) == k:
            note = f"its first layer is a standard {k}x{k} convolution: 1/N + 1/K² doesn't apply"
        if k == 1:
            note = "two 1x1 layers, no spatial kernel: 1/N + 1/K² doesn't apply"
        wide = standard(k, expanded, expanded) if expanded else None
        return Against(k, total, standard(k, cin, cout), wide, None, None, None, note)
    depthwise = ops[deep]
    k = max(depthwise.kernels)
    later = (op for op in ops[deep:] if op.kind == "pointwise" and not short(op).startswith("se_"))
    pointwise = next(later, None)
    if pointwise is None:
        note = "no 1x1 layer follows its last depthwise one: 1/N + 1/K² doesn't apply"
        return Against(k, total, standard(k, cin, cout), None, None, None, None, note)
    pair = macs[depthwise.name] + macs[pointwise.name]
    note = "the depthwise layer and the 1x1 layer after it are the whole block, so 1/N + 1/K² is exact"
    if pair != total:
        note = "1/N + 1/K² is about the depthwise layer and the 1x1 layer after it alone; the rest comes on top"
    return Against(
        kernel=k,
        macs=total,
        standard_macs=standard(k, cin, cout),
        expanded_macs=standard(k, expanded, expanded) if expanded else None,
        pair_macs=pair,
        pair_standard_macs=standard(k, depthwise.cout, pointwise.cout),
        predicted=1 / pointwise.cout + 1 / k**2,
        note=note,
    )
