"""What there is to ask of a server, and who answers it. No torch."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import json
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from mobilenets.deploy.engines import Outputs
from mobilenets.deploy.predict import Prediction, Size
from mobilenets.deploy.server import kserve, page
from mobilenets.deploy.server.bodies import Bodies
from mobilenets.deploy.server.direct import Direct, Plain
from mobilenets.deploy.server.gate import Gate
from mobilenets.deploy.server.images import Asked, Limits, check_top, of_json
from mobilenets.deploy.server.metrics import Metrics
from mobilenets.deploy.server.models import Models, Served
from mobilenets.deploy.server.problem import Problem, bad
from mobilenets.deploy.server.queue import Job, Queue
from mobilenets.deploy.server.settings import Settings
from mobilenets.model.images import BadImage, Pixels

FETCHING = 16  # requests at once whose images are fetched; others wait
LARGE = 1 << 16  # bytes of JSON from which on it is read beside the others' requests, not between them
ONE_OR_MORE: dict[str, Any] = {
    "parameters": [
        {"name": "top", "in": "query", "schema": {"type": "integer", "minimum": 1, "default": 5}, "required": False}
    ],
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {
                "example": {"instances": [{"b64": "..."}], "top": 5},
                "schema": {
                    "type": "object",
                    "required": ["instances"],
                    "properties": {
                        "instances": {"type": "array", "items": {"type": "object"}},
                        "top": {"type": "integer"},
                    },
                },
            },
        },
    }
}  # fmt: skip


class Server:
    """One process's: networks, the queue, what it counts. Raises `UserError` where a network can't be loaded."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.models = Models(settings, self.metrics)
        self.bodies = Bodies(settings.body_bytes, settings.receive_timeout)
        self.queue = Queue(settings.own_threads, settings.max_waiting, self.metrics)
        self.fetching = ThreadPoolExecutor(FETCHING, "mobilenets-fetch")  # no thread before the first image

    async def read(self, read: Callable[[], Any], size: int, slow: bool = False) -> Any:
        """What `read` gives of a body of so many bytes; beside other requests where that takes long."""
        if slow:
            return await asyncio.get_running_loop().run_in_executor(self.fetching, read)
        return await asyncio.to_thread(read) if size > LARGE else read()

    def served(self, request: Request, name: str) -> Served:
        """Raises `Problem`."""
        found = self.models.now.get(name)
        if found is None and name.endswith(":predict"):
            raise Problem(405, "an image is sent here by POST", "unknown", {"Allow": "POST"})
        if found is None:
            raise Problem(404, f"no network is called so here; there are: {', '.join(self.models.now)}", "unknown")
        request.state.noted["model"] = name
        return found

    async def answers(
        self, request: Request, served: Served, reads: Sequence[Callable[[], tuple[Pixels, Size]]],
        finish: Callable[[Outputs, Size], Any],
    ) -> list[Any]:  # fmt: skip
        """What `finish` makes of each image, in order; a `BadImage` where it can't be read. Raises `Problem`."""
        loop = asyncio.get_running_loop()
        jobs = [Job(served, read, finish, loop.create_future()) for read in reads]
        self.queue.add(jobs)
        try:
            async with asyncio.timeout(self.settings.timeout):
                found = [await job.future for job in jobs]
        except TimeoutError as e:
            raise Problem(504, f"no answer within {self.settings.timeout:g} s", "timeout") from e
        finally:
            for job in jobs:
                if not job.future.cancel() and not job.future.cancelled():
                    job.future.exception()  # looked at, for asyncio to say nothing of it
        noted = request.state.noted
        noted["images"], noted["batch"] = len(jobs), max(job.batch for job in jobs)
        noted["waited_ms"] = round(1000 * max(job.waited for job in jobs), 3)
        return found


def application(settings: Settings) -> Gate:
    """The whole of it, for any server that speaks ASGI. Raises `UserError` where a network can't be loaded."""
    server = Server(settings)

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        server.models.watch()
        gc.collect()
        gc.freeze()  # what is here stays: looking through it again takes as long as some requests
        yield
        server.models.close()
        await asyncio.to_thread(server.queue.close)
        server.fetching.shutdown(wait=False, cancel_futures=True)

    from mobilenets import __version__

    app = FastAPI(title="mobilenets", version=__version__, lifespan=life, redoc_url=None)
    app.state.server = server
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _no_such_thing)
    app.add_exception_handler(Exception, _fault)
    direct = APIRouter(route_class=Plain)
    _predict(direct, server)
    _kserve(app, direct, server)
    _about(app, server)
    app.include_router(direct)
    page.mount(app, server.models.now, settings.app, bool(settings.token))
    return Gate(Direct(app, direct), server.metrics, settings.token)


