"""What int8 costs, by the way it is made: per layer and per channel, each calibration, equalization, bias correction.

    python benchmarks/ptq.py NETWORK=IMAGES... [--calibration-images 100] [--ways WORDS] [--out CSV]

NETWORK: a float bundle, or a file or name that `mobilenets import` takes; IMAGES: a folder or zip of class folders. A
network that was trained on them is calibrated on images of their training split and scored on the one held out; an
imported one is calibrated on a fifth of them and scored on the rest. Every network runs in ONNX Runtime. Prints and
writes, for each way: top-1, what it loses against float, how often both give the same top-1, and the divergence of its
probabilities from float's in nats, which tells ways apart that differ by less than chance in top-1.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mobilenets import console
from mobilenets.arch.heads import PROBABILITIES
from mobilenets.compression.quantize import correct_bundle, quantize_bundle
from mobilenets.compression.scheme import Scheme
from mobilenets.data import dataset as data
from mobilenets.data.dataset import Batch
from mobilenets.data.open import of_card, open_data
from mobilenets.deploy import engines
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Precision
from mobilenets.model.convert import weights

BATCH = 8


def opened(network: str, images: str, count: int) -> tuple[Bundle, Batch, Batch]:
    """A network, `count` images to calibrate on and those to score."""
    if Path(network).is_dir():
        bundle = Bundle.load(bundles.find_bundle(Path(network)))
        d = of_card(bundle.card, images)
        calibration, scored = "train", d.held_out
    else:
        bundle = weights.foreign_bundle(weights.open_foreign(network))
        d = data.in_order(open_data(images), bundle.card.labels)
        calibration, scored = "val", "train"
    p = bundle.card.preprocess
    return bundle, d.sample(calibration, count, p), data.gather(d.split(scored), p)


def answers(bundle: Bundle, batch: Batch) -> np.ndarray:
    """Probabilities [N, classes]."""
    engine, _ = engines.build("onnxruntime", bundle, bundle.card.precision, 1)
    parts = (batch.pixels[i : i + BATCH] for i in range(0, len(batch.pixels), BATCH))
    return np.concatenate([engine(part)[PROBABILITIES] for part in parts])


def ways(bundle: Bundle, calibration: Batch) -> Iterator[tuple[str, Callable[[], Bundle]]]:
    """Each way to store the network: its name, and what makes it."""
    yield "float32", lambda: bundle
    for precision, corrected in itertools.product(("float16", "int4"), (False, True)):

        def weights_alone(precision: Precision = precision, corrected: bool = corrected) -> Bundle:
            source = correct_bundle(bundle, precision, calibration.pixels) if corrected else bundle
            return Bundle(bundle.card.replace(precision=precision), source.tensors)

        yield precision + ", bias corrected" * corrected, weights_alone
    options = itertools.product((True, False), ("minmax", "percentile", "mse"), (False, True), (False, True))
    for per_layer, method, equalized, corrected in options:
        if per_layer and method != "minmax":
            continue
        words = [f"int8 per {'layer' if per_layer else 'channel'}", method]
        words += ["equalized"] * equalized + ["bias corrected"] * corrected
        scheme = Scheme(method, per_layer, equalized, corrected)
        yield ", ".join(words), functools.partial(quantize_bundle, bundle, calibration.pixels, scheme)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="NETWORK=IMAGES")
    parser.add_argument("--calibration-images", type=int, default=100)
    parser.add_argument("--ways", default="", help="only those whose names have this in them")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    rows = []
    for pair in a.networks:
        network, images = pair.split("=", 1)
        bundle, calibration, scored = opened(network, images, a.calibration_images)
        exact = np.empty(0)
        for way, make in ways(bundle, calibration):
            if way != "float32" and a.ways not in way:
                continue
            made = make()
            found = answers(made, scored)
            exact = exact if len(exact) else found
            floating, top1 = (100 * (p.argmax(1) == scored.targets).mean() for p in (exact, found))
            rows.append({
                "network": bundle.card.arch.title,
                "weights": Path(network).name,
                "images": f"{Path(images).name}, {len(found)}",
                "stored as": way,
                "top-1 %": f"{top1:.2f}",
                "lost, points": f"{floating - top1:.2f}",
                "same top-1 %": f"{100 * (exact.argmax(1) == found.argmax(1)).mean():.2f}",
                "divergence, nats": f"{(exact * np.log((exact + 1e-9) / (found + 1e-9))).sum(1).mean():.4f}",
            })  # fmt: skip
            console.note(" | ".join(rows[-1].values()))
    table = console.table("what int8 costs", list(rows[0]), left=("network", "weights", "images", "stored as"))
    for row in rows:
        table.add_row(*row.values())
    console.note(table)
    if a.out:
        a.out.parent.mkdir(parents=True, exist_ok=True)
        with a.out.open("w", newline="") as f:
            writer = csv.DictWriter(f, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
