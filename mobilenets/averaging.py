"""Weight averaging that keeps BatchNorm right.

Averaged weights give smaller activations than those they are averaged over, while weights still move fast; with
averaged statistics each BatchNorm then shrinks them further, until the whole network answers the same for any image. So
the statistics are measured anew, with the averaged weights, on the epoch's last training images.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import WeightAveraging
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mobilenets.learner import Learner


class Averaging(WeightAveraging):
    """An exponential moving average of the weights over `horizon` steps, which is what is validated and kept."""

    def __init__(self, horizon: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(1 - 1 / max(1.0, horizon)))  # type: ignore[no-untyped-call]

    def on_validation_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        super().on_validation_epoch_start(trainer, module)  # the module now has the averaged weights
        assert isinstance(module, Learner)
        if module.recent and not module.frozen:
            with trainer.precision_plugin.forward_context():
                measure_statistics(module, trainer.world_size)


@torch.no_grad()
def measure_statistics(learner: Learner, processes: int = 1) -> None:
    """Set every BatchNorm's statistics to those of `learner.recent`, batches as large as they will be predicted."""
    norms = [m for m in learner.model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta: list[Any] = [m.momentum for m in norms]
    counts = [m.num_batches_tracked.clone() for m in norms if m.num_batches_tracked is not None]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # the plain mean over batches
    training = learner.model.training
    learner.model.train()
    for images in learner.recent:
        learner(images)
    learner.model.train(training)
    for m, momentum, count in zip(norms, momenta, counts, strict=True):
        m.momentum = momentum
        if m.num_batches_tracked is not None:
            m.num_batches_tracked.copy_(count)
        for statistic in (m.running_mean, m.running_var):
            if processes > 1 and statistic is not None:
                dist.all_reduce(statistic)
                statistic /= processes
