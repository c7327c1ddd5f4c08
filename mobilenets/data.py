"""Images with labels: a folder or zip of class folders, `digits`, torchvision's sets by name; their splits."""

from __future__ import annotations

import dataclasses
import os
import threading
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets import imagenet
from mobilenets.bundle import Card
from mobilenets.errors import UserError
from mobilenets.images import SUFFIXES, BadImage, Pixels, Preprocess, open_rgb

if TYPE_CHECKING:
    pass

Kind = Literal["photo", "glyph"]
Read = Callable[[int], "Path | bytes | Image.Image"]
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
CACHE_SIDE = 256  # cached training images keep at most this short side: enough for random crops at 224
CACHE_BYTES = min(4 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)


@dataclass
class Split:
    """One split's images: names, class indices, and how to read image i (a path, its bytes, or decoded already).

    `shards`: how many lie together in each file, one file after another; empty if reading order doesn't matter.
    """

    name: str
    names: Sequence[str]
    targets: npt.NDArray[np.int64]
    read: Read
    cache: dict[int, Pixels] = field(default_factory=dict, repr=False)
    shards: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def rgb(self, i: int, short_side: int = 0) -> Image.Image:
        """Image i, decoded; raises `BadImage`."""
        source = self.read(i)
        return source.convert("RGB") if isinstance(source, Image.Image) else open_rgb(source, self.names[i], short_side)

    def cached(self, i: int) -> Pixels:
        """Image i as uint8 [H, W, 3], its short side at most CACHE_SIDE: from memory if the scan kept it there."""
        return self.cache[i] if i in self.cache else shrink(self.rgb(i, CACHE_SIDE))

    def pixels(self, i: int, preprocess: Preprocess) -> Pixels:
        """Image i as the network takes it, uint8 [R, R, 3]: the one path that training scores and predictions share."""
        return preprocess.fit(self.rgb(i, preprocess.short_side))

    def subset(self, keep: Sequence[int] | npt.NDArray[np.int64], name: str = "") -> Split:
        index = [int(i) for i in keep]
        read = self.read
        return Split(
            name or self.name,
            [self.names[i] for i in index],
            self.targets[index],
            lambda j: read(index[j]),
            {j: self.cache[i] for j, i in enumerate(index) if i in self.cache},
        )


@dataclass(frozen=True)
class Batch:
    """Preprocessed images, uint8 [N, R, R, 3], and their classes [N]."""

    pixels: Pixels
    targets: npt.NDArray[np.int64]


@dataclass
class Data:
    """A labelled data set with its splits. `kind` "glyph" means a mirrored or half-hidden image is another class.

    `scan`: what a look at every image found, if there was one already (a `checks.Scan` as JSON).
    """

    source: str
    labels: tuple[str, ...]
    splits: dict[str, Split]
    kind: Kind = "photo"
    empty: tuple[str, ...] = ()
    seed: int = 0
    val_fraction: float | None = None
    scan: dict[str, Any] | None = None

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
            return _joined(list(self.splits.values()))
        if name not in self.splits:
            raise UserError(f"{self.source} has no split {name!r}; it has {', '.join(self.splits)} (and all)")
        return self.splits[name]

    def sample(self, split: str, count: int, preprocess: Preprocess) -> Batch:
        """Up to `count` readable images of a split, drawn at random but the same each time."""
        s = self.split(split)
        n = len(s)  # in shards, they lie in random order already, and near ones can be read without the others
        order = np.arange(n) if s.shards else np.random.default_rng(self.seed).permutation(n)
        order = order[:count]
        return gather(s.subset(order), preprocess)

    def describe(self) -> dict[str, Any]:
        """What a card says of the data it was trained on."""
        return {
            "source": self.source,
            "counts": {k: len(s) for k, s in self.splits.items()},
            "split_seed": self.seed,
            "val_fraction": self.val_fraction,
        }


def gather(split: Split, preprocess: Preprocess) -> Batch:
    """A whole split preprocessed into memory, decoded on all cores; damaged images are left out."""

    def one(i: int) -> Pixels | None:
        try:
            return split.pixels(i, preprocess)
        except BadImage:
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        out = list(pool.map(one, range(len(split))))
    keep = [i for i, p in enumerate(out) if p is not None]
    r = preprocess.resolution
    pixels = np.stack([p for p in out if p is not None]) if keep else np.empty((0, r, r, 3), np.uint8)
    return Batch(pixels, split.targets[keep])


