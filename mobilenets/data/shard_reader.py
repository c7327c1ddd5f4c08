"""Reading shards: tar files whose index says where each image is, in a folder or on a web server.

The index is `index.json`, and for each split an .npz of its images' places, sizes, classes (or boxes) and names, in
shard order.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import queue
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from mobilenets import files, web
from mobilenets.arch import fields
from mobilenets.data import remote
from mobilenets.data.boxes import Boxes
from mobilenets.data.checks import Scan
from mobilenets.data.dataset import Data, Kind, Split
from mobilenets.data.folder import MOST_UNPACKED
from mobilenets.errors import UserError
from mobilenets.model.convert.formats import one_line
from mobilenets.model.images import TIMES, BadImage

INDEX, FORMAT = "index.json", "mobilenets-shards-1"
BOXES = "boxes"  # of an index: what its images' targets are, where they aren't classes
PLAN = "plan.json"  # in a folder whose shards are still being written
INDEX_BYTES = 256 << 20  # at most
TABLE_BYTES = 64 << 20  # that a table may unpack to, however small it is
OPEN = 64  # files held open by a process
STREAMS, WINDOW = 8, 2
AHEAD = 2  # windows whose shards are fetched before their turn
CONNECTIONS = 4  # of a process, at a time
FILE = re.compile(r"(train|val|test)(-\d{6,}\.tar|\.npz)")


@dataclass(frozen=True)
class Part:
    """One file of the set: a shard, or a split's table. `count` images; sizes in bytes."""

    file: str
    count: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not FILE.fullmatch(self.file) or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"{self.file!r}: no name or no SHA-256 of a shard")
        if not all(type(n) is int and 0 <= n < 1 << 62 for n in (self.count, self.bytes)):
            raise ValueError(f"{self.file}: {self.count} images, {self.bytes} bytes")


@dataclass(frozen=True)
class Place:
    """Where the files of a set are: a folder, or an address, from which each is fetched when it is wanted."""

    where: str
    cache: remote.Cache

    @property
    def far(self) -> bool:
        return "://" in self.where

    def path(self, part: Part) -> Path:
        if self.far:
            return self.cache.get(f"{self.where}/{part.file}", part.sha256, part.bytes)
        return Path(self.where) / part.file


