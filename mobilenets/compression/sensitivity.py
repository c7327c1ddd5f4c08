"""Where an int8 network loses what it loses: each operation's error and ranges, the worst first.

Errors are signal-to-quantization-noise ratios (SQNR): 10 log10 of the float values' sum of squares over that of their
differences, in dB; 6 dB are a bit. What `arrives` is the int8 network's value at that place, with all the error from
before; `alone` is the error that the operation makes by itself, of float inputs. It names the culprits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mobilenets import console, tasks
from mobilenets.arch.operations import Op
from mobilenets.compression.calibrate import batches
from mobilenets.console import share
from mobilenets.model.bundle import Bundle
from mobilenets.model.encodings import Array, Folded, unpack
from mobilenets.model.images import Pixels
from mobilenets.model.reference import FoldedNetwork, SimulatedInt8

if TYPE_CHECKING:
    from rich.console import RenderableType

Answers = dict[str, npt.NDArray[np.float32]]  # by the card's names
IMAGES = 128  # that a report looks at
SHOWN = 12  # operations in a terminal


def decibels(signal: float, noise: float) -> float | None:
    """10 log10 of signal over noise, both sums of squares; None where there is no noise, or nothing at all."""
    return 10 * math.log10(max(signal, 1e-300) / noise) if noise else None


@dataclass(frozen=True)
class Peaks:
    """The largest absolute weights of a layer's output channels: of the least channel, the median, the largest."""

    least: float
    median: float
    largest: float

    @property
    def ratio(self) -> float:
        """Largest over median: with one scale for the layer, the median channel has so many times fewer steps."""
        return self.largest / max(self.median, 1e-12)


@dataclass(frozen=True)
class Line:
    """One operation; SQNRs in dB, None where nothing differs. `order` counts from 1.

    `weight_db` and `peaks` are of its folded weights. `seen` is what its output spans in the float network, `covered`
    what its 256 values do; of the values that come, `clipped` percent are cut off. Without `covered`, it is in float.
    """

    order: int
    name: str
    kind: str
    arriving_db: float | None
    alone_db: float | None
    seen: tuple[float, float]
    covered: tuple[float, float] | None
    clipped: float
    weight_db: float | None = None
    peaks: Peaks | None = None


@dataclass(frozen=True)
class LayerReport(console.Notebook):
    """Every operation of an int8 network in order, on `images` images of `data`.

    `agreement`: percent of the images whose answer is float's, as the task compares answers.
    """

    title: str
    data: str
    images: int
    agreement: float
    lines: tuple[Line, ...]

    @property
    def worst(self) -> tuple[Line, ...]:
        """All operations, those that make the largest error alone first."""
        return tuple(sorted(self.lines, key=lambda o: math.inf if o.alone_db is None else o.alone_db))

    def to_json(self) -> dict[str, Any]:
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "lines"}
        return {**own, "operations": [dataclasses.asdict(o) for o in self.worst]}

    def __rich__(self) -> RenderableType:
        columns = ["operation", "arrives dB", "alone dB", "weights dB", "max/median", "range", "clipped %"]
        t = console.table(f"where {self.title} int8 loses", columns, left=("operation",))
        rows = [
            (o.name, db(o.arriving_db), db(o.alone_db), held(o), ratio(o), span(o.covered), clipped(o))
            for o in self.worst[:SHOWN]
        ]
        for column, cells in zip(t.columns, zip(columns, *rows, strict=True), strict=True):
            column.min_width = max(map(len, cells))  # their blanks are no place to cut them
        for row in rows:
            t.add_row(*row)
        which = f"the {SHOWN} worst of {len(self.lines)}" if len(self.lines) > SHOWN else "worst first"
        t.caption = (
            f"{which}, by what each loses alone; max/median: of the channels' largest weights\n"
            f"{self.agreement:.1f}% of {self.images} images{f' of {self.data}' if self.data else ''} get float's answer"
        )
        return t


