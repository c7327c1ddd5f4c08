"""Printed and counted values compared: which agree, which are errata, and what must be known to read that."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any, Literal

from mobilenets.arch import cost, zoo
from mobilenets.arch.cost import Cost
from mobilenets.reports.papers.counting import Value, value
from mobilenets.reports.papers.errata import ERRATA, Erratum
from mobilenets.reports.papers.tables import FOREIGN_RULE, RULES, UNITS, Cell, Column, Row, Rule, Table, What

NEAR = 0.025
Kind = Literal["printed", "counted", "exactly"]
# "differs": without an erratum that says why. "foreign": beside a network of others, not judged.
Status = Literal["", "computed", "agrees", "erratum", "differs", "foreign", "as published", "can't be derived"]
JUDGED: tuple[Status, ...] = ("agrees", "erratum", "differs")
MARKS: dict[Status, str] = {"agrees": "✓", "erratum": "✗", "differs": "≠", "foreign": "≈"}


def agreement(printed: str, exact: Value, unit: str = "", rule: Rule = "rounded or truncated") -> str:
    """How `exact`, in `unit`, is the printed value: "equal" (text), "rounded", "truncated", "near", or "", it isn't."""
    if isinstance(exact, str):
        return "equal" if printed == exact else ""
    number = in_unit(exact, unit)
    target = Decimal(printed.replace(",", ""))
    digits = Decimal(1).scaleb(int(target.as_tuple().exponent))
    if number.quantize(digits, ROUND_HALF_UP) == target:
        return "rounded"
    if rule != "rounded" and number.quantize(digits, ROUND_DOWN) == target:
        return "truncated"
    if rule == "near" and abs(number - target) <= Decimal(NEAR) * number:
        return "near"
    return ""


def in_unit(exact: int | Fraction, unit: str) -> Decimal:
    f = Fraction(exact) / UNITS[unit]
    return Decimal(f.numerator) / Decimal(f.denominator)


def shown(exact: Value, unit: str, printed: str = "") -> str:
    """A computed value in `unit`, with two digits more than the printed one."""
    if isinstance(exact, str):
        return exact
    if isinstance(exact, int) and UNITS[unit] == 1:
        return f"{exact:,}"
    decimals = (len(printed.partition(".")[2]) if printed else 0) + 2
    return f"{in_unit(exact, unit):,.{decimals}f}"


@dataclass(frozen=True)
class Checked:
    """A cell as printed and as counted.

    `exact` is the count, `computed` the same in `unit`. `instead` is the count that explains an erratum, and `explains`
    how it does ("rounded", "truncated"; "" if it is only shown).
    """

    column: str
    unit: str
    printed: str
    status: Status
    exact: Value | None = None
    computed: str = ""
    how: str = ""
    cause: str = ""
    instead: Value | None = None
    instead_shown: str = ""
    explains: str = ""

    @property
    def mark(self) -> str:
        return MARKS.get(self.status, "")

    def text(self, kind: Kind) -> str:
        if kind == "exactly":
            return f"{self.exact:,}" if isinstance(self.exact, int) else ""
        return self.printed if kind == "printed" else self.computed

    @property
    def as_printed(self) -> str:
        return f"{self.printed} {self.unit.rstrip('i')}".rstrip()

    @property
    def why(self) -> str:
        """An erratum's cause with the number that explains it."""
        if self.instead is None:
            return self.cause
        exactly = f" ({self.instead:,})" if isinstance(self.instead, int) and self.instead >= 1000 else ""
        cut = ", truncated" if self.explains == "truncated" else ""
        return f"{self.cause}: {self.instead_shown}{exactly}{cut}"

    def to_json(self, source: str) -> dict[str, Any]:
        def plain(v: Value | None) -> int | float | str | None:
            return float(v) if isinstance(v, Fraction) else v

        erratum = None
        if self.status == "erratum":
            erratum = {"cause": self.cause, "instead": plain(self.instead), "instead_shown": self.instead_shown,
                       "explains": self.explains or None}  # fmt: skip
        return {
            "column": self.column,
            "unit": self.unit,
            "printed": self.printed or None,
            "computed": self.computed or None,
            "exact": plain(self.exact),
            "agrees": self.status == "agrees" if self.status in JUDGED else None,
            "how": self.how or None,
            "status": self.status or None,
            "erratum": erratum,
            "source": source,
        }


