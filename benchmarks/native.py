"""Our own engine beside the others, network by network: how many times as fast as the best of them.

    python benchmarks/native.py OUT.csv [--networks v1,v2] [--every 1] [--precision int8] [--threads 1] [--batch 1]
        [--processor-time [--isa avx512]] [--minutes 9]

The networks are the grid of `choose` with 1000 classes, random weights (no time depends on them), each as every
engine's file of one precision. The files of a network are measured in turn in one run, each in a process of its own
(see `mobilenets bench`). Milliseconds are the median of the quietest round; `ratio` is the median over the rounds of
the best other engine's median divided by ours. With `--processor-time`, for a machine that others use, all engines run
in this process, one thread each, and what is told is the time its processor worked for them: waiting isn't in it, what
others do to the caches is. `--isa avx512` holds ours to that instruction set, as a processor without AMX would;
OpenVINO is held to it by `ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI` in the environment, ONNX Runtime by nothing. Rows that
are in OUT.csv are skipped; after `--minutes` no more are begun. Prints the geometric mean of the ratios.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mobilenets import console, files
from mobilenets.arch import cost
from mobilenets.arch.spec import Arch
from mobilenets.deploy import bench, choose, engines, latency
from mobilenets.deploy.engines.native import NativeEngine
from mobilenets.errors import UserError
from mobilenets.model.bundle import random_bundle

OWN = "native"
OTHERS = ("onnxruntime", "openvino", "litert", "ncnn", "executorch")
KEY = ("network", "precision", "threads", "batch")
TURN_SECONDS, LEAST_CALLS = 0.05, 3  # of an engine, before the next one's turn
COLUMNS = (*KEY, "macs_m", OWN, *OTHERS, "best_other", "ratio")


def worked(
    names: Sequence[str], paths: Sequence[Path], batch: int, rounds: int, isa: str | None = None
) -> list[list[float]]:
    """Milliseconds of processor time a call of each file's engine, the median of each round."""
    loaded = [
        NativeEngine(p, 1, isa) if n == OWN else engines.module(n).load(p, 1) for n, p in zip(names, paths, strict=True)
    ]
    side = loaded[0].card.preprocess.resolution
    images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    found: list[list[float]] = [[] for _ in paths]
    for n in range(rounds + 1):
        for engine, medians in zip(loaded, found, strict=True):
            times: list[float] = []
            engine(images)  # its weights come back to the caches
            end = time.process_time() + TURN_SECONDS
            while len(times) < LEAST_CALLS or time.process_time() < end:
                start = time.process_time_ns()
                engine(images)
                times.append((time.process_time_ns() - start) / 1e6)
            if n:  # the first round warms up
                medians.append(statistics.median(times))
    return found


def measured(arch: Arch, names: list[str], a: argparse.Namespace) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(arch, a.precision)
        paths, used = [], []
        for name in names:
            path = Path(folder) / engines.file_name(name, a.precision)
            try:
                engines.module(name).write(bundle, path, None)
            except UserError as e:
                console.note(str(e))
                continue
            paths.append(path)
            used.append(name)
        if a.processor_time:
            found = worked(used, paths, a.batch, a.rounds, a.isa)
        else:
            timings = bench.time_files([bench.Subject(p, a.threads) for p in paths], (a.batch,), a.rounds)
            found = [list(t.rounds_ms) for t in timings]
    rounds = dict(zip(used, found, strict=True))
    ms = {n: min(r) for n, r in rounds.items()}
    best = min((n for n in used if n != OWN), key=lambda n: ms[n])
    pairs = [min(rounds[n][i] for n in used if n != OWN) / rounds[OWN][i] for i in range(a.rounds)]
    return {
        "network": arch.title, "precision": a.precision, "threads": str(a.threads), "batch": str(a.batch),
        "macs_m": f"{cost.count(arch).macs / 1e6:.2f}", **{n: f"{v:.3f}" for n, v in ms.items()},
        "best_other": best, "ratio": f"{statistics.median(pairs):.3f}",
    }  # fmt: skip


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--networks", default="", help="names or titles of the zoo, with commas between; all, if empty")
    parser.add_argument("--every", type=int, default=1, help="every n-th network of the grid")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--others", default=",".join(OTHERS))
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--isa", help="our instruction set, the processor's best if left out")
    parser.add_argument("--minutes", type=float, default=math.inf)
    a = parser.parse_args()
    if a.processor_time and a.threads > 1:
        parser.error("--processor-time adds up what threads do: it is for one")
    if a.isa and not a.processor_time:
        parser.error("--isa goes with --processor-time")
    end = time.monotonic() + 60 * a.minutes
    names = [n for n in (OWN, *a.others.split(",")) if a.precision in engines.runtime(n).precisions]
    console.note(f"{latency.machine()}; " + ", ".join(f"{n} {engines.version(n)}" for n in names))
    wanted = a.networks.split(",") if a.networks else []
    grid = [g for g in choose.grid(1000) if "hybrid" not in g.name and (not wanted or {g.name, g.title} & {*wanted})][
        :: a.every
    ]
    for arch in grid:
        key = (arch.title, a.precision, str(a.threads), str(a.batch))
        if any(tuple(r[k] for k in KEY) == key for r in read(a.out)):
            continue
        if time.monotonic() > end:
            break
        rows = [*read(a.out), measured(arch, names, a)]
        with files.atomic_file(a.out) as tmp, tmp.open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        console.note(f"{arch.title}: {rows[-1][OWN]} ms, {rows[-1]['ratio']} times as fast as {rows[-1]['best_other']}")
    ratios = [
        float(r["ratio"])
        for r in read(a.out)
        if tuple(r[k] for k in KEY[1:]) == (a.precision, str(a.threads), str(a.batch))
    ]
    mean = math.exp(statistics.mean(map(math.log, ratios)))
    console.note(f"{len(ratios)} networks: geometric mean {mean:.2f}, least {min(ratios):.2f}")


if __name__ == "__main__":
    main()
