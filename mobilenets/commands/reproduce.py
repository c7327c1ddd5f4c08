"""`mobilenets reproduce`: the papers' tables beside what is counted."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path

from mobilenets.arguments import StrPath, as_path, checked
from mobilenets.errors import UserError, unknown
from mobilenets.reports.papers.checking import check
from mobilenets.reports.papers.reproduce import NAMES, Reproduction, Wrong, errata
from mobilenets.reports.papers.tables import TABLES


@checked
def reproduce(*names: str, html: StrPath | None = None) -> Reproduction:
    """The papers' tables beside what is counted here: what agrees, what is a misprint, and why.

    Parameters
    ----------
    names
        v1-table1 to v1-table14, v2-table2 to v2-table6, v3-costs, v4-costs, v1-models, v2-models, errata; all if left
        out.
    html
        Write them to this file too, one page with the papers' figures redrawn.

    Returns
    -------
    Reproduction
        `results`, for each table its printed and counted values; `errata`, the misprints, each with its reason.

    Raises
    ------
    UserError
        For an unknown table (it suggests the nearest), a page that can't be written.

    Examples
    --------
    >>> import mobilenets
    >>> len(mobilenets.reproduce("v1-table8").results)
    1
    """
    page = as_path(html)
    for name in names:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=4, cutoff=0.7)
            raise (
                UserError(f"unknown table {name!r}: did you mean {_either(near)}?")
                if near
                else unknown("table", name, NAMES)
            )
    if page is not None and page.is_dir():
        raise UserError(f"{page} is a folder; --html needs the name of a file")
    results = tuple(check(t) for name, t in TABLES.items() if not names or name in names)
    wrong: tuple[Wrong, ...] = ()
    if not names or "errata" in names:
        wrong = errata(tuple(check(t) for t in TABLES.values()))
    made = Reproduction(results, wrong)
    return _write_page(made, page) if page else made


def _either(names: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(map(repr, names[:-1])), repr(names[-1]))))


def _write_page(made: Reproduction, path: Path) -> Reproduction:
    from mobilenets import files
    from mobilenets.reports import pages, style
    from mobilenets.reports.papers import figures

    drawn = [(f, style.markup(f.draw(), f.title)) for f in figures.FIGURES]
    text = pages.render("reproduce.html", {}, made=made, figures=drawn).encode()
    with files.atomic_file(path) as tmp:
        tmp.write_bytes(text)
    return dataclasses.replace(made, page=path, size_bytes=len(text))
