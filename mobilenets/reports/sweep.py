"""A sweep as one HTML page: the V1 paper's figures 4 and 5 for the user's own data, and accuracy over latency."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mobilenets.console import many
from mobilenets.reports import pages, style
from mobilenets.reports.style import BACK, BLUE, GREEN, INK, MUTED, ORANGE, PINK, SKY
from mobilenets.training import run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mobilenets.tasks.task import MetricSpec
    from mobilenets.training.sweep import Network, Sweep

COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, MUTED)  # of resolutions, largest first
MARKERS = ("o", "D", "^", "s", "X")  # of architectures
DASHES: tuple[Any, ...] = ((0, (4, 3)), (0, (1, 2)), (0, (6, 2, 1, 2)))
NAMED = 16  # most dots whose widths are written beside them


def _start(
    dots: Sequence[Network], x: Callable[[Network], float], label: str, metric: MetricSpec, data: str
) -> tuple[Figure, Axes, list[Line2D]]:
    """A figure with each network drawn at `x`, and its legend: colours are resolutions, those of one are joined."""
    fig = style.figure(4.2)
    ax = fig.add_subplot()
    ax.grid(visible=True)
    ax.set_xlabel(f"{label} (log scale)")
    ax.set_ylabel(f"{metric.title} on {style.plain(data, 40)}")
    xs = [x(n) for n in dots]
    style.log_axis(ax, min(xs) / 1.35, max(xs) * 1.35)
    archs = sorted({n.arch for n in dots})
    resolutions = sorted({n.resolution for n in dots}, reverse=True)
    legend: list[Line2D] = []
    for i, resolution in enumerate(resolutions):
        colour = COLOURS[i % len(COLOURS)]
        legend.append(Line2D([], [], marker="o", ls="", ms=6, color=colour, label=f"{resolution} px"))
        for j, arch in enumerate(archs):
            series = sorted((n for n in dots if (n.resolution, n.arch) == (resolution, arch)), key=lambda n: n.alpha)
            if not series:
                continue
            ax.errorbar(
                [x(n) for n in series],
                [n.score for n in series],
                yerr=[n.spread or 0.0 for n in series] if any(n.spread for n in series) else None,
                color=colour, lw=0.9, alpha=0.95, elinewidth=1.1, capsize=2.5,
                marker=MARKERS[j % len(MARKERS)], ms=6, mec=BACK, mew=0.6, zorder=3,
            )  # fmt: skip
    if len(archs) > 1:
        legend += [
            Line2D([], [], marker=MARKERS[j % len(MARKERS)], ls="", ms=6, color=INK, label=arch)
            for j, arch in enumerate(archs)
        ]
    ax.margins(y=0.12)
    return fig, ax, legend


def _end(fig: Figure, legend: Sequence[Line2D]) -> Figure:
    fig.legend(handles=legend, loc="outside upper left", ncols=6, handletextpad=0.3)
    return fig


def _note(ax: Axes, text: str, at: tuple[float, float], to: tuple[float, float], **look: Any) -> None:
    ax.annotate(
        text, at, xytext=to, textcoords="offset points", fontsize=7.5, zorder=6,
        ha="right" if to[0] < 0 else "left" if to[0] > 0 else "center", va="top" if to[1] < 0 else "bottom", **look,
    )  # fmt: skip


def slope(dots: Sequence[Network]) -> tuple[float, float]:
    """The line through `dots` by least squares, score = a + b log2(macs in millions): a, b."""
    b, a = np.polyfit([math.log2(n.macs / 1e6) for n in dots], [n.score for n in dots], 1)
    return float(a), float(b)


@style.styled
def over_macs(dots: Sequence[Network], metric: MetricSpec, data: str) -> Figure:
    """The score over macs, with the line through each architecture's networks (V1 paper, figure 4)."""
    fig, ax, legend = _start(dots, lambda n: n.macs / 1e6, "macs, M", metric, data)
    archs = sorted({n.arch for n in dots})
    for i, arch in enumerate(archs):
        own = [n for n in dots if n.arch == arch]
        if len({n.macs for n in own}) > 2:
            a, b = slope(own)
            ends = [min(n.macs for n in own) / 1e6, max(n.macs for n in own) / 1e6]
            ax.plot(
                ends, [a + b * math.log2(m) for m in ends], color=MUTED, lw=1.1, ls=DASHES[i % len(DASHES)], zorder=2,
                label=f"{arch}: {b:+.1f} {'points' if metric.unit == '%' else metric.unit} for each doubling of macs",
            )  # fmt: skip
            ax.legend(loc="lower right", labelcolor=MUTED)
    if len(archs) == 1 and len(dots) <= NAMED:
        for n in dots:
            _note(ax, f"{n.alpha:g}", (n.macs / 1e6, n.score), (-4, 3), color=MUTED)
    return _end(fig, legend)


