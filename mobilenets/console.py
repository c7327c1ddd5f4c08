"""How things look in a terminal: one console on stderr for progress and words, tables for results."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress
    from rich.table import Table


@functools.cache
def err() -> Console:
    """The console for progress, notes and errors; stdout is for results alone."""
    return _console(stderr=True)


def out() -> Console:
    """The console for results."""
    return _console()


def _console(**options: Any) -> Console:
    """One that prints names as they are: a [bracket] or a :colon: in a file's is no markup."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, **options)


def step(what: str) -> None:
    """A note that the next part of a long job begins."""
    from rich.text import Text

    note(Text(what, style="bold"))


def note(what: RenderableType) -> None:
    print_whole(err(), what)


def print_whole(console: Console, what: RenderableType) -> None:
    """Print something no narrower than its numbers need: one that is cut to the terminal's width would be wrong."""
    from rich.measure import Measurement

    needed = Measurement.get(console, console.options.update(max_width=1000), what).minimum
    if needed > console.width:
        console = _console(stderr=console.stderr, width=needed)
    console.print(what)


LEFT_WIDTH, TITLE_WIDTH = 12, 76


def table(title: str, columns: Sequence[str], left: Sequence[str] = ()) -> Table:
    """A plain table; columns are right-aligned (they hold numbers) unless named in `left`."""
    from rich import box
    from rich.table import Table

    t = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", caption_justify="left",
        min_width=min(len(title), TITLE_WIDTH),
    )  # fmt: skip
    for c in columns:
        number = c not in left
        t.add_column(
            c,
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=number,
            min_width=max(map(len, c.splitlines() or [""])) if number else LEFT_WIDTH,
        )
    return t


def progress(unit: str = "images", left: bool = True) -> Progress:
    """A progress bar with rate and time `left`, as far as speed so far tells, on stderr, gone when it ends."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        *((TextColumn("left"), TimeRemainingColumn()) if left else ()),
        TextColumn("{task.fields[status]}", markup=False),
        console=err(),
        transient=True,
        disable=not err().is_terminal,  # elsewhere it would leave empty lines
    )


def done(what: str) -> None:
    """A line for a step that is done, where no progress bar shows it: a log is to grow while it is waited for."""
    if not err().is_terminal:
        note(what)


def megabytes(n: float) -> str:
    return f"{n / 1e6:.2f}"


def duration(seconds: float) -> str:
    """Seconds as a person would say them: "4 s", "12 min", "2 h 05 min"."""
    if seconds == float("inf"):
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def ms(v: float | None) -> str:
    """Milliseconds to three figures or three decimals, whichever is shorter."""
    if v is None:
        return ""
    return f"{v:.3f}" if v < 10 else f"{v:.2f}" if v < 100 else f"{v:,.0f}"


def mb(n: float) -> str:
    """Bytes as megabytes (10^6)."""
    return f"{n / 1e6:.2f}" if n >= 1e5 else f"{n / 1e6:.3f}"


def count(n: float) -> str:
    """A whole number, its thousands apart."""
    return f"{n:,.0f}"


def share(percent: float) -> str:
    """Percent to two decimals; one that they can't show is not 0."""
    return f"{percent:.2f}" if percent >= 0.005 or not percent else "<0.01"
