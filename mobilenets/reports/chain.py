"""From float to coded: what each step of making a network small took off it, as a table, a figure and a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from mobilenets import console, tasks
from mobilenets.compression import chain
from mobilenets.compression.chain import Link
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.reports import pages, style
from mobilenets.reports.style import BLUE, PINK
from mobilenets.tasks.task import MetricSpec
from mobilenets.training import run

if TYPE_CHECKING:
    from rich.table import Table

MEANING = {
    "float": "as it was trained",
    "pruned": "without the channels or weights that matter least",
    "shared": "weights in few bits: codebooks, levels, buckets",
    "trained": "these trained to answer as float does",
    "coded": "the file, entropy-coded",
}


@dataclass(frozen=True)
class Chain:
    """The steps of a bundle; scores are its task's on the val split."""

    title: str
    links: tuple[Link, ...]
    metric: MetricSpec
    labels: str

    @classmethod
    def read(cls, path: Path) -> Chain:
        """Of the bundle at `path`. Raises `UserError` where its card tells of no steps."""
        card = Bundle.load(path).card
        links, metric = chain.kept(card), tasks.of(card).primary
        if not links or metric is None:
            raise UserError(f"{path}: its card tells of no steps: report shows those of what prune or compress made")
        measured = card.metrics[0] if card.metrics else None
        where = f"{measured.count} images of {Path(measured.data).name}, {measured.split}" if measured else "val"
        return cls(card.arch.title, links, metric, where)

    def part(self, link: Link) -> float:
        """Of the first step's bytes."""
        return link.size_bytes / self.links[0].size_bytes

    def lost(self, link: Link) -> float:
        return self.metric.lost(self.links[0].score, link.score)

    def table(self) -> Table:
        t = console.table(self.title, ["step", "macs M", "params M", "kB", "of the first %", self.metric.title, "lost"])
        for o in self.links:
            t.add_row(
                o.name, f"{o.macs / 1e6:.2f}", f"{o.params / 1e6:.3f}", f"{o.size_bytes / 1000:.1f}",
                f"{100 * self.part(o):.1f}", f"{o.score:.2f}", f"{self.lost(o):.2f}",
            )  # fmt: skip
        return t


@style.styled
def draw(found: Chain) -> Figure:
    """Bytes above, scores below, step by step."""
    fig = style.figure(3.6)
    sizes, scores = fig.subplots(2, 1, sharex=True)
    at, names = range(len(found.links)), [o.name for o in found.links]
    sizes.bar(at, [o.size_bytes / 1000 for o in found.links], width=0.5, color=BLUE)
    for i, o in enumerate(found.links):
        sizes.annotate(f"{o.size_bytes / 1000:,.0f}", (i, o.size_bytes / 1000), ha="center", va="bottom")
    sizes.margins(y=0.3)
    sizes.set_title("size, kB")
    scores.plot(at, [o.score for o in found.links], "o-", color=PINK)
    for i, o in enumerate(found.links):
        text = f"{o.score:.2f}"
        scores.annotate(text, (i, o.score), xytext=(0, 6), textcoords="offset points", ha="center")
    scores.margins(y=0.5)
    scores.set_title(found.metric.title)
    scores.set_xticks(at, names)
    return fig


def page(found: Chain) -> str:
    """The steps as one HTML page with everything in it."""
    figure = style.markup(draw(found), "Size and score of each step")
    return pages.render("chain.html", {}, c=found, meaning=MEANING, figure=figure, command=run.command_line())
