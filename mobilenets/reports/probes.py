"""What networks see of the data, as a run measured it before it chose: the report's figure and table. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobilenets import files
from mobilenets.reports import style
from mobilenets.reports.style import BACK, BLUE, INK, MUTED, ORANGE
from mobilenets.tasks.task import MetricSpec
from mobilenets.training.candidates import Tried, of_json
from mobilenets.training.run import CANDIDATES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def of_run(run: Path) -> tuple[Tried, ...]:
    """The networks that a run probed, best first; none where it didn't. Raises `UserError` for a damaged file."""
    path = run / CANDIDATES
    return files.read_object(path, of_json, "a run of fit") if path.is_file() else ()


@style.styled
def drawn(rows: Sequence[Tried], metric: MetricSpec) -> Figure:
    """The probe's score with its interval, and the published accuracy, over latency; a ring around the pick."""
    fig = style.figure(3.2)
    ax = fig.add_subplot()
    latencies = [r.latency_ms for r in rows]
    style.log_axis(ax, min(latencies) / 1.3, max(latencies) * 1.3)
    ax.grid(visible=True)
    ax.plot(latencies, [r.prior for r in rows], "o", color=MUTED, mfc=BACK, ms=6, label="published, of ImageNet")
    for r in rows:
        ax.plot([r.latency_ms] * 2, [r.low, r.high], color=BLUE, lw=3, alpha=0.35, solid_capstyle="round")
    ax.plot(latencies, [r.probe for r in rows], "o", color=BLUE, ms=6, label="linear probe, on these images")
    halved = [(r.latency_ms, r.short) for r in rows if r.short is not None]
    if halved:
        ax.plot(*zip(*halved, strict=True), "D", color=ORANGE, ms=6, label="after a few epochs")
    for r in rows:
        if r.picked:
            ax.plot([r.latency_ms], [r.probe], "o", color=INK, mfc="none", ms=12, mew=1.2)
        ax.annotate(r.network, (r.latency_ms, r.high), xytext=(0, 5), textcoords="offset points", ha="center", size=8)
    ax.set_xlabel("latency, ms per image (log scale)")
    ax.set_ylabel("accuracy (%)" if metric.share else f"{metric.title}, published accuracy (%)")
    ax.margins(y=0.12)
    ax.legend(loc="lower right")
    return fig