class Names(Sequence[str]):
    """Texts joined by line ends, as one array of bytes: a million take no more room than their letters."""

    def __init__(self, joined: npt.NDArray[np.uint8]) -> None:
        self.joined = joined
        self.ends = np.append(np.flatnonzero(joined == ord("\n")), [len(joined)] if len(joined) else [])

    @staticmethod
    def join(names: Sequence[str]) -> npt.NDArray[np.uint8]:
        return np.frombuffer("\n".join(n.replace("\n", " ") for n in names).encode(errors="replace"), np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        return self.joined[self.ends[i - 1] + 1 if i else 0 : self.ends[i]].tobytes().decode(errors="replace")


def find(source: str) -> str | None:
    """The folder or address of the shards that `source` names, or None if it isn't one of shards."""
    if source.startswith(("http://", "https://")):
        return source.removesuffix(INDEX).rstrip("/")
    path = Path(source.removeprefix("file://"))
    path = path.parent if path.name == INDEX else path
    for name in (INDEX, PLAN):
        with contextlib.suppress(OSError), (path / name).open("rb") as f:
            if FORMAT.encode() in f.read(100):
                return str(path)
    return None


def open_shards(source: str) -> Data:
    """The data set whose shards are in the folder, or at the address, `source`. Raises `UserError`."""
    where = find(source)
    assert where is not None
    index = _index(where)
    place = Place(where, remote.default_cache())
    try:
        labels = tuple(index["labels"])
        splits = {}
        for name, entry in index["splits"].items():
            table, shards = Part(**entry["table"]), tuple(Part(**s) for s in entry["shards"])
            splits[name] = _split(name, place, table, shards, len(labels), index.get("targets") == BOXES)
        found = Scan.from_json(index["scan"]).to_json()
        pairs = {kind: [(a, b) for a, b in found[kind]] for kind in ("leaks", "near")}
        scan = {**found, "empty": tuple(found["empty"]), **pairs}
        count = sum(map(len, splits.values()))
        which = "".join(index["splits"][name]["table"]["sha256"] for name in sorted(splits))
        images = {"count": count, "digest": hashlib.sha256(which.encode()).hexdigest()[:16]}
        fields.check(labels, tuple[str, ...], "labels")
        fields.check(index["kind"], Kind, "kind")
        fields.check(index["val_fraction"], float | None, "val_fraction")
        ids = index.get("category_ids", {})
        fields.check(ids, dict[str, int], "category_ids")
        return Data(
            source, labels, splits, index["kind"], val_fraction=index["val_fraction"], scan=scan, images=images,
            category_ids=ids, form="shards",
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError, MemoryError) as e:
        raise UserError(
            f"{source}: its index isn't one of shards, or is damaged ({one_line(e)}); write them anew"
        ) from e


def _index(where: str) -> dict[str, Any]:
    if "://" in where:
        content = web.read(f"{where}/{INDEX}", INDEX_BYTES)
    elif (Path(where) / INDEX).exists():
        content = (Path(where) / INDEX).read_bytes()
    else:
        raise UserError(f"{where}: the shards aren't finished; go on with the same `mobilenets shards` command")
    try:
        index = files.parse_json(content)
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']!r}")
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{where}: {INDEX} is no index of shards that this version knows ({one_line(e)})") from e
    return dict(index)


def _split(
    name: str, place: Place, table: Part, shards: tuple[Part, ...], num_classes: int, boxed: bool
) -> Split:  # fmt: skip
    kinds = {"offset": "iu", "size": "iu", "target": "iu", "names": "u", **({"boxes": "u"} if boxed else {})}
    columns = read_table(place.path(table), kinds)
    offsets, sizes, targets = (columns[k].astype(np.int64) for k in ("offset", "size", "target"))
    names = Names(columns["names"])
    counts = tuple(s.count for s in shards)
    shapes = {len(offsets), len(sizes), len(targets), len(names), table.count, sum(counts)}
    if len(shapes) > 1:
        raise ValueError(f"{table.file} has {sorted(shapes)} images")
    room = np.repeat([s.bytes for s in shards], counts)
    if len(targets) and not (
        offsets.min() >= 0 and sizes.min() >= 0 and (sizes <= room).all() and (offsets <= room - sizes).all()
        and targets.min() >= 0
    ):  # fmt: skip
        raise ValueError(f"{table.file} points outside of its shards or classes")
    boxes = [Boxes.from_json(files.parse_json(line)) for line in Names(columns["boxes"])] if boxed else []
    if boxed and [len(b) for b in boxes] != targets.tolist():
        raise ValueError(f"{table.file} has other numbers of boxes than it says")
    classes = np.concatenate([b.classes for b in boxes]) if boxes else targets
    if len(classes) and classes.max() >= num_classes:
        raise ValueError(f"{table.file} has classes that aren't named")
    return Split(name, names, boxes if boxed else targets, Reader(place, shards, names, offsets, sizes), shards=counts)


def read_table(path: Path, columns: Mapping[str, str]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of an .npz by name, each of one axis and of a kind (numpy's letters) that `columns` allows.

    Raises ValueError for a damaged file, and for one that unpacks to more than a table can need.
    """
    try:
        with zipfile.ZipFile(path) as z:
            unpacked = sum(info.file_size for info in z.infolist())
        if unpacked > max(TABLE_BYTES, TIMES * path.stat().st_size):
            raise ValueError(f"it unpacks to {unpacked:,} bytes")
        with np.load(path, allow_pickle=False) as t:
            found = {k: t[k] for k in columns}
    except Exception as e:  # of zipfile, zlib, numpy's reader of headers
        raise ValueError(f"{path.name} is damaged: {e}") from e
    for k, kinds in columns.items():
        if found[k].ndim != 1 or found[k].dtype.kind not in kinds:
            raise ValueError(f"{path.name}: {k} is {found[k].dtype} of {found[k].ndim} axes")
    return found


class _Open:
    """A file that any thread, and any process forked later, can read at once; closed when nobody uses it."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb", buffering=0)
        self.ends = os.fstat(self.file.fileno()).st_size
        self.turn = threading.Lock()

    def read(self, size: int, offset: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self.file.fileno(), size, offset)
        with self.turn:  # Windows: a file has one position, and processes aren't forked
            self.file.seek(offset)
            return self.file.read(size)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()


class Reader:
    """Image i's bytes, from any thread and process: a read has no position to share."""

    def __init__(
        self,
        place: Place,
        shards: tuple[Part, ...],
        names: Sequence[str],
        offsets: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
    ) -> None:
        self.place, self.shards, self.names, self.offsets, self.sizes = place, shards, names, offsets, sizes
        self.ends = np.cumsum([s.count for s in shards])
        self.open = functools.lru_cache(OPEN)(self._open)

    def __reduce__(self) -> tuple[Any, ...]:  # to a process that starts anew: it opens files of its own
        return Reader, (self.place, self.shards, self.names, self.offsets, self.sizes)

    def __call__(self, i: int) -> bytes:
        shard = int(np.searchsorted(self.ends, i, side="right"))
        try:
            file = self.open(shard)  # kept until it is read, or its descriptor would close
            size = min(int(self.sizes[i]), MOST_UNPACKED + 1)
            content = file.read(size, int(self.offsets[i])) if file.ends >= self.offsets[i] + size else b""
        except OSError as e:
            raise BadImage(f"{self.names[i]}: {self.shards[shard].file} can't be read ({e})") from e
        if len(content) < self.sizes[i]:
            raise BadImage(f"{self.names[i]}: {self.shards[shard].file} ends before it; write the shards anew")
        return content

    def ahead(self, images: npt.NDArray[np.int64]) -> Iterator[int]:
        """`images` one by one; shards that lie elsewhere are fetched, by threads, before their turn comes."""
        room = self.place.cache.limit // (2 * max(s.bytes for s in self.shards))  # beyond, they go before they are read
        if not self.place.far or not room:
            yield from images.tolist()
            return
        shards, first = np.unique(np.searchsorted(self.ends, images, side="right"), return_index=True)
        line = sorted(zip(first.tolist(), shards.tolist(), strict=True))
        horizon = AHEAD * WINDOW * (self.ends[-1] // len(self.shards))
        asked = used = 0
        wanted: queue.SimpleQueue[int | None] = queue.SimpleQueue()

        def fetch() -> None:
            while (shard := wanted.get()) is not None:
                with contextlib.suppress(UserError, OSError):  # whoever reads it says so
                    self.place.path(self.shards[shard])

        for _ in range(CONNECTIONS):
            threading.Thread(target=fetch, daemon=True).start()
        try:
            for n, i in enumerate(images.tolist()):
                while used < len(line) and line[used][0] < n:
                    used += 1
                while asked < len(line) and line[asked][0] <= n + horizon and asked - used < room:
                    wanted.put(line[asked][1])
                    asked += 1
                yield i
        finally:
            for _ in range(CONNECTIONS):
                wanted.put(None)

    def _open(self, shard: int) -> _Open:
        for attempt in itertools.count():
            try:
                return _Open(self.place.path(self.shards[shard]))
            except FileNotFoundError:  # another process made room in the cache just now
                if attempt == 3:
                    raise
        raise AssertionError


def order(counts: Sequence[int], batch: int, streams: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """All images, shuffled anew in each epoch, nearly as they lie: [steps, streams, batch / streams].

    The shards, permuted, make one line of images, cut into `streams` equal pieces, each shuffled within windows of
    WINDOW shards' length; a batch takes as many of each piece. So what a process reads at a time is in a few shards,
    processes that take different streams read different shards, and what is in a batch doesn't depend on their
    number. Few shards are shuffled as a whole. Each image comes once, but for the last, short batch, which is left
    out: other images in each epoch.
    """
    rng = np.random.default_rng([seed & 0xFFFFFFFF, epoch])
    total = sum(counts)
    if len(counts) <= streams * WINDOW:
        line = rng.permutation(total)
    else:
        starts = np.cumsum([0, *counts])
        line = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in rng.permutation(len(counts))])
    steps = total // batch
    each = batch // streams
    pieces = line[: steps * batch].reshape(streams, steps * each)
    window = max(1, WINDOW * total // len(counts))
    for k, piece in enumerate(pieces):
        first = window * (k + 1) // streams  # pieces come to their next window one after another
        for end in range(first, len(piece) + window, window):
            rng.shuffle(piece[max(0, end - window) : end])
    return pieces.reshape(streams, steps, each).transpose(1, 0, 2)


def streams(batch: int, world: int) -> int:
    """How many streams fill a batch: the same for 1, 2, 4 and 8 processes where the batch can be cut so."""
    return STREAMS if batch % STREAMS == 0 and STREAMS % world == 0 else world
