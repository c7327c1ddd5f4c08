"""Connections whose request doesn't come: uvicorn waits for them for good, here they are closed. No torch."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol


class Config(uvicorn.Config):
    """uvicorn's; `receive_timeout`: seconds for a request's head, from the connection or its first byte on."""

    receive_timeout = 10.0


class Patient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's own way to speak HTTP, by httptools where that is installed, with a deadline for each request's head.

    uvicorn closes what is idle between requests; a body's time is limited where it is read.
    """

    late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:  # the head is whole
            self._done()
        elif self.cycle is None or self.cycle.response_complete:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done()
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:  # which would keep all of a connection that was reset until then
            self.timeout_keep_alive_task.cancel()

    def _wait(self) -> None:
        if self.late is None:
            self.late = self.loop.call_later(self.config.receive_timeout, self.transport.abort)

    def _done(self) -> None:
        if self.late is not None:
            self.late.cancel()
            self.late = None
