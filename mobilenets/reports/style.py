"""What all figures share: colours safe for the colour-blind, type and axes; and their way to files and pages."""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from mobilenets import files
from mobilenets.errors import UserError

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")
# Okabe and Ito's palette, and greys. `svg` hands each to the page under its name, so that a dark page can have its own.
INK, MUTED, GRID, SHADE, BACK = "#1f2933", "#5f6c7b", "#dfe4ea", "#f0f2f5", "#ffffff"
BLUE, ORANGE, GREEN, PINK, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"
CSS_NAMES = {
    INK: "ink", MUTED: "muted", GRID: "grid", SHADE: "shade", BACK: "back",
    BLUE: "blue", ORANGE: "orange", GREEN: "green", PINK: "pink", SKY: "sky",
}  # fmt: skip
TYPE_COLOURS: dict[str, str] = {
    "pointwise": BLUE,
    "depthwise": ORANGE,
    "global": ORANGE,
    "conv": GREEN,
    "linear": PINK,
    "norm": MUTED,
    "attend": SKY,
}
WIDTH = 7.2  # inches; 72 SVG units each
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
styled = matplotlib.rc_context(STYLE)


def figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, `height` and `width` in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def plain(text: str, most: int = 24) -> str:
    """A label as one short line that can be drawn and written, whatever was in it."""
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    return line if len(line) <= most else line[: most - 1] + "…"


def log_axis(ax: Axes, lo: float, hi: float) -> None:
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


def kind(path: Path) -> str:
    """A figure's format, by its file's suffix. Raises `UserError` for a suffix that isn't one of SUFFIXES."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"{path}: a figure is written as {', '.join(SUFFIXES)}, not {suffix or 'a file without suffix'}"
        )
    return suffix[1:]


def save(fig: Figure, path: Path) -> None:
    """Write a figure to `path`, atomically. Raises `UserError` for a suffix that isn't one of SUFFIXES."""
    drawn = _render(fig, kind(path))
    with files.atomic_file(path) as tmp:
        tmp.write_bytes(drawn)


def _render(fig: Figure, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a label in a script the font lacks, or too long for its place
        fig.savefig(out, format=kind, dpi=160, metadata={} if kind == "png" else _UNDATED[kind], **options)
    return out.getvalue()


_UNDATED: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def markup(fig: Figure, title: str) -> Markup:
    """A figure as a template takes it: safe, as matplotlib escapes the text in it."""
    from markupsafe import Markup

    return Markup(svg(fig, title))


def sentence(label: str) -> str:
    """A label at the start of a sentence."""
    return label[:1].upper() + label[1:]


def svg(fig: Figure, title: str) -> str:
    """A figure as an <svg> to put into a page: no size of its own, no other figure's ids, its colours CSS variables.

    The page may set --ink, --muted, --grid, --shade, --back, --blue, --orange, --green, --pink and --sky.
    """
    text = _render(fig, "svg", transparent=True).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = text.replace("xlink:href", "href")
    text = _own_ids(text, "f" + hashlib.sha256(text.encode()).hexdigest()[:8])
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


def _own_ids(text: str, prefix: str) -> str:
    """`prefix` before each id and mention of one: matplotlib gives equal parts of different figures equal ids."""
    return re.sub(r"<[^>]+>", lambda tag: re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{prefix}-", tag[0]), text)
