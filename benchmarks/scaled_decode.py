"""What decoding large JPEGs at a fraction of their size costs in accuracy, and what time it saves.

    python benchmarks/scaled_decode.py PHOTOS BUNDLE... [--sides 448,896,1792] [--quality 92] [--out CSV]

PHOTOS: a folder or zip of labelled JPEGs; BUNDLE: float bundles or runs that know their classes. Each photo is enlarged
(bicubic) to the given short sides and saved as a JPEG of quality 90; a side of 0 takes the files as they are, those of
the commonest short side. Each is decoded whole and at each fraction (1/2, 1/4, 1/8) that leaves at least the short side
that the network needs. Prints and writes, by network, size and fraction: the decoded short side over the needed one
(`images.open_rgb` takes the fractions that leave MARGIN or more), the top-1 score in float32, how often the first
answer is the whole photo's, and the processor time of decoding, cropping and resizing (mean over photos).

Enlarged photos have no finer detail than they had before, which flatters every fraction. `--resolution` gives the
networks smaller inputs than they were trained on, so that photos as they are, with all their detail, are large.
`--quality` is the yardstick: what saving the same enlarged photos at another JPEG quality changes.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mobilenets.data import dataset as data
from mobilenets.data.open import open_data
from mobilenets.deploy import engines
from mobilenets.deploy.engines import Engine
from mobilenets.model.bundle import Bundle, find_bundle
from mobilenets.model.images import MARGIN, open_rgb

FRACTIONS = (1, 2, 4, 8)


def enlarged(photo: Image.Image, side: int, quality: int = 90) -> bytes:
    """The photo as a JPEG of short side `side`."""
    f = side / min(photo.size)
    size = (round(f * photo.width), round(f * photo.height))
    out = io.BytesIO()
    photo.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=quality)
    return out.getvalue()


def at_resolution(bundle: Bundle, resolution: int) -> Bundle:
    """The same weights for images of another size."""
    card = bundle.card
    p = dataclasses.replace(card.preprocess, resolution=resolution)
    return Bundle(card.replace(arch=card.arch.replace(resolution=resolution), preprocess=p), bundle.tensors)


def short_side(jpeg: bytes) -> int:
    with Image.open(io.BytesIO(jpeg)) as header:
        return min(header.size)


def measure(
    engine: Engine, jpegs: list[bytes], targets: np.ndarray, side: int, others: dict[str, list[bytes]]
) -> list[dict[str, str]]:
    """A row for each fraction, of JPEGs of short side `side`, and for each of the `others` decoded whole."""
    p = engine.card.preprocess
    ways = [("whole" if f == 1 else f"1/{f}", f, jpegs) for f in FRACTIONS if f == 1 or side // f >= p.short_side]
    rows = []
    whole, whole_ms = np.empty(0), 0.0
    for name, fraction, files in ways + [(name, 1, files) for name, files in others.items()]:
        answers, seconds = [], 0.0
        for jpeg in files:
            start = time.thread_time()
            # Pillow takes the largest whole scale that leaves the short side asked for.
            pixels = p.fit(open_rgb(jpeg, short_side=int(side / fraction / MARGIN)))
            seconds += time.thread_time() - start
            answers.append(int(engine(pixels[None])[0].argmax()))
        ms = 1e3 * seconds / len(jpegs)
        if not rows:
            whole, whole_ms = np.array(answers), ms
        rows.append({
            "network": engine.card.arch.title,
            "images": str(len(jpegs)),
            "short side px": str(side),
            "needed px": str(p.short_side),
            "decoded at": name,
            "decoded / needed": f"{side / fraction / p.short_side:.2f}",
            "top-1 %": f"{100 * np.mean(answers == targets):.1f}",
            "same answer %": f"{100 * np.mean(answers == whole):.1f}",
            "processor ms": f"{ms:.2f}",
            "times faster": f"{whole_ms / ms:.2f}",
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--sides", default="448,896,1792")
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--quality", type=int)
    parser.add_argument("--out", type=Path, help="rows are added to this file")
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores")
    a = parser.parse_args()
    bundles = [Bundle.load(find_bundle(path)) for path in a.bundles]
    runs = [engines.build("onnxruntime", at_resolution(b, a.resolution or b.card.arch.resolution), "float32", 1)[0]
            for b in bundles]  # fmt: skip
    d = data.in_order(open_data(a.photos), bundles[0].card.labels)
    photos = d.split("val" if d.val_fraction is None else "all")
    command = f"{Path(a.photos).name} {' '.join(path.name for path in a.bundles)} --sides {a.sides}"
    if a.resolution:
        command += f" --resolution {a.resolution}"
    if a.quality:
        command += f" --quality {a.quality}"
    rows: list[dict[str, str]] = []
    for side in map(int, a.sides.split(",")):
        files = [photos.read(i) for i in range(len(photos))]
        if side:
            jpegs = [enlarged(open_rgb(f), side) for f in files if not isinstance(f, Image.Image)]
            own = [side] * len(jpegs)
        else:
            jpegs = [f if isinstance(f, bytes) else Path(str(f)).read_bytes() for f in files]
            own = [short_side(jpeg) for jpeg in jpegs]
        others = {}
        if a.quality and side:
            again = [enlarged(open_rgb(f), side, a.quality) for f in files if not isinstance(f, Image.Image)]
            others[f"whole, of quality {a.quality}"] = again
        common = statistics.mode(own)
        keep = [i for i, s in enumerate(own) if s == common]
        rows += [
            {
                "photos": Path(a.photos).stem + " enlarged" * bool(side),
                **row,
                "command": f"benchmarks/scaled_decode.py {command}",
                "hardware": a.hardware,
            }
            for engine in runs
            for row in measure(engine, [jpegs[i] for i in keep], photos.targets[keep], common, others)
        ]
    header = not (a.out and a.out.exists())
    for file in (sys.stdout, *([a.out.open("a", newline="")] if a.out else [])):
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if header or file is sys.stdout:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
