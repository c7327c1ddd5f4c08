"""Table 12 of the V1 paper rebuilt on CelebA: face attributes, students of a large network without labels.

    python benchmarks/attributes_table12.py celeba_10k.zip OUT --init mobilenet_v2_1.0_224_quant.tflite
        [--unlabelled faces_train.zip] [--sides 128,96] [--alphas 1,.5,.25] [--epochs 30] [--teacher-epochs 12]
        [--seeds 0] [--ways distilled,labels] [--progressive .5] [--jobs 1] [--minutes 10]
        [--ways started,... --student-init mobilenet_v1_0.25_224.h5] [--teacher-frozen-rows .6 --teacher-lr 2e-3]

The paper's faces and its teacher are Google's; here are 8,000 faces of 89x109 to train on, 1,000 to choose the epoch
and 1,000 to test, and a teacher fine-tuned on them from ImageNet weights. `distilled` students see its answers alone:
cross-entropy at temperature 1, no weight decay, no early stopping, on the training faces and those of --unlabelled.
`labels`: the same network from nothing with the true tags, by the recipe modern, on as many images. `started`: a
distilled student that begins with the weights of --student-init. V1, at least 16 channels in a layer where it begins
with nothing, and multiply-adds without a head, as the paper counts them. Scores are of the test split, each
network scored once in float32 and in int8. Finished rows of OUT/table12.csv are skipped, and a finished teacher is
taken; --jobs of the others are trained at once.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import shutil
import statistics
import time
import zipfile
from pathlib import Path
from typing import Any

from rows import keep, make, read

import mobilenets
from mobilenets import console, files
from mobilenets.arch import cost, spec, zoo
from mobilenets.model.bundle import Bundle, is_bundle
from mobilenets.model.card import classifier_card
from mobilenets.model.images import Preprocess
from mobilenets.model.module import build

KEY = ("way", "alpha", "side", "epochs", "seed")
SCORES = ("map", "accuracy", "balanced")
TEACHER, DISTILLED, STARTED, LABELS = "teacher", "distilled", "started", "labels"
MIN_DEPTH = 16


def faces_of(source: Path, more: Path | None, out: Path) -> tuple[Path, Path]:
    """The table of the faces with tags, and a folder of all the faces that a student without labels sees."""
    faces, every = out / "faces", out / "every"
    if not every.exists():
        with files.atomic_dir(faces) as tmp, zipfile.ZipFile(source) as z:
            z.extractall(tmp)
        (table,) = faces.rglob("attributes.csv")
        with files.atomic_dir(every) as tmp:
            with table.open(newline="", encoding="utf-8") as f:
                training = [row["file"] for row in csv.DictReader(f) if row["split"] == "train"]
            for name in training:
                shutil.copy(table.parent / name, tmp / name)
            if more:
                with zipfile.ZipFile(more) as z:
                    z.extractall(tmp / "more")
    (table,) = faces.rglob("attributes.csv")
    return table, every


def teacher_of(a: argparse.Namespace, table: Path) -> Path:
    """The finished teacher: a network of ImageNet's weights, fine-tuned on the tags."""
    run = a.out / TEACHER
    if not is_bundle(run / "float"):
        shutil.rmtree(run, ignore_errors=True)
        settings = mobilenets.Overrides(
            epochs=a.teacher_epochs, label_smoothing=0.0, frozen_rows=a.teacher_frozen_rows, lr=a.teacher_lr
        )
        mobilenets.train(
            table, task="attributes", init=a.init, resolution=max(a.sides), out=run, seed=0, log="csv",
            overrides=settings, checkpoint_minutes=60,
        )  # fmt: skip
    return run


def untrained(alpha: float, side: int, seed: int, out: Path) -> Path:
    """The bundle of a network with random weights, as what --init takes is how a network of our own is named."""
    import torch

    arch = spec.scale(zoo.network("v1"), alpha, side, 2, min_depth=MIN_DEPTH)
    torch.manual_seed(seed)
    tensors = {name: value.numpy() for name, value in build(arch).state_dict().items()}
    Bundle(classifier_card(arch, Preprocess(side), ("no", "yes")), tensors).save(out)
    return out


