"""What varying an image costs, by the recipe's augmentation and by the same steps as torchvision's transforms.

    python benchmarks/augmentation.py [--rounds 5] [--images 300] [--csv OUT]

Random pixels, one thread, both ways in turn in each round; µs of processor time an image, the median of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rows
import torch
from PIL import Image
from torchvision.transforms import v2

from mobilenets import console
from mobilenets.model.images import Preprocess
from mobilenets.tasks.augment import augmentation
from mobilenets.training.recipes import Recipe

CASES = (
    ("glyph", 8, 32),
    ("shift", 32, 32),
    ("photo", 109, 96),
    ("photo", 256, 224),
)  # side of the image, of the input


def of_torchvision(kind: str, side: int) -> v2.Transform:
    """The steps of `augmentation` as torchvision's own transforms."""
    size, bilinear = (side, side), v2.InterpolationMode.BILINEAR
    moves: dict[str, list[v2.Transform]] = {
        "photo": [
            v2.RandomResizedCrop(size, scale=(0.35, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3),
        ],
        "shift": [
            v2.Resize(size, antialias=True),
            v2.RandomCrop(size, padding=side // 8),
            v2.RandomHorizontalFlip(),
        ],
        "glyph": [
            v2.Resize(side, antialias=True),
            v2.CenterCrop(size),
            v2.RandomAffine(10, (0.1, 0.1), (0.85, 1.15), shear=8, interpolation=bilinear),
        ],
    }
    return v2.Compose([*moves[kind], v2.PILToTensor()])


def timed(vary: Callable[[Any, Any], Any], images: list[Image.Image]) -> float:
    """µs of processor time an image."""
    since = time.process_time()
    for image in images:
        vary(image, 0)
    return 1e6 * (time.process_time() - since) / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--csv", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    table = console.table("µs an image", ["augment", "image", "input", "torchvision's transforms", "ours", "times"])
    found = []
    for kind, side, to in CASES:
        images = [Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8)) for _ in range(a.images)]
        ours, theirs = augmentation(kind, Preprocess(to, 1.0), Recipe()), of_torchvision(kind, to)
        both = [(timed(theirs, images), timed(ours, images)) for _ in range(a.rounds)]
        slow, fast = (statistics.median(part) for part in zip(*both, strict=True))
        found.append((kind, side, to, round(slow), round(fast), round(slow / fast, 2)))
        table.add_row(*map(str, found[-1]))
    console.note(table)
    if a.csv:
        names = ("augment", "image_px", "input_px", "torchvision_us", "ours_us", "times")
        rows.write(a.csv, [dict(zip(names, row, strict=True)) for row in found])


if __name__ == "__main__":
    main()
