"""A network explained to a student: its blocks, where the cost sits and why, its knobs and ideas. No torch.

Shapes are (channels, height, width); macs, weights and params are `cost`'s, exact; ratios are fractions of 1.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenets import cost, files, zoo
from mobilenets.cost import TYPE_NAMES, Cost, CostRow
from mobilenets.rows import Attention, Conv, FusedInvertedResidual, InvertedResidual, Op, Row, Separable
from mobilenets.spec import Arch

if TYPE_CHECKING:
    from rich.console import RenderableType

Shape = tuple[int, int, int]
HEAVIEST = 3
SMALLEST_RESOLUTION = 32


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


def short(op: Op) -> str:
    """An operation's name inside its block."""
    return op.name.rpartition(".")[2]


@dataclass(frozen=True)
class Idea:
    """An idea that a network uses, in a sentence or two; `source` is where it is from."""

    name: str
    text: str
    source: str


SEPARABLE, INVERTED = "depthwise separable", "inverted residual"
FUSED, ATTENTION = "fused inverted residual", "attention"
# V4's universal inverted bottleneck by which of its two depthwise layers are there: the first, the second.
VARIANTS = {
    (True, True): "extra depthwise",
    (False, True): "inverted bottleneck",
    (True, False): "ConvNext-like",
    (False, False): "feed-forward",
}


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


def ideas_of(arch: Arch, kinds: Collection[str]) -> tuple[Idea, ...]:
    """The ideas that a network uses, from its operations; `kinds` are its parts'."""
    names = {short(op) for op in arch.ops}
    acts = {op.activation for op in arch.ops}
    variants = [v for v in VARIANTS.values() if v in kinds]
    bottlenecks = bool(variants) or INVERTED in kinds or FUSED in kinds
    every = (
        (SEPARABLE in kinds, "Separable convolution",
         "A standard convolution filters and mixes channels in one step. Here a depthwise layer filters each channel "
         "by itself, then a 1x1 layer mixes the channels: nearly the same job for 1/N + 1/K² of the mult-adds.",
         "V1 paper, section 3.1, figure 2"),
        (arch.name == "v1-full-conv", "The network to compare with",
         "V1 with standard convolutions in place of its separable ones: 8.6 times the mult-adds and 7 times the "
         "parameters for 1.1% more ImageNet top-1 (71.7 against 70.6, as the paper prints them).",
         "V1 paper, table 4"),
        (arch.name == "v1-shallow", "Thin rather than shallow",
         "V1 without its five blocks of 512 channels at 14x14. At about the same cost, V1 made thinner (alpha 0.75) "
         "is better: 68.4 against 65.3% ImageNet top-1.",
         "V1 paper, table 5"),
        (arch.name == "v2-cifar", "V2 for small images",
         "V2's first two strides of 2 become 1, so that a 32x32 image still has a 4x4 map at the end; rows and "
         "weights are V2's.",
         "V2 table 2, with the strides of the common CIFAR-10 recipe"),
        (bottlenecks, "Inverted residual",
         "Blocks pass on few channels, and expand them inside, where the spatial filtering is done. The shortcut joins "
         "the narrow ends, so little has to wait in memory: a classical residual block is wide-narrow-wide.",
         "V2 paper, section 3.3, figure 3"),
        (bottlenecks and arch.linear_bottleneck, "Linear bottleneck",
         "The last 1x1 layer of a block has no activation. Zeroing the negatives of a few channels destroys "
         "information that can't come back; in the wide middle, other channels still carry it.",
         "V2 paper, section 3.2, figure 1"),
        (bool(variants), "Universal inverted bottleneck",
         "An inverted residual with two optional depthwise layers, before the expansion and inside it; a search chose "
         f"at each block. Both: extra depthwise; the inner alone: inverted bottleneck (V2's); the outer alone: "
         f"ConvNext-like; none: feed-forward. Here: {', '.join(variants)}.",
         "V4 paper, “Universal Inverted Bottlenecks”"),
        (FUSED in kinds, "Fused inverted residual",
         "Early, where channels are few and maps large, expansion and depthwise layer are one standard convolution: "
         "more mult-adds, but fewer passes over large maps, which is what accelerators wait for.",
         "V4 paper, “Universal Inverted Bottlenecks”"),
        (ATTENTION in kinds, "Multi-query attention",
         "Each position asks what to take from all others. The heads have queries of their own but share one key and "
         "one value, so less memory is read; some blocks also look at keys and values at half the resolution.",
         "V4 paper, “Mobile MQA”; Shazeer 2019, arXiv 1911.02150"),
        ("se" in names, "Squeeze-and-excite",
         "Each channel's mean over the map goes through two small 1x1 layers that give it a weight between 0 and 1: "
         "what the image as a whole shows decides which channels count.",
         "V3 paper, section 5.3, figure 4; Hu et al. 2018, arXiv 1709.01507"),
        ("hard_swish" in acts, "Hard-swish",
         "x · relu6(x + 3) / 6: nearly the smooth swish, from operations that are cheap and exact in int8. V3 keeps it "
         "for where maps are small; most blocks of the first half have ReLU.",
         "V3 paper, section 5.2, figure 6"),
        ("relu6" in acts, "ReLU6",
         "ReLU cut off at 6. A known range lets a few bits cover it evenly, which makes int8 robust; clipping costs "
         "nothing extra." + " V1's paper says ReLU, its published weights have ReLU6." * arch.name.startswith("v1"),
         "V2 paper, section 4"),
        (bool(arch.head), "A late last layer",
         f"The widest 1x1 layer, to {arch.width} channels, comes after the pooling: on one position instead of "
         "a whole map, it costs that many times less.",
         "V3 paper, section 5.1, figure 5"),
        (arch.name.endswith("minimalistic"), "Minimalistic",
         "V3 without squeeze-and-excite, hard-swish and 5x5 kernels, for hardware that is slow at them.",
         "TF-slim, mobilenet_v3"),
    )  # fmt: skip
    return tuple(Idea(name, text, source) for used, name, text, source in every if used)


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
        k = max(op.kernel for op in ops)
        note = f"its first layer is a standard {k}x{k} convolution: 1/N + 1/K² doesn't apply"
        if k == 1:
            note = "two 1x1 layers, no spatial kernel: 1/N + 1/K² doesn't apply"
        wide = standard(k, expanded, expanded) if expanded else None
        return Against(k, total, standard(k, cin, cout), wide, None, None, None, note)
    depthwise = ops[deep]
    k = depthwise.kernel
    pointwise = next(op for op in ops[deep:] if op.kind == "pointwise" and not short(op).startswith("se_"))
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


