"""Pretrained weights that a training can start from: those brought in a folder, those in caches, those to be fetched.

A folder's files are recognised by their tensors, once: what was found is kept by path, size and date. No torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilenets import console, files, web
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError
from mobilenets.model import imagenet
from mobilenets.model.bundle import Bundle, find_bundle, is_bundle, is_file
from mobilenets.model.card import Card
from mobilenets.model.convert import catalogue, fetched, formats
from mobilenets.model.convert.weights import foreign_bundle, open_foreign

INDEX = "weights.json"  # in the cache: what each file of a folder of weights holds
MOST = 2000  # files of a folder that are looked at
DEPTH = 4  # folders in one another: `fetch --to` makes two


@dataclass(frozen=True)
class Start:
    """Weights of the network `name` at a width, trained at `resolution`; `source` is a path, or a published name.

    `top1`: of ImageNet, percent, where it is known. `here`: on this machine already.
    """

    source: str
    name: str
    alpha: float
    resolution: int
    top1: float | None
    here: bool

    def fits(self, arch: Arch) -> bool:
        """Whether they are of this network and width, at whatever resolution."""
        return (self.name, self.alpha) == (arch.name, arch.alpha)

    def load(self, folder: Path | None = None) -> Bundle:
        """The bundle of them; published ones are fetched, or found in `folder`. Raises `UserError`."""
        made = opened(self.source, folder)
        if (made.card.arch.name, made.card.arch.alpha) != (self.name, self.alpha):
            raise UserError(f"{self.source}: no longer the weights that it was when it was looked at; try again")
        return made


def opened(source: str | Path, folder: Path | None = None) -> Bundle:
    """The bundle that `--init` names: one's folder, a run's or the package's; a file of weights; published ones' name.

    Raises `UserError`.
    """
    with formats.path_errors(Path(source)):
        if catalogue.is_name(str(source)) or (Path(source).is_file() and not is_file(Path(source))):
            return _foreign(str(source), folder)
        return Bundle.load(find_bundle(Path(source)))


def _foreign(source: str, folder: Path | None) -> Bundle:
    """A bundle that is in no folder, its digest that of the weights: runs record what they began with."""
    made = foreign_bundle(open_foreign(source, folder))
    digest = hashlib.sha256()
    for name in sorted(made.tensors):
        digest.update(np.ascontiguousarray(made.tensors[name]).tobytes())
    return Bundle(made.card, made.tensors, digest.hexdigest())


def available(folder: Path | None = None) -> list[Start]:
    """Those in `folder`, or else in $MOBILENETS_WEIGHTS; and the published ones that are here or can be fetched.

    Raises `UserError` for a folder that isn't there or has no weights of a network that is known.
    """
    own = folder or (Path(os.environ["MOBILENETS_WEIGHTS"]) if os.environ.get("MOBILENETS_WEIGHTS") else None)
    brought = in_folder(own) if own else []
    published = [
        Start(w.name, w.arch, w.alpha, w.resolution, w.top1, fetched.located(w, folder) is not None)
        for w in catalogue.weights().values()
    ]
    if all(s.here for s in published) or not web.reachable(catalogue.mirrored(f"{catalogue.KERAS}/")):
        published = [s for s in published if s.here]
    return [*brought, *published]


def nearest(starts: Sequence[Start], arch: Arch) -> Start | None:
    """Of weights of this network and width those that are here, of the nearest resolution, the most accurate."""
    fitting = [s for s in starts if s.fits(arch)]
    return min(fitting, key=lambda s: (not s.here, abs(s.resolution - arch.resolution), -(s.top1 or 0.0)), default=None)


def in_folder(folder: Path) -> list[Start]:
    """What the files and bundles of a folder, and of folders in it, are weights of. Raises `UserError`.

    A line says which can't be used, and why.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: {'not a' if folder.exists() else 'no such'} folder; --weights takes one of weights")
    index = _Index()
    found, strangers = [], []
    for path in _candidates(folder):
        try:
            found.append(index.of(path))
        except UserError as e:
            strangers.append(f"{path.name} ({str(e).removeprefix(f'{path}: ')})")
    index.save()
    if strangers:
        what = console.many(len(strangers), "file")
        console.note(console.plain(f"{folder}: {what} left out: {'; '.join(strangers)}"))
    if not found:
        raise UserError(
            f"{folder}: no weights of a network that is known; `mobilenets fetch NAMES --to {folder}` brings some, and "
            "`mobilenets list --weights` has the names"
        )
    return found


def _candidates(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Bundles, and files of a kind that can be read, in the order of their names. Raises `UserError`.

    For a folder that can't be read, and for too many files.
    """

    def refuse(e: OSError) -> None:
        raise UserError(f"{e.filename}: can't be read ({e.strerror})") from e

    count = 0
    for where, folders, names in os.walk(folder, onerror=refuse):
        here = Path(where)
        folders.sort()
        if len(here.relative_to(folder).parts) >= depth:
            folders.clear()
        if is_bundle(here):
            folders.clear()
            yield here
            continue
        for name in sorted(names):
            count += 1
            if count > MOST:
                raise UserError(f"{folder}: over {MOST:,} files; --weights takes a folder of weights")
            if Path(name).suffix.lower() in formats.READERS or is_file(here / name):
                yield here / name


class _Index:
    """What was recognised before, by path; a file of another size or date is looked at anew.

    What wasn't is looked at each time: what is missing may have come, as a library that reads it.
    """

    def __init__(self) -> None:
        self.path = files.cache_root() / INDEX
        self.changed = False
        self.rows: dict[str, Any] = {}
        if self.path.exists():
            with contextlib.suppress(UserError):  # a damaged one is made again
                self.rows = dict(files.read_json(self.path, (), "an index of weights"))

    def of(self, path: Path) -> Start:
        """What it holds. Raises `UserError` for what can't be used."""
        if is_bundle(path):
            return _of_bundle(path)
        with formats.path_errors(path):
            seen = path.stat()
        key, stamp = str(path.resolve()), [seen.st_size, seen.st_mtime_ns]
        row = self.rows.get(key)
        if isinstance(row, Mapping) and row.get("stamp") == stamp and row.get("start"):
            return Start(str(path), **row["start"], here=True)
        start = _start(foreign_bundle(open_foreign(str(path))).card, path)
        kept = {k: v for k, v in dataclasses.asdict(start).items() if k not in ("source", "here")}
        self.rows[key] = {"stamp": stamp, "start": kept}
        self.changed = True
        return start

    def save(self) -> None:
        if self.changed:
            with contextlib.suppress(UserError):  # where the cache can't be written, they are looked at again
                files.write_json(self.path, self.rows)


def _of_bundle(path: Path) -> Start:
    card = Bundle.load(path).card
    if card.precision != "float32":
        raise UserError(f"{card.precision}, and training needs float")
    return _start(card, path)


def _start(card: Card, path: Path) -> Start:
    top1 = next((m.value for m in card.metrics if m.name == "top1" and imagenet.is_imagenet(card.labels)), None)
    return Start(str(path), card.arch.name, card.arch.alpha, card.arch.resolution, top1, True)
