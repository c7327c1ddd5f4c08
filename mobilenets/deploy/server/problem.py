"""Why a request gets no answer: HTTP's status, and one line. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse

RETRY = {"Retry-After": "1"}  # seconds: what waits is answered by then, as a rule


class Problem(Exception):
    """Something that the client asked and doesn't get. `reason`: one word, for the metrics."""

    def __init__(self, status: int, line: str, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(line)
        self.status, self.reason, self.headers = status, reason, headers

    def response(self) -> JSONResponse:
        return JSONResponse({"error": str(self)}, self.status, self.headers)

    def answer(self, request: Request) -> JSONResponse:
        """Its response to a request, whose line in the log says why."""
        request.state.noted["reason"] = self.reason
        return self.response()


def bad(line: str) -> Problem:
    """Of a request that can't be understood."""
    return Problem(400, line, "bad")


def full(line: str) -> Problem:
    """Of one that comes when there is no room; the same may be asked again."""
    return Problem(429, line, "full", RETRY)
