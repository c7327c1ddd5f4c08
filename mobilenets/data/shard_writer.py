"""A data set as shards: tar files of a size that streams well, with an index. WebDataset readers read them too.

Beside each image is its class, `.cls`, or its boxes, `.json` (see `Boxes.to_json`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets import console, files
from mobilenets.data import checks
from mobilenets.data.boxes import Boxes
from mobilenets.data.checks import Look, Scan, look
from mobilenets.data.dataset import CACHE_SIDE, Data, Split
from mobilenets.data.duplicates import COLUMNS, ROWS, Thumbs
from mobilenets.data.shard_reader import BOXES, FORMAT, INDEX, PLAN, Names, Part
from mobilenets.errors import UserError
from mobilenets.model.images import BadImage, open_rgb

PROBE = 256  # images whose sizes say how many go into a shard
LOSSLESS_SIDE = 64  # images that have no file are kept as PNG up to this short side, beyond as JPEG
QUALITY = 95
NUMBERS = ("offset", "size", "target", "side", "low", "high")  # of each image, in a shard's table
TEXTS = ("digest", "thumb", "names", "left_out", "boxes", "sha256")  # what else is in one


@dataclass(frozen=True)
class Writer:
    """The shards of `data` in `out`. A shard counts as written when its table is beside it."""

    data: Data
    out: Path
    short_side: int

    def prepare(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The plan, recorded in the folder: how many shards each split has. One that is there must be of the same."""
        digest = hashlib.sha256()
        for name, split in self.data.splits.items():
            digest.update("\n".join([name, *split.names, ""]).encode(errors="replace") + _bytes(split.targets))
        asked = {"format": FORMAT, **arguments, "images": digest.hexdigest()}
        for path in (self.out / INDEX, self.out / PLAN):
            if path.exists():
                kept = files.read_json(path, (), "shards")
                plan: Any = kept.get("plan", kept)
                if not isinstance(plan, dict) or not isinstance(plan.get("shards"), dict):
                    raise UserError(f"{path}: damaged: it has no plan of shards; choose another folder, or remove it")
                changed = [k for k, v in asked.items() if plan.get(k) != v]
                if changed:
                    what = "images" if changed[0] == "images" else f"{changed[0]} {plan.get(changed[0])}"
                    raise UserError(f"{self.out} holds shards of other {what}; choose another folder, or remove it")
                return plan
        if self.out.exists() and not (self.out.is_dir() and all(".tmp." in p.name for p in self.out.iterdir())):
            raise UserError(f"{self.out} is there already and holds no shards; choose another folder")
        asked["shards"] = {
            name: max(1, math.ceil(len(s) * self._mean_bytes(s) / (1e6 * arguments["shard_mb"])))
            for name, s in self.data.splits.items()
        }
        files.write_json(self.out / PLAN, asked)
        return asked

    def write(self, counts: dict[str, int], workers: int, skip_bad: bool) -> list[str]:
        """Write the shards that are missing; what is damaged is returned, or with `skip_bad` left out."""
        missing = [
            (split, k, images)
            for split in self.data.splits.values()
            for k, images in enumerate(self._shares(split, counts[split.name]))
            if not self._table(split.name, k).exists()
        ]
        damaged: list[str] = []
        stop = threading.Event()
        with console.progress() as bar, ThreadPoolExecutor(workers) as pool:
            task = bar.add_task("writing", total=sum(map(len, self.data.splits.values())), status="")
            bar.advance(task, sum(map(len, self.data.splits.values())) - sum(len(images) for *_, images in missing))

            def one(split: Split, k: int, images: npt.NDArray[np.int64]) -> list[str]:
                def each() -> Iterator[int]:
                    for i in images:
                        if stop.is_set():
                            raise Stopped
                        yield int(i)
                        bar.advance(task)

                return self._shard(split, k, each(), skip_bad)

            pending = [pool.submit(one, *m) for m in missing]
            try:
                for done in as_completed(pending):
                    damaged += done.result()
            finally:  # on Ctrl-C or a full disk, the others stop at their next image
                stop.set()
                for p in pending:
                    p.cancel()
        return damaged

    def finish(self, plan: dict[str, Any]) -> None:
        """Join the shards' tables, compare the splits, and write the index."""
        found = Scan(self.data.source, {}, empty=self.data.empty)
        good, entries, left_out = {}, {}, []
        hashes: dict[str, dict[bytes, str]] = {}
        thumbs: dict[str, Thumbs] = {}
        sides: list[npt.NDArray[np.int64]] = []
        for name, count in plan["shards"].items():
            tables = [self._read(self._table(name, k)) for k in range(count)]
            parts = [asdict(_part(self._path(name, k), len(t["size"]), str(t["sha256"]))) for k, t in enumerate(tables)]
            joined = {k: np.concatenate([t[k] for t in tables]) for k in (*NUMBERS, "digest", "thumb")}
            thumbs[name] = joined["thumb"]
            names = [n for t in tables for n in Names(t["names"])]
            left_out += [n for t in tables for n in Names(t["left_out"])]
            hashes[name] = {d.tobytes(): n for d, n in zip(joined["digest"], names, strict=True)}
            sides.append(joined["side"])
            spreads = zip(names, joined["low"].tolist(), joined["high"].tolist(), strict=True)
            found.flat += [f"{n} ({low}..{high})" for n, low, high in spreads if high - low < checks.FLAT]
            kept: dict[str, Any] = {k: joined[k] for k in ("offset", "size", "target")}
            targets: Any = joined["target"]
            if self._of_boxes:
                said = [b for t in tables for b in Names(t["boxes"])]
                targets, kept["boxes"] = [Boxes.from_json(json.loads(b)) for b in said], Names.join(said)
            good[name] = Split(name, names, targets, self.data.splits[name].read)
            path = self.out / f"{name}.npz"
            with files.atomic_file(path) as tmp, tmp.open("wb") as f:
                np.savez_compressed(f, names=Names.join(names), **kept)
            entries[name] = {"table": asdict(_part(path, len(names), files.sha256(path))), "shards": parts}
        whole = Data(self.data.source, self.data.labels, good, self.data.kind)
        checks.compare(whole, found, hashes, thumbs, np.concatenate(sides).tolist())
        index = {
            "format": FORMAT, "source": self.data.source, "labels": self.data.labels, "kind": self.data.kind,
            "val_fraction": self.data.val_fraction, "left_out": left_out, "scan": found.to_json(), "plan": plan,
            "splits": entries, "category_ids": self.data.category_ids,
            **({"targets": BOXES} if self._of_boxes else {}),
        }  # fmt: skip
        files.write_json(self.out / INDEX, index)

    def _read(self, table: Path) -> dict[str, npt.NDArray[Any]]:
        try:
            with np.load(table, allow_pickle=False) as t:
                return {k: t[k] for k in (*NUMBERS, *TEXTS)}
        except Exception as e:  # of zipfile, zlib, numpy's reader of headers
            raise UserError(f"{table}: damaged ({e}); remove it, and run the same command again") from e

    def clean(self, counts: dict[str, int]) -> None:
        """Remove what only an unfinished folder needs, and what a killed call left."""
        for p in self.out.glob(".*.tmp.*"):
            p.unlink(missing_ok=True)
        for name, count in counts.items():
            for k in range(count):
                self._table(name, k).unlink(missing_ok=True)
        (self.out / PLAN).unlink(missing_ok=True)

    def _shard(self, split: Split, k: int, images: Iterator[int], skip_bad: bool) -> list[str]:
        """Write one shard, and its table unless an image is damaged that is not to be left out."""
        damaged, left_out, names, said = [], [], [], []
        rows: list[tuple[int, ...]] = []
        digests, thumbs = bytearray(), bytearray()
        path = self._path(split.name, k)
        with files.atomic_file(path) as tmp, tarfile.open(tmp, "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in images:
                try:
                    content, suffix, seen, size = self._encode(split, i)
                except BadImage as e:
                    damaged.append(str(e))
                    left_out.append(split.names[i])
                    continue
                offset, target = _add(tar, f"{i:08d}.{suffix}", content), split.targets[i]
                if isinstance(target, Boxes):
                    said.append(json.dumps((target.resized(size) if size else target).to_json()))
                    target = len(target)
                    _add(tar, f"{i:08d}.json", said[-1].encode())
                else:
                    _add(tar, f"{i:08d}.cls", str(int(target)).encode())
                rows.append((offset, len(content), int(target), seen.side, *seen.spread))
                names.append(split.names[i])
                digests += seen.digest
                thumbs += seen.thumb.tobytes()
        if damaged and not skip_bad:
            return damaged
        columns = np.array(rows, np.int64).reshape(-1, len(NUMBERS)).T
        numbers: dict[str, Any] = dict(zip(NUMBERS, columns, strict=True))
        with files.atomic_file(self._table(split.name, k)) as tmp, tmp.open("wb") as f:
            np.savez(
                f,
                **numbers,
                digest=np.frombuffer(digests, np.uint8).reshape(len(rows), 16),
                thumb=np.frombuffer(thumbs, np.uint8).reshape(len(rows), ROWS * COLUMNS),
                names=Names.join(names),
                left_out=Names.join(left_out),
                boxes=Names.join(said),
                sha256=np.array(files.sha256(path)),
            )
        return damaged

    @property
    def _of_boxes(self) -> bool:
        return not all(isinstance(s.targets, np.ndarray) for s in self.data.splits.values())

    def _encode(self, split: Split, i: int) -> tuple[bytes, str, Look, tuple[int, int] | None]:
        """Image i as it goes into a shard: its file as it is, where there is one and it needn't shrink.

        Last is its new (width, height), if it has shrunk.
        """
        source, name = split.read(i), split.names[i]
        if isinstance(source, Path):
            try:
                source = source.read_bytes()
            except OSError as e:
                raise BadImage(f"{name}: can't be read ({e.strerror})") from e
        if isinstance(source, bytes):
            img = open_rgb(source, name, max(self.short_side, CACHE_SIDE))
        else:
            img = source.convert("RGB")
        seen, side, size = look(img), min(img.size), None
        if self.short_side and side > self.short_side:
            f = self.short_side / side
            size = round(img.width * f), round(img.height * f)
            img = img.resize(size, Image.Resampling.LANCZOS)
        elif isinstance(source, bytes):
            suffix = Path(name).suffix.lower().lstrip(".")
            return source, "jpg" if suffix == "jpeg" else suffix, seen, None
        buffer = io.BytesIO()
        lossless = not self.short_side and side <= LOSSLESS_SIDE
        img.save(buffer, "PNG" if lossless else "JPEG", **({} if lossless else {"quality": QUALITY, "subsampling": 0}))
        return buffer.getvalue(), "png" if lossless else "jpg", seen, size

    def _mean_bytes(self, split: Split) -> float:
        """What an image takes in a shard, from a few; two tar headers and the class included."""
        sizes = []
        for i in self._order(split)[:PROBE]:
            with contextlib.suppress(BadImage):
                sizes.append(len(self._encode(split, int(i))[0]))
        return float(np.mean(sizes or [0])) + 4 * tarfile.BLOCKSIZE

    def _order(self, split: Split) -> npt.NDArray[np.int64]:
        seed = [self.data.seed & 0xFFFFFFFF, list(self.data.splits).index(split.name)]
        return np.random.default_rng(seed).permutation(len(split))

    def _shares(self, split: Split, count: int) -> list[npt.NDArray[np.int64]]:
        return np.array_split(self._order(split), count)

    def _path(self, split: str, k: int) -> Path:
        return self.out / f"{split}-{k:06d}.tar"

    def _table(self, split: str, k: int) -> Path:
        return self.out / f"{split}-{k:06d}.npz"


class Stopped(Exception):
    """Another shard failed, or Ctrl-C: this one needn't be finished."""


def _bytes(targets: Any) -> bytes:
    """Targets as bytes, the same for the same."""
    if isinstance(targets, np.ndarray):
        return targets.tobytes()
    return json.dumps([t.to_json() for t in targets]).encode()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a member, the same bytes at any time; gives where its content starts."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    at = tar.offset + tarfile.BLOCKSIZE  # after its header
    tar.addfile(member, io.BytesIO(content))
    return at


def _part(path: Path, count: int, sha256: str) -> Part:
    return Part(path.name, count, path.stat().st_size, sha256)
