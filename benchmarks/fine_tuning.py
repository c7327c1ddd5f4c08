"""The recipe `finetune` beside others' ways to fine-tune: the same weights, the same time, several seeds.

    python benchmarks/fine_tuning.py flowers.zip OUT --init v2-1.0 --resolution 128 --seconds 240
    python benchmarks/fine_tuning.py cifar10.zip OUT --init v1-0.25 --resolution 96 --seconds 120 --per-class 50
    python benchmarks/fine_tuning.py imagenette.zip OUT --init v1-0.25 --resolution 128 --seconds 120 --folds 5

Others' recipes are written as ours: what their documentation or scripts have by default, for as many epochs as fit into
the time; with --processor-time, this process's own, which is what compares them on a machine that others use. Each
epoch is chosen on val and scored on test; where there is no test split, val serves as one and a tenth of train as val.
With --per-class, val has a fifth of as many; with --folds, each seed is a fold. Runs in OUT/fine_tuning.csv are
skipped. Prints means and standard errors.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import shutil
import statistics
import time
from pathlib import Path

import numpy as np

from mobilenets import console, files, tasks
from mobilenets.data import checks, splitting
from mobilenets.data.dataset import Data
from mobilenets.data.open import open_data
from mobilenets.data.source import Reading, spelled
from mobilenets.deploy import evaluate
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.model.bundle import Bundle
from mobilenets.model.convert import starts
from mobilenets.training import probing, recipes
from mobilenets.training import trainer as train
from mobilenets.training.calibrated import Calibration
from mobilenets.training.recipes import Recipe

COLUMNS = (
    "data", "init", "resolution", "per_class", "seconds", "recipe", "seed", "test_top1_percent", "epochs", "took_s",
)  # fmt: skip
KEY = COLUMNS[:7]
OWN, PROBE = "finetune", "linear probe"
PLAIN = Recipe(
    epochs=100, mixup=0.0, ema=0.0, clip=0.0, warmup=0.0, weight_decay=1e-4, label_smoothing=0.0, min_scale=0.08
)
OTHERS = {
    # references/classification/train.py: SGD, rate .1 for 256 images, decay 1e-4; of its new recipe, smoothing,
    # erasing, averaging and a cosine; RandAugment for its TrivialAugment.
    "torchvision's references": dataclasses.replace(
        PLAIN, batch=64, optimizer="sgd", lr=0.1, lr_batch=256, label_smoothing=0.1, randaugment=9, erasing=0.1,
        ema=0.02,
    ),
    # PyTorch's tutorial of transfer learning: SGD, momentum .9, rate 1e-3, batches of 4.
    "PyTorch's tutorial": dataclasses.replace(PLAIN, batch=4, optimizer="sgd", lr=1e-3, weight_decay=0.0),
    # timm's train.py without options: SGD, rate .1 for 256 images, decay 2e-5, smoothing .1, warm-up, cosine.
    "timm's train script": dataclasses.replace(
        PLAIN, batch=128, optimizer="sgd", lr=0.1, lr_batch=256, weight_decay=2e-5, warmup=0.1, label_smoothing=0.1,
    ),
    # ultralytics' classify defaults: optimizer=auto is AdamW at .002 * 5 / (4 + classes), batch 16, decay 5e-4,
    # RandAugment, erasing .4, three epochs of warm-up.
    "ultralytics' defaults": dataclasses.replace(
        PLAIN, batch=16, lr=1.1e-3, weight_decay=5e-4, warmup=0.1, randaugment=9, erasing=0.4, min_scale=0.5, ema=0.02,
    ),
}  # fmt: skip


def count_processor_time() -> None:
    """Have every clock of this process stand still while others have its cores."""
    time.monotonic = time.perf_counter = time.process_time


def opened(a: argparse.Namespace, seed: int) -> Data:
    """The data with a test split; of --folds, that of the seed's fold."""
    d = open_data(spelled(a.source, Reading(limit_per_class=a.per_class)), seed=0 if a.folds else seed)
    if a.folds:
        d = [*d.in_folds(a.folds)][seed]
    if "test" not in d.splits:
        every = d.splits["train"]
        held = splitting.stratified(every.targets, 0.1, seed)
        rest = np.setdiff1d(np.arange(len(every)), held)
        test = dataclasses.replace(d.splits["val"], name="test")
        d.splits = {"train": every.subset(rest), "val": every.subset(held, "val"), "test": test}
    if a.per_class:  # who has few images to train on has few to choose an epoch by
        val = d.splits["val"]
        d.splits["val"] = val.subset(splitting.limited(val.targets, max(1, a.per_class // 5), seed))
    if a.test_images:
        test = d.splits["test"]
        d.splits["test"] = test.subset(np.random.default_rng(0).permutation(len(test))[: a.test_images])
    checks.scan(d)
    return d


def tuned(d: Data, init: Bundle, name: str, a: argparse.Namespace, seed: int, out: Path) -> tuple[Bundle, int]:
    """What comes of one way, and its epochs."""
    task = tasks.find("classify")
    arch = train.initial_arch(init, a.resolution)
    if name == PROBE:
        made = probing.with_head(init, arch, d, task, seed)
        assert made is not None
        return made.bundle, 0
    recipe = recipes.RECIPES[OWN] if name == OWN else OTHERS[name]
    if a.processor_time:  # other processes' isn't counted
        recipe = dataclasses.replace(recipe, workers=0)
    made = train.train_bundle(
        d, task.arch(arch, task.config(d)), recipe, out, seed=seed, init=init, seconds=a.seconds,
        calibration=Calibration(uncalibrated=True), log=("csv",),
    )  # fmt: skip
    return made, int(made.card.recipe["epochs"])


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--init", required=True)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--per-class", type=int)
    parser.add_argument("--test-images", type=int, help="as many at most, the same for all")
    parser.add_argument("--folds", type=int, default=0)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--recipes", default=";".join([PROBE, OWN, *OTHERS]), help="some of them, with ; between")
    parser.add_argument("--processor-time", action="store_true")
    a = parser.parse_args()
    if a.processor_time:
        count_processor_time()
    init, path = starts.opened(a.init), a.out / "fine_tuning.csv"
    setting = (Path(a.source).stem, init.card.arch.title, a.resolution, a.per_class or "all", a.seconds)
    for seed in map(int, a.seeds.split(",")):
        for name in a.recipes.split(";"):
            key = tuple(map(str, (*setting, name, seed)))
            if any(tuple(r[c] for c in KEY) == key for r in read(path)):
                continue
            console.step(f"{name}, seed {seed}")
            d, since, out = opened(a, seed), time.monotonic(), a.out / "run"
            shutil.rmtree(out, ignore_errors=True)
            made, epochs = tuned(d, init, name, a, seed, out)
            took = time.monotonic() - since
            top1 = evaluate.score(TorchEngine(made, 2), d, "test").value
            values = (*key, f"{top1:.2f}", str(epochs), f"{took:.0f}")
            rows = [*read(path), dict(zip(COLUMNS, values, strict=True))]
            with files.atomic_file(path) as tmp, tmp.open("w", newline="") as f:
                writer = csv.DictWriter(f, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
    show(read(path), setting)


def show(rows: list[dict[str, str]], setting: tuple[object, ...]) -> None:
    own = [r for r in rows if tuple(r[c] for c in KEY[:5]) == tuple(map(str, setting))]
    t = console.table(" ".join(map(str, setting)), ["recipe", "top-1 %", "standard error", "seeds"], left=("recipe",))
    for name in dict.fromkeys(r["recipe"] for r in own):
        found = [float(r["test_top1_percent"]) for r in own if r["recipe"] == name]
        error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else 0.0
        t.add_row(name, f"{statistics.mean(found):.2f}", f"{error:.2f}", str(len(found)))
    console.note(t)


if __name__ == "__main__":
    main()
