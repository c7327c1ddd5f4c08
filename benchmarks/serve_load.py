"""How much of an engine's own throughput is left behind HTTP, and what a server as tutorials write it leaves of it.

    python benchmarks/serve_load.py --photos flowers.zip --out results/serve_load.json

The same int8 network, as our engine's file and as ONNX Runtime's, in turn, `--rounds` times: decoded and run in a loop
by two threads (what there is to be had); behind `mobilenets serve`; the second also behind a FastAPI application as
tutorials show it. Bodies are JPEGs; `--clients` connections ask without pause, from this same machine, by wrk where it
is found (`apt install wrk`), whose time the servers don't have; else by a client in Python, which takes far more.
`--minutes` more of load on the first server say whether its memory grows.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import io
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobilenets import files, processor
from mobilenets.arch import zoo
from mobilenets.deploy import engines
from mobilenets.deploy.predict import load
from mobilenets.model.bundle import random_bundle

PHOTOS = 64
TUTORIAL = """
import io, sys
import numpy as np, onnxruntime as ort, uvicorn
from fastapi import FastAPI, Request
from PIL import Image

app = FastAPI()
session = ort.InferenceSession(sys.argv[1])
name = session.get_inputs()[0].name

@app.post("/predict")
async def predict(request: Request):
    image = Image.open(io.BytesIO(await request.body())).convert("RGB").resize((256, 256)).crop((16, 16, 240, 240))
    scores = session.run(None, {name: np.asarray(image)[None]})[0][0]
    top = scores.argsort()[::-1][:5]
    return {"predictions": [{"class": int(i), "score": float(scores[i])} for i in top]}

uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""
LUA = """
local bodies = {{}}
for i = 0, {count} - 1 do
  local f = io.open("{folder}/" .. i .. ".jpg", "rb"); bodies[i] = f:read("*all"); f:close()
end
local n = 0
request = function()
  n = (n + 1) % {count}
  return wrk.format("POST", "{path}", {{["Content-Type"] = "image/jpeg"}}, bodies[n])
end
done = function(summary, latency, requests)
  local bad = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write
  io.write(string.format("JSON %d %d %.3f %.3f %d\\n", summary.requests, summary.duration,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, bad + summary.errors.timeout))
end
"""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--photos", type=Path, help="a zip of JPEGs; else made-up ones of 500x375")
    p.add_argument("--arch", default="v2")
    p.add_argument("--alpha", type=float, default=1.0)
    p.add_argument("--clients", type=int, default=32)
    p.add_argument("--seconds", type=float, default=10.0)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--minutes", type=float, default=0.0)
    p.add_argument("--out", type=Path)
    a = p.parse_args()
    photos = _photos(a.photos)
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        for n, photo in enumerate(photos):
            (where / f"{n}.jpg").write_bytes(photo)
        bundle = random_bundle(zoo.arch(a.arch, a.alpha, 224, 1000), "int8")
        paths = {e: where / f"model{engines.runtime(e).suffix}" for e in ("native", "onnxruntime")}
        for e, path in paths.items():
            engines.module(e).write(bundle, path, None)
        (where / "tutorial.py").write_text(TUTORIAL)
        rows: dict[str, list[dict[str, float]]] = {}
        for _ in range(a.rounds):
            for e, path in paths.items():
                rows.setdefault(f"{e} itself", []).append({"per_second": own(path, photos, a.seconds)})
                with ours(path) as (port, _pid):
                    row = loaded(port, "/v1/models/model:predict", where, photos, a.clients, a.seconds)
                rows.setdefault(f"mobilenets serve, {e}", []).append(row)
            with ours(paths["native"], "--workers", "1") as (port, _pid):
                row = loaded(port, "/v1/models/model:predict", where, photos, a.clients, a.seconds)
            rows.setdefault("mobilenets serve, native, one process", []).append(row)
            with tutorial(where, paths["onnxruntime"]) as port:
                row = loaded(port, "/predict", where, photos, a.clients, a.seconds)
            rows.setdefault("FastAPI and onnxruntime, as in tutorials", []).append(row)
            print(json.dumps({k: v[-1] for k, v in rows.items()}, indent=2), file=sys.stderr)
        found: dict[str, Any] = {
            "command": " ".join(sys.argv),
            "hardware": f"{_processor()}, {processor.cores()} cores, Python {platform.python_version()}",
            "client": "wrk" if wrk() else "asyncio",
            "network": bundle.card.arch.title + " int8",
            "photos": {"count": len(photos), "mean_kb": round(statistics.mean(map(len, photos)) / 1000, 1)},
            "median": {
                name: {k: statistics.median(r[k] for r in each) for k in each[0]} for name, each in rows.items()
            },
            "rounds": rows,
        }
        found["ratios"] = ratios(found["median"])
        if a.minutes:
            with ours(paths["native"]) as (port, pid):
                found["memory_mb"] = memory(port, pid, where, photos, a.clients, a.minutes)
    print(json.dumps(found, indent=2))
    if a.out:
        files.write_json(a.out, found)


