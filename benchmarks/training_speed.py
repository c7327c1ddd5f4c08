"""Training steps as `mobilenets train` makes them against plain PyTorch, in turn in one run.

    python benchmarks/training_speed.py [--threads 2] [--rounds 5] [--networks v1:1:128:32,v2:1:128:32]

Plain: float32, contiguous, PyTorch's own layers. "channels last" is float32 too: what training does on processors
without fast bf16. Where that is fast, "bf16" is bf16 with channels last, and "ours" has the fast route for strided
depthwise gradients besides. A step is forward, backward and SGD on random images already in memory. Prints images per
second of the process's own time, the median of the rounds, and the median of each round's ratio to plain. A network is
NAME:ALPHA:PIXELS:BATCH.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

from mobilenets import console
from mobilenets.arch import zoo
from mobilenets.model import module as model
from mobilenets.model.conv import Conv2d
from mobilenets.training.distributed import fast_bf16

NETWORKS = "v1-cifar:1:32:128,v2-cifar:1:32:128,v1:1:128:32,v2:1:128:32"
FAST = Conv2d.forward
WAYS = {  # bf16, channels last, the fast route
    "plain": (False, False, False),
    "channels last": (False, True, False),
    "bf16": (True, True, False),
    "ours": (True, True, True),
}


class Steps:
    """One way to train a network."""

    def __init__(self, name: str, alpha: float, side: int, batch: int, way: tuple[bool, bool, bool]) -> None:
        torch.manual_seed(0)
        self.bf16, last, route = way
        self.forward = FAST if route else nn.Conv2d.forward
        form = torch.channels_last if last else torch.contiguous_format
        self.net = model.build(zoo.arch(name, alpha, side, num_classes=10)).train().to(memory_format=form)
        self.x = torch.randn(batch, 3, side, side).contiguous(memory_format=form)
        self.y = torch.randint(0, 10, (batch,))
        self.optimizer = torch.optim.SGD(self.net.parameters(), 0.01, momentum=0.9)

    def rate(self, threads: int) -> float:
        """Images per second of one step."""
        Conv2d.forward = self.forward  # type: ignore[method-assign]
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = F.cross_entropy(self.net(self.x).float(), self.y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return threads * len(self.x) / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", default=NETWORKS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    ways = {name: way for name, way in WAYS.items() if fast_bf16() or not way[0]}
    columns = ["network", "batch", *ways, *(f"{name}/plain" for name in [*ways][1:])]
    table = console.table(f"training, images per second, {a.threads} threads", columns, left=("network",))
    table.columns[0].no_wrap = True
    for spec in a.networks.split(","):
        name, alpha, side, batch = spec.split(":")
        each = [Steps(name, float(alpha), int(side), int(batch), way) for way in ways.values()]
        for steps in each:
            steps.rate(a.threads)
        rounds = [[steps.rate(a.threads) for steps in each] for _ in range(a.rounds)]
        medians = [f"{statistics.median(rates):.0f}" for rates in zip(*rounds, strict=True)]
        ratios = [f"{statistics.median(r[i] / r[0] for r in rounds):.2f}" for i in range(1, len(ways))]
        table.add_row(f"{name} {alpha}-{side}", batch, *medians, *ratios)
    console.note(table)


if __name__ == "__main__":
    main()
