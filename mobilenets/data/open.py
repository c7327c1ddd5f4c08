"""One door to every kind of data: a folder, a zip, shards, a named set. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets import console
from mobilenets.data import arrow, identity, splitting, tables, text_tables
from mobilenets.data.dataset import Data, Keyed, Split, in_order
from mobilenets.data.folder import LIST, TABLES, from_listing, list_folder, list_zip
from mobilenets.data.labelling import CLASSES, NOTHING, Labelling
from mobilenets.data.listing import Listing
from mobilenets.data.positions import POSITIONS
from mobilenets.data.source import Reading, Source
from mobilenets.data.table import Table
from mobilenets.data.tables import Place
from mobilenets.errors import UserError
from mobilenets.model.card import Card

Opener = Callable[[str, "Path | None", int, "float | None"], Data]  # source, root, seed, val


def open_data(
    source: str,
    root: Path | None = None,
    seed: int = 0,
    val: float | None = None,
    labelling: Labelling = CLASSES,
) -> Data:
    """Open a folder, a zip, a table, shards (their folder or address) or a named set, as `Source.parse` reads it.

    Where there is no val split, a seeded stratified share of train becomes it: `val`, or a fifth (a tenth where there
    is a test split). A smaller share is a part of a larger one, unless groups are kept whole or labels are tags.

    Raises `UserError` for one that isn't there or has fewer labels than `labelling` needs, and for `val` where
    there is a val split.
    """
    check_split(seed, val)
    asked = Source.parse(source)
    labelling.check(asked)
    data = _opened(asked, root, labelling)
    data.source, data.seed, data.limit = source, seed, asked.reading.limit_per_class
    if asked.reading.val_from:
        take_val(data, asked, root, lambda other, at: _opened(other, at, labelling))
    if len(data.labels) < labelling.least:
        raise UserError(f"{source}: {labelling.too_few(data.labels)}")
    return held_out(data, val)


def check_split(seed: int, val: float | None) -> None:
    """Raises `UserError` for a seed or a share of the images that can't be."""
    if seed < 0:
        raise UserError(f"seed must be 0 or more, not {seed}")
    if val is not None and not 0 < val < 1:
        raise UserError(f"val is a share of the training images, above 0 and below 1, not {val:g}")


def held_out(data: Data, val: float | None) -> Data:
    """The data with a val split: its own, or a share of train. Raises `UserError` for a share where it has its own."""
    if "train" in data.splits and "val" not in data.splits:
        _hold_out(data, val or (0.1 if "test" in data.splits else 0.2))
    elif val is not None:
        raise UserError(f"{data.source} has a val split of its own: leave out --val")
    elif "train" in data.splits:
        data.limit_training()
    return data


def _opened(asked: Source, root: Path | None, labelling: Labelling) -> Data:
    """What there is, with the splits that it has."""
    from mobilenets.data import shard_reader as sharded

    path = Path(asked.path)
    if sharded.find(asked.path):
        data = sharded.open_shards(asked.path)
        if not all(isinstance(s.targets, np.ndarray) for s in data.splits.values()):
            raise UserError(f"{asked.path}: shards of images with boxes: --task detect reads them")
    elif path.is_file() or path.is_dir():
        listing = _listed(path)
        found, place = _tables(path, listing, asked.reading, root, labelling)
        if found:
            if asked.reading.class_from_name:
                raise UserError(f"{path}: --class-from-name is for folders; in a table, a column has the classes")
            if asked.reading.levels is not None:
                raise UserError(
                    f"{path}: --levels is for folders; in a table, a column has the classes, as cat/siamese"
                )
            return tables.data_of(asked.path, found, place, asked.reading, labelling)
        assert listing is not None  # a file that is no table is a zip
        _check_for_tables(asked)
        return from_listing(asked.path, listing, asked.reading, labelling)
    elif asked.path == "digits":
        data = _digits()
    else:
        from mobilenets.data.named import open_named

        data = open_named(asked.path, root)
    labelling.check_numbered(asked)
    _check_for_tables(asked)
    return data


