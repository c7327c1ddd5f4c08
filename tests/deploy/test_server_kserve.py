"""KServe's protocol, version 2: what Triton's and KServe's clients send, byte by byte."""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
from starlette.testclient import TestClient

from mobilenets.deploy.engines import trial
from mobilenets.deploy.predict import load
from mobilenets.deploy.server.app import application
from mobilenets.deploy.server.kserve import HEADER
from mobilenets.deploy.server.settings import Settings
from mobilenets.model.images import Pixels

INFER = hostile.INFER


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "check", lambda *_: None)
        with TestClient(application(Settings((("tiny", model),), threads=2, batch=4, max_images=30))) as one:
            yield one


@pytest.fixture
def ours(pixels: Pixels, model: Path) -> Callable[[int], np.ndarray]:
    return lambda n: load(model).engine(pixels[:n])["probabilities"]


def test_who_is_there(client: TestClient) -> None:
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    assert client.get("/v2/models/other/ready").status_code == 404
    assert client.get("/v2/models/tiny").json() == client.get("/v2/models/tiny/versions/1").json() == {
        "name": "tiny",
        "versions": ["1"],
        "platform": "mobilenets_onnxruntime",
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}],
    }  # fmt: skip


def test_numbers_in_json(client: TestClient, pixels: Pixels, ours: Callable[[int], np.ndarray]) -> None:
    tensor = {"name": "images", "datatype": "UINT8", "shape": [2, 32, 32, 3], "data": pixels[:2].ravel().tolist()}
    for data in (tensor["data"], pixels[:2].tolist()):  # flat or nested, as the protocol has it
        said = client.post(INFER, json={"id": "7", "inputs": [tensor | {"data": data}]}).json()
        (output,) = said.pop("outputs")
        assert said == {"model_name": "tiny", "model_version": "1", "id": "7"}
        assert (output["name"], output["datatype"], output["shape"]) == ("probabilities", "FP32", [2, 10])
        np.testing.assert_allclose(np.reshape(output["data"], (2, 10)), ours(2), atol=1e-6)


def test_numbers_in_binary(client: TestClient, pixels: Pixels, ours: Callable[[int], np.ndarray]) -> None:
    """As Triton's client has it by default, both ways."""
    raw = pixels[:24].tobytes()
    head = json.dumps({
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [24, 32, 32, 3],
                    "parameters": {"binary_data_size": len(raw)}}],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
    }).encode()  # fmt: skip
    headers = {HEADER: str(len(head)), "Content-Type": "application/octet-stream"}
    said = client.post("/v2/models/tiny/versions/1/infer", content=head + raw, headers=headers)
    split = int(said.headers[HEADER])
    (output,) = json.loads(said.content[:split])["outputs"]
    assert output["parameters"] == {"binary_data_size": 24 * 10 * 4}
    np.testing.assert_allclose(np.frombuffer(said.content[split:], "<f4").reshape(24, 10), ours(24), atol=1e-6)


def test_files(client: TestClient, model: Path) -> None:
    """BYTES: images as they are, which are decoded here."""
    photos = [hostile.jpeg(random.Random(n), 60) for n in range(3)]
    network = load(model)
    wanted = [network.engine(network.prepare(p)[0][None])["probabilities"][0] for p in photos]
    tensor: dict[str, Any] = {"name": "images", "datatype": "BYTES", "shape": [3]}
    body = {"inputs": [tensor | {"data": [base64.b64encode(p).decode() for p in photos]}]}
    said = client.post(INFER, json=body).json()["outputs"][0]["data"]
    np.testing.assert_allclose(np.reshape(said, (3, 10)), wanted, atol=1e-6)
    raw = b"".join(struct.pack("<I", len(p)) + p for p in photos)
    head = json.dumps({
        "inputs": [tensor | {"parameters": {"binary_data_size": len(raw)}}], "parameters": {"binary_data_output": True}
    }).encode()  # fmt: skip
    answer = client.post(INFER, content=head + raw, headers={HEADER: str(len(head))})
    found = np.frombuffer(answer.content[int(answer.headers[HEADER]) :], "<f4").reshape(3, 10)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


GOOD: dict[str, Any] = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 3072}


@pytest.mark.parametrize(
    ("change", "status", "line"),
    [
        ({"name": "x"}, 400, "the input is called images"),
        ({"shape": [1, 30, 30, 3]}, 400, "UINT8 [N, 32, 32, 3], or BYTES [N]"),
        ({"shape": [2, 32, 32, 3]}, 400, "3,072 numbers"),
        ({"shape": [31, 32, 32, 3]}, 413, "31 images in a request, of which 30 may be"),
        ({"shape": [-1, 32, 32, 3]}, 400, "shape isn't a list of whole numbers"),
        ({"data": [256] * 3072}, 400, "whole numbers from 0 to 255"),
        ({"data": [0.5] * 3072}, 400, "whole numbers from 0 to 255"),
        ({"data": [[1], [1, 2]]}, 400, "isn't an array"),
        ({"parameters": {"binary_data_size": 5}}, 400, "isn't the number of bytes after the JSON"),
        ({"datatype": "BYTES", "shape": [1], "data": ["AAAA"]}, 400, "image 0: image: damaged image"),
        ({"datatype": "BYTES", "shape": [2], "data": ["AAAA"]}, 400, "1 elements"),
    ],
)
def test_what_is_wrong_is_one_line(client: TestClient, change: dict[str, Any], status: int, line: str) -> None:
    said = client.post(INFER, json={"inputs": [GOOD | change]})
    assert (said.status_code, said.json().keys()) == (status, {"error"})
    assert line in said.json()["error"]


def test_headers_and_outputs_that_are_wrong(client: TestClient) -> None:
    for header in ("-1", "x", "99999999"):
        assert client.post(INFER, json={"inputs": [GOOD]}, headers={HEADER: header}).status_code == 400
    said = client.post(INFER, json={"inputs": [GOOD], "outputs": [{"name": "logits"}]})
    assert said.json() == {"error": "the outputs are probabilities"}
    said = client.post(INFER, json={"inputs": [GOOD], "outputs": [{"name": []}]})
    assert said.status_code == 400
    assert client.post(INFER, json={"inputs": [GOOD, GOOD]}).status_code == 400
