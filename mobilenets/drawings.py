"""An `Explanation` drawn: boxes and bars for a terminal, a page with inline SVG for a browser. No matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenets.cost import TYPE_NAMES
from mobilenets.explain import Explanation, Part, Shape, Share, short
from mobilenets.rows import Activation, Op

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.text import Text

TEMPLATE = "explain.html"
MOST_DRAWN = 2  # kinds of block in the short version, and attention
# Each type's colour: the page's CSS variable and, readable on black and on white, the terminal's.
CSS = {"pointwise": "blue", "depthwise": "orange", "conv": "green", "linear": "pink", "attend": "sky", "se": "pink"}
INK = {
    "pointwise": "#2f8fd0", "depthwise": "#d9741a", "conv": "#2aa876", "linear": "#c76fa3", "attend": "#4fb3dd",
    "se": "#c76fa3",
}  # fmt: skip
ACTIVATIONS: dict[Activation | None, str] = {
    "relu": "ReLU", "relu6": "ReLU6", "hard_swish": "hard-swish", "hard_sigmoid": "hard-sigmoid", "gelu": "GELU",
    None: "linear",
}  # fmt: skip


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


@dataclass(frozen=True)
class Step:
    """One box of a drawing: an operation with its activation, a squeeze-excite, or attention with its `branches`."""

    kind: str
    op: Op
    activation: Activation | None = None
    branches: tuple[tuple[Op, ...], ...] = ()

    @property
    def stride(self) -> str:
        return f"/{self.op.stride}" if self.op.stride > 1 else ""


def steps(part: Part) -> list[Step]:
    """A part's operations as boxes, in order; its shortcut is `part.shortcut`."""
    activations = {op.inputs[0]: op.activation for op in part.ops if op.kind == "activation"}
    by_name = {short(op): op for op in part.ops}
    out = []
    for op in part.ops:
        name = short(op)
        if name == "se":
            out.append(Step("se", op, branches=((by_name["se_reduce"], by_name["se_expand"]),)))
        elif op.kind == "attend":
            branch = tuple(
                tuple(by_name[n] for n in (f"{b}_down", b) if n in by_name) for b in ("query", "key", "value")
            )
            out.append(Step("attend", op, branches=branch))
        elif op.kind not in ("add", "activation") and not name.startswith(("se_", "query", "key", "value")):
            out.append(Step(op.kind, op, activations.get(op.name, op.activation)))
    return out


# ---- terminal ------------------------------------------------------------------------------------------------------


def _flow(part: Part) -> Text:
    """A part on one line: "1x1 384 ─ dw 3x3 ─ 1x1 (+)"; the last layer's channels are its output's."""
    from rich.text import Text

    words: list[tuple[str, str]] = []
    drawn = [s for s in steps(part) if s.kind != "norm"]
    for s in drawn:
        size = f"{s.op.kernel}x{s.op.kernel}{s.stride}"
        wide = "" if s is drawn[-1] else f" {s.op.cout}"
        text = {
            "conv": f"conv {size}{wide}",
            "depthwise": f"dw {size}",
            "pointwise": f"{size}{wide}",
            "pool": "mean of the map",
            "linear": "linear",
        }.get(s.kind, "")
        if s.kind == "se":
            text = f"se {s.branches[0][0].cout}"
        if s.kind == "attend":
            text = f"attention {s.op.heads}x{s.op.cin}"
        words += [(" ─ ", "dim"), (text, INK.get(s.kind, ""))]
    if part.shortcut:
        words.append((" (+)", "bold"))
    return Text.assemble(*words[1:], no_wrap=True)


def _box(s: Step, part: Part) -> list[str]:
    """The three lines inside a step's box."""
    out = shape((s.op.cout, part.sides[s.op.name], part.sides[s.op.name]))
    size = f"{s.op.kernel}x{s.op.kernel}{s.stride}"
    role = {"expand": "expand", "project": "project", "pointwise": "pointwise", "output": "output"}.get(short(s.op), "")
    match s.kind:
        case "se":
            return ["squeeze-excite", out, f"by way of {s.branches[0][0].cout}"]
        case "attend":
            return ["attend", out, f"{s.op.heads} heads"]
        case "norm":
            return ["BatchNorm", out, ""]
        case "pool":
            return ["mean", out, ""]
        case "depthwise":
            role = "depthwise"
        case "conv" if not role:
            role = "convolution"
        case "linear":
            return ["linear", str(s.op.cout), "softmax"]
    return [f"{size} {role}".strip(), out, ACTIVATIONS[s.activation]]


