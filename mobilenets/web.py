"""Files of the web: resumed where the line broke, bounded, never half-written. No torch."""

from __future__ import annotations

import http.client
import io
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mobilenets import files
from mobilenets.errors import UserError, disk_errors

ATTEMPTS = 5  # in a row that bring nothing, or little
PAUSE = 1.0  # seconds after the first of them; doubled after each
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20  # less than that, in an attempt or in TIMEOUT, is little
PART, TAG = ".part", ".tag"

Told = Callable[[int, int], None]  # of bytes that are there, and of those that there will be (0: nobody said)


class Unreachable(UserError):
    """The address can't be reached, or says that it has no such file."""


class Refused(Unreachable):
    """The server has no such file, or none for this reader: `code` says which (HTTP's status)."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Version:
    """Which version of a file the bytes so far are of, as its server calls it: the rest must be of the same."""

    tag: str = ""


def reachable(url: str, seconds: float = 3.0) -> bool:
    """Whether a server answers at an address, whatever it says; False where $MOBILENETS_OFFLINE forbids to ask."""
    if os.environ.get("MOBILENETS_OFFLINE") or os.environ.get("HF_HUB_OFFLINE"):
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, http.client.HTTPException, ValueError):
        return False


def read(url: str, limit: int, token: str = "", attempts: int | None = None) -> bytes:
    """A small file's content, at most `limit` bytes. Raises `UserError`."""
    f = io.BytesIO()
    append(url, f, limit, token=token, attempts=attempts)
    return f.getvalue()


def download(url: str, path: Path, limit: int, told: Told = lambda *_: None, token: str = "") -> Path:
    """The file at `url`, of at most `limit` bytes, as `path`, which is there when it is whole.

    Goes on where an earlier call was stopped, if the server still has the same file. Raises `UserError`.
    """
    part = path.with_name(path.name + PART)
    tag = path.with_name(path.name + TAG)
    with disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        version = Version(tag.read_text(encoding="utf-8") if tag.exists() and part.exists() else "")
        known = version.tag
        with part.open("ab") as f:
            if not known:
                f.truncate(0)
            try:
                append(url, f, limit, told, version, token)
            finally:
                if version.tag != known:
                    files.write_text(tag, version.tag)
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)
        tag.unlink(missing_ok=True)
    return path


def append(
    url: str,
    f: BinaryIO,
    limit: int,
    told: Told = lambda *_: None,
    version: Version | None = None,
    token: str = "",
    attempts: int | None = None,
) -> None:
    """Add to `f` what it lacks of the file at `url`, trying again as long as it gets further.

    `token`: who asks, for the server alone, not for those that it sends us on to. `attempts`: ATTEMPTS, if None.
    """
    failed, furthest = 0, f.seek(0, os.SEEK_END)
    while True:
        before = f.seek(0, os.SEEK_END)
        try:
            with _asked(url, before, version, token) as answer:
                if before and not _goes_on(answer, before):
                    before = f.seek(0)
                    f.truncate()
                if version is not None:
                    version.tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
                whole = before + int(answer.headers.get("Content-Length") or 0)
                since = time.monotonic(), before
                while chunk := answer.read1(CHUNK):
                    f.write(chunk)
                    if f.tell() > limit:
                        raise UserError(f"{url}: more than the {limit} bytes that were expected")
                    told(f.tell(), max(whole, f.tell()) if whole > before else 0)
                    if time.monotonic() - since[0] > TIMEOUT:
                        if f.tell() - since[1] < CHUNK:
                            raise TimeoutError("it comes too slowly")
                        since = time.monotonic(), f.tell()
            if f.tell() >= whole:
                return
            reason: object = "the connection broke"
        except urllib.error.HTTPError as e:
            e.close()  # it holds the connection
            if e.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # there is no more
                return
            if e.code < 500 and e.code not in (408, 429):  # of the others, some pass
                raise Refused(f"{url}: the server says {e.code} {e.reason}", e.code) from e
            reason = f"{e.code} {e.reason}"
        except urllib.error.URLError as e:
            reason = e.reason
        except (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as e:
            reason = e
        except ValueError as e:  # of an address that it sends us on to, of a length that is no number
            raise UserError(f"{url}: the server's answer can't be understood ({e})") from e
        failed = 0 if f.tell() - furthest >= CHUNK else failed + 1
        furthest = max(furthest, f.tell())
        if failed == (attempts or ATTEMPTS):
            raise Unreachable(f"{url}: can't be fetched ({reason}); check the network and the address")
        time.sleep(PAUSE * 2**failed / 2)


def _asked(url: str, before: int, version: Version | None, token: str) -> Any:
    """The server's answer to a request for what comes after the first `before` bytes."""
    headers = {"User-Agent": "mobilenets"}
    if before:
        headers["Range"] = f"bytes={before}-"
        if version is not None and version.tag and not version.tag.startswith("W/"):
            headers["If-Range"] = version.tag
    request = urllib.request.Request(url, headers=headers)
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    return urllib.request.urlopen(request, timeout=TIMEOUT)


def _goes_on(answer: Any, before: int) -> bool:
    """Whether an answer is what comes after the first `before` bytes, and not the whole file again."""
    if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
        return False
    said = answer.headers.get("Content-Range") or f"bytes {before}-"
    if not said.startswith(f"bytes {before}-"):
        raise ValueError(f"asked for the bytes from {before} on, it gives {said!r}")
    return True
