"""CIFAR-10 at small widths, plain and distilled: the table alpha x {plain, distilled}.

    python benchmarks/cifar_students.py cifar10.zip runs/cifar10-v2 OUT [--epochs 30] [--networks v1-cifar,v2-cifar]
        [--alphas 0.25,0.5] [--ways plain,distilled] [--temperature 2] [--views 8]

Trains V1 and V2 with their strides for 32 pixels at alpha .5 and .25, each by `mobilenets train` and by `mobilenets
distill` from the run given, with the same recipe, seed and split. Runs that are there already are gone on with or left
alone. Each network's epoch is chosen on the validation split, and its test score read once. Writes OUT/students.csv and
OUT/students.svg: both ways' curves.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

from mobilenets import console, files
from mobilenets.model.bundle import Bundle, is_bundle
from mobilenets.reports import plots, style

COLUMNS = ("network", "alpha", "epochs", "way", "val_top1_percent", "test_top1_percent", "best_epoch", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("teacher")
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--networks", default="v2-cifar,v1-cifar")
    parser.add_argument("--alphas", default="0.25,0.5")
    parser.add_argument("--ways", default="plain,distilled")
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--views", type=int, default=8)
    a = parser.parse_args()
    path = a.out / "students.csv"
    program = str(Path(sys.executable).with_name("mobilenets"))
    for alpha in a.alphas.split(","):
        for network in a.networks.split(","):
            for way in a.ways.split(","):
                if any((r["network"], r["alpha"], r["way"]) == (network, alpha, way) for r in read(path)):
                    continue
                out = a.out / f"{network}-{alpha}-{way}"
                verb = ["train"] if way == "plain" else ["distill", a.teacher]
                line = [program, *verb, a.source, "--arch", network, "--alpha", alpha, "--recipe", "cifar"]
                line += ["--epochs", str(a.epochs), "--out", str(out)]
                if way == "distilled":
                    line += ["--temperature", str(a.temperature), "--views", str(a.views)]
                    line += ["--cache", str(a.out / "answers")]
                if not is_bundle(out / "float"):
                    subprocess.run([*line, *(["--resume"] if out.exists() else [])], check=True)
                scored = [program, "eval", str(out / "float"), a.source, "--split", "test", "--json"]
                test = json.loads(subprocess.run(scored, check=True, stdout=subprocess.PIPE).stdout)["top1"]
                card = Bundle.load(out / "float").card
                seconds = sum(plots.read_metrics(out / "logs" / "metrics.csv")["seconds"].values())
                numbers = (
                    f"{card.metrics[0].value:.2f}",
                    f"{test:.2f}",
                    str(card.recipe["best_epoch"]),
                    f"{seconds:.0f}",
                )
                # Read again: a second process may train other networks into the same table.
                rows = [*read(path), dict(zip(COLUMNS, (network, alpha, str(a.epochs), way, *numbers), strict=True))]
                with files.atomic_file(path) as tmp, tmp.open("w", newline="") as f:
                    writer = csv.DictWriter(f, COLUMNS)
                    writer.writeheader()
                    writer.writerows(rows)
    table = console.table("CIFAR-10 test top-1, %", ["network", "plain", "distilled", "gain"], left=("network",))
    scores = {(r["network"], r["alpha"], r["way"]): float(r["test_top1_percent"]) for r in read(path)}
    for network, alpha in dict.fromkeys(key[:2] for key in scores):
        plain, distilled = (scores.get((network, alpha, way), float("nan")) for way in ("plain", "distilled"))
        table.add_row(f"{network} {alpha}", f"{plain:.2f}", f"{distilled:.2f}", f"{distilled - plain:+.2f}")
    console.note(table)
    draw(a.out, list(scores), a.out / "students.svg")


@style.styled
def draw(runs: Path, trained: list[tuple[str, str, str]], path: Path) -> None:
    """Accuracy on the validation split after each epoch, a panel for each network."""
    networks = list(dict.fromkeys(key[:2] for key in trained))
    fig = style.figure(2.6)
    panels = fig.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    for ax, (network, alpha) in zip(panels, networks, strict=True):
        for way, colour in (("plain", style.MUTED), ("distilled", style.BLUE)):
            if (network, alpha, way) in trained:
                top1 = plots.read_metrics(runs / f"{network}-{alpha}-{way}" / "logs" / "metrics.csv")["val_top1"]
                ax.plot(list(top1), list(top1.values()), color=colour, label=way)
        ax.set_title(f"{network} {alpha}")
        ax.set_xlabel("epoch")
        ax.grid(axis="y")
    panels[0].set_ylabel("val top-1, %")
    panels[0].legend(loc="lower right")
    style.save(fig, path)


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(newline=""))) if path.exists() else []


if __name__ == "__main__":
    main()
