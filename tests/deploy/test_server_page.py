"""A server's pages: one that asks it, one that runs the networks where it is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import Ran
from starlette.testclient import TestClient

from mobilenets.deploy.app import site
from mobilenets.deploy.server.app import application
from mobilenets.deploy.server.settings import Settings
from mobilenets.model.bundle import Bundle


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "tiny"
    make_bundle("v1").save(path)
    return path


def client(bundle: Path, **more: Any) -> TestClient:
    return TestClient(application(Settings((("tiny", bundle),), threads=1, batch=1, **more)))


def test_a_page_that_asks(bundle: Path) -> None:
    with client(bundle) as asked:
        page = asked.get("/")
        assert "<option>tiny</option>" in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "app/" not in page.text
        assert "Token" not in page.text
        assert asked.get("/app/").status_code == 404


def test_its_token_is_asked_for_where_there_is_one(bundle: Path) -> None:
    with client(bundle, token="secret") as asked:
        assert 'id="token"' in asked.get("/").text


def test_a_page_that_runs_the_networks_where_it_is_opened(bundle: Path, tmp_path: Path) -> None:
    made = site([bundle], tmp_path / "app", names=["small one"])
    assert made.networks[0].name == "small-one"
    with client(bundle, app=made.path) as asked:
        assert 'href="app/"' in asked.get("/").text
        page = asked.get("/app/")
        assert page.text == (made.path / "index.html").read_text(encoding="utf-8")
        assert page.headers["cross-origin-embedder-policy"] == "require-corp"
        file = asked.get(f"/app/models/{next((made.path / 'models').iterdir()).name}")
        assert file.content == next((made.path / "models").iterdir()).read_bytes()
        assert asked.get("/app/../../etc/passwd").status_code == 404
        assert asked.get("/app/%2e%2e/%2e%2e/etc/passwd").status_code == 404


def test_what_no_page_can_run(model: Path, bundle: Path, tmp_path: Path, command: Callable[..., Ran]) -> None:
    assert "no bundle, finished run or .mnet file" in command("serve", model, "--app", "--port", 0).line
    (tmp_path / "token").write_text("secret")
    line = command("serve", bundle, "--app", "--token-file", tmp_path / "token", "--port", 0).line
    assert "leave out one of them" in line
