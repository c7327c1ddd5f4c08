"""Training and validation images as PyTorch loaders. What is drawn depends on (seed, epoch, image) alone.

So a resumed run draws what the killed one would have, whatever the number of workers.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate, get_worker_info
from torchvision.transforms import v2
from torchvision.tv_tensors import TVTensor

from mobilenets import processor
from mobilenets.data import shard_reader as sharded
from mobilenets.data.dataset import CACHE_SIDE, Split, gather
from mobilenets.errors import UserError
from mobilenets.model.images import Preprocess
from mobilenets.tasks.augment import Shifting
from mobilenets.tasks.task import Transform
from mobilenets.training.recipes import Recipe

MATERIALIZE_BYTES = 2 << 30
GATHERED = 96 * 96  # pixels of an image, up to which a batch of them is varied sooner than one by one
SLOTS = 1024  # workers of one process
# How workers start. Forked ones share the images in memory; where the system can't fork, or its libraries can't be
# forked (macOS), each starts anew and is sent them.
START = "fork" if hasattr(os, "fork") and sys.platform != "darwin" else "spawn"


def sized(target: Any, size: Sequence[int]) -> Any:
    """A target whose boxes, masks and points are on an image of `size`, (height, width): it was decoded at a fraction.

    They are torchvision's `tv_tensors`, and know their image's size; everything else, a class among it, stays as it is.
    """

    def one(part: Any) -> Any:
        on_image = isinstance(part, TVTensor) and v2.functional.get_size(part) != list(size)
        return v2.functional.resize(part, list(size)) if on_image else part

    return tree_map(one, target)


def placed(target: Any, preprocess: Preprocess) -> Any:
    """A target whose boxes, masks and points of the whole image are on a network's input, as `preprocess` fits it."""
    rows, columns = preprocess.input_size

    def one(part: Any) -> Any:
        if not isinstance(part, TVTensor):
            return part
        height, width = v2.functional.get_size(part)
        at = preprocess.place(width, height)
        whole = v2.functional.resize(part, [round(height * at.scale_y), round(width * at.scale_x)])
        return v2.functional.crop(whole, round(-at.top), round(-at.left), rows, columns)

    return tree_map(one, target)


def _target(targets: Any, i: int) -> Any:
    """What is known of image i: a class as Python's int, anything else as it is."""
    target = targets[i]
    return int(target) if isinstance(target, np.integer) else target


class CachedAnswers(Protocol):
    """What a teacher said of `views` views of every training image: [N, K] each."""

    @property
    def views(self) -> int: ...

    def __call__(self, view: int, i: int | npt.NDArray[np.int64]) -> Tensor: ...


class TrainImages(Dataset[tuple[Any, ...]]):
    """Augmented training images: (epoch, index) -> uint8 [3, H, W], target, and what the teacher says of it, if any.

    A target is a class, or what the task has in its place: boxes, masks and points in it move with their image. With a
    teacher who was asked beforehand, an image has as many views as were asked for, and they come round again. `side`:
    the short side that images are read with, where they are larger. `ragged`: a batch has a list of targets.
    """

    def __init__(
        self,
        split: Split,
        transform: Transform,
        seed: int,
        answers: CachedAnswers | None = None,
        side: int = CACHE_SIDE,
        ragged: bool = False,
        together: int = 1,
    ) -> None:
        """`together`: images of one identity, the target, that lie next to each other in a batch (K of P x K)."""
        self.split, self.transform, self.seed, self.answers, self.side = split, transform, seed, answers, side
        self.ragged, self.together = ragged, together
        self.reading = torch.zeros(SLOTS, 2, dtype=torch.int64)  # by worker: process, image + 1
        self.reading.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Sequence[Any]:
        """A batch: PyTorch's loaders ask for all of its images at once."""
        samples = [self[key] for key in keys]
        return ragged_batch(samples) if self.ragged else cast(list[Any], default_collate(samples))

    def to(self, device: torch.device) -> None:
        """Have batches on `device` from the start, where that is possible."""

    def view(self, epoch: int) -> int:
        """Which of an image's views an epoch shows."""
        return epoch % self.answers.views if self.answers else epoch

    def __getitem__(self, key: Any) -> tuple[Any, ...]:
        epoch, i = key
        view = self.view(epoch)
        torch.default_generator.manual_seed(mix(self.seed, view, i))  # each training step seeds itself again
        with self._noted(i):
            pixels = self.split.cached(i, self.side)
            target = sized(_target(self.split.targets, i), pixels.shape[:2])
            image, target = self.transform(Image.fromarray(pixels), target)
        return (image, target, self.answers(view, i)) if self.answers else (image, target)

    @contextlib.contextmanager
    def _noted(self, i: int) -> Iterator[None]:
        """Let the main process know that this worker is at image i, should it be the last thing it does."""
        if worker := get_worker_info():
            self.reading[worker.id % SLOTS] = torch.tensor([os.getpid(), i + 1])
        yield
        if worker:
            self.reading[worker.id % SLOTS, 1] = 0


