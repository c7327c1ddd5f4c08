"""One process at a time in a run's folder: a lock that the system lets go of when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mobilenets.errors import UserError, disk_errors

LOCK = ".lock"
_AFAR = 1 << 30  # the byte that is locked: beyond the text, which others can then read on Windows too
_held: set[Path] = set()  # by this process: the system's locks are between processes


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes, on this machine or those it shares `folder` with, from working in it meanwhile.

    A folder that was made for it, and in which nothing came to be, goes again. Raises `UserError`, which names the
    process that works in it. A file system without locks has none.
    """
    where = folder.resolve()
    with contextlib.ExitStack() as stack:
        new = not folder.exists()
        with disk_errors(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / LOCK).open("a+", encoding="utf-8"))
        if where in _held or not _take(file) or not _is_there(file, folder / LOCK):
            raise UserError(f"{folder} is being worked in by {_owner(file)}: wait for it, or stop it")
        _held.add(where)
        stack.callback(_held.discard, where)
        with contextlib.suppress(OSError):  # a full disk: who holds it is a courtesy
            file.truncate(0)
            file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname()}))
            file.flush()
        if new:
            stack.callback(_leave, folder)
        yield


def _leave(folder: Path) -> None:
    """Remove a folder that holds its lock alone."""
    with contextlib.suppress(OSError):  # Windows lets no open file go
        if [p.name for p in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


def _is_there(file: IO[str], path: Path) -> bool:
    """Whether the file that was opened is still the one at `path`: who had it may have left with it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _take(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return _take_on_windows(file)
    try:  # not flock: the workers that a process forks would hold that one after its death
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _AFAR)
    except OSError as e:
        return e.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _take_on_windows(file: IO[str]) -> bool:
    import msvcrt

    file.seek(_AFAR)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    finally:
        file.seek(0)
    return True


def _owner(file: IO[str]) -> str:
    try:
        file.seek(0)
        said = json.load(file)
        return f"process {said['process']} on {said['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
