"""The native engine's file taken apart, and the memory that it takes to run as C source. No torch."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from mobilenets.deploy.writers.native_file import HEADER, INT8, OPERATION, PREFIX, VALUE_WORDS
from mobilenets.deploy.writers.native_plan import F32, KINDS, NONE, SLACK, SPATIAL, U8, UNIT, WINDOW

SMALL_GATHER, GATHER = 2 * 1024, 24 * 1024  # bytes of a convolution's windows at a time: in plain C, and with vectors
LEAST_GATHERED = {SMALL_GATHER: 12, GATHER: 64}  # pixels of them, however large
CANDIDATE = 12  # bytes of a box that suppression looks at
POINTER = 8  # bytes; on a microcontroller half as many, and the rest of the arena stays empty


@dataclass
class Value:
    type: int
    channels: int
    height: int
    width: int
    pitch: int
    left: int
    right: int
    pad: int
    place: int
    at: int
    rows: int

    @property
    def pixel(self) -> int:
        return self.pitch * (4 if self.type == F32 else 1)

    @property
    def row(self) -> int:
        return (self.left + self.width + self.right) * self.pixel


@dataclass
class Operation:
    record: tuple[float, ...]
    kind: str
    source: int
    other: int
    out: int
    kernels: tuple[int, int]
    encoding: int
    act: int
    name: str
    inputs: int = 0


@dataclass
class Parsed:
    """A .mnet file that was just written, taken apart."""

    values: list[Value]
    operations: list[Operation]
    groups: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]]
    weights: bytes
    arena_units: int
    window_units: int
    image: int
    readers: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.readers = [NONE] * len(self.values)
        for i, o in enumerate(self.operations):
            x = self.values[o.source]
            if o.kind in SPATIAL:
                taps = o.kernels[0] * o.kernels[1]
                o.inputs = taps * x.pitch if o.kind == "conv" else x.channels if o.kind == "pointwise" else 0
            for v in (o.source, o.other):
                if v != NONE and self.values[v].place == WINDOW:
                    self.readers[v] = i


def parse(data: bytes) -> Parsed:
    h = HEADER.unpack_from(data, PREFIX)
    at, values, operations, groups, outputs = h[4] * UNIT, *h[5:9]
    names = data[h[2] * UNIT : h[2] * UNIT + h[3]]
    weights = data[h[9] * UNIT : (h[9] + h[10]) * UNIT]

    def rows(count: int, words: int) -> list[tuple[int, ...]]:
        nonlocal at
        found = [struct.unpack_from(f"<{words}I", data, at + i * words * 4) for i in range(count)]
        at += count * words * 4
        return found

    made = [Value(*row) for row in rows(values, VALUE_WORDS)]
    steps = []
    for _ in range(operations):
        r = OPERATION.unpack_from(data, at)
        at += OPERATION.size
        name = names[r[1] : names.index(b"\0", r[1])].decode()
        steps.append(Operation(r, KINDS[r[0] - 1], r[2], r[3], r[4], (r[5], r[6]), r[14], r[13], name))
    return Parsed(made, steps, rows(groups, 4), rows(outputs, 3), weights, *h[11:14])


# ---- memory: what native/src/build.c takes for one thread, and what the kernels ask for


def _widened(k: int) -> int:
    k4 = -(-k // 4)
    block = min(96 * 1024 // (k4 * 8), 512)
    block = 12 if block < 12 else block // 4 * 4
    return k4 * 8 * (16 + block) + 512 * (POINTER + 4) + 64


def _pairs(kh: int, kw: int, channels: int) -> int:
    return kh * kw * channels if max(kh, kw) > 7 else ((kh + 1) // 2 + kh // 2 + 1) * kw * channels * 4


def _quads(kh: int, kw: int, channels: int) -> int:
    if max(kh, kw) > 7:
        return kh * kw * channels
    line = 192 if (kh, kw) == (3, 3) and channels <= 16 else 0
    return -(-channels // 64) * (2 if kh < 4 else 1) * kw * -(-kh // 4) * 256 + line


def _none(*sizes: int) -> int:  # noqa: ARG001
    return 0


# By a table's name in C: scratch of a product of K inputs, and what depthwise weights (KH, KW, channels) become.
KERNELS: dict[str, tuple[Callable[[int], int], Callable[[int, int, int], int]]] = {
    "mnet_avx512": (_none, _quads),
    "mnet_avxvnni": (_none, _pairs),
    "mnet_avx2": (_widened, _pairs),
    **dict.fromkeys(("mnet_i8mm", "mnet_dotprod", "mnet_neon"), (_none, lambda kh, kw, c: kh * kw * c * 2)),
    "mnet_wasm": (lambda k: 60 * -(-k // 4) * 8, lambda kh, kw, c: (kh + 1) // 2 * kw * c * 8),
    "mnet_scalar": (_none, _none),
}


def _up(n: int, to: int = UNIT) -> int:
    return -(-n // to) * to


def gather_bytes(table: str) -> int:
    return SMALL_GATHER if table == "mnet_scalar" else GATHER


def memory(p: Parsed, table: str) -> int:
    """Bytes that the network takes to run with the kernels of `table`, the image and the outputs aside."""
    scratch_of, packed = KERNELS[table]
    gather = scratch = 0
    around: dict[int, int] = {}
    sizes = [6 * POINTER, POINTER, len(p.operations) * POINTER]
    for o in p.operations:
        x, out = p.values[o.source], p.values[o.out]
        gather = max(gather, out.pitch * 4 + SLACK)
        if o.kind == "conv":
            stride = _up(o.kernels[0] * o.kernels[1] * x.pixel, 4 if x.type == U8 else 1)
            n = gather_bytes(table) // stride
            pixels = n // out.width * out.width if n >= out.width else max(n, LEAST_GATHERED[gather_bytes(table)])
            gather = max(gather, pixels * stride + 2 * SLACK)
        if o.kind == "suppress":
            gather = max(gather, x.width * CANDIDATE)
        if o.kind in ("conv", "pointwise") and out.type == U8:
            scratch = max(scratch, scratch_of(o.inputs))
        if o.kind in SPATIAL:
            around[x.pad] = max(around.get(x.pad, 0), x.row + SLACK)
        if o.kind == "depthwise" and o.encoding == INT8:
            sizes.append(packed(*o.kernels, out.pitch))
    sizes += [*around.values(), p.window_units * UNIT + SLACK, gather, scratch + SLACK]
    sizes += [4 * len(p.values), 2 * 4 * len(p.operations), p.arena_units * UNIT + SLACK]
    return sum(_up(n) for n in sizes)
