"""V2's choices at small scale: activation, linear bottleneck, shortcuts (V2 paper, section 6.4, figure 6).

    python benchmarks/ablations.py cifar10.zip OUT [--alpha 0.25] [--epochs 8] [--seeds 3]

Trains each variant of V2-CIFAR from several seeds with the recipe "cifar", and scores each on the test split. Runs that
are there already are gone on with or skipped. Writes OUT/ablations.csv and OUT/ablations.svg: means over the seeds,
with standard deviations as error bars.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import statistics
import time
from pathlib import Path

from mobilenets import checks, console, data, evaluate, files, recipes, spec, style, train, zoo
from mobilenets.bundle import Bundle, is_bundle
from mobilenets.engines.torch import TorchEngine
from mobilenets.spec import Arch

VARIANTS = ("as published", "ReLU", "non-linear bottleneck", "shortcut between expansions", "no shortcut")
COLUMNS = ("variant", "seed", "test_top1_percent", "val_top1_percent", "seconds")


def arch(variant: str, alpha: float, classes: int) -> Arch:
    """V2-CIFAR with one thing changed."""
    v2 = zoo.network("v2-cifar")
    return {
        "as published": lambda: spec.scale(v2, alpha, 32, classes),
        "ReLU": lambda: spec.scale(v2, alpha, 32, classes, activation="relu"),
        "non-linear bottleneck": lambda: spec.scale(v2, alpha, 32, classes, linear_bottleneck=False),
        "shortcut between expansions": lambda: spec.scale(v2, alpha, 32, classes, shortcut="expansion"),
        "no shortcut": lambda: spec.scale(v2, alpha, 32, classes, shortcut="none"),
    }[variant]()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--alpha", type=float, default=0.25)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    a = parser.parse_args()
    d = data.open_data(a.source)
    checks.check(d)
    recipe = dataclasses.replace(recipes.recipe("cifar"), epochs=a.epochs)
    path = a.out / "ablations.csv"
    rows = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
    for seed in range(a.seeds):  # every variant once before any a second time
        for variant in VARIANTS:
            if any((r["variant"], r["seed"]) == (variant, str(seed)) for r in rows):
                continue
            out, since = a.out / variant.replace(" ", "-") / str(seed), time.monotonic()
            console.note(f"[bold]{variant}, seed {seed}[/]")
            net = arch(variant, a.alpha, len(d.labels))
            if not is_bundle(out / train.FLOAT):
                train.train_bundle(d, net, recipe, out, seed=seed, resume=out.exists())
            b = Bundle.load(out / train.FLOAT)
            test = evaluate.score(TorchEngine(b, os.cpu_count() or 1), d, "test").top1
            numbers = f"{test:.2f}", f"{b.card.metrics[0].value:.2f}", f"{time.monotonic() - since:.0f}"
            rows.append(dict(zip(COLUMNS, (variant, str(seed), *numbers), strict=True)))
            with files.atomic_file(path) as tmp, tmp.open("w", newline="") as f:
                writer = csv.DictWriter(f, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
    draw(rows, a.out / "ablations.svg", f"V2-CIFAR {a.alpha:g}, {a.epochs} epochs")


@style.styled
def draw(rows: list[dict[str, str]], path: Path, title: str) -> None:
    table = console.table(title, ["variant", "top-1 %, mean", "sd", "seeds"], left=("variant",))
    fig = style.figure(2.6)
    ax = fig.add_subplot()
    for y, variant in enumerate(reversed(VARIANTS)):
        scores = [float(r["test_top1_percent"]) for r in rows if r["variant"] == variant]
        mean, sd = statistics.mean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.0
        table.add_row(variant, f"{mean:.2f}", f"{sd:.2f}", str(len(scores)))
        ax.errorbar(mean, y, xerr=sd, fmt="o", color=style.BLUE, capsize=3)
        ax.plot(scores, [y - 0.22] * len(scores), "|", color=style.BLUE, alpha=0.5)
    ax.set_yticks(range(len(VARIANTS)), reversed(VARIANTS))
    ax.set_ylim(-0.6, len(VARIANTS) - 0.4)
    ax.set_xlabel("CIFAR-10 test top-1, %: mean and standard deviation over seeds")
    style.save(fig, path)
    console.note(table)


if __name__ == "__main__":
    main()
