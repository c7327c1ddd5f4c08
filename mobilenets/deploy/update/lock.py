"""One process at a time: a lock that is gone with the process that has it. No torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mobilenets.errors import UserError


@contextlib.contextmanager
def alone(file: Path, what: Path) -> Iterator[None]:
    """Keep others from changing `what`, by a lock on `file`. Raises `UserError` where another has it already."""
    with file.open("ab") as f:
        try:
            _lock(f)
        except OSError as e:
            raise UserError(f"{what}: is being updated by another process; try again later") from e
        yield


def _lock(f: IO[bytes]) -> None:
    """For as long as the file is open. Raises OSError where another process has it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(f.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