class GatheredImages(TrainImages):
    """The same, of images that are all in memory: in the size in which they are shown, varied a batch at a time."""

    @functools.cached_property
    def fitted(self) -> Tensor:
        """Every image, [N, H, W], as `Shifting` takes it."""
        out = np.empty((len(self), *self.shifting.size), np.int32)

        def one(i: int) -> None:
            out[i] = self.shifting.fit(Image.fromarray(self.split.cached(i, self.side)))

        with ThreadPoolExecutor(processor.cores()) as pool:
            list(pool.map(one, range(len(out))))
        return torch.from_numpy(out)

    @functools.cached_property
    def targets(self) -> Tensor:
        return torch.tensor(self.split.targets)

    def to(self, device: torch.device) -> None:
        self.fitted, self.targets = self.fitted.to(device), self.targets.to(device)

    @property
    def shifting(self) -> Shifting:
        assert isinstance(self.transform, Shifting)
        return self.transform

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Sequence[Any]:
        (epoch, *_), index = keys[0], np.array([i for _, i in keys])
        view = self.view(epoch)
        images = self.shifting.batch(self.fitted, index, uniforms(mix(self.seed, view), index, self.shifting.numbers))
        made = [images, self.targets[torch.from_numpy(index).to(images.device)]]
        return [*made, self.answers(view, index).to(images.device)] if self.answers else made

    def __getitem__(self, key: Any) -> tuple[Any, ...]:
        image, target, *answers = (part[0] for part in self.__getitems__([key]))
        return (image, target.item() if target.ndim == 0 else target, *answers)


def train_images(
    split: Split, transform: Transform, seed: int, side: int = CACHE_SIDE, ragged: bool = False
) -> TrainImages:
    """Augmented training images, a batch at a time where they are all in memory and little is done to them."""
    whole = len(split.cache) == len(split) and not split.shards and isinstance(split.targets, np.ndarray)
    if isinstance(transform, Shifting) and not transform.looks and whole and not ragged:
        pixels = math.prod(transform.size)
        if pixels <= GATHERED and len(split) * pixels * 4 <= MATERIALIZE_BYTES:
            return GatheredImages(split, transform, seed, None, side)
    return TrainImages(split, transform, seed, None, side, ragged)


class HeldOutImages(Dataset[tuple[Tensor, Any]]):
    """Images as a prediction sees them: index -> uint8 [3, H, W], target on it. In memory where they fit."""

    def __init__(self, split: Split, preprocess: Preprocess, tensors: Callable[[Any], Any] | None = None) -> None:
        """`tensors`: makes a target one that can be placed, where it isn't."""
        self.split, self.preprocess, self.tensors = split, preprocess, tensors
        self.batch = None
        rows, columns = preprocess.input_size
        if len(split) * rows * columns * 3 <= MATERIALIZE_BYTES:
            self.batch = gather(split, preprocess)

    def __len__(self) -> int:
        return len(self.split if self.batch is None else self.batch.targets)

    def __getitem__(self, i: int) -> tuple[Tensor, Any]:
        pixels = self.split.pixels(i, self.preprocess) if self.batch is None else self.batch.pixels[i]
        targets = self.split.targets if self.batch is None else self.batch.targets
        target = _target(targets, i)
        whole = self.tensors(target) if self.tensors else target
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1), placed(whole, self.preprocess)


def as_it_is(batch: Any) -> Any:
    """What puts a batch together where the images came together."""
    return batch


