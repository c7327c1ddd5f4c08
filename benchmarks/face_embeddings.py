"""Table 14 of the V1 paper rebuilt: face embeddings distilled from MobileFaceNet, by width and side, tested on LFW.

    python benchmarks/face_embeddings.py DATA --work runs/faces --rows v1:1:128,v1:.75:128,v1:.25:96 --minutes 4

DATA has faces_train.zip, celeba_10k.zip (both CelebA, which shares no people with LFW), faces_lfw.zip and
weights/MobileFaceNet.onnx. A row is NETWORK:ALPHA:SIDE; one that is finished is kept, one that was stopped goes on.
The teacher's vectors are computed once, for all rows, and kept in WORK/teacher. Test images are looked at once, at
the end of a row. `--loss arcface` trains without a teacher. `--init v2:1=FILE` starts rows of that
network from a file of weights. All rows are trained first, then all are tested.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import time
import zipfile
from pathlib import Path

import mobilenets
from mobilenets.arch import cost
from mobilenets.data.alignment import TEMPLATES
from mobilenets.deploy import engines
from mobilenets.deploy.foreign import Foreign
from mobilenets.model.bundle import Bundle, is_bundle
from mobilenets.tasks.embed.options import EmbedOptions

FACES = "lfw-crop"  # the template that students see
HELD_OUT = 16  # every so many people of faces_train choose the epoch
POINTS = [f"{p}_{xy}" for p in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for xy in "xy"]


def reading_of(table: Path) -> mobilenets.Reading:
    return mobilenets.Reading(label_column="identity", landmarks=str(table), split_column="split")


PRINTED = {("v1", 1.0, 160): 79.4, ("v1", 1.0, 128): 78.3, ("v1", 0.75, 160): 75.2, ("v1", 0.75, 128): 72.5}


def prepare(data: Path, work: Path) -> Path:
    """Both sets in one folder, with a table of who is on each image, where the landmarks lie, and the split."""
    faces = work / "faces"
    table = faces / "faces.csv"
    if table.exists():
        return table
    for name in ("faces_train", "celeba_10k"):
        with zipfile.ZipFile(data / f"{name}.zip") as z:
            z.extractall(faces)
    rows: list[list[object]] = []
    people = sorted(p for p in (faces / "faces_train").iterdir() if p.is_dir())
    held = {p.name for p in people[::HELD_OUT]}
    for p in people:
        points = [v for xy in TEMPLATES[FACES].points for v in xy]
        split = "val" if p.name in held else "train"
        rows += [[f"faces_train/{p.name}/{f.name}", int(p.name), split, *points] for f in sorted(p.iterdir())]
    points = [round(float(v) - 0.5, 2) for xy in TEMPLATES["celeba"].on(89, 109) for v in xy]
    with (faces / "celeba_10k" / "attributes.csv").open() as f:
        for row in csv.DictReader(f):
            if f"{int(row['identity']):05d}" not in held:
                rows.append([f"celeba_10k/{row['file']}", int(row["identity"]), "train", *points])
    (faces / "celeba_10k" / "attributes.csv").unlink()
    with table.open("w", newline="") as f:
        csv.writer(f).writerows([["file", "identity", "split", *POINTS], *rows])
    return table


def trained(args: argparse.Namespace, table: Path, name: str, alpha: float, side: int, out: Path) -> None:
    settings = mobilenets.Overrides(
        epochs=args.epochs, batch=args.batch, lr=args.lr, workers=args.workers, mixup=0.0, patience=0, ema=0.02,
        progressive=args.progressive, frozen_rows=args.frozen_rows,
    )  # fmt: skip
    options = EmbedOptions(template=FACES, metric_loss=args.loss or None, embed_head=args.head)
    start = dict(word.split("=") for word in args.init.split(",") if word).get(f"{name}:{alpha:g}")
    network = {"init": start} if start else {"arch": name, "alpha": alpha}
    common = {
        "out": out, "task": "embed", "resolution": side, "recipe": "modern", "overrides": settings,
        "reading": reading_of(table),
        "embedding": options, "time": args.minutes and f"{args.minutes:g}m", "resume": out.exists(), "seed": args.seed,
        **network,
    }  # fmt: skip
    began = time.monotonic()
    if args.loss:
        mobilenets.train(table, **common)
    else:
        foreign = Foreign(foreign_norm="imagenet", foreign_template="arcface", foreign_flip=True)
        teacher = args.data / "weights" / "MobileFaceNet.onnx"
        mobilenets.distill(teacher, table, foreign=foreign, cache=args.work / "teacher", **common)
    took = {
        "from": Path(start).name if start else "nothing",
        "minutes": round((time.monotonic() - began) / 60, 1),
        "hardware": hardware(),
    }
    (out / "took.json").write_text(json.dumps(took))


def folder(args: argparse.Namespace, spec: str) -> tuple[str, float, int, Path]:
    name, alpha, side = spec.split(":")
    called = "-".join([name, f"{float(alpha):g}", side, *filter(None, [args.loss, args.head])])
    return name, float(alpha), int(side), args.work / called


def tested(args: argparse.Namespace, table: Path, spec: str) -> dict[str, object]:
    """A trained row's int8 bundle and both precisions' scores, in ONNX Runtime."""
    name, alpha, side, out = folder(args, spec)
    result = out / "lfw.json"
    if result.exists():
        return dict(json.loads(result.read_text()))
    bundle, int8 = Bundle.load(out / "float"), out / "int8"
    if not is_bundle(int8):
        mobilenets.quantize(out / "float", table, out=int8, reading=reading_of(table))
    costs = cost.count(bundle.card.arch)
    found: dict[str, object] = {
        "network": name, "alpha": alpha, "side": side, "macs": costs.macs, "params": costs.params,
        "printed_at_far_1e-4": PRINTED.get((name, alpha, side)), "loss": args.loss or "distilled",
        "head": bundle.card.config["head"],
        "epochs": bundle.card.recipe["epochs"], "best_epoch": bundle.card.recipe["best_epoch"], "batch": args.batch,
        "lr": args.lr,
        "val": bundle.card.metrics[0].value, **json.loads((out / "took.json").read_text()),
    }  # fmt: skip
    for precision, path in (("float32", out / "float"), ("int8", int8)):
        file = out / engines.file_name("onnxruntime", precision)
        file.unlink(missing_ok=True)
        engines.module("onnxruntime").write(Bundle.load(path), file, None)
        scores = mobilenets.evaluate(file, args.data / "faces_lfw.zip", reading=mobilenets.Reading(aligned=FACES))
        said = scores.to_json()
        verified = said["verification"]
        found[precision] = {
            "accuracy": verified["accuracy"], "standard_error": verified["standard_error"],
            **{f"tar_at_far_{r['far']:g}": r["tar"] for r in verified["rates"]},
            "recall_at_1": said["retrieval"]["recall"]["1"], "map": said["retrieval"]["map"],
        }  # fmt: skip
    result.write_text(json.dumps(found, indent=1))
    return found


def hardware() -> str:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((x.split(": ")[1] for x in info.read_text().splitlines() if x.startswith("model name")), cpu)
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{cores} cores of {cpu}"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path)
    p.add_argument("--work", type=Path, default=Path("runs/faces"))
    p.add_argument("--rows", default="v1:1:160,v1:1:128,v1:.75:160,v1:.75:128,v1:.5:128,v1:.25:96,v2:1:128")
    p.add_argument("--minutes", type=float, help="of training, for each row: as many of the epochs as fit")
    p.add_argument("--epochs", type=int, default=60)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--workers", type=int, default=-1)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--loss", default="")
    p.add_argument("--head", choices=("pool", "global"), help="what the vector is a linear layer of; pool by default")
    p.add_argument("--progressive", type=float, default=1.0, help="side of the first epochs, as a share")
    p.add_argument(
        "--frozen-rows", type=float, default=0.0, help="share of the rows, the first, that stay as they began"
    )
    p.add_argument("--init", default="", help="NETWORK:ALPHA=FILE,...")
    p.add_argument("--only-train", action="store_true", help="leave the tests to another call, on another machine")
    p.add_argument("--csv", type=Path, help="append rows to this table")
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    table = prepare(args.data, args.work)
    for spec in args.rows.split(","):
        name, alpha, side, out = folder(args, spec)
        if not is_bundle(out / "float"):
            trained(args, table, name, alpha, side, out)
    for spec in () if args.only_train else args.rows.split(","):
        found = tested(args, table, spec)
        print(json.dumps(found), flush=True)
        if args.csv:
            write(args.csv, found)


def write(path: Path, found: dict[str, object]) -> None:
    flat = {k: v for k, v in found.items() if not isinstance(v, dict)}
    for precision in ("float32", "int8"):
        values = found[precision]
        assert isinstance(values, dict)
        flat |= {f"{precision}_{k}": round(v, 3) if isinstance(v, float) else v for k, v in values.items()}
    new = not path.exists()
    with path.open("a", newline="") as f:
        out = csv.DictWriter(f, list(flat))
        if new:
            out.writeheader()
        out.writerow(flat)


if __name__ == "__main__":
    main()
