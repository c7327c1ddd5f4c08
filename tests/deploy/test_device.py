"""Networks for a page that measures: small to send, right when filled; tables that a page sends, and what isn't one."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenets.arch import zoo
from mobilenets.arch.spec import scale
from mobilenets.deploy import choose, device, engines
from mobilenets.deploy.engines import native_library
from mobilenets.deploy.latency import Setting, Table
from mobilenets.deploy.writers.native import native_model
from mobilenets.deploy.writers.native_file import hollow
from mobilenets.errors import UserError
from mobilenets.model.bundle import random_bundle

ARCHS = [scale(zoo.network("v1"), 0.25, side, 1000) for side in (128, 160)]
SETTING = Setting("native", "int8", 1)


@pytest.fixture(scope="module")
def measurement() -> Iterator[device.Measurement]:
    made = device.Measurement(ARCHS, ["int8"], 1.0)
    yield made
    made.close()


def sent(**changes: Any) -> dict[str, Any]:
    networks = [
        {"digest": a.digest, "precision": "int8", "latency_ms": 2.0 + i, "reference": 1.3} for i, a in enumerate(ARCHS)
    ]
    return {"machine": "a phone", "networks": networks, **changes}


def test_a_file_without_weights_is_small_and_the_same_with_them(tmp_path: Path) -> None:
    whole = native_model(random_bundle(ARCHS[0], "int8"))
    empty, places = hollow(whole)
    assert len(empty) == len(whole)
    assert len(gzip.compress(empty)) < len(whole) / 20
    filled = bytearray(empty)
    for at, size in places:
        filled[at : at + size] = whole[at : at + size]
    assert filled[64:] == whole[64:]  # all but the digest
    layers = ARCHS[0].graph.layers
    assert len(places) == len(layers)
    if native_library.built():
        (tmp_path / "one.mnet").write_bytes(empty)
        outputs = engines.load(tmp_path / "one.mnet")(np.zeros((1, 128, 128, 3), np.uint8))
        assert outputs["probabilities"].sum() == pytest.approx(1, abs=1e-3)


def test_the_page_gets_a_plan_and_networks(measurement: device.Measurement) -> None:
    plan = json.loads(measurement.answer("plan.json", None) or b"")
    assert [n["digest"] for n in plan["networks"]] == [a.digest for a in ARCHS]
    packed = measurement.answer(plan["networks"][0]["file"], None)
    assert packed is not None
    assert len(packed) < 50_000
    line, _, file = gzip.decompress(packed).partition(b"\n")
    assert json.loads(line)["type"] == "int8"
    assert file.startswith(b"MNET")
    for name in ("index.html", "measure.js", "app.css", "engine/mnet.js", "engine/mnet-simd.wasm"):
        assert measurement.answer(name, None)
    for name in ("", "networks/none", "../device.py", "table"):
        assert measurement.answer(name, None) is None


def test_a_network_that_cannot_run_is_left_out() -> None:
    assert device.packed(zoo.arch("v4-hybrid-m", 1.0, 256, 10), "int8") is None


def test_the_table_is_one_to_choose_by(measurement: device.Measurement, tmp_path: Path) -> None:
    assert measurement.answer("table", json.dumps(sent()).encode()) == b"{}"
    table = measurement.done.get(timeout=5)
    path = tmp_path / "phone.json"
    path.write_text(json.dumps(table.to_json()))
    assert Table.read(path).entries[SETTING][ARCHS[1].digest].latency_ms == 3.0
    assert device.slowed(table)[1] == 1.3
    choice = choose.pick(ARCHS, choose.Budget(max_latency_ms=2.5), "native", table=path)
    assert choice.pick.arch == ARCHS[0]
    assert choice.machine == "a phone"


@pytest.mark.parametrize(
    "wrong",
    [
        b"", b"[]", b"{}", b"nonsense", json.dumps(sent(networks=[])).encode(), json.dumps(sent(machine=" ")).encode(),
        *(
            json.dumps(sent(networks=[sent()["networks"][0] | change])).encode()
            for change in (
                {"latency_ms": 0}, {"latency_ms": "NaN"}, {"latency_ms": 1e999}, {"reference": -1}, {"digest": "none"},
                {"precision": "float32"}, {"latency_ms": None}, {"latency_ms": []},
            )
        ),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused(measurement: device.Measurement, wrong: bytes) -> None:
    assert "not a measurement" in json.loads(measurement.answer("table", wrong) or b"")["wrong"]
    assert measurement.done.empty()


def test_a_device_cannot_write_to_the_terminal(measurement: device.Measurement) -> None:
    table = measurement.table(sent(machine="\x1b[31m a\nphone " + "x" * 1000))
    assert table.machine.startswith("\\x1b[31m a phone")
    assert len(table.machine) <= device.LONGEST


def test_mistakes() -> None:
    with pytest.raises(UserError, match="precision"):
        device.Measurement(ARCHS, ["int4"], 1.0)
    with pytest.raises(UserError, match="seconds"):
        device.check_seconds(0)