def ragged_batch(samples: Sequence[tuple[Any, ...]]) -> list[Any]:
    """A batch whose targets, which differ in shape, stay a list; all else is stacked."""
    images, targets, *answers = zip(*samples, strict=True)
    return [torch.stack(images), list(targets), *map(torch.stack, answers)]


class EpochSampler(DistributedSampler[Any]):
    """Yields (epoch, index): the epoch reaches worker processes with the image's number."""

    resumed = (-1, 0)

    def resume_at(self, epoch: int, seen: int) -> None:
        """Start with `epoch`, without its first `seen` images of this process."""
        self.epoch, self.resumed = epoch, (epoch, seen)

    def order(self) -> npt.NDArray[np.int64]:
        """This process's images in this epoch."""
        return np.fromiter(super().__iter__(), np.int64)

    def __iter__(self) -> Iterator[Any]:
        epoch, (resumed, seen) = self.epoch, self.resumed
        return zip(itertools.repeat(epoch), self.drawn(self.order()[seen if epoch == resumed else 0 :]))

    def drawn(self, images: npt.NDArray[np.int64]) -> Iterable[int]:
        """`images`, one by one as batches are made of them."""
        return map(int, images)


class ShardSampler(EpochSampler):
    """The same for images in shards, nearly in the order in which they lie: see `sharded.order`."""

    def __init__(self, images: TrainImages, world: int, rank: int, batch: int) -> None:
        super().__init__(images, world, rank, seed=images.seed, drop_last=False)
        self.split, self.counts, self.batch = images.split, images.split.shards, batch * world

    def order(self) -> npt.NDArray[np.int64]:
        streams = sharded.streams(self.batch, self.num_replicas)
        all_streams = sharded.order(self.counts, self.batch, streams, self.seed, self.epoch)
        return all_streams.reshape(len(all_streams), self.num_replicas, -1)[:, self.rank].ravel()

    def drawn(self, images: npt.NDArray[np.int64]) -> Iterable[int]:
        read = self.split.read
        return read.ahead(images) if isinstance(read, sharded.Reader) else super().drawn(images)

    def __len__(self) -> int:
        return sum(self.counts) // self.batch * (self.batch // self.num_replicas)


