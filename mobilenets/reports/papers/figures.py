"""The papers' figures redrawn: accuracy against cost, where the cost is, what a ReLU does to a narrow map. No torch.

Accuracies are the published ones, costs are counted here; only the networks of others have their printed costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from mobilenets.arch import cost, published, zoo
from mobilenets.arch.cost import TYPE_NAMES
from mobilenets.reports import style
from mobilenets.reports.papers.tables import ALEXNET, GOOGLENET, SQUEEZENET, VGG16
from mobilenets.reports.style import BACK, BLUE, GREEN, GRID, INK, MUTED, ORANGE, PINK, TYPE_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAMILIES = {
    "V1": ("v1",),
    "V2": ("v2",),
    "V3": ("v3-large", "v3-small"),
    "V4": ("v4-conv-s", "v4-conv-m", "v4-conv-l", "v4-hybrid-m", "v4-hybrid-l"),
}
COLOURS = {"V1": BLUE, "V2": ORANGE, "V3": GREEN, "V4": PINK, "others": MUTED}
MARKERS = {"V1": "o", "V2": "D", "V3": "^", "V4": "s", "others": "X"}
DIMENSIONS = (2, 3, 5, 15, 30)
SPIRAL_SEED = 5
SPIRAL_POINTS = 600
BALL = 20.0  # square points of a ball for each million parameters


@dataclass(frozen=True)
class Point:
    """A network on a chart: published ImageNet top-1 in percent, mult-adds and parameters in millions."""

    family: str
    label: str
    top1: float
    macs_m: float
    params_m: float
    alpha: float = 1.0
    resolution: int = 224


def points() -> tuple[Point, ...]:
    """Every network of FAMILIES with a published accuracy, and the networks of others that V1's paper compares with."""
    ours = [
        Point(family, _label(name, alpha), top1, c.macs / 1e6, c.params / 1e6, alpha, resolution)
        for family, names in FAMILIES.items()
        for name in names
        for alpha, row in published.TOP1[name].items()
        for resolution, top1 in row.items()
        for c in [cost.count(zoo.arch(name, alpha, resolution))]
    ]
    others = []
    for row in (GOOGLENET, VGG16, SQUEEZENET, ALEXNET):
        top1, macs, params = (float(x) for x in row.cells if isinstance(x, str))
        others.append(Point("others", row.label, top1, macs, params))
    return (*ours, *others)


def _label(name: str, alpha: float) -> str:
    size = name.partition("-")[2].title()
    return size if name.startswith("v4") else f"{size} {alpha}".strip()


def fit(dots: Sequence[Point]) -> tuple[float, float]:
    """The line through `dots` by least squares, top-1 = a + b log2(mult-adds in millions): a, b."""
    b, a = np.polyfit([math.log2(p.macs_m) for p in dots], [p.top1 for p in dots], 1)
    return float(a), float(b)


def spiral() -> npt.NDArray[np.float64]:
    """A flat spiral around the origin, [SPIRAL_POINTS, 2], from the middle outwards."""
    turn = np.linspace(0.3, 5.2 * np.pi, SPIRAL_POINTS)
    out: npt.NDArray[np.float64] = np.stack([turn * np.cos(turn), turn * np.sin(turn)], 1) / turn[-1]
    return out


def through_relu(x: npt.NDArray[np.float64], dimension: int, seed: int = SPIRAL_SEED) -> npt.NDArray[np.float64]:
    """[N, 2] -> [N, 2]: into `dimension` dimensions by a random matrix, ReLU, back by its pseudo-inverse."""
    matrix = np.random.default_rng(seed).standard_normal((dimension, 2))
    out: npt.NDArray[np.float64] = np.maximum(x @ matrix.T, 0) @ np.linalg.pinv(matrix).T
    return out


def _groups(dots: Sequence[Point]) -> Iterator[tuple[str, str, list[Point]]]:
    """Family, label and points of each width, largest input first."""
    for family, label in dict.fromkeys((p.family, p.label) for p in dots):
        yield family, label, [p for p in dots if (p.family, p.label) == (family, label)]


def _note(ax: Axes, text: str, xy: tuple[float, float], to: tuple[float, float], colour: str, **more: Any) -> None:
    """`text` beside the point `xy`, `to` points to its right and above."""
    dx, dy = to
    look: dict[str, Any] = {"fontsize": 7.5, "color": colour, "zorder": 6} | more
    ax.annotate(
        text, xy, xytext=to, textcoords="offset points", ha="left" if dx > 0 else "right" if dx < 0 else "center",
        va="bottom" if dy > 4 else "top" if dy < -4 else "center", **look,
    )  # fmt: skip


