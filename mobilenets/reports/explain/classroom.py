"""Ideas in a terminal: what each says, and a table of its ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobilenets import console
from mobilenets.reports.explain.diagram import words
from mobilenets.reports.explain.lessons import Lessons, Way
from mobilenets.reports.explain.terminal import filled
from mobilenets.reports.explain.words import millions

if TYPE_CHECKING:
    from rich.console import RenderableType

BAR = 16  # characters
MOST = 9  # operations that are written out


def flow(way: Way) -> str:
    """A way's operations in words, each with the channels that it gives; of many, how many."""
    if len(way.ops) > MOST:
        return console.many(len(way.ops), "layer")
    shown = (f"{words(op)} {op.cout}" if op.is_layer else words(op) for op in way.ops)
    return " ─ ".join(shown)


def told(of: Lessons) -> RenderableType:
    """Ideas as a terminal shows them."""
    from rich.console import Group
    from rich.text import Text

    out: list[RenderableType] = []
    for x in of.lessons:
        t = console.table("", ["way", "operations", "macs M", "", "parameters"], ("way", "operations", ""))
        most = max(w.macs for w in x.ways)
        for w in x.ways:
            t.add_row(w.name, flow(w), millions(w.macs), filled(w.macs / most, BAR), f"{w.params:,}")
        saves = Text.assemble("\nsaves  ", x.formula, (f"  [{x.source}]", "dim"))
        out += [Text(f"{x.title}", style="bold underline"), Text(x.text), saves, t]
    if of.html:
        out = [f"page  {of.html}"]
    return Group(*out)
