"""What is at `/`: the one place where a site would be mounted. No torch."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import HTMLResponse

PAGE = Path(__file__).with_name("page.html")
# Nothing but what is in the page, and requests to this server.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob:; connect-src 'self'"


def mount(app: FastAPI, names: Mapping[str, object]) -> None:
    """A page with an upload, which asks the networks called `names`."""
    page = PAGE.read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        options = "".join(f"<option>{html.escape(name)}</option>" for name in names)
        return HTMLResponse(page.replace("<!-- networks -->", options), headers={"Content-Security-Policy": POLICY})
