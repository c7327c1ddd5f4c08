"""Networks packed as a site: what is in it, what isn't packed, where a classifier looks. The pages: `test_app_page`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small import Ran, smooth_images

from mobilenets import tasks
from mobilenets.deploy import app, engines, npm
from mobilenets.deploy.engines import native_library
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle

PACKAGED = "cifar10-v1-0.25"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return app.site([PACKAGED, PACKAGED], tmp_path_factory.mktemp("app") / "site").path


def test_a_site_is_small_and_whole(site: Path) -> None:
    told = json.loads((site / "app.json").read_text())
    assert [n["name"] for n in told["networks"]] == [PACKAGED, f"{PACKAGED}-2"]
    for network in told["networks"]:
        assert (site / network["file"]).stat().st_size == network["bytes"]
    assert app.page_bytes(site) < 250_000
    assert not list(site.rglob("*.json.tmp"))


def test_what_is_kept_offline_is_there(site: Path) -> None:
    kept = json.loads((site / "files.js").read_text().removeprefix("self.SITE = ").rstrip().rstrip(";"))
    assert {"./", "index.html", "app.js", "engine/mnet.js", "app.json"} <= set(kept["files"])
    assert all((site / name).exists() for name in kept["files"])
    assert not any(name.endswith((".wasm", ".mnet")) for name in kept["files"])  # those that are used are kept


def test_another_network_is_another_version(site: Path, tmp_path: Path) -> None:
    versions = {app.site(names, tmp_path / "site").version for names in ([PACKAGED], ["cifar10-v2-0.25"], [PACKAGED])}
    assert len(versions) == 2
    assert json.loads((site / "app.json").read_text())["version"] not in versions


@pytest.mark.skipif(not native_library.built(), reason="no native engine")
@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_where_it_looks_is_what_the_logits_are_made_of(
    kind: str, make_bundle: Callable[..., Bundle], lite_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    source = lite_bundle("int8") if kind == "int8" else make_bundle("v1")
    source.save(tmp_path / "bundle")
    made = app.site([tmp_path / "bundle"], tmp_path / "site", kind)
    looks = made.networks[0].looks
    assert looks is not None
    assert looks["type"] == kind
    path = made.path / made.networks[0].file
    engine, pixels = engines.load(path), smooth_images(3)
    outputs = engine(pixels)
    depth, group = looks["depth"], looks["group"]
    classes, features = engine.card.arch.num_classes, outputs[app.MAP].shape[1]
    panels = np.frombuffer(path.read_bytes(), kind, -(-classes // 16) * depth * 16, looks["offset"])
    weights = (
        panels.reshape(-1, depth // group, 16, group).transpose(0, 2, 1, 3).reshape(-1, depth)[:classes, :features]
    )
    scale = source.tensors["classifier.weight_scale"][:, None] if kind == "int8" else 1
    maps = np.einsum("ck,nkhw->nchw", weights.astype(np.float64) * scale, outputs[app.MAP])
    logits, means = np.log(outputs["probabilities"]), maps.mean((2, 3))
    change = (logits - logits[0])[1:], (means - means[0])[1:]  # from image to image, but for the bias
    for said, made_of in zip(*(c - c.mean(1, keepdims=True) for c in change), strict=True):
        if kind == "int8":  # whose logits are rounded, and cut where they are over all that were seen
            assert np.corrcoef(said, made_of)[0, 1] > 0.95
        else:
            assert said == pytest.approx(made_of, abs=1e-4)


@pytest.fixture
def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called npm that packs what is asked for, once; it writes down each call."""
    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "package" / "dist").mkdir(parents=True)
    for name in app.ORT_FILES:
        (tmp_path / "package" / "dist" / name).write_text(name)
    program = tmp_path / "bin" / "npm"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ntar czf "$5/made.tgz" -C {tmp_path} package\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return program


def test_onnx_runtime_in_the_place_of_our_engine(
    fake_npm: Path, lite_bundle: Callable[..., Bundle], command: Callable[..., Ran], tmp_path: Path
) -> None:
    source = lite_bundle("int8").save(tmp_path / "bundle")
    line = ("app", tmp_path / "bundle", "--engine", "onnxruntime-web", "--out", tmp_path / "site")
    (network,) = command(*line, "--json").json["networks"]
    assert command(*line).code == 0
    assert (fake_npm.parents[1] / "calls").read_text().count("onnxruntime-web@") == 1  # kept for the next site
    site = tmp_path / "site"
    assert (site / "ort" / "ort.wasm.min.mjs").is_file()
    assert not list(site.rglob("mnet*"))
    assert json.loads((site / f"{network['file']}.card.json").read_text())["precision"] == "int8"
    looks, weights = network["looks"], source.tensors["classifier.weight"]
    here = (site / network["file"]).read_bytes()[looks["offset"] :][: weights.size]
    assert here == weights.tobytes()
    assert (looks["panel"], looks["group"], looks["depth"]) == (1, 1, weights.shape[1])
    mine = tmp_path / "mine.mnet"
    app.site([tmp_path / "bundle"], tmp_path / "other")
    mine.write_bytes((tmp_path / "other" / "models" / "bundle.mnet").read_bytes())
    refused = command("app", mine, "--engine", "onnxruntime-web", "--out", tmp_path / "site")
    assert "our own engine alone" in refused.line


