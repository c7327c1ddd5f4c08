"""What libraries write to the process's stderr by themselves, kept from the user's terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator

_LOCK = threading.Lock()  # there is one stderr


@contextlib.contextmanager
def capture_stderr() -> Iterator[list[str]]:
    """Gather the lines that are written to file descriptor 2 in the block; the list has them when it ends."""
    lines: list[str] = []
    with _LOCK, tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        terminal = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()
