"""The examples in deploy/ name what there is: options, addresses, metrics, packages."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import mobilenets
from mobilenets.commands.serve import serve
from mobilenets.deploy.names import named
from mobilenets.deploy.server import run
from mobilenets.deploy.server.gate import OPEN
from mobilenets.deploy.server.metrics import Metrics
from mobilenets.deploy.server.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OPTIONS = {
    f"--{name.replace('_', '-')}": p for name, p in inspect.signature(serve).parameters.items() if name != "models"
}


def given(arguments: list[str]) -> dict[str, str]:
    """Options with their values; what is left is networks. A name that isn't an option fails."""
    found, networks, rest = {}, [], list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            networks.append(word)
        else:
            assert word in OPTIONS, word
            found[word] = "" if OPTIONS[word].default is False else rest.pop(0)
    if networks:
        named(networks)
    return found


def instructions(path: Path) -> list[tuple[str, str]]:
    text = path.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


@pytest.fixture(scope="module")
def kinds() -> dict[str, Any]:
    return {d["kind"]: d for d in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


def test_the_image() -> None:
    steps = instructions(DEPLOY / "Dockerfile")
    last = dict(steps)
    assert [rest.split()[0].endswith(":nonroot") for word, rest in steps if word == "FROM"][-1]
    entry = json.loads(last["ENTRYPOINT"])
    assert entry[1:4] == ["-m", "mobilenets", "serve"]
    assert given(entry[4:])["--port"] == last["EXPOSE"]
    assert json.loads(last["CMD"])[0] in mobilenets.model.bundle.packaged()  # type: ignore[attr-defined]
    assert "/healthz" in OPEN
    assert f":{last['EXPOSE']}/healthz" in last["HEALTHCHECK"]
    (install,) = [rest for word, rest in steps if word == "RUN" and "pip install" in rest]
    extras = re.search(r"\[(.*)\]", install)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras
    assert {*extras[1].split(",")} == {"runtime", "serve"} <= {*known}
    assert "MOBILENETS_CACHE" in last["ENV"]


def test_what_the_image_is_built_from_is_there() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert all((ROOT / line[1:]).exists() for line in lines if line.startswith("!"))


def test_its_first_lines_are_commands() -> None:
    (line,) = [s for s in (DEPLOY / "Dockerfile").read_text().splitlines() if "docker run" in s]
    words = shlex.split(line.lstrip("# "))
    given(words[words.index("mobilenets") + 1 :])


def test_kubernetes(kinds: dict[str, Any]) -> None:
    pod = kinds["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    options = given(container["args"])
    settings = Settings((("x", Path("x")),))
    timeout = float(options.get("--timeout", settings.timeout))
    end = container["lifecycle"]["preStop"]["sleep"]["seconds"] + timeout + run.GRACE
    assert pod["spec"]["terminationGracePeriodSeconds"] >= end
    (port,) = container["ports"]
    entry = dict(instructions(DEPLOY / "Dockerfile"))["ENTRYPOINT"]
    assert str(port["containerPort"]) == given(json.loads(entry)[4:])["--port"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] in OPEN
        assert container[probe]["httpGet"]["port"] == port["name"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert {m["mountPath"] for m in container["volumeMounts"]} >= {"/tmp", "/models"}
    labels = kinds["Deployment"]["spec"]["selector"]["matchLabels"]
    assert labels.items() <= pod["metadata"]["labels"].items()
    assert kinds["Service"]["spec"]["selector"] == labels
    assert pod["metadata"]["annotations"]["prometheus.io/path"] == "/metrics"


def test_it_grows_by_the_queue(kinds: dict[str, Any]) -> None:
    scaler = kinds["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == kinds["Deployment"]["metadata"]["name"]
    (metric,) = scaler["metrics"]
    metrics = Metrics()
    metrics.waiting(3)
    assert f"{metric['pods']['metric']['name']} 3.0" in metrics.text()[0].decode()
    (container,) = kinds["Deployment"]["spec"]["template"]["spec"]["containers"]
    most = int(given(container["args"])["--max-waiting"])
    assert int(metric["pods"]["target"]["averageValue"]) < most / 2  # it grows before anybody is refused


def test_ray_serve() -> None:
    text = (DEPLOY / "ray_serve.py").read_text()
    tree = ast.parse(text)
    used = {
        n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "mobilenets"
    }
    assert used == {"load"} <= {*mobilenets.__all__}
    assert "serve run deploy.ray_serve:app" in text
    assert "app" in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
