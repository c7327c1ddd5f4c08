"""Writing without leaving anything half-written: beside, then renamed into place. Reading what was written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mobilenets.arguments import StrPath
from mobilenets.errors import UserError, disk_errors

T = TypeVar("T")
ADDRESS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/+(.*)", re.DOTALL)  # two letters at least: C:/ is a drive


def cache_root() -> Path:
    """Where what can be made again is kept: $MOBILENETS_CACHE, else `mobilenets` in the user's folder of caches."""
    if own := os.environ.get("MOBILENETS_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "mobilenets"


def _beside(path: Path) -> Path:
    """Where `path` is written first: hidden, and with its suffix, which some runtimes insist on."""
    if path.name in ("", ".."):
        raise UserError(f"{path} is no name that can be written to: give one inside of it, or its full path")
    return path.with_name(f".{os.getpid()}.tmp.{path.name}")


def final_name(path: Path) -> str:
    """What a file or folder will be called that is written now."""
    return path.name.removeprefix(_beside(Path("name")).name.removesuffix("name"))


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `path` when the block ends well, and is removed when it doesn't."""
    tmp = _beside(path)
    with disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield tmp
            with tmp.open("rb+") as f:  # Windows flushes only what is open for writing
                os.fsync(f.fileno())
            tmp.replace(path)
        finally:
            tmp.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it takes the place of `path` when the block ends well."""
    tmp = _beside(path)
    old = path.with_name(f".{os.getpid()}.old.{path.name}")
    with disk_errors(str(path)):
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir(parents=True)
        try:
            yield tmp
            if path.exists():
                path.rename(old)
            tmp.rename(path)
        finally:
            if old.exists() and not path.exists():  # interrupted between the two renames
                old.rename(path)
            shutil.rmtree(tmp, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def check_place(path: Path) -> None:
    """A UserError where nothing can be written at `path`, before the work of which it is to keep the result."""
    with disk_errors(str(path)):
        _beside(path).exists()  # whose name is longer
        there = next(p for p in path.absolute().parents if p.exists())
        tempfile.TemporaryFile(dir=there).close()


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """A folder for what is needed for a moment. A UserError where the system's place for such is full."""
    with disk_errors("temporary files (TMPDIR says where)"), tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text file: the same bytes on every system."""
    path.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    with atomic_file(path) as tmp:
        write_text(tmp, json.dumps(value, indent=2) + "\n")


def parse_json(content: str | bytes) -> Any:
    """A JSON value. Raises ValueError of any that isn't one, and of one that is nested too deep."""
    try:
        return json.loads(content)
    except RecursionError as e:
        raise ValueError("nested too deep") from e


def read_json(path: Path, keys: Sequence[str], whose: str) -> dict[str, Any]:
    """A JSON file that must have `keys`. Raises `UserError`; `whose` says what kind of run it should be of."""
    try:
        value = parse_json(path.read_bytes())
    except (ValueError, OSError) as e:
        raise UserError(f"{path}: not readable as JSON: {e}") from e
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a file of {whose}")
    absent = [k for k in keys if k not in value]
    if absent:
        raise UserError(f"{path}: not a file of {whose}: it has no {absent[0]!r}")
    return value


def read_object(path: Path, make: Callable[[dict[str, Any]], T], whose: str) -> T:
    """What `make` makes of a JSON file, a class's `from_json` as a rule. Raises `UserError` for what it can't take."""
    try:
        return make(read_json(path, (), whose))
    except KeyError as e:
        raise UserError(f"{path}: not a file of {whose}: it has no {e}") from e
    except UserError as e:
        raise e if str(e).startswith(str(path)) else UserError(f"{path}: not a file of {whose}: {e}") from e
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as e:
        raise UserError(f"{path}: not a file of {whose}: {e}") from e


def local(path: StrPath) -> Path:
    """`path`, which must not be an address of the web. Raises `UserError`."""
    if match := ADDRESS.match(str(path)):  # of a Path, whose slashes are folded, too
        raise UserError(f"{match[1]}://{match[2]}: addresses aren't read here; download it first and give the file")
    return Path(path)


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size


def sha256(path: Path) -> str:
    """Of a file's bytes; of a folder, of a line for each file in it, its digest and its name, in the names' order."""
    if path.is_dir():
        inside = sorted(f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file())
        return hashlib.sha256("".join(f"{sha256(path / n)}  {n}\n" for n in inside).encode()).hexdigest()
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
