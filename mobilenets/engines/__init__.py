"""Runtimes behind one interface: an Artifact (or a Bundle) -> a callable from uint8 images to probabilities.

A new runtime is one file here, with `NAME`, `SUFFIXES`, `version()`, `load(path, threads)`, `build(bundle, threads)`,
and its line in `ENGINES`.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from mobilenets.bundle import CARD, Card, located, packaged
from mobilenets.errors import UserError, unknown
from mobilenets.images import Pixels

Scores = npt.NDArray[np.float32]
# The order in which they are asked for a file: onnxruntime first, so that a .onnx file runs without importing torch.
ENGINES = {"onnxruntime": "mobilenets.engines.onnxruntime", "torch": "mobilenets.engines.torch"}


@runtime_checkable
class Engine(Protocol):
    """A loaded network. `engine(images)`: uint8 [N, H, W, 3] at the card's resolution -> probabilities [N, classes]."""

    name: str
    card: Card
    concurrent: bool  # whether several threads may call it at once

    def __call__(self, images: Pixels) -> Scores: ...


def module(name: str) -> Any:
    """The engine's module; a UserError suggests the nearest name."""
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    return importlib.import_module(ENGINES[name])


def version(name: str) -> str:
    """The installed runtime's version."""
    return str(module(name).version())


def for_path(path: Path) -> str:
    """Which engine runs the file or folder at `path`."""
    if not path.exists():
        near = difflib.get_close_matches(str(path), packaged(), n=1)
        hint = f"; did you mean the packaged {near[0]}?" if near else ""
        raise UserError(f"{path}: no such file or folder{hint}")
    if path.is_dir():
        return "torch"
    for name in ENGINES:
        if path.suffix in module(name).SUFFIXES:
            return name
    raise UserError(
        f"{path}: no engine runs a {path.suffix or 'nameless'} file; give a bundle's folder or a .onnx file"
    )


def resolve(path: Path) -> Path:
    """What to run at `path`: a file or bundle, a packaged one by its name; of a run, the smallest file it shipped."""
    path = located(path)
    if path.is_dir() and not (path / CARD).is_file():
        for name in ("model-int8.onnx", "model.onnx", "int8", "float"):
            if (path / name).exists():
                return path / name
        raise UserError(f"{path}: neither a bundle nor a finished run")
    return path


def load(path: Path, threads: int = 1) -> Engine:
    """The network at `path` (a bundle's folder, a run's, or an exported file), ready to run on `threads` threads."""
    path = resolve(path)
    engine: Engine = module(for_path(path)).load(path, threads)
    return engine
