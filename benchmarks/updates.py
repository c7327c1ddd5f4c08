"""How much of a network travels in an update, and how long applying it takes.

    python benchmarks/updates.py DATA INIT OUT [--epochs 6] [--extra FOLDER]

A classifier of DATA's classes is fine-tuned from INIT (weights or a bundle) and stands for what is installed. It
becomes, each time from there: itself with its classifier trained for one more epoch; itself with everything trained for
one more epoch (by the recipe's own rate); and, with --extra, a classifier of one class more, whose photos are in
FOLDER/train and FOLDER/val. Each as float32 and as int8 (calibrated on the same images), in folders and in .mnz files.
Prints and writes OUT/updates.csv: bytes of the new network as it lies on the disk, in .mnz, as a whole update and as
what has changed, and the median of ten applications in one process (reading, checking, decoding, writing to the disk,
replacing). Bundles stay in OUT; those that are there are taken.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import mobilenets
from mobilenets import console, files
from mobilenets.compression.quantize import quantize_bundle
from mobilenets.compression.scheme import CALIBRATION_IMAGES
from mobilenets.data.open import of_card
from mobilenets.deploy.update import keys, package
from mobilenets.deploy.update.apply import apply
from mobilenets.deploy.update.contents import Contents
from mobilenets.deploy.update.installed import Installation
from mobilenets.deploy.update.make import make
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle
from mobilenets.training.recipes import Overrides

ROUNDS = 10


def trained(data: str, init: str, out: Path, **overrides: int) -> Path:
    if not bundles.is_bundle(out / "float"):
        mobilenets.train(data, out=out, init=init, overrides=Overrides(**overrides))  # type: ignore[arg-type]
    return out / "float"


def with_class(data: str, extra: Path, out: Path) -> str:
    """A folder of DATA's images, of a zip that has train/ and val/ inside, and one class more."""
    if not out.exists():
        with files.atomic_dir(out) as tmp:
            shutil.unpack_archive(data, tmp)
            (root,) = {p.parent for p in tmp.rglob("train") if p.is_dir()}
            for split in ("train", "val"):
                shutil.copytree(extra / split, root / split / extra.name)
    (root,) = {p.parent for p in out.rglob("train") if p.is_dir()}
    return str(root)


def stored(source: Path, precision: str, suffix: str, out: Path, data: str) -> Path:
    """A float bundle in a precision and a form."""
    path = out / f"{source.parent.name}-{precision}{suffix}"
    if not bundles.is_bundle(path):
        bundle = Bundle.load(source)
        if precision == "int8":
            images = of_card(bundle.card, data, None).sample("train", CALIBRATION_IMAGES, bundle.card.preprocess).pixels
            bundle = quantize_bundle(bundle, images)
        bundle.save(path)
    return path


def applied_ms(old: Path, update: Path, key: Path) -> float:
    """Median milliseconds of this process's own time from the update's file to the network replaced.

    Others on the machine don't count, nor does waiting for the disk.
    """
    taken = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=update.parent) as folder:
            place = Path(folder) / f"installed{old.suffix}"
            (shutil.copytree if old.is_dir() else shutil.copyfile)(old, place)
            verifying = keys.verifying(key)
            since = time.process_time()
            where = Installation(place)
            with where.alone():
                apply(where, package.read(update), verifying)
            taken.append(1e3 * (time.process_time() - since))
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("init")
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--extra", type=Path)
    a = parser.parse_args()
    installed = trained(a.data, a.init, a.out / "installed", epochs=a.epochs)
    changed = {
        "classifier, one epoch": trained(a.data, str(installed), a.out / "classifier", epochs=1, frozen_epochs=1),
        "everything, one epoch": trained(a.data, str(installed), a.out / "everything", epochs=1, frozen_epochs=0),
    }
    if a.extra:
        more = with_class(a.data, a.extra, a.out / "more")
        changed[f"a class more, {a.extra.name}"] = trained(
            more, str(installed), a.out / "class", epochs=2, frozen_epochs=2
        )
    if not (a.out / "key").exists():
        keys.make(a.out / "key")
    rows = []
    for what, source in changed.items():
        for precision in ("float32", "int8"):
            for suffix in ("", ".mnz"):
                old = stored(installed, precision, suffix, a.out, a.data)
                new = stored(source, precision, suffix, a.out, a.data)
                update = a.out / f"{source.parent.name}-{precision}{suffix or '-folder'}.mnu"
                before, after, key = Contents.read(old), Contents.read(new), keys.signing(a.out / "key")
                make(before, after, update, key=key, whole=True)
                whole = update.stat().st_size
                head = make(before, after, update, key=key)
                card = Bundle.load(new).card
                rows.append({
                    "network": card.arch.title,
                    "changed": what,
                    "precision": precision,
                    "form": suffix or "folder",
                    "top1_percent": f"{card.metrics[-1].value:.2f}" if card.metrics else "",
                    "layers_changed": len(head.layers) + head.more,
                    "labels_added": " ".join(head.labels_added),
                    "bytes": files.size_on_disk(new),
                    "mnz_bytes": len(after.pack()),
                    "whole_update_bytes": whole,
                    "update_bytes": update.stat().st_size,
                    "percent_of_whole": f"{100 * update.stat().st_size / whole:.2f}",
                    "percent_of_bytes": f"{100 * update.stat().st_size / files.size_on_disk(new):.2f}",
                    "apply_processor_ms": f"{applied_ms(old, update, a.out / 'key.pub'):.1f}",
                })  # fmt: skip
                console.note(" | ".join(map(str, rows[-1].values())))
                with files.atomic_file(a.out / "updates.csv") as tmp, tmp.open("w", newline="") as f:
                    writer = csv.DictWriter(f, list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)


if __name__ == "__main__":
    main()