def _check_for_tables(asked: Source) -> None:
    """Raises `UserError` for ways to read a table, of what is none."""
    given = [f"--{kind}-column" for kind in asked.reading.columns]
    if asked.reading.label_delimiter is not None:
        given.append("--label-delimiter")
    if given:
        raise UserError(f"{asked.path}: {given[0]} is for tables")


def _listed(path: Path) -> Listing | None:
    """What a folder or a zip holds; None of a table."""
    if path.is_dir():
        return list_folder(path)
    return None if path.suffix.lower() in (*TABLES, LIST, arrow.PARQUET, arrow.ARROW) else list_zip(path)


def _tables(
    path: Path, listing: Listing | None, reading: Reading, root: Path | None, labelling: Labelling = CLASSES
) -> tuple[Sequence[Table], Place]:
    """The tables that `path` is, or holds, and where their paths lead."""
    if listing is None:
        text = path.suffix.lower() in (*TABLES, LIST)
        found = [text_tables.of_text(text_tables.read_bytes(path), str(path))] if text else arrow.find(path)
        return found, tables.in_folder(root or path.parent)
    place = tables.in_folder(root or path) if path.is_dir() else tables.in_zip(path, listing)
    if path.is_dir() and (arrow.is_saved(path) or not listing.files) and (saved := arrow.find(path)):
        return saved, place
    return text_tables.in_listing(listing, reading, str(path), labelling), place


def take_val(data: Data, asked: Source, root: Path | None, opened: Callable[[Source, Path | None], Data]) -> None:
    """Make all images of another source, which `opened` opens, the val split.

    Raises `UserError` for one of other classes.
    """
    if "val" in data.splits:
        raise UserError(f"{asked.path} has a val split of its own: leave out --val-from")
    other = alike(asked, str(asked.reading.val_from))
    there = opened(other, root)
    there.source = other.path
    if strangers := [c for c in there.labels if c not in data.labels]:
        raise UserError(
            f"{other.path}: class {strangers[0]!r} isn't one of {asked.path} ({', '.join(data.labels[:8])})"
        )
    val = in_order(there, data.labels).split("all")
    data.splits = {**data.splits, "val": dataclasses.replace(val, name="val", groups=None)}
    data.images = identity.summary(s.marks for s in data.splits.values())
    data.left_out += there.left_out


def alike(asked: Source, other: str) -> Source:
    """Another source of the same labels: read as `asked` is, as far as it can be, where it doesn't say how itself."""
    found = Source.parse(other)
    if not found.plain:
        return found
    reading = dataclasses.replace(asked.reading, val_from=None, limit_per_class=None, split_column=None)
    if _is_tabled(found.path):
        return Source(found.path, reading)
    return Source(found.path, Reading(class_from_name=reading.class_from_name, levels=reading.levels))


def _is_tabled(path: str) -> bool:
    return Path(path).is_file() and _listed(Path(path)) is None


def open_unlabelled(source: str, root: Path | None = None, seed: int = 0) -> Data:
    """All images of a folder, a zip, a table or a named set as one class; a tenth is held out."""
    from mobilenets.data import shard_reader as sharded

    asked = Source.parse(source)
    path = Path(asked.path)
    if (path.is_dir() or path.is_file()) and not sharded.find(asked.path):
        listing = _listed(path)
        found, place = ([], None) if listing and listing.files else _tables(path, listing, asked.reading, root)
        if found and place:
            every = tables.data_of(asked.path, found, place, asked.reading, NOTHING).split("all")
            every = dataclasses.replace(every, name="train")
        else:
            assert listing is not None
            names, read = listing.files, listing.read
            marks = identity.marks(names, [*map(listing.size, names)])
            every = Split("train", names, np.zeros(len(names), np.int64), Keyed(read, names), marks=marks)
        if len(every) < 2:
            raise UserError(f"{source}: {console.many(len(every), 'image')}; give a folder or a zip of more")
    else:
        every = open_data(source, root, seed).split("all")
        every = dataclasses.replace(every, name="train", targets=np.zeros(len(every), np.int64))
    data = Data(source, ("images",), {"train": every}, seed=seed, images=identity.summary([every.marks]))
    _hold_out(data, 0.1)
    return data


