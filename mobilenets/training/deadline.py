"""Training within a given time: as many epochs as fit into it, and a stop where they take longer than it seemed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from mobilenets import files
from mobilenets.training import loader
from mobilenets.training.learner import Learner
from mobilenets.training.loop import Setup

PLAN = "plan.json"  # in a run's folder: how many epochs were thought to fit, so that a resumed run has as many
TRIED = 3  # steps, of which the quickest counts: nothing makes a step quicker than it is
IMAGES = 16  # whose augmentation is timed
SPARE = 0.9  # of the time is planned for; checkpoints and the machine's other work take some


def epochs_within(setup: Setup, held_out: int, seconds: float, processes: int) -> int:
    """How many epochs of a setup's recipe fit into so many seconds, validation on `held_out` images after each; or 1.

    Steps are tried on training images; they leave no trace.
    """
    learner, recipe, images = setup.learner, setup.learner.recipe, setup.images
    batch = loader.at_once(recipe, len(images), processes)
    random = torch.get_rng_state()
    images.__getitems__([(0, 0)])  # the first makes ready
    since = time.perf_counter()
    shown = images.__getitems__([(0, i) for i in range(min(IMAGES, len(images)))])[0]
    others = loader.processes(recipe, images, processes)
    reading = (time.perf_counter() - since) / len(shown) / max(1, others)
    pixels = shown.repeat(-(-batch // len(shown)), 1, 1, 1)[:batch]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner.to(device)
    pixels = pixels.to(device)
    state = {k: v.clone() for k, v in learner.model.state_dict().items()}
    training, step = learner.model.training, float("inf")
    learner.model.train()
    learner.keep()
    with torch.autocast(device.type, torch.bfloat16, enabled=setup.precision != "32-true"):
        for _ in range(TRIED):
            since = time.perf_counter()
            total = torch.stack([value.float().square().sum() for value in learner(pixels).values()]).sum()
            learnt = [p for p in learner.model.parameters() if p.requires_grad]
            torch.autograd.grad(total, learnt, allow_unused=True)
            if device.type == "cuda":
                torch.cuda.synchronize()
            step = min(step, time.perf_counter() - since)
    learner.model.load_state_dict(state)
    torch.set_rng_state(random)
    learner.to("cpu")
    learner.model.train(training)
    beside = device.type == "cuda" and others  # other processors prepare images while this one computes
    an_image = max(step / batch, reading) if beside else step / batch + reading
    epoch = len(images) * an_image / processes + held_out * (step / batch / 3) / processes
    return max(1, min(recipe.epochs, int(SPARE * seconds / epoch)))


def planned(path: Path, epochs: int) -> int:
    """The epochs that a run's plan has; those given where it has none yet, which it has from then on."""
    if not path.exists():
        files.write_json(path, {"epochs": epochs})
    return int(files.read_json(path, ("epochs",), "a plan of training")["epochs"])


class Deadline(pl.Callback):
    """Stops a training that has gone on for so many seconds; what it has learnt by then is validated and kept.

    Where steps take longer than it seemed, the learning rate follows the time instead, and is near 0 when it is over.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def gone(self) -> float:
        """The share of the time that is over."""
        return (time.monotonic() - self.since) / self.seconds

    def on_train_start(self, _trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Learner)
        self.since = time.monotonic()
        module.gone = self.gone

    def on_train_batch_end(self, trainer: pl.Trainer, _module: pl.LightningModule, *_: Any) -> None:
        over = self.gone() > 1
        trainer.should_stop = bool(trainer.strategy.broadcast(over)) if trainer.world_size > 1 else over
