"""Any number of images to answers: decoding and inference share all cores, memory stays constant."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias, TypeVar, overload

import numpy as np
from PIL import Image

from mobilenets import console, files, processor, tasks
from mobilenets.arguments import StrPath, checked
from mobilenets.data.alignment import Faces, Finder, Located, placed, sought, template_of
from mobilenets.deploy import engines
from mobilenets.deploy.engines import Engine, Outputs
from mobilenets.deploy.inputs import TAKES, Source, content, each, name_of, named, opened
from mobilenets.deploy.tiles import Tiles, cut
from mobilenets.deploy.trust import Doubts
from mobilenets.errors import UserError
from mobilenets.model.images import BadImage, Pixels, open_rgb
from mobilenets.model.pictures import Picture, is_picture, rgb_image
from mobilenets.tasks.classify import Labels
from mobilenets.tasks.detect.answers import Detection, Detections
from mobilenets.tasks.task import Answer, Joining, Task

OneImage: TypeAlias = bytes | bytearray | memoryview | BinaryIO | Image.Image
Size: TypeAlias = tuple[int, int]  # width and height in pixels
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

    @property
    def boxes(self) -> tuple[Detection, ...]:
        """A detector's objects, the surest first: `label`, `score`, `box` x1, y1, x2, y2 in pixels; else none."""
        return self.answer.boxes if isinstance(self.answer, Detections) else ()

    @property
    def label(self) -> str | None:
        """A classifier's best label; None where that is unsure, and of an image that couldn't be read."""
        return self.top[0][0] if isinstance(self.answer, Labels) and not self.answer.unsure else None

    def to_json(self) -> dict[str, Any]:
        return {"image": self.image, **(self.answer.to_json() if self.answer else {"error": self.error})}

    def _repr_html_(self) -> str:
        best = [(label, f"{100 * p:.1f}%") for label, p in self.top]
        return console.facts(self.image, best or [("error" if self.error else "answer", self.error or self.answer)])

    def __str__(self) -> str:
        return f"{self.image}\t{self.answer or self.error}"


class Answering(Protocol):
    """What `stream` runs: uint8 [N, H, W, 3] -> outputs by name; `concurrent`: by several threads at once."""

    @property
    def name(self) -> str: ...

    @property
    def concurrent(self) -> bool: ...

    def __call__(self, images: Pixels) -> Outputs: ...


def stream(
    engine: Answering, items: Iterable[T], read: Callable[[T], Pixels], batch: int = BATCH, cores: int | None = None
) -> Iterator[tuple[T, Outputs | BadImage]]:
    """Each item with its outputs, of one image each, or the `BadImage` that `read` raised; in order.

    Each thread decodes a batch and runs it, so every core is busy with whichever there is more of; only a few batches
    are in flight at any time.
    """
    cores = cores or processor.cores()
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


