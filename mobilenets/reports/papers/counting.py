"""What a cell of a table counts, exactly, from the networks' rows."""

from __future__ import annotations

import dataclasses
import functools
import math
from fractions import Fraction

from mobilenets.arch import cost, spec, zoo
from mobilenets.arch.cost import Cost
from mobilenets.arch.detectors import counting as detectors
from mobilenets.arch.rows import InvertedResidual, Separable
from mobilenets.arch.spec import Arch
from mobilenets.reports.papers.tables import Net, What

Value = int | Fraction | str  # a count, a share, a shape


@functools.cache
def counted(net: Net) -> Cost:
    """The cost of the whole network that `net` names, or names a part of."""
    if net.detector:
        return detectors.count(net.detector, net.arch, net.alpha, net.resolution, net.num_classes)
    network = zoo.network(net.arch)
    last = network.rows[-1]
    if isinstance(last, Separable):
        network = dataclasses.replace(
            network, rows=(*network.rows[:-1], dataclasses.replace(last, stride=net.last_stride))
        )
    return cost.count(spec.scale(network, net.alpha, net.resolution, net.num_classes, min_depth=net.min_depth))


def value(net: Net, what: What) -> Value:
    """What a cell counts, exactly; a share is a Fraction of 100, a shape is text."""
    whole = counted(dataclasses.replace(net, layers=(), kind=None, side=0))
    rows = [r for r in whole.rows if r.layer.startswith(net.layers or "") and net.kind in (None, r.type)]
    weights = sum(r.weights for r in rows)
    match what:
        case "macs":
            return sum(r.macs for r in rows)
        case "weights":
            return weights
        case "params":
            return sum(r.params for r in rows)
        case "folded" | "slim":
            of_norm = 1 if what == "folded" else 3
            ops = {op.name: op for op in whole.arch.layers}
            used = [ops[r.layer] for r in rows if r.layer in ops]
            return weights + sum(op.cout * (of_norm * op.norm + op.bias) for op in used)
        case "macs_share":
            return Fraction(100 * sum(r.macs for r in rows), whole.macs)
        case "weights_share":
            return Fraction(100 * weights, whole.weights)
        case "stride":
            return math.prod(r.stride for r in rows)
        case "input":
            channels, height, width = rows[0].in_shape
            return f"{height}x{width}x{channels}"
        case "peak_layerwise":
            return whole.peak_activation_elements
        case "peak_blockwise":
            return whole.peak_activation_elements_blockwise
        case "memory_max":
            return max(_bytes(side, n) for side, n in _kept(whole.arch, after=False).items())
        case "channels" | "next_channels":
            return _kept(whole.arch, after=what == "next_channels")[net.side]
        case "memory" | "next_memory":
            return _bytes(net.side, _kept(whole.arch, after=what == "next_memory")[net.side])


def _bytes(side: int, channels: int) -> int:
    return 2 * channels * side**2


def _kept(arch: Arch, after: bool) -> dict[int, int]:
    """Side of a map -> most channels of one that outlives its block (V2 paper, table 3's convention).

    Where a network has bottlenecks, only theirs count. With `after`, those of the blocks that read a map of that side.
    """
    bottlenecks = [b for b, row in zip(arch.blocks, arch.rows, strict=True) if isinstance(row, InvertedResidual)]
    out = {1: arch.features}
    for b in bottlenecks or arch.blocks:
        side = arch.sides[b.source if after else b.output]
        out[side] = max(out.get(side, 0), b.cout)
    return out
