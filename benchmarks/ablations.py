"""One thing changed at a time, several seeds each: V2's choices on CIFAR-10, the ingredients of a recipe on photos.

    python benchmarks/ablations.py v2 cifar10.zip OUT [--epochs 8] [--seeds 0,1,2]
    python benchmarks/ablations.py v1 cifar10.zip OUT --resolution 64 --macs 12000000 --epochs 12
    python benchmarks/ablations.py modern flowers.zip OUT --resolution 128 --epochs 30

"v2": activation, linear bottleneck, shortcuts (V2 paper, section 6.4, figure 6) of V2-CIFAR. "v1": where V1 makes its
maps smaller, and how; shallower (V1 paper, table 5). "modern": what each ingredient is worth that the recipe has, or
could have, for V1. All train at alpha .25, or each at the alpha that gives it as many multiply-adds as --macs says.
Each epoch is chosen on the val split and scored on the test split; where there is no test split, val serves as one and
a tenth of train as val. Runs that are there already are gone on with or skipped; several processes can share OUT, with
other seeds. Writes OUT/ablations.csv and OUT/ablations.svg: means over the seeds, with standard deviations as error
bars.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilenets import console, files
from mobilenets.arch import spec, zoo
from mobilenets.arch.matching import at_macs
from mobilenets.arch.rows import Row
from mobilenets.arch.rows_branches import pooling
from mobilenets.arch.spec import Arch
from mobilenets.data import checks, splitting
from mobilenets.data.dataset import Data
from mobilenets.data.open import open_data
from mobilenets.deploy import evaluate
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.model.bundle import Bundle, is_bundle
from mobilenets.reports import style
from mobilenets.training import recipes
from mobilenets.training import trainer as train
from mobilenets.training.run import FLOAT

COLUMNS = ("variant", "seed", "test_top1_percent", "val_top1_percent", "seconds")


@dataclass(frozen=True)
class Study:
    """What is varied: the network's rows, arguments of `spec.scale`, or fields of the recipe."""

    network: str
    recipe: str
    variants: dict[str, dict[str, Any]]


def strided(at: tuple[int, ...], pools: bool = False) -> dict[str, Any]:
    """V1 whose strides of 2 lie at these rows; with `pools`, max pooling after a layer of stride 1 in their place."""
    rows: list[Row] = []
    for i, row in enumerate(zoo.V1.rows):
        rows.append(dataclasses.replace(row, stride=2 if i in at and not pools else 1))
        if i in at and pools:
            rows.append(pooling(2, 2))
    return {"rows": tuple(rows)}


AS_PUBLISHED = tuple(i for i, row in enumerate(zoo.V1.rows) if row.stride == 2)
STUDIES = {
    "v1": Study("v1", "cifar", {
        "as published": {},
        "early": strided((0, 1, 2, 3, 4)),
        "evenly spaced": strided((0, 3, 6, 9, 12)),
        "late": strided((0, 5, 8, 11, 13)),
        "max pooling for strides": strided(AS_PUBLISHED, pools=True),
        "shallower": {"rows": zoo.V1_SHALLOW.rows},
    }),
    "v2": Study("v2-cifar", "cifar", {
        "as published": {},
        "ReLU": {"activation": "relu"},
        "non-linear bottleneck": {"linear_bottleneck": False},
        "shortcut between expansions": {"shortcut": "expansion"},
        "no shortcut": {"shortcut": "none"},
    }),
    "modern": Study("v1", "modern", {
        "modern": {},
        "no mixup": {"mixup": 0.0},
        "CutMix, no mixup": {"mixup": 0.0, "cutmix": 1.0},
        "RandAugment 9 for colour": {"randaugment": 9},
        "erasing .25": {"erasing": 0.25},
        "no label smoothing": {"label_smoothing": 0.0},
        "no averaging": {"ema": 0.0},
        "from half the resolution": {"progressive": 0.5},
        "weight decay .1": {"weight_decay": 0.1},
        "twice the rate": {"lr": 4e-3},
        "four times the rate": {"lr": 8e-3},
        "sixteen times, as tune says": {"lr": 0.032},
        "SGD, RandAugment 9": {"optimizer": "sgd", "lr": 0.15, "weight_decay": 5e-4, "randaugment": 9},
        "SGD, rate .15, decay 5e-4": {"optimizer": "sgd", "lr": 0.15, "weight_decay": 5e-4},
        "half the batch": {"batch": 32},
    }),
}  # fmt: skip


