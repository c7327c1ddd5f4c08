"""PyTorch: runs a Bundle, float or simulated int8. The reference, not the fast way."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import torch

from mobilenets.bundle import Bundle, find_bundle
from mobilenets.engines import Scores
from mobilenets.images import Pixels
from mobilenets.simulate import module

NAME = "torch"


def version() -> str:
    return importlib.metadata.version("torch")


class TorchEngine:
    name = NAME
    concurrent = False

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self.card = bundle.card
        self.module = module(bundle)
        self.threads = threads

    def __call__(self, images: Pixels) -> Scores:
        x = torch.from_numpy(self.card.preprocess.normalize(images))
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                y: Scores = torch.softmax(self.module(x), 1).numpy()
        finally:
            torch.set_num_threads(before)
        return y


def load(path: Path, threads: int) -> TorchEngine:
    return TorchEngine(Bundle.load(find_bundle(path)), threads)
