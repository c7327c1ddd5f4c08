"""An `Explanation` in a terminal: text, tables, boxes and bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mobilenets.reports.explain.explanation import Explanation
from mobilenets.reports.explain.facts import Share
from mobilenets.reports.explain.parts import Part, short
from mobilenets.reports.explain.steps import ACTIVATIONS, caption, steps
from mobilenets.reports.explain.words import millions, percent, sentences, shape, times

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.measure import Measurement
    from rich.text import Text

LEAST = 80  # columns that every network's table and drawings fit in
MOST_DRAWN = 2  # kinds of block in the short version, and attention
# Of each type of layer; readable on black and on white.
INK = {
    "pointwise": "#2f8fd0", "depthwise": "#d9741a", "conv": "#2aa876", "linear": "#c76fa3", "attend": "#4fb3dd",
    "se": "#c76fa3",
}  # fmt: skip


def _flow(part: Part) -> Text:
    """A part on one line: "1x1 384 ─ dw 3x3 ─ 1x1 (+)"; the last layer's channels are its output's."""
    from rich.text import Text

    words: list[tuple[str, str]] = []
    drawn = [s for s in steps(part) if s.kind != "norm"]
    through = {op.name: op.inputs[0] for op in part.ops if op.kind in ("activation", "norm")}  # which aren't drawn
    before = None
    for s in drawn:
        size = f"{s.op.kernels[0]}x{s.op.kernels[1]}{s.stride}"
        wide = "" if s is drawn[-1] else f" {s.op.cout}"
        text = {
            "conv": f"conv {size}{wide}",
            "depthwise": f"dw {size}",
            "pointwise": f"{size}{wide}",
            "pool": "mean of the map",
            "linear": "linear",
            "maxpool": f"max {size}",
            "avgpool": f"mean {size}",
        }.get(s.kind, s.kind)
        if s.kind == "se":
            text = f"se {s.branches[0][0].cout}"
        if s.kind == "attend":
            text = f"attention {s.op.heads}x{s.op.cin}"
        beside = (
            before is not None and not s.branches and before.op.name not in {through.get(x, x) for x in s.op.inputs}
        )
        words += [(" │ " if beside else " ─ ", "dim"), (text, INK.get(s.kind, ""))]
        before = s
    if part.shortcut:
        words.append((" (+)", "bold"))
    return Text.assemble(*words[1:], no_wrap=True)


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
            box(caption(s, part), INK["attend"])
            continue
        box(caption(s, part), INK.get(s.kind, ""))
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


def filled(ratio: float, width: int) -> str:
    """A bar of `width` characters at 1, in eighths of a character."""
    eighths = round(8 * width * ratio)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).rstrip() or ("▏" if ratio else "")


@dataclass(frozen=True)
class Screen:
    """What an Explanation looks like in a terminal."""

    e: Explanation

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        return Measurement(LEAST, max(LEAST, options.max_width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.padding import Padding
        from rich.text import Text

        e, c = self.e, self.e.cost
        yield Text.assemble((e.arch.title, "bold"), f"  ({e.source}), {e.arch.num_classes} classes")
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
                filled(macs / top, bar), style=INK.get(max(p.rows, key=lambda r: r.macs).type, "") if macs else ""
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
            drawn = [k for k in kinds if not k.endswith(("convolution", "pooling"))] or list(kinds)[:1]
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
        t.add_row(s.label, percent(m), Text(filled(m, bar), style=style), percent(p), Text(filled(p, bar), style=style))

    def _facts(self) -> Iterator[RenderableType]:
        t = self._grid("<", "wrap")
        for name, text in sentences(self.e):
            t.add_row(name, text)
        yield t

    def _ideas(self) -> Iterator[RenderableType]:
        from rich.text import Text

        t = self._grid("wrap", "wrap")
        t.columns[0].max_width = 22
        for i in self.e.ideas:
            t.add_row(i.name, Text.assemble(i.text, (f" [{i.source}]", "dim")))
        yield t