def _about(app: FastAPI, server: Server) -> None:
    """How it is, and what it has."""

    @app.get("/healthz", tags=["health"])
    @app.get("/v2/health/live", tags=["KServe v2"])
    async def alive() -> Response:
        """Whether the process can still answer: 503 where it is stuck, and should be started again."""
        return JSONResponse({"live": not server.queue.stuck}, 503 if server.queue.stuck else 200)

    @app.get("/readyz", tags=["health"])
    @app.get("/v2/health/ready", tags=["KServe v2"])
    async def ready() -> Response:
        """Whether requests should be sent here: every network is loaded before the first is taken."""
        room = len(server.queue.waiting) < server.settings.max_waiting
        return JSONResponse({"ready": room}, 200 if room else 503)

    @app.get("/metrics", tags=["health"])
    async def metrics() -> Response:
        """For Prometheus."""
        text, kind = await asyncio.to_thread(server.metrics.text)
        return Response(text, media_type=kind)

    @app.get("/v1/models", tags=["predict"])
    async def models() -> list[dict[str, Any]]:
        """The networks that are served."""
        return [served.to_json() for served in server.models.now.values()]

    @app.get("/v1/models/{name}", tags=["predict"])
    async def model(request: Request, name: str) -> dict[str, Any]:
        """What a network is: its task, input, labels, digest."""
        return server.served(request, name).to_json()


def _predict(direct: APIRouter, server: Server) -> None:
    settings = server.settings
    limits = Limits(settings.max_images, settings.body_bytes, settings.allow_urls, settings.timeout)

    @direct.post("/v1/models/{name}:predict", tags=["predict"], openapi_extra=ONE_OR_MORE)
    async def predict(request: Request, name: str) -> Response:
        """What a network says of an image: its file's bytes; or of several, as JSON with base64, in their order."""
        served = server.served(request, name)
        top = _top(request.query_params.get("top", "5"))
        async with server.bodies.read(request) as body:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            several = kind == "application/json"
            if several:
                read = functools.partial(of_json, body, top, limits)
                asked = await server.read(read, len(body), settings.allow_urls)
            elif kind.startswith("image/") or kind in ("", "application/octet-stream"):
                asked = Asked([body], top)
            else:
                raise Problem(415, "a body is an image's file (image/*), or JSON (application/json)", "bad")
            reads = [functools.partial(_prepared, served, one, settings.max_pixels) for one in asked.images]
            finish = functools.partial(served.model.answer, top=asked.top)
            said = await server.answers(request, served, reads, finish)
        if not several and isinstance(said[0], BadImage):
            raise bad(str(said[0]))
        return _json({"model": name, "predictions": [_told(n, one) for n, one in enumerate(said)]})


def _kserve(app: FastAPI, direct: APIRouter, server: Server) -> None:
    """Version 2 of KServe's protocol."""
    from mobilenets import __version__

    tags: Any = ["KServe v2"]

    @app.get("/v2", tags=tags)
    async def about() -> dict[str, Any]:
        return {"name": "mobilenets", "version": __version__, "extensions": ["binary_tensor_data"]}

    for path in ("/v2/models/{name}", f"/v2/models/{{name}}/versions/{kserve.VERSION}"):

        @app.get(path, tags=tags)
        async def metadata(request: Request, name: str) -> dict[str, Any]:
            return kserve.metadata(server.served(request, name))

        @app.get(f"{path}/ready", tags=tags)
        async def ready(request: Request, name: str) -> dict[str, Any]:
            return {"name": server.served(request, name).name, "ready": True}

        @direct.post(f"{path}/infer", tags=tags)
        async def infer(request: Request, name: str) -> Response:
            """The network's own outputs, of pixels (UINT8) or of images' files (BYTES)."""
            served = server.served(request, name)
            async with server.bodies.read(request) as body:
                header = request.headers.get(kserve.HEADER)
                read = functools.partial(kserve.read, body, header, served, server.settings.max_images)
                asked = await server.read(read, len(body))
                reads = [functools.partial(_prepared, served, one, server.settings.max_pixels) for one in asked.images]
                rows = await server.answers(request, served, reads, lambda outputs, _: outputs)
            for n, row in enumerate(rows):
                if isinstance(row, BadImage):
                    raise bad(f"image {n}: {row}")
            written = functools.partial(kserve.written, asked, served, rows)
            content, headers = await asyncio.to_thread(written)
            return Response(content, headers=headers)


def _top(text: str) -> int:
    """Raises `Problem`."""
    return check_top(int(text) if text.isascii() and text.isdigit() and len(text) < 9 else None)


def _prepared(served: Served, image: bytes | BadImage | Pixels, max_pixels: int) -> tuple[Pixels, Size]:
    """An image as the network takes it: a file's bytes, decoded; pixels, as they are. Raises `BadImage`."""
    if isinstance(image, BadImage):
        raise image
    if isinstance(image, bytes):
        return served.model.prepare(image, max_pixels=max_pixels)
    return image, (image.shape[1], image.shape[0])


def _told(number: int, said: Any) -> dict[str, Any]:
    error = str(said) if isinstance(said, BadImage) else None
    d = Prediction("", None if error else said, error).to_json()
    del d["image"]  # which has no name here, but a place
    return {"instance": number, **d}


def _json(value: Any) -> Response:
    return Response(json.dumps(value), media_type="application/json")


# ---- what goes wrong


async def _problem(request: Request, e: Exception) -> Response:
    assert isinstance(e, Problem)
    return e.answer(request)


async def _no_such_thing(request: Request, e: Exception) -> Response:
    """Of an address that isn't there, or not by this method."""
    assert isinstance(e, HTTPException)
    request.state.noted["reason"] = "unknown"
    return JSONResponse({"error": str(e.detail)}, e.status_code, e.headers)


async def _fault(_: Request, __: Exception) -> Response:
    """Of ours; what it was is in the log alone."""
    return Problem(500, "a fault of the server's; its log says more", "fault").response()
