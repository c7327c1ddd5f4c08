"""`mobilenets measure` with Chromium as the phone: its table is one to choose by, and agrees with the app's times."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browsing
import pytest
from small import Ran

from mobilenets import console
from mobilenets.arch import zoo
from mobilenets.commands import measure as verb
from mobilenets.deploy import app, device
from mobilenets.deploy.latency import Setting, Table
from mobilenets.model.bundle import random_bundle

SMALL = [zoo.arch("v1", 0.25, side, 1000) for side in (128, 160)]
SETTING = Setting("native", "int8", 1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing.browser() as made:
        yield made


@pytest.fixture
def measured(
    browser: Any, command: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[Ran, Path]]:
    """`measured("--seconds", 1)`: the verb, and a visitor who opens its page and starts it."""

    def run(*arguments: object, accessible: bool = False) -> tuple[Ran, Path]:
        told: list[str] = []
        came = threading.Event()
        whole = console.note

        def note(what: Any) -> None:
            whole(what)
            told.append(str(what))
            if str(what).startswith("http"):
                came.set()

        monkeypatch.setattr(console, "note", note)
        found: list[Ran] = []
        path = tmp_path / "phone.json"
        line = ("measure", "--out", path, *arguments)
        waiting = threading.Thread(target=lambda: found.append(command(*line)), daemon=True)
        waiting.start()
        assert came.wait(20)
        (address,) = (line for line in told if line.startswith("http"))
        with browsing.visit(browser, browsing.PHONE, ignore_https_errors=True, bypass_csp=accessible) as visit:
            visit.page.goto(address)
            visit.page.wait_for_selector("#start:enabled")
            if accessible:
                visit.page.evaluate(browsing.node_module("axe-core/axe.min.js").read_text())
            visit.page.click("#start")
            visit.page.wait_for_function("() => document.querySelector('#headline').innerText.startsWith('Done')")
            waiting.join(20)
            if accessible:
                assert visit.page.evaluate("async () => (await axe.run()).violations.map((v) => v.id)") == []
            assert visit.page.inner_text("#problem") == ""
            entries = Table.read(path).entries.values()
            assert len(visit.page.query_selector_all("#rows li")) == sum(map(len, entries))
            assert (visit.wrong, visit.elsewhere(address)) == ([], [])
        return found[0], path

    return run


def test_a_phone_is_measured_and_chosen_for(
    measured: Callable[..., tuple[Ran, Path]], command: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "grid", lambda *_: SMALL)
    ran, path = measured("--seconds", 1)
    assert ran.code == 0, ran.err
    assert "Chrom" in ran.out
    table = Table.read(path)
    assert re.search(r"WebAssembly \((simd|relaxed)\)$", table.machine)
    found = table.entries[SETTING]
    assert set(found) == {a.digest for a in SMALL}
    assert all(0.01 < m.latency_ms < 1000 and m.reference >= 1 for m in found.values())
    chosen = command("choose", "--table", path, "--engine", "native", "--max-macs-m", 14, "--json").json
    assert (chosen["pick"]["arch"], chosen["pick"]["resolution"]) == ("v1", 128)


@pytest.mark.slow
def test_https_and_floats(measured: Callable[..., tuple[Ran, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "grid", lambda *_: SMALL[:1])
    ran, path = measured("--seconds", 1, "--https", "--precision", "int8,float16,float32", accessible=True)
    assert ran.code == 0, ran.err
    assert {s.precision for s in Table.read(path).entries} == {"int8", "float16", "float32"}


@pytest.mark.slow
def test_what_is_measured_is_what_the_app_takes(browser: Any, tmp_path: Path) -> None:
    """A network's time in the table, and in the app's page on the same machine, in turn: they agree within a tenth.

    Of both the quietest round's median: a core that is shared runs at one speed or at two thirds of it, by turns.
    """
    arch = zoo.arch("v1", 0.25, 224, 1000)
    random_bundle(arch, "int8").save(tmp_path / "bundle")
    site = app.site([tmp_path / "bundle"], tmp_path / "site").path
    measurement = device.Measurement([arch], ["int8"], 1.0)
    (planned,) = json.loads(measurement.answer("plan.json", None) or b"")["networks"]
    (site / "packed").write_bytes(measurement.answer(planned["file"], None) or b"")
    for name in device.PAGE:
        (site / name.replace("index", "measure")).write_bytes(measurement.pages[name].read_bytes())
    measurement.close()
    both = """async () => {
      const packed = await (await fetch("packed")).arrayBuffer();
      const worker = new Worker("measuring.js", { type: "module" });
      const found = new Promise((resolve) => (worker.onmessage = ({ data }) => data && resolve(data.latency_ms)));
      worker.postMessage({ networks: [{ packed, digest: "", precision: "int8", title: "" }], seconds: 1 });
      const predicted = await found;
      worker.terminate();
      const { Network } = await import("./network.js");
      const [listed] = (await (await fetch("app.json")).json()).networks;
      const network = await Network.open(listed);
      const rounds = [];
      for (let round = 0; round < 40; round++) {
        const times = [];
        for (let i = 0; i < 9; i++) {
          const data = new Uint8ClampedArray(224 * 224 * 4).fill(i);
          times.push((await network.frame({ width: 224, height: 224, data }, 224, 224, false)).ms);
        }
        rounds.push(times.sort((a, b) => a - b)[4]);
      }
      network.close();
      return [predicted, Math.min(...rounds)];
    }"""
    with browsing.served(site) as address, browsing.visit(browser) as visit:
        visit.page.goto(address)
        pairs = [visit.page.evaluate(both) for _ in range(6)]
    predicted, taken = (min(times) for times in zip(*pairs, strict=True))  # at its quietest, as tables have it
    assert predicted == pytest.approx(taken, rel=0.1), pairs
