"""Shared fixtures: small image folders and small networks that look trained. torch is imported only when it is used."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilenets import zoo
from mobilenets.bundle import Bundle, Card
from mobilenets.images import Pixels, Preprocess
from mobilenets.spec import Padding, scale

# One thread for each of pytest's workers; idle OpenMP threads that spin are hundreds of times slower on small networks.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

SMALL_ALPHA = {"v1": 0.25, "v2": 0.35}


def smooth_images(count: int, side: int = 32, seed: int = 0) -> Pixels:
    """Random images with structure, uint8 [count, side, side, 3]: noise at an eighth of the size, enlarged."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, max(side // 8, 2), max(side // 8, 2), 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((side, side), Image.Resampling.BICUBIC)) for c in coarse])


@pytest.fixture
def write_images() -> Callable[..., Path]:
    """`write_images(root, {"train/cat": 5, "val/cat": 0})`: a folder of different PNGs for each; gives `root`."""

    def write(root: Path, counts: dict[str, int], side: int = 24) -> Path:
        for seed, (folder, count) in enumerate(counts.items()):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for i, pixels in enumerate(smooth_images(count, side, seed) if count else ()):
                Image.fromarray(pixels).save(root / folder / f"{i:03d}.png")
        return root

    return write


@pytest.fixture(scope="session")
def pixels() -> Pixels:
    """24 images, uint8 [24, 32, 32, 3]."""
    return smooth_images(24)


@functools.cache
def _bundle(
    name: str, padding: Padding, mean: tuple[float, float, float], std: tuple[float, float, float], seed: int
) -> Bundle:
    import torch

    from mobilenets.model import build

    arch = scale(zoo.network(name), SMALL_ALPHA[name], 32, 10, padding=padding)
    preprocess = Preprocess(32, 0.9, mean, std)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = build(arch)
        for m in model.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.weight.uniform_(0.5, 1.5)  # around 2, most of a ReLU6's input is in its linear part, so that,
                m.bias.normal_(2, 0.7)  # as in a trained network, rounding isn't amplified from layer to layer
                m.momentum = None  # the running statistics become the plain average over what is shown below
        for s in range(3):
            model.train()(torch.from_numpy(preprocess.normalize(smooth_images(32, seed=100 + s))))
        model.classifier.weight.normal_(0, 1.5 / arch.width**0.5)
        mean = model.eval().pooled(torch.from_numpy(preprocess.normalize(smooth_images(32, seed=100)))).mean(0)
        model.classifier.bias.normal_(0, 0.5).sub_(model.classifier.weight @ mean)  # so that no class always wins
    labels = tuple(f"class {i}" for i in range(10))
    card = Card(arch, preprocess, labels, licence="Apache-2.0")
    return Bundle(card, {k: v.numpy() for k, v in model.state_dict().items()})


@pytest.fixture(scope="session")
def make_bundle() -> Callable[..., Bundle]:
    """`make_bundle("v1")`: a float32 Bundle of V1 .25-32 (or V2 .35-32), 10 classes, its BatchNorm as if trained."""

    def make(
        name: str,
        padding: Padding = "symmetric",
        mean: tuple[float, float, float] = (128.0, 128.0, 128.0),
        std: tuple[float, float, float] = (128.0, 128.0, 128.0),
        seed: int = 0,
    ) -> Bundle:
        return _bundle(name, padding, mean, std, seed)

    return make
