"""Files of a web server: fetched once, resumed where the line broke, verified, kept in a folder of bounded size."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mobilenets import files
from mobilenets.errors import UserError, disk_errors

ATTEMPTS = 5  # in a row that bring nothing, or little
PAUSE = 1.0  # seconds after the first of them; doubled after each
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20  # less than that, in an attempt or in TIMEOUT, is little
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


def read(url: str, limit: int) -> bytes:
    """A small file's content, at most `limit` bytes. Raises `UserError`."""
    f = io.BytesIO()
    _append(url, f, limit)
    return f.getvalue()


def _fetch(url: str, f: BinaryIO, sha256: str, size: int) -> None:
    """Complete the file `f`, from where an earlier attempt left it."""
    for _ in range(2):  # the second from nothing, should the first part be of an older file
        _append(url, f, size)
        f.flush()
        if files.sha256(Path(f.name)) == sha256:
            os.fsync(f.fileno())
            return
        f.truncate(0)
        f.seek(0)
    raise UserError(f"{url}: not the file that the index names (its SHA-256 differs); mend the copy there")


def _append(url: str, f: BinaryIO, limit: int) -> None:
    """Add to `f` what it lacks of the file at `url`, trying again as long as it gets further."""
    failed, furthest = 0, f.seek(0, os.SEEK_END)
    while True:
        before = f.seek(0, os.SEEK_END)
        try:
            request = urllib.request.Request(url, headers={"Range": f"bytes={before}-"} if before else {})
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                if before and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                    before = f.seek(0)
                    f.truncate()
                whole = before + int(answer.headers.get("Content-Length") or 0)
                since = time.monotonic(), before
                while chunk := answer.read1(CHUNK):
                    f.write(chunk)
                    if f.tell() > limit:
                        raise UserError(f"{url}: more than the {limit} bytes that were expected")
                    if time.monotonic() - since[0] > TIMEOUT:
                        if f.tell() - since[1] < CHUNK:
                            raise TimeoutError("it comes too slowly")
                        since = time.monotonic(), f.tell()
            if f.tell() >= whole:
                return
            reason: object = "the connection broke"
        except urllib.error.HTTPError as e:
            if e.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # there is no more
                return
            if e.code < 500 and e.code not in (408, 429):  # of the others, some pass
                raise UserError(f"{url}: the server says {e.code} {e.reason}") from e
            reason = f"{e.code} {e.reason}"
        except urllib.error.URLError as e:
            reason = e.reason
        except (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as e:
            reason = e
        except ValueError as e:  # of an address that it sends us on to, of a length that is no number
            raise UserError(f"{url}: the server's answer can't be understood ({e})") from e
        failed = 0 if f.tell() - furthest >= CHUNK else failed + 1
        furthest = max(furthest, f.tell())
        if failed == ATTEMPTS:
            raise UserError(f"{url}: can't be fetched ({reason}); check the network and the address")
        time.sleep(PAUSE * 2**failed / 2)


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