class Model:
    """A network ready to answer: `mobilenets.load(path).predict(images)`."""

    def __init__(
        self,
        engine: Engine,
        source: tuple[Any, ...] | None = None,
        doubts: Doubts | None = None,
        task: Task | None = None,
        faces: Faces | Finder | None = None,
        tiles: Tiles | None = None,
    ) -> None:
        """`doubts`, and `task`, which reads the answers: those of its card, if left out. `faces`: where landmarks are.

        `source`: the arguments of `load` that it was loaded with, by which the model can be pickled. `tiles`: what
        images are looked at in. Raises `UserError` where the task can't join what it says of them.
        """
        self.engine, self.source = engine, source
        self.card = engine.card
        self.task = task or tasks.of(engine.card)
        self.doubts = doubts or Doubts.of(engine.card)
        self.template, self.faces, self.tiles = template_of(engine.card), faces, tiles
        if tiles and not isinstance(self.task, Joining):
            raise UserError(f"--tiles is of boxes (--task detect): this network is for {engine.card.task}")

    def __repr__(self) -> str:
        return f"<{self.card.arch.title}, {self.card.precision}, in {self.engine.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source is None:
            raise UserError("this network can't be pickled: it wasn't loaded from a file; pickle its bundle")
        return load, self.source

    @overload
    def predict(self, images: OneImage, top: int = 5) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, images: StrPath | Picture, top: int = 5) -> Any: ...  # of a folder or a batch, it is a list
    @overload
    def predict(self, images: Iterable[OneImage | StrPath | Picture], top: int = 5) -> list[Prediction]: ...
    @checked
    def predict(self, images: Any, top: int = 5) -> Any:
        """What the network says: of one image, its `Prediction`; of several, a list of them, in order.

        Parameters
        ----------
        images
            One image: its path, the bytes of its file, an open file, an image of Pillow's, an array uint8 [H, W, 3],
            [H, W] or [H, W, 4], a tensor [C, H, W]; arrays and tensors may be floats from 0 to 1. Several: a folder, a
            zip, an array [N, H, W, C], a tensor [N, C, H, W], or anything that gives one after another.
        top
            Labels of a classifier, 1 or more.

        Returns
        -------
        Prediction or list of Prediction
            An image that can't be read gives a Prediction with its `error` set.

        Raises
        ------
        UserError
            For what is no image, a folder without any, an address.

        Examples
        --------
        >>> import mobilenets, numpy
        >>> model = mobilenets.load("cifar10-v1-0.25")
        >>> label, probability = model.predict("flowers/val/red/000.png").top[0]
        >>> len(model.predict("flowers/val")), len(model.predict(numpy.zeros((2, 32, 32, 3), "uint8"), top=1)[0].top)
        (24, 1)
        """
        if top < 1:
            raise UserError(f"top must be 1 or more, not {top}")
        found, one = each(images)
        made = list(self.stream(found, top))
        return made[0] if one else made

    def stream(self, images: Iterable[Any], top: int = 5) -> Iterator[Prediction]:
        """`predict` for any number of images, one at a time, at constant memory."""
        if self.tiles:
            yield from self._tiled(images, self.tiles, top)
            return
        sizes: dict[int, Size] = {}  # of the images under way
        _ = self.where  # says at once what is missing

        def read(numbered: tuple[int, Any]) -> Pixels:
            i, item = numbered
            pixels, sizes[i] = self.prepare(item, i)
            return pixels

        for (i, item), outputs in stream(self.engine, enumerate(images), read):
            name = named(item, i)
            if isinstance(outputs, BadImage):
                yield Prediction(name, None, str(outputs))
            else:
                yield Prediction(name, self.answer(outputs, sizes.pop(i), top))

    @functools.cached_property
    def where(self) -> Located | None:
        """How images know their landmarks; None where the network takes them as they are. Raises `UserError`."""
        return sought(self.faces, self.template, "the network")

    def prepare(self, item: Any, number: int = 0, max_pixels: int | None = None) -> tuple[Pixels, Size]:
        """One image as the network takes it, uint8 [H, W, 3], and its own (width, height).

        `number`: what it is called by, where it has no name; `max_pixels`: of a file's bytes. Raises `BadImage`.
        """
        if self.where is None or self.template is None:
            return self._read(item, max_pixels)
        image = placed(self._image(item, number, max_pixels), named(item, number), self.where, self.template)
        return self.card.preprocess.fit(image), image.size

    def answer(self, outputs: Outputs, size: Size, top: int) -> Answer:
        """What the task reads in the outputs to one image, [1, *shape] each; `size`: its own (width, height)."""
        (answer,) = self.task.decode(outputs, self.card, [size], top)
        return self.doubts.judge(answer, outputs)

    def _tiled(self, images: Iterable[Any], tiles: Tiles, top: int) -> Iterator[Prediction]:
        """The same of images in tiles, whose answers are joined."""
        assert isinstance(self.task, Joining)
        p = self.card.preprocess
        said = stream(self.engine, cut(images, self._image, tiles), lambda piece: piece.fitted(p))
        for number, group in itertools.groupby(said, lambda one: one[0].number):
            answers, places = [], []
            seen: Outputs = {}
            for piece, outputs in group:
                name = named(piece.item, number)
                if isinstance(outputs, BadImage):
                    yield Prediction(name, None, str(outputs))
                    break
                seen, (left, upper, right, lower) = outputs, piece.tile
                answers += self.task.decode(outputs, self.card, [(right - left, lower - upper)], top)
                places.append(piece.tile)
            else:
                answer = self.task.joined(answers, places, places[0][2:], self.card)  # the first is all of the image
                yield Prediction(name, self.doubts.judge(answer, seen))

    def _image(self, item: Any, number: int, max_pixels: int | None = None) -> Image.Image:
        """An image as it is, decoded."""
        if isinstance(item, Source):
            return open_rgb(content(item), item.name)
        if isinstance(item, str | Path):
            return open_rgb(files.local(item))
        if isinstance(item, bytes | bytearray | memoryview):
            return open_rgb(bytes(item), named(item, number), max_pixels=max_pixels)
        if hasattr(item, "read"):
            return open_rgb(opened(item), named(item, number))
        if is_picture(item):
            return rgb_image(item)
        raise UserError(f"predict takes {TAKES}; got {type(item).__name__} for an image")

    def _read(self, item: Any, max_pixels: int | None) -> tuple[Pixels, Size]:
        """An image as the network takes it, and its own (width, height)."""
        p = self.card.preprocess
        if isinstance(item, Source):
            return p.read_sized(content(item), item.name)
        if isinstance(item, str | Path):
            return p.read_sized(files.local(item))
        if isinstance(item, bytes | bytearray | memoryview):
            return p.read_sized(bytes(item), max_pixels=max_pixels)
        if hasattr(item, "read"):
            return p.read_sized(opened(item), name_of(item, 0))
        if is_picture(item):
            image = rgb_image(item)
            return p.fit(image), image.size
        raise UserError(f"predict takes {TAKES}; got {type(item).__name__} for an image")