def _hold_out(data: Data, fraction: float) -> None:
    """Make a seeded, stratified `fraction` of train the val split, of whole groups where there are any."""
    data.val_fraction = fraction
    data.hold_out(_drawn(data.splits["train"], fraction, data.seed))


def _drawn(pool: Split, fraction: float, seed: int) -> splitting.Ints:
    if pool.groups is None:
        return splitting.stratified(pool.spread, fraction, seed)
    part = splitting.in_whole_groups(pool.spread, pool.groups, (1 - fraction, fraction), seed)
    return np.flatnonzero(part == 1)


def of_card(card: Card, source: str | None, root: Path | None = None, opener: Opener = open_data) -> Data:
    """The data a bundle names as its own (or `source` instead), its classes put in the bundle's order.

    Where train and val were drawn from one folder, val is what was held out in training, however the folder is
    spelled now, copied, zipped, or added to; a line says so where it has changed. `opener` is its task's (see
    `tasks.data_of`). Raises `UserError`.
    """
    trained_on = card.data.get("source")
    name = source or trained_on
    if not name:
        raise UserError("the bundle doesn't say what data it was trained on; name some")
    if source and trained_on and source == Source.parse(str(trained_on)).path:
        name = trained_on  # and it is read as it was
    try:
        val = card.data.get("val_fraction") if name == trained_on else None
        seed = card.data.get("split_seed", 0)
        data = opener(str(name), root, seed, val)
    except UserError as e:
        raise e if source else UserError(f"the data the bundle was trained on can't be opened; name some ({e})") from e
    _as_trained(data, card, name == trained_on)
    return in_order(data, card.labels) if card.labels else data


def _as_trained(data: Data, card: Card, same_name: bool) -> None:
    """Hold out again what was held out when the card's network was trained, where it is among the images."""
    pool, then = data.pool, card.data.get("images") or {}
    fold = card.data.get("fold")
    if pool is None or pool.marks is None:  # splits of its own, or a set that never changes
        data.as_trained = same_name
        if pool is not None and fold and 0 <= fold[0] < fold[1] <= len(pool):
            number = splitting.folds(pool.spread, pool.groups, fold[1], data.seed)
            data.hold_out(np.flatnonzero(number == fold[0]))
        return
    known = identity.unpack(card.data.get("held_out"))
    held = np.flatnonzero(np.isin(pool.marks, known))
    if len(held):
        data.hold_out(held)
        data.as_trained = True
        if then != data.images:
            console.note(
                f"{data.source} has changed since training ({then.get('count', '?')} images then, "
                f"{(data.images or {})['count']} now): {len(held)} of the {len(known)} held out then are there, and "
                "are what counts as held out"
            )
        return
    before, now = sum(card.data.get("counts", {}).values()), sum(map(len, data.splits.values()))
    fraction = card.data.get("val_fraction")
    if not len(known) and before == now and fraction:  # a card of before they had the images' marks: the same draw
        data.hold_out(_drawn(pool, fraction, data.seed))
        data.as_trained = True
    elif same_name:
        console.note(
            f"{data.source} has changed since training ({before} images then, {now} now): images that the network was "
            "trained on may be among those that are scored"
        )


def _digits() -> Data:
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = np.rint(raw.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]
    targets = raw.target.astype(np.int64)
    names = [f"digits/{i:04d}" for i in range(len(targets))]
    labels = tuple(str(i) for i in range(10))
    return Data("digits", labels, {"train": Split("train", names, targets, Keyed(Image.fromarray, pixels))}, "glyph")


def open_positions(path: str) -> npt.NDArray[np.float64]:
    """The positions of a table [N, 2], degrees, whatever else is in it. Raises `UserError`."""
    where = Path(path)
    if not where.is_file():
        raise UserError(f"{path}: no such table of positions")
    text = where.suffix.lower() in (*TABLES, LIST)
    found = [text_tables.of_text(text_tables.read_bytes(where), path)] if text else arrow.find(where)
    said = [p for table in found for p in POSITIONS.said(table, {}, Reading(), 0) if p is not None]
    if not said:
        raise UserError(f"{path}: no positions in it")
    return np.array(said, np.float64)
