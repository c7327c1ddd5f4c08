"""Figures of choices, runs and costs, for the report and for files.

Every function here returns a `Figure` that belongs to nobody else: no pyplot, no global state, nothing to close.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mobilenets.arch.cost import TYPE_NAMES, Cost
from mobilenets.deploy.choose import LIMITS, Choice
from mobilenets.errors import UserError
from mobilenets.reports import style
from mobilenets.reports.style import BACK, BLUE, GREEN, GRID, INK, MUTED, ORANGE, PINK, SHADE, SKY, TYPE_COLOURS
from mobilenets.tasks.confusion import Confusion
from mobilenets.tasks.linear import wilson
from mobilenets.tasks.task import MetricSpec
from mobilenets.training.fitted import Step
from mobilenets.training.tuning import Speed, smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAMILY_COLOURS = {"v1": BLUE, "v2": ORANGE, "v3": PINK, "v4": SKY}
MOST_CLASSES = 30  # rows of a confusion matrix that can still be read
NUMBERED_CLASSES = 12  # rows of one whose cells have room for their numbers


def family(arch: str) -> str:
    """The family a network is of: that of "v3-large" is "v3"."""
    return arch.split("-")[0]


@style.styled
def pareto(choice: Choice) -> Figure:
    """What networks are ranked by over measured latency: every network, the front, the pick, the budget.

    A hollow dot misses a limit other than latency. Each runtime and precision has its own shape, where there
    are several.
    """
    candidates, pick, budget = choice.candidates, choice.pick, choice.budget
    limit, ranked = budget.max_latency_ms, pick.prior.metric
    others = dataclasses.replace(budget, max_latency_ms=None)
    fig = style.figure(4.0)
    ax = fig.add_subplot()
    latencies = [c.latency_ms for c in candidates]
    far = limit is not None and limit > 30 * max(latencies)  # too far right to draw: the dots would be a smudge
    lo, hi = min(latencies) / 1.3, max(*latencies, max(latencies) if far or not limit else limit) * 1.3
    if limit and not far:
        lo = min(lo, limit / 1.3)
    style.log_axis(ax, lo, hi)
    ax.grid(visible=True)
    ways = list(dict.fromkeys(c.setting.name for c in candidates))
    how = str(pick.setting) if len(ways) == 1 else f"{choice.threads} thread{'s' * (choice.threads > 1)}"
    shapes = dict(zip(ways, itertools.cycle("os^DvPX"), strict=False))
    ax.set_xlabel(f"latency, ms per image (log scale; {how})")
    ax.set_ylabel(f"{ranked.title}, published")
    handles: list[Any] = []
    front = choice.front
    (line,) = ax.plot(
        [c.latency_ms for c in front],
        [c.prior.value for c in front],
        color=MUTED, lw=1.2, drawstyle="steps-post", zorder=2,
    )  # fmt: skip
    any_hollow = False
    for name in sorted({family(c.arch.name) for c in candidates}):
        colour = FAMILY_COLOURS.get(name, MUTED)
        handles.append(Line2D([], [], marker="o", ls="", ms=6, color=colour, label=f"MobileNet {name.upper()}"))
        for hollow, way in itertools.product((False, True), ways):
            members = [c for c in candidates if family(c.arch.name) == name and c.setting.name == way]
            dots = [c for c in members if bool(c.missed(others)) == hollow]
            any_hollow |= hollow and bool(dots)
            ax.scatter(
                [c.latency_ms for c in dots],
                [c.prior.value for c in dots],
                s=26, marker=shapes[way], facecolors=BACK if hollow else colour, edgecolors=colour, linewidths=1.2,
                zorder=3,
            )  # fmt: skip
    if len(ways) > 1:
        handles += [Line2D([], [], marker=shapes[w], ls="", ms=6, mfc=BACK, mec=MUTED, label=w) for w in ways]
    if any_hollow:
        missed = " or ".join(LIMITS[k][0] for k in others.limits())
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
    x, y = pick.latency_ms, pick.prior.value
    ax.scatter([x], [y], marker="*", s=260, facecolors=GREEN, edgecolors=BACK, linewidths=1.0, zorder=5)
    ax.margins(y=0.12)
    dx, dy = _free_place(ax, [(c.latency_ms, c.prior.value) for c in candidates], x, y)
    ax.annotate(
        f"{pick.arch.title}, {x:.3g} ms", (x, y), xytext=(dx, dy), textcoords="offset points",
        ha="left" if dx > 0 else "right" if dx < 0 else "center", va="center", weight="bold", zorder=6,
        bbox={"facecolor": BACK, "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
    )  # fmt: skip
    label = f"the pick, {pick.setting.name}" if len(ways) > 1 else "the pick"
    handles.append(Line2D([], [], marker="*", ls="", ms=12, color=GREEN, mec=BACK, label=label))
    columns = len(handles) if len(ways) == 1 and len(handles) < 6 else 4
    fig.legend(handles=handles, loc="outside upper left", ncols=columns, handletextpad=0.4, columnspacing=1.4)
    return fig


def _free_place(ax: Axes, others: Sequence[tuple[float, float]], x: float, y: float) -> tuple[float, float]:
    """Where, in points from (x, y), a label of the pick hides the fewest dots and stays inside the axes."""
    lo, hi = ax.get_xlim()
    bottom, top = ax.get_ylim()
    width, height = 440.0, 200.0  # of the axes, about, in points

    def at(x: float, y: float) -> tuple[float, float]:
        return width * math.log(x / lo) / math.log(hi / lo), height * (y - bottom) / (top - bottom)

    dots = [at(*other) for other in others]
    px, py = at(x, y)

    def cost(place: tuple[float, float]) -> int:
        dx, dy = place
        left = px + dx - (0 if dx > 0 else 130 if dx < 0 else 65)
        low, high = py + dy - 9, py + dy + 9
        outside = left < 0 or left + 130 > width or low < 0 or high > height
        return 100 * outside + sum(left - 5 < u < left + 135 and low - 5 < v < high + 5 for u, v in dots)

    return min([(12, -13), (14, 0), (12, 13), (-12, -13), (-14, 0), (-12, 13), (0, -22), (0, 22)], key=cost)


def read_metrics(path: Path) -> dict[str, dict[int, float]]:
    """A run's metrics.csv -> {column: {epoch, from 1: value}}."""
    out: dict[str, dict[int, float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as f:
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


@style.styled
def curves(path: Path, metric: MetricSpec, best_epoch: int | None = None) -> Figure:
    """Loss and held-out score by epoch, from a run's metrics.csv. Raises `UserError` for a file that is none."""
    columns = read_metrics(path)
    fig = style.figure(2.7)
    loss, score = fig.subplots(1, 2)
    for ax, title, lines in (
        (loss, "loss, nats", (("train_loss", "train", ORANGE), ("val_loss", "val", BLUE))),
        (score, f"val {metric.title}", ((f"val_{metric.name}", "val", BLUE),)),
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
    for ax in (loss, score):
        ax.set_xlim(0.5 if last < 10 else 1, last + (0.5 if last < 10 else 0.02 * last))
    best = columns.get(f"val_{metric.name}", {})
    if best_epoch in best:
        value = best[best_epoch]
        score.plot([best_epoch], [value], marker="*", ms=12, ls="", color=GREEN, mec=BACK, zorder=5, clip_on=False)
        score.annotate(
            f"★ kept: epoch {best_epoch}, {metric.say(value)}", (0.99, 0.06), xycoords="axes fraction", ha="right",
            fontsize=8.5, bbox={"facecolor": BACK, "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
        )  # fmt: skip
    return fig


@style.styled
def steps(rows: Sequence[Step], metric: MetricSpec) -> Figure:
    """The score at each step from float to the exported file; bars are 95% intervals."""
    fig = style.figure(0.75 + 0.36 * len(rows))
    ax = fig.add_subplot()
    values = [float(r.scores[metric.name]) for r in rows]
    spans = [wilson(v, r.scores["count"]) if metric.share else (v, v) for v, r in zip(values, rows, strict=True)]
    for i, (r, value, (lo, hi)) in enumerate(zip(rows, values, spans, strict=True)):
        colour = BLUE if r.precision == "float32" else ORANGE
        ax.plot([lo, hi], [i, i], color=colour, lw=5, alpha=0.25, solid_capstyle="round")
        ax.plot([value], [i], "o", color=colour, ms=7, mec=BACK, mew=0.8)
        ax.annotate(f"{value:.2f}", (1, i), xycoords=ax.get_yaxis_transform(), xytext=(8, 0),
                    textcoords="offset points", va="center", weight="bold", annotation_clip=False)  # fmt: skip
    ax.set_yticks(range(len(rows)), [r.name for r in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(visible=True, axis="x")
    ax.set_xlabel(metric.title)
    if metric.share:
        lo, hi = min(s[0] for s in spans), max(s[1] for s in spans)
        ax.set_xlim(max(-0.5, lo - 0.08 * (hi - lo)), min(100.5, hi + 0.08 * (hi - lo)))
    return fig


def shown_classes(matrix: Confusion, most: int = MOST_CLASSES) -> list[int]:
    """Which classes a confusion matrix shows: all of them, or the `most` that most mistakes are made with, in order."""
    if matrix.num_classes <= most:
        return list(range(matrix.num_classes))
    return sorted(int(i) for i in np.argsort(-matrix.mistakes, kind="stable")[:most])


@style.styled
def confusion(matrix: Confusion, labels: Sequence[str]) -> Figure:
    """Counts [true, predicted] as a grid: right in blue, wrong in orange, darker for a larger share of the true class.

    Of more than MOST_CLASSES classes, those with the most mistakes; a last column has what they were taken for else.
    """
    shown = shown_classes(matrix)
    n, images = len(shown), matrix.images[shown]
    counts = matrix.among(shown)
    if n < matrix.num_classes:
        counts = np.c_[counts, images - counts.sum(1)]
    columns = counts.shape[1]
    names = [style.plain(labels[i], 20) for i in shown]
    side = min(style.WIDTH - 1.6, max(2.2, 0.42 * n if n <= NUMBERED_CLASSES else 0.19 * n))
    fig = style.figure(side * n / columns + 1.3, side + 1.7)
    ax = fig.add_subplot()
    ax.set_xlim(-0.5, columns - 0.5)
    ax.set_ylim(n - 0.5, -0.5)
    ax.set_aspect("equal")
    totals = np.maximum(images, 1)
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


@style.styled
def cost_shares(cost: Cost) -> Figure:
    """Share of macs and of weights by layer type, as in V1's table 2."""
    shares = {k: v for k, v in cost.shares().items() if any(v)}
    fig = style.figure(0.7 + 0.34 * len(shares))
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


@style.styled
def layers(cost: Cost) -> Figure:
    """Macs of each layer, and the activations it reads and writes, from the first layer to the last."""
    fig = style.figure(3.3)
    macs, memory = fig.subplots(2, 1, sharex=True)
    at = np.arange(1, len(cost.rows) + 1)
    colours = [TYPE_COLOURS[r.type] for r in cost.rows]
    largest = max(r.macs for r in cost.rows)
    unit, scale = ("M", 1e6) if largest >= 1e6 else ("K", 1e3)
    macs.bar(at, [r.macs / scale for r in cost.rows], width=0.8, color=colours)
    macs.set_title(f"macs, {unit}")
    memory.bar(at, [r.times * (r.in_elements + r.out_elements) / 1e3 for r in cost.rows], width=0.8, color=colours)
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


@style.styled
def throughput(speeds: Sequence[Speed], picked: int) -> Figure:
    """Images per second of training by batch size, and the memory it takes; `picked` is the batch to train with."""
    fig = style.figure(2.7)
    rate, memory = fig.subplots(1, 2)
    at = np.arange(len(speeds))
    colours = [GREEN if s.batch == picked else BLUE for s in speeds]
    for ax, title, values in (
        (rate, "images/s", [s.images_per_s for s in speeds]),
        (memory, "peak memory, MB", [(s.accelerator_bytes or s.peak_rss_bytes) / 1e6 for s in speeds]),
    ):
        ax.bar(at, values, width=0.62, color=colours)
        for x, v in zip(at, values, strict=True):
            ax.annotate(f"{v:,.0f}", (x, v), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=8)
        ax.set_title(title)
        ax.set_xlabel("batch size")
        ax.set_xticks(at, [str(s.batch) for s in speeds])
        ax.grid(visible=True, axis="y")
        ax.margins(y=0.12)
    return fig


@style.styled
def range_test(rates: Sequence[float], losses: Sequence[float], picked: float) -> Figure:
    """Loss over a rising learning rate, step by step and smoothed, and the rate to train with."""
    fig = style.figure(3.0)
    ax = fig.add_subplot()
    smoothed = smooth(losses)
    ax.plot(rates, losses, ".", color=MUTED, ms=4, alpha=0.6, label="a step")
    ax.plot(rates, smoothed, color=BLUE, label="smoothed")
    style.log_axis(ax, rates[0], rates[-1])
    nearest = int(np.abs(np.log(np.asarray(rates) / picked)).argmin())
    ax.axvline(picked, color=GREEN, lw=1.1, ls=(0, (4, 3)))
    ax.plot(
        [picked], [smoothed[nearest]], marker="*", ms=12, ls="", color=GREEN, mec=BACK, label=f"steepest: {picked:.2g}"
    )
    ax.set_ylim(top=min(max(losses), 2 * float(smoothed[:5].mean())))
    ax.set_xlabel("learning rate (log scale)")
    ax.set_ylabel("loss, nats")
    ax.grid(visible=True)
    fig.legend(loc="outside upper left", ncols=3)
    return fig
