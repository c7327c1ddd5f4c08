"""The server in this process: what it answers, and what it says where it doesn't."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hostile
import pytest
from starlette.testclient import TestClient

import mobilenets
from mobilenets.deploy.engines import trial
from mobilenets.deploy.names import named
from mobilenets.deploy.predict import load
from mobilenets.deploy.server import bodies, models
from mobilenets.deploy.server.app import application
from mobilenets.deploy.server.logs import Json
from mobilenets.deploy.server.models import best_batch
from mobilenets.deploy.server.settings import Settings
from mobilenets.deploy.writers.onnx import onnx_model
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle

JPEG = {"Content-Type": "image/jpeg"}
PREDICT = hostile.PREDICT


@pytest.fixture(scope="module", autouse=True)
def _ours() -> Iterator[None]:
    """Files that this test has just written are run at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "check", lambda *_: None)
        yield


@pytest.fixture
def served(model: Path) -> Iterator[Callable[..., TestClient]]:
    """`served(max_images=3)`: a client of a server of the small network, called tiny, with such settings."""
    with contextlib.ExitStack() as open_clients:

        def start(**options: Any) -> TestClient:
            chosen = {"models": (("tiny", model),), "threads": 2, "batch": 4, "quiet": True, **options}
            app = application(Settings(**chosen))
            return open_clients.enter_context(TestClient(app, raise_server_exceptions=False))

        yield start


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[TestClient]:
    settings = Settings((("tiny", model),), threads=2, batch=4, allow_urls=True, max_body_mb=1.0, max_pixels=100_000)
    with TestClient(application(settings), raise_server_exceptions=False) as one:
        yield one


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    rng = random.Random(5)
    return [hostile.jpeg(rng, 50 + n) for n in range(12)]


def test_one_image(client: TestClient, model: Path, photos: list[bytes]) -> None:
    answer = client.post(f"{PREDICT}?top=3", content=photos[0], headers=JPEG)
    assert answer.status_code == 200
    said = load(model).predict(photos[0], top=3)
    assert answer.json() == {"model": "tiny", "predictions": [{"instance": 0, **said.answer.to_json()}]}
    assert len(answer.headers["x-request-id"]) == 16


def test_several_at_once_in_their_order_a_damaged_one_among_them(
    client: TestClient, model: Path, photos: list[bytes]
) -> None:
    files = [*photos, photos[0][:200]]
    body = {"instances": [{"b64": base64.b64encode(f).decode()} for f in files], "top": 1}
    said = client.post(PREDICT, json=body).json()["predictions"]
    network = load(model)
    assert [p["instance"] for p in said] == list(range(13))
    assert [p["top"] for p in said[:12]] == [network.predict(f, top=1).answer.to_json()["top"] for f in photos]
    assert "damaged" in said[12]["error"]


def test_many_clients_get_their_own_answers(client: TestClient, model: Path, photos: list[bytes]) -> None:
    network = load(model)
    wanted = [network.predict(f).answer.to_json()["top"] for f in photos]
    wrong: list[int] = []

    def ask(first: int) -> None:
        for n in range(first, first + 10):
            got = client.post(PREDICT, content=photos[n % 12], headers=JPEG).json()
            if got["predictions"][0]["top"] != wanted[n % 12]:
                wrong.append(n)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("path", "content", "headers", "status", "line"),
    [
        ("/v1/models/tinny:predict", b"x", JPEG, 404, "no network is called so here; there are: tiny"),
        (PREDICT, b"no image", JPEG, 400, "damaged image"),
        (PREDICT, b"", JPEG, 400, "damaged image"),
        (PREDICT, bytes(1_000_001), JPEG, 413, "a body may have 1,000,000 bytes"),
        (PREDICT, hostile.huge(500, 201), JPEG, 400, "500x201 pixels, over the limit of 100,000"),
        (PREDICT, b"x", {"Content-Type": "text/html"}, 415, "image/*"),
        (PREDICT, b"x", {**JPEG, "Content-Encoding": "gzip"}, 415, "not compressed"),
        (f"{PREDICT}?top=0", b"x", JPEG, 400, "top is a whole number"),
        (PREDICT, b"{", {"Content-Type": "application/json"}, 400, "isn't JSON"),
        (PREDICT, b"[" * 90_000, {"Content-Type": "application/json"}, 400, "isn't JSON"),
        (PREDICT, b"[]", {"Content-Type": "application/json"}, 400, "isn't a JSON object"),
        (PREDICT, b'{"instances": [{"b64": "?"}]}', {"Content-Type": "application/json"}, 400, "isn't base64"),
        (PREDICT, b'{"instances": [{"path": "/etc/passwd"}]}', {"Content-Type": "application/json"}, 400, "instance 0"),
        ("/v1/models", b"x", JPEG, 405, "Method Not Allowed"),
        ("/../../etc/passwd", b"x", JPEG, 404, "Not Found"),
    ],
)
def test_what_is_wrong_is_one_line(
    client: TestClient, path: str, content: bytes, headers: dict[str, str], status: int, line: str
) -> None:
    answer = client.post(path, content=content, headers=headers)
    assert answer.status_code == status
    assert line in answer.json()["error"]
    assert answer.json().keys() == {"error"}