@dataclass(frozen=True)
class Result:
    """A table with every cell checked; each row a label and its cells."""

    table: Table
    rows: tuple[tuple[str, tuple[Checked, ...]], ...]

    def cells(self) -> Iterator[tuple[str, Checked]]:
        return ((label, c) for label, row in self.rows for c in row)

    @property
    def errata(self) -> list[tuple[str, Checked]]:
        return [(label, c) for label, c in self.cells() if c.status == "erratum"]

    def column(self, i: int) -> list[Checked]:
        return [row[i] for _, row in self.rows]

    @property
    def explained(self) -> list[str]:
        """A line for each cause of disagreement, with the cells that it explains."""
        lines: dict[tuple[str, str], list[str]] = {}
        for label, c in self.cells():
            if c.status in ("erratum", "differs", "foreign"):
                off = f" ({c.how})" if c.status == "foreign" else ""
                lines.setdefault((c.mark, c.why), []).append(f"{label}, {c.column} {c.as_printed}{off}")
        return [f"{mark} {'; '.join(cells)}: {why}" for (mark, why), cells in lines.items()]

    @functools.cached_property
    def layout(self) -> list[tuple[int, Kind, str, str]]:
        """The columns to show: which cells, what of them, header and unit."""
        out: list[tuple[int, Kind, str, str]] = []
        for i, c in enumerate(self.table.columns):
            cells = self.column(i)
            whole = c.exact and UNITS[c.unit] >= UNITS["M"] and any(isinstance(x.exact, int) for x in cells)
            if any(x.printed for x in cells):
                out.append((i, "printed", c.name, c.unit.rstrip("i")))
                if any(x.computed for x in cells):
                    units = {x.unit for x in cells if x.computed}
                    out.append((i, "counted", "counted", c.unit if units == {c.unit} else ""))
                if whole:
                    out.append((i, "exactly", "exactly", ""))
            else:
                out.append((i, "exactly", c.name, "") if whole else (i, "counted", c.name, c.unit))
        return out

    @property
    def notes(self) -> list[str]:
        """What must be known to read the table: when a cell agrees, what isn't ours, the source."""
        columns = list(enumerate(self.table.columns))
        whole = [c.name for i, c in columns if all(x.exact is None for x in self.column(i))]
        rows = {label for label, c in self.cells() if c.status == "as published" and c.column not in whole}
        lost = [c.name for _, c in columns if c.why != "as published"]
        kept = [name for name in whole if name not in lost] + (sorted(rows) if len(rows) < 4 else ["other rows"])
        found = {c.status for _, c in self.cells()}
        return [
            *([f"{RULES[self.table.rule]}."] if found & {*JUDGED} else []),
            *([f"{FOREIGN_RULE}."] if "foreign" in found else []),
            *([f"As published, not computed: {', '.join(kept)}."] if kept else []),
            *([f"Can't be derived: {', '.join(lost)}."] if lost else []),
            *([self.table.note] if self.table.note else []),
            f"Source: {self.table.source}.",
        ]

    def to_json(self) -> dict[str, Any]:
        t = self.table
        return {
            "name": t.name,
            "title": t.title,
            "source": t.source,
            "notes": self.notes,
            "rows": [{"label": label, "cells": [c.to_json(t.source) for c in row]} for label, row in self.rows],
        }


def check(table: Table) -> Result:
    """Count everything in `table` that can be counted and compare it with what is printed."""
    errata = {(e.row, e.column): e for e in ERRATA if e.table == table.name}
    rows = []
    for row in table.rows:
        theirs = _counted(row.foreign) if row.foreign else None
        cells = zip(table.columns, row.cells, strict=True)
        rows.append(
            (row.label, tuple(_check(table, row, c, x, errata.get((row.label, c.name)), theirs) for c, x in cells))
        )
    return Result(table, tuple(rows))


def _check(
    table: Table, row: Row, column: Column, given: str | Cell, erratum: Erratum | None, theirs: Cost | None
) -> Checked:
    if isinstance(given, str):
        given = Cell(given, column.unit, column.what, row.net)
    printed, unit = given.printed, given.unit
    plain = Checked(column.name, unit, printed, "")
    if theirs and given.what in ("macs", "weights"):
        return _check_foreign(plain, given.what, erratum, theirs)
    if given.what is None or given.net is None:
        why: Status = column.why if row.net else "as published"
        return dataclasses.replace(plain, status=why if printed else "")
    exact = value(given.net, given.what)
    plain = dataclasses.replace(plain, exact=exact, computed=shown(exact, unit, printed))
    if not printed:
        return dataclasses.replace(plain, status="computed")
    if how := agreement(printed, exact, unit, table.rule):
        return dataclasses.replace(plain, status="agrees", how=how)
    if erratum is None:
        return dataclasses.replace(plain, status="differs")
    plain = dataclasses.replace(plain, status="erratum", cause=erratum.cause)
    if erratum.net is None and erratum.unit is None:
        return plain
    what, unit = erratum.what or given.what, unit if erratum.unit is None else erratum.unit
    instead = value(erratum.net or given.net, what)
    related = UNITS[unit] != 1 or UNITS[given.unit] == 1
    return dataclasses.replace(
        plain,
        instead=instead,
        instead_shown=f"{shown(instead, unit, printed)} {unit}".rstrip(),
        explains=agreement(printed, instead, unit, "near" if table.rule == "near" else "rounded or truncated")
        if related
        else "",
    )


@functools.cache
def _counted(name: str) -> Cost:
    return cost.count(zoo.arch(name))


def _check_foreign(plain: Checked, what: What, erratum: Erratum | None, theirs: Cost) -> Checked:
    """A cell of a network of others, whose cost is `theirs`."""
    exact = theirs.macs if what == "macs" else theirs.params
    off = 100 * (float(plain.printed) * UNITS[plain.unit] / exact - 1)
    return dataclasses.replace(
        plain,
        exact=exact,
        computed=shown(exact, plain.unit, plain.printed),
        how="" if erratum else f"{abs(off):.1f}% {'more' if off > 0 else 'less'}",
        cause=erratum.cause if erratum else f"beside {theirs.arch.name} at {theirs.arch.resolution} pixels",
        status="erratum" if erratum else "foreign",
    )
