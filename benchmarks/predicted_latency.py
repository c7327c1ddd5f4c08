"""How far the latency that `choose` predicts for a network is from that of the file exported in the end.

    python benchmarks/predicted_latency.py [--engine onnxruntime] [--precision int8] [--rounds 5]

`choose` measures networks with random weights, one after the other, in one process; `bench` measures files, each in a
process of its own. Eight networks over the grid, from the smallest to the largest, go both ways in turn, round after
round, so that whatever else the machine does falls on both alike. The milliseconds are the quietest round's median; the
ratio is the median of the rounds' ratios. Ends with 1 where a network's is off by more than a tenth.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from mobilenets.arch import cost
from mobilenets.deploy import bench, choose, engines, latency
from mobilenets.model.bundle import Bundle, random_bundle

NETWORKS, CLASSES, LIMIT = 8, 10, 0.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    (setting,) = latency.settings([a.engine], [a.precision], [a.threads])
    every = sorted((g for g in choose.grid(CLASSES) if "hybrid" not in g.name), key=lambda g: cost.count(g).macs)
    archs = [every[i] for i in np.linspace(0, len(every) - 1, NETWORKS).round().astype(int)]
    print(f"{setting}, {engines.version(a.engine)}, {latency.machine()}")
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for i, arch in enumerate(archs):
            b = other_weights(random_bundle(arch, setting.precision))
            paths.append(Path(folder) / f"{i}{engines.runtime(a.engine).suffix}")
            engines.module(a.engine).write(b, paths[-1], None)
        predicted, measured = [], []
        for _ in range(a.rounds):
            predicted.append([latency.once(arch, setting)[0] for arch in archs])
            measured.append([t.median_ms for t in bench.bench_files(paths, a.threads, rounds=1)])
    p, m = np.array(predicted), np.array(measured)  # [rounds, networks], milliseconds
    ratios = np.median(p / m, 0)
    print(f"{'network':30}{'predicted ms':>14}{'measured ms':>14}{'ratio':>8}")
    for arch, x, y, r in zip(archs, p.min(0), m.min(0), ratios, strict=True):
        print(f"{arch.title:30}{x:14.3f}{y:14.3f}{r:8.3f}")
    worst = np.abs(ratios - 1).max()
    print(f"largest difference {100 * worst:.1f}%, median {100 * np.median(np.abs(ratios - 1)):.1f}%")
    raise SystemExit(int(worst > LIMIT))


def other_weights(b: Bundle) -> Bundle:
    """The bundle with its weights in another order, so that what is measured isn't what was predicted from."""
    rng = np.random.default_rng(1)
    return Bundle(b.card, {k: rng.permutation(v) if v.ndim > 1 else v for k, v in b.tensors.items()})


if __name__ == "__main__":
    main()
