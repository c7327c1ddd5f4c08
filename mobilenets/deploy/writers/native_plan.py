"""How the engine of `native/` runs a network: which operations run together, in strips of rows, and where maps lie.

Pure arithmetic on shapes. Steps are the engine's operations in the order they are computed. A *group* of them is run
strip by strip: what is between two of its steps is a *window*, the few rows that the next one needs, which stays in a
processor's first caches; what is between groups is a whole map in the *arena*, whose parts are used again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

UNIT = 64  # bytes that places are counted in
SLACK = 64  # bytes behind a map that kernels may read
LANES = 8  # channels that a pixel is padded to a multiple of
NONE = 0xFFFFFFFF
U8, F32 = 0, 1
ARENA, WINDOW, IMAGE = 0, 1, 2
ROWS, CHANNELS = 0, 1
KINDS = (
    "pixels", "pointwise", "conv", "depthwise", "add", "mul", "lut", "act", "pool", "quantize", "dequantize", "copy",
    "flatten", "softmax", "l2norm", "sigmoid", "spread", "upsample", "boxes", "suppress", "part", "count",
    "maxpool", "avgpool", "select",
)  # fmt: skip
SPATIAL = ("pointwise", "conv", "depthwise")  # which read other rows than they write
STREAMED = (*SPATIAL, "add", "mul", "lut", "act", "quantize", "dequantize")  # row by row, of what came before

# Chosen by measuring eight networks on a core with AMX and 2 MB of L2, where a call of a kernel costs about a
# microsecond: strips four times as large as they were take V1 .25, V1, V2 and V3-Large 6 to 10% less time, V3-Small and
# V4-Conv-S as long. On a core with AVX2 and 512 kB of L2 fused and unfused maps took as long, to within the noise, and
# fused ones half to two thirds of the memory; V1 in float, whose strips are four times as large, was some 5% quicker
# unfused, V2 about as quick.
STRIP_PIXELS = 1024  # of a group's strips, where windows aren't too large for it
LEAST_PIXELS = 112  # with fewer in a strip, reading weights takes longer than is saved
WINDOW_BYTES = {U8: 384 << 10, F32: 48 << 10}  # of all windows of a group
SMALL_BYTES = 128 << 10  # a map that stays near without being cut into strips
LARGE_BYTES = 384 << 10  # one that isn't worth writing to memory even between two blocks
STRIP_BYTES = 128 << 10  # of a map that a 1x1 layer by itself reads for one strip
# Threads share rows, so that each reads what it wrote itself but for a row or two. Of maps of no more pixels they share
# channels: rows can't be dealt out evenly, and weights, which each thread would read whole, are more than the map. With
# AMX and channels up to 32 x 32, V1 1.0 on two threads took 1.16 times as long, V2 1.0 and V3-Large 1.2 times.
FEW_PIXELS = 64


@dataclass
class Value:
    """A map: what it is, and from `left` on where the plan puts it. `pad`: the byte its padding is filled with."""

    name: str
    type: int
    channels: int
    height: int
    width: int
    pad: int = 0
    pitch: int = 0
    left: int = 0
    right: int = 0
    place: int = ARENA
    at: int = 0
    rows: int = 0

    def __post_init__(self) -> None:
        self.pitch = self.pitch or -(-self.channels // LANES) * LANES
        self.rows = self.rows or self.height

    @property
    def pixel_bytes(self) -> int:
        return self.pitch * (4 if self.type == F32 else 1)

    @property
    def row_bytes(self) -> int:
        return (self.left + self.width + self.right) * self.pixel_bytes

    @property
    def units(self) -> int:
        """Of memory that it takes, the rows that are held."""
        return -(-(self.rows * self.row_bytes + SLACK) // UNIT)


@dataclass
class Step:
    """An operation of the engine: `kind` in KINDS, values by name, and the numbers that `native.py` writes with it."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    out: str
    kernels: tuple[int, int] = (1, 1)
    stride: int = 1
    top: int = 0
    left: int = 0
    numbers: dict[str, Any] = field(default_factory=dict)

    def rows_read(self, rows: int) -> int:
        """Rows of its input that so many of its output need."""
        return (rows - 1) * self.stride + self.kernels[0] if self.kind in SPATIAL else rows


@dataclass
class Group:
    first: int
    count: int
    strip: int
    split: int = ROWS


@dataclass
class Plan:
    groups: list[Group]
    arena_units: int
    window_units: int


def around(steps: Sequence[Step], values: Mapping[str, Value]) -> None:
    """Give maps the columns of padding that their readers see."""
    for s in steps:
        if s.kind in ("conv", "depthwise"):
            x, width = values[s.inputs[0]], values[s.out].width
            x.left = max(x.left, s.left)
            x.right = max(x.right, (width - 1) * s.stride + s.kernels[1] - s.left - x.width)


def plan(steps: Sequence[Step], values: Mapping[str, Value], outputs: Sequence[str]) -> Plan:
    """Groups, and a place for every value: `values` are changed. The image has its place already."""
    around(steps, values)
    readers: dict[str, list[int]] = {name: [] for name in values}
    for i, s in enumerate(steps):
        for name in s.inputs:
            readers[name].append(i)
    groups = _groups(steps, values, readers, outputs)
    window_units = 0
    for g in groups:
        window_units = max(window_units, windows(g, steps, values, readers))
    return Plan(groups, arena(groups, steps, values, readers, outputs), window_units)


