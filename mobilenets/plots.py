"""Figures of choices, runs and costs, for the report and for files. Colours are safe for the colour-blind.

Every function here returns a `Figure` that belongs to nobody else: no pyplot, no global state, nothing to close.
"""

from __future__ import annotations

import csv
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from mobilenets import files
from mobilenets.cost import TYPE_NAMES, Cost
from mobilenets.errors import UserError
from mobilenets.rows import OpKind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")
# Okabe and Ito's palette, and greys. `svg` hands each to the page under its name, so that a dark page can have its own.
INK, MUTED, GRID, SHADE, BACK = "#1f2933", "#5f6c7b", "#dfe4ea", "#f0f2f5", "#ffffff"
BLUE, ORANGE, GREEN, PINK, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"
CSS_NAMES = {
    INK: "ink", MUTED: "muted", GRID: "grid", SHADE: "shade", BACK: "back",
    BLUE: "blue", ORANGE: "orange", GREEN: "green", PINK: "pink", SKY: "sky",
}  # fmt: skip
FAMILY_COLOURS = {"v1": BLUE, "v2": ORANGE, "v3": PINK, "v4": SKY}
TYPE_COLOURS: dict[OpKind, str] = {
    "pointwise": BLUE,
    "depthwise": ORANGE,
    "conv": GREEN,
    "linear": PINK,
    "norm": MUTED,
    "attend": SKY,
}
WIDTH = 7.2  # inches; 72 SVG units each
MOST_CLASSES = 30  # rows of a confusion matrix that can still be read
NUMBERED_CLASSES = 12  # rows of one whose cells have room for their numbers
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a $ in a label is a $
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "figure.facecolor": BACK,
    "svg.fonttype": "none",  # text stays text: it can be selected, searched, and has the reader's fonts
    "svg.hashsalt": "mobilenets",
}
_styled = matplotlib.rc_context(STYLE)


def _figure(height: float, width: float = WIDTH) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def plain(text: str, most: int = 24) -> str:
    """A label as one short line that can be drawn and written, whatever was in it."""
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    return line if len(line) <= most else line[: most - 1] + "…"


def network(c: Mapping[str, Any]) -> str:
    """A candidate's name, e.g. "v2 0.5-160"."""
    return f"{c['arch']} {c['alpha']:g}-{c['resolution']}"


def _log_axis(ax: Axes, lo: float, hi: float) -> None:
    """A logarithmic x axis from `lo` to `hi` with ticks at round numbers, however narrow it is."""
    ax.set_xscale("log")
    ax.set_xlim(lo, hi)
    decades = range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [s * 10.0**d for d in decades for s in steps if lo <= s * 10.0**d <= hi]
        if len(ticks) >= 4:
            break
    if len(ticks) < 3:
        ticks = [float(t) for t in MaxNLocator(5).tick_values(lo, hi) if lo <= t <= hi]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FixedFormatter([f"{t:.4g}" for t in ticks]))
    ax.xaxis.set_minor_locator(NullLocator())


def family(arch: str) -> str:
    """The family a network is of: that of "v3-large" is "v3"."""
    return arch.split("-")[0]


# ---- the choice ----------------------------------------------------------------------------------------------------


