"""The engine in WebAssembly, in Node and in Chromium: the same bytes as the native engine's plain C."""

from __future__ import annotations

import dataclasses
import filecmp
import functools
import http.server
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small import changed, mostly_zeros

from mobilenets.arch import zoo
from mobilenets.arch.graph import Output
from mobilenets.arch.heads import LOGITS
from mobilenets.arch.spec import scale
from mobilenets.deploy.engines import native
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, random_bundle, with_random_weights
from mobilenets.model.card import Precision
from mobilenets.model.images import Preprocess

ROOT = Path(__file__).parents[1]
HERE = ROOT / "tests" / "web"
BUILDS = ("scalar", "simd", "relaxed")
NETWORKS = ("v1", "v2", "v3-small", "v4-conv-s")
SIDE = 48
TIMEOUT_S = 240

Run = Callable[[Path], dict[str, Any]]


def node(folder: Path) -> dict[str, Any]:
    """What the driver says of a folder's cases, in Node."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("no node")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version[1:].split(".")[0]) < 20:
        pytest.skip(f"node {version} is too old")
    command = [program, "--experimental-wasm-relaxed-simd", str(folder / "driver.mjs"), str(folder)]
    if b"relaxed-simd" not in subprocess.run([program, "--v8-options"], capture_output=True, check=True).stdout:
        del command[1]  # newer ones have it for good
    ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads((folder / "answers.json").read_text()))


def chromium(folder: Path, isolated: bool = True) -> dict[str, Any]:
    """The same in a page, by default one whose memory workers may share."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium")
    said: list[bytes] = []
    done = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = {  # noqa: RUF012  (as its base has it)
            **http.server.SimpleHTTPRequestHandler.extensions_map,
            ".mjs": "text/javascript",
            ".wasm": "application/wasm",
        }

        def do_POST(self) -> None:
            said.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()
            done.set()

        def end_headers(self) -> None:
            if isolated:
                self.send_header("Cross-Origin-Opener-Policy", "same-origin")
                self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        profile = folder / "profile"
        browser = subprocess.Popen(
            [
                program, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
                f"http://127.0.0.1:{server.server_port}/page.html",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            arrived = done.wait(TIMEOUT_S)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
            server.shutdown()
    if not arrived:
        pytest.skip("chromium shows no page here")
    answer = dict(json.loads(said[0]))
    assert "error" not in answer, answer["error"]
    return answer


def prepare(folder: Path, cases: list[dict[str, Any]]) -> Path:
    (folder / "cases.json").write_text(json.dumps(cases))
    shutil.copytree(ROOT / "mobilenets" / "browser", folder / "browser")
    for name in ("driver.mjs", "page.html"):
        shutil.copyfile(HERE / name, folder / name)
    return folder


def network(name: str, precision: Precision) -> Bundle:
    """One with two outputs: exponentials may differ in their last bit from one C library to another, logits may not."""
    card = random_bundle(scale(zoo.network(name), 0.35, SIDE, 10)).card
    outputs = (*card.head.outputs, Output(LOGITS, LOGITS, "before the softmax"))
    return with_random_weights(card.replace(head=dataclasses.replace(card.head, outputs=outputs)), precision)


def plain_c(path: Path) -> native.Session:
    try:
        return native.Session(native.Model(path), 1, "scalar")
    except UserError as e:
        pytest.skip(str(e))


@pytest.mark.parametrize("run", [node, chromium])
def test_same_bytes_as_plain_c(run: Run, tmp_path: Path) -> None:
    cases, wanted = [], []
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    (tmp_path / "images.rgb").write_bytes(images.tobytes())
    precisions: tuple[Precision, ...] = ("int8", "float32")
    for precision in precisions:
        networks = {name: network(name, precision) for name in NETWORKS}
        networks["zeros"] = changed(networks[NETWORKS[0]], mostly_zeros)  # coded, and unpacked there
        for name, bundle in networks.items():
            path = tmp_path / f"{name}-{precision}.mnet"
            native.write(bundle, path, None)
            outputs = plain_c(path).run(images)
            for build, threads in (*((b, 1) for b in BUILDS), ("simd", 2), ("relaxed", 3)):
                cases.append({"model": path.name, "images": "images.rgb", "build": build, "threads": threads})
                wanted.append((precision, outputs))
    said = run(prepare(tmp_path, cases))
    assert said["best"] in BUILDS[1:]
    tried = set()
    for case, (precision, outputs), got in zip(cases, wanted, said["made"], strict=True):
        if case["build"] == "relaxed" and said["best"] != "relaxed":
            continue
        assert "error" not in got, (case, got)
        tried.add(got["isa"])
        assert got["threads"] == case["threads"]
        assert len(got["labels"]) == 10
        for output, want in outputs.items():
            value = np.array(got["outputs"][output], np.float32).reshape(want.shape)
            if precision == "int8" and output == LOGITS:
                assert value.tobytes() == want.tobytes(), case
            else:
                assert np.abs(value - want).max() <= 1e-5 * max(1.0, float(np.abs(want).max())), case
    assert {"scalar", "wasm"} <= tried


def test_a_picture_is_resized_as_pillow_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    hows = [
        Preprocess(32),
        Preprocess(32, 1.0, interpolation="bicubic"),
        Preprocess(32, framing="letterbox"),
        Preprocess(64, framing="stretch", interpolation="bicubic"),
        Preprocess(32, 0.8, size=(32, 64)),
    ]
    cases, wanted = [], []
    for width, height in ((32, 32), (97, 61), (20, 45), (300, 200)):
        rgb = rng.integers(0, 256, (height, width, 3), np.uint8)
        name = f"{width}x{height}.rgba"
        (tmp_path / name).write_bytes(np.dstack([rgb, np.full((height, width), 255, np.uint8)]).tobytes())
        for how in hows:
            if width < 32 and how.interpolation == "bicubic":
                continue  # what is rounded between is clipped too: the order changes it by more than one
            cases.append({"fit": how.to_json(), "rgba": name, "width": width, "height": height})
            wanted.append(how.fit(Image.fromarray(rgb)))
    said = node(prepare(tmp_path, cases))
    for case, want, got in zip(cases, wanted, said["made"], strict=True):
        assert isinstance(got, list), got
        off = np.abs(np.array(got).reshape(want.shape) - want.astype(int)).max()
        along_columns_first = case["width"] < 32 < case["height"]  # Pillow's order then; what lies between is rounded
        assert off <= along_columns_first, case


def test_a_page_predicts_what_it_shows(tmp_path: Path) -> None:
    native.write(network("v1", "int8"), tmp_path / "v1.mnet", None)
    (tmp_path / "images.rgb").write_bytes(bytes(SIDE * SIDE * 3))
    said = chromium(prepare(tmp_path, [{"model": "v1.mnet", "images": "images.rgb"}]))
    image, bitmap = said["pictures"]
    assert len(image) == 10
    assert image == bitmap
    assert sum(image) == pytest.approx(1, abs=1e-3)


def test_threads_are_for_pages_that_are_isolated(tmp_path: Path) -> None:
    native.write(network("v1", "int8"), tmp_path / "v1.mnet", None)
    (tmp_path / "images.rgb").write_bytes(bytes(SIDE * SIDE * 3))
    case = {"model": "v1.mnet", "images": "images.rgb", "build": "simd"}
    said = chromium(prepare(tmp_path, [case, case | {"threads": 2}]), isolated=False)
    assert said["threads"] == said["made"][0]["threads"] == 1
    assert said["made"][1]["error"] == "Error: threads need a page that is cross-origin isolated"


def test_a_mistake_is_one_clear_error(tmp_path: Path) -> None:
    native.write(network("v1", "int8"), tmp_path / "v1.mnet", None)
    whole = (tmp_path / "v1.mnet").read_bytes()
    (tmp_path / "short.mnet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mnet").write_bytes(b"")
    (tmp_path / "changed.mnet").write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    (tmp_path / "images.rgb").write_bytes(bytes(SIDE * SIDE * 3))
    (tmp_path / "few.rgb").write_bytes(bytes(100))
    damaged = [{"model": f"{n}.mnet", "images": "images.rgb", "build": "simd"} for n in ("short", "empty", "changed")]
    few = {"model": "v1.mnet", "images": "few.rgb", "build": "simd"}
    for got in node(prepare(tmp_path, [*damaged, few]))["made"]:
        assert got["error"].startswith("Error: "), got
        assert "\n" not in got["error"]


def test_types() -> None:
    program = shutil.which("tsc")
    if program is None:
        pytest.skip("no tsc")
    options = ["--allowJs", "--checkJs", "--strict", "--noEmit", "--target", "es2022", "--module", "es2022"]
    command = [program, *options, "--lib", "es2022,dom", *map(str, (ROOT / "web").glob("*.js"))]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


def test_what_ships_is_small_and_whole() -> None:
    shipped = ROOT / "mobilenets" / "browser"
    for module in (ROOT / "web").glob("*.js"):
        assert filecmp.cmp(module, shipped / module.name, shallow=False), "run `make wasm`"
    for engine in shipped.glob("*.wasm"):
        assert engine.stat().st_size < 150_000


@pytest.mark.slow
def test_what_ships_is_what_the_sources_give(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("build_web", ROOT / "web" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    web = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(web)
    if why := web.missing():
        pytest.skip(why)
    web.build(tmp_path)
    for name in (f"mnet-{build}.wasm" for build in web.BUILDS):
        assert filecmp.cmp(tmp_path / name, web.PACKAGED / name, shallow=False), f"{name}: run `make wasm`"
