"""Whether a network's probabilities can be believed, drawn: accuracy over confidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from mobilenets.errors import UserError
from mobilenets.reports import style
from mobilenets.reports.style import BLUE, MUTED, ORANGE
from mobilenets.tasks.reliability import Bin

AFTER, BEFORE = "reliability", "reliability_uncalibrated"  # of a step's scores


def bins(scores: Mapping[str, Any], name: str) -> list[Bin]:
    """The bins that a step's scores have; none in those of before there were any. Raises `UserError`."""
    try:
        found = [Bin(int(b["count"]), float(b["confidence"]), float(b["right"])) for b in scores.get(name, [])]
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise UserError(f"its {name} isn't a list of bins: {e}") from e
    if not all(b.count > 0 and 0 <= b.confidence <= 1 and 0 <= b.right <= 1 for b in found):
        raise UserError(f"its {name} has bins that can't be")
    return found


@style.styled
def diagram(after: list[Bin], before: list[Bin]) -> Figure:
    """Accuracy over confidence, a dot for each bin, larger for more images; on the diagonal they are the same.

    `before`: as they were before temperature scaling; none where there was none.
    """
    fig = style.figure(3.0, 3.6)
    ax = fig.add_subplot()
    ax.plot([0, 100], [0, 100], color=MUTED, lw=1.0, ls=(0, (4, 3)), zorder=1)
    most = max(b.count for b in [*after, *before])
    for some, colour, label in ((before, ORANGE, "before temperature scaling"), (after, BLUE, "as shipped")):
        if some:
            at = [100 * b.confidence for b in some]
            ax.plot(at, [100 * b.right for b in some], color=colour, lw=1.2, label=label)
            sizes = [10 + 60 * b.count / most for b in some]
            ax.scatter(at, [100 * b.right for b in some], s=sizes, color=colour, zorder=3)
    ax.set_xlim(0, 101)
    ax.set_ylim(0, 101)
    ax.set_xlabel("probability of the best label, %")
    ax.set_ylabel("of these images right, %")
    ax.grid(visible=True)
    if before:
        fig.legend(loc="outside upper left", ncols=2, handletextpad=0.4, columnspacing=1.2)
    return fig
