"""Shortcuts between expansions in place of bottlenecks (V2 paper, figure 6). No torch."""

from __future__ import annotations

import dataclasses

from mobilenets.arch.operations import Op


def around_expansions(bodies: list[tuple[tuple[Op, ...], bool]]) -> list[tuple[tuple[Op, ...], bool]]:
    """Blocks cut after each expansion instead of each projection: joined bottlenecks become joined expansions."""
    out: list[tuple[tuple[Op, ...], bool]] = []
    pending: tuple[Op, ...] = ()
    waiting = False
    for ops, joined in bodies:
        names = [op.name for op in ops]
        cut = names.index("depthwise") if {"expand", "depthwise"} <= set(names) else 0
        if cut:
            spliced = _splice(pending + ops[:cut])
            out.append((spliced, waiting and spliced[0].cin == spliced[-1].cout))
            pending, waiting = ops[cut:], joined
        else:
            pending, waiting = pending + ops, False
    return [*out, (_splice(pending), False)]


def _splice(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """Operations of neighbouring blocks as one block's: what isn't among them is the input of the first."""
    out: list[Op] = []
    for op in ops:
        here = {o.name for o in out}
        after = out[-1].name if out else ""
        out.append(dataclasses.replace(op, inputs=tuple(x if x in here else after for x in op.inputs)))
    return tuple(out)
