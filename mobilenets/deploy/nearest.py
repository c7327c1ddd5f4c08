"""The images that a network finds most alike, by the cosine of their features. No torch but in its engine."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets import console, files, tasks
from mobilenets.arch.heads import FEATURES
from mobilenets.data.dataset import Data, Split
from mobilenets.deploy import engines, predict
from mobilenets.deploy.engines import Engine
from mobilenets.deploy.predict import Model, Prediction
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.images import BadImage
from mobilenets.tasks import features
from mobilenets.tasks.features import Features

MOST = 250_000  # images that are searched: 1.3 GB of V2's features
Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Example:
    """An image among those searched: its name, its class ("" where it has none that the network knows), its cosine."""

    image: str
    label: str
    cosine: float

    def __str__(self) -> str:
        return f"{self.image} {self.label} {self.cosine:.3f}" if self.label else f"{self.image} {self.cosine:.3f}"


@dataclass(frozen=True)
class Nearest:
    """The examples nearest to an image, the nearest first."""

    examples: tuple[Example, ...]

    def to_json(self) -> dict[str, Any]:
        return {"nearest": [vars(e) for e in self.examples]}

    def __str__(self) -> str:
        return "\t".join(map(str, self.examples))


@dataclass(frozen=True)
class Gallery:
    """Images to search: their names, their classes' names, their features [N, K], each of length 1."""

    engine: Engine
    names: tuple[str, ...]
    labels: tuple[str, ...]
    rows: Rows

    def nearest(self, values: npt.NDArray[np.float32], count: int) -> Nearest:
        """Those nearest to features [K]."""
        cosines = self.rows @ _unit(values.reshape(1, -1))[0]
        order = np.argsort(-cosines, kind="stable")[:count].tolist()
        return Nearest(tuple(Example(self.names[i], self.labels[i], round(float(cosines[i]), 6)) for i in order))

    def stream(self, images: Iterable[Any], count: int) -> Iterator[Prediction]:
        """What is nearest to each image, `count` of them, one after another."""
        for p in Model(self.engine).stream(images):
            found = self.nearest(p.answer.values, count) if isinstance(p.answer, Features) else p.answer
            yield dataclasses.replace(p, answer=found)


def gallery(source: Bundle, among: str | None, root: Path | None = None) -> Gallery:
    """The images of `among`, or those that a network was trained on, by its pooled features.

    Of data with a train split, or that the network was trained on, the train split; else all of it. Features are kept
    in the cache, by the network's and the images' digests. Raises `UserError`.
    """
    data, unlabelled = tasks.images_of(source.card, among, root)
    split = data.split(_searched(data, bool(unlabelled)))
    if len(split) > MOST:
        raise UserError(f"{data.source}: {len(split):,} images are more than are searched ({MOST:,}); name fewer")
    of = features.of_bundle(source)
    engine: Engine = engines.module("torch").TorchEngine(of, 1)
    path = files.cache_root() / "features" / f"{_digest(source, data, split)}.npy"
    rows = _kept(path, len(split))
    if rows is None:
        rows = _computed(engine, split)
        if source.digest:
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.atomic_file(path) as tmp, tmp.open("wb") as f:
                np.save(f, rows)
    there = np.flatnonzero(np.isfinite(rows).all(1))
    if not len(there):
        raise UserError(f"{data.source}: no image can be read to compare with")
    named = source.card.labels if not unlabelled and source.card.labels else ()
    return Gallery(
        engine,
        tuple(split.names[i] for i in there.tolist()),
        tuple(_called(split.targets[i], named) for i in there.tolist()),
        _unit(rows[there]),
    )


def _called(target: Any, named: tuple[str, ...]) -> str:
    """An image's class, or its tags; nothing where none are known."""
    if np.ndim(target):
        return ", ".join(c for c, holds in zip(named, target, strict=False) if holds == 1)
    return named[int(target)] if named else ""


def _searched(data: Data, unlabelled: bool) -> str:
    own = data.pool is None or data.as_trained
    return "train" if own and not unlabelled and "train" in data.splits else "all"


def _digest(source: Bundle, data: Data, split: Split) -> str:
    """Of the network and of which images are searched, in which order."""
    of = hashlib.sha256(f"{source.digest}\0{data.source if split.marks is None else ''}\0".encode())
    for name in split.names:
        of.update(f"{name}\0".encode(errors="surrogateescape"))
    if split.marks is not None:
        of.update(split.marks.tobytes())
    return of.hexdigest()[:32]


def _kept(path: Path, count: int) -> Rows | None:
    """Features that were computed before; None of a file that isn't there, or is damaged."""
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return rows if rows.dtype == np.float32 and rows.ndim == 2 and len(rows) == count else None


def _computed(engine: Engine, split: Split) -> Rows:
    """Each image's features [N, K]; of one that can't be read, NaN."""
    (width,) = engine.card.outputs[FEATURES]
    rows = np.full((len(split), width), np.nan, np.float32)
    with console.progress() as bar:
        task = bar.add_task("features", total=len(split), status="")
        for i, said in predict.stream(engine, range(len(split)), lambda i: split.pixels(i, engine.card.preprocess)):
            bar.advance(task)
            if not isinstance(said, BadImage):
                rows[i] = said[FEATURES][0]
    return rows


def _unit(rows: Rows) -> Rows:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)
