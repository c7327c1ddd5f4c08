"""Any number of images to answers: decoding and inference share all cores, memory stays constant."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from mobilenets import tasks
from mobilenets.data.folder import is_hidden, is_image_name, open_zip, read_member, unreadable
from mobilenets.deploy import engines
from mobilenets.deploy.engines import Engine, Outputs
from mobilenets.errors import UserError
from mobilenets.model.images import UNREADABLE, BadImage, Pixels, upright_rgb
from mobilenets.tasks.classify import Labels
from mobilenets.tasks.task import Answer

T = TypeVar("T")
BATCH = 8


@dataclass(frozen=True)
class Prediction:
    """What a network's task makes of one image; or why it couldn't be read."""

    image: str
    answer: Answer | None
    error: str | None = None

    @property
    def top(self) -> tuple[tuple[str, float], ...]:
        """A classifier's best labels with their probabilities, best first; none of an image that couldn't be read."""
        return self.answer.top if isinstance(self.answer, Labels) else ()

    def to_json(self) -> dict[str, Any]:
        return {"image": self.image, **(self.answer.to_json() if self.answer else {"error": self.error})}

    def __str__(self) -> str:
        return f"{self.image}\t{self.answer or self.error}"


def stream(
    engine: Engine, items: Iterable[T], read: Callable[[T], Pixels], batch: int = BATCH, cores: int | None = None
) -> Iterator[tuple[T, Outputs | BadImage]]:
    """Each item with its outputs, of one image each, or the `BadImage` that `read` raised; in order.

    Each thread decodes a batch and runs it, so every core is busy with whichever there is more of; only a few batches
    are in flight at any time.
    """
    cores = cores or os.cpu_count() or 1
    turn = threading.Lock()  # for an engine that uses all cores itself

    def work(chunk: tuple[T, ...]) -> list[tuple[T, Outputs | BadImage]]:
        decoded: list[Pixels | BadImage] = []
        for item in chunk:
            try:
                decoded.append(read(item))
            except BadImage as e:
                decoded.append(e.with_traceback(None))  # which would hold this frame, and it the error
        good = [d for d in decoded if not isinstance(d, BadImage)]
        outputs: Outputs = {}
        if good:
            with contextlib.nullcontext() if engine.concurrent else turn:
                outputs = engine(np.stack(good))
        each = iter([{name: x[n : n + 1] for name, x in outputs.items()} for n in range(len(good))])
        return [(i, d if isinstance(d, BadImage) else next(each)) for i, d in zip(chunk, decoded, strict=True)]

    chunks = _chunks(items, batch)
    with ThreadPoolExecutor(cores) as pool:
        flying: deque[Future[list[tuple[T, Outputs | BadImage]]]] = deque()
        try:
            for chunk in itertools.islice(chunks, 2 * cores):
                flying.append(pool.submit(work, chunk))
            while flying:
                done = flying.popleft().result()
                for chunk in itertools.islice(chunks, 1):
                    flying.append(pool.submit(work, chunk))
                yield from done
        finally:
            for f in flying:
                f.cancel()


def _chunks(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    it = iter(items)
    while chunk := tuple(itertools.islice(it, size)):
        yield chunk


@dataclass(frozen=True)
class Source:
    """An image to read: a file, or a member of an open zip.

    All threads share the zip: its directory is all that grows with the number of images, so there should be one.
    """

    name: str
    path: Path | zipfile.ZipFile
    member: str = ""


_zip_turn = threading.Lock()  # a ZipFile is not for several threads at once


def sources(paths: Iterable[Path]) -> Iterator[Source]:
    """The images at `paths` (files, folders, zips), found as they are needed.

    `UserError` at once for a path that isn't there, and when its turn comes for one with no images.
    """
    paths = list(paths)
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
    return itertools.chain.from_iterable(map(_images_at, paths))


def _images_at(path: Path) -> Iterator[Source]:
    if path.is_dir():
        found, others = False, []
        for here, subdirs, names in os.walk(path):
            subdirs[:] = sorted(d for d in subdirs if not is_hidden(d))
            others += [n for n in names if n.lower().endswith(UNREADABLE)]
            for n in sorted(names):
                if is_image_name(n):
                    found = True
                    yield Source(str(Path(here) / n), Path(here) / n)
        if not found:
            raise UserError(f"{path}: no images in this folder{unreadable(others, '; ')}")
    elif zipfile.is_zipfile(path):
        z = open_zip(path)  # closed with the last Source that names it
        found = False
        for info in z.infolist():
            if is_image_name(info.filename):
                found = True
                yield Source(f"{path}/{info.filename}", z, info.filename)
        if not found:
            raise UserError(f"{path}: no images in this zip")
    else:
        yield Source(str(path), path)


class Model:
    """A network ready to answer: `mobilenets.load(path).predict(images)`."""

    def __init__(self, engine: Engine, source: tuple[Path, int] | None = None) -> None:
        """`source`: the file and the threads that `engine` was loaded with, by which the model can be pickled."""
        self.engine, self.source = engine, source
        self.card = engine.card
        self.task = tasks.of(engine.card)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source is None:
            raise UserError("this network can't be pickled: it wasn't loaded from a file; pickle its bundle")
        return load, self.source

    def predict(self, images: Iterable[Any], top: int = 5) -> list[Prediction]:
        """What the network says of each image: a path, a PIL image, or uint8 RGB pixels [H, W, 3]. `top`: labels.

        An image that can't be read gives a Prediction with its `error` set.
        """
        return list(self.stream(images, top))

    def stream(self, images: Iterable[Any], top: int = 5) -> Iterator[Prediction]:
        """`predict` for any number of images, one at a time, at constant memory."""
        sizes: dict[int, tuple[int, int]] = {}  # of the images under way

        def read(numbered: tuple[int, Any]) -> Pixels:
            pixels, sizes[numbered[0]] = self._read(numbered[1])
            return pixels

        for (i, item), outputs in stream(self.engine, enumerate(images), read):
            name = (
                item.name if isinstance(item, Source) else str(item) if isinstance(item, str | Path) else f"image {i}"
            )
            if isinstance(outputs, BadImage):
                yield Prediction(name, None, str(outputs))
            else:
                yield Prediction(name, self.task.decode(outputs, self.card, [sizes.pop(i)], top)[0])

    def _read(self, item: Any) -> tuple[Pixels, tuple[int, int]]:
        """An image as the network takes it, and its own (width, height)."""
        p = self.card.preprocess
        if isinstance(item, Source):
            return p.read_sized(item.path if isinstance(item.path, Path) else _member(item.path, item), item.name)
        if isinstance(item, str | Path):
            return p.read_sized(Path(item))
        if isinstance(item, np.ndarray):
            if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3:
                raise UserError(f"pixels must be uint8 [H, W, 3] RGB, not {item.dtype} {list(item.shape)}")
            return p.fit(Image.fromarray(item)), (item.shape[1], item.shape[0])
        if isinstance(item, Image.Image):
            try:
                image = upright_rgb(item)
                return p.fit(image), image.size
            except Exception as e:  # opened lazily, so damaged perhaps; Pillow's decoders raise nearly anything
                raise BadImage(f"damaged image ({e})") from e
        raise UserError(f"not an image: {type(item).__name__}; give a path, a PIL image or a uint8 array")


def _member(z: zipfile.ZipFile, item: Source) -> bytes:
    with _zip_turn:
        return read_member(z, item.member, item.name)


def load(path: str | Path, threads: int = 1) -> Model:
    """The network at `path`: a bundle's folder, a run's, or an exported file. Raises `UserError`."""
    found = engines.resolve(Path(path))
    return Model(engines.load(found, threads), (found.absolute(), threads))