def _boxes(part: Part) -> Text:
    """A part as boxes in a row, its shortcut an arc below."""
    from rich.text import Text

    lines = [Text("     ") for _ in range(6)]
    lines[2] = Text("  ─┬─" if part.shortcut else "  ───")
    if part.shortcut:
        for i in (3, 4):
            lines[i] = Text("   │ ")

    def put(pieces: Sequence[str], style: str = "") -> None:
        for line, piece in zip(lines, pieces, strict=False):
            line.append(piece, style)

    def box(inside: Sequence[str], style: str, open_at: Sequence[int] = (1,)) -> None:
        w = max(map(len, inside))
        rows = [f"{'┤' if i in open_at else '│'} {t:{w}} {'├' if i in open_at else '│'}" for i, t in enumerate(inside)]
        put([f"┌{'─' * (w + 2)}┐", *rows, f"└{'─' * (w + 2)}┘"], style)

    for i, s in enumerate(steps(part)):
        if i and s.kind != "attend":
            put([" ", " ", "─", " ", " "])
        if s.kind == "attend":
            put(["   ", " ╭─", "─┼─", " ╰─", "   "])
            three = [(short(b[-1]), shape((b[-1].cout, *(part.sides[b[-1].name],) * 2))) for b in s.branches]
            box([f"{name:5} {out}" for name, out in three], INK["pointwise"], (0, 1, 2))
            put(["   ", "─╮ ", "─┼─", "─╯ ", "   "])
            box(_box(s, part), INK["attend"])
            continue
        box(_box(s, part), INK.get(s.kind, ""))
    if part.shortcut:
        lines[2].append("─(+)─▶")
        for i in (3, 4):
            lines[i].append("  │")
        room = len(lines[3]) - 3 - 2
        lines[5] = Text(f"   ╰{' shortcut ':─^{room}}╯", style="bold")
    else:
        lines[2].append("──▶")
        lines.pop()
    return Text("\n", no_wrap=True).join(lines)


def _bar(ratio: float, width: int) -> str:
    """A bar of `width` characters at 1, in eighths of a character."""
    eighths = round(8 * width * ratio)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).rstrip() or ("▏" if ratio else "")