@_styled
def pareto(choice: Mapping[str, Any]) -> Figure:
    """Published ImageNet top-1 over measured latency, from a Choice's JSON: every network, front, pick, budget.

    A hollow dot misses a limit other than latency. A candidate without a latency wasn't measured and isn't drawn.
    """
    candidates = [c for c in choice["candidates"] if c["latency_ms"] is not None]
    pick, budget = choice["pick"], choice["budget"]
    limit = budget.get("latency_ms")
    others = {k: v for k, v in budget.items() if k != "latency_ms"}
    fig = _figure(4.0)
    ax = fig.add_subplot()
    latencies = [c["latency_ms"] for c in candidates]
    far = bool(limit) and limit > 30 * max(latencies)  # too far right to draw: the dots would be a smudge
    lo, hi = min(latencies) / 1.3, max(*latencies, max(latencies) if far or not limit else limit) * 1.3
    if limit and not far:
        lo = min(lo, limit / 1.3)
    _log_axis(ax, lo, hi)
    ax.grid(visible=True)
    ax.set_xlabel(f"latency, ms per image (log scale; {choice['engine']} {choice['precision']}, {_threads(choice)})")
    ax.set_ylabel("ImageNet top-1, % (published)")
    handles: list[Any] = []
    front = choice["front"]
    (line,) = ax.plot(
        [c["latency_ms"] for c in front],
        [c["imagenet_top1"] for c in front],
        color=MUTED, lw=1.2, drawstyle="steps-post", zorder=2,
    )  # fmt: skip
    any_hollow = False
    for name in sorted({family(c["arch"]) for c in candidates}):
        colour = FAMILY_COLOURS.get(name, MUTED)
        handles.append(Line2D([], [], marker="o", ls="", ms=6, color=colour, label=f"MobileNet {name.upper()}"))
        for hollow in (False, True):
            members = [c for c in candidates if family(c["arch"]) == name]
            dots = [c for c in members if any(c[k] > v for k, v in others.items()) == hollow]
            any_hollow |= hollow and bool(dots)
            ax.scatter(
                [c["latency_ms"] for c in dots],
                [c["imagenet_top1"] for c in dots],
                s=26, facecolors=BACK if hollow else colour, edgecolors=colour, linewidths=1.2, zorder=3,
            )  # fmt: skip
    if any_hollow:
        missed = " or ".join(_LIMIT_NAMES[k] for k in others)
        handles.append(
            Line2D([], [], marker="o", ls="", ms=6, mfc=BACK, mec=MUTED, mew=1.2, label=f"over the {missed} limit")
        )
    if len(front) > 1:
        handles.append(Line2D([], [], color=line.get_color(), lw=1.2, label="Pareto front"))
    if limit:
        text = f"budget {limit:g} ms"
        if far:
            ax.annotate(
                f"{text}, far to the right →", (1, 1), xycoords="axes fraction", xytext=(0, 3),
                textcoords="offset points", ha="right", va="bottom", color=MUTED, fontsize=8.5,
            )  # fmt: skip
        else:
            ax.axvspan(limit, hi, color=SHADE, lw=0, zorder=0)
            ax.axvline(limit, color=INK, lw=1.1, ls=(0, (4, 3)), zorder=1)
            ax.annotate(
                text, (limit, 1), xycoords=ax.get_xaxis_transform(), xytext=(0, 3), textcoords="offset points",
                ha="center", va="bottom", fontsize=8.5,
            )  # fmt: skip
    x, y = pick["latency_ms"], pick["imagenet_top1"]
    ax.scatter([x], [y], marker="*", s=260, facecolors=GREEN, edgecolors=BACK, linewidths=1.0, zorder=5)
    ax.margins(y=0.12)
    dx, dy = _free_place(ax, candidates, x, y)
    ax.annotate(
        f"{network(pick)}, {x:.3g} ms", (x, y), xytext=(dx, dy), textcoords="offset points",
        ha="left" if dx > 0 else "right" if dx < 0 else "center", va="center", weight="bold", zorder=6,
        bbox={"facecolor": BACK, "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
    )  # fmt: skip
    handles.append(Line2D([], [], marker="*", ls="", ms=12, color=GREEN, mec=BACK, label="the pick"))
    fig.legend(handles=handles, loc="outside upper left", ncols=len(handles), handletextpad=0.4, columnspacing=1.4)
    return fig


def _free_place(ax: Axes, candidates: Sequence[Mapping[str, Any]], x: float, y: float) -> tuple[float, float]:
    """Where, in points from (x, y), a label of the pick hides the fewest dots and stays inside the axes."""
    lo, hi = ax.get_xlim()
    bottom, top = ax.get_ylim()
    width, height = 440.0, 200.0  # of the axes, about, in points

    def at(x: float, y: float) -> tuple[float, float]:
        return width * math.log(x / lo) / math.log(hi / lo), height * (y - bottom) / (top - bottom)

    dots = [at(c["latency_ms"], c["imagenet_top1"]) for c in candidates]
    px, py = at(x, y)

    def cost(place: tuple[float, float]) -> int:
        dx, dy = place
        left = px + dx - (0 if dx > 0 else 130 if dx < 0 else 65)
        low, high = py + dy - 9, py + dy + 9
        outside = left < 0 or left + 130 > width or low < 0 or high > height
        return 100 * outside + sum(left - 5 < u < left + 135 and low - 5 < v < high + 5 for u, v in dots)

    return min([(12, -13), (14, 0), (12, 13), (-12, -13), (-14, 0), (-12, 13), (0, -22), (0, 22)], key=cost)


_LIMIT_NAMES = {
    "latency_ms": "latency", "size_mb": "size", "macs_m": "macs", "params_m": "params", "memory_mb": "memory",
}  # fmt: skip


def _threads(choice: Mapping[str, Any]) -> str:
    return f"{choice['threads']} thread{'s' * (choice['threads'] > 1)}"


# ---- training and accuracy -----------------------------------------------------------------------------------------


def read_metrics(path: Path) -> dict[str, dict[int, float]]:
    """A run's metrics.csv -> {column: {epoch, from 1: value}}."""
    out: dict[str, dict[int, float]] = {}
    try:
        with path.open(newline="") as f:
            for row in csv.DictReader(f):
                for k, v in row.items():
                    if v and k and k != "epoch":
                        out.setdefault(k, {})[int(row["epoch"])] = float(v)
    except OSError as e:
        raise UserError(f"{path}: can't be read ({e.strerror})") from e
    except (KeyError, TypeError, ValueError, csv.Error) as e:
        raise UserError(f"{path}: not a metrics.csv of training: {e}") from e
    if not out:
        raise UserError(f"{path}: no epoch was finished")
    return out


@_styled
def curves(path: Path, best_epoch: int | None = None) -> Figure:
    """Loss and held-out top-1 by epoch, from a run's metrics.csv. Raises `UserError` for a file that is none."""
    columns = read_metrics(path)
    fig = _figure(2.7)
    loss, top1 = fig.subplots(1, 2)
    for ax, title, lines in (
        (loss, "loss, nats", (("train_loss", "train", ORANGE), ("val_loss", "val", BLUE))),
        (top1, "val top-1, %", (("val_top1", "val", BLUE),)),
    ):
        for column, label, colour in lines:
            if values := columns.get(column):
                epochs = sorted(values)
                marker = {"marker": "o", "ms": 4} if len(epochs) < 4 else {}
                ax.plot(epochs, [values[e] for e in epochs], color=colour, label=label, **marker)
        ax.set_title(title)
        ax.set_xlabel("epoch")
        ax.grid(visible=True, axis="y")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    loss.legend()
    last = max(max(values) for values in columns.values())
    for ax in (loss, top1):
        ax.set_xlim(0.5 if last < 10 else 1, last + (0.5 if last < 10 else 0.02 * last))
    best = columns.get("val_top1", {})
    if best_epoch in best:
        value = best[best_epoch]
        top1.plot([best_epoch], [value], marker="*", ms=12, ls="", color=GREEN, mec=BACK, zorder=5, clip_on=False)
        top1.annotate(
            f"★ kept: epoch {best_epoch}, {value:.2f}%", (0.99, 0.06), xycoords="axes fraction", ha="right",
            fontsize=8.5, bbox={"facecolor": BACK, "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
        )  # fmt: skip
    return fig


def wilson(percent: float, count: int) -> tuple[float, float]:
    """The 95% interval of an accuracy measured on `count` images, in percent (Wilson's score interval)."""
    if count < 1:
        return 0.0, 100.0
    p, z2 = percent / 100, 1.96**2
    middle = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2) * math.sqrt(p * (1 - p) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return 100 * (middle - half), 100 * (middle + half)


@_styled
def steps(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Top-1 at each step from float to the exported file, from a run's steps.json; bars are 95% intervals."""
    fig = _figure(0.75 + 0.36 * len(rows))
    ax = fig.add_subplot()
    spans = [wilson(r["top1"], r["count"]) for r in rows]
    for i, (r, (lo, hi)) in enumerate(zip(rows, spans, strict=True)):
        colour = BLUE if r["precision"] == "float32" else ORANGE
        ax.plot([lo, hi], [i, i], color=colour, lw=5, alpha=0.25, solid_capstyle="round")
        ax.plot([r["top1"]], [i], "o", color=colour, ms=7, mec=BACK, mew=0.8)
        ax.annotate(f"{r['top1']:.2f}", (1, i), xycoords=ax.get_yaxis_transform(), xytext=(8, 0),
                    textcoords="offset points", va="center", weight="bold", annotation_clip=False)  # fmt: skip
    ax.set_yticks(range(len(rows)), [r["name"] for r in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(visible=True, axis="x")
    ax.set_xlabel("top-1, %")
    lo, hi = min(s[0] for s in spans), max(s[1] for s in spans)
    ax.set_xlim(max(-0.5, lo - 0.08 * (hi - lo)), min(100.5, hi + 0.08 * (hi - lo)))
    return fig


def shown_classes(matrix: npt.NDArray[np.int64], most: int = MOST_CLASSES) -> list[int]:
    """Which classes a confusion matrix shows: all of them, or the `most` that most mistakes are made with, in order."""
    if len(matrix) <= most:
        return list(range(len(matrix)))
    wrong = matrix - np.diag(np.diag(matrix))
    involved = wrong.sum(0) + wrong.sum(1)
    return sorted(int(i) for i in np.argsort(-involved, kind="stable")[:most])


@_styled
def confusion(matrix: npt.NDArray[np.int64] | Sequence[Sequence[int]], labels: Sequence[str]) -> Figure:
    """Counts [true, predicted] as a grid: right in blue, wrong in orange, darker for a larger share of the true class.

    Of more than MOST_CLASSES classes, those with the most mistakes; a last column has what they were taken for else.
    """
    m = np.asarray(matrix, np.int64)
    shown = shown_classes(m)
    n = len(shown)
    counts = m[np.ix_(shown, shown)]
    if n < len(m):
        counts = np.c_[counts, m[shown].sum(1) - counts.sum(1)]
    columns = counts.shape[1]
    names = [plain(labels[i], 20) for i in shown]
    side = min(WIDTH - 1.6, max(2.2, 0.42 * n if n <= NUMBERED_CLASSES else 0.19 * n))
    fig = _figure(side * n / columns + 1.3, side + 1.7)
    ax = fig.add_subplot()
    ax.set_xlim(-0.5, columns - 0.5)
    ax.set_ylim(n - 0.5, -0.5)
    ax.set_aspect("equal")
    totals = np.maximum(m[shown].sum(1), 1)
    cells, colours = [], []
    for i, j in zip(*np.nonzero(counts), strict=True):
        share = float(counts[i, j] / totals[i])
        right = i == j
        alpha = 0.12 + 0.88 * (share if right else math.sqrt(share))  # a single mistake must be seen
        cells.append(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94))
        colours.append(to_rgba(BLUE if right else ORANGE, alpha))
        if n <= NUMBERED_CLASSES:
            ink = BACK if alpha > 0.6 else INK
            ax.text(j, i, f"{counts[i, j]}", ha="center", va="center", fontsize=8.5, color=ink)
    ax.add_collection(PatchCollection(cells, facecolors=colours, edgecolors="none", match_original=False))
    ax.set_xticks(range(columns), [*names, "other"][:columns], rotation=90 if max(map(len, names)) > 3 else 0)
    ax.set_yticks(range(n), names)
    if n > NUMBERED_CLASSES:
        ax.tick_params(labelsize=7.5)
    ax.tick_params(length=0)
    for edge in np.arange(-0.5, max(columns, n) + 0.5):
        if edge <= columns - 0.5:
            ax.plot([edge, edge], [-0.5, n - 0.5], color=GRID, lw=0.6, zorder=0, clip_on=False)
        if edge <= n - 0.5:
            ax.plot([-0.5, columns - 0.5], [edge, edge], color=GRID, lw=0.6, zorder=0, clip_on=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    return fig


# ---- cost ----------------------------------------------------------------------------------------------------------


@_styled
def cost_shares(cost: Cost) -> Figure:
    """Share of macs and of weights by layer type, as in V1's table 2."""
    shares = {k: v for k, v in cost.shares().items() if any(v)}
    fig = _figure(0.7 + 0.34 * len(shares))
    left, right = fig.subplots(1, 2, sharey=True)
    for which, (ax, title) in enumerate(((left, "macs, %"), (right, "weights, %"))):
        values = [v[which] for v in shares.values()]
        ax.barh(range(len(shares)), values, height=0.62, color=[TYPE_COLOURS[k] for k in shares])
        for i, v in enumerate(values):
            text = f"{v:.1f}" if v >= 0.05 or not v else "<0.1"
            ax.annotate(text, (v, i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5)
        ax.set_xlim(0, 112)
        ax.set_xticks([0, 25, 50, 75, 100])
        ax.set_title(title)
        ax.grid(visible=True, axis="x")
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    left.set_yticks(range(len(shares)), [TYPE_NAMES[k] for k in shares])
    left.set_ylim(len(shares) - 0.5, -0.5)
    return fig


@_styled
def layers(cost: Cost) -> Figure:
    """Macs of each layer, and the activations it reads and writes, from the first layer to the last."""
    fig = _figure(3.3)
    macs, memory = fig.subplots(2, 1, sharex=True)
    at = np.arange(1, len(cost.rows) + 1)
    colours = [TYPE_COLOURS[r.type] for r in cost.rows]
    largest = max(r.macs for r in cost.rows)
    unit, scale = ("M", 1e6) if largest >= 1e6 else ("K", 1e3)
    macs.bar(at, [r.macs / scale for r in cost.rows], width=0.8, color=colours)
    macs.set_title(f"macs, {unit}")
    memory.bar(at, [(r.in_elements + r.out_elements) / 1e3 for r in cost.rows], width=0.8, color=colours)
    memory.set_title("input and output activations, K elements")
    memory.set_xlabel("layer, in the order they run")
    memory.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    memory.set_xlim(0.3, len(at) + 0.7)
    for ax in (macs, memory):
        ax.grid(visible=True, axis="y")
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.4g}"))
    present = [k for k in TYPE_NAMES if any(r.type == k for r in cost.rows)]
    handles = [Patch(color=TYPE_COLOURS[k], label=TYPE_NAMES[k]) for k in present]
    fig.legend(handles=handles, loc="outside upper left", ncols=len(handles), handlelength=1, columnspacing=1.4)
    return fig


# ---- to files and pages --------------------------------------------------------------------------------------------


def save(fig: Figure, path: Path) -> None:
    """Write a figure to `path`, atomically. Raises `UserError` for a suffix that isn't one of SUFFIXES."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"{path}: a figure is written as {', '.join(SUFFIXES)}, not {suffix or 'a file without suffix'}"
        )
    with files.atomic_file(path) as tmp:
        tmp.write_bytes(_render(fig, suffix[1:]))


def _render(fig: Figure, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a label in a script the font lacks, or too long for its place
        fig.savefig(out, format=kind, dpi=160, metadata={} if kind == "png" else _UNDATED[kind], **options)
    return out.getvalue()


_UNDATED: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def svg(fig: Figure, title: str) -> str:
    """A figure as an <svg> to put into a page: no size of its own, no ids to clash, its colours CSS variables.

    The page may set --ink, --muted, --grid, --shade, --back, --blue, --orange, --green, --pink and --sky.
    """
    text = _render(fig, "svg", transparent=True).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = text.replace("xlink:href", "href")
    for colour, name in CSS_NAMES.items():
        text = text.replace(colour, f"var(--{name},{colour})")
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None  # matplotlib always writes one
    inside = re.sub(r"\n\s*", "\n", text[text.index(">") + 1 :])
    width = float(box[1].split()[2])
    return (
        f'<svg class="plot" viewBox="{box[1]}" role="img" aria-label="{escape(title)}" '
        f'style="--width:{width:.0f}px;stroke-linejoin:round;stroke-linecap:butt">{inside}'
    )
