"""A request's body, read within limits: bytes of one, bytes of all together, and time. No torch."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from starlette.requests import Request

from mobilenets.deploy.server.problem import Problem, bad, full

RATE = 16_000  # bytes of a body, for which it may take a second more
TOGETHER = 16  # bodies of the largest size that may be in memory at once


class Bodies:
    """Reads bodies of at most `most` bytes, which may take so many seconds, and more the larger they are."""

    def __init__(self, most: int, seconds: float) -> None:
        self.most, self.seconds, self.held = most, seconds, 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, which counts until the block ends. Raises `Problem`."""
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Problem(415, "a body comes as it is, not compressed", "bad")
        self._check(self._declared(request))
        pieces: list[bytes] = []
        try:
            await self._fill(pieces, request)
            yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
        finally:
            self.held -= sum(map(len, pieces))

    async def _fill(self, pieces: list[bytes], request: Request) -> None:
        size, begun = 0, time.monotonic()
        try:
            async with asyncio.timeout(self.seconds) as patience:
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(499, "the client left before its request was whole", "left")
                    pieces.append(message.get("body", b""))
                    self.held += len(pieces[-1])
                    size += len(pieces[-1])
                    self._check(size)
                    if not message.get("more_body", False):
                        return
                    late = begun + self.seconds + size / RATE - time.monotonic()
                    patience.reschedule(asyncio.get_running_loop().time() + late)
        except TimeoutError as e:
            line = "the request's body came too slowly"
            raise Problem(408, line, "slow", {"Connection": "close"}) from e

    def _check(self, size: int) -> None:
        if size > self.most:
            raise Problem(413, f"a body may have {self.most:,} bytes", "large")
        if self.held > TOGETHER * self.most:
            raise full("the bodies of requests under way fill the memory that they may take; try again")

    def _declared(self, request: Request) -> int:
        said = request.headers.get("content-length", "0")
        if not (said.isascii() and said.isdigit()):
            raise bad("Content-Length isn't a number")
        return int(said[:20])