def test_addresses_are_of_the_open_internet_and_asked_for(
    client: TestClient, served: Callable[..., TestClient], tmp_path: Path, serve: Callable[..., Any]
) -> None:
    here = serve(tmp_path)
    for url in (
        f"{here.url}/x.jpg",
        "http://localhost/",
        "file:///etc/passwd",
        "http://[::1]/",
        "x",
        "http://[",
        "http://",
    ):
        said = client.post(PREDICT, json={"instances": [{"url": url}]})
        assert said.status_code == 200
        assert "can't be fetched" in said.json()["predictions"][0]["error"]
    assert here.asked == []
    refused = served().post(PREDICT, json={"instances": [{"url": "http://example.org/x.jpg"}]})
    assert refused.status_code == 403


def test_an_image_from_an_address(
    client: TestClient, tmp_path: Path, serve: Callable[..., Any], photos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobilenets.deploy.server.fetch.allowed", lambda _: True)
    (tmp_path / "x.jpg").write_bytes(photos[0])
    (tmp_path / "large.jpg").write_bytes(bytes(1_000_001))
    url = serve(tmp_path).url
    asked = {"instances": [{"url": f"{url}/{name}.jpg"} for name in ("x", "large", "absent")]}
    said = client.post(PREDICT, json=asked).json()["predictions"]
    assert said[0]["top"] == client.post(PREDICT, content=photos[0], headers=JPEG).json()["predictions"][0]["top"]
    assert all("can't be fetched" in one["error"] for one in said[1:])


def test_more_images_than_may_be(served: Callable[..., TestClient], photos: list[bytes]) -> None:
    one = {"b64": base64.b64encode(photos[0]).decode()}
    client = served(max_images=3)
    assert client.post(PREDICT, json={"instances": [one] * 3}).status_code == 200
    refused = client.post(PREDICT, json={"instances": [one] * 4})
    assert (refused.status_code, refused.json()["error"]) == (413, "4 images in a request, of which 3 may be")


def slow(client: TestClient, gate: threading.Event) -> Any:
    """Make the network's calls wait for `gate`."""
    server = client.app.app.app.state.server
    engine = server.models.now["tiny"].model.engine
    real = engine.answer
    engine.answer = lambda images: gate.wait(20) and real(images)
    return server


def test_who_comes_when_there_is_no_room_is_told_to_come_again(
    served: Callable[..., TestClient], photos: list[bytes]
) -> None:
    client, gate = served(threads=1, batch=1, max_waiting=2), threading.Event()
    server = slow(client, gate)
    answers: list[Any] = []
    asking = [
        threading.Thread(target=lambda: answers.append(client.post(PREDICT, content=photos[0], headers=JPEG)))
        for _ in range(3)
    ]
    for n, t in enumerate(asking):
        t.start()
        until = time.monotonic() + 10
        while (len(server.queue.running), len(server.queue.waiting)) != (1, n) and time.monotonic() < until:
            time.sleep(0.005)
    refused = client.post(PREDICT, content=photos[0], headers=JPEG)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert client.get("/readyz").status_code == 503
    assert "mobilenets_queue_depth 2.0" in client.get("/metrics").text
    gate.set()
    for t in asking:
        t.join()
    assert [a.status_code for a in answers] == [200] * 3
    assert client.get("/readyz").status_code == 200
    assert 'mobilenets_refused_total{reason="full"} 1.0' in client.get("/metrics").text


def test_an_answer_that_takes_too_long(served: Callable[..., TestClient], photos: list[bytes]) -> None:
    client, gate = served(threads=1, timeout=0.1), threading.Event()
    server = slow(client, gate)
    late = client.post(PREDICT, content=photos[0], headers=JPEG)
    assert (late.status_code, late.json()["error"]) == (504, "no answer within 0.1 s")
    assert client.get("/healthz").status_code == 200
    server.queue.running[0] -= 1000
    assert client.get("/healthz").status_code == 503
    gate.set()
    until = time.monotonic() + 10
    while server.queue.running and time.monotonic() < until:
        time.sleep(0.005)
    assert client.post(PREDICT, content=photos[0], headers=JPEG).status_code == 200


def test_a_fault_of_ours_is_no_traceback(served: Callable[..., TestClient], photos: list[bytes]) -> None:
    client = served()
    server = client.app.app.app.state.server
    engine = server.models.now["tiny"].model.engine
    real, engine.answer = engine.answer, lambda _: 1 / 0
    said = client.post(PREDICT, content=photos[0], headers=JPEG)
    assert (said.status_code, said.json()) == (500, {"error": "a fault of the server's"})
    engine.answer = real
    assert client.post(PREDICT, content=photos[0], headers=JPEG).status_code == 200
    server.models.now = None
    said = client.get("/v1/models")
    assert (said.status_code, set(said.json())) == (500, {"error"})
    assert "ZeroDivisionError" not in said.text


def test_a_token(served: Callable[..., TestClient], photos: list[bytes]) -> None:
    client = served(token="secret")
    for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret"}, {"Authorization": "Bearer "}):
        refused = client.post(PREDICT, content=photos[0], headers={**JPEG, **headers})
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert client.get("/metrics").status_code == client.get("/v1/models").status_code == 401
    assert [client.get(p).status_code for p in ("/", "/healthz", "/readyz", "/v2/health/ready")] == [200] * 4
    good = {**JPEG, "Authorization": "Bearer secret"}
    assert client.post(PREDICT, content=photos[0], headers=good).status_code == 200


def test_bodies_together_fill_the_memory_they_may(served: Callable[..., TestClient], photos: list[bytes]) -> None:
    client = served()
    server = client.app.app.app.state.server
    server.bodies.held = bodies.TOGETHER * server.bodies.most
    assert client.post(PREDICT, content=photos[0], headers=JPEG).status_code == 429
    assert server.bodies.held == bodies.TOGETHER * server.bodies.most
    server.bodies.held = 0
    assert client.post(PREDICT, content=photos[0], headers=JPEG).status_code == 200
    assert server.bodies.held == 0


# ---- what is replaced


def test_a_network_that_is_replaced(
    make_bundle: Callable[..., Bundle], tmp_path: Path, served: Callable[..., TestClient], photos: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(models, "LOOK", 1000.0)
    path, other = tmp_path / "net.onnx", tmp_path / "other"
    path.write_bytes(onnx_model(make_bundle("v1")))
    client = served(models=(("net", path),))
    server = client.app.app.app.state.server
    ask = lambda: client.post("/v1/models/net:predict", content=photos[0], headers=JPEG).json()  # noqa: E731
    before, digest = ask(), client.get("/v1/models/net").json()["sha256"]
    server.models.refresh()
    assert server.models.now["net"].digest == digest
    other.write_bytes(b"half a file")
    other.replace(path)
    server.models.refresh()
    server.models.refresh()
    assert ask() == before
    assert 'mobilenets_reloads_total{model="net",result="failed"} 1.0' in client.get("/metrics").text
    other.write_bytes(onnx_model(make_bundle("v1", seed=3)))
    other.replace(path)
    server.models.refresh()
    assert ask() != before
    assert client.get("/v1/models/net").json()["sha256"] != digest
    path.unlink()
    server.models.refresh()
    assert ask() != before


def test_an_update_is_served(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    """What `update pull` and `update apply` do to an installed network is seen as any other change."""
    make_bundle("v1").save(tmp_path / "installed")
    make_bundle("v1", seed=3).save(tmp_path / "new")
    before = models.look(tmp_path / "installed")
    assert models.look(tmp_path / "installed") == before
    mobilenets.make_update(tmp_path / "installed", tmp_path / "new", out=tmp_path / "u.mnu")
    mobilenets.apply_update(tmp_path / "installed", tmp_path / "u.mnu")
    assert models.look(tmp_path / "installed") != before


@pytest.mark.parametrize(
    ("call", "image", "best"), [(8.0, 0.5, 8), (0.1, 4.0, 1), (60.0, 0.0, 1)], ids=["pays", "does not", "slow anyway"]
)
def test_how_many_images_a_call_should_have(
    model: Path, monkeypatch: pytest.MonkeyPatch, call: float, image: float, best: int
) -> None:
    """Of a call that costs so many milliseconds, and so many more for each image."""
    monkeypatch.setattr(models, "_seconds", lambda _, images: (call + image * len(images)) / 1000)
    assert best_batch(load(model)) == best


# ---- names and settings


def test_names() -> None:
    assert named(["cats=a/b.onnx", "run.mnet", "runs/dogs"]) == (
        ("cats", Path("a/b.onnx")), ("run", Path("run.mnet")), ("dogs", Path("runs/dogs")),
    )  # fmt: skip
    for wrong, line in (
        ([], "at least one"), (["a/x.onnx", "b/x.mnet"], "two networks are called x"), (["ä.onnx"], "give NAME=ä.onnx"),
        (["=x"], "can't be a name"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=line):
            named(wrong)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--workers", 0), "--workers must be 1 or more, not 0"),
        (("--port", 70000), "--port is from 0 to 65535"),
        (("--timeout", 0), "--timeout must be above 0"),
        (("--token-file", "absent"), "no token can be read there"),
        (("--host", "203.0.113.1"), "can't serve at 203.0.113.1 port 8080"),
    ],
)
def test_wrong_options(command: Callable[..., Any], model: Path, options: tuple[Any, ...], line: str) -> None:
    assert line in command("serve", model, *options).line


def test_a_network_that_is_not_there(command: Callable[..., Any]) -> None:
    assert "absent.onnx: no such file" in command("serve", "absent.onnx", "--port", 0).line


# ---- what is told


def test_what_there_is_to_ask(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {
        "/v1/models/{name}:predict",
        "/v1/models",
        "/v2/models/{name}/infer",
        "/healthz",
        "/readyz",
        "/metrics",
    } <= {*paths}
    predict = paths["/v1/models/{name}:predict"]["post"]
    assert [p["name"] for p in predict["parameters"]] == ["name", "top"]
    assert set(predict["requestBody"]["content"]) == {"image/*", "application/json"}
    assert client.get("/docs").status_code == 200


def test_the_model_says_what_it_is_and_nothing_of_this_machine(client: TestClient, model: Path) -> None:
    (said,) = client.get("/v1/models").json()
    assert (said["name"], said["task"], said["input"], len(said["labels"])) == ("tiny", "classify", [32, 32, 3], 10)
    assert str(model.parent) not in json.dumps(said)


def test_requests_are_logged_as_json(client: TestClient, photos: list[bytes], caplog: Any) -> None:
    with caplog.at_level(logging.INFO, "mobilenets.serve"):
        client.post(PREDICT, content=photos[0], headers={**JPEG, "X-Request-Id": "abc-1"})
        client.post("/v1/models/x%0ay:predict", content=b"", headers={**JPEG, "X-Request-Id": "a b"})
    first, second = (json.loads(Json().format(r)) for r in caplog.records if r.getMessage() == "request")
    assert (first["request"], first["status"], first["model"], first["images"]) == ("abc-1", 200, "tiny", 1)
    assert (second["request"] != "a b", second["status"], second["reason"]) == (True, 404, "unknown")
    assert "model" not in second
