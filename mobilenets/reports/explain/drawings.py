"""Blocks and networks as inline SVG. No matplotlib."""

from __future__ import annotations

from collections.abc import Sequence

from mobilenets.arch.cost import TYPE_NAMES
from mobilenets.reports.explain.explanation import Explanation
from mobilenets.reports.explain.parts import Part, Shape, short
from mobilenets.reports.explain.steps import caption, steps
from mobilenets.reports.explain.words import millions, shape

# The page's CSS variable that is each layer type's colour.
CSS = {"pointwise": "blue", "depthwise": "orange", "conv": "green", "linear": "pink", "attend": "sky", "se": "pink"}
BOX, GAP, PAD = 122, 10, 28  # widths in SVG units, about pixels
MIDDLE = 78  # y of the line that a block's main path runs along


def _slab(x: float, shape: Shape, full: int) -> tuple[str, float]:
    """A tensor as a slab at `x`: wide for many channels, tall for a large map. Its markup and its width."""
    channels, side, _ = shape
    w, h = 4 + 1.15 * channels**0.5, 12 + 76 * (side / full) ** 0.5
    text = f'<text x="{x + w / 2:.1f}" y="{MIDDLE + 58}" class="n">{channels}</text>'
    text += f'<text x="{x + w / 2:.1f}" y="{MIDDLE + 70}" class="s">{side}×{side}</text>'
    at = f'x="{x:.1f}" y="{MIDDLE - h / 2:.1f}"'
    return f'<rect class="slab" {at} width="{w:.1f}" height="{h:.1f}" rx="2"/>{text}', w


def box(x: float, y: float, w: float, lines: Sequence[str], kind: str, h: float = 40) -> str:
    """A box centred at height `y`, in its type's colour."""
    colour = f"var(--{CSS.get(kind, 'muted')})"
    lines = [t for t in lines if t]
    first = y + 4 - 6.5 * (len(lines) - 1)
    words = "".join(
        f'<text x="{x + w / 2:.1f}" y="{first + 13 * i:.1f}" class="{"s" if i else "n"}">{t}</text>'
        for i, t in enumerate(lines)
    )
    rect = f'<rect x="{x:.1f}" y="{y - h / 2:.1f}" width="{w:.1f}" height="{h:.1f}" rx="7"'
    return f'{rect} style="stroke:{colour};fill:color-mix(in srgb,{colour} 13%,var(--back))"/>{words}'


def line(*points: tuple[float, float], arrow: bool = False) -> str:
    """A line through points, with the head of an arrow at its end."""
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    if arrow:
        x, y = points[-1]
        back = 5 if points[-2][0] <= x else -5
        if points[-2][0] == x:
            up = 5 if points[-2][1] < y else -5
            d += f"M{x - 4:.1f} {y - up:.1f}L{x:.1f} {y:.1f}L{x + 4:.1f} {y - up:.1f}"
        else:
            d += f"M{x - back:.1f} {y - 4:.1f}L{x:.1f} {y:.1f}L{x - back:.1f} {y + 4:.1f}"
    return f'<path d="{d}"/>'