class IdentitySampler(EpochSampler):
    """`together` images of an identity after each other, of P others in a batch; those with one image are left out.

    Where an identity's images don't come out even, some are there twice in an epoch.
    """

    def __init__(self, images: TrainImages, world: int, rank: int, batch: int) -> None:
        super().__init__(images, world, rank, seed=images.seed, drop_last=False)
        self.k, self.batch = images.together, batch
        targets = np.asarray(images.split.targets)
        order = np.argsort(targets, kind="stable")
        starts = np.unique(targets[order], return_index=True)[1][1:]
        self.of_each = [g for g in np.split(order, starts) if len(g) > 1]
        groups = sum(-(-len(g) // self.k) for g in self.of_each)
        self.count = groups // (world * (batch // self.k)) * batch  # of this process

    def order(self) -> npt.NDArray[np.int64]:
        rng = np.random.default_rng(mix(self.seed, self.epoch))
        groups = [self._groups(rng.permutation(g), rng) for g in self.of_each]
        turns: list[npt.NDArray[np.int64]] = []  # in each, an identity is there once
        for turn in range(max(map(len, groups))):
            some = [g[turn] for g in groups if turn < len(g)]
            turns += [some[i] for i in rng.permutation(len(some))]
        p = self.batch // self.k
        batches = [turns[i : i + p] for i in range(0, len(turns) - p + 1, p)]
        mine = [batches[i] for i in rng.permutation(len(batches))][self.rank :: self.num_replicas]
        return np.concatenate([g for b in mine for g in b])[: self.count].astype(np.int64)

    def _groups(self, images: npt.NDArray[np.int64], rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
        missing = -len(images) % self.k
        filled = np.concatenate([images, rng.choice(images, missing)]) if missing else images
        return [*filled.reshape(-1, self.k)]

    def __len__(self) -> int:
        return self.count


def mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers, by SplitMix64 (Steele and others 2014): numpy's takes 30 µs an image."""
    state, all_bits = 0, (1 << 64) - 1
    for n in numbers:
        state = (state + (n & 0xFFFFFFFF) + 0x9E3779B97F4A7C15) & all_bits
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & all_bits
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & all_bits
        state ^= state >> 31
    return state >> 1


def uniforms(seed: int, images: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.float64]:
    """`count` numbers from [0, 1) for each image, [N, count], by SplitMix64: no two images share one."""
    place = images.astype(np.uint64)[:, None] * np.uint64(count) + np.arange(1, count + 1, dtype=np.uint64)
    state: Any = np.uint64(seed) + place * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state = (state ^ (state >> np.uint64(31))) >> np.uint64(11)
    return np.asarray(state * 2.0**-53)


def at_once(recipe: Recipe, images: int, world: int) -> int:
    """How many of `images` a process takes in one piece of a step."""
    return max(1, min(recipe.batch, images) // (world * recipe.accumulate))


def processes(recipe: Recipe, images: TrainImages, world: int) -> int:
    """How many other processes prepare this one's training images; 0: it does so itself."""
    if isinstance(images, GatheredImages):
        return 0
    if recipe.workers >= 0:
        return recipe.workers
    cores = processor.cores() // world
    if len(images.split.cache) < len(images):
        return cores
    # Cached images cost less than handing them between processes, until there are cores to spare.
    return max(0, cores - 2) if START == "fork" else 0


def train_loader(images: TrainImages, recipe: Recipe, world: int, rank: int) -> DataLoader[Any]:
    """This process's share of the shuffled, augmented training images; the last, short batch is left out."""
    split, seed = images.split, images.seed
    batch = at_once(recipe, len(split), world)
    if split.shards:
        sampler: EpochSampler = ShardSampler(images, world, rank, batch)
    elif images.together > 1:
        batch = max(batch // images.together, 2) * images.together
        sampler = IdentitySampler(images, world, rank, batch)
        if not len(sampler):
            raise UserError(
                f"too few identities with two images for batches of {batch}, {images.together} of each: take a smaller "
                "--batch or --photos-of-each"
            )
    else:
        sampler = EpochSampler(images, world, rank, shuffle=True, seed=seed, drop_last=False)
    workers = processes(recipe, images, world)
    return in_processes(images, workers, batch_size=batch, sampler=sampler, drop_last=True, collate_fn=as_it_is)


def held_out_loader(
    split: Split,
    preprocess: Preprocess,
    batch: int,
    world: int,
    rank: int,
    ragged: bool = False,
    tensors: Callable[[Any], Any] | None = None,
) -> DataLoader[Any]:
    images = HeldOutImages(split, preprocess, tensors)
    sampler: Any = DistributedSampler(images, world, rank, shuffle=False) if world > 1 else None
    workers = 0 if images.batch else processor.cores() // world
    collate = ragged_batch if ragged else None
    return in_processes(images, workers, batch_size=batch, sampler=sampler, collate_fn=collate)


def in_processes(images: Dataset[Any], workers: int, **options: Any) -> DataLoader[Any]:
    """A loader whose `workers` start as this system's can; none: this process reads. Those started anew stay."""
    how = {"multiprocessing_context": START, "persistent_workers": START != "fork"} if workers else {}
    return DataLoader(images, num_workers=workers, **how, **options)  # type: ignore[arg-type]


@contextlib.contextmanager
def worker_errors(images: TrainImages) -> Iterator[None]:
    """Turn the death of a worker process, or a user's mistake that it met, into a one-line UserError.

    A decoder that crashes takes its process with it, and so does a system out of memory.
    """
    try:
        yield
    except UserError as e:
        if "Original Traceback" not in str(e):
            raise
        raise UserError(str(e).rstrip().rpartition("\n")[2].partition(": ")[2]) from e  # of the worker's traceback
    except RuntimeError as e:
        said = f"{e.__cause__ or ''} {e}"
        if "DataLoader worker" not in said:
            raise
        signal = re.search(r"killed by (signal: [\w ]+)", said)
        dead = re.findall(r"\d+", " ".join(re.findall(r"\(pid(?:\(s\))? ([\d, ]+)\)", said)))
        files = [images.split.names[i - 1] for pid, i in images.reading.tolist() if i and str(pid) in dead]
        raise UserError(
            f"a process that prepares images died ({signal[1].strip() if signal else 'it exited'}) reading "
            f"{' and '.join(files) or 'none of them'}; go on with --resume; if it dies there again, remove that file; "
            "if elsewhere, memory may be short: take fewer --workers"
        ) from e