def _joined(splits: list[Split]) -> Split:
    where = [(s, i) for s in splits for i in range(len(s))]
    names = [s.names[i] for s, i in where]
    return Split("all", names, np.concatenate([s.targets for s in splits]), lambda j: where[j][0].read(where[j][1]))


def shrink(img: Image.Image) -> Pixels:
    """RGB image -> uint8 [H, W, 3], its short side at most CACHE_SIDE."""
    if min(img.size) > CACHE_SIDE:
        f = CACHE_SIDE / min(img.size)
        img = img.resize((round(img.width * f), round(img.height * f)), Image.Resampling.BILINEAR)
    return np.asarray(img)


def open_data(source: str, root: Path | None = None, seed: int = 0, val: float | None = None) -> Data:
    """Open a folder, a zip, shards (their folder or address) or a named set.

    Where there is no val split, a seeded stratified share of train becomes it: `val`, or a fifth (a tenth where there
    is a test split). A smaller share is a part of a larger one.

    Raises `UserError` for one that isn't there or has fewer than two classes, and for `val` where there is a val split.
    """
    from mobilenets import sharded

    if val is not None and not 0 < val < 1:
        raise UserError(f"val is a share of the training images, above 0 and below 1, not {val:g}")
    path = Path(source)
    if sharded.find(source):
        data = sharded.open_shards(source)
    elif path.is_dir():
        data = _from_files(source, *_folder(path))
    elif path.is_file():
        data = _from_files(source, *_zip(path))
    elif source == "digits":
        data = _digits()
    else:
        from mobilenets.named import open_named

        data = open_named(source, root)
    data.seed = seed
    if len(data.labels) < 2:
        have = f"only one class, {data.labels[0]!r}" if data.labels else "no class folders with images"
        raise UserError(f"{source}: {have}; classification needs a folder of images for each of at least two classes")
    if "train" in data.splits and "val" not in data.splits:
        _hold_out(data, val or (0.1 if "test" in data.splits else 0.2))
    elif val is not None:
        raise UserError(f"{source} has a val split of its own: leave out --val")
    return data


def open_unlabelled(source: str, root: Path | None = None, seed: int = 0) -> Data:
    """All images of a folder, a zip or a named set as one class, whatever folders they are in; a tenth is held out."""
    path = Path(source)
    if path.is_dir() or path.is_file():
        names, _, read = _folder(path) if path.is_dir() else _zip(path)
        if len(names) < 2:
            raise UserError(f"{source}: {len(names)} images; give a folder or a zip of more")
        every = Split("train", names, np.zeros(len(names), np.int64), lambda i: read(names[i]))
    else:
        every = open_data(source, root, seed).split("all")
        every = dataclasses.replace(every, name="train", targets=np.zeros(len(every), np.int64))
    data = Data(source, ("images",), {"train": every}, seed=seed)
    _hold_out(data, 0.1)
    return data


def _hold_out(data: Data, fraction: float) -> None:
    """Make a seeded, stratified `fraction` of train the val split."""
    data.val_fraction = fraction
    train = data.splits["train"]
    held = stratified(train.targets, fraction, data.seed)
    rest = np.setdiff1d(np.arange(len(train)), held)
    data.splits = {**data.splits, "train": train.subset(rest), "val": train.subset(held, "val")}


def of_card(card: Card, source: str | None, root: Path | None = None) -> Data:
    """The data a bundle names as its own (or `source` instead), its classes put in the bundle's order."""
    name = source or card.data.get("source")
    if not name:
        raise UserError("the bundle doesn't say what data it was trained on; name some")
    try:
        val = card.data.get("val_fraction") if name == card.data.get("source") else None
        data = open_data(str(name), root, card.data.get("split_seed", 0), val)
    except UserError as e:
        raise e if source else UserError(f"the data the bundle was trained on can't be opened; name some ({e})") from e
    return in_order(data, card.labels)


