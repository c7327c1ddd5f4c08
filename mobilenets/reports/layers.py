"""Where int8 loses, as a figure and a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mobilenets.arch.cost import TYPE_NAMES
from mobilenets.compression.sensitivity import LayerReport, Line, clipped, db, held, peaks, ratio, span
from mobilenets.reports import pages, style
from mobilenets.reports.style import GRID, INK, MUTED, TYPE_COLOURS
from mobilenets.training import run

NAMED = 3  # of the worst in the figure


@style.styled
def draw(report: LayerReport) -> Figure:
    """Errors, weights and ranges of every operation, in the order they run."""
    fig = style.figure(6.6)
    errors, weights, ranges = fig.subplots(3, 1, sharex=True)
    lines = report.lines
    known = [o for o in lines if o.arriving_db is not None]
    errors.plot([o.order for o in known], [o.arriving_db for o in known], color=MUTED, lw=1.2)
    for o in lines:
        colour = TYPE_COLOURS.get(o.kind, INK)
        if o.alone_db is not None:
            errors.plot([o.order], [o.alone_db], "o", ms=4, color=colour)
        if o.peaks:
            least = max(o.peaks.least, o.peaks.largest * 1e-6)  # 0 has no place on the axis
            weights.plot([o.order] * 2, [least, o.peaks.largest], color=colour, lw=2)
            weights.plot([o.order], [max(o.peaks.median, least)], "_", ms=6, color=INK)
        if o.covered:
            ranges.plot([o.order] * 2, o.covered, color=GRID, lw=5, solid_capstyle="butt")
        ranges.plot([o.order] * 2, o.seen, color=colour, lw=1.4)
    for i, o in enumerate(report.worst[:NAMED]):
        if o.alone_db is not None:
            side = "left" if o.order < len(lines) / 2 else "right"
            to = (6 if side == "left" else -6, -6 - 8 * i)  # neighbours' names below each other
            errors.annotate(
                o.name, (o.order, o.alone_db), xytext=to, textcoords="offset points", fontsize=7.5, ha=side, va="center"
            )
    errors.set_title("SQNR, dB: a dot for what the operation loses alone, the line for what arrives")
    weights.set_title("largest weight of a channel: from the least channel to the largest, - the median")
    weights.set_yscale("log")
    weights.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ranges.set_title("output: what float spans, and grey what the 256 values cover")
    ranges.set_xlabel("operation, in the order they run")
    ranges.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    ranges.set_xlim(0.3, len(lines) + 0.7)
    errors.margins(y=0.2)
    for ax in (errors, weights, ranges):
        ax.grid(visible=True, axis="y")
    fig.legend(handles=_legend(lines), loc="outside upper left", ncols=7, handlelength=1, columnspacing=1.4)
    return fig


def _legend(lines: Sequence[Line]) -> list[Patch]:
    kinds = [k for k in TYPE_NAMES if any(o.kind == k for o in lines)]
    handles = [Patch(color=TYPE_COLOURS[k], label=TYPE_NAMES[k]) for k in kinds]
    rest = any(o.kind not in TYPE_NAMES for o in lines)
    return [*handles, Patch(color=INK, label="without weights")] if rest else handles


def page(report: LayerReport) -> str:
    """A LayerReport as one HTML page with everything in it."""
    filters: dict[str, Callable[..., Any]] = {
        "db": db,
        "held": held,
        "span": span,
        "peaks": peaks,
        "ratio": ratio,
        "clipped": clipped,
    }
    return pages.render(
        "layers.html",
        filters,
        r=report,
        names=TYPE_NAMES,
        figure=style.markup(draw(report), "Errors, weights and ranges by operation"),
        command=run.command_line(),
    )
