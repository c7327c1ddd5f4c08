"""How things look in a terminal: one console on stderr for progress and words, tables for results."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table


@functools.cache
def err() -> Console:
    """The console for progress, notes and errors; stdout is for results alone."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def note(text: str) -> None:
    err().print(text)


def table(title: str, columns: Sequence[str], left: Sequence[str] = ()) -> Table:
    """A plain table; columns are right-aligned (they hold numbers) unless named in `left`."""
    from rich import box
    from rich.table import Table

    t = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", caption_justify="left")
    for c in columns:
        number = c not in left
        t.add_column(c, justify="right" if number else "left", overflow="fold", no_wrap=number)
    return t


def progress(unit: str = "images") -> Progress:
    """A progress bar with rate and time left, on stderr, gone when it ends."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=err(),
        transient=True,
    )


def megabytes(n: float) -> str:
    return f"{n / 1e6:.2f}"
