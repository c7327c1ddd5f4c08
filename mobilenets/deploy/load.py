"""Whether a machine is busy with something else while it measures: a fixed loop timed in turn, and the run queue.

A neighbour on the same core, or on the other half of it, makes a network's calls half as long again. The loop's time
beside its best one tells by how much, whatever the neighbour is; the best is kept for the calls to come. No torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

LOOP_SECONDS = 0.005
OFF = 1.1  # times the loop's best: what was measured beside more isn't kept
PATIENCE_SECONDS = 10.0  # to wait for a quiet moment, all waits of a measurement together
PAUSE_SECONDS = 0.25
FORGET = 1.02  # by how much the best may worsen from one measurement to the next: processors clock higher when cool


class Moment(NamedTuple):
    """The loop's time as a multiple of its best, and whether something else takes from what is measured."""

    reference: float
    busy: bool


def average() -> float:
    """The system's load average of the last minute; 0 where it has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def waiting() -> int:
    """How many others run or want to, right now; 0 where the system doesn't say."""
    try:
        return max(0, int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[0]) - 1)
    except (OSError, ValueError, IndexError):
        return 0


def loop() -> float:
    """Seconds that a fixed computation took, on one thread: the mean of as many as fill LOOP_SECONDS, none left out."""
    x = np.linspace(0.0, 1.0, 8192, dtype=np.float32)
    start, count = time.perf_counter(), 0
    while not count or time.perf_counter() - start < LOOP_SECONDS:
        for _ in range(20):
            np.multiply(x, 0.5, out=x)
            np.add(x, 0.25, out=x)
        count += 1
    return (time.perf_counter() - start) / count


class Watch:
    """Looks at the machine between measurements, and waits for a quiet moment while it has patience.

    `spare`: processors that the measurements leave to others. `best`: the loop's best time before, if there was one.
    """

    def __init__(self, spare: int, best: float | None = None) -> None:
        self.spare = spare
        self.best = min(best * FORGET if best else float("inf"), *(loop() for _ in range(3)))
        self.patience = PATIENCE_SECONDS

    def look(self) -> Moment:
        before, took, after = waiting(), loop(), waiting()
        self.best = min(self.best, took)
        return Moment(took / self.best, took > OFF * self.best or min(before, after) > self.spare)

    def wait(self, told: Callable[[], None]) -> Moment:
        """A quiet moment, or a busy one when patience is at its end; `told` is called before each pause."""
        moment = self.look()
        while moment.busy and self.patience > 0:
            told()
            time.sleep(PAUSE_SECONDS)
            self.patience -= PAUSE_SECONDS
            moment = self.look()
        return moment
