"""How long a training will still take, though its epochs cost differently: frozen, small images first."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from mobilenets.training.learner import Learner

PROBE = 4  # a probe's batch is the training's divided by this: only ratios are wanted
ROUNDS = 3  # of probes in turn: a single one on a busy machine may take twice as long as it should
FORWARD = 1 / 3  # of a training step: forward, and backward at twice its cost


@dataclass(frozen=True)
class Pace:
    """The work in a run: `costs` of a step in each epoch, `steps` in an epoch, a `validation` after each; any unit."""

    costs: Sequence[float]
    steps: int
    validation: float

    def work(self, epoch: int, step: int) -> float:
        """Done when `epoch` epochs and `step` steps of the next are."""
        current = self.costs[epoch] * step if step else 0.0
        return sum(c * self.steps + self.validation for c in self.costs[:epoch]) + current

    def left(self, start: tuple[int, int], now: tuple[int, int], seconds: float) -> float:
        """Seconds still to go, if it took `seconds` from `start` to `now`, both (epochs, steps); inf at the start."""
        before, done = self.work(*start), self.work(*now)
        return seconds * (self.work(len(self.costs), 0) - done) / (done - before) if done > before else float("inf")


def time_epochs(learner: Learner, steps: int, batch: int, held_out: int) -> Pace:
    """The pace of `learner`'s recipe; steps of different kinds are tried, on noise, where it has any."""
    plan = [learner.epoch_plan(epoch) for epoch in range(learner.recipe.epochs)]
    full = learner.full
    sizes = {size for size, _ in plan} | {full}
    least, cheapest = min(sizes), 1.0
    if least < full:
        rounds = [[_probe(learner, size, max(2, batch // PROBE)) for size in (least, full)] for _ in range(ROUNDS)]
        least_seconds, full_seconds = map(min, zip(*rounds, strict=True))  # nothing makes a step quicker than it is
        cheapest = least_seconds / full_seconds

    smallest, largest = math.prod(least), math.prod(full)

    def cost(size: tuple[int, int]) -> float:  # seconds rise with the area
        share = (math.prod(size) - smallest) / max(largest - smallest, 1) if size < full else 1.0
        return share + (1 - share) * cheapest

    whole = [cost(size) * (FORWARD if frozen else 1.0) for size, frozen in plan]
    return Pace(whole, steps, held_out / batch * FORWARD)


def _probe(learner: Learner, size: tuple[int, int], batch: int) -> float:
    """Seconds of a training step on `batch` images of (height, width), the second of two; leaves no trace."""
    model = learner.model
    buffers = {k: b.clone() for k, b in model.named_buffers()}
    learnt = [p for p in model.parameters() if p.requires_grad]
    training, seconds = model.training, 0.0
    model.train()
    with torch.random.fork_rng(), learner.trainer.precision_plugin.forward_context():
        for _ in range(2):
            since = time.perf_counter()
            noise = torch.randint(256, (batch, 3, *size), dtype=torch.uint8, device=learner.device)
            total = torch.stack([value.float().square().sum() for value in learner(noise).values()]).sum()
            torch.autograd.grad(total, learnt, allow_unused=True)
            seconds = time.perf_counter() - since
    for k, b in model.named_buffers():
        b.copy_(buffers[k])
    model.train(training)
    return seconds