@dataclass(frozen=True)
class Knob:
    """What turning one of V1's two knobs would do; `rule` is the law's prediction of the macs, as a ratio."""

    name: str
    before: float
    after: float
    macs: int
    params: int
    macs_ratio: float
    params_ratio: float
    rule: float
    law: str
    source: str


@dataclass(frozen=True)
class Head:
    """The layer after the pooling: its weights (and macs, which are as many) if the last map were flattened instead."""

    layer: str
    last_map: Shape
    outputs: int

    @property
    def pooled_weights(self) -> int:
        return self.last_map[0] * self.outputs

    @property
    def flattened_weights(self) -> int:
        return self.pooled_weights * self.last_map[1] * self.last_map[2]


@dataclass(frozen=True)
class Share:
    """Something's part of the network; `label` says what."""

    label: str
    kind: str
    macs: int
    params: int


@dataclass(frozen=True)
class Explanation:
    """An Arch explained; `all_blocks` draws every block in the terminal, `html` is where the page was written."""

    cost: Cost
    all_blocks: bool = False
    html: Path | None = None

    @property
    def arch(self) -> Arch:
        return self.cost.arch

    @property
    def source(self) -> str:
        return zoo.network(self.arch.name).source

    @functools.cached_property
    def every_part(self) -> tuple[Part, ...]:
        """Each block by itself, then the tail."""
        arch, rows = self.arch, {r.layer: r for r in self.cost.rows}
        uib = any(isinstance(r, InvertedResidual) and (r.start or not r.kernel) for r in arch.rows)

        def part(name: str, kind: str, source: str, ops: Sequence[Op], compare: bool = True) -> Part:
            sides = {source: arch.sides[source]} | {op.name: arch.sides[op.name] for op in ops}
            own = tuple(rows[op.name] for op in ops if op.name in rows)
            against = _against(ops, sides, own) if compare else None
            return Part(name, kind, 1, source, tuple(ops), own, sides, against)

        bodies = zip(itertools.count(), arch.rows, arch.blocks, strict=False)
        out = [part(str(i), kind_of(row, uib), b.source, b.ops) for i, row, b in bodies]
        out.append(part("pool", "global average pool", arch.tail[0].inputs[0], arch.tail[:1], compare=False))
        out += [part("head", "1x1 convolution", b.source, b.ops, compare=False) for b in arch.head_blocks]
        if arch.classes:
            last = arch.tail[-1]
            out.append(part("classes", "classifier", last.inputs[0], (last,), compare=False))
        return tuple(out)

    @functools.cached_property
    def parts(self) -> tuple[Part, ...]:
        """`every_part` with neighbours that are the same drawn once."""
        out = []
        for _, same in itertools.groupby(self.every_part, key=lambda p: p.key):
            first, *others = same
            name = f"{first.name}-{others[-1].name}" if others else first.name
            out.append(dataclasses.replace(first, name=name, times=1 + len(others)))
        return tuple(out)

    @functools.cached_property
    def distinct(self) -> tuple[Part, ...]:
        """The blocks that differ, each once, wherever it comes again; "8, 10, 12" is its name."""
        same: dict[tuple[Any, ...], list[Part]] = {}
        for p in self.parts:
            if p.against:
                same.setdefault(p.key, []).append(p)
        return tuple(
            dataclasses.replace(ps[0], name=", ".join(p.name for p in ps), times=sum(p.times for p in ps))
            for ps in same.values()
        )

    @property
    def example(self) -> Part | None:
        """The block that takes the most macs of those about which V1's formula says something."""
        some = [p for p in self.distinct if p.against and p.against.predicted]
        return max(some, key=lambda p: p.times * p.macs, default=None)

    @property
    def standard_macs(self) -> int:
        """The network's macs if every block were one standard convolution; attention, pooling and head as they are."""
        return sum((p.against and p.against.standard_macs) or p.macs for p in self.every_part)

    # ---- where the cost sits ---------------------------------------------------------------------------------------

    def _shares(self, groups: dict[str, list[CostRow]], kinds: dict[str, str]) -> tuple[Share, ...]:
        return tuple(
            Share(k, kinds[k], sum(r.macs for r in rows), sum(r.params for r in rows)) for k, rows in groups.items()
        )

    @functools.cached_property
    def by_type(self) -> tuple[Share, ...]:
        kinds = {TYPE_NAMES[k]: [r for r in self.cost.rows if r.type == k] for k in TYPE_NAMES}
        return self._shares({k: v for k, v in kinds.items() if v}, {TYPE_NAMES[k]: k for k in TYPE_NAMES})

    @functools.cached_property
    def by_map(self) -> tuple[Share, ...]:
        """By the size of the map that a layer writes, the largest first."""
        sides = sorted({r.out_shape[1] for r in self.cost.rows}, reverse=True)
        groups = {f"{s}x{s}": [r for r in self.cost.rows if r.out_shape[1] == s] for s in sides}
        return self._shares(groups, dict.fromkeys(groups, ""))

    @property
    def heaviest(self) -> tuple[CostRow, ...]:
        return tuple(sorted(self.cost.rows, key=lambda r: -r.macs)[:HEAVIEST])

    @property
    def why(self) -> tuple[str, ...]:
        """What explains the shares, in sentences."""
        top = max(self.by_type, key=lambda s: s.macs)
        share = f"{100 * top.macs / self.cost.macs:.0f}% of the mult-adds are"
        reasons = {
            "pointwise": f"{share} 1x1 convolutions: plain matrix products, which need no reordering in memory first "
            "(V1 paper, section 3.2).",
            "conv": f"{share} standard convolutions: every output channel filters every input channel, K x K times, "
            "and the input must be reordered to make that a matrix product (V1 paper, section 3.2).",
        }
        out = [reasons.get(top.kind, f"{share} {top.label}.")]
        tail = [s for s in self.by_map if s.label == "1x1"]
        if tail and self.arch.sides[self.arch.blocks[-1].output] > 1:
            macs, params = 100 * tail[0].macs / self.cost.macs, 100 * tail[0].params / self.cost.params
            out.append(
                f"Layers on a 1x1 map (after pooling) hold {params:.0f}% of the parameters but {macs:.1f}% of the "
                "mult-adds: there a weight is used once per image, in a map once per position."
            )
        return tuple(out)

    # ---- knobs, head, views ----------------------------------------------------------------------------------------

    @functools.cached_property
    def knobs(self) -> tuple[Knob, ...]:
        a, known = self.arch, zoo.network(self.arch.name).resolutions
        below = (a.resolution - 1) // SMALLEST_RESOLUTION * SMALLEST_RESOLUTION
        lower = max((r for r in known if r < a.resolution), default=below)
        half = self._turned(a.alpha / 2, a.resolution)
        thinner = "alpha² for 1x1 layers, which have fewer inputs and fewer outputs; about alpha for all others"
        if a.keep_head and a.alpha <= 1:
            thinner += "; the last 1x1 layer keeps its width"
        out = [self._knob("alpha", a.alpha, a.alpha / 2, half, 1 / 4, thinner, "V1 paper, section 3.3")]
        if lower >= SMALLEST_RESOLUTION:
            smaller = "rho²: maps have fewer positions; the weights, used at each position, stay as they are"
            rho = lower / a.resolution
            less = self._turned(a.alpha, lower)
            out.append(self._knob("resolution", a.resolution, lower, less, rho**2, smaller, "V1 paper, section 3.4"))
        return tuple(out)

    def _turned(self, alpha: float, resolution: int) -> Cost:
        return cost.count(zoo.arch(self.arch.name, alpha, resolution, self.arch.classes))

    def _knob(self, name: str, before: float, after: float, c: Cost, rule: float, law: str, source: str) -> Knob:
        now = self.cost
        ratios = (c.macs / now.macs, c.params / now.params)
        return Knob(name, before, after, c.macs, c.params, *ratios, rule, law, source)

    @property
    def last_map(self) -> Shape:
        last = self.arch.blocks[-1]
        side = self.arch.sides[last.output]
        return last.cout, side, side

    @property
    def head(self) -> Head | None:
        """None for a network that ends with the pooling."""
        after = next((op for op in self.arch.tail if op.is_layer), None)
        return Head(after.name, self.last_map, after.cout) if after else None

    @functools.cached_property
    def receptive_field(self) -> int:
        """Pixels, along one side, that a position of the last map sees through kernels and strides."""
        seen, jump = {"input": 1}, {"input": 1}
        for op in (op for b in self.arch.blocks for op in b.ops):
            # A gate and an attention's keys come from the whole map: they are `sees_all_from`'s.
            paths = op.inputs if op.kind == "add" else op.inputs[:1]
            jump[op.name] = jump[paths[0]] * op.stride
            seen[op.name] = max(seen[x] for x in paths) + (op.kernel - 1) * jump[paths[0]]
        return seen[self.arch.blocks[-1].output]

    @property
    def sees_all_from(self) -> int | None:
        """The first block in which every position sees the whole image, by squeeze-excite or attention."""
        blocks = enumerate(self.arch.blocks)
        return next((i for i, b in blocks if any(op.kind in ("pool", "attend") for op in b.ops)), None)

    @functools.cached_property
    def ideas(self) -> tuple[Idea, ...]:
        return ideas_of(self.arch, {p.kind for p in self.parts})

    # ---- out -------------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        a, c, head = self.arch, self.cost, self.head

        def shares(some: Sequence[Share]) -> list[dict[str, Any]]:
            return [{"label": s.label, "macs": s.macs, "params": s.params} for s in some]

        return {
            "arch": a.name,
            "alpha": a.alpha,
            "resolution": a.resolution,
            "classes": a.classes,
            "source": self.source,
            "macs": c.macs,
            "weights": c.weights,
            "trainable_params": c.params,
            "standard_macs": self.standard_macs,
            "parts": [p.to_json() for p in self.parts],
            "by_type": shares(self.by_type),
            "by_map": shares(self.by_map),
            "heaviest_layers": [dataclasses.asdict(r) for r in self.heaviest],
            "why": list(self.why),
            "knobs": [dataclasses.asdict(k) for k in self.knobs],
            "head": head
            and dataclasses.asdict(head)
            | {"pooled_weights": head.pooled_weights, "flattened_weights": head.flattened_weights},
            "peak_activation_elements": c.peak_activation_elements,
            "peak_activation_elements_blockwise": c.peak_activation_elements_blockwise,
            "receptive_field": self.receptive_field,
            "sees_all_from_block": self.sees_all_from,
            "total_stride": a.blocks[-1].total_stride,
            "stages": [dataclasses.asdict(s) for s in a.stages],
            "ideas": [dataclasses.asdict(i) for i in self.ideas],
            "html": str(self.html) if self.html else None,
        }

    def __rich__(self) -> RenderableType:
        from mobilenets import drawings

        return drawings.Screen(self)


def explain(
    arch: str,
    *,
    alpha: float = 1.0,
    resolution: int | None = None,
    classes: int = 1000,
    blocks: bool = False,
    html: Path | None = None,
) -> Explanation:
    """A network explained: its blocks drawn, where the cost sits and why, its knobs and its ideas.

    Parameters
    ----------
    arch
        Network: v1, v2, v3-large, ...; `mobilenets list` shows them all.
    alpha
        Width multiplier, above 0 and at most 2.
    resolution
        Input height and width in pixels, 32 or more; the one the network's paper leads with, if left out.
    classes
        Outputs of the classifier.
    blocks
        Draw every block, each beside a standard convolution.
    html
        Write a page to this file instead of printing.
    """
    out = Explanation(cost.count(zoo.arch(arch, alpha, resolution, classes)), blocks, html)
    if html:
        from mobilenets import drawings

        text = drawings.page(out)
        with files.atomic_file(html) as tmp:
            tmp.write_text(text, encoding="utf-8")
    return out
