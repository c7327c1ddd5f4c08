"""What is asked by the thousand goes past FastAPI, whose layers take longer than the rest of HTTP does. No torch."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from mobilenets.deploy.server.problem import Problem

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Plain(APIRoute):
    """A route whose function takes the request and the network's name; FastAPI documents it as any other."""

    def get_route_handler(self) -> Handler:
        async def handler(request: Request) -> Response:
            answer: Response = await self.endpoint(request, request.path_params["name"])
            return answer

        return handler


class Direct:
    """Answers the requests of a router's `Plain` routes itself; `app` answers all others."""

    def __init__(self, app: ASGIApp, router: APIRouter) -> None:
        self.app = app
        self.routes = [(r.path_regex, r.methods or (), r.endpoint) for r in router.routes if isinstance(r, Plain)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for path, methods, endpoint in self.routes:
                found = path.match(scope["path"])
                if found and scope["method"] in methods:
                    request = Request(scope, receive)
                    try:
                        response: Response = await endpoint(request, found["name"])
                    except Problem as e:
                        response = e.answer(request)
                    await response(scope, receive, send)
                    return
        await self.app(scope, receive, send)