def _joint(x: float, sign: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{MIDDLE}" r="8"/><text x="{x:.1f}" y="{MIDDLE + 4.5:.1f}" class="n">{sign}</text>'


def block(part: Part, full: int) -> str:
    """A part as an SVG: tensors as slabs, operations as boxes between them, shortcut and branches as lines.

    `full` is the side in pixels of the image, which slabs are scaled to.
    """
    slab, w = _slab(PAD, part.in_shape, full)
    out, x, height = [slab], PAD + w, MIDDLE + 80.0
    start = PAD + w / 2
    top = MIDDLE - 6 - 38 * (part.in_shape[1] / full) ** 0.5
    drawn = steps(part)
    for s in drawn:
        side = part.sides[s.op.name]
        name, _, what = caption(s, part)
        lines = [
            name.replace(s.stride, "", 1),
            ", ".join(t for t in (f"stride {s.op.stride}" * bool(s.stride), what) if t),
        ]
        if s.kind == "se":
            reduce, expand = s.branches[0]
            left, low, w3 = x - 6, MIDDLE + 108, 62
            out.append(line((left, MIDDLE + 74), (left, low), (left + 14, low), arrow=True))
            for i, text in enumerate(
                (["mean", "of map"], [f"1x1 → {reduce.cout}", "ReLU"], [f"1x1 → {expand.cout}", "h-sigmoid"])
            ):
                out.append(box(left + 14 + i * (w3 + 10), low, w3, text, "se" if i else "", 34))
                out.append(line((left + 14 + i * (w3 + 10) + w3, low), (left + 24 + i * (w3 + 10) + w3, low)))
            right = left + 14 + 3 * (w3 + 10)
            out += [line((x, MIDDLE), (right - 8, MIDDLE)), _joint(right, "×")]
            out.append(line((right, low), (right, MIDDLE + 9), arrow=True))
            x, height = right + 8, low + 24.0
        elif s.kind == "attend":
            left = x + GAP
            for y, branch in zip((MIDDLE - 42, MIDDLE, MIDDLE + 42), s.branches, strict=True):
                out.append(line((x, MIDDLE), (left, y)))
                for i, op in enumerate(branch):
                    wide = 90 if len(branch) == 2 else 190
                    act = f"3x3/{op.stride} depthwise" if op.kind == "depthwise" else f"1x1 → {op.cout}"
                    out.append(box(left + i * 100, y, wide, [short(op).split("_")[0], act], op.kind, 34))
                    if i:
                        out.append(line((left + 90, y), (left + 100, y)))
                out.append(line((left + 190, y), (left + 206, y)))
            out.append(box(left + 206, MIDDLE, 66, lines, "attend", 118))
            x = left + 272
        else:
            out.append(line((x, MIDDLE), (x + GAP, MIDDLE)))
            out.append(box(x + GAP, MIDDLE, BOX, lines, s.kind))
            x += GAP + BOX
        end = GAP
        if part.shortcut and s is drawn[-1]:
            out += [line((x, MIDDLE), (x + GAP, MIDDLE)), _joint(x + GAP + 8, "+")]
            joint = x + GAP + 8
            out.append(
                f'<path class="arc" d="M{start:.1f} {top:.1f}V22Q{start:.1f} 8 {start + 14:.1f} 8H{joint - 14:.1f}'
                f'Q{joint:.1f} 8 {joint:.1f} 22V{MIDDLE - 10}"/>'
            )
            out.append(
                line((joint, MIDDLE - 14), (joint, MIDDLE - 9), arrow=True).replace("<path", '<path class="arc"')
            )
            x += GAP + 16
        out.append(line((x, MIDDLE), (x + end, MIDDLE), arrow=True))
        slab, w = _slab(x + end, (s.op.cout, side, side), full)
        out.append(slab)
        x += end + w
    width, above = x + PAD, 0 if part.shortcut or any(s.kind == "attend" for s in drawn) else MIDDLE - 56
    title = f"{part.kind}, {shape(part.in_shape)} to {shape(part.out_shape)}"
    return svg("block", f"0 {above} {width:.0f} {height - above:.0f}", title, f"--width:{width:.0f}px", out)


def svg(name: str, view: str, title: str, style: str, inside: Sequence[str]) -> str:
    label = f'role="img" aria-label="{title}"'
    return f'<svg class="{name}" viewBox="{view}" {label} style="{style}">{"".join(inside)}</svg>'


def overview(e: Explanation) -> str:
    """The whole network as an SVG: each block's output as a slab, and below it the block's share of macs and params."""
    parts = e.every_part
    width, left, middle_y, macs0, params0, most = 900, 64, 84, 262, 274, 78
    pitch = (width - left - 6) / len(parts)
    widest = max(p.out_shape[0] for p in parts if p.kind != "classifier")
    total = {"macs": e.cost.macs, "params": e.cost.params}
    scale = max(getattr(p, what) / n for p in parts for what, n in total.items())
    out = []
    for i, p in enumerate(parts):
        channels, side, _ = p.out_shape
        middle = left + pitch * (i + 0.5)
        colour = f"var(--{CSS.get(max(p.rows, key=lambda r: r.macs).type if p.rows else '', 'muted')})"
        w = max(3.0, 0.9 * pitch * (min(channels, widest) / widest) ** 0.5)
        h = 6 + 150 * (side / e.arch.resolution) ** 0.5
        tip = f"{p.name}: {p.kind}, {shape(p.out_shape)}, {millions(p.macs)} M macs, {p.params:,} parameters"
        out.append(
            f'<g><title>{tip}</title><rect class="slab" x="{middle - w / 2:.1f}" y="{middle_y - h / 2:.1f}" '
            f'width="{w:.1f}" height="{h:.1f}" rx="2" '
            f'style="fill:color-mix(in srgb,{colour} 45%,var(--back));stroke:{colour}"/>'
        )
        if p.shortcut:
            y = middle_y - h / 2 - 3
            out.append(
                f'<path class="arc" d="M{middle - pitch:.1f} {y:.1f}'
                f'Q{middle - pitch / 2:.1f} {y - 16:.1f} {middle:.1f} {y:.1f}"/>'
            )
        for what, y, up in (("macs", macs0, True), ("params", params0, False)):
            for kind in TYPE_NAMES:
                tall = most / scale * sum(getattr(r, what) for r in p.rows if r.type == kind) / total[what]
                y -= tall * up
                out.append(
                    f'<rect x="{middle - 0.36 * pitch:.1f}" y="{y:.1f}" width="{0.72 * pitch:.1f}" '
                    f'height="{tall:.2f}" style="fill:var(--{CSS.get(kind, "muted")})"/>'
                )
                y += tall * (not up)
            share = getattr(p, what) / total[what]
            if share > 0.1 * scale and pitch > 30:
                text = f'<text x="{middle:.1f}" y="{y - 4 if up else y + 11:.1f}" class="s">'
                out.append(f"{text}{100 * share:.1f}%</text>")
        out.append("</g>")
    for name, y in (("macs", macs0 - 6), ("params", params0 + 12)):
        out.append(f'<text x="0" y="{y}" class="l">{name}</text>')
    out.append(f'<text x="0" y="{middle_y + 4}" class="l">maps</text>')
    out.append(f'<path d="M{left} {macs0 + 1}H{width}M{left} {params0 - 1}H{width}" style="stroke:var(--grid)"/>')
    for s in e.arch.stages:
        x = left + pitch * (s.block + 0.5)
        out.append(f'<text x="{x:.1f}" y="{middle_y + 78}" class="s">{s.channels}</text>')
        out.append(f'<text x="{x:.1f}" y="{middle_y + 90}" class="s">/{s.stride}</text>')
    return svg("net", f"0 0 {width} {params0 + most + 18}", f"{e.arch.title}, block by block", "", out)