@style.styled
def over_params(dots: Sequence[Network], metric: MetricSpec, data: str) -> Figure:
    """The score over parameters: networks of a width stand above each other (V1 paper, figure 5)."""
    fig, ax, legend = _start(dots, lambda n: n.params / 1e6, "trainable parameters, M", metric, data)
    for arch, alpha in sorted({(n.arch, n.alpha) for n in dots}):
        low = min((n for n in dots if (n.arch, n.alpha) == (arch, alpha)), key=lambda n: n.score - (n.spread or 0))
        _note(ax, f"{alpha:g}", (low.params / 1e6, low.score - (low.spread or 0)), (0, -6), color=MUTED)
    return _end(fig, legend)


@style.styled
def over_latency(dots: Sequence[Network], metric: MetricSpec, data: str, how: str) -> Figure:
    """The score over measured latency; the Pareto front joined, its networks ringed and named."""
    fig, ax, legend = _start(
        dots, lambda n: n.latency_ms, f"latency, ms per image, {style.plain(how, 60)}", metric, data
    )
    front = [n for n in dots if n.front]
    xs, ys = [n.latency_ms for n in front], [n.score for n in front]
    legend += ax.plot(xs, ys, color=INK, lw=1.3, drawstyle="steps-post", zorder=2, label="Pareto front")
    ax.scatter(xs, ys, s=110, facecolors="none", edgecolors=INK, linewidths=1.2, zorder=4)
    for i, n in enumerate(front):  # neighbours' names on different sides: they may be close
        _note(ax, n.title, (n.latency_ms, n.score), ((-6, 5), (6, -6))[i % 2], color=INK, weight="bold")
    lo, hi = ax.get_xlim()
    room = (hi / lo) ** 0.12  # for the names of the first and the last
    style.log_axis(ax, lo / room, hi * room)
    return _end(fig, legend)


def page(made: Sweep) -> str:
    """A Sweep as one HTML page with everything in it."""
    dots, metric = made.networks, made.metric
    figures = []
    if len(dots) > 1:  # one dot shows nothing
        data = f"{made.source}, {made.held_out.split(',')[0]}"
        bars = " Bars are one standard deviation over seeds." if any(n.spread is not None for n in dots) else ""
        subject = style.sentence(metric.label)
        drawn = (
            (
                f"{subject} against macs",
                over_macs(dots, metric, data),
                "Each dot is a network trained here, its colour the input resolution; those of a resolution are joined "
                "from narrow to wide. On ImageNet, accuracy rises along a line over the logarithm of the macs (V1 "
                "paper, figure 4).",
            ),
            (
                f"{subject} against parameters",
                over_params(dots, metric, data),
                "The resolution changes accuracy and macs but no parameter, so the networks of a width (the small "
                "numbers) stand above each other (V1 paper, figure 5).",
            ),
            (
                f"{subject} against measured latency",
                over_latency(dots, metric, data, made.how),
                "Ringed: the Pareto front; every other network is slower than one that is at least as good. "
                "Latency is of the exported file, the median of its quietest round.",
            ),
        )
        figures = [(title, style.markup(fig, title), caption + bars) for title, fig, caption in drawn]
    best = max(dots, key=lambda n: metric.rank(n.score), default=None)
    near = [n for n in dots if best and metric.lost(best.score, n.score) <= 1]
    return pages.render(
        "sweep.html",
        {"many": many, "mb": lambda n: f"{n / 1e6:.2f}", "m": lambda n: f"{n / 1e6:,.4g}"},
        made=made,
        figures=figures,
        best=best,
        near=min(near, key=lambda n: n.latency_ms, default=None),
        command=run.command_line(),
        archs=" and ".join(sorted({r.arch.upper() for r in made.runs})),
        several=any(n.spread is not None for n in dots),
    )
