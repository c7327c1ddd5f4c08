"""Tables of images as data: what columns mean, and what rows make. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from mobilenets.arch.fields import is_text
from mobilenets.console import many
from mobilenets.data import identity
from mobilenets.data.dataset import Data, Keyed, Split
from mobilenets.data.folder import slashed, split_of
from mobilenets.data.labelling import CLASSES, NOTHING, Labelling
from mobilenets.data.listing import Listing
from mobilenets.data.source import Reading
from mobilenets.data.table import CALLED, Cell, Table, called
from mobilenets.errors import UserError, unknown
from mobilenets.model.images import BadImage

NAMED = 5  # rows or values named in a line
MEANT = {"images": "the images", "label": "the classes", "split": "the splits", "group": "the groups"}


@dataclass(frozen=True)
class Place:
    """Where a table's paths lead: names with / between. `size` in bytes; None of what isn't there.

    `beside`: the names of the files in the folder of a name.
    """

    where: str
    read: Callable[[str], Path | bytes]
    size: Callable[[str], int | None]
    beside: Callable[[str], Sequence[str]] = lambda _: ()

    def meant(self, name: str) -> str | None:
        """The file that a name may mean which isn't there: one with another suffix, or other capitals."""
        stem = PurePosixPath(name).stem.casefold()
        return next((n for n in self.beside(name) if PurePosixPath(n).stem.casefold() == stem), None)


def inside(where: str, path: str, folder: str = "") -> str | None:
    """A path of a table that lies in `folder` of the place `where`, as a name there; None if it leads out of it."""
    name = slashed(path).removeprefix(f"{where}/")
    name = slashed(os.path.normpath(f"{folder}/{name}" if folder and not name.startswith("/") else name))
    return None if name.startswith(("/", "../")) or name in (".", "..") else name


def in_folder(base: Path) -> Place:
    def size(name: str) -> int | None:
        try:
            return (base / name).stat().st_size
        except (OSError, ValueError):
            return None

    def beside(name: str) -> list[str]:
        try:
            return sorted(p.name for p in (base / name).parent.iterdir())
        except (OSError, ValueError):
            return []

    return Place(base.absolute().as_posix().rstrip("/"), base.joinpath, size, beside)


def in_zip(path: Path, listing: Listing) -> Place:
    known = {*listing.files}

    def beside(name: str) -> list[str]:
        folder = PurePosixPath(name).parent
        return [n for n in listing.files if PurePosixPath(n).parent == folder]

    return Place(str(path), listing.read, lambda name: listing.size(name) if name in known else None, beside)


def cell(value: Any, table: str, column: str) -> Cell:
    """A value as text; None where there is none. Raises `UserError` for several in one."""
    if isinstance(value, list | dict):
        raise UserError(f"{table}: column {column!r} holds several values in a row; one is taken for each image")
    text = "" if value is None else str(value).strip()
    return text or None


def choose(table: Table, reading: Reading, kinds: Iterable[str]) -> dict[str, str]:
    """Which column has what, of "images", "label", "split", "group": as named, or by what it is called.

    Raises `UserError` where one isn't there, or several may be meant.
    """
    found = {}
    kinds = tuple(kinds)
    for kind, name in reading.columns.items():
        if kind == "label" and kind not in kinds:  # it may be the names of several
            continue
        if name not in table.columns:
            raise UserError(f"{table.name}: {unknown('column', name, table.columns)}")
        if kind in kinds:
            found[kind] = name
    for kind in kinds:
        if kind in found or kind not in CALLED or (kind == "split" and table.split):
            continue
        may = [c for c in table.columns if called(c, kind)]
        if kind == "images":
            may = [*table.images] or may
        elif kind == "label":
            may = [c for c in may if c in table.order] or may
        may = [c for c in may if c not in found.values()]
        if len(may) > 1:
            raise UserError(f"{table.name}: {' or '.join(may)} may have {MEANT[kind]}: --{kind}-column says which")
        if not may and kind != "split":
            has = ", ".join(table.columns[:20]) or "none"
            raise UserError(
                f"{table.name}: no column is called as {MEANT[kind]} are, {', '.join(CALLED[kind])} (there are: "
                f"{has}): --{kind}-column names it"
            )
        found |= {kind: may[0]} if may else {}
    return found


# ---- rows


@dataclass(frozen=True)
class Row:
    """What a table says of an image: `key` is what it is read by, `label` of any `Labelling`; `said` what says so."""

    name: str
    key: Any
    size: int | None
    label: Any
    split: Cell
    group: Cell
    said: str


class Reader:
    """Reads an image by its name in a place, or by (number of a column of images, its row there)."""

    def __init__(
        self, where: str, read: Callable[[str], Path | bytes], cells: Sequence[Callable[[int], bytes | str]]
    ) -> None:
        self.where, self.read, self.cells = where, read, cells

    def __call__(self, key: str | tuple[int, int]) -> Path | bytes | Image.Image:
        if isinstance(key, str):
            return self.read(key)
        found = self.cells[key[0]](key[1])
        if isinstance(found, bytes):
            return found
        name = inside(self.where, found)
        if name is None:
            raise BadImage(f"{found}: leads out of {self.where}")
        return self.read(name)


