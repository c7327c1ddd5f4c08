"""Tables of text: CSV, TSV and JSON lines, alone or among images. No torch."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from mobilenets import files
from mobilenets.data.folder import LIST, split_of
from mobilenets.data.labelling import CLASSES, Labelling
from mobilenets.data.listing import Listing
from mobilenets.data.source import Reading
from mobilenets.data.table import Table
from mobilenets.data.tables import cell, some_of
from mobilenets.errors import UserError

TABLE_BYTES = 256 << 20  # at most
DELIMITERS = ",;\t"  # of which ; is what spreadsheets write where the comma is in numbers


def of_text(content: bytes, name: str, folder: str = "", split: str | None = None) -> Table:
    """A table of CSV, TSV or, where its name ends in .jsonl, JSON lines. Raises `UserError`."""
    if len(content) > TABLE_BYTES:
        raise UserError(f"{name}: over {TABLE_BYTES >> 20} MB, the limit for a table of text; Parquet has none")
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")  # as spreadsheets save "Unicode text"
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{name}: not UTF-8 text ({e.reason} at byte {e.start}); save it as CSV in UTF-8") from e
    if "\0" in text:
        raise UserError(f"{name}: not a table of text, as it has NUL characters")
    suffix = PurePosixPath(name.lower()).suffix
    columns, rows = READERS.get(suffix, _separated)(text, name)
    at = {c: i for i, c in enumerate(columns)}
    return Table(name, columns, lambda c: [cell(row[at[c]], name, c) for row in rows], folder=folder, split=split)


def _separated(text: str, name: str) -> tuple[tuple[str, ...], list[list[Any]]]:
    head = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = "\t" if name.lower().endswith(".tsv") else max(DELIMITERS, key=head.count)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    except csv.Error as e:
        raise UserError(f"{name}: not a readable table: {e}") from e
    if not rows:
        raise UserError(f"{name}: an empty table; its first line should name the columns")
    columns = tuple(c.strip() for c in rows[0])
    if twice := [c for c, n in Counter(columns).items() if n > 1 and c]:
        raise UserError(f"{name}: two columns are called {twice[0]!r}")
    for i, row in enumerate(rows[1:], 2):
        if len(row) > len(columns):
            raise UserError(
                f"{name}: row {i} has {len(row)} values, {len(columns)} columns are named; quote what has {delimiter!r}"
            )
        row += [""] * (len(columns) - len(row))
    return columns, rows[1:]


def _json_lines(text: str, name: str) -> tuple[tuple[str, ...], list[list[Any]]]:
    rows: list[dict[str, Any]] = []
    for i, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = files.parse_json(line)
            except ValueError as e:
                raise UserError(f"{name}: line {i} isn't JSON: {e}") from e
            if not isinstance(row, dict):
                raise UserError(f"{name}: line {i} isn't an object of columns and values")
            rows.append(row)
    columns = tuple(dict.fromkeys(c for row in rows for c in row))
    return columns, [[row.get(c) for c in columns] for row in rows]


def _list(text: str, name: str) -> tuple[tuple[str, ...], list[list[Any]]]:
    """CelebA's lists: how many images there are, the labels' names, then a line of a file and its values for each."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if len(lines) < 2 or len(lines[0]) != 1 or not lines[0][0].isdigit():
        raise UserError(f"{name}: not a list as CelebA's is: first how many images there are, then the labels' names")
    count, columns, rows = int(lines[0][0]), ("file", *lines[1]), lines[2:]
    if twice := [c for c, n in Counter(columns).items() if n > 1]:
        raise UserError(f"{name}: two columns are called {twice[0]!r}")
    for i, row in enumerate(rows, 1):
        if len(row) != len(columns):
            raise UserError(f"{name}: image {i} has {len(row) - 1} values, {len(columns) - 1} labels are named")
    if len(rows) != count:
        raise UserError(f"{name}: it says that it has {count} images, and has {len(rows)}: is it all there?")
    return columns, [[*row] for row in rows]


READERS = {".jsonl": _json_lines, LIST: _list}


def in_listing(listing: Listing, reading: Reading, where: str, labelling: Labelling = CLASSES) -> list[Table]:
    """The tables that say what the images beside them are; none where their folders say it.

    They are called metadata, as in Hugging Face's imagefolder, one for all or one in each split's folder; or where
    columns are named, or labels are tags, the only one there is. Raises `UserError` where those are in none,
    or may be in several.
    """
    metadata = [name for name in listing.tables if PurePosixPath(name).stem == "metadata"]
    found = metadata or labelling.among(listing, reading)
    if reading.columns and not metadata and len(found) != 1:
        option = f"--{next(iter(reading.columns))}-column"
        there = f"{option} may be meant for {some_of(found)}: give one instead" if found else f"{option} is for tables"
        raise UserError(f"{where}: {there}")
    tables = []
    for name in found:
        folder = PurePosixPath(name).parent
        content = listing.read(name)
        table = of_text(
            content if isinstance(content, bytes) else read_bytes(content), f"{where}/{name}",
            "" if folder == PurePosixPath() else folder.as_posix(), split_of(folder.name),
        )  # fmt: skip
        if labelling.is_meant(table, reading):
            tables.append(table)
    return tables


def read_bytes(path: Path) -> bytes:
    """A table's bytes, one more than its limit at most. Raises `UserError` where they can't be read."""
    try:
        with path.open("rb") as f:
            return f.read(TABLE_BYTES + 1)
    except OSError as e:
        raise UserError(f"{path}: can't be read ({e.strerror})") from e
