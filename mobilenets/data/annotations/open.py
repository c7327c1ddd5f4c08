"""One door to boxes: a folder, a zip, a file of annotations, shards. No torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from mobilenets.data.annotations import formats
from mobilenets.data.annotations.settle import settled
from mobilenets.data.dataset import Data
from mobilenets.data.folder import TABLES, list_folder, list_zip
from mobilenets.data.listing import Listing
from mobilenets.data.open import check_split, held_out, take_val
from mobilenets.data.source import Source
from mobilenets.errors import UserError

FILES = (".json", ".xml", ".yaml", ".yml", *TABLES)  # of annotations, where one is given itself


def open_boxes(source: str, root: Path | None = None, seed: int = 0, val: float | None = None) -> Data:
    """Open images with boxes: each split's targets are a list of `Boxes`.

    A folder, a zip or a file of COCO JSON, Pascal VOC XML, YOLO text, CSV with a row for each box, Label Studio JSON or
    CVAT XML; images with masks beside them; shards. `root`: the folder of the images, where they don't lie beside a
    file of annotations. Splits are the data's own; where it has no val, a seeded share of train becomes it, of images
    that hold every class in its share: `val`, or a fifth (a tenth where there is a test split). Images without boxes
    are kept. What was left out, and what was read otherwise than it is said, is in `left_out` and `faults`.

    Raises `UserError` for a source that isn't there or holds no boxes, and for ways of reading that boxes don't have.
    """
    check_split(seed, val)
    asked = Source.parse(source)
    reading = asked.reading
    if any((reading.class_from_name, reading.label_delimiter, reading.limit_per_class, reading.levels)):
        refused = ("--class-from-name", "--label-delimiter", "--limit-per-class", "--levels")
        option = next(o for o in reading.options() if o in refused)
        raise UserError(f"{asked.path}: {option} is for images that have one class, or tags; boxes have a class each")
    data = _opened(asked, root)
    data.source, data.seed = source, seed
    if reading.val_from:
        take_val(data, asked, root, _opened)
    return held_out(data, val)


class NoAnnotations(UserError):
    """A folder or a file that holds no boxes of any kind that is read here."""


def _opened(asked: Source, root: Path | None) -> Data:
    """What there is, with the splits that it has."""
    from mobilenets.data import shard_reader as sharded

    if sharded.find(asked.path):
        data = sharded.open_shards(asked.path)
        if any(isinstance(s.targets, np.ndarray) for s in data.splits.values()):
            raise NoAnnotations(f"{asked.path}: shards of images with a class each, and no boxes")
        return data
    path = Path(asked.path)
    if not path.exists():
        raise UserError(f"{asked.path}: no such folder or file")
    listing, only = _listed(path, root)
    said = formats.find(asked.path, listing, asked.reading, only)
    if said is None:
        raise NoAnnotations(f"{asked.path}: no boxes of a kind that is read here: {formats.KNOWN}")
    return settled(asked.path, said, listing)


def _listed(path: Path, root: Path | None) -> tuple[Listing, str]:
    """What there is, and the name of the one file that was given, if it is one of annotations."""
    if path.is_dir():
        return list_folder(path), ""
    if path.suffix.lower() not in FILES:
        return list_zip(path), ""
    if root is None:
        return list_folder(path.parent), path.name
    images, name = (list_zip if root.is_file() else list_folder)(root), path.name
    own = list_folder(path.parent)

    def read(of: str) -> Path | bytes:
        return path if of == name else images.read(of)

    def size(of: str) -> int:
        return own.size(name) if of == name else images.size(of)

    made = dataclasses.replace(images, read=read, size=size, notes=(name,), tables=(name,))
    return made, name
