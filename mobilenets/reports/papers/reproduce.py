"""The papers' tables, each printed number beside the one counted here, and why where they differ. No torch.

Nothing computed is written down: `tables` has what was printed, and `cost` counts the networks when asked. Accuracies
are shown as published, never as ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenets.console import Notebook
from mobilenets.reports.papers.checking import JUDGED, Result, Status
from mobilenets.reports.papers.errata import TEXT_ERRATA
from mobilenets.reports.papers.tables import TABLES

if TYPE_CHECKING:
    from rich.console import RenderableType

NAMES = (*TABLES, "errata")
Wrong = tuple[str, str, str, str]  # where, printed, computed, cause


def errata(results: tuple[Result, ...]) -> tuple[Wrong, ...]:
    """Every misprint found in `results`, and what the papers' texts and tables say differently."""
    found = (
        (
            f"{r.table.name}, {label}: {c.column}",
            c.as_printed,
            f"{c.computed} {c.unit}".rstrip() if c.computed else "",
            c.why,
        )
        for r in results
        for label, c in r.errata
    )
    return *found, *TEXT_ERRATA


@dataclass(frozen=True)
class Reproduction(Notebook):
    """The tables asked for, checked; every misprint, if asked for; the page, where one was written."""

    results: tuple[Result, ...]
    wrong: tuple[Wrong, ...] = ()
    page: Path | None = None
    size_bytes: int = 0

    def count(self, *statuses: Status) -> int:
        return sum(c.status in statuses for r in self.results for _, c in r.cells())

    def summary(self) -> str:
        if not self.results:
            return f"{len(self.wrong)} errata."
        compared = self.count(*JUDGED)
        kept = self.count("as published", "can't be derived")
        found = [f"{self.count('agrees')} agree", f"{self.count('erratum')} are errata"]
        if differ := self.count("differs"):
            found.append(f"{differ} differ")
        foreign = self.count("foreign")
        beside = f"{foreign} more are shown beside the networks of others, {kept}" if foreign else f"{kept} more"
        return f"{compared} printed values compared: {', '.join(found)}. {beside} are shown as published."

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"summary": self.summary()}
        if self.page:
            out |= {"page": str(self.page), "size_bytes": self.size_bytes}
        names = ("where", "printed", "computed", "cause")
        return out | {
            "tables": [r.to_json() for r in self.results],
            "errata": [dict(zip(names, row, strict=True)) for row in self.wrong],
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        if self.page:
            return Text(f"page   {self.page}\n{self.summary()}")
        parts = [part for r in self.results for part in _printed(r)]
        if self.wrong:
            from mobilenets.console import table

            t = table("errata", ["where", "printed", "computed", "cause"], left=("where", "cause"))
            for row in self.wrong:
                t.add_row(*row)
            parts.append(t)
        return Group(*parts, Text(self.summary()))


def _printed(r: Result) -> list[RenderableType]:
    """A table for the terminal, and under it what explains it."""
    from rich.padding import Padding
    from rich.text import Text

    from mobilenets.console import table

    headers = ["", *(f"{name}\n{unit}".replace(" ", "\n") if unit else name for _, _, name, unit in r.layout)]
    t = table(f"{r.table.name}: {r.table.title}", headers, left=("",))
    t.padding, t.show_edge = (0, 1, 0, 0), False
    t.columns[0].min_width = max(len(label) for label, _ in r.rows)
    for label, row in r.rows:
        cells = ((row[i], kind) for i, kind, *_ in r.layout)
        t.add_row(label, *(c.text(kind) + (f" {c.mark or ' '}" if kind == "printed" else "") for c, kind in cells))
    lines = [*r.explained, *r.notes, ""]
    return [t, Padding(Text("\n".join(lines)), (0, 0, 0, 2), expand=False)]
