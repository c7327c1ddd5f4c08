"""A module of ours in a Python of its own, with limits, for native code that reads a file from outside.

On Windows there are no limits on memory, and on macOS none that hold: the time's remains.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_MB = 2**20


class TooSlow(Exception):
    """The child was stopped: its time was up."""


def run(
    module: str, *arguments: object, seconds: float, environment: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """`python -m module arguments`: its exit code (below 0: the signal that ended it), and what it wrote to stdout.

    Raises `TooSlow` after `seconds`.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),  # the child finds what this process found
        "OPENBLAS_NUM_THREADS": "1",  # each thread reserves memory
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_PERTURB_": "165",  # what is freed or never written is filled, so that reading it shows
        **(environment or {}),
    }
    command = [sys.executable, "-P", "-m", module, *map(str, arguments)]
    with tempfile.TemporaryFile() as out:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL, env=environment,
                timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as e:
            raise TooSlow from e
        out.seek(0)
        return done.returncode, out.read()


def limit(**most: int) -> None:
    """In the child: no more than so much of each resource from now on, by its name ("AS": bytes of memory)."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, value in most.items():
        with contextlib.suppress(ValueError, OSError):  # macOS has them not all; a lower one may be set already
            hard = value + 1 if name == "CPU" else value  # reached, that ends it without a word of why
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, hard))


def memory() -> int:
    """Bytes of addresses that this process has taken so far; 0 where the system doesn't say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError):  # nor has Windows any `sysconf`
        return 0
