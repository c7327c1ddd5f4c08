"""Files of a web server: fetched once, resumed where the line broke, verified, kept in a folder of bounded size."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mobilenets import files, web
from mobilenets.errors import UserError, disk_errors

KEPT_GB = 10.0  # unless $MOBILENETS_SHARDS_GB says otherwise


def default_cache() -> Cache:
    """Where fetched files are kept: `shards` in $MOBILENETS_CACHE, or in the user's cache."""
    kept = os.environ.get("MOBILENETS_SHARDS_GB", KEPT_GB)
    try:
        return Cache(files.cache_root() / "shards", int(float(kept) * 1e9))
    except ValueError as e:
        raise UserError(f"$MOBILENETS_SHARDS_GB is {kept!r}, not a number of gigabytes") from e


@dataclass(frozen=True)
class Cache:
    """Files by their SHA-256 in `folder`, the least recently used removed to stay within `limit` bytes.

    Any number of processes can share it: one fetches a file, the others wait for it.
    """

    folder: Path
    limit: int

    def get(self, url: str, sha256: str, size: int) -> Path:
        """The file at `url`, here; raises `UserError` if it can't be had, or isn't what it should be."""
        path, part = self.folder / sha256, self.folder / f"{sha256}.part"
        with disk_errors(str(path)):
            self.folder.mkdir(parents=True, exist_ok=True)
            while not path.exists():
                with part.open("ab") as f, _locked(f):
                    if not _is_still(part, f):  # who had the lock before has finished it
                        continue
                    if path.exists():  # finished after we looked, before we opened a part of our own
                        part.unlink()
                        continue
                    self._make_room(size)
                    _fetch(url, f, sha256, size)
                    part.rename(path)
            with contextlib.suppress(FileNotFoundError):  # removed by another process: the caller comes again
                os.utime(path)
        return path

    def _make_room(self, size: int) -> None:
        """Remove the longest unused files; who has one open still reads it to its end."""
        used = []
        for p in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if p.suffix != ".part":
                    used.append((p.stat().st_mtime_ns, p.stat().st_size, p))
        total = sum(s for _, s, _ in used) + size
        for _, freed, p in sorted(used):
            if total <= self.limit:
                break
            p.unlink(missing_ok=True)
            total -= freed


def _fetch(url: str, f: BinaryIO, sha256: str, size: int) -> None:
    """Complete the file `f`, from where an earlier attempt left it."""
    for _ in range(2):  # the second from nothing, should the first part be of an older file
        web.append(url, f, size)
        f.flush()
        if files.sha256(Path(f.name)) == sha256:
            os.fsync(f.fileno())
            return
        f.truncate(0)
        f.seek(0)
    raise UserError(f"{url}: not the file that the index names (its SHA-256 differs); mend the copy there")


@contextlib.contextmanager
def _locked(f: BinaryIO) -> Iterator[None]:
    """Unlocked in so many words: a process forked meanwhile has the file open too, and would keep it locked.

    Raises `UserError` on Windows.
    """
    try:
        import fcntl
    except ImportError as e:
        raise UserError("shards of a web server can't be read on Windows: copy them to a folder") from e
    fcntl.flock(f, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(f, fcntl.LOCK_UN)


def _is_still(path: Path, f: BinaryIO) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(f.fileno()))
    return False
