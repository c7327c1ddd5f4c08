"""Which range of each activation its 256 values cover, measured on images, in memory that doesn't grow with them.

- `minmax`: all that was seen;
- `percentile`: all but a ten-thousandth of the values at either end;
- `mse`: the range that rounds the values seen with the least squared error, those cut off at its ends included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mobilenets.arch.operations import Op
from mobilenets.compression.scheme import Calibration
from mobilenets.errors import UserError
from mobilenets.model.encodings import affine
from mobilenets.model.images import Pixels, Preprocess
from mobilenets.model.reference import FoldedNetwork

Watch = Callable[[Op, nn.Module, tuple[Tensor, ...], Tensor], None]
BATCH = 8  # images; results don't depend on it
BINS = 4096  # on either side of zero: a step of int8 has at least 16
SAMPLE = 2**16
CUT = 1e-4  # what `percentile` cuts off at either end


class MinMaxObserver:
    """The smallest and the largest value seen of an activation, zero among them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.low = self.high = 0.0

    def add(self, x: Tensor) -> None:
        """See the values of a batch, [N, ...]; a `UserError` where one isn't finite."""
        low, high = (float(v) for v in x.aminmax())
        if not math.isfinite(high - low):
            raise UserError(f"{self.name} gives values that aren't finite; the network's weights are damaged")
        self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self) -> tuple[float, float]:
        return self.low, self.high


class Histogram(MinMaxObserver):
    """How often values fell into bins of one width, [0, width) among them; it doubles when a value lies beyond them.

    Of an image's large maps, evenly spaced values are counted, SAMPLE to twice as many.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.width = 2.0**-40
        self.counts = np.zeros(2 * BINS, np.int64)

    def add(self, x: Tensor) -> None:
        super().add(x)
        while self.width * BINS < max(-self.low, self.high):
            pairs = self.counts.reshape(BINS, 2).sum(1)
            self.counts = np.pad(pairs, BINS // 2)
            self.width *= 2
        values, end = x.flatten(1), self.width * BINS
        sample = values[:, :: values.shape[1] // SAMPLE | 1]  # an odd step isn't in line with the rows
        self.counts += torch.histc(sample, 2 * BINS, -end, end).numpy().astype(np.int64)

    @property
    def middles(self) -> npt.NDArray[np.float64]:
        """The value that stands for each bin."""
        return ((np.arange(2 * BINS) - BINS + 0.5) * self.width).clip(self.low, self.high)


class PercentileObserver(Histogram):
    def range(self) -> tuple[float, float]:
        below = np.cumsum(self.counts) / self.counts.sum()
        first, last = np.searchsorted(below, (CUT, 1 - CUT))
        edge = (np.arange(2 * BINS + 1) - BINS) * self.width
        return max(self.low, min(edge[first], 0.0)), min(self.high, max(edge[last + 1], 0.0))


class LeastErrorObserver(Histogram):
    def range(self) -> tuple[float, float]:
        seen = self.counts > 0
        values, counts = self.middles[seen], self.counts[seen]

        def error(low: float, high: float) -> float:
            step, zero = affine(low, high)
            levels = np.clip(np.rint(values / step) + zero, 0, 255)
            return float(counts @ ((levels - zero) * step - values) ** 2)

        low, high = self.low, self.high
        parts = np.geomspace(0.05, 1, 60)
        for _ in range(2 if self.low else 1):  # each end in turn, given the other
            high = min((self.high * p for p in parts), key=lambda h: error(low, h))
            if self.low:
                low = min((self.low * p for p in parts), key=lambda v: error(v, high))
        return low, high


OBSERVERS: dict[Calibration, type[MinMaxObserver]] = {
    "minmax": MinMaxObserver,
    "percentile": PercentileObserver,
    "mse": LeastErrorObserver,
}


def batches(preprocess: Preprocess, images: Pixels, size: int = BATCH) -> Iterator[Tensor]:
    """Images, uint8 [N, H, W, 3], as the network takes them: [size, 3, H, W] at a time."""
    for i in range(0, len(images), size):
        yield torch.from_numpy(preprocess.normalize(images[i : i + size]))


def watch(network: FoldedNetwork, inputs: Iterator[Tensor], see: Watch) -> None:
    """Run a network and show `see` every operation: its module, inputs and output.

    Of what runs for each box, those of the boxes that there are: an image has as many rows as it may have boxes.
    """
    graph = network.graph
    there: dict[str, Tensor] = {}  # by the crop's name, which of its rows are of a box

    def show(op: Op, module: nn.Module, x: tuple[Tensor, ...], y: Tensor) -> None:
        if op.kind == "crop":
            low, high = x[0][..., :2], x[0][..., 2:4]
            there[op.name] = (high > low).all(-1).flatten()
            y = y[there[op.name]]
        elif op.name in graph.crops:
            rows = there[graph.crops[op.name].name]
            x, y = tuple(v[rows] for v in x), y[rows]
        if len(y):
            see(op, module, x, y)

    handles = [
        module.register_forward_hook(lambda m, x, y, op=op: show(op, m, x, y))
        for op, module in zip(graph.ops, network.layers, strict=True)
    ]
    try:
        with torch.inference_mode():
            for x in inputs:
                network(x)
    finally:
        for handle in handles:
            handle.remove()


def calibrate(
    network: FoldedNetwork, preprocess: Preprocess, images: Pixels, method: Calibration = "minmax"
) -> dict[str, tuple[float, float]]:
    """The range of each output that int8 rounds (`graph.activations`) over `images`, uint8 [N, H, W, 3]; zero is in it.

    Raises `UserError` where an output isn't a number.
    """
    seen = {name: OBSERVERS[method](name) for name in network.graph.activations[1:]}

    def see(op: Op, _module: nn.Module, _inputs: tuple[Tensor, ...], y: Tensor) -> None:
        if op.name in seen:
            seen[op.name].add(y)

    watch(network, batches(preprocess, images), see)
    return {name: observer.range() for name, observer in seen.items()}
