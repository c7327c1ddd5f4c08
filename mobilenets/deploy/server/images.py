"""The images in a request's body: one file's bytes, or JSON with several. No torch."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mobilenets.deploy.server import fetch
from mobilenets.deploy.server.problem import Problem, bad
from mobilenets.files import parse_json
from mobilenets.model.images import BadImage

SHAPE = '{"instances": [{"b64": "..."}, ...]}'


@dataclass(frozen=True)
class Asked:
    """Images, each as its file's bytes, or as why it can't be read; and how many labels to tell of each."""

    images: list[bytes | BadImage]
    top: int


@dataclass(frozen=True)
class Limits:
    """What a request may hold: `images`; where `urls` are allowed, of so many `bytes` each, all within `seconds`."""

    images: int
    bytes: int
    urls: bool
    seconds: float


def of_json(body: bytes, top: int, limits: Limits) -> Asked:
    """Those of JSON as TensorFlow Serving's clients send it: `{"instances": [{"b64": "..."}], "top": 5}`.

    `{"url": "https://..."}` in the place of one, where that is allowed. Raises `Problem`.
    """
    d = parsed(body)
    found = d.get("instances")
    if not isinstance(found, list) or not found:
        raise bad(f"the JSON has no images: {SHAPE}")
    check_count(len(found), limits.images)
    top = check_top(d.get("top", top))
    until = time.monotonic() + limits.seconds
    return Asked([_image(one, n, limits, until) for n, one in enumerate(found)], top)


def parsed(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises `Problem`."""
    try:
        d = parse_json(body)
    except ValueError as e:
        raise bad("the body isn't JSON") from e
    if not isinstance(d, dict):
        raise bad("the body isn't a JSON object")
    return d


def check_count(images: int, most: int) -> None:
    if images > most:
        raise Problem(413, f"{images} images in a request, of which {most} may be", "large")


def check_top(top: Any) -> int:
    if not isinstance(top, int) or isinstance(top, bool) or not 1 <= top <= 1_000_000:
        raise bad("top is a whole number, 1 or more")
    return top


def _image(given: Any, number: int, limits: Limits, until: float) -> bytes | BadImage:
    kinds: dict[str, Callable[[str], bytes]] = {"b64": lambda text: of_base64(text, number)}
    if limits.urls:
        kinds["url"] = lambda url: fetch.image(url, limits.bytes, max(0.001, until - time.monotonic()))
    if isinstance(given, dict) and len(given) == 1:
        ((kind, value),) = given.items()
        if kind == "url" and not limits.urls:
            raise Problem(403, "images aren't fetched from addresses here: the server was started without it", "bad")
        if kind in kinds and isinstance(value, str):
            try:
                return kinds[kind](value)
            except BadImage as e:
                return e.with_traceback(None)
    raise bad(f"instance {number} isn't an image: {SHAPE}")


def of_base64(text: str, number: int) -> bytes:
    """Raises `Problem`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise bad(f"image {number} isn't base64") from e
