"""Several processes that serve one address, and the one that starts those again that ended or are stuck. No torch."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from multiprocessing import allow_connection_pickling, get_context
from multiprocessing.connection import Connection

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from mobilenets.deploy.server import metrics
from mobilenets.errors import UserError

log = logging.getLogger("mobilenets.serve")
spawn = get_context("spawn")
LOOK = 0.25  # seconds between looks at the processes
SILENT = 20.0  # seconds after which one that doesn't say that it lives passes for stuck
LAST = 2.0  # seconds, beyond what requests under way have, in which one that was told to end is waited for
STARTING = 300.0  # the same for one that hasn't said it yet: it may wait for a slow disk, or a busy processor


class Process:
    """One of them, started; `sock`: what it takes connections from."""

    def __init__(self, config: uvicorn.Config, sock: socket.socket) -> None:
        self.sock = sock
        self.line, other = spawn.Pipe()
        self.asked, self.heard = 0.0, False  # since when an answer is waited for, 0: it has answered; and ever has
        self.process = spawn.Process(target=_serve, args=(config, sock, other))
        self.process.start()
        other.close()

    @property
    def lives(self) -> bool:
        """Whether it has answered lately; asks it again."""
        if not self.process.is_alive():
            return False
        with contextlib.suppress(OSError, EOFError):
            if self.asked and self.line.poll():
                self.line.recv()
                self.asked, self.heard = 0.0, True
            if not self.asked:
                self.line.send(None)
                self.asked = time.monotonic()
        return time.monotonic() - self.asked < (SILENT if self.heard else STARTING)

    def end(self, number: int) -> None:
        """By a signal; what it had waiting counts no more."""
        if self.process.pid and self.process.is_alive():
            os.kill(self.process.pid, number)

    def join(self) -> int | None:
        self.process.join()
        self.line.close()
        if self.process.pid:
            metrics.forget(self.process.pid)
        return self.process.exitcode


def run(config: uvicorn.Config, sockets: Sequence[socket.socket]) -> None:
    """Serve by one process a socket until SIGTERM or Ctrl-C. Raises `UserError` where they can't start.

    With sockets of their own, of one address, the system shares connections among them; of one socket in common
    whoever looks first takes all that wait. One that has ended leaves its socket, and connections to it wait.
    """
    allow_connection_pickling()
    ended = threading.Event()
    before = {s: signal.signal(s, lambda *_: ended.set()) for s in (signal.SIGTERM, signal.SIGINT)}
    processes: list[Process] = []
    try:
        processes += (Process(config, sock) for sock in sockets)
        while not ended.wait(LOOK):
            for n, process in enumerate(processes):
                if process.lives:
                    continue
                process.end(signal.SIGKILL)
                if process.join() == STARTUP_FAILURE:
                    raise UserError("a process of the server can't start; the log says why")
                log.error("a process ended", extra={"fields": {"process": process.process.pid}})
                processes[n] = Process(config, process.sock)
    finally:
        for process in processes:
            process.end(signal.SIGTERM)
        until = time.monotonic() + (config.timeout_graceful_shutdown or 0) + LAST
        for process in processes:
            process.process.join(max(0.0, until - time.monotonic()))
            process.end(signal.SIGKILL)  # one that is stuck
            process.join()
        for s, handler in before.items():
            signal.signal(s, handler)
        log.info("stopped")


def _serve(config: uvicorn.Config, sock: socket.socket, line: Connection) -> None:
    """What each process does."""
    config.configure_logging()
    server = uvicorn.Server(config)
    threading.Thread(target=_answer, args=(server, line), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        server.run([sock])


def _answer(server: uvicorn.Server, line: Connection) -> None:
    """Say that this process lives, whenever it is asked; end with who started it, however that one ended."""
    with contextlib.suppress(OSError, EOFError):
        while True:
            line.recv()
            line.send(None)
    server.should_exit = True
