"""PyTorch: runs a Bundle, float or simulated int8: the reference, not the fast way. And .pt2 files, torch.export's own.

A .pt2 file runs in any Python with PyTorch: `torch.export.load(path).module()(images)`. PyTorch unpickles and executes
parts of one that it loads, so `graphs.pt2.read` looks first whether it holds a network's operations and plain tensors,
and nothing else.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import torch
from torch import Tensor, nn

from mobilenets.deploy.engines import Scores, in_pieces
from mobilenets.deploy.writers import pt2
from mobilenets.deploy.writers.program import exported
from mobilenets.model.bundle import Bundle, find_bundle
from mobilenets.model.card import Precision
from mobilenets.model.images import Pixels
from mobilenets.model.reference import module

NAME = "torch"


def version() -> str:
    return importlib.metadata.version("torch")


def _scores(module: nn.Module, x: Tensor, threads: int) -> Tensor:
    """`module(x)` on `threads` threads; the process's own number stays."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            y: Tensor = module(x)
            return y
    finally:
        torch.set_num_threads(before)


class TorchEngine:
    name = NAME
    concurrent = False

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self.card = bundle.card
        self.module = module(bundle)
        self.threads = threads

    def __call__(self, images: Pixels) -> Scores:
        x = torch.from_numpy(self.card.preprocess.normalize(images))
        y: Scores = torch.softmax(_scores(self.module, x, self.threads), 1).numpy()
        return y


class ProgramEngine:
    """A .pt2 file."""

    name = NAME
    concurrent = False

    def __init__(self, path: Path, threads: int) -> None:
        program, self.card = pt2.read(path)
        self.batch = pt2.batch(program)
        self.module = program.module()
        self.threads = threads

    def _run(self, images: Pixels) -> Scores:
        y: Scores = _scores(self.module, torch.tensor(images), self.threads).numpy()
        return y

    def __call__(self, images: Pixels) -> Scores:
        return in_pieces(self._run, images, self.batch) if self.batch else self._run(images)


def load(path: Path, threads: int) -> TorchEngine | ProgramEngine:
    if path.is_file():
        return ProgramEngine(path, threads)
    return TorchEngine(Bundle.load(find_bundle(path)), threads)


def write(bundle: Bundle, path: Path, batch: int | None) -> None:
    """`bundle` as a .pt2 file, the card beside the program in it."""
    pt2.write(exported(bundle, batch), bundle.card, path)


def stored(path: Path) -> Precision:
    """What the convolutions of the file at `path` read their weights from."""
    return pt2.stored_precision(*pt2.read(path))
