"""A network on a Ray cluster, by Ray Serve: as many replicas as the requests need.

    pip install 'ray[serve]' mobilenets
    serve run deploy.ray_serve:app model=runs/photos/model-int8.onnx

An image's bytes go to http://127.0.0.1:8000/; the file must be where every node of the cluster sees it. For one
machine, `mobilenets serve` costs less a request, and has limits on what it is asked.
"""

from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

import mobilenets


@serve.deployment(
    autoscaling_config={"min_replicas": 1, "max_replicas": 20, "target_ongoing_requests": 8},
    ray_actor_options={"num_cpus": 1},
    max_ongoing_requests=32,
)
class Network:
    """One replica, on one processor."""

    def __init__(self, model: str) -> None:
        self.model = mobilenets.load(model)

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.002)
    async def predict(self, images: list[bytes]) -> list[dict[str, Any]]:
        return [said.to_json() for said in self.model.predict(images)]

    async def __call__(self, request: Request) -> JSONResponse:
        said = await self.predict(await request.body())
        return JSONResponse(said, 400 if "error" in said else 200)


def app(arguments: dict[str, str]) -> Any:
    """What `serve run` starts: `model=PATH` says which network."""
    return Network.bind(arguments["model"])
