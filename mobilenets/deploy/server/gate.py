"""What every request goes through: its number, the token, a log line, the metrics; no traceback leaves. No torch."""

from __future__ import annotations

import hmac
import logging
import os
import re
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mobilenets.deploy.server.metrics import Metrics
from mobilenets.deploy.server.problem import Problem

log = logging.getLogger("mobilenets.serve")
# What needs no token: what a machine asks before it sends anybody here, and the page, which asks for the token.
OPEN = frozenset({"/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
NUMBER = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Gate:
    """The application behind it answers; `token`: what requests must bear, if anything."""

    def __init__(self, app: ASGIApp, metrics: Metrics, token: str) -> None:
        self.app, self.metrics, self.expected = app, metrics, f"Bearer {token}".encode() if token else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        headers = dict(scope["headers"])
        own = headers.get(b"x-request-id", b"")
        number = own if NUMBER.fullmatch(own) else os.urandom(8).hex().encode()
        noted: dict[str, Any] = {}  # by who answers: the model, images, why there is no answer
        scope.setdefault("state", {})["noted"] = noted
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", number)]
            await send(message)

        try:
            await (self.app if self._may(scope["path"], headers) else self._refused(noted))(scope, receive, sending)
        except Exception:
            noted["reason"] = "fault"
            log.exception("a fault of ours", extra={"fields": {"request": number.decode()}})
            if not status:
                await Problem(500, "a fault of the server's", "fault").response()(scope, receive, sending)
        finally:
            self._tell(scope, number.decode(), status, time.perf_counter() - begun, noted)

    def _may(self, path: str, headers: dict[bytes, bytes]) -> bool:
        open_to_all = not self.expected or path in OPEN
        return open_to_all or hmac.compare_digest(headers.get(b"authorization", b""), self.expected)

    def _refused(self, noted: dict[str, Any]) -> ASGIApp:
        noted["reason"] = "token"
        return Problem(401, "this server wants a token", "token", {"WWW-Authenticate": "Bearer"}).response()

    def _tell(self, scope: Scope, number: str, status: int, seconds: float, noted: dict[str, Any]) -> None:
        self.metrics.answered(noted.get("model", ""), status, seconds, noted.get("reason", ""))
        if log.isEnabledFor(logging.INFO):
            client = scope.get("client")
            fields = {
                "request": number, "client": client[0] if client else "", "method": scope["method"],
                "path": scope["path"][:500], "status": status, "ms": round(1000 * seconds, 3), **noted,
            }  # fmt: skip
            # Made here: `log.info` would look for the line it is called from, which takes as long as all else of it.
            log.handle(log.makeRecord(log.name, logging.INFO, "", 0, "request", (), None, extra={"fields": fields}))