def data_of(
    source: str, tables: Sequence[Table], place: Place, reading: Reading, labelling: Labelling = CLASSES
) -> Data:
    """Tables as data, their labels read as `labelling` does.

    Raises `UserError` for columns that aren't there or may be several, paths that lead out of the place or nowhere,
    rows that contradict each other, splits that have no known name or part a group.
    """
    kinds = ("images",) if labelling is NOTHING else ("images", *labelling.kinds(reading), "split", "group")
    rows: list[Row] = []
    cells: list[Callable[[int], bytes | str]] = []
    for table in tables:
        rows += _rows(table, choose(table, reading, kinds), place, cells, reading, labelling)
    left_out = []
    for what, bare in (
        ("image", [r for r in rows if not r.name]),
        (labelling.noun, [r for r in rows if r.name and r.label is None]),
    ):
        if bare:
            left_out.append(f"{many(len(bare), 'row')} without {what}, left out: {some_of(r.said for r in bare)}")
    rows = [r for r in rows if r.name and r.label is not None]
    again = len(rows)
    rows = _once(rows)
    if again > len(rows):
        left_out.append(f"{many(again - len(rows), 'row')} the same as an earlier one, left out")
    if not rows:
        raise UserError(f"{source}: no row has an image{'' if labelling is NOTHING else f' and a {labelling.noun}'}")
    if all(r.size is None for r in rows):
        what = f"{source}: none of its images is in {place.where}, as {some_of(r.name for r in rows[:2])}"
        if meant := place.meant(rows[0].name):
            raise UserError(f"{what}; but {PurePosixPath(meant).name} is: write names as the files have them")
        raise UserError(f"{what}; --root names the folder that paths start from")
    labels, encode = labelling.targets(source, {r.label for r in rows}, tables)
    group_of = {g: i for i, g in enumerate({r.group: 0 for r in rows})}
    splits, reader = {}, Reader(place.where, place.read, cells)
    for split in ("train", "val", "test"):
        some = [r for r in rows if (r.split or "train") == split]
        if some:
            names = [r.name for r in some]
            targets = encode([r.label for r in some])
            splits[split] = Split(
                split,
                names,
                targets,
                Keyed(reader, [r.key for r in some]),
                marks=identity.marks(names, [r.size or 0 for r in some]),
                groups=np.array([group_of[r.group] for r in some], np.int64) if "group" in reading.columns else None,
                strata=labelling.strata(targets),
            )
    if "group" in reading.columns:
        _check_groups(source, rows)
    images = identity.summary(s.marks for s in splits.values())
    return Data(source, labels, splits, left_out=tuple(left_out), images=images)


def _rows(
    table: Table,
    columns: Mapping[str, str],
    place: Place,
    cells: list[Callable[[int], bytes | str]],
    reading: Reading,
    labelling: Labelling,
) -> Iterable[Row]:
    image_column = columns["images"]
    if image_column in table.images:
        inside = table.images[image_column]()
        cells.append(inside.read)
        names = [*inside.names]
        sizes: list[int | None] = [*inside.sizes]
        keys: list[Any] = [(len(cells) - 1, i) for i in range(len(names))]
    else:
        paths = table.values(image_column)
        names = [_name(path, table, i, place) for i, path in enumerate(paths)]
        sizes, keys = [place.size(n) if n else None for n in names], [*names]
    n = len(names)
    of = {kind: table.values(columns[kind]) if kind in columns else [None] * n for kind in ("split", "group")}
    labels = labelling.said(table, columns, reading, n)
    splits = _splits(table, columns["split"], of["split"]) if "split" in columns else [table.split] * n
    for i, (name, key, size, split) in enumerate(zip(names, keys, sizes, splits, strict=True)):
        said = f"row {i + 1} of {table.name}"
        group = of["group"][i] or said if "group" in columns else None  # that has none is its own
        yield Row(name, key, size, labels[i], split, group, said)


def _name(path: Cell, table: Table, row: int, place: Place) -> str:
    if path is None:
        return ""
    if not is_text(path):
        raise UserError(f"{table.name}: the path in row {row + 1} has control characters")
    if "://" in path:
        raise UserError(f"{table.name}: row {row + 1} is an address, {path}: download the images, and give their paths")
    name = inside(place.where, path, table.folder)
    if name is None:
        raise UserError(
            f"{table.name}: the path in row {row + 1}, {path}, leads out of {place.where}: --root names the folder "
            "that holds all images"
        )
    return name


def _splits(table: Table, column: str, said: Sequence[Cell]) -> list[str]:
    named = {value: split_of(value or "") for value in {*said}}
    strange = sorted(str(value or "(none)") for value, split in named.items() if split is None)
    if strange:
        raise UserError(f"{table.name}: column {column!r} says {some_of(strange)}, which isn't train, val or test")
    return [named[value] or "" for value in said]


def _once(rows: Sequence[Row]) -> list[Row]:
    """Without the rows that say again what an earlier one says. Raises `UserError` where one says otherwise."""
    first: dict[Any, Row] = {}
    for r in rows:
        before = first.setdefault(r.key, r)
        own = r.group if r.group != r.said else before.group
        if (before.label, before.split, before.group) != (r.label, r.split, own):
            raise UserError(f"{r.said} says of {r.name} what {before.said} doesn't: keep one of them")
    return list(first.values())


def _check_groups(source: str, rows: Sequence[Row]) -> None:
    """Raises `UserError` where the table's own splits part a group."""
    where: dict[Cell, str] = {}
    for r in rows:
        split = r.split or "train"
        if where.setdefault(r.group, split) != split:
            raise UserError(
                f"{source}: group {r.group!r} is in {where[r.group]} and in {split}: mend the splits, or leave them out"
            )


def some_of(said: Iterable[str]) -> str:
    found = list(said)
    return ", ".join(found[:NAMED]) + (f" and {len(found) - NAMED} more" if len(found) > NAMED else "")
