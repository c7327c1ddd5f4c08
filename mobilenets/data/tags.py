"""Tags: any number of yes/no labels for each image, from tables, CelebA's lists, folders. No torch.

Targets are float32 [N, C]: 1 where a tag holds, 0 where it doesn't, NaN where nobody said.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mobilenets import console
from mobilenets.data.labelling import Encode, check_names
from mobilenets.data.listing import Listing
from mobilenets.data.source import Reading, Source
from mobilenets.data.table import Cell, Table, called
from mobilenets.errors import UserError, unknown
from mobilenets.model.images import BadImage

YES = {"1", "1.0", "true", "yes", "y"}
NO = {"0", "0.0", "-1", "-1.0", "false", "no", "n"}
MISSING = {"", "nan", "na", "n/a", "none", "null"}
LISTS = ("list_attr", "attributes")  # how a .txt among images is called that is a list of them, in the beginning
UNKNOWN = -1  # in what is said of an image


class Said(NamedTuple):
    """What is said of an image: 1, 0 or UNKNOWN of each of the tags `names`, as int8.

    `whole`: what isn't named doesn't hold; else nobody knows.
    """

    names: tuple[str, ...]
    values: bytes
    whole: bool = False


class Tags:
    """Yes/no labels from columns of a table, a column that lists those that hold, or a folder for each."""

    noun, least, loose = "tag", 1, False

    def check(self, asked: Source) -> None:
        if asked.reading.class_from_name:
            raise UserError(f"{asked.path}: --class-from-name is for one class an image, and tags may be several")
        if asked.reading.levels is not None:
            raise UserError(f"{asked.path}: --levels is for one class an image, and tags may be several")
        if asked.reading.limit_per_class is not None:
            raise UserError(f"{asked.path}: --limit-per-class is for one class an image, and tags may be several")

    def too_few(self, labels: tuple[str, ...]) -> str:  # noqa: ARG002
        return "no tags; they are columns of a table, or folders of images"

    def check_numbered(self, asked: Source) -> None:
        raise UserError(f"{asked.path}: tags are read from tables and folders; this has one class for each image")

    def kinds(self, reading: Reading) -> tuple[str, ...]:
        return () if reading.label_delimiter is None else ("label",)

    def among(self, listing: Listing, reading: Reading) -> Sequence[str]:
        """The only table, or the only list."""
        lists = [n for n in listing.texts if n.rsplit("/", 1)[-1].lower().startswith(LISTS)]
        found = listing.tables or lists
        return found if len(found) == 1 or reading.columns else ()

    def is_meant(self, table: Table, reading: Reading) -> bool:
        """One of another kind, beside folders, names no images."""
        return bool(reading.columns) or bool(table.images) or any(called(c, "images") for c in table.columns)

    def said(self, table: Table, columns: Mapping[str, str], reading: Reading, count: int) -> Sequence[Said | None]:
        """By row; None where nothing is known of an image."""
        if reading.label_delimiter is not None:
            return [_listed(cell, reading.label_delimiter) for cell in table.values(columns["label"])]
        names = _columns(table, columns, reading)
        if not names:
            raise UserError(
                f"{table.name}: no column is of yes and no alone (0/1, -1/1, true/false, yes/no): --label-column names "
                "them, with commas between, and --label-delimiter is for one column that lists the tags that hold"
            )
        values = np.stack([_answers(table, name) for name in names], 1) if count else np.empty((0, len(names)), np.int8)
        known = (values != UNKNOWN).any(1)
        return [Said(names, row.tobytes()) if k else None for row, k in zip(values, known, strict=True)]

    def in_folders(self, source: str, listing: Listing, rows: Sequence[tuple[str, str]]) -> list[tuple[str, Any]]:
        """An image that lies in several folders has several tags: the same bytes, whatever they are called.

        Raises `UserError` for two images of one name that aren't the same: nobody can say what is meant.
        """
        found: dict[Any, tuple[str, set[str]]] = {}
        named: dict[str, tuple[Any, str]] = {}
        sizes: dict[int, int] = defaultdict(int)
        for f, _ in rows:
            sizes[listing.size(f)] += 1
        for f, folder in rows:
            size = listing.size(f)
            same = _digest(listing, f) if sizes[size] > 1 else f
            found.setdefault(same, (f, set()))[1].add(folder)
            below = _below(f, folder)
            first, other = named.setdefault(below, (same, f))
            if first != same:
                raise UserError(
                    f"{source}: {other} and {f} are called the same and are two images: with tags, an image may lie in "
                    "several folders; give them names of their own"
                )
        return [(f, _holding(tags)) for f, tags in found.values()]

    def targets(self, source: str, said: set[Said], tables: Sequence[Table] = ()) -> tuple[tuple[str, ...], Encode]:
        """In the order of the columns; by name where they are listed."""
        heads = {one.names for one in said}
        every = {name for names in heads for name in names}
        check_names(source, every)
        columns = [c for t in tables for c in t.columns if c in every]
        labels = tuple(dict.fromkeys([*columns, *sorted(every)]))
        at = {names: [labels.index(name) for name in names] for names in heads}

        def encode(rows: Sequence[Said]) -> npt.NDArray[np.float32]:
            out = np.full((len(rows), len(labels)), np.nan, np.float32)
            for row, one in zip(out, rows, strict=True):
                if one.whole:
                    row[:] = 0
                known = np.frombuffer(one.values, np.int8)
                row[at[one.names]] = np.where(known == UNKNOWN, np.nan, known)
            return out

        return labels, encode

    def strata(self, targets: Any) -> npt.NDArray[Any] | None:  # noqa: ARG002
        return None


def _holding(tags: set[str]) -> Said:
    return Said(tuple(sorted(tags)), b"\1" * len(tags), True)


def _listed(cell: Cell, delimiter: str) -> Said:
    """Of a cell that lists the tags that hold; of an empty one, none does."""
    return _holding({tag for part in (cell or "").split(delimiter) if (tag := part.strip())})


def _columns(table: Table, columns: Mapping[str, str], reading: Reading) -> tuple[str, ...]:
    """The columns that are tags: those named, or all of yes and no. Raises `UserError` for one that isn't there."""
    if reading.label_column is None:
        others = {*columns.values(), *table.images, ""}
        return tuple(c for c in table.columns if c not in others and _is_answers(table, c))
    asked = reading.label_column
    names = [asked] if asked in table.columns else [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in table.columns:
            raise UserError(f"{table.name}: {unknown('column', name, table.columns)}")
    return tuple(dict.fromkeys(names))


def _is_answers(table: Table, column: str) -> bool:
    """Whether a column has a yes or a no, and nothing else; a line names one that mostly has."""
    values = [_plain(value) for value in table.values(column)]
    answers = sum(v in YES | NO for v in values)
    others = [(i, v) for i, v in enumerate(values, 1) if v not in YES | NO | MISSING]
    if others and answers > len(others):
        row, value = others[0]
        console.note(
            f"{table.name}: column {column!r} is taken for no tag, as row {row} says {value!r}: correct that, or name "
            "the tags by --label-column"
        )
    return answers > 0 and not others


def _plain(value: Cell) -> str:
    return "" if value is None else value.strip().lower()


def _answers(table: Table, column: str) -> npt.NDArray[np.int8]:
    """A column's answers. Raises `UserError` for what is neither yes nor no."""
    plain = [_plain(value) for value in table.values(column)]
    found = {*plain}
    for i, value in enumerate(plain, 1):
        if value not in YES | NO | MISSING:
            raise UserError(
                f"{table.name}: column {column!r} says {value!r} in row {i}, which is neither yes nor no (0/1, -1/1, "
                "true/false, yes/no; empty where it isn't known)"
            )
    if found & {"0", "0.0"} and found & {"-1", "-1.0"}:
        raise UserError(
            f"{table.name}: column {column!r} has both 0 and -1: leave empty what isn't known, and keep one"
        )
    return np.array([1 if v in YES else 0 if v in NO else UNKNOWN for v in plain], np.int8)


def _below(file: str, folder: str) -> str:
    """A file's name below the folder that is its tag."""
    parts = file.split("/")
    return "/".join(parts[parts.index(folder) + 1 :])


def _digest(listing: Listing, file: str) -> bytes:
    """Of a file's bytes; one that can't be read is like no other, and the check of the images says so."""
    try:
        content = listing.read(file)
        content = content.read_bytes() if isinstance(content, Path) else content
    except (OSError, BadImage):
        return file.encode(errors="surrogateescape")
    return hashlib.blake2b(content, digest_size=16).digest()


TAGS = Tags()
