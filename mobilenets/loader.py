"""Training and validation images as PyTorch loaders. What is drawn depends on (seed, epoch, image) alone.

So a resumed run draws what the killed one would have, whatever the number of workers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.transforms import v2

from mobilenets.data import Split, gather
from mobilenets.images import Preprocess
from mobilenets.recipes import Recipe

Augment = Literal["photo", "shift", "glyph", "none"]
MATERIALIZE_BYTES = 2 << 30


def augmentation(kind: Augment, preprocess: Preprocess, recipe: Recipe) -> v2.Transform:
    """RGB image of any size -> uint8 [3, R, R], random. On Pillow images: small tensor operations wait on threads."""
    r = preprocess.resolution
    if kind == "photo":
        return v2.Compose([
            v2.RandomResizedCrop(r, scale=(recipe.min_scale, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3),
            v2.PILToTensor(),
            v2.RandomErasing(recipe.erasing, value=128),
        ])  # fmt: skip
    if kind == "shift":
        return v2.Compose([
            v2.Resize((r, r), antialias=True),
            v2.RandomCrop(r, padding=r // 8),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.RandomErasing(recipe.erasing, scale=(0.05, 0.25), value=128),
        ])  # fmt: skip
    fit = [v2.Resize(preprocess.short_side, antialias=True), v2.CenterCrop(r)]
    if kind == "glyph":
        move = v2.RandomAffine(10, translate=(0.1, 0.1), scale=(0.85, 1.15), shear=8, interpolation=_BILINEAR)
        return v2.Compose([*fit, move, v2.PILToTensor()])
    return v2.Compose([*fit, v2.PILToTensor()])


_BILINEAR = v2.InterpolationMode.BILINEAR


class TrainImages(Dataset[tuple[Tensor, int]]):
    """Augmented training images: (epoch, index) -> uint8 [3, R, R], class."""

    def __init__(self, split: Split, transform: v2.Transform, seed: int) -> None:
        self.split, self.transform, self.seed = split, transform, seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Any) -> tuple[Tensor, int]:
        epoch, i = key
        torch.default_generator.manual_seed(mix(self.seed, epoch, i))  # each training step seeds itself again
        out: Tensor = self.transform(Image.fromarray(self.split.cached(i)))
        return out, int(self.split.targets[i])


class HeldOutImages(Dataset[tuple[Tensor, int]]):
    """Images as a prediction sees them: index -> uint8 [3, R, R], class. In memory where they fit."""

    def __init__(self, split: Split, preprocess: Preprocess) -> None:
        self.split, self.preprocess = split, preprocess
        self.batch = None
        if len(split) * preprocess.resolution**2 * 3 <= MATERIALIZE_BYTES:
            self.batch = gather(split, preprocess)

    def __len__(self) -> int:
        return len(self.split if self.batch is None else self.batch.targets)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        pixels = self.split.pixels(i, self.preprocess) if self.batch is None else self.batch.pixels[i]
        targets = self.split.targets if self.batch is None else self.batch.targets
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1), int(targets[i])


class EpochSampler(DistributedSampler[Any]):
    """Yields (epoch, index): the epoch reaches worker processes with the image's number."""

    def __iter__(self) -> Iterator[Any]:
        return ((self.epoch, i) for i in super().__iter__())


def mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    state = np.random.SeedSequence([n & 0xFFFFFFFF for n in numbers]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def train_loader(
    split: Split, preprocess: Preprocess, recipe: Recipe, kind: Augment, seed: int, world: int, rank: int
) -> DataLoader[Any]:
    """This process's share of the shuffled, augmented training images; the last, short batch is left out."""
    images = TrainImages(split, augmentation(kind, preprocess, recipe), seed)
    batch = max(1, min(recipe.batch, len(split)) // world)
    sampler = EpochSampler(images, world, rank, shuffle=True, seed=seed, drop_last=False)
    workers = recipe.workers
    if workers < 0:  # cached images cost less than handing them between processes, until there are cores to spare
        cores = (os.cpu_count() or 1) // world
        cached = len(split.cache) == len(split)
        workers = max(0, cores - 2) if cached else cores
    return DataLoader(images, batch, sampler=sampler, num_workers=workers, drop_last=True)


def held_out_loader(split: Split, preprocess: Preprocess, batch: int, world: int, rank: int) -> DataLoader[Any]:
    images = HeldOutImages(split, preprocess)
    sampler: Any = DistributedSampler(images, world, rank, shuffle=False) if world > 1 else None
    return DataLoader(images, batch, sampler=sampler)
