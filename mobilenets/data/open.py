"""One door to every kind of data: a folder, a zip, shards, a named set. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from mobilenets import console
from mobilenets.data import identity
from mobilenets.data.dataset import Data, Keyed, Split, in_order, stratified
from mobilenets.data.folder import from_listing, list_folder, list_zip
from mobilenets.errors import UserError
from mobilenets.model.card import Card

BY_NAME = "name:"  # before the path of images whose classes are in their names: Abyssinian_12.jpg
Opener = Callable[[str, "Path | None", int, "float | None"], Data]  # source, root, seed, val


def open_data(source: str, root: Path | None = None, seed: int = 0, val: float | None = None) -> Data:
    """Open a folder, a zip, shards (their folder or address) or a named set; "name:FOLDER" has classes in files' names.

    Where there is no val split, a seeded stratified share of train becomes it: `val`, or a fifth (a tenth where there
    is a test split). A smaller share is a part of a larger one.

    Raises `UserError` for one that isn't there or has fewer than two classes, and for `val` where there is a val split.
    """
    from mobilenets.data import shard_reader as sharded

    if val is not None and not 0 < val < 1:
        raise UserError(f"val is a share of the training images, above 0 and below 1, not {val:g}")
    by_name = source.startswith(BY_NAME)
    path = Path(source.removeprefix(BY_NAME))
    if sharded.find(source):
        data = sharded.open_shards(source)
    elif path.is_dir():
        data = from_listing(source, list_folder(path), by_name)
    elif path.is_file():
        data = from_listing(source, list_zip(path), by_name)
    elif source == "digits":
        data = _digits()
    else:
        from mobilenets.data.named import open_named

        data = open_named(source, root)
    data.seed = seed
    if len(data.labels) < 2:
        have = f"only one class, {data.labels[0]!r}" if data.labels else "no class folders with images"
        raise UserError(f"{source}: {have}; classification needs a folder of images for each of at least two classes")
    if "train" in data.splits and "val" not in data.splits:
        _hold_out(data, val or (0.1 if "test" in data.splits else 0.2))
    elif val is not None:
        raise UserError(f"{source} has a val split of its own: leave out --val")
    return data


def spelled(source: str | Path, class_from_name: bool) -> str:
    """How `open_data` is told of a source."""
    return f"{BY_NAME if class_from_name else ''}{source}"


def open_unlabelled(source: str, root: Path | None = None, seed: int = 0) -> Data:
    """All images of a folder, a zip or a named set as one class, whatever folders they are in; a tenth is held out."""
    from mobilenets.data import shard_reader as sharded

    path = Path(source)
    if (path.is_dir() or path.is_file()) and not sharded.find(source):
        listing = list_folder(path) if path.is_dir() else list_zip(path)
        names, read = listing.files, listing.read
        if len(names) < 2:
            raise UserError(f"{source}: {console.many(len(names), 'image')}; give a folder or a zip of more")
        marks = identity.marks(names, [*map(listing.size, names)])
        every = Split("train", names, np.zeros(len(names), np.int64), Keyed(read, names), marks=marks)
    else:
        every = open_data(source, root, seed).split("all")
        every = dataclasses.replace(every, name="train", targets=np.zeros(len(every), np.int64))
    data = Data(source, ("images",), {"train": every}, seed=seed, images=identity.summary([every.marks]))
    _hold_out(data, 0.1)
    return data


def _hold_out(data: Data, fraction: float) -> None:
    """Make a seeded, stratified `fraction` of train the val split."""
    data.val_fraction = fraction
    data.hold_out(stratified(data.splits["train"].targets, fraction, data.seed))


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
    if pool is None or pool.marks is None:  # splits of its own, or a set that never changes
        data.as_trained = same_name
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
        data.hold_out(stratified(pool.targets, fraction, data.seed))
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