@checked
def load(
    path: StrPath,
    threads: int = 1,
    reject_below: float | None = None,
    faces: Faces | Finder | None = None,
    tiles: int | None = None,
    overlap: float | None = None,
) -> Model:
    """A network ready to answer, in the runtime that its file is for.

    Parameters
    ----------
    path
        An exported file, a bundle's folder, a run's (the smallest file that it ships), a bundle of the Hugging Face Hub
        (hf://user/name), or the name of a network that comes with the package.
    threads
        Threads that the runtime may use.
    reject_below
        The probability below which a classifier's answer is unsure, its `label` None; that of its card if left out, if
        it has one. Of a detector, the least score of its boxes, 0.3 if left out.
    faces
        Where the landmarks are, for a network that takes faces aligned: `Faces(landmarks="points.csv")`,
        `Faces(aligned="arcface")`, or what finds them, a function of an RGB image of Pillow's that gives five points
        [5, 2] in pixels, the eyes, the nose, the mouth's corners, or None where there is no face.
    tiles
        Of a detector: look at large images in tiles of so many pixels, and in all of them.
    overlap
        The share of a tile that the next one has in common with it, 0.2 if left out.

    Returns
    -------
    Model
        `predict` and `stream` take images; `card` says what it is; `engine(pixels)` takes uint8 [N, H, W, 3] of the
        card's size and gives its outputs by name, float32 [N, ...].

    Raises
    ------
    UserError
        For a path that isn't there, a file that is damaged or has no card, a runtime that isn't installed, an address.

    Examples
    --------
    >>> import mobilenets
    >>> mobilenets.load("cifar10-v1-0.25").card.labels[:3]
    ('airplane', 'automobile', 'bird')
    """
    if threads < 1:
        raise UserError(f"threads must be 1 or more, not {threads}")
    found = engines.resolve(Path(path))
    engine = engines.load(found, threads)
    source = (found.absolute(), threads, reject_below, faces, tiles, overlap)
    doubts = Doubts.of(engine.card, reject_below)
    return Model(engine, source, doubts, faces=faces, tiles=Tiles.asked(tiles, overlap))
