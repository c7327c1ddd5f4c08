"""Our own engine, `native/`: runs a .mnet file exported here, in one C library that is loaded by ctypes.

The file is mapped, not read: its weights are used where they lie. Sessions, which have the memory and the threads, are
for one call at a time: as many are made as calls are under way at once, and kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mobilenets.deploy.engines import Outputs, check_card, parse_card
from mobilenets.deploy.engines.guard import Guarded
from mobilenets.deploy.engines.native_library import opened
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Precision
from mobilenets.model.images import Pixels

NAME = "native"
ROOM = 256  # bytes of a message


def version() -> str:
    """The package's own: the library is a part of it."""
    from mobilenets import __version__

    opened()
    return str(__version__)


class Model:
    """A file in memory, verified: what sessions are made of."""

    def __init__(self, path: Path) -> None:
        self.path, self.lib = path, opened()
        try:
            with path.open("rb") as f:
                data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:
            raise UserError(f"{path}: not a readable .mnet file: {e}") from e
        view = np.frombuffer(data, np.uint8)
        why = ctypes.create_string_buffer(ROOM)
        self.handle = self.lib.mnet_open(view.ctypes.data, view.size, why, ROOM)
        if not self.handle:
            raise UserError(f"{path}: {why.value.decode(errors='replace')}")
        self.view = view
        weakref.finalize(self, _close, self.lib, self.handle, view)

    @property
    def card(self) -> bytes:
        size = ctypes.c_size_t()
        at = self.lib.mnet_card(self.handle, ctypes.byref(size))
        return ctypes.string_at(at, size.value)

    @property
    def image(self) -> tuple[int, int, int]:
        height, width = ctypes.c_int(), ctypes.c_int()
        self.lib.mnet_image(self.handle, ctypes.byref(height), ctypes.byref(width))
        return height.value, width.value, 3

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Their shapes, by name, in the file's order. A UserError where two have one name: the engine writes both."""
        found = {}
        rank, shape = ctypes.c_int(), (ctypes.c_int * 3)()
        count = self.lib.mnet_outputs(self.handle)
        for i in range(count):
            name = self.lib.mnet_output(self.handle, i, ctypes.byref(rank), shape)
            found[name.decode(errors="replace")] = tuple(shape[: rank.value])
        if len(found) < count:
            raise UserError(f"{self.path}: damaged: two of its outputs have the same name")
        return found

    @property
    def layers(self) -> list[tuple[str, int]]:
        """Name and group of each operation, in the order they are computed."""
        group = ctypes.c_int()
        return [
            (self.lib.mnet_layer(self.handle, i, ctypes.byref(group)).decode(errors="replace"), group.value)
            for i in range(self.lib.mnet_layer_count(self.handle))
        ]


def _close(lib: ctypes.CDLL, handle: int, view: object) -> None:
    lib.mnet_close(handle)
    del view  # what it was made of, until now


class Session:
    """Memory and threads to run a model; `isa`: a table of kernels by its name (scalar, avx2, ...), or the best."""

    def __init__(self, model: Model, threads: int, isa: str | None = None) -> None:
        self.model, lib = model, model.lib
        why = ctypes.create_string_buffer(ROOM)
        self.handle = lib.mnet_session(model.handle, threads, isa.encode() if isa else None, why, ROOM)
        if not self.handle:
            raise UserError(f"the native engine can't start: {why.value.decode(errors='replace')}")
        weakref.finalize(self, _end, lib, self.handle, model)

    @property
    def isa(self) -> str:
        return str(self.model.lib.mnet_isa(self.handle).decode())

    @property
    def memory_bytes(self) -> int:
        """What it holds, the file aside."""
        return int(self.model.lib.mnet_memory(self.handle))

    def run(self, images: Pixels) -> dict[str, npt.NDArray[np.float32]]:
        """Every output of uint8 [N, H, W, 3]. A UserError where another call of this session is under way."""
        images = np.ascontiguousarray(images)
        outputs, at = self._outputs(len(images))
        self._check(self.model.lib.mnet_run(self.handle, images.ctypes.data, len(images), at))
        return outputs

    def layer_ms(self, image: Pixels) -> list[float]:
        """Milliseconds of each operation on one image, uint8 [1, H, W, 3], as the first thread sees it."""
        image = np.ascontiguousarray(image)
        _, at = self._outputs(1)
        times = (ctypes.c_double * len(self.model.layers))()
        self._check(self.model.lib.mnet_layers(self.handle, image.ctypes.data, at, times))
        return [t / 1e6 for t in times]

    def _outputs(self, n: int) -> tuple[dict[str, npt.NDArray[np.float32]], ctypes.Array[ctypes.c_void_p]]:
        made = {name: np.empty((n, *shape), np.float32) for name, shape in self.model.outputs.items()}
        return made, (ctypes.c_void_p * len(made))(*(a.ctypes.data for a in made.values()))

    def _check(self, code: int) -> None:
        if code:
            reasons = {1: "another call of this session is under way", 2: "it takes at least one image"}
            raise UserError(f"the native engine: {reasons.get(code, 'no memory for so many threads')}")


def _end(lib: ctypes.CDLL, handle: int, model: Model) -> None:
    lib.mnet_end(handle)
    del model  # whose weights it has read until now


class NativeEngine(Guarded):
    name = NAME
    concurrent = True

    def __init__(self, path: Path, threads: int, isa: str | None = None) -> None:
        super().__init__(threads)
        self.model, self.isa = Model(path), isa
        self.card = parse_card(self.model.card, str(path))
        check_card(self.card, self.model.image, self.model.outputs, str(path))
        self.idle = [Session(self.model, threads, isa)]

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """One that nobody else uses now."""
        try:
            one = self.idle.pop()  # one step, whatever other threads do
        except IndexError:
            one = Session(self.model, self.threads, self.isa)
        try:
            yield one
        finally:
            self.idle.append(one)

    def answer(self, images: Pixels) -> Outputs:
        with self.session() as session:
            made = session.run(images)
        return {name: made[name] for name in self.card.outputs}

    @property
    def layers(self) -> list[tuple[str, int]]:
        """Name and group of each operation, in the order they are computed."""
        return self.model.layers

    def layer_ms(self, image: Pixels) -> list[float]:
        """Milliseconds of each operation on one image, uint8 [1, H, W, 3], as the first thread sees it."""
        with self.session() as session:
            return session.layer_ms(image)


def load(path: Path, threads: int) -> NativeEngine:
    return NativeEngine(path, threads)


def write(bundle: Bundle, path: Path, batch: int | None) -> None:  # noqa: ARG001  (any number of images, always)
    """`bundle` as a .mnet file, the card in it."""
    from mobilenets.deploy.writers.native import native_model

    path.write_bytes(native_model(bundle, coded=True))


def stored_precision(path: Path) -> Precision:
    """What the layers of the file at `path` read their weights from."""
    from mobilenets.deploy.writers.native_file import stored_precision

    return stored_precision(path)