def _scatter(
    ax: Axes, dots: Sequence[Point], x: Callable[[Point], float], places: dict[str, tuple[float, float]]
) -> None:
    """Every point, those of one width joined; `places`: where each width's label is, by "family label" or family."""
    for family, label, group in _groups(dots):
        colour = COLOURS[family]
        xs, ys = [x(p) for p in group], [p.top1 for p in group]
        ax.plot(xs, ys, color=colour, lw=0.8, alpha=0.55, zorder=2)
        ax.scatter(xs, ys, s=20, marker=MARKERS[family], color=colour, edgecolors=BACK, linewidths=0.5, zorder=3)
        key = f"{family} {label}"
        if to := places.get(key, places.get(family)):
            at = group[-1] if to[1] < -5 else group[0]  # below all, or beside the first
            _note(ax, label, (x(at), at.top1), to, colour)


def _family_names(ax: Axes, where: dict[str, tuple[float, float]]) -> None:
    for family, xy in where.items():
        name = "networks of others" if family == "others" else f"MobileNet {family}"
        ax.annotate(name, xy, color=COLOURS[family], weight="bold", fontsize=9.5, ha="center", va="center", zorder=6)


def _axes(fig: Figure, lo: float, hi: float, label: str) -> Axes:
    ax = fig.add_subplot()
    style.log_axis(ax, lo, hi)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
    ax.set_xlabel(label)
    ax.set_ylabel("ImageNet top-1, % (published)")
    ax.grid(visible=True)
    return ax


@style.styled
def accuracy_over_macs() -> Figure:
    """Published top-1 over counted mult-adds, with the line through the 16 V1 models (V1 paper, figure 4)."""
    fig = style.figure(4.8)
    ax = _axes(fig, 8, 30000, "mult-adds, M (log scale)")
    dots = points()
    a, b = fit([p for p in dots if p.family == "V1"])
    ends = [10.0, 1600.0]
    ax.plot(ends, [a + b * math.log2(x) for x in ends], color=BLUE, lw=1.1, ls=(0, (4, 3)), alpha=0.8, zorder=1)
    text = f"line through V1: {b:+.1f} points\nfor each doubling of mult-adds"
    _note(ax, text, (900, a + b * math.log2(900)), (10, -6), BLUE)
    _scatter(ax, dots, lambda p: p.macs_m, {
        "V1": (6, -5), "V2": (-4, 5), "V3": (-6, 3), "V4": (-7, 2), "others": (7, 0), "V2 1.0": (7, 0),
        "V2 1.3": (-7, 3), "V2 1.4": (0, 6), "V4 Conv-S": (6, 1), "V4 Hybrid-M": (7, 2), "V4 Hybrid-L": (7, 2),
        "others VGG16": (0, -6),
    })  # fmt: skip
    _family_names(ax, {"V1": (70, 44.5), "V2": (16, 57.5), "V3": (60, 77.5), "V4": (2800, 85.5), "others": (5000, 62)})
    ax.set_ylim(39, 88)
    return fig


@style.styled
def accuracy_over_params() -> Figure:
    """Published top-1 over counted parameters (V1 paper, figure 5)."""
    fig = style.figure(4.8)
    ax = _axes(fig, 0.3, 250, "trainable parameters, M (log scale)")
    _scatter(ax, points(), lambda p: p.params_m, {
        "V1": (0, -6), "V2": (0, -6), "V3": (-7, 2), "V4": (-7, 2), "others": (7, 0), "V1 0.75": (-2, -7),
        "V2 1.4": (7, 0), "V3 Small 0.75": (-11, 2), "V3 Large 0.75": (-8, -4), "V3 Large 1.0": (-3, 5),
        "V4 Hybrid-L": (7, 1), "V4 Hybrid-M": (7, 1), "others SqueezeNet": (-7, 0), "others VGG16": (0, -6),
    })  # fmt: skip
    _family_names(ax, {"V1": (0.62, 53), "V2": (3.6, 53), "V3": (1.35, 75), "V4": (8, 84.5), "others": (40, 64)})
    ax.set_ylim(37, 88)
    return fig


@style.styled
def balls() -> Figure:
    """Published top-1 over counted mult-adds at each width's largest input; the area of a ball is its parameters."""
    fig = style.figure(4.8)
    ax = _axes(fig, 16, 50000, "mult-adds, M (log scale)")
    places = {
        "V1": (0, -10), "V2": (0, 9), "V3": (-9, 2), "V4": (-12, 3), "others": (0, -24),
        "V2 1.0": (9, -1), "V2 1.3": (0, 10), "V2 1.4": (12, 1), "V3 Large 1.0": (-8, 6), "V4 Conv-S": (9, 3),
        "V4 Conv-L": (-20, 0), "V4 Hybrid-M": (13, 4), "V4 Hybrid-L": (21, 2), "others GoogLeNet": (11, 0),
        "others SqueezeNet": (8, 0), "others VGG16": (0, -35),
    }  # fmt: skip
    for family, label, group in _groups(points()):
        p, colour = group[0], COLOURS[family]
        ax.scatter([p.macs_m], [p.top1], s=BALL * p.params_m, color=colour, alpha=0.55, linewidths=0, zorder=3)
        ax.scatter([p.macs_m], [p.top1], s=2, color=colour, linewidths=0, zorder=4)
        _note(ax, label, (p.macs_m, p.top1), places.get(f"{family} {label}", places[family]), colour)
    for x, millions in ((4500, 1), (7500, 10), (19000, 100)):
        ax.scatter([x], [52], s=BALL * millions, facecolors="none", edgecolors=MUTED, linewidths=0.9)
        _note(ax, f"{millions} M", (x, 46), (0, 0), MUTED)
    _note(ax, "parameters:", (3600, 52), (-1, 0), MUTED)
    _family_names(ax, {"V1": (110, 55), "V2": (40, 72), "V3": (65, 78), "V4": (2200, 86), "others": (4500, 63)})
    ax.set_ylim(44, 89)
    return fig


