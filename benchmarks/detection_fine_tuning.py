"""A detector fine-tuned by `train` and by the recipe of torchvision's references/detection: same weights, same time.

    python benchmarks/detection_fine_tuning.py DATA START --minutes 20 --out CSV [--lr .0005] [--who ours theirs]

DATA: photos with boxes (see docs/data.md). START: a detector's bundle, as `mobilenets import` makes it. Theirs is
references/detection/train.py as its README has it for SSD: SGD of .002 a batch of 4, momentum .9, decay 5e-4, a
first epoch of warming up, a tenth of the rate after 2/3 and 11/12 of the epochs, "ssd" augmentation, on the network
called as torchvision's are; as many epochs as fit the time. Both are scored on val after the last epoch (ours after
its best, which it chose on val), the logits of known labels kept at the start.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rows
import torch
from torch import Tensor
from torchvision.transforms import v2

import mobilenets
from mobilenets import tasks
from mobilenets.data.dataset import Data
from mobilenets.deploy import evaluate
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card
from mobilenets.tasks.detect.module import OneStage
from mobilenets.tasks.detect.scoring import DetectionScores
from mobilenets.tasks.detect.transforms import tensors
from mobilenets.training.trainer import network

BATCH, RATE, DECAY = 4, 0.002, 5e-4
WARM = 1 / 1000  # of the rate, where the first epoch begins


def ours(source: str, start: Path, minutes: float, lr: float) -> Bundle:
    with tempfile.TemporaryDirectory() as folder:
        how = mobilenets.Overrides(lr=lr, norms="kept", workers=0)
        made = mobilenets.train(
            source, task="detect", init=start, overrides=how, time=60 * minutes, out=Path(folder) / "run"
        )
    assert made is not None
    return made


def theirs(data: Data, start: Bundle, minutes: float) -> Bundle:
    """The network with its own losses, called as torchvision's are, in the loop of references/detection/engine.py."""
    model = begun(data, start)
    split, moves = data.split("train"), augmentation()
    settings = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=DECAY)
    torch.manual_seed(0)
    began, epochs, epoch = time.monotonic(), 0.0, 0
    while epoch < (epochs or 1):
        model.train()
        order = torch.split(torch.randperm(len(split)), BATCH)
        for step, some in enumerate(order):
            share = 0.1 ** sum(epoch >= epochs * after for after in (2 / 3, 11 / 12)) if epochs else 1.0
            warm = WARM + (1 - WARM) * step / len(order) if epoch == 0 else 1.0
            settings.param_groups[0]["lr"] = RATE * share * warm
            losses = model(*zip(*(moved(split, i, moves) for i in some.tolist()), strict=True))
            settings.zero_grad()
            sum(losses.values()).backward()
            settings.step()
        epoch += 1
        if epoch == 1:  # what one takes says how many fit
            epochs = max(1, int(60 * minutes / (time.monotonic() - began)))
    return model.eval().bundle()


def begun(data: Data, start: Bundle) -> OneStage:
    """The network for this data as `train` begins with it."""
    task = tasks.with_options(tasks.find_trained("detect"), {}, start)
    arch = network(None, None, None, start, task, task.config(data), data)
    config = tasks.config_of(task, data, arch)
    card = Card(arch, start.card.preprocess, task.head(arch, config), "detect", config, data=data.describe())
    model = OneStage(card)
    known = {k: torch.from_numpy(v) for k, v in task.transfer(start, config).items()}
    model.load_state_dict(known, strict=False)
    return model


def augmentation() -> v2.Compose:
    """references/detection/presets.py, "ssd"."""
    return v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill=(123, 117, 104)),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.SanitizeBoundingBoxes(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def moved(split: Any, i: int, moves: v2.Compose) -> tuple[Tensor, dict[str, Tensor]]:
    image, boxes = split.rgb(i), split.targets[i]
    known = {k: v for k, v in tensors(boxes, (image.height, image.width)).items() if k in ("boxes", "labels")}
    image, known = moves(image, known)
    return image, {"boxes": known["boxes"], "labels": known["labels"] + 1}


def row(who: str, data: Data, made: Bundle, minutes: float) -> rows.Row:
    scores = evaluate.score(TorchEngine(made, torch.get_num_threads()), data, "val")
    assert isinstance(scores, DetectionScores)
    numbers = {k: f"{getattr(scores, k):.2f}" for k in ("ap", "ap50", "ap75")}
    return {
        "data": Path(data.source).name,
        "who": who,
        "minutes": f"{minutes:g}",
        "images": str(scores.count),
        **numbers,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("start", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--who", nargs="+", default=["ours", "theirs"], choices=["ours", "theirs"])
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args(arguments)
    start = Bundle.load(a.start)
    data = tasks.find("detect").open(a.data, None, 0, None)
    np.random.seed(0)
    for who in a.who:
        made = ours(a.data, a.start, a.minutes, a.lr) if who == "ours" else theirs(data, start, a.minutes)
        rows.keep(a.out, row(who, data, made, a.minutes))


if __name__ == "__main__":
    main()