def trained(setting: tuple[argparse.Namespace, Path, Path, float], key: dict[str, str]) -> dict[str, str] | None:
    """The row of one network, trained in a process of its own; None where the time is over."""
    import torch

    a, table, every, began = setting
    if a.minutes and time.monotonic() - began > 60 * a.minutes:
        return None
    since, way, seed = time.monotonic(), key["way"], int(key["seed"])
    run = a.out / "runs" / "-".join(key.values())
    if way == TEACHER:
        run = teacher_of(a, table)
    else:
        shutil.rmtree(run, ignore_errors=True)
        side = int(key["side"])
        begin = a.student_init
        if way != STARTED:
            begin = untrained(float(key["alpha"]), side, seed, run.with_name(f"{run.name}-begin"))
        sees = round(0.9 * sum(p.suffix == ".webp" for p in every.rglob("*")))  # a tenth is held out
        tagged = sum(1 for p in every.glob("*.webp"))
        changes: dict[str, Any] = {
            "epochs": a.epochs, "label_smoothing": 0.0, "probe": "off", "progressive": a.progressive
        }  # fmt: skip
        if a.jobs > 1:
            changes["workers"] = max(0, (os.cpu_count() or 1) // a.jobs - 1)
        common: dict[str, Any] = {
            "task": "attributes", "init": begin, "resolution": side, "recipe": "modern", "out": run, "seed": seed,
            "log": "csv",
        }  # fmt: skip
        if way != LABELS:
            how = mobilenets.Distillation(temperature=1.0, views=0 if torch.cuda.is_available() else a.views)
            mobilenets.distill(
                a.out / TEACHER, every, unlabelled=True, distillation=how, yes=True, cache=a.out / "answers",
                overrides=mobilenets.Overrides(**changes, weight_decay=0.0), **common,
            )  # fmt: skip
        else:
            changes["epochs"] = round(a.epochs * sees / tagged)
            mobilenets.train(table, overrides=mobilenets.Overrides(**changes), checkpoint_minutes=60, **common)
        shutil.rmtree(run / "checkpoints")
    return row_of(key, run, table, time.monotonic() - since)


def row_of(key: dict[str, str], run: Path, table: Path, took: float) -> dict[str, str]:
    """The scores of a finished run in float32 and in int8, and what its network costs without a head."""
    import torch

    if not is_bundle(run / "int8"):
        mobilenets.quantize(run / "float", table, out=run / "int8")
    scores = {
        prefix: mobilenets.evaluate(run / name, table, split="test").to_json()
        for prefix, name in (("", "float"), ("int8_", "int8"))
    }
    arch = Bundle.load(run / "float").card.arch
    counted = cost.count(spec.scale(zoo.network(arch.name), arch.alpha, arch.resolution, 0, min_depth=arch.min_depth))
    return {
        **key,
        "alpha": f"{arch.alpha:g}",
        "macs_without_head": str(counted.macs),
        "params_without_head": str(counted.params),
        **{f"{prefix}{s}_percent": f"{found[s]:.2f}" for prefix, found in scores.items() for s in SCORES},
        "seconds": f"{took:.0f}",
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--init", required=True, help="the teacher's weights: a file of ImageNet's")
    parser.add_argument("--unlabelled", type=Path, help="a zip of more faces, without tags")
    parser.add_argument("--sides", default="128,96")
    parser.add_argument("--alphas", default="1,.5,.25")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--teacher-frozen-rows", type=float, help="share of the teacher's rows that stay as they were")
    parser.add_argument("--teacher-lr", type=float, help="the teacher's rate, instead of looking for one")
    parser.add_argument("--student-init", help="the weights that students of the way `started` begin with")
    parser.add_argument("--progressive", type=float, default=1.0, help="the students' first side, as a share")
    parser.add_argument("--views", type=int, default=4, help="of each image that the teacher is asked about")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--ways", default=f"{DISTILLED},{LABELS}")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="begin no training after so many")
    a = parser.parse_args()
    a.sides = [int(side) for side in a.sides.split(",")]
    a.out.mkdir(parents=True, exist_ok=True)
    began, path = time.monotonic(), a.out / "table12.csv"
    table, every = faces_of(a.source, a.unlabelled, a.out)
    keys = [(TEACHER, "", max(a.sides), a.teacher_epochs, 0)]
    keys += itertools.product(
        a.ways.split(","), (f"{float(alpha):g}" for alpha in a.alphas.split(",")), a.sides, [a.epochs],
        map(int, a.seeds.split(",")),
    )  # fmt: skip
    wanted = [dict(zip(KEY, map(str, key), strict=True)) for key in keys]
    done = [{k: r[k] for k in KEY} for r in read(path)]
    if any(r["way"] == TEACHER for r in done):
        wanted = [key for key in wanted if key["way"] != TEACHER]
    else:  # the others learn from it
        row = trained((a, table, every, began), wanted.pop(0))
        assert row is not None  # its time is not over yet
        keep(path, row)
    wanted = [key for key in wanted if key not in done]
    make(path, trained, (a, table, every, began), wanted, a.jobs)
    show(read(path), Bundle.load(a.out / TEACHER / "float"), table)


def show(rows: list[dict[str, str]], teacher: Bundle, table: Path) -> None:
    """The table, means over seeds, with what can be had without a look at a face."""
    columns = [*KEY[:-1], "M macs", "mAP %", "accuracy %", "balanced %", "int8 mAP %", "int8 accuracy %", "seeds"]
    t = console.table(f"faces; the teacher is {teacher.card.arch.title}", columns, left=KEY[:1])
    shown = ("map_percent", "accuracy_percent", "balanced_percent", "int8_map_percent", "int8_accuracy_percent")
    for setting in dict.fromkeys(tuple(r[k] for k in KEY[:-1]) for r in rows):
        found = [r for r in rows if tuple(r[k] for k in KEY[:-1]) == setting]
        means = (f"{statistics.mean(float(r[name]) for r in found):.2f}" for name in shown)
        t.add_row(*setting, f"{int(found[0]['macs_without_head']) / 1e6:.2f}", *means, str(len(found)))
    with table.open(newline="", encoding="utf-8") as f:
        test = [r for r in csv.DictReader(f) if r["split"] == "test"]
    share = [100 * statistics.mean(float(r[label]) for r in test) for label in teacher.card.labels]
    majority = statistics.mean(max(s, 100 - s) for s in share)
    t.caption = f"without looking: {statistics.mean(share):.2f}% mAP, {majority:.2f}% accuracy, 50% balanced"
    console.note(t)


if __name__ == "__main__":
    main()
