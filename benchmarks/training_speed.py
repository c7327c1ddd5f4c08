"""Training steps as `mobilenets train` makes them against plain PyTorch, in turn in one run.

    python benchmarks/training_speed.py [--threads 2] [--rounds 5]

Plain: float32, contiguous, PyTorch's own layers. Ours: bf16 with channels last, and the fast route for strided
depthwise gradients. A step is forward, backward and SGD on random images already in memory; the column "bf16" leaves
out the fast route, to show its share. Prints images per second, the median of the rounds, and the ratios.
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
from mobilenets.model.module import DepthwiseConv2d

CASES = (("v1-cifar", 32, 128), ("v2-cifar", 32, 128), ("v1", 128, 32), ("v2", 128, 32))  # network, pixels, batch
FAST = DepthwiseConv2d.forward


class Steps:
    """One way to train a network."""

    def __init__(self, name: str, side: int, batch: int, ours: bool, route: bool) -> None:
        torch.manual_seed(0)
        self.net = model.build(zoo.arch(name, resolution=side, num_classes=10)).train()
        self.bf16, self.forward = ours, FAST if route else nn.Conv2d.forward
        self.x, self.y = torch.randn(batch, 3, side, side), torch.randint(0, 10, (batch,))
        if self.bf16:
            self.net.to(memory_format=torch.channels_last)
            self.x = self.x.contiguous(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.net.parameters(), 0.01, momentum=0.9)

    def rate(self) -> float:
        """Images per second of one step."""
        DepthwiseConv2d.forward = self.forward  # type: ignore[method-assign]
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = F.cross_entropy(self.net(self.x).float(), self.y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return len(self.x) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    columns = ["network", "batch", "plain", "bf16", "ours", "ours/plain", "ours/bf16"]
    table = console.table(f"training, images per second, {a.threads} threads", columns, left=("network",))
    table.columns[0].no_wrap = True
    for name, side, batch in CASES:
        ways = [Steps(name, side, batch, ours, route) for ours, route in ((False, False), (True, False), (True, True))]
        for way in ways:
            way.rate()
        rounds = [[way.rate() for way in ways] for _ in range(a.rounds)]
        plain, bf16, ours = (statistics.median(r) for r in zip(*rounds, strict=True))
        ratio, route = (statistics.median(r[2] / r[i] for r in rounds) for i in (0, 1))
        table.add_row(
            f"{name} 1-{side}", str(batch), f"{plain:.0f}", f"{bf16:.0f}", f"{ours:.0f}", f"{ratio:.2f}", f"{route:.2f}"
        )
    console.note(table)


if __name__ == "__main__":
    main()