SHARED = ("v1-full-conv", "v1", "v2", "v3-small", "v3-large", *FAMILIES["V4"])


@style.styled
def shares() -> Figure:
    """Share of macs and of weights by layer type of every network at width 1, as V1's table 2 has it for V1."""
    fig = style.figure(0.9 + 0.3 * len(SHARED))
    left, right = fig.subplots(1, 2, sharey=True)
    counted = [cost.count(zoo.arch(name)) for name in SHARED]
    kinds = [k for k in TYPE_NAMES if any(max(c.shares().get(k, (0, 0))) > 0 for c in counted)]
    for which, (ax, title) in enumerate(((left, "mult-adds, %"), (right, "weights, %"))):
        for i, c in enumerate(counted):
            start = 0.0
            for k in kinds:
                share = c.shares().get(k, (0.0, 0.0))[which]
                ax.barh([i], [share], left=start, height=0.72, color=TYPE_COLOURS[k], linewidth=0)
                if share >= 9:
                    ax.text(start + share / 2, i, f"{share:.0f}", ha="center", va="center", fontsize=8, color=BACK)
                start += share
        ax.set_xlim(0, 100)
        ax.set_xticks([0, 25, 50, 75, 100])
        ax.set_title(title)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    totals = [f"{c.macs / 1e6:,.0f} M" for c in counted]
    left.set_yticks(range(len(SHARED)), [f"{name}, {total}" for name, total in zip(SHARED, totals, strict=True)])
    left.set_ylim(len(SHARED) - 0.5, -0.5)
    handles = [Patch(color=TYPE_COLOURS[k], label=TYPE_NAMES[k]) for k in kinds]
    fig.legend(handles=handles, loc="outside upper left", ncols=len(handles), handlelength=1, columnspacing=1.4)
    return fig


@style.styled
def collapse() -> Figure:
    """A spiral in two dimensions, and what is left of it after a ReLU in n dimensions (V2 paper, figure 1)."""
    fig = style.figure(1.75)
    x, middle = spiral(), SPIRAL_POINTS // 2
    panels = [("input", x), *((f"n = {n}", through_relu(x, n)) for n in DIMENSIONS)]
    for ax, (title, y) in zip(fig.subplots(1, len(panels)), panels, strict=True):
        for part, colour in ((slice(middle, None), BLUE), (slice(0, middle + 1), ORANGE)):
            ax.plot(*y[part].T, color=colour, lw=1.5, solid_capstyle="round")
        ax.set_title(title, color=INK)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_aspect("equal", adjustable="datalim")
        ax.margins(0.12)
        for spine in ax.spines.values():
            spine.set_visible(True)
            spine.set_color(GRID)
    return fig


@dataclass(frozen=True)
class Drawing:
    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]


FIGURES = (
    Drawing(
        "macs",
        "Accuracy against mult-adds",
        "Each dot is a network at one width and one input resolution. Dots of a width are joined; their label is the "
        "width multiplier. V1's accuracy falls along a line over the logarithm of its cost (figure 4 of its paper). "
        "The networks of others are where the paper prints them; SqueezeNet belongs at half of that (see table 9).",
        accuracy_over_macs,
    ),
    Drawing(
        "params",
        "Accuracy against parameters",
        "The resolution changes accuracy and mult-adds, but no parameter, so the networks of a width stand above each "
        "other, as in figure 5 of V1's paper.",
        accuracy_over_params,
    ),
    Drawing(
        "balls",
        "Accuracy, mult-adds and parameters at once",
        "Each width at its largest input. The area of a ball is the number of parameters.",
        balls,
    ),
    Drawing(
        "shares",
        "Where the cost is",
        "Share of each layer type at width 1 and 1000 classes; beside each name, the mult-adds in all. With depthwise "
        "layers in place of standard convolutions, looking around costs little: most of the work is in the 1x1 layers.",
        shares,
    ),
    Drawing(
        "collapse",
        "What a ReLU loses in few dimensions",
        "A spiral, its inner half orange, is taken into n dimensions by a random matrix, through a ReLU, and back by "
        "the pseudo-inverse. In few dimensions whole stretches fall onto a line for good; in many, it survives. "
        "So V2 has no ReLU in its narrow layers (figure 1 of its paper).",
        collapse,
    ),
)
