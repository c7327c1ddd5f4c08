"""Numbers about a whole network: where its cost sits and why, what its knobs do, its head, what its last map sees."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from mobilenets.arch import cost, zoo
from mobilenets.arch.cost import TYPE_NAMES, Cost, CostRow
from mobilenets.arch.matrices import DENSE
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError
from mobilenets.reports.explain.parts import Shape

HEAVIEST = 3
SMALLEST_RESOLUTION = 32


@dataclass(frozen=True)
class Share:
    """Something's part of the network; `label` says what."""

    label: str
    kind: str
    macs: int
    params: int


def by_type(c: Cost) -> tuple[Share, ...]:
    kinds = {TYPE_NAMES[k]: [r for r in c.rows if r.type == k] for k in TYPE_NAMES}
    return _shares({k: v for k, v in kinds.items() if v}, {TYPE_NAMES[k]: k for k in TYPE_NAMES})


def by_map(c: Cost) -> tuple[Share, ...]:
    """By the size of the map that a layer writes, the largest first."""
    sides = sorted({r.out_shape[1] for r in c.rows}, reverse=True)
    groups = {f"{s}x{s}": [r for r in c.rows if r.out_shape[1] == s] for s in sides}
    return _shares(groups, dict.fromkeys(groups, ""))


def _shares(groups: Mapping[str, list[CostRow]], kinds: Mapping[str, str]) -> tuple[Share, ...]:
    return tuple(
        Share(k, kinds[k], sum(r.macs for r in rows), sum(r.params for r in rows)) for k, rows in groups.items()
    )


def heaviest(c: Cost) -> tuple[CostRow, ...]:
    return tuple(sorted(c.rows, key=lambda r: -r.macs)[:HEAVIEST])


def why(c: Cost) -> tuple[str, ...]:
    """What explains the shares, in sentences."""
    top = max(by_type(c), key=lambda s: s.macs)
    share = f"{100 * top.macs / c.macs:.0f}% of the mult-adds are"
    reasons = {
        "pointwise": f"{share} 1x1 convolutions: plain matrix products, which need no reordering in memory first "
        "(V1 paper, section 3.2).",
        "conv": f"{share} standard convolutions: every output channel filters every input channel, K x K times, "
        "and the input must be reordered to make that a matrix product (V1 paper, section 3.2).",
    }
    out = [reasons.get(top.kind, f"{share} {top.label}.")]
    tail = [s for s in by_map(c) if s.label == "1x1"]
    if tail and last_map(c.arch)[1] > 1:
        macs, params = 100 * tail[0].macs / c.macs, 100 * tail[0].params / c.params
        out.append(
            f"Layers on a 1x1 map (after pooling) hold {params:.0f}% of the parameters but {macs:.1f}% of the "
            "mult-adds: there a weight is used once per image, in a map once per position."
        )
    return tuple(out)


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


def knobs(now: Cost) -> tuple[Knob, ...]:
    a, known = now.arch, zoo.network(now.arch.name).resolutions
    below = (a.resolution - 1) // SMALLEST_RESOLUTION * SMALLEST_RESOLUTION
    lower = max((r for r in known if r < a.resolution), default=below)
    half = _turned(a, a.alpha / 2, a.resolution)
    thinner = "alpha² for 1x1 layers, which have fewer inputs and fewer outputs; about alpha for all others"
    if a.keep_head and a.alpha <= 1:
        thinner += "; the last 1x1 layer keeps its width"
    out = [_knob("alpha", a.alpha, a.alpha / 2, now, half, 1 / 4, thinner, "V1 paper, section 3.3")]
    if lower >= SMALLEST_RESOLUTION:
        smaller = "rho²: maps have fewer positions; the weights, used at each position, stay as they are"
        rho = lower / a.resolution
        with contextlib.suppress(UserError):  # a network whose layers are as large as its last map takes no less
            less = _turned(a, a.alpha, lower)
            out.append(_knob("resolution", a.resolution, lower, now, less, rho**2, smaller, "V1 paper, section 3.4"))
    return tuple(out)


def _turned(arch: Arch, alpha: float, resolution: int) -> Cost:
    return cost.count(zoo.arch(arch.name, alpha, resolution, arch.num_classes))


def _knob(name: str, before: float, after: float, now: Cost, then: Cost, rule: float, law: str, source: str) -> Knob:
    ratios = (then.macs / now.macs, then.params / now.params)
    return Knob(name, before, after, then.macs, then.params, *ratios, rule, law, source)


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


def last_map(arch: Arch) -> Shape:
    last = arch.blocks[-1]
    side = arch.sides[last.output]
    return last.cout, side, side


def head(arch: Arch) -> Head | None:
    """None for a network that ends with the pooling, of a classifier's answers or of features."""
    if arch.classifies == "map" or arch.classifier != DENSE:
        return None
    after = next((op for op in arch.tail if op.is_layer), None)
    return Head(after.name, last_map(arch), after.cout) if after else None


def receptive_field(arch: Arch) -> int:
    """Pixels, along one side, that a position of the last map sees through kernels and strides."""
    seen, jump = {"input": 1}, {"input": 1}
    for op in (op for b in arch.blocks for op in b.ops):
        # A gate and an attention's keys come from the whole map: they are `sees_all_from`'s.
        paths = op.inputs if op.kind in ("add", "concat") else op.inputs[:1]
        jump[op.name] = jump[paths[0]] * op.stride
        seen[op.name] = max(seen[x] for x in paths) + (op.kernel - 1) * jump[paths[0]]
    return seen[arch.blocks[-1].output]


def sees_all_from(arch: Arch) -> int | None:
    """The first block in which every position sees the whole image, by squeeze-excite or attention."""
    blocks = enumerate(arch.blocks)
    return next((i for i, b in blocks if any(op.kind in ("pool", "attend") for op in b.ops)), None)