def in_order(data: Data, labels: tuple[str, ...]) -> Data:
    """`data` with its targets numbered as in `labels`; a UserError for a class that isn't one of them.

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
    to = np.array([names.index(c) for c in data.labels])
    for s in data.splits.values():
        s.targets = to[s.targets]
    data.labels = labels
    return data


def stratified(targets: npt.NDArray[np.int64], fraction: float, seed: int) -> npt.NDArray[np.int64]:
    """Indices of a seeded `fraction` of each class, at least one where the class has two images; sorted."""
    rng = np.random.default_rng(seed)
    held = []
    for c in np.unique(targets):
        index = rng.permutation(np.flatnonzero(targets == c))
        held.append(index[: min(max(1, round(fraction * len(index))), len(index) - 1)])
    return np.sort(np.concatenate(held))


def _folder(path: Path) -> tuple[list[str], list[str], Callable[[str], Path | bytes]]:
    files, dirs = [], []
    for here, subdirs, names in os.walk(path, followlinks=True):
        subdirs[:] = sorted(d for d in subdirs if not d.startswith("."))
        rel = Path(here).relative_to(path).as_posix()
        dirs.append(rel)
        files += [f"{rel}/{n}".removeprefix("./") for n in sorted(names) if is_image_name(n)]
    return files, dirs[1:], lambda name: path / name


def _zip(path: Path) -> tuple[list[str], list[str], Callable[[str], Path | bytes]]:
    try:
        with zipfile.ZipFile(path) as z:
            names = sorted(z.namelist())
    except (zipfile.BadZipFile, OSError) as e:
        raise UserError(f"{path}: not a folder, nor a readable zip of class folders ({e})") from e
    local = threading.local()  # a ZipFile is not for several threads at once: one each

    def read(name: str) -> bytes:
        if getattr(local, "pid", None) != os.getpid():  # nor for a forked worker
            local.zip, local.pid = zipfile.ZipFile(path), os.getpid()
        return read_member(local.zip, name, name)

    files = [n for n in names if is_image_name(n)]
    dirs = {n.rstrip("/") for n in names if n.endswith("/") and not n.startswith(("__MACOSX", "."))}
    return files, sorted(dirs), read


def read_member(z: zipfile.ZipFile, member: str, name: str) -> bytes:
    """A zip's member; `BadImage`, calling it `name`, if it can't be unpacked."""
    try:
        return z.read(member)
    except Exception as e:  # damaged zips raise many types, from zlib's to NotImplementedError
        raise BadImage(f"{name}: can't be read from the zip ({e})") from e


def is_image_name(name: str) -> bool:
    base = PurePosixPath(name).name
    return base.lower().endswith(SUFFIXES) and not base.startswith(".") and "__MACOSX" not in name


def _from_files(source: str, files: list[str], dirs: list[str], read: Callable[[str], Path | bytes]) -> Data:
    """[outer/][split/]class/... -> Data. `dirs` tells of classes with no image in them."""
    if not files:
        raise UserError(f"{source}: no images; expected a folder of images for each class")
    depth = 0
    while len({f.split("/")[depth] for f in files}) == 1 and all(f.count("/") > depth + 1 for f in files):
        if files[0].split("/")[depth].lower() in SPLITS:
            break
        depth += 1
    tops = {f.split("/")[depth] for f in files if f.count("/") > depth}
    splits_named = {t.lower() for t in tops}
    has_splits = bool(tops) and splits_named <= set(SPLITS) and "train" in splits_named
    at = depth + has_splits
    found: dict[str, list[tuple[str, str]]] = {}
    for f in files:
        parts = f.split("/")
        if len(parts) > at + 1:
            found.setdefault(SPLITS[parts[depth].lower()] if has_splits else "train", []).append((f, parts[at]))
    labels = sorted({c for rows in found.values() for _, c in rows})
    known = {c: i for i, c in enumerate(labels)}
    empty = sorted({p[at] for d in dirs if len(p := d.split("/")) > at and p[at] not in known})
    splits = {}
    for name in ("train", "val", "test"):
        if rows := found.get(name):
            names = [f for f, _ in rows]
            targets = np.array([known[c] for _, c in rows], np.int64)
            splits[name] = Split(name, names, targets, lambda i, names=names: read(names[i]))  # type: ignore[misc]
    return Data(source, tuple(labels), splits, empty=tuple(empty))


def _digits() -> Data:
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = np.rint(raw.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]
    targets = raw.target.astype(np.int64)
    names = [f"digits/{i:04d}" for i in range(len(targets))]
    labels = tuple(str(i) for i in range(10))
    return Data(
        "digits", labels, {"train": Split("train", names, targets, lambda i: Image.fromarray(pixels[i]))}, "glyph"
    )
