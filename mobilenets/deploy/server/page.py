"""What is at `/`, and the page that runs networks where it is opened, at `/app/`. No torch."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path

from fastapi import FastAPI, Response
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from mobilenets.deploy.hosting import HEADERS

PAGE = Path(__file__).with_name("page.html")
APP = '<p><a href="app/">Run it on this device instead</a>: live, by its camera; no picture leaves it</p>'
TOKEN = '<label>Token, which this server wants <input id="token" type="password" autocomplete="off"></label>'
# Nothing but what is in the page, and requests to this server.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob:; connect-src 'self'"


class _Isolated(StaticFiles):
    """Files of a page whose workers may share memory."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def mount(app: FastAPI, names: Mapping[str, object], site: Path | None, token: bool) -> None:
    """A page with an upload, which asks the networks called `names`; and the one in the folder `site`."""
    page = PAGE.read_text(encoding="utf-8").replace("<!-- app -->", APP if site else "")
    page = page.replace("<!-- token -->", TOKEN if token else "")

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        options = "".join(f"<option>{html.escape(name)}</option>" for name in names)
        return HTMLResponse(page.replace("<!-- networks -->", options), headers={"Content-Security-Policy": POLICY})

    if site:
        app.mount("/app", _Isolated(directory=site, html=True))
