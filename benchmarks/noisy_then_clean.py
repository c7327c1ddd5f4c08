"""Clean labels alone, noisy ones and then clean ones, both mixed (V1 paper, section 4.3, table 10): breeds of dog.

    python benchmarks/noisy_then_clean.py dogs_noisy.zip OUT [--init mobilenet_v1_0.25_224.h5] [--epochs 80]
        [--alpha 0.5] [--resolution 96] [--seeds 0,1,2] [--losses cross-entropy,bootstrap,symmetric,co-teaching]
        [--jobs 1] [--minutes 10]

dogs_noisy.zip has 600 photos to begin with, half of them with a wrong label, 200 clean ones, of which a fifth chooses
the epoch in every way, and 300 to test on, scored once. Every way sees as many images: those of --epochs passes over
all 760. `noisy then clean` has half of them in either stage. With --init, the same from its weights: ImageNet has seen
the photos of Stanford Dogs, and so of these breeds, test photos among them; such a score says little of new dogs.
Finished rows of OUT/noisy_then_clean.csv are skipped; --jobs of the others are trained at once. Prints means and
standard errors.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import statistics
import time
import zipfile
from pathlib import Path
from typing import Any

from rows import make, read

import mobilenets
from mobilenets import console, files
from mobilenets.data.splitting import stratified
from mobilenets.errors import UserError

KEY = ("start", "way", "loss", "alpha", "resolution", "epochs", "seed")
TABLE = ("file", "split", "label")
CLEAN, NOISY, MIXED = "clean only", "noisy then clean", "mixed"
NOTHING = "nothing"


def unpacked(source: Path, out: Path) -> Path:
    """The folder with labels.csv and its images."""
    if source.is_file():
        with zipfile.ZipFile(source) as z:
            z.extractall(out / "photos")
        source = out / "photos"
    found = sorted(source.rglob("labels.csv"))
    if not found:
        raise UserError(f"{source}: no labels.csv in it")
    return found[0].parent


def tables(photos: Path, out: Path, seed: int) -> dict[str, Path]:
    """Tables of the clean, the noisy and all training images; val is a fifth of the clean ones, by the seed."""
    import numpy as np

    with (photos / "labels.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    of = {name: [r for r in rows if r["split"] == name] for name in ("noisy", "clean", "test")}
    _, classes = np.unique([r["label"] for r in of["clean"]], return_inverse=True)
    held = {*stratified(classes, 0.2, seed).tolist()}
    parts = {
        "val": [r for i, r in enumerate(of["clean"]) if i in held],
        "train": [r for i, r in enumerate(of["clean"]) if i not in held],
        "test": of["test"],
    }
    wanted = {
        CLEAN: parts,
        NOISY: {"train": of["noisy"]},
        MIXED: {**parts, "train": [*parts["train"], *of["noisy"]]},
    }
    made = {}
    for way, splits in wanted.items():
        made[way] = out / "tables" / f"{seed}-{way.replace(' ', '-')}.csv"
        with files.atomic_file(made[way]) as tmp, tmp.open("w", newline="", encoding="utf-8") as f:
            table = csv.writer(f)
            table.writerow(TABLE)
            table.writerows((r["file"], split, r["label"]) for split, some in splits.items() for r in some)
    return made


def count(table: Path) -> int:
    """Its training images."""
    with table.open(newline="", encoding="utf-8") as f:
        return sum(r["split"] == "train" for r in csv.DictReader(f))


def trained(setting: tuple[argparse.Namespace, Path, float], key: dict[str, str]) -> dict[str, str] | None:
    """The row of one training, in a process of its own; None where the time is over."""
    import torch

    a, photos, began = setting
    if a.minutes and time.monotonic() - began > 60 * a.minutes:
        return None

    seed, way, run = int(key["seed"]), key["way"], a.out / "runs" / "-".join(key.values()).replace(" ", "-")
    shutil.rmtree(run, ignore_errors=True)
    at = tables(photos, a.out, seed)
    seen = a.epochs * count(at[MIXED])
    source, more = at[CLEAN], {}
    if way == MIXED:
        source = at[MIXED]
    if way == NOISY:
        more = {"noisy": at[NOISY], "noisy_epochs": round(seen / 2 / count(at[NOISY]))}
    epochs = round(seen / (2 if way == NOISY else 1) / count(source))
    changes: dict[str, Any] = {"epochs": epochs, "patience": 0, "loss": key["loss"], "find_lr": "off", "batch": 32}
    if a.jobs > 1:
        changes["workers"] = 0
    if key["start"] == NOTHING:
        network: dict[str, Any] = {"arch": "v1", "alpha": a.alpha}
    else:
        network = {"init": a.init}
    since = time.monotonic()
    made = mobilenets.train(
        source, out=run, root=photos, resolution=a.resolution, seed=seed, log="csv",
        overrides=mobilenets.Overrides(**changes), checkpoint_minutes=60, **network, **more,
    )  # fmt: skip
    took = time.monotonic() - since
    shutil.rmtree(run / "checkpoints")
    assert made is not None
    test = mobilenets.evaluate(run, source, split="test", root=photos)
    return {
        **key,
        "test_top1_percent": f"{test.value:.2f}",
        "val_top1_percent": f"{made.card.metrics[0].value:.2f}",
        "seconds": f"{took:.0f}",
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--init", help="weights to begin with besides: a file of ImageNet's")
    parser.add_argument("--pretrained-alone", action="store_true", help="not from nothing")
    parser.add_argument("--alpha", default="0.5")
    parser.add_argument("--resolution", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--losses", default="cross-entropy", help="of noisy then clean, the first stage's")
    parser.add_argument("--ways", default=",".join((CLEAN, NOISY, MIXED)))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="begin no training after so many")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    photos, path, began = unpacked(a.source, a.out), a.out / "noisy_then_clean.csv", time.monotonic()
    a.alpha = float(a.alpha)
    starts = [NOTHING] * (not a.pretrained_alone) + ([Path(a.init).name] if a.init else [])
    wanted = [
        dict(zip(KEY, map(str, (start, way, loss, a.alpha, a.resolution, a.epochs, seed)), strict=True))
        for seed in a.seeds.split(",")
        for start in starts
        for way in a.ways.split(",")
        for loss in (a.losses.split(",") if way == NOISY else ["cross-entropy"])
    ]
    wanted = [key for key in wanted if not any({k: r[k] for k in KEY} == key for r in read(path))]
    make(path, trained, (a, photos, began), wanted, a.jobs)
    show(read(path))


def show(rows: list[dict[str, str]]) -> None:
    columns = [*KEY[:-1], "top-1 %", "standard error", "seeds"]
    t = console.table("test photos", columns, left=KEY[:3])
    for setting in dict.fromkeys(tuple(r[k] for k in KEY[:-1]) for r in rows):
        found = [float(r["test_top1_percent"]) for r in rows if tuple(r[k] for k in KEY[:-1]) == setting]
        error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else float("nan")
        t.add_row(*setting, f"{statistics.mean(found):.2f}", f"{error:.2f}", str(len(found)))
    console.note(t)


if __name__ == "__main__":
    main()
