"""Our engine in WebAssembly beside onnxruntime-web's, one thread each, in Chromium and in Node.

    npm install onnxruntime-web
    python benchmarks/native_web.py node_modules/onnxruntime-web/dist [--rounds 7] [--repeats 5]

V1 1.0-224, V2 1.0-224 and V1 .25-224 with 1000 classes and random weights (no time depends on them), float32 and int8,
each as an .onnx and a .mnet. All are run in turn in one page. Milliseconds are the median over the rounds of a round's
median; at a line's end is the median over the rounds of onnxruntime-web's best (of its float32 and its int8) divided by
it. Also prints what a page downloads: the engine and V1 .25 int8.
"""

from __future__ import annotations

import argparse
import csv
import functools
import http.server
import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from mobilenets import console, files
from mobilenets.arch import zoo
from mobilenets.arch.spec import scale
from mobilenets.deploy import engines, latency
from mobilenets.model.bundle import random_bundle

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {"v1": ("v1", 1.0), "v2": ("v2", 1.0), "v1_25": ("v1", 0.25)}
OTHER = "onnxruntime-web"
COLUMNS = ["where", "network", "precision", "engine", "ms", "times as fast as the best other", "hardware"]
PAGE = """<!doctype html><title>native_web.py</title><script type="module">
let said;
try {
  const ort = await import("./ort/ort.wasm.min.mjs");
  const { load } = await import("./browser/mnet.js");
  const { timed } = await import("./native_web.mjs");
  const bytes = async (name) => new Uint8Array(await (await fetch(name)).arrayBuffer());
  said = await timed(ort, load, bytes, await (await fetch("plan.json")).json());
} catch (e) {
  said = { error: String(e.stack ?? e) };
}
await fetch("done", { method: "POST", body: JSON.stringify(said) });
</script>"""

Times = dict[str, list[float]]


def prepare(folder: Path, ort: Path, rounds: int, repeats: int) -> None:
    for file, (name, alpha) in NETWORKS.items():
        for precision in ("float32", "int8"):
            bundle = random_bundle(scale(zoo.network(name), alpha, 224, 1000), precision)
            engines.module("onnxruntime").write(bundle, folder / f"{file}_{precision}.onnx", None)
            engines.module("native").write(bundle, folder / f"{file}_{precision}.mnet", None)
    shutil.copytree(ROOT / "mobilenets" / "browser", folder / "browser")
    shutil.copyfile(ROOT / "benchmarks" / "native_web.mjs", folder / "native_web.mjs")
    (folder / "ort").symlink_to(ort.resolve())
    (folder / "page.html").write_text(PAGE)
    plan = {"networks": list(NETWORKS), "builds": ["simd", "relaxed"], "rounds": rounds, "repeats": repeats}
    (folder / "plan.json").write_text(json.dumps(plan))


def in_node(folder: Path, program: str) -> Times:
    command = [program, str(folder / "native_web.mjs"), str(folder)]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def in_chromium(folder: Path, program: str) -> Times:
    said: list[bytes] = []
    done = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_POST(self) -> None:
            said.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()
            done.set()

        def log_message(self, *_: object) -> None:
            pass

    Handler.extensions_map = {**Handler.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm"}
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server,
        tempfile.TemporaryDirectory() as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = f"http://127.0.0.1:{server.server_port}/page.html"
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", page]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        browser = subprocess.Popen(command, start_new_session=True, **quiet)
        done.wait(600)
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()
        server.shutdown()
    answer: Times = json.loads(said[0]) if said else {"error": []}
    if "error" in answer:
        raise SystemExit(f"chromium: {answer['error'] or 'no answer'}")
    return answer


def rows(where: str, times: Times, machine: str) -> list[list[str]]:
    """A line for each network, precision and engine, the best other's ratio to it at its end."""
    made = []
    for name, rounds in times.items():
        network, precision, engine = name.split(" ", 2)
        others = [times[f"{network} {p} {OTHER}"] for p in ("float32", "int8")]
        ratio = statistics.median(min(o) / t for *o, t in zip(*others, rounds, strict=True))
        made.append([where, network, precision, engine, f"{statistics.median(rounds):.2f}", f"{ratio:.2f}", machine])
        console.note(f"{where:9} {network:6} {precision:8} {engine:16} {made[-1][4]:>8} ms  {ratio:.2f}")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ort", type=Path, help="the folder dist of npm's onnxruntime-web")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--node", default=shutil.which("node"))
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--out", type=Path, help="a .csv to write")
    a = parser.parse_args()
    machine, table = latency.machine(), []
    console.note(machine)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, a.ort, a.rounds, a.repeats)
        model = (folder / "v1_25_int8.mnet").stat().st_size
        for build in ("simd", "relaxed"):
            engine = sum(
                (folder / "browser" / n).stat().st_size for n in ("mnet.js", "pictures.js", f"mnet-{build}.wasm")
            )
            console.note(f"download: {engine / 1e3:.0f} kB ({build}) + V1 .25 int8 {model / 1e3:.0f} kB")
        if a.chromium:
            table += rows("Chromium", in_chromium(folder, a.chromium), machine)
        if a.node:
            table += rows("Node", in_node(folder, a.node), machine)
    if a.out:
        with files.atomic_file(a.out) as path, path.open("w", newline="", encoding="utf-8") as f:
            csv.writer(f, lineterminator="\n").writerows([COLUMNS, *table])


if __name__ == "__main__":
    main()
