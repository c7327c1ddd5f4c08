"""How numbers are said, and the facts about a whole network in sentences: the same in a terminal and on a page."""

from __future__ import annotations

from collections.abc import Iterator

from mobilenets.reports.explain.explanation import Explanation
from mobilenets.reports.explain.parts import Shape


def shape(s: Shape) -> str:
    return "x".join(map(str, s))


def millions(n: float) -> str:
    """Millions to two decimals, or none where they would be noise."""
    return f"{n / 1e6:,.2f}" if n < 1e9 else f"{n / 1e6:,.0f}"


def percent(ratio: float) -> str:
    p = 100 * ratio
    return f"{p:.1f}" if p >= 0.05 or not p else "<0.1"


def times(ratio: float) -> str:
    """A ratio of costs as words: "8.8 times less"."""
    return f"{1 / ratio:.1f} times less" if ratio < 1 else "as much" if ratio == 1 else f"{ratio:.1f} times as much"


def sentences(e: Explanation) -> Iterator[tuple[str, str]]:
    """Name and sentence of each: the knobs, the head, memory, what a position sees, the taps."""
    a, c = e.arch, e.cost
    for k in e.knobs:
        yield (
            f"{k.name} {k.before:g} → {k.after:g}",
            f"{millions(k.macs)} M macs (x {k.macs_ratio:.3f}; the law says {k.rule:.3f}), {millions(k.params)} M "
            f"parameters (x {k.params_ratio:.3f}). {k.law[0].upper()}{k.law[1:]} ({k.source}).",
        )
    if e.head:
        h = e.head
        yield (
            "pool or flatten",
            f"The mean of the {shape(h.last_map)} map gives {h.layer} {h.last_map[0]} inputs and "
            f"{h.pooled_weights:,} weights. Flattened, the map would give it {millions(h.flattened_weights)} M, and as "
            f"many macs: {h.flattened_weights // h.pooled_weights} times as many.",
        )
    by_layer, by_block = c.peak_activation_elements, c.peak_activation_elements_blockwise
    peak = f"{by_layer:,} elements, layer by layer; "
    if by_block < by_layer:
        peak += f"{by_block:,} with a block as one operation: its expanded inside need never be whole in memory"
    else:
        peak += "as many with a block as one operation: the largest maps are passed between blocks"
    yield "peak activations", f"{peak} (V2 paper, section 5.1)."
    window = e.receptive_field
    seen = (
        f"A window {window} pixels wide, {'more' if window >= a.resolution else 'less'} than the image's {a.resolution}"
    )
    if e.sees_all_from is not None:
        how = "attention" if "attention" in {p.kind for p in e.parts} else "squeeze-excite"
        seen += f"; through {how}, all of the image from block {e.sees_all_from} on"
    yield "the last map sees", f"{seen}. One step in it is {a.blocks[-1].total_stride} pixels in the image."
    taps = ", ".join(f"stride {s.stride}: {s.channels} (block {s.block})" for s in a.stages)
    yield "taps for detection", f"channels at {taps}."
