"""Images with labels: a folder or zip of class folders, `digits`, torchvision's sets by name; their splits."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets import processor
from mobilenets.data import identity, splitting
from mobilenets.data.identity import Marks
from mobilenets.errors import UserError
from mobilenets.model import imagenet
from mobilenets.model.images import FULL_SIZE, BadImage, Pixels, Preprocess, open_rgb

Kind = Literal["photo", "glyph"]
Read = Callable[[int], "Path | bytes | Image.Image"]

SIDES = 50  # images whose sizes stand for all
CACHE_SIDE = 256  # the least short side that training images are cached with: enough for random crops at 224


def memory() -> int:
    """Bytes of this machine's memory; a guess at the low end where the system doesn't say, as Windows doesn't."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 4 << 30


CACHE_BYTES = min(4 << 30, memory() // 4)


def cache_side(resolution: int) -> int:
    """The short side that training images are cached with for a network: room for random crops at its resolution."""
    return max(CACHE_SIDE, math.ceil(resolution * CACHE_SIDE / 224))


@dataclass(frozen=True)
class Keyed:
    """Reads image i as `read(keys[i])`. No lambda: worker processes that start anew are sent it."""

    read: Callable[[Any], Path | bytes | Image.Image]
    keys: Sequence[Any] | npt.NDArray[Any]

    def __call__(self, i: int) -> Path | bytes | Image.Image:
        return self.read(self.keys[i])


@dataclass
class Split:
    """One split's images: names, targets, and how to read image i (a path, its bytes, or decoded already).

    `targets`: class indices, int64 [N]; tags, float32 [N, C], NaN where nobody knows; or what another task knows of
    each image, any sequence. `cache`: images in memory, none with a longer short side than `cached_at`. `shards`: how
    many lie together in each file, one file after another; empty if reading order doesn't matter. `marks`: which images
    these are (see `identity`), where that can change between two openings. `groups`: a number for each image, the same
    for those that must not be parted. `strata`: classes [N] of which a
    like share is held out, where targets aren't such.
    """

    name: str
    names: Sequence[str]
    targets: Any
    read: Read
    cache: dict[int, Pixels] = field(default_factory=dict, repr=False)
    shards: tuple[int, ...] = ()
    cached_at: int = CACHE_SIDE
    marks: Marks | None = None
    groups: npt.NDArray[np.int64] | None = None
    strata: npt.NDArray[Any] | None = None

    @property
    def spread(self) -> Any:
        """What is held out a like share of: classes [N], tags [N, C], boxes."""
        return self.targets if self.strata is None else self.strata

    def __len__(self) -> int:
        return len(self.names)

    def rgb(self, i: int, short_side: int = 0) -> Image.Image:
        """Image i, decoded; raises `BadImage`."""
        source = self.read(i)
        return source.convert("RGB") if isinstance(source, Image.Image) else open_rgb(source, self.names[i], short_side)

    def cached(self, i: int, side: int = CACHE_SIDE) -> Pixels:
        """Image i as uint8 [H, W, 3] for a training that needs a short side of no more than `side`.

        From memory if a scan kept it there, and didn't shrink it below `side`.
        """
        kept = self.cache.get(i)
        if kept is not None and (self.cached_at >= side or min(kept.shape[:2]) < self.cached_at):
            return kept
        return shrink(self.rgb(i, side), side)

    def pixels(self, i: int, preprocess: Preprocess) -> Pixels:
        """Image i as the network takes it, uint8 [R, R, 3]: the one path that training scores and predictions share."""
        return preprocess.fit(self.rgb(i, preprocess.short_side))

    def subset(self, keep: Sequence[int] | npt.NDArray[np.int64], name: str = "") -> Split:
        index = [int(i) for i in keep]
        return Split(
            name or self.name,
            [self.names[i] for i in index],
            some(self.targets, index),
            Keyed(self.read, index),
            {j: self.cache[i] for j, i in enumerate(index) if i in self.cache},
            cached_at=self.cached_at,
            marks=None if self.marks is None else self.marks[index],
            groups=None if self.groups is None else self.groups[index],
            strata=None if self.strata is None else self.strata[index],
        )


@dataclass(frozen=True)
class Batch:
    """Preprocessed images, uint8 [N, H, W, 3], and their classes [N], or what another task has for targets."""

    pixels: Pixels
    targets: Any


@dataclass
class Data:
    """A labelled data set with its splits. `kind` "glyph" means a mirrored or half-hidden image is another class.

    `left_out`: lines that say what is in the folder and not in the data; `unread`: classes of pictures none of which
    can be read. `scan`: what a look at every image found, if there was one already (a `checks.Scan` as JSON).
    `pool`: the images that train and val were drawn from, where there was no val split. `images`: how many there are,
    and a digest of which, as they were opened; None of sets that never change. `doubts`: why the folders may not be
    classes. `as_trained`: val is what was held out when the network at hand was trained. `limit`: training images of a
    class, at most. `fold`: (which, of how many), where the data is one fold of a cross-validation. `category_ids`: of
    boxes, the classes' own numbers by label, where they have some. `faults`: of boxes, what was found, by kind (see
    `annotations.faults`). `form`: of boxes, what kind of annotations they were read from.
    """

    source: str
    labels: tuple[str, ...]
    splits: dict[str, Split]
    kind: Kind = "photo"
    empty: tuple[str, ...] = ()
    seed: int = 0
    val_fraction: float | None = None
    scan: dict[str, Any] | None = None
    left_out: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    pool: Split | None = None
    images: dict[str, Any] | None = None
    doubts: tuple[str, ...] = ()
    as_trained: bool = False
    limit: int | None = None
    fold: tuple[int, int] | None = None
    category_ids: dict[str, int] = field(default_factory=dict)
    faults: dict[str, tuple[str, ...]] = field(default_factory=dict)
    form: str = ""

    @property
    def held_out(self) -> str:
        """The split to report scores on: "test" where there is one, else "val"."""
        return "test" if "test" in self.splits else "val"

    @property
    def crop(self) -> float:
        """How much of the centre a prediction looks at: all of a glyph, the usual 7/8 of a photo."""
        return 1.0 if self.kind == "glyph" else 0.875

    def split(self, name: str) -> Split:
        """The split called `name`, or all of them together as "all"."""
        if name == "all":
            return joined(list(self.splits.values()), "all")
        if name not in self.splits:
            raise UserError(f"{self.source} has no split {name!r}; it has {', '.join(self.splits)} (and all)")
        return self.splits[name]

    def native_side(self) -> int:
        """The median short side of some of the images, in pixels; 0 where none can be read."""
        if self.scan:
            return int(self.scan["native_side"])
        every = self.split("all")
        sides = []
        for i in np.random.default_rng(0).permutation(len(every))[:SIDES]:
            with contextlib.suppress(BadImage):
                image = every.rgb(int(i), 1)
                sides.append(min(image.info.get(FULL_SIZE, image.size)))
        return int(np.median(sides)) if sides else 0

    def sample(self, split: str, count: int, preprocess: Preprocess) -> Batch:
        """Up to `count` readable images of a split, drawn at random but the same each time."""
        s = self.split(split)
        n = len(s)  # in shards, they lie in random order already, and near ones can be read without the others
        order = np.arange(n) if s.shards else np.random.default_rng(self.seed).permutation(n)
        order = order[:count]
        return gather(s.subset(order), preprocess)

    def describe(self) -> dict[str, Any]:
        """What a card says of the data it was trained on: enough to tell what was held out from what was trained on."""
        said = {
            "source": self.source,
            "counts": {k: len(s) for k, s in self.splits.items()},
            "split_seed": self.seed,
            "val_fraction": self.val_fraction,
        }
        if self.images:
            said["images"] = self.images
        val = self.splits.get("val")
        if self.val_fraction is not None and val is not None and val.marks is not None:
            said["held_out"] = identity.pack(val.marks)
        if self.fold:
            said["fold"] = list(self.fold)
        return said

    def hold_out(self, held: npt.NDArray[np.int64]) -> None:
        """Make those images of the pool, by their places in it, the val split, and the others train."""
        pool = self.pool or self.splits["train"]
        rest = np.setdiff1d(np.arange(len(pool)), held)
        self.pool = pool
        self.splits = {**self.splits, "train": pool.subset(rest), "val": pool.subset(held, "val")}
        self.limit_training()

    def limit_training(self) -> None:
        """Leave out the training images beyond the limit, if there is one."""
        train = self.splits["train"]
        if self.limit is not None and (np.bincount(train.targets) > self.limit).any():
            self.splits["train"] = train.subset(splitting.limited(train.targets, self.limit, self.seed))

    def in_folds(self, count: int) -> Iterator[Data]:
        """The data `count` times, each time with another part of train and val together held out as val.

        Of data without a val split of its own. What a scan took for damaged is in no fold.
        """
        assert self.pool is not None
        drawn = splitting.folds(self.pool.spread, self.pool.groups, count, self.seed)
        place = {name: i for i, name in enumerate(self.pool.names)}
        left = joined([self.splits["train"], self.splits["val"]], "train")
        at = np.array([place[name] for name in left.names])
        left, number = left.subset(np.argsort(at)), drawn[np.sort(at)]
        for k in range(count):
            one = dataclasses.replace(self, pool=left, val_fraction=1 / count, fold=(k, count))
            one.hold_out(np.flatnonzero(number == k))
            yield one


def gather(split: Split, preprocess: Preprocess) -> Batch:
    """A whole split preprocessed into memory, decoded on all cores; damaged images are left out."""

    def one(i: int) -> Pixels | None:
        try:
            return split.pixels(i, preprocess)
        except BadImage:
            return None

    with ThreadPoolExecutor(processor.cores()) as pool:
        out = list(pool.map(one, range(len(split))))
    keep = [i for i, p in enumerate(out) if p is not None]
    empty = np.empty((0, *preprocess.input_size, 3), np.uint8)
    pixels = np.stack([p for p in out if p is not None]) if keep else empty
    return Batch(pixels, some(split.targets, keep))


def some(targets: Any, index: Sequence[int]) -> Any:
    """Those of a split's targets: an array of an array's, a list of any other sequence's."""
    return targets[index] if isinstance(targets, np.ndarray) else [targets[i] for i in index]


def joined(splits: Sequence[Split], name: str) -> Split:
    """Several splits as one, with what a scan kept of them in memory."""
    where = [(s, i) for s in splits for i in range(len(s))]
    names = [s.names[i] for s, i in where]
    if all(isinstance(s.targets, np.ndarray) for s in splits):
        targets: Any = np.concatenate([s.targets for s in splits])
    else:
        targets = [t for s in splits for t in s.targets]
    return Split(
        name,
        names,
        targets,
        Keyed(_of_split, where),
        {n: s.cache[i] for n, (s, i) in enumerate(where) if i in s.cache},
        cached_at=min((s.cached_at for s in splits if s.cache), default=CACHE_SIDE),
        marks=_all([s.marks for s in splits]),
        groups=_all([s.groups for s in splits]),
        strata=_all([s.strata for s in splits]),
    )


def _all(arrays: Sequence[npt.NDArray[Any] | None]) -> Any:
    found = [a for a in arrays if a is not None]
    return np.concatenate(found) if len(found) == len(arrays) else None


def _of_split(where: tuple[Split, int]) -> Path | bytes | Image.Image:
    split, i = where
    return split.read(i)


def shrink(img: Image.Image, side: int = CACHE_SIDE) -> Pixels:
    """RGB image -> uint8 [H, W, 3], its short side at most `side`."""
    if min(img.size) > side:
        f = side / min(img.size)
        img = img.resize((round(img.width * f), round(img.height * f)), Image.Resampling.BILINEAR)
    return np.asarray(img)


def in_order(data: Data, labels: tuple[str, ...]) -> Data:
    """`data` with its targets numbered as in `labels`, or tags in their order; a UserError for one that isn't there.

    Folders named by WordNet ids, as ImageNet's are, are those of an ImageNet classifier's labels.
    """
    if data.labels == labels:
        return data
    ids = tuple(imagenet.classes()) if imagenet.is_imagenet(labels) else ()
    names = ids if set(data.labels) <= set(ids) else labels
    strangers = [c for c in data.labels if c not in names]
    if strangers:
        raise UserError(
            f"{data.source}: class {strangers[0]!r} isn't one the network knows ({', '.join(labels[:8])}...)"
        )
    to = np.array([names.index(c) for c in data.labels], np.int64)
    for s in data.splits.values():
        s.targets = renumbered(s.targets, to, len(labels))
    data.labels = labels
    return data


def renumbered(targets: Any, to: npt.NDArray[np.int64], count: int) -> Any:
    """Classes [N] by other numbers; tags [N, C] in other columns of `count`, NaN where there were none; or boxes."""
    if not isinstance(targets, np.ndarray):
        return [t.renumbered(to) for t in targets]
    if targets.ndim == 1:
        return np.asarray(to[targets])
    out = np.full((len(targets), count), np.nan, np.float32)
    out[:, to] = targets
    return out