@dataclass
class _Sums:
    """What is added up of one operation's output, batch by batch."""

    signal: float = 0.0
    arriving: float = 0.0
    alone: float = 0.0
    low: float = 0.0
    high: float = 0.0
    beyond: int = 0
    count: int = 0
    ends: tuple[float, float] = (-math.inf, math.inf)

    def add(self, true: Tensor, arriving: Tensor, alone: Tensor, coming: Tensor) -> None:
        """Float's values, the int8 network's, the operation's alone; and what comes before it is rounded."""
        self.signal += _squares(true)
        self.arriving += _squares(arriving - true)
        self.alone += _squares(alone - true)
        low, high = (float(v) for v in true.aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.beyond += int(((coming < self.ends[0]) | (coming > self.ends[1])).sum())
        self.count += coming.numel()


def _squares(x: Tensor) -> float:
    return float(x.double().square().sum())


def layer_errors(int8: Bundle, folded: Folded, images: Pixels, data: str = "") -> LayerReport:
    """How far each operation of an int8 bundle is from the float network it was rounded from, `folded`.

    `images`, uint8 [N, H, W, 3], go through both side by side, a few at a time: memory doesn't grow with N.
    """
    card, graph, task = int8.card, int8.card.graph, tasks.of(int8.card)
    rough, exact = SimulatedInt8(int8).eval(), FoldedNetwork(card.arch, graph, folded, int8.tensors).eval()
    rounded = graph.activations[1:]
    covered = {name: _covered(*rough.affine[name]) for name in rounded if name not in card.float_ops}
    sums = {name: _Sums() for name in rounded}
    for name, (low, high) in covered.items():
        half = rough.affine[name][0] / 2
        sums[name].ends = low - half, high + half
    same = 0.0
    with torch.inference_mode():
        for x in batches(card.preprocess, images):
            both = _walk(exact, rough, card.float_ops, x, lambda name, *values: sums[name].add(*values))
            same += task.parity(*both, "int8").agreement * len(x)
    weights = unpack(card, int8.tensors)
    lines = []
    for i, name in enumerate(rounded, 1):
        op, s = graph.op(name), sums[name]
        line = Line(
            i, name, op.kind, decibels(s.signal, s.arriving), decibels(s.signal, s.alone), (s.low, s.high),
            covered.get(name), 100 * s.beyond / max(s.count, 1),
        )  # fmt: skip
        lines.append(_with_weights(line, folded[name][0], weights[name][0]) if op.is_layer else line)
    return LayerReport(card.arch.title, data, len(images), same / max(len(images), 1), tuple(lines))


def _walk(
    exact: FoldedNetwork, rough: SimulatedInt8, float_ops: Collection[str], x: Tensor, see: Callable[..., None]
) -> tuple[Answers, Answers]:
    """Run both networks on images [N, 3, H, W] side by side, and give their answers.

    `see` gets each operation that int8 rounds: its name, and what `_Sums.add` takes.
    """
    graph, graph_of_int8 = exact.graph, rough.graph
    seen, unread = {*graph.activations}, {op.name: n for op, n in zip(graph.ops, graph.last_reads, strict=True)}
    true, come = {graph.source: x}, {graph.source: x}

    def made(op: Op, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """An int8 operation's output before it is rounded, and after."""
        y = rough.of(op)(*inputs)
        return y, rough.round(y, graph_of_int8.activation_of(op.name)) if op.name in graph_of_int8.integers else y

    for op, unread_of_int8 in zip(graph_of_int8.ops, graph_of_int8.last_reads, strict=True):
        coming, come[op.name] = made(op, [come[name] for name in op.inputs])
        if op.name in unread:  # it isn't between whole numbers and floats
            same = graph.op(op.name)
            y = true[op.name] = exact.compute(same, [true[name] for name in same.inputs])
            if op.kind == "propose":  # what is said of other boxes couldn't be compared
                come[op.name] = y
            if op.name in seen:
                # Of float's values, those are rounded that the operation itself rounds, not what makes them.
                read = [
                    rough.round(true[name], name) if name in float_ops and name != own else true[name]
                    for name, own in zip(same.inputs, op.inputs, strict=True)
                ]
                see(op.name, y, come[op.name], made(op, read)[1], coming)
            for name in unread[op.name]:
                del true[name]
        for name in unread_of_int8:
            del come[name]
    return _answers(exact, true), _answers(rough, come)


def _answers(network: FoldedNetwork, values: Mapping[str, Tensor]) -> Answers:
    """What a network gives, among its values."""
    return {o.name: values[o.op].numpy() for o in network.graph.outputs}


def _covered(scale: float, zero: int) -> tuple[float, float]:
    return -zero * scale, (255 - zero) * scale


def _with_weights(line: Line, true: Array, int8: Array) -> Line:
    of_channels = np.abs(true).reshape(len(true), -1).max(1)
    least, median, largest = (float(f(of_channels)) for f in (np.min, np.median, np.max))
    exact = true.astype(np.float64)
    noise = decibels(float((exact**2).sum()), float(((int8 - exact) ** 2).sum()))
    return dataclasses.replace(line, weight_db=noise, peaks=Peaks(least, median, largest))


def db(v: float | None) -> str:
    return "exact" if v is None else f"{v:.1f}"


def span(ends: tuple[float, float] | None) -> str:
    return f"{ends[0]:.3g} to {ends[1]:.3g}" if ends else "float"


def held(o: Line) -> str:
    return db(o.weight_db) if o.peaks else ""


def peaks(o: Line) -> str:
    return f"{o.peaks.least:.2g} {o.peaks.median:.2g} {o.peaks.largest:.2g}" if o.peaks else ""


def ratio(o: Line) -> str:
    return f"{o.peaks.ratio:.1f}" if o.peaks else ""


def clipped(o: Line) -> str:
    return share(o.clipped) if o.covered else ""
