"""What boxes and their suppression inside a file take of its time, runtime by runtime, and what AP they cost.

    python benchmarks/suppression_share.py DETECTOR DATA [--engines litert,ncnn,...] [--score 0.01] [--out CSV]

DETECTOR: a float bundle of one stage; DATA: photos with boxes. Of each runtime the file that gives boxes and the one
that gives raw heads run the same 20 photos in turn, 7 rounds, on one thread: medians of the processor's time, an image.
`score` and 100 boxes take the place of what the card says of its suppression. The AP of both is over all of val.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import rows

from mobilenets import tasks
from mobilenets.deploy import engines, evaluate, finish
from mobilenets.model.bundle import Bundle
from mobilenets.model.images import Pixels

PHOTOS, ROUNDS = 20, 7


def processor_ms(engine: engines.Engine, images: Pixels) -> float:
    begin = time.process_time()
    for image in images:
        engine(image[None])
    return 1e3 * (time.process_time() - begin) / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector", type=Path)
    parser.add_argument("data")
    parser.add_argument("--engines", default="litert,ncnn,onnxruntime,openvino,native")
    parser.add_argument("--score", type=float, default=0.01)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    source = Bundle.load(a.detector)
    config = {**source.card.config, "suppression": {"score": a.score}}
    source = Bundle(source.card.replace(config=config), source.tensors)
    data, _ = tasks.images_of(source.card, a.data, None)
    images = data.sample("val", PHOTOS, source.card.preprocess).pixels
    found = []
    for name in a.engines.split(","):
        module = engines.module(name)
        with tempfile.TemporaryDirectory() as folder:
            made = {}
            for raw in (False, True):
                path = Path(folder) / f"{'raw' if raw else 'boxes'}{engines.runtime(name).suffix}"
                finish.write(module, source, path, None, raw)
                made[raw] = module.load(path, 1)
                processor_ms(made[raw], images[:2])
            rounds = [{raw: processor_ms(engine, images) for raw, engine in made.items()} for _ in range(ROUNDS)]
            ms = {raw: statistics.median(r[raw] for r in rounds) for raw in made}
            ap = {raw: evaluate.score(engine, data, "val").value for raw, engine in made.items()}
        found.append({
            "engine": name, "boxes_ms": round(ms[False], 2), "raw_ms": round(ms[True], 2),
            "share_percent": round(100 * (1 - ms[True] / ms[False]), 1),
            "boxes_ap": round(ap[False], 2), "raw_ap": round(ap[True], 2),
        })  # fmt: skip
        print(found[-1], flush=True)
    if a.out:
        rows.write(a.out, found)


if __name__ == "__main__":
    sys.exit(main())
