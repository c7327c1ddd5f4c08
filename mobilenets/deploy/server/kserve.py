"""KServe's protocol, version 2, over HTTP, as Triton's and KServe's clients speak it; binary tensors too. No torch.

The one input, `images`, is uint8 [N, H, W, 3] as the network takes it (UINT8), or N images' files (BYTES; in JSON, as
base64). The outputs are the network's own, as its card names them (FP32).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets.deploy.server.images import check_count, of_base64, parsed
from mobilenets.deploy.server.models import Served
from mobilenets.deploy.server.problem import bad
from mobilenets.model.images import Pixels

INPUT = "images"
HEADER = "Inference-Header-Content-Length"
VERSION = "1"
BINARY, BINARY_SIZE, ALL_BINARY = "binary_data", "binary_data_size", "binary_data_output"


@dataclass(frozen=True)
class Infer:
    """A request: its images, pixels or files; the outputs that it wants, and which of them in binary."""

    images: Pixels | list[bytes]
    outputs: tuple[str, ...]
    binary: frozenset[str]
    id: str | None


def metadata(served: Served) -> dict[str, Any]:
    card = served.model.card
    height, width = card.preprocess.input_size
    return {
        "name": served.name,
        "versions": [VERSION],
        "platform": f"mobilenets_{served.model.engine.name}",
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, height, width, 3]}],
        "outputs": [{"name": n, "datatype": "FP32", "shape": [-1, *shape]} for n, shape in card.outputs.items()],
    }


def read(body: bytes, header: str | None, served: Served, most: int) -> Infer:
    """What a body asks; `header`: HEADER's value, where it has tensors in binary after the JSON. Raises `Problem`."""
    split = len(body)
    if header is not None:
        if not (header.isascii() and header.isdigit() and int(header[:20]) <= len(body)):
            raise bad(f"{HEADER} isn't the length of the JSON that the body begins with")
        split = int(header)
    d = parsed(body[:split])
    inputs = d.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise bad(f"a request has one input, {INPUT}")
    images = _tensor(inputs[0], body[split:], served, most)
    outputs, binary = _wanted(d, served)
    name = d.get("id")
    return Infer(images, outputs, binary, name if isinstance(name, str) else None)


def _tensor(d: dict[str, Any], rest: bytes, served: Served, most: int) -> Pixels | list[bytes]:
    if d.get("name") != INPUT:
        raise bad(f"the input is called {INPUT}")
    shape = d.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape) or not shape or not shape[0]:
        raise bad("the input's shape isn't a list of whole numbers, the first of them how many images")
    check_count(shape[0], most)
    kind = d.get("datatype")
    size = _parameters(d).get(BINARY_SIZE)
    if size is not None and size != len(rest):
        raise bad(f"{BINARY_SIZE} isn't the number of bytes after the JSON")
    if kind == "BYTES":
        return _files(d.get("data"), None if size is None else rest, shape)
    height, width = served.model.card.preprocess.input_size
    if kind != "UINT8" or shape[1:] != [height, width, 3]:
        raise bad(f"{INPUT} is UINT8 [N, {height}, {width}, 3], or BYTES [N] of image files")
    if size is not None:
        pixels = np.frombuffer(rest, np.uint8)
    else:
        try:
            numbers = np.asarray(d.get("data"))
        except ValueError as e:
            raise bad("the input's data isn't an array") from e
        if numbers.dtype.kind not in "iu" or (numbers.size and not 0 <= numbers.min() <= numbers.max() <= 255):
            raise bad("UINT8 data are whole numbers from 0 to 255")
        pixels = numbers.astype(np.uint8).ravel()
    if pixels.size != shape[0] * height * width * 3:
        raise bad(f"the input has {pixels.size:,} numbers, not what its shape {shape} says")
    return pixels.reshape(shape)


def _files(data: Any, rest: bytes | None, shape: list[int]) -> list[bytes]:
    """Images' files of BYTES: each its length, 4 bytes, little end first, and itself; or base64 in JSON."""
    found: list[bytes] = []
    if rest is None:
        if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
            raise bad("BYTES data are a list of texts, each an image's file in base64")
        found = [of_base64(text, n) for n, text in enumerate(data)]
    else:
        at = 0
        while at + 4 <= len(rest):
            (length,) = struct.unpack_from("<I", rest, at)
            found.append(rest[at + 4 : at + 4 + length])
            at += 4 + length
        if at != len(rest):
            raise bad("BYTES data end within an element")
    if shape != [len(found)] and shape != [len(found), 1]:
        raise bad(f"the input has {len(found)} elements, not what its shape {shape} says")
    return found


def _wanted(d: dict[str, Any], served: Served) -> tuple[tuple[str, ...], frozenset[str]]:
    """The outputs that a request wants: those it names, else all; and which in binary."""
    known = served.model.card.outputs
    every = bool(_parameters(d).get(ALL_BINARY))
    asked = d.get("outputs")
    if asked is None:
        return tuple(known), frozenset(known if every else ())
    if not isinstance(asked, list) or not all(isinstance(o, dict) and str(o.get("name")) in known for o in asked):
        raise bad(f"the outputs are {', '.join(known)}")
    names = tuple(dict.fromkeys(str(o["name"]) for o in asked))
    return names, frozenset(str(o["name"]) for o in asked if _parameters(o).get(BINARY, every))


def _parameters(d: dict[str, Any]) -> dict[str, Any]:
    found = d.get("parameters") or {}
    if not isinstance(found, dict):
        raise bad("parameters are a JSON object")
    return found


def written(
    asked: Infer, served: Served, rows: Sequence[dict[str, npt.NDArray[np.float32]]]
) -> tuple[bytes, dict[str, str]]:
    """The answer's body and headers, of each image's outputs, [1, *shape]."""
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name in asked.outputs:
        values = np.ascontiguousarray(np.concatenate([row[name] for row in rows]), "<f4")
        told: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
        if name in asked.binary:
            tail.append(values.tobytes())
            told["parameters"] = {BINARY_SIZE: len(tail[-1])}
        else:
            told["data"] = [float(v) for v in values.ravel()]
        outputs.append(told)
    d = {"model_name": served.name, "model_version": VERSION, "outputs": outputs}
    head = json.dumps(d | ({"id": asked.id} if asked.id is not None else {})).encode()
    if not tail:
        return head, {"Content-Type": "application/json"}
    return head + b"".join(tail), {"Content-Type": "application/octet-stream", HEADER: str(len(head))}
