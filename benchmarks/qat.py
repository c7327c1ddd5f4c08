"""What quantization-aware training wins back: float, post-training int8 and trained int8 on the same held-out images.

    python benchmarks/qat.py BUNDLE DATA OUT [--epochs 3] [--lr 3e-5] [--split test] [--root FOLDER]

BUNDLE: a float bundle or a run; DATA: what it was trained on, or other images of its classes. int8 with one scale per
layer and with one per output channel, as `mobilenets quantize` calibrates them and as `--qat` trains them from there,
all in ONNX Runtime, scored on the split named (that of final scores, if left out). Prints and writes OUT/qat.csv; the
bundles stay in OUT, and a script that was killed goes on: a bundle that is there is only scored.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import shutil
import time
from pathlib import Path

from mobilenets import console, files
from mobilenets.compression import qat
from mobilenets.compression.quantize import measure_ranges
from mobilenets.compression.scheme import CALIBRATION_IMAGES, Scheme
from mobilenets.data.open import of_card
from mobilenets.deploy import engines, evaluate
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=qat.RECIPE.epochs)
    parser.add_argument("--lr", type=float, default=qat.RECIPE.lr)
    parser.add_argument("--split")
    parser.add_argument("--root", type=Path)
    a = parser.parse_args()
    source = Bundle.load(bundles.find_bundle(a.bundle))
    recipe = dataclasses.replace(qat.RECIPE, epochs=a.epochs, lr=a.lr)

    def made(per_layer: bool, trained: bool) -> Bundle:
        out = a.out / f"{'qat' if trained else 'ptq'}-per-{'layer' if per_layer else 'channel'}"
        if bundles.is_bundle(out):
            return Bundle.load(out)
        d = of_card(source.card, a.data, a.root)
        images = d.sample("train", CALIBRATION_IMAGES, source.card.preprocess).pixels
        measured = measure_ranges(source, images, Scheme(per_layer=per_layer))
        work = out.with_name(f"{out.name}.work")
        if trained:
            measured = qat.learn(source, measured, d, work, recipe=recipe)
        bundle = measured.bundle().save(out)
        shutil.rmtree(work, ignore_errors=True)
        return bundle

    ways = {
        "float32": lambda: source,
        "PTQ per layer": lambda: made(per_layer=True, trained=False),
        "PTQ per channel": lambda: made(per_layer=False, trained=False),
        "QAT per layer": lambda: made(per_layer=True, trained=True),
        "QAT per channel": lambda: made(per_layer=False, trained=True),
    }
    rows: list[dict[str, str]] = []
    for way, make in ways.items():
        since = time.perf_counter()
        bundle = make()
        seconds = time.perf_counter() - since
        d = of_card(source.card, a.data, a.root)
        engine, _ = engines.build("onnxruntime", bundle, bundle.card.precision, os.cpu_count() or 1)
        scores = evaluate.score(engine, d, a.split or d.held_out)
        lost = float(rows[0]["top1_percent"]) - scores.value if rows else 0.0
        rows.append({
            "network": source.card.arch.title,
            "way": way,
            "top1_percent": f"{scores.value:.2f}",
            "lost_points": f"{lost:.2f}",
            "images": f"{Path(d.source).name} {scores.split}, {scores.count}",
            "made_in_seconds": f"{seconds:.0f}",
        })  # fmt: skip
        console.note(" | ".join(rows[-1].values()))
        with files.atomic_file(a.out / "qat.csv") as tmp, tmp.open("w", newline="") as f:
            writer = csv.DictWriter(f, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    table = console.table("int8, measured and trained", list(rows[0]), left=("network", "way", "images"))
    for row in rows:
        table.add_row(*row.values())
    console.note(table)


if __name__ == "__main__":
    main()
