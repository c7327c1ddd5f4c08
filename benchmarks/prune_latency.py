"""Pruned to a share of its latency, against the plain narrower network of that latency from the same start.

    python benchmarks/prune_latency.py BUNDLE DATA OUT [--engine onnxruntime] [--share .5] [--steps 2] [--epochs 1]
        [--final-epochs 3] [--importance taylor] [--threads 1] [--processor-time]

BUNDLE: a float bundle or a run of one of the zoo's networks; DATA: what it was trained on. The narrower network is the
zoo's of the largest alpha that meets the same limit, with the first channels of each of BUNDLE's layers; it is trained
by the same recipe for as many epochs as the pruned one in all. Scores are of the val split, which also picked both's
epochs. Latencies are of float32, measured in turn with BUNDLE's; with --processor-time of what the process had of the
processor, where others have it too. Adds to OUT/prune.csv; what was made stays in OUT, and one that was killed goes on.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import time
from pathlib import Path

import numpy as np

import mobilenets
from mobilenets import tasks
from mobilenets.arch import cost, zoo
from mobilenets.arch.spec import Arch
from mobilenets.commands.prune import prune
from mobilenets.compression import goals, mixed
from mobilenets.compression.goals import Latency, macs_m
from mobilenets.compression.narrowing import card_of
from mobilenets.compression.prune import recipe_of
from mobilenets.deploy.engines import Engine
from mobilenets.deploy.latency import Setting, machine
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle
from mobilenets.model.encodings import tensor_shapes
from mobilenets.training import trainer


def sliced(source: Bundle, arch: Arch) -> Bundle:
    """The first channels of each layer, as many as `arch` has."""
    card = card_of(source.card, arch)
    shapes = tensor_shapes(card)
    tensors = {k: source.tensors[k][tuple(map(slice, shape))] for k, shape in shapes.items()}
    return Bundle(card, tensors, source.digest)


def plain(source: Bundle, goal: Latency) -> Arch:
    """The widest of the zoo's network that meets the goal."""
    arch = source.card.arch

    def at(alpha: float) -> Arch:
        made = zoo.arch(arch.name, alpha, arch.resolution, arch.num_classes)
        return arch.replace(alpha=alpha, rows=made.rows, head=made.head)

    low, high = 2, 50  # fiftieths
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if goal.of(card_of(source.card, at(middle / 50))) <= goal.limit else (low, middle)
    return at(low / 50)


def processor_times(engine: Engine, batch: int, seconds: float) -> list[float]:
    """As `bench.time_calls`, but what the process had of the processor in each call."""
    height, width = engine.card.preprocess.input_size
    images = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds:
        start = time.process_time()
        engine(images)
        times.append(time.process_time() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--final-epochs", type=int, default=3)
    parser.add_argument("--importance", default="taylor")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processor-time", action="store_true")
    a = parser.parse_args()
    if a.processor_time:
        goals.time_calls = processor_times
    source = Bundle.load(bundles.find_bundle(a.bundle)).dense()
    data = tasks.data_of(source.card, a.data)
    few = mobilenets.Overrides(epochs=a.epochs, workers=0)
    goal = Latency(source.card, Setting(a.engine, "float32", a.threads), share=a.share)
    score = tasks.find_trained(source.card.task).primary
    assert score is not None

    def pruned() -> Bundle:
        return prune(
            a.bundle, a.data, out=out, target_latency=a.share, engine=a.engine, threads=a.threads, steps=a.steps,
            final_epochs=a.final_epochs, importance=a.importance, overrides=few,
        )  # fmt: skip

    def narrower() -> Bundle:
        recipe = dataclasses.replace(recipe_of(source.card, few), epochs=a.steps * a.epochs - a.epochs + a.final_epochs)
        start = sliced(source, plain(source, goal))
        run = out.with_name(f"{out.name}.run")
        return trainer.train_bundle(
            data, start.card.arch, recipe, run, task=tasks.of(source.card), init=start, resume=run.exists(), log=()
        ).save(out)

    a.out.mkdir(parents=True, exist_ok=True)
    path, began = a.out / "prune.csv", time.perf_counter()
    for name, make in (("whole", lambda: source), ("pruned", pruned), ("narrower", narrower)):
        out = a.out / f"{name}-{a.engine}-{a.share:g}"
        made = Bundle.load(out) if bundles.is_bundle(out) else make()
        row = {
            "network": made.card.arch.title, "how": name, "engine": a.engine, "importance": a.importance,
            "macs_m": round(macs_m(made.card), 2),
            "params_m": round(sum(r.params for r in cost.layers(made.card.graph)) / 1e6, 3),
            "latency_ms": round(ms := goal.of(made.card), 4), "share": round(ms / goal.whole_ms, 3),
            f"val_{score.column}": round(mixed.scored(made, data, score).value, 2),
            "seconds": round(time.perf_counter() - began), "machine": machine(),
        }  # fmt: skip
        first = not path.exists()
        with path.open("a", newline="") as f:
            writer = csv.DictWriter(f, row)
            if first:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
