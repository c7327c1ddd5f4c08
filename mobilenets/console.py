"""How things look in a terminal: one console on stderr for progress and words, tables for results."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress
    from rich.table import Table


PIPED_WIDTH, LOG_WIDTH = 160, 1000  # of results; of notes, a line each


@functools.cache
def err() -> Console:
    """The console for progress, notes and errors; stdout is for results alone."""
    return _console(stderr=True)


def out() -> Console:
    """The console for results."""
    return _console()


def _console(**options: Any) -> Console:
    """One that prints names as they are: a [bracket] or a :colon: in a file's is no markup.

    What goes to a file or a program is as wide as it needs to be, unless COLUMNS says otherwise.
    """
    from rich.console import Console

    made = Console(highlight=False, markup=False, emoji=False, **options)
    if not made.is_terminal and "width" not in options and "COLUMNS" not in os.environ:
        made.width = LOG_WIDTH if made.stderr else PIPED_WIDTH
    return made


def step(what: str) -> None:
    """A note that the next part of a long job begins."""
    from rich.text import Text

    note(Text(what, style="bold"))


def note(what: RenderableType) -> None:
    print_whole(err(), what)


_CONTROL = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n"}


def plain(text: str) -> str:
    """`text` without what a terminal would obey: names in files from outside may hold control characters."""
    return text.translate(_CONTROL)


def print_whole(console: Console, what: RenderableType) -> None:
    """Print something no narrower than its numbers need: one that is cut to the terminal's width would be wrong."""
    from rich.console import Group
    from rich.measure import Measurement
    from rich.protocol import rich_cast
    from rich.table import Table

    what = rich_cast(what)
    if isinstance(what, Group):
        for part in what.renderables:
            print_whole(console, part)
        return
    if isinstance(what, Table):
        needed = _laid_out(what, console)
    else:
        needed = Measurement.get(console, console.options.update(max_width=LOG_WIDTH), what).minimum
    if needed > console.width:
        console = _console(stderr=console.stderr, width=needed, height=25)  # a dumb terminal heeds no width alone
    console.print(what)


def _laid_out(t: Table, console: Console) -> int:
    """Give a table's columns the console's width, none less than its longest word; how wide they are together.

    Rich takes from the widest columns first, below their longest words too, and then cuts the table's right edge.
    """
    from rich.measure import Measurement

    wide = console.options.update(max_width=LOG_WIDTH)
    sizes = []
    for column in t.columns:
        each = [Measurement.get(console, wide, cell) for cell in (column.header, *column.cells)]
        most = max(m.maximum for m in each)
        least = most if column.no_wrap else max(m.minimum for m in each)
        sizes.append((max(least, column.min_width or 0), max(most, column.min_width or 0)))
    beside = 3 * len(sizes) + 1  # the spaces around each column, and between them
    free = console.width - beside - sum(least for least, _ in sizes)
    for column, (least, most) in sorted(zip(t.columns, sizes, strict=True), key=lambda c: c[1][1] - c[1][0]):
        column.width = least + max(0, min(free, most - least))
        free -= column.width - least
    return max(beside + sum(column.width or 0 for column in t.columns), t.min_width or 0)


LEFT_WIDTH, TITLE_WIDTH = 12, 76


def table(title: str, columns: Sequence[str], left: Sequence[str] = ()) -> Table:
    """A plain table; columns are right-aligned (they hold numbers) unless named in `left`."""
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table

    class Whole(Table):
        """One whose numbers are never cut: rich measures a cell by its longest word, which "3.2 ✓" is longer than."""

        def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
            for column, cell in zip(self.columns, cells, strict=False):
                if column.no_wrap and isinstance(cell, str):
                    column.min_width = max(column.min_width or 0, cell_len(cell))
            super().add_row(*cells, **options)

    t = Whole(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", caption_justify="left",
        min_width=max([min(len(title), TITLE_WIDTH), *map(cell_len, title.split())]),
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
        disable=not draws(),  # elsewhere it would leave empty lines
    )


@contextlib.contextmanager
def downloading(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for a file that is fetched: call what it gives with the bytes that are there, and those there will be."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    note(f"fetching {what}")
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err(), transient=True, disable=not draws()) as bar:
        task = bar.add_task(what, total=None)
        yield lambda there, whole: bar.update(task, completed=there, total=whole or None)


class Notebook:
    """A result that shows itself in notebooks too: what a terminal shows, as tables; or else its fields."""

    def _repr_html_(self) -> str:
        own: Any = self
        if hasattr(own, "__rich__"):
            return html(own.__rich__())
        return facts(type(self).__name__, [(f.name, getattr(self, f.name)) for f in dataclasses.fields(own)])


def facts(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """Names and values as an HTML table."""
    t = table(title, ["", "value"], left=("", "value"))
    for name, value in rows:
        t.add_row(name, str(value))
    return html(t)


def html(shown: Any) -> str:
    """What a terminal would show, as HTML: tables as tables, all else as the text that it is."""
    from html import escape

    from rich.console import Group
    from rich.table import Table

    if isinstance(shown, Group):
        return "".join(map(html, shown.renderables))
    if not isinstance(shown, Table):
        with _console(width=TITLE_WIDTH + 44, file=io.StringIO()) as console, console.capture() as text:
            console.print(shown)
        return f"<pre>{escape(text.get().strip())}</pre>"

    def row(kind: str, cells: Iterable[Any]) -> str:
        sides = ("left" if c.justify == "left" else "right" for c in shown.columns)
        texts = (escape(str(cell)).replace("\n", "<br>") for cell in cells)
        return "".join(f'<{kind} style="text-align: {s}">{x}</{kind}>' for s, x in zip(sides, texts, strict=True))

    lines = zip(*(list(c.cells) for c in shown.columns), strict=True)
    head = "<tr>" + row("th", (c.header for c in shown.columns)) + "</tr>"
    body = "".join(f"<tr>{row('td', cells)}</tr>" for cells in lines)
    title, caption = (f"<p>{escape(str(x))}</p>" if x else "" for x in (shown.title, shown.caption))
    return f"{title}<table><thead>{head}</thead><tbody>{body}</tbody></table>{caption}"


def draws() -> bool:
    """Whether a bar can be drawn: on a terminal, which a log in colour (FORCE_COLOR) is not, or in a notebook."""
    return (err().is_terminal and err().file.isatty()) or _is_notebook()


def _is_notebook() -> bool:
    """Whether a bar can be drawn in a notebook: what draws it there is no part of rich."""
    return err().is_jupyter and importlib.util.find_spec("ipywidgets") is not None


def done(what: str) -> None:
    """A line for a step that is done, where no progress bar shows it: a log is to grow while it is waited for."""
    if not draws():
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


def many(n: int, what: str) -> str:
    """A number of things: "1 image", "2 images", "1,000 classes", "3 boxes"."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}{'es' if what.endswith(('s', 'x')) else 's'}"


def share(percent: float) -> str:
    """Percent to two decimals; one that they can't show is not 0."""
    return f"{percent:.2f}" if percent >= 0.005 or not percent else "<0.01"
