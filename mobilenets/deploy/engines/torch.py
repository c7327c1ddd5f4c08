"""PyTorch: runs a Bundle, float or simulated int8: the reference, not the fast way. And .pt2 files, torch.export's own.

A .pt2 file runs in any Python with PyTorch: `torch.export.load(path).module()(images)`. PyTorch unpickles and executes
parts of one that it loads, so `writers.pt2.read` looks first whether it holds a network's operations and plain tensors,
and nothing else.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from mobilenets import processor
from mobilenets.deploy.engines import Outputs, check_card, run_batched
from mobilenets.deploy.engines.guard import Guarded
from mobilenets.deploy.writers import pt2
from mobilenets.deploy.writers.program import export_program
from mobilenets.model.bundle import Bundle, find_bundle, is_file
from mobilenets.model.card import Precision
from mobilenets.model.images import Pixels
from mobilenets.model.reference import module

NAME = "torch"
T = TypeVar("T")


def version() -> str:
    return importlib.metadata.version("torch")


def _run(module: Callable[[Tensor], T], x: Tensor, threads: int) -> T:
    """`module(x)` on `threads` threads; the process's own number stays."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            return module(x)
    finally:
        torch.set_num_threads(before)


class TorchEngine(Guarded):
    name = NAME

    def __init__(self, bundle: Bundle, threads: int, device: str = "cpu") -> None:
        super().__init__(threads)
        self.card, self.device = bundle.card, device
        self.module = module(bundle.dense()).to(device)

    def answer(self, images: Pixels) -> Outputs:
        x = torch.from_numpy(self.card.preprocess.normalize(images)).to(self.device)
        return {name: y.cpu().numpy() for name, y in _run(self.module.answers, x, self.threads).items()}


def quickest(bundle: Bundle) -> TorchEngine:
    """For many images: on the GPU that trains, where there is one, or on all cores; where sums of int8 are exact."""
    floats = bundle.card.precision != "int8"
    return TorchEngine(bundle, processor.cores(), "cuda" if torch.cuda.is_available() and floats else "cpu")


class ProgramEngine(Guarded):
    """A .pt2 file."""

    name = NAME

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(threads)
        program, self.card = pt2.read(path)
        (batch, *image), outputs = pt2.sizes(program)
        names = [*self.card.outputs, *(f"output {i}" for i in range(len(outputs)))]  # the card doesn't know these
        check_card(self.card, image, {n: shape for n, (_, *shape) in zip(names, outputs, strict=False)}, str(path))
        self.batch = batch or None
        self.module = program.module()

    def _run(self, images: Pixels) -> Outputs:
        made = _run(self.module, torch.tensor(images), self.threads)
        several = made if isinstance(made, tuple) else (made,)
        return {name: y.numpy() for name, y in zip(self.card.outputs, several, strict=True)}

    def answer(self, images: Pixels) -> Outputs:
        return run_batched(self._run, images, self.batch)


def load(path: Path, threads: int) -> TorchEngine | ProgramEngine:
    if path.is_file() and not is_file(path):
        return ProgramEngine(path, threads)
    return TorchEngine(Bundle.load(find_bundle(path)), threads)


def write(bundle: Bundle, path: Path, batch: int | None) -> None:
    """`bundle` as a .pt2 file, the card beside the program in it."""
    pt2.write(export_program(bundle, batch), bundle.card, path)


def stored_precision(path: Path) -> Precision:
    """What the convolutions of the file at `path` read their weights from."""
    return pt2.stored_precision(*pt2.read(path))