def ratios(median: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of throughputs, and of 99th percentiles to medians."""
    speed = {name: row["per_second"] for name, row in median.items()}
    plain = speed["FastAPI and onnxruntime, as in tutorials"]
    found = {}
    for e in ("native", "onnxruntime"):
        served = median[f"mobilenets serve, {e}"]
        found[f"served to {e} itself"] = round(served["per_second"] / speed[f"{e} itself"], 3)
        found[f"served by {e} to the tutorial's"] = round(served["per_second"] / plain, 3)
        found[f"p99 to median, {e}"] = round(served["p99_ms"] / served["median_ms"], 2)
    return found


def _photos(source: Path | None) -> list[bytes]:
    if source:
        with zipfile.ZipFile(source) as z:
            names = [n for n in z.namelist() if n.lower().endswith((".jpg", ".jpeg"))]
            return [z.read(n) for n in names[:: max(1, len(names) // PHOTOS)][:PHOTOS]]
    made = []
    for seed in range(PHOTOS):
        coarse = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        made.append(out.getvalue())
    return made


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


# ---- what is asked


def own(path: Path, photos: list[bytes], seconds: float) -> float:
    """Images a second, decoded and run one at a time by as many threads as there are cores."""
    model = load(path)
    until = time.perf_counter() + seconds
    counts = [0] * processor.cores()

    def work(n: int) -> None:
        while time.perf_counter() < until:
            pixels, _ = model.prepare(photos[counts[n] % len(photos)])
            model.engine(pixels[None])
            counts[n] += 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(counts))]
    begun = time.perf_counter()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return round(sum(counts) / (time.perf_counter() - begun), 1)


@contextlib.contextmanager
def ours(path: Path, *options: str) -> Iterator[tuple[int, int]]:
    """`mobilenets serve`: its port and process."""
    port = _free()
    line = [sys.executable, "-m", "mobilenets", "serve", f"model={path}", "--port", str(port)]
    with _running([*line, *options], port) as process:
        yield port, process.pid


@contextlib.contextmanager
def tutorial(folder: Path, path: Path) -> Iterator[int]:
    port = _free()
    with _running([sys.executable, str(folder / "tutorial.py"), str(path), str(port)], port):
        yield port


@contextlib.contextmanager
def _running(line: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server, until the block ends; its log goes to a file, as in production."""
    with tempfile.TemporaryFile() as log, subprocess.Popen(line, stdout=log, stderr=log) as process:
        try:
            while not _answers(port):
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(log.read().decode())
                time.sleep(0.1)
            yield process
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    """Whether anybody does: a socket that nobody reads yet takes connections too."""
    try:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", "/")
            return connection.getresponse().status > 0
    except (OSError, http.client.HTTPException):
        return False


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


# ---- who asks


def wrk() -> str | None:
    return shutil.which("wrk")


def loaded(port: int, path: str, folder: Path, photos: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    """Answers a second, latencies in ms, and answers that were none; after a second to warm up."""
    ask = _by_wrk if wrk() else _by_python
    ask(port, path, folder, photos, clients, 1.0)
    return ask(port, path, folder, photos, clients, seconds)


def _by_wrk(port: int, path: str, folder: Path, photos: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    script = folder / "ask.lua"
    script.write_text(LUA.format(count=len(photos), folder=folder, path=path))
    line = [str(wrk()), "-t", "1", "-c", str(clients), "-d", f"{max(1, round(seconds))}s", "--timeout", "30s"]
    done = subprocess.run([*line, "-s", script, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True)
    (said,) = [one for one in done.stdout.splitlines() if one.startswith("JSON ")]
    count, micros, median, p99, bad = map(float, said.split()[1:])
    return {"per_second": round(count / micros * 1e6, 1), "median_ms": median, "p99_ms": p99, "failed": bad}


def _by_python(
    port: int, path: str, folder: Path, photos: list[bytes], clients: int, seconds: float  # noqa: ARG001
) -> dict[str, float]:  # fmt: skip
    times: list[float] = []
    failed = 0

    async def client(number: int, until: float) -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < until:
            body = photos[(number + len(times)) % len(photos)]
            begun = time.perf_counter()
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            await reader.readexactly(int(answer.partition("content-length:")[2].split()[0]))
            times.append(time.perf_counter() - begun)
            failed += " 200 " not in answer.partition("\r\n")[0]
        writer.close()

    async def everybody() -> None:
        until = time.perf_counter() + seconds
        await asyncio.gather(*(client(n, until) for n in range(clients)))

    begun = time.perf_counter()
    asyncio.run(everybody())
    took = time.perf_counter() - begun
    median, p99 = np.percentile(times, [50, 99]) * 1000
    return {
        "per_second": round(len(times) / took, 1),
        "median_ms": round(float(median), 3),
        "p99_ms": round(float(p99), 3),
        "failed": failed,
    }


def memory(
    port: int, pid: int, folder: Path, photos: list[bytes], clients: int, minutes: float
) -> dict[str, Any]:  # fmt: skip
    """All the server's processes' memory in MB while they are asked for so long: each minute or tenth of it."""
    seen = []
    step = min(60.0, minutes * 6)
    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until:
        loaded(port, "/v1/models/model:predict", folder, photos, clients, step)
        pages = sum(int(Path(f"/proc/{p}/statm").read_text(encoding="ascii").split()[1]) for p in family(pid))
        seen.append(round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1))
    return {"minutes": minutes, "each": seen, "growth_percent": round(100 * (seen[-1] / seen[0] - 1), 2)}


def family(pid: int) -> list[int]:
    """A process and those that it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [pid, *(p for child in children for p in family(int(child)))]


if __name__ == "__main__":
    main()