def _groups(
    steps: Sequence[Step], values: Mapping[str, Value], readers: Mapping[str, list[int]], outputs: Sequence[str]
) -> list[Group]:
    groups: list[Group] = []
    i = 0
    while i < len(steps):
        end = i + 1
        while end < len(steps) and _joins(steps[i:end], steps[end], values, readers, outputs):
            end += 1
        groups.append(Group(i, end - i, 1))
        i = end
    for g in groups:
        part = steps[g.first : g.first + g.count]
        out = values[part[-1].out]
        g.strip = _strip(part, values)
        if g.count == 1 and part[0].kind in (*SPATIAL, "pool") and out.height * out.width <= FEW_PIXELS:
            g.split, g.strip = CHANNELS, out.height
    return groups


def _joins(
    group: Sequence[Step],
    step: Step,
    values: Mapping[str, Value],
    readers: Mapping[str, list[int]],
    outputs: Sequence[str],
) -> bool:
    """Whether a step goes on strip by strip where a group ends."""
    last = group[-1]
    between = values[last.out]
    alone = len(readers[last.out]) == 1 and last.out not in outputs
    if step.kind not in STREAMED or last.kind not in (*STREAMED, "pixels") or not alone:
        return False
    if last.out not in step.inputs or (step.kind == "mul" and step.inputs[0] != last.out):
        return False
    size = between.height * between.width * between.pixel_bytes
    joined, out = [*group, step], values[step.out]
    least = min(out.height, math.ceil(LEAST_PIXELS / out.width))
    if _window_units(joined, least, values) * UNIT > WINDOW_BYTES[out.type] and last.kind != "pixels":
        return False
    ended = last.kind == "pointwise" and any(s.kind == "depthwise" for s in group)
    if step.kind in SPATIAL and ended:  # the next block begins
        return size >= LARGE_BYTES
    return size >= SMALL_BYTES or last.kind == "pixels"


def _needs(part: Sequence[Step], strip: int, values: Mapping[str, Value]) -> list[int]:
    """Rows that each step of a group computes for a strip, at most: what its reader needs at once."""
    reader = {name: i for i, s in enumerate(part) for name in s.inputs}
    need = [0] * len(part)
    need[-1] = min(strip, values[part[-1].out].height)
    for i in reversed(range(len(part) - 1)):
        r = reader[part[i].out]
        need[i] = min(part[r].rows_read(need[r]), values[part[i].out].height)
    return need


def _window_units(part: Sequence[Step], strip: int, values: Mapping[str, Value]) -> int:
    rows = _needs(part, strip, values)
    return sum(-(-(n * values[s.out].row_bytes + SLACK) // UNIT) for n, s in zip(rows[:-1], part[:-1], strict=True))


def _strip(part: Sequence[Step], values: Mapping[str, Value]) -> int:
    """Rows of a group's output to compute at a time."""
    out = values[part[-1].out]
    if len(part) == 1:
        if part[0].kind != "pointwise":
            return out.height
        row = values[part[0].inputs[0]].row_bytes * part[0].stride
        return min(out.height, max(math.ceil(LEAST_PIXELS / out.width), STRIP_BYTES // row))
    strip = min(out.height, math.ceil(STRIP_PIXELS / out.width))
    while strip > 1 and _window_units(part, strip, values) * UNIT > WINDOW_BYTES[out.type]:
        strip -= 1
    return math.ceil(out.height / math.ceil(out.height / strip))  # the last strip as high as the others


def windows(g: Group, steps: Sequence[Step], values: Mapping[str, Value], readers: Mapping[str, list[int]]) -> int:
    """Places for what is between a group's steps, one after another; how much they take."""
    part = steps[g.first : g.first + g.count]
    at = 0
    for step, rows in zip(part[:-1], _needs(part, g.strip, values)[:-1], strict=True):
        v = values[step.out]
        assert len(readers[step.out]) == 1
        v.place, v.rows, v.at = WINDOW, rows, at
        at += v.units
    return at


def arena(
    groups: Sequence[Group],
    steps: Sequence[Step],
    values: Mapping[str, Value],
    readers: Mapping[str, list[int]],
    outputs: Sequence[str],
) -> int:
    """Places for whole maps: those that are needed at one time lie apart. The largest are placed first."""
    group_of = {i: n for n, g in enumerate(groups) for i in range(g.first, g.first + g.count)}
    life: dict[str, tuple[int, int]] = {}
    for i, s in enumerate(steps):
        if values[s.out].place == ARENA:
            begin = life.get(s.out, (group_of[i], 0))[0]
            last = max([group_of[i], *(group_of[r] for r in readers[s.out])])
            life[s.out] = (begin, len(groups) if s.out in outputs else last)
    placed: list[str] = []
    total = 0
    for name in sorted(life, key=lambda n: (-values[n].units, life[n])):
        begin, end = life[name]
        v, at = values[name], 0
        beside = [values[p] for p in placed if life[p][0] <= end and begin <= life[p][1]]
        for other in sorted(beside, key=lambda o: o.at):
            if other.at >= at + v.units:
                break
            at = max(at, other.at + other.units)
        v.at = at
        placed.append(name)
        total = max(total, at + v.units)
    return total


def value_record(v: Value) -> list[int]:
    """As `native/src/plan.h` has it."""
    return [v.type, v.channels, v.height, v.width, v.pitch, v.left, v.right, v.pad, v.place, v.at, v.rows]


def group_records(groups: Sequence[Group]) -> bytes:
    return np.array([[g.first, g.count, g.strip, g.split] for g in groups], "<u4").tobytes()