def test_npm_that_fails_is_said(fake_npm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm.write_text("#!/bin/sh\necho no such host >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"can.t fetch onnxruntime-web 1\.0: no such host"):
        npm.fetched("onnxruntime-web", "1.0")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"install Node\.js"):
        npm.fetched("onnxruntime-web", "1.0")


def test_networks_that_read_no_mean_are_packed_without(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    make_bundle("v3-small").save(tmp_path / "bundle")
    (network,) = app.site([tmp_path / "bundle"], tmp_path / "site").networks
    assert network.looks is None
    assert app.MAP not in network.card.outputs


def test_a_file_is_packed_as_it_is(site: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.mnet"
    path.write_bytes((site / "models" / f"{PACKAGED}.mnet").read_bytes())
    (network,) = app.site([path], tmp_path / "site").networks
    assert network.name == "mine"
    assert (tmp_path / "site" / network.file).read_bytes() == path.read_bytes()


def test_the_command(command: Callable[..., Ran], tmp_path: Path) -> None:
    told = command("app", PACKAGED, "--out", tmp_path / "site", "--json").json
    assert told["networks"][0]["task"] == "classify"
    assert command("app", PACKAGED, "--out", tmp_path / "site").code == 0  # a site may be replaced


def test_mistakes(command: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("keep me")
    assert "isn't a site" in command("app", PACKAGED, "--out", tmp_path / "mine").line
    assert (tmp_path / "mine" / "diary.txt").read_text() == "keep me"
    assert "name a run" in command("app", "--out", tmp_path / "site").line
    assert "no bundle" in command("app", tmp_path / "mine", "--out", tmp_path / "site").line
    assert "quantize" in command("app", PACKAGED, "--precision", "int8", "--out", tmp_path / "site").line
    assert "onnxruntime-web" in command("app", PACKAGED, "--engine", "onnxruntime", "--out", tmp_path / "site").line
    assert "--serve" in command("app", PACKAGED).line
    assert "float32" in command("app", PACKAGED, "--precision", "float8", "--out", tmp_path / "site").line
    (tmp_path / "bad.mnet").write_bytes(b"MNET" + bytes(300))
    assert "damaged" in command("app", tmp_path / "bad.mnet", "--out", tmp_path / "site").line
    assert not (tmp_path / "site").exists()


def test_the_page_reads_every_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read = re.search(r"const TASKS = \{(.*)\};", (app.BROWSER / "app" / "answers.js").read_text())
    assert read is not None
    assert set(app.TASKS) == set(tasks.TASKS) == set(re.findall(r"(\w+):", read[1]))
    monkeypatch.setattr(app, "TASKS", ("detect",))
    with pytest.raises(UserError, match="no answers for the task classify"):
        app.site([PACKAGED], tmp_path / "site")


def test_a_damaged_file_is_no_network(site: Path, tmp_path: Path) -> None:
    data = bytearray((site / "models" / f"{PACKAGED}.mnet").read_bytes())
    data[-100] ^= 1
    (tmp_path / "one.mnet").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        app.site([tmp_path / "one.mnet"], tmp_path / "other")


def test_another_tools_app_json_is_no_site_of_ours(tmp_path: Path, command: Callable[..., Ran]) -> None:
    """As of Expo and Heroku: what lies beside it stays."""
    (tmp_path / "expo").mkdir()
    (tmp_path / "expo" / "app.json").write_text('{"expo": {"name": "mine"}}')
    (tmp_path / "expo" / "index.js").write_text("mine")
    assert "isn't a site" in command("app", "cifar10-v1-0.25", "--out", tmp_path / "expo").line
    assert (tmp_path / "expo" / "index.js").read_text() == "mine"


def test_what_the_page_calls_a_network(tmp_path: Path, command: Callable[..., Ran]) -> None:
    """Of runs' bundles, which are all called float."""
    said = command("app", f"small={PACKAGED}", PACKAGED, "--out", tmp_path / "site", "--json").json
    assert [network["name"] for network in said["networks"]] == ["small", PACKAGED]
