"""A server, from its address to its end; by one process, or by several. No torch."""

from __future__ import annotations

import contextlib
import functools
import logging
import logging.config
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import uvicorn

from mobilenets.deploy.server import logs, metrics, processes
from mobilenets.deploy.server.app import application
from mobilenets.deploy.server.protocol import Config, Patient
from mobilenets.deploy.server.settings import Settings
from mobilenets.errors import UserError

log = logging.getLogger("mobilenets.serve")
CONNECTIONS = 1024  # of one process; those beyond get 503
BACKLOG = 2048
IDLE = 30  # seconds between two requests of a connection
GRACE = 10  # seconds, besides the longest answer's, for what is under way when the server ends


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what is under way. Raises `UserError` for what can't be served."""
    app: Any = functools.partial(application, settings)
    with _shared_numbers(settings.workers), _bound(settings) as sockets:
        if settings.workers == 1:
            app = app()
        else:
            _check(settings)
        config = Config(
            app, http=Patient, ws="none", lifespan="on", factory=settings.workers > 1, workers=settings.workers,
            log_config=logs.config(settings.quiet), access_log=False, proxy_headers=False, server_header=False,
            backlog=BACKLOG, limit_concurrency=CONNECTIONS, timeout_keep_alive=IDLE,
            timeout_graceful_shutdown=round(settings.timeout) + GRACE,
        )  # fmt: skip
        config.receive_timeout = settings.receive_timeout
        host, port = sockets[0].getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        fields = {"address": address, "models": [name for name, _ in settings.models], "workers": settings.workers}
        log.warning("serving", extra={"fields": fields})  # however quiet: it is how to reach it
        if settings.workers > 1:
            processes.run(config, sockets)
        else:
            with _ends_well():
                uvicorn.Server(config).run(sockets)


def _check(settings: Settings) -> None:
    """Load every network once, so that what is wrong is said before any process starts."""
    from mobilenets.deploy.server.models import Models

    Models(settings, metrics.Metrics())


@contextlib.contextmanager
def _shared_numbers(workers: int) -> Iterator[None]:
    """A folder in which several processes count together."""
    if workers == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="mobilenets-metrics-") as folder:
        os.environ[metrics.FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[metrics.FOLDER]


@contextlib.contextmanager
def _bound(settings: Settings) -> Iterator[list[socket.socket]]:
    """The address, taken: by a socket for each process. Raises `UserError` where that can't be."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    shared = settings.workers > 1 and sys.platform == "linux"  # others leave all connections to one of them
    port = settings.port
    with contextlib.ExitStack() as taken:
        try:
            with socket.create_server((settings.host, port), family=family):
                pass  # nobody else's: a port can be shared with strangers, too
            sockets = []
            for _ in range(settings.workers if shared else 1):
                address = (settings.host, port)
                sock = socket.create_server(address, family=family, backlog=BACKLOG, reuse_port=shared)
                sockets.append(taken.enter_context(sock))
                sock.set_inheritable(True)
                port = sock.getsockname()[1]
        except OSError as e:
            raise UserError(f"can't serve at {settings.host} port {settings.port}: {e.strerror or e}") from e
        yield sockets if shared else sockets * settings.workers


@contextlib.contextmanager
def _ends_well() -> Iterator[None]:
    """An end by SIGTERM or Ctrl-C is an end as it should be: uvicorn raises them again when it has finished."""
    before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
