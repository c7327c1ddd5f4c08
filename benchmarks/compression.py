"""How small a network can be stored, and what it loses: ways x bits, and sizes, on val; what was chosen, on test once.

    python benchmarks/compression.py cifar10-v2 cifar10.zip OUT --sizes 500,250 --train 4096 --epochs 2
    python benchmarks/compression.py mobilenet_v1_0.25_224.h5 imagenette_val500.zip OUT

A bundle, or a file or name that `mobilenets import` takes: such a one is fitted to a fifth of the images and scored on
the others.
Rows go to OUT/NAME.csv as they are made, and bundles beside it: a run that was stopped goes on with the same command.
Accuracies of the table are before any training; --sizes and --trained methods are trained (codebooks, codes, BatchNorm,
biases) on --train images.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mobilenets import console, processor, tasks
from mobilenets.compression import books, budget, coded, shared
from mobilenets.data.dataset import Data, in_order
from mobilenets.data.open import open_data
from mobilenets.deploy import engines, evaluate
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle
from mobilenets.model.convert import weights
from mobilenets.reports.explain.stored import stored

METHODS = "int8,int4,kmeans-5,kmeans-4,kmeans-3,kmeans-2,product-2-256,product-4-256,hashed-8,sparse-70,ternary,binary"
COLUMNS = (
    "network", "method", "refined", "trained", "val", "val_images", "test", "test_images", "float32_bytes", "raw_bytes",
    "huffman_bytes", "coded_bytes", "entropy_bytes", "file_bytes", "bits_per_weight", "seconds", "machine",
)  # fmt: skip


def thinned(data: Data, **most: int) -> Data:
    """Splits of at most so many images, evenly from all; others whole."""
    some = {n: s.subset(range(0, len(s), -(-len(s) // most.get(n, len(s))))) for n, s in data.splits.items()}
    return dataclasses.replace(data, splits=some)


def opened(network: str, images: str) -> tuple[Bundle, Data]:
    """A bundle with its own splits; or an imported network with a fifth of the images as train, the others as val."""
    if bundles.is_bundle(Path(network)) or not Path(network).exists():
        source = Bundle.load(bundles.find_bundle(Path(network)))
        return source, tasks.data_of(source.card, images, None)
    source = weights.foreign_bundle(weights.open_foreign(network))
    data = in_order(open_data(images, val=0.2), source.card.labels)
    fifth, rest = (
        dataclasses.replace(data.splits[name], name=role) for name, role in (("val", "train"), ("train", "val"))
    )
    return source, dataclasses.replace(data, splits={"train": fifth, "val": rest})


def score(bundle: Bundle, data: Data, split: str) -> tuple[float, int]:
    engine, _ = engines.build("onnxruntime", bundle, "float32", processor.cores())
    found = evaluate.score(engine, data, split)
    return round(found.value, 3), found.count


def sizes(bundle: Bundle) -> dict[str, object]:
    found = stored(bundle)
    t = found.total
    return {
        "float32_bytes": t.before, "raw_bytes": round(t.raw), "huffman_bytes": round(t.huffman),
        "coded_bytes": round(t.coded), "entropy_bytes": round(t.least), "file_bytes": found.file,
        "bits_per_weight": round(t.bits, 3),
    }  # fmt: skip


def within(size: int) -> Callable[[Bundle], bool]:
    return lambda made: budget.file_size(made) <= size


def rows(args: argparse.Namespace, done: set[tuple[str, str, str]]) -> Iterator[dict[str, object]]:
    source, whole = opened(args.bundle, args.data)
    data = thinned(whole, train=args.train, val=args.val)
    damage = shared.Damage(coded.canonical(source), data.sample("train", args.images, source.card.preprocess).pixels)
    plain = damage.plain

    def row(made: Bundle, method: str, refined: bool, trained: int, start: float, test: bool) -> dict[str, object]:
        val, count = score(made, data, "val")
        tested = score(made, whole, "test") if test and "test" in whole.splits else ("", "")
        return {
            "network": args.name, "method": method, "refined": int(refined), "trained": trained, "val": val,
            "val_images": count, "test": tested[0], "test_images": tested[1], **sizes(made),
            "seconds": round(time.process_time() - start, 1), "machine": args.machine,
        }  # fmt: skip

    if ("float32", "0", "0") not in done:
        yield row(source, "float32", False, 0, time.process_time(), args.test)
    for name in filter(None, args.methods.split(",")):
        for refined in (False, True) if name.startswith("kmeans") else (False,):
            if (name, str(int(refined)), "0") not in done:
                start, chosen = time.process_time(), coded.uniform(plain, name)
                made = damage.assembled(damage.refined(chosen) if refined else chosen)
                yield row(made, name, refined, 0, start, False)
    recipe = dataclasses.replace(books.recipe(args.epochs), workers=0)
    passes = args.epochs * len(data.split("train"))

    def taught(made: Bundle, **how: Any) -> Bundle:
        with tempfile.TemporaryDirectory() as work:
            return books.tuned(source, made, damage, data, Path(work), recipe, **how)

    for name in filter(None, args.trained.split(",")):
        if (name, "1", str(passes)) not in done:
            start, chosen = time.process_time(), damage.refined(coded.uniform(plain, name))
            yield row(taught(damage.assembled(chosen)), name, True, passes, start, args.test)
    measured: dict[str, list[coded.Option]] = {}
    for kb in map(float, filter(None, args.sizes.split(","))):
        name, at = f"{kb:g} kB", args.out / f"{args.name}-{kb:g}"
        size = int(1000 * kb)
        wanted = [n for n in (0, passes) if (name, "1", str(n)) not in done]
        if not wanted:
            continue
        start = time.process_time()
        measured = measured or damage.measured()
        made, chosen = budget.fitted(damage, measured, int(size * budget.NEAR))
        if 0 in wanted:
            yield row(made.save(at), name, True, 0, start, False)
        if passes in wanted and passes:
            start = time.process_time()
            made = taught(made, rates={layer: o.rate for layer, o in chosen.items()}, fits=within(size))
            yield row(made.save(f"{at}.mnz"), name, True, passes, start, args.test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--trained", default="", help="methods that are trained too")
    parser.add_argument("--sizes", default="")
    parser.add_argument("--images", type=int, default=256, help="that damage is measured on")
    parser.add_argument("--train", type=int, default=4096, help="images, at most")
    parser.add_argument("--val", type=int, default=1000, help="images, at most")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--test", action="store_true", help="score what was trained on the test split too")
    parser.add_argument("--machine", default="")
    args = parser.parse_args()
    args.name = Path(args.bundle).name
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / f"{args.name}.csv"
    before = list(csv.DictReader(table.open())) if table.exists() else []
    done = {(r["method"], r["refined"], r["trained"]) for r in before}
    with table.open("a", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        if not before:
            writer.writeheader()
        for made in rows(args, done):
            writer.writerow(made)
            f.flush()
            console.note(f"{made['method']}: val {made['val']}, {made['file_bytes']} bytes")


if __name__ == "__main__":
    main()