def opened(source: str) -> Data:
    """The data with a test split."""
    d = open_data(source)
    if "test" not in d.splits:
        every = d.splits["train"]
        held = splitting.stratified(every.targets, 0.1, 0)
        rest = np.setdiff1d(np.arange(len(every)), held)
        test = dataclasses.replace(d.splits["val"], name="test")
        d.splits = {"train": every.subset(rest), "val": every.subset(held, "val"), "test": test}
    checks.check(d)
    return d


def network(study: Study, changes: dict[str, Any], a: argparse.Namespace, classes: int) -> Arch:
    """The network of a variant, at the width that was asked for."""
    changes = dict(changes)
    rows = changes.pop("rows", None)
    published = zoo.network(study.network)
    table = dataclasses.replace(published, rows=rows) if rows else published

    def at(alpha: float) -> Arch:
        return spec.scale(table, alpha, a.resolution, classes, **changes)

    return at_macs(at, a.macs) if a.macs else at(a.alpha)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--alpha", type=float, default=0.25)
    parser.add_argument("--macs", type=int, help="what an image is to cost, by the width, in place of --alpha")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--variants", default="", help="some of them, with ; between; all if left out")
    a = parser.parse_args()
    study, d = STUDIES[a.study], opened(a.source)
    recipe = dataclasses.replace(recipes.recipe(study.recipe), epochs=a.epochs)
    fields = {f.name for f in dataclasses.fields(recipe)}
    path = a.out / "ablations.csv"
    for seed in map(int, a.seeds.split(",")):  # every variant once before any a second time
        for variant in a.variants.split(";") if a.variants else study.variants:
            if any((r["variant"], r["seed"]) == (variant, str(seed)) for r in read(path)):
                continue
            out, since = a.out / variant.replace(" ", "-") / str(seed), time.monotonic()
            console.note(f"[bold]{variant}, seed {seed}[/]")
            changes = study.variants[variant]
            of_recipe = {k: v for k, v in changes.items() if k in fields}
            of_arch = {k: v for k, v in changes.items() if k not in fields}
            arch = network(study, of_arch, a, len(d.labels))
            if not is_bundle(out / FLOAT):
                changed = dataclasses.replace(recipe, **of_recipe)
                train.train_bundle(d, arch, changed, out, seed=seed, resume=out.exists())
            b = Bundle.load(out / FLOAT)
            test = evaluate.score(TorchEngine(b, os.cpu_count() or 1), d, "test").top1
            numbers = f"{test:.2f}", f"{b.card.metrics[0].value:.2f}", f"{time.monotonic() - since:.0f}"
            # Read again: a second process may train other seeds into the same table.
            rows = [*read(path), dict(zip(COLUMNS, (variant, str(seed), *numbers), strict=True))]
            with files.atomic_file(path) as tmp, tmp.open("w", newline="") as f:
                writer = csv.DictWriter(f, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
    width = f"{a.macs / 1e6:g} M macs" if a.macs else f"{a.alpha:g}"
    title = f"{study.network} {width}-{a.resolution}, {a.epochs} epochs"
    draw(read(path), list(study.variants), a.out / "ablations.svg", title)


@style.styled
def draw(rows: list[dict[str, str]], variants: list[str], path: Path, title: str) -> None:
    table = console.table(title, ["variant", "top-1 %, mean", "sd", "seeds"], left=("variant",))
    there = [v for v in variants if any(r["variant"] == v for r in rows)]
    fig = style.figure(0.35 * len(there) + 0.9)
    ax = fig.add_subplot()
    for y, variant in enumerate(reversed(there)):
        scores = [float(r["test_top1_percent"]) for r in rows if r["variant"] == variant]
        mean, sd = statistics.mean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.0
        table.add_row(variant, f"{mean:.2f}", f"{sd:.2f}" if len(scores) > 1 else "", str(len(scores)))
        ax.errorbar(mean, y, xerr=sd, fmt="o", color=style.BLUE, capsize=3)
        ax.plot(scores, [y - 0.22] * len(scores), "|", color=style.BLUE, alpha=0.5)
    ax.set_yticks(range(len(there)), reversed(there))
    ax.set_ylim(-0.6, len(there) - 0.4)
    ax.set_xlabel(f"{title}: test top-1, %, mean and standard deviation over seeds")
    style.save(fig, path)
    console.note(table)


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(newline=""))) if path.exists() else []


if __name__ == "__main__":
    main()
