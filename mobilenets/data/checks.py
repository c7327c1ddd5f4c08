"""A look at every image before training: what is damaged, missing, or in two splits at once."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mobilenets import console, processor
from mobilenets.arch import fields
from mobilenets.data import duplicates
from mobilenets.data.boxes import Boxes
from mobilenets.data.dataset import CACHE_BYTES, CACHE_SIDE, Data, Split, shrink
from mobilenets.data.duplicates import Thumbs
from mobilenets.errors import UserError
from mobilenets.model.images import BadImage, Pixels

if TYPE_CHECKING:
    from rich.console import RenderableType


FLAT = 16  # of 255


@dataclass
class Scan(console.Notebook):
    """What a look at every image found. `native_side`: the median short side in pixels.

    `counts`: by split, the images of each class, or its boxes; `images`: of each split, where an image may have several
    tags or boxes, or none. `boxes`: of each split, where there are any.
    """

    source: str
    counts: dict[str, dict[str, int]]
    damaged: list[str] = field(default_factory=list)
    empty: tuple[str, ...] = ()
    only_train: list[str] = field(default_factory=list)
    only_held_out: list[str] = field(default_factory=list)
    leaks: list[tuple[str, str]] = field(default_factory=list)
    near: list[tuple[str, str]] = field(default_factory=list)
    native_side: int = 0
    left_out: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    flat: list[str] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)
    alike: list[str] = field(default_factory=list)
    boxes: dict[str, int] = field(default_factory=dict)

    @property
    def totals(self) -> dict[str, int]:
        """The images of each split."""
        return self.images or {name: sum(per.values()) for name, per in self.counts.items()}

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Scan:
        """The inverse of `to_json`; what other versions found besides is left out."""
        known = {f.name for f in dataclasses.fields(cls)}
        made = cls(**{k: v for k, v in d.items() if k in known})
        fields.check(made, cls, "scan")
        return made

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        t = console.table(f"{self.source}", [self._noun, *self.counts], left=(self._noun,))
        classes = sorted({c for per in self.counts.values() for c in per})
        for c in classes[:20]:
            t.add_row(c, *(str(per.get(c, 0)) for per in self.counts.values()))
        if len(classes) > 20:
            t.add_row(f"... {len(classes) - 20} more", *("" for _ in self.counts))
        if self.boxes:
            t.add_row("all boxes", *map(str, self.boxes.values()))
        t.add_row("images" if self.boxes else "all", *map(str, self.totals.values()))
        return Group(t, *map(Text, self.findings()))  # Text: a [bracket] in a file's name is no markup

    @property
    def _noun(self) -> str:
        return "tag" if self.images and not self.boxes else "class"

    def findings(self) -> Iterator[str]:
        """A line for each thing that isn't as it should be."""
        yield from self.left_out
        for what, how, items in (
            ("damaged image", "", self.damaged),
            ("image", " without contrast, as 8 bits (their least and largest value)", self.flat),
            (self._noun, " without an image", list(self.empty)),
            (self._noun, " with training images alone", self.only_train),
            (self._noun, " with held-out images alone", self.only_held_out),
            ("tag", " that all training images have, or none has: there is nothing to learn", self.alike),
            (
                "training image",
                " held out too (scores will flatter)",
                [f"{a} = {b}" for a, b in self.leaks],
            ),
            (
                "pair",
                " of a training and a held-out image nearly the same, as copies of another size or compression are",
                [f"{a} ≈ {b}" for a, b in self.near],
            ),
        ):
            if items:
                more = f" ... and {len(items) - 10} more" if len(items) > 10 else ""
                yield console.plain(f"{console.many(len(items), what)}{how}: {'; '.join(items[:10])}{more}")


@dataclass(frozen=True)
class Look:
    """One decoded image: uint8 [H, W, 3] as `shrink` makes it, a hash of it, its short side in pixels.

    `spread`: its least and largest value. `thumb`: its `duplicates.thumbnail`.
    """

    pixels: Pixels
    digest: bytes
    side: int
    spread: tuple[int, int]
    thumb: Thumbs

    @property
    def flat(self) -> bool:
        """Whether it is nearly of one colour, as a picture is whose values were read in the wrong range."""
        return self.spread[1] - self.spread[0] < FLAT


def look(img: Image.Image, side: int = CACHE_SIDE) -> Look:
    pixels = shrink(img, side)
    digest = hashlib.blake2b(pixels.tobytes() + str(pixels.shape).encode(), digest_size=16).digest()
    return Look(pixels, digest, min(img.size), (int(pixels.min()), int(pixels.max())), duplicates.thumbnail(pixels))


