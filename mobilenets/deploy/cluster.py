"""A Ray cluster, joined for a while. No torch."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from mobilenets.errors import UserError


@contextlib.contextmanager
def joined(address: str) -> Iterator[Any]:
    """Ray, as a member of the cluster at `address`. Raises `UserError` without Ray or a cluster."""
    try:
        import ray
    except ImportError as e:
        raise UserError("--ray needs Ray: pip install 'mobilenets[ray]'") from e
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # asked first: Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (RuntimeError, ValueError, OSError) as e:
        raise UserError(
            f"can't join a Ray cluster at {address} ({e}): is one started (ray start --head) of Ray {ray.__version__}, "
            "and if it asks for a token, are RAY_AUTH_MODE=token and RAY_AUTH_TOKEN set here?"
        ) from e
    try:
        yield ray
    finally:
        ray.shutdown()
