"""C source with our own engine in it (`native/`), compiled here for the proof.

A folder: NAME.c, NAME.h and card.json; NAME is the folder's. It is written without a compiler too. Source is a program:
only what was written on this machine, and hasn't changed since, is compiled and run.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

import numpy as np

from mobilenets import console, files
from mobilenets.deploy.engines import Outputs, check_card, parse_card, trial
from mobilenets.deploy.engines.guard import Guarded
from mobilenets.deploy.writers import c_array, c_source, lean_plan
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card, Precision
from mobilenets.model.images import Pixels

NAME = "c"
CARD = "card.json"
SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
SECONDS = 600  # of compiling, at most


@functools.cache
def compiler() -> str | None:
    """$CC, or gcc or clang, where there is one."""
    own = os.environ.get("CC", "").split()
    return next((found for c in (*own[:1], "gcc", "clang", "cc") if (found := shutil.which(c))), None)


def version() -> str:
    """The package's own: the engine's source is a part of it."""
    from mobilenets import __version__

    return str(__version__)


def flags() -> list[str]:
    """For the fastest kernels that this processor has; on AArch64 they need none."""
    return ["-march=native"] if platform.machine().lower() in ("x86_64", "amd64") else []


def compiled(folder: Path, name: str, options: list[str]) -> bytes:
    """A shared library of a folder's source. Raises `UserError`."""
    found = compiler()
    if found is None:
        raise UserError(f"{folder}: there is no C compiler here to run it with; install gcc or clang")
    source, header = ((folder / f"{name}.{kind}").read_bytes() for kind in "ch")
    try:
        return _library(source, header, name, (found, "-std=c11", "-O2", "-shared", "-fPIC", *options))
    except (OSError, subprocess.SubprocessError) as e:
        text = getattr(e, "stderr", None) or str(e)
        first = next((line for line in text.splitlines() if "error" in line), text[:200])
        raise UserError(f"{folder}: {found} can't compile it: {first}") from e


@functools.lru_cache(maxsize=2)
def _library(source: bytes, header: bytes, name: str, command: tuple[str, ...]) -> bytes:
    """Kept, as it takes up to a minute, and a file that is proved is scored next."""
    console.note(f"compiling {name}.c")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        made = Path(folder, f"{name}{SUFFIX}")
        Path(folder, f"{name}.c").write_bytes(source)
        Path(folder, f"{name}.h").write_bytes(header)
        subprocess.run(
            [*command, "-o", str(made), str(made.with_suffix(".c")), "-lm"],
            capture_output=True, text=True, errors="replace", timeout=SECONDS, check=True,
        )  # fmt: skip
        return made.read_bytes()


class CEngine(Guarded):
    name = NAME

    def __init__(self, path: Path, options: list[str] | None = None) -> None:
        super().__init__(1)
        self.card, name = read(path)
        if not trial.known(path, NAME, version()):
            raise UserError(f"{path}: source is only run where it was written: export it here, or run its bundle")
        check_card(self.card, (*self.card.preprocess.input_size, 3), self.card.outputs, str(path))
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        weakref.finalize(self, folder.cleanup)
        made = Path(folder.name) / f"{name}{SUFFIX}"
        made.write_bytes(compiled(path, name, flags() if options is None else options))
        self._predict = getattr(ctypes.CDLL(str(made)), f"{name}_predict")
        self._predict.argtypes = [ctypes.c_void_p] * (1 + len(self.card.outputs))

    def answer(self, images: Pixels) -> Outputs:
        images = np.ascontiguousarray(images)
        made = {name: np.empty((len(images), *shape), np.float32) for name, shape in self.card.outputs.items()}
        for i in range(len(images)):
            if self._predict(images[i].ctypes.data, *(a[i : i + 1].ctypes.data for a in made.values())):
                raise UserError("C source: the memory that was planned for it doesn't suffice here")
        return made


def read(path: Path) -> tuple[Card, str]:
    """The card of a folder, and what its source is called."""
    try:
        card = parse_card((path / CARD).read_bytes(), str(path / CARD))
        names = {p.stem for p in path.iterdir() if p.suffix in (".c", ".h")}
        if len(names) != 1:
            raise ValueError("it has to have one .c and one .h")
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: not a readable folder of C source: {e}") from e
    return card, names.pop()


def load(path: Path, threads: int) -> CEngine:  # noqa: ARG001  (one, always)
    return CEngine(path)


def write(bundle: Bundle, path: Path, batch: int | None) -> None:
    """`bundle` as a folder: NAME.c and NAME.h to compile, and card.json."""
    from mobilenets.deploy.writers.native import native_model

    if batch not in (None, 1):
        raise UserError(f"C source runs one image at a time, not {batch}; leave --batch out")
    both = native_model(bundle), native_model(bundle, lean_plan.plan)
    name = c_source.c_name(Path(files.final_name(path)).stem)
    path.mkdir()
    files.write_text(path / f"{name}.c", c_source.source(bundle.card, *both, name))
    files.write_text(path / f"{name}.h", c_source.header(bundle.card, *both, name))
    files.write_text(path / CARD, json.dumps(bundle.card.to_json(), indent=2) + "\n")
    trial.remember(path, NAME, version())


def ram_bytes(path: Path) -> int:
    """As plain C."""
    _, name = read(path)
    return c_array.number((path / f"{name}.h").read_text(encoding="utf-8"), f"{name.upper()}_ARENA_BYTES")


def stored_precision(path: Path) -> Precision:
    """What the layers in the source read their weights as, but for those that its card keeps in float."""
    card, name = read(path)
    return c_source.stored_precision((path / f"{name}.c").read_text(encoding="utf-8"), card.float_ops)