def scan(data: Data, keep: Iterable[str] = ("train",), side: int = CACHE_SIDE) -> Scan:
    """Decode every image once, on all cores; splits in `keep` keep the pixels in memory as far as CACHE_BYTES allows.

    `side`: the short side that they are kept with (`dataset.cache_side` of the network, where that is known). Damaged
    images leave their split (the caller decides whether to go on). Shards were looked at when they were written: what
    was found then is in their index.
    """
    if data.scan is not None:
        return Scan(**{**data.scan, "source": data.source})
    found = Scan(data.source, {}, empty=data.empty, left_out=[*data.left_out], unread=[*data.unread])
    hashes: dict[str, dict[bytes, str]] = {}
    thumbs: dict[str, list[Thumbs]] = {name: [] for name in data.splits}
    sides: list[int] = []
    room = CACHE_BYTES

    def one(split: Split, i: int) -> Look | str:
        try:
            return look(split.rgb(i, side), side)
        except BadImage as e:
            return str(e)

    total = sum(map(len, data.splits.values()))
    with ThreadPoolExecutor(processor.cores()) as pool, console.progress() as bar:
        task = bar.add_task("checking", total=total, status="")
        for name, split in data.splits.items():
            good = []
            if name in keep:
                split.cache, split.cached_at = {}, side
            for i, seen in enumerate(pool.map(lambda i, s=split: one(s, i), range(len(split)))):
                bar.advance(task)
                if isinstance(seen, str):
                    found.damaged.append(seen)
                    continue
                good.append(i)
                sides.append(seen.side)
                thumbs[name].append(seen.thumb)
                if seen.flat:
                    found.flat.append(f"{split.names[i]} ({seen.spread[0]}..{seen.spread[1]})")
                hashes.setdefault(name, {})[seen.digest] = split.names[i]
                if name in keep and seen.pixels.nbytes <= room:
                    split.cache[i] = seen.pixels
                    room -= seen.pixels.nbytes
            if len(good) < len(split):
                data.splits[name] = split.subset(good)
    compare(data, found, hashes, {name: np.array(t) for name, t in thumbs.items() if t}, sides)
    return found


def compare(
    data: Data,
    found: Scan,
    hashes: Mapping[str, Mapping[bytes, str]],
    thumbs: Mapping[str, Thumbs],
    sides: Sequence[int],
) -> None:
    """Complete `found` with what the splits say together.

    `hashes`: by split, an image's name by its hash. `thumbs`: by split, its images' thumbnails.
    """
    for name, split in data.splits.items():
        if isinstance(split.targets, np.ndarray) and split.targets.dtype.kind == "i":
            count = np.bincount(split.targets, minlength=len(data.labels))
            found.counts[name] = {c: int(n) for c, n in zip(data.labels, count, strict=True)}
        elif isinstance(split.targets, np.ndarray) and data.labels:  # tags
            holds = np.nansum(split.targets, 0).tolist()
            found.counts[name] = {c: int(n) for c, n in zip(data.labels, holds, strict=True)}
            found.images[name] = len(split)
            if name == "train":
                every = zip(data.labels, split.targets.T, strict=True)
                found.alike = [c for c, said in every if len({*said[~np.isnan(said)].tolist()}) < 2]
        elif isinstance(split.targets, list) and split.targets and all(isinstance(t, Boxes) for t in split.targets):
            each = np.concatenate([t.classes for t in split.targets])
            holds = np.bincount(each, minlength=len(data.labels)).tolist()
            found.counts[name] = {c: int(n) for c, n in zip(data.labels, holds, strict=True)}
            found.images[name], found.boxes[name] = len(split), len(each)
        else:  # what isn't a class has no counts but the images'
            found.counts[name] = {"images": len(split)}
    train = hashes.get("train", {})
    for name, seen_in in hashes.items():
        if name != "train":
            found.leaks += [(train[d], other) for d, other in seen_in.items() if d in train]
    found.near += _near(data, thumbs, {*found.leaks})
    held_out = {c for name, per in found.counts.items() if name != "train" for c, n in per.items() if n}
    in_train = {c for c, n in found.counts.get("train", {}).items() if n}
    found.only_train = sorted(in_train - held_out)
    found.only_held_out = sorted(held_out - in_train)
    found.native_side = int(np.median(sides)) if len(sides) else 0


def _near(data: Data, thumbs: Mapping[str, Thumbs], known: set[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Pairs of names, but for those `known`. None of glyphs: two hands write the same letter alike."""
    for name in thumbs if data.kind == "photo" and "train" in thumbs else ():
        if name != "train":
            train, other = data.splits["train"].names, data.splits[name].names
            pairs = ((train[i], other[j]) for i, j in duplicates.near(thumbs["train"], thumbs[name]))
            yield from (pair for pair in pairs if pair not in known)


def check(data: Data, skip_bad: bool = False, side: int = CACHE_SIDE, yes: bool = False) -> Scan:
    """Scan before training: prints what was found, and stops at what would spoil the training. Raises `UserError`.

    `yes`: folders that look like no classes are classes.
    """
    stop_at_doubts(data, yes)
    found = scan(data, side=side)
    console.note(found)
    stop_at_damage(found, skip_bad)
    if "train" not in data.splits:
        raise UserError(f"{data.source} has no training images, only {', '.join(data.splits)}")
    if "val" not in data.splits or not len(data.split("val")):
        groups = data.split("train").groups
        if groups is not None and (groups == groups[0]).all():
            raise UserError(f"{data.source}: all images are of one group: at least two are needed, to hold out one")
        raise UserError(
            f"{data.source}: no class has an image to hold out: at least two images of some class are needed, better "
            "many of each"
        )
    if found.only_held_out and not found.images:
        raise UserError(f"{data.source}: class {found.only_held_out[0]!r} has no training images")
    return found


def stop_at_doubts(data: Data, yes: bool) -> None:
    if data.doubts and not yes:
        why = "; ".join(data.doubts)
        raise UserError(f"{data.source} doesn't look like a folder of classes ({why}); --yes goes on with it")


def stop_at_damage(found: Scan, skip_bad: bool) -> None:
    if found.unread and not skip_bad:
        raise UserError(
            f"{found.source}: no picture of {', '.join(found.unread)} can be read (listed above); convert them, or go "
            "on without: --skip-bad"
        )
    if found.damaged and not skip_bad:
        raise UserError(
            f"{found.source}: {console.many(len(found.damaged), 'damaged image')} (listed above): mend or remove "
            "them, or go on without: --skip-bad"
        )