@dataclass(frozen=True)
class Screen:
    """What an Explanation looks like in a terminal."""

    e: Explanation

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.padding import Padding
        from rich.text import Text

        e, c = self.e, self.e.cost
        yield Text.assemble((e.arch.title, "bold"), f"  ({e.source}), {e.arch.classes} classes")
        yield Text(f"{millions(c.macs)} M macs, {millions(c.params)} M parameters, {len(e.arch.blocks)} blocks")
        if e.html:
            yield Text(f"page  {e.html}")
            return
        width = min(options.max_width, 100)
        for title, body in (
            ("The network", self._network(width)),
            ("Its blocks", self._blocks()),
            ("Beside a standard convolution", self._against()),
            ("Where the cost sits", self._cost(width)),
            ("Its knobs, its end, its views", self._facts()),
            ("Its ideas", self._ideas()),
        ):
            yield Text(f"\n{title}", style="bold underline")
            for item in body:
                yield Padding(item, (0, 0, 0, 1)) if isinstance(item, Text) else item

    def _grid(self, *aligned: str) -> Any:
        from rich.table import Table

        t = Table.grid(padding=(0, 1, 0, 1))
        for a in aligned:
            t.add_column(justify="right" if a == ">" else "left", no_wrap=a != "wrap")
        return t

    def _network(self, width: int) -> Iterator[RenderableType]:
        from rich.text import Text

        e = self.e
        acts = {s.activation for p in e.parts for s in steps(p)} - {None}
        flows = [_flow(p) for p in e.parts]
        cells = [[p.name, f"x{p.times}" if p.times > 1 else "", shape(p.out_shape), self._act(p)] for p in e.parts]
        used = 5 + 2 * 6 + max(map(len, flows)) + sum(max(len(row[i]) for row in cells) for i in (0, 1, 2)) + 6
        bar = max(3, min(14, width - used - 4 * (len(acts) > 1)))
        top = max(p.times * p.macs for p in e.parts)
        t = self._grid(">", "<", "<", "<", ">", ">", "<", ">")
        head = ["block", "", "operations", "act" if len(acts) > 1 else "", "output", "macs", "", "params"]
        t.add_row(*(Text(h, style="dim") for h in head))
        t.add_row("", "", Text("image", style="dim"), "", shape((3, *(e.arch.resolution,) * 2)))
        for p, flow, (name, n, out, act) in zip(e.parts, flows, cells, strict=True):
            macs, params = p.times * p.macs, p.times * p.params
            share = Text(
                _bar(macs / top, bar), style=INK.get(max(p.rows, key=lambda r: r.macs).type, "") if macs else ""
            )
            m = percent(macs / e.cost.macs) if macs else ""
            t.add_row(name, n, flow, act if len(acts) > 1 else "", out, m, share, percent(params / e.cost.params))
        yield t
        words = ["dw: depthwise"] * any(op.kind == "depthwise" for op in e.arch.ops)
        words += ["(+): a shortcut adds the block's input"] * any(p.shortcut for p in e.parts)
        words += ["se n: squeeze-excite by way of n channels"] * any(s.kind == "se" for p in e.parts for s in steps(p))
        words += ["/2: stride 2"] * any(op.stride > 1 for op in e.arch.ops)
        names = ", ".join(sorted(ACTIVATIONS[a] for a in acts))
        words += ["act: re is ReLU, hs hard-swish" if len(acts) > 1 else f"activation: {names}"]
        words += ["macs, params: percent"]
        yield Text("; ".join(words), style="dim")

    def _act(self, part: Part) -> str:
        marks: dict[str, str] = {"relu": "re", "hard_swish": "hs", "relu6": "r6", "gelu": "ge"}
        return next((marks[s.activation] for s in steps(part) if s.activation), "")

    def _blocks(self) -> Iterator[RenderableType]:
        from rich.text import Text

        e = self.e
        parts = list(e.distinct)
        if not e.all_blocks:
            kinds: dict[str, list[Part]] = {}
            for p in parts:
                kinds.setdefault(p.kind, []).append(p)
            drawn = [k for k in kinds if not k.endswith("convolution")] or list(kinds)[:1]
            heavy = sorted(drawn, key=lambda k: -sum(p.times * p.macs for p in kinds[k]))[:MOST_DRAWN]
            shown = [k for k in drawn if k in heavy or k == "attention"]
            # The one that has most to show: a squeeze-excite, a shortcut, many repeats.
            parts = [max(kinds[k], key=lambda p: (len(p.ops), p.times, p.macs)) for k in shown]
        for i, p in enumerate(parts):
            n = f" (x{p.times})" if p.times > 1 else ""
            title = (f"{p.kind}", "bold"), f", block {p.name}{n}: {shape(p.in_shape)} → {shape(p.out_shape)}"
            yield Text.assemble("\n" * bool(i), *title)
            yield _boxes(p)
            if e.all_blocks:
                yield Text(f"{millions(p.macs)} M macs. {self._beside(p)}")
        if not e.all_blocks:
            yield Text("--blocks draws every block, --html FILE makes a page of it", style="dim")

    def _beside(self, p: Part) -> str:
        a = p.against
        assert a is not None  # of a block
        words = []
        if a.ratio and a.standard_macs and a.ratio != 1:
            k = f"{a.kernel}x{a.kernel}"
            words.append(
                f"A standard {k} convolution, {p.in_shape[0]} → {p.out_shape[0]} channels: {millions(a.standard_macs)} "
                f"M; the block takes {times(a.ratio)}."
            )
        if a.expanded_ratio and a.expanded_macs:
            words.append(f"One in its expanded width: {millions(a.expanded_macs)} M; {times(a.expanded_ratio)}.")
        if a.predicted and a.pair_ratio and a.pair_macs and a.pair_standard_macs:
            n = round(1 / (a.predicted - 1 / a.kernel**2))
            words.append(
                f"Depthwise and 1x1: {millions(a.pair_macs)} M of {millions(a.pair_standard_macs)} M, measured "
                f"{a.pair_ratio:.4f}, predicted 1/{n} + 1/{a.kernel**2} = {a.predicted:.4f}."
            )
        return " ".join([*words, a.note[0].upper() + a.note[1:] + "."])

    def _against(self) -> Iterator[RenderableType]:
        e = self.e
        t = self._grid("<", "wrap")
        p = e.example or max(e.distinct, key=lambda p: p.times * p.macs)
        t.add_row(
            f"block {p.name}",
            f"{shape(p.in_shape)} → {shape(p.out_shape)}: {millions(p.macs)} M macs. " + self._beside(p),
        )
        if e.cost.macs != e.standard_macs:
            t.add_row(
                "the network",
                f"{millions(e.cost.macs)} M macs; {millions(e.standard_macs)} M if each block were one standard "
                "convolution of its own input and output channels: it takes "
                f"{times(e.cost.macs / e.standard_macs)}.",
            )
        yield t

    def _cost(self, width: int) -> Iterator[RenderableType]:
        from rich.text import Text

        e = self.e
        bar = min(24, (width - 36) // 2)
        t = self._grid("<", ">", "<", ">", "<")
        t.add_row("", Text("macs %", style="dim"), "", Text("params %", style="dim"))
        for title, shares in (("", e.by_type), ("by the size of the map written", e.by_map)):
            if title:
                t.add_row(Text("by map size", style="dim"))
            for s in shares:
                self._share(t, s, bar)
        yield t
        heavy = "; ".join(f"{r.layer} {100 * r.macs / e.cost.macs:.1f}%" for r in e.heaviest)
        t = self._grid("<", "wrap")
        t.add_row("heaviest layers", f"{heavy} of the macs")
        t.add_row("why", " ".join(e.why))
        yield t

    def _share(self, t: Any, s: Share, bar: int) -> None:
        from rich.text import Text

        m, p = s.macs / self.e.cost.macs, s.params / self.e.cost.params
        style = INK.get(s.kind, "")
        t.add_row(s.label, percent(m), Text(_bar(m, bar), style=style), percent(p), Text(_bar(p, bar), style=style))

    def _facts(self) -> Iterator[RenderableType]:
        t = self._grid("<", "wrap")
        for name, text in facts(self.e):
            t.add_row(name, text)
        yield t

    def _ideas(self) -> Iterator[RenderableType]:
        from rich.text import Text

        t = self._grid("wrap", "wrap")
        t.columns[0].max_width = 22
        for i in self.e.ideas:
            t.add_row(i.name, Text.assemble(i.text, (f" [{i.source}]", "dim")))
        yield t


def facts(e: Explanation) -> Iterator[tuple[str, str]]:
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


# ---- page ----------------------------------------------------------------------------------------------------------

BOX, GAP, PAD = 106, 10, 28  # widths in SVG units, about pixels
MIDDLE = 78  # y of the line that a block's main path runs along


def _slab(x: float, shape: Shape, full: int) -> tuple[str, float]:
    """A tensor as a slab at `x`: wide for many channels, tall for a large map. Its markup and its width."""
    channels, side, _ = shape
    w, h = 4 + 1.15 * channels**0.5, 12 + 76 * (side / full) ** 0.5
    text = f'<text x="{x + w / 2:.1f}" y="{MIDDLE + 58}" class="n">{channels}</text>'
    text += f'<text x="{x + w / 2:.1f}" y="{MIDDLE + 70}" class="s">{side}×{side}</text>'
    at = f'x="{x:.1f}" y="{MIDDLE - h / 2:.1f}"'
    return f'<rect class="slab" {at} width="{w:.1f}" height="{h:.1f}" rx="2"/>{text}', w


def _label(x: float, y: float, w: float, lines: Sequence[str], kind: str, h: float = 40) -> str:
    """A box centred at height `y`, in its type's colour."""
    colour = f"var(--{CSS.get(kind, 'muted')})"
    lines = [t for t in lines if t]
    first = y + 4 - 6.5 * (len(lines) - 1)
    words = "".join(
        f'<text x="{x + w / 2:.1f}" y="{first + 13 * i:.1f}" class="{"s" if i else "n"}">{t}</text>'
        for i, t in enumerate(lines)
    )
    box = f'<rect x="{x:.1f}" y="{y - h / 2:.1f}" width="{w:.1f}" height="{h:.1f}" rx="7"'
    return f'{box} style="stroke:{colour};fill:color-mix(in srgb,{colour} 13%,var(--back))"/>{words}'


def _path(*points: tuple[float, float], arrow: bool = False) -> str:
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
        name, _, what = _box(s, part)
        lines = [
            name.replace(s.stride, "", 1),
            ", ".join(t for t in (f"stride {s.op.stride}" * bool(s.stride), what) if t),
        ]
        if s.kind == "se":
            reduce, expand = s.branches[0]
            left, low, w3 = x - 6, MIDDLE + 108, 62
            out.append(_path((left, MIDDLE + 74), (left, low), (left + 14, low), arrow=True))
            for i, text in enumerate(
                (["mean", "of map"], [f"1x1 → {reduce.cout}", "ReLU"], [f"1x1 → {expand.cout}", "h-sigmoid"])
            ):
                out.append(_label(left + 14 + i * (w3 + 10), low, w3, text, "se" if i else "", 34))
                out.append(_path((left + 14 + i * (w3 + 10) + w3, low), (left + 24 + i * (w3 + 10) + w3, low)))
            right = left + 14 + 3 * (w3 + 10)
            out += [_path((x, MIDDLE), (right - 8, MIDDLE)), _joint(right, "×")]
            out.append(_path((right, low), (right, MIDDLE + 9), arrow=True))
            x, height = right + 8, low + 24.0
        elif s.kind == "attend":
            left = x + GAP
            for y, branch in zip((MIDDLE - 42, MIDDLE, MIDDLE + 42), s.branches, strict=True):
                out.append(_path((x, MIDDLE), (left, y)))
                for i, op in enumerate(branch):
                    wide = 90 if len(branch) == 2 else 190
                    act = f"3x3/{op.stride} depthwise" if op.kind == "depthwise" else f"1x1 → {op.cout}"
                    out.append(_label(left + i * 100, y, wide, [short(op).split("_")[0], act], op.kind, 34))
                    if i:
                        out.append(_path((left + 90, y), (left + 100, y)))
                out.append(_path((left + 190, y), (left + 206, y)))
            out.append(_label(left + 206, MIDDLE, 66, lines, "attend", 118))
            x = left + 272
        else:
            out.append(_path((x, MIDDLE), (x + GAP, MIDDLE)))
            out.append(_label(x + GAP, MIDDLE, BOX, lines, s.kind))
            x += GAP + BOX
        end = GAP
        if part.shortcut and s is drawn[-1]:
            out += [_path((x, MIDDLE), (x + GAP, MIDDLE)), _joint(x + GAP + 8, "+")]
            joint = x + GAP + 8
            out.append(
                f'<path class="arc" d="M{start:.1f} {top:.1f}V22Q{start:.1f} 8 {start + 14:.1f} 8H{joint - 14:.1f}'
                f'Q{joint:.1f} 8 {joint:.1f} 22V{MIDDLE - 10}"/>'
            )
            out.append(
                _path((joint, MIDDLE - 14), (joint, MIDDLE - 9), arrow=True).replace("<path", '<path class="arc"')
            )
            x += GAP + 16
        out.append(_path((x, MIDDLE), (x + end, MIDDLE), arrow=True))
        slab, w = _slab(x + end, (s.op.cout, side, side), full)
        out.append(slab)
        x += end + w
    width, above = x + PAD, 0 if part.shortcut or any(s.kind == "attend" for s in drawn) else MIDDLE - 56
    title = f"{part.kind}, {shape(part.in_shape)} to {shape(part.out_shape)}"
    return _svg("block", f"0 {above} {width:.0f} {height - above:.0f}", title, f"--width:{width:.0f}px", out)


def _svg(name: str, box: str, title: str, style: str, inside: Sequence[str]) -> str:
    label = f'role="img" aria-label="{title}"'
    return f'<svg class="{name}" viewBox="{box}" {label} style="{style}">{"".join(inside)}</svg>'


def overview(e: Explanation) -> str:
    """The whole network as an SVG: each block's output as a slab, and below it the block's share of macs and params."""
    parts = e.every_part
    width, left, line, macs0, params0, most = 900, 64, 84, 262, 274, 78
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
            f'<g><title>{tip}</title><rect class="slab" x="{middle - w / 2:.1f}" y="{line - h / 2:.1f}" '
            f'width="{w:.1f}" height="{h:.1f}" rx="2" '
            f'style="fill:color-mix(in srgb,{colour} 45%,var(--back));stroke:{colour}"/>'
        )
        if p.shortcut:
            y = line - h / 2 - 3
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
    out.append(f'<text x="0" y="{line + 4}" class="l">maps</text>')
    out.append(f'<path d="M{left} {macs0 + 1}H{width}M{left} {params0 - 1}H{width}" style="stroke:var(--grid)"/>')
    for s in e.arch.stages:
        x = left + pitch * (s.block + 0.5)
        out.append(f'<text x="{x:.1f}" y="{line + 78}" class="s">{s.channels}</text>')
        out.append(f'<text x="{x:.1f}" y="{line + 90}" class="s">/{s.stride}</text>')
    return _svg("net", f"0 0 {width} {params0 + most + 18}", f"{e.arch.title}, block by block", "", out)


def page(e: Explanation) -> str:
    """An Explanation as one HTML page with everything in it."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": lambda n: f"{n:,.0f}",
        "millions": millions,
        "shape": shape,
        "percent": percent,
        "times": times,
        "draw": lambda p: Markup(block(p, e.arch.resolution)),
    }
    html: str = environment.get_template(TEMPLATE).render(
        e=e, overview=Markup(overview(e)), facts=list(facts(e)), css=CSS, names=TYPE_NAMES
    )
    return html
