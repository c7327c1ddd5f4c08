"""A .mnet file, byte by byte: "MNET", version, size, SHA-256; a header; the card; names; records of maps, operations,
groups and outputs; weights as the kernels read them. `native/src/plan.h` and `kernels.h` say where each lies. No torch.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mobilenets.arch.operations import Op
from mobilenets.deploy.compact import ANY_BITS, Palette, Sparse, smallest
from mobilenets.deploy.writers.native_plan import KINDS, NONE, UNIT, Plan, Step
from mobilenets.errors import UserError
from mobilenets.files import parse_json
from mobilenets.model.card import Precision
from mobilenets.model.encodings import Array

MAGIC, VERSION, CODED, PREFIX = b"MNET", 1, 2, 64
HEADER = struct.Struct("<16I")
PIECE = struct.Struct("<8I")
AS_IS, SPARSE, TABLE, TABLES = range(4)
SPARE = bytes(8)  # so that whole words can be read
OPERATION = struct.Struct("<10I3i7I2i4f")
VALUE_WORDS = 11
PANEL = 16  # output channels that lie together in packed weights
INT8, FLOAT32, FLOAT16 = 1, 2, 3
WORTH = 0.9  # of the bytes as they lie, which take no memory of their own: a coded file has to take less


@dataclass(frozen=True)
class Piece:
    """A part of a coded file's weights; `shape`: rows, inputs, lanes, group, bytes of a number, bits of a code."""

    way: int
    data: bytes
    shape: tuple[int, ...] = (0,) * 6

    @property
    def record(self) -> bytes:
        return PIECE.pack(self.way, len(self.data), *self.shape)


def piece(rows: Array, lanes: int, group: int) -> Piece | None:
    """What the weights [cout, K] of a layer take the fewest bytes as; None where that is as they lie in `panels`."""
    few, shape = smallest(rows, ANY_BITS), (*rows.shape, lanes, group, rows.itemsize)
    if isinstance(few, Sparse):
        return Piece(SPARSE, _bits(few.mask, 1) + few.values.tobytes() + SPARE, (*shape, 1))
    if isinstance(few, Palette):
        way = TABLE if len(few.tables) == 1 else TABLES
        return Piece(way, few.tables.tobytes() + _bits(few.codes, few.bits) + SPARE, (*shape, few.bits))
    return None


def _bits(codes: Array, each: int) -> bytes:
    """Codes [rows, K] of so many bits, a row's beginning with a byte; a byte's lowest bits come first."""
    low = np.unpackbits(codes.astype(np.uint8)[..., None], 2, each, "little")
    return np.packbits(low.reshape(len(codes), -1), 1, "little").tobytes()


class Constants:
    """The part of the file that constants lie in, each at a multiple of UNIT; and pieces that become the same."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.pieces: list[Piece] = []
        self.units = 0

    def add(self, array: Array, as_piece: Piece | None = None) -> int:
        data = np.ascontiguousarray(array).tobytes()
        at, units = self.units, -(-len(data) // UNIT)
        self.parts.append(data.ljust(units * UNIT, b"\0"))
        self.units += units
        if as_piece is None:
            before = self.pieces.pop().data if self.pieces and self.pieces[-1].way == AS_IS else b""
            as_piece = Piece(AS_IS, before + self.parts[-1])
        self.pieces.append(as_piece)
        return at

    @property
    def coded(self) -> bytes:
        return b"".join((*(p.record for p in self.pieces), *(p.data for p in self.pieces)))


def panels(weights: Array, group: int, lanes: int = PANEL) -> Array:
    """Weights [cout, K] as [cout/lanes][K/group][lanes][group], both filled up with zeros."""
    cout, k = weights.shape
    full = np.zeros((-(-cout // lanes) * lanes, -(-k // group) * group), weights.dtype)
    full[:cout, :k] = weights
    return full.reshape(-1, lanes, full.shape[1] // group, group).transpose(0, 2, 1, 3)


def rows_of(step: Step, op: Op, values: Array, pitch: int) -> tuple[Array, int, int]:
    """A layer's weights [cout, cin/groups, KH, KW] as [cout, K]; lanes and group of the `panels` that its kernel reads.

    `pitch`: numbers a pixel of its input.
    """
    if step.kind == "depthwise":
        return values.reshape(op.cout, -1), pitch, 1
    if op.groups > 1:  # as one of all inputs: nearly all of its weights are zeros
        each_in, each_out = op.cin // op.groups, op.cout // op.groups
        dense = np.zeros((op.cout, op.cin, *op.kernels), values.dtype)
        for g in range(op.groups):
            rows, columns = slice(g * each_out, (g + 1) * each_out), slice(g * each_in, (g + 1) * each_in)
            dense[rows, columns] = values[rows]
        values = dense
    wide = values.shape[1] if step.kind == "pointwise" else pitch
    spread = np.zeros((op.cout, *op.kernels, wide), values.dtype)
    spread[..., : values.shape[1]] = values.transpose(0, 2, 3, 1)
    return spread.reshape(op.cout, -1), PANEL, 4 if values.dtype == np.int8 else 1


def filled(numbers: Array, dtype: str) -> Array:
    """Of each channel, up to a whole panel."""
    out = np.zeros(-(-len(numbers) // PANEL) * PANEL, dtype)
    out[: len(numbers)] = numbers
    return out


class Names:
    """Names one after another, each ended by a zero byte."""

    def __init__(self) -> None:
        self.data = b""
        self.at: dict[str, int] = {}

    def add(self, name: str) -> int:
        if name not in self.at:
            self.at[name] = len(self.data)
            self.data += name.encode() + b"\0"
        return self.at[name]


def record(step: Step, name: int, index: dict[str, int], found: dict[str, int]) -> bytes:
    """An operation's; `index`: the values' places, `found`: its constants'."""
    n = step.numbers
    inputs = [index[i] for i in step.inputs] + [NONE]
    return OPERATION.pack(
        KINDS.index(step.kind) + 1, name, inputs[0], inputs[1], index[step.out],
        *step.kernels, step.stride, step.top, step.left,
        n.get("zero", 0), n.get("low", 0), n.get("high", 255),
        n.get("act", 0), found.get("encoding", 0),
        *(found.get(k, NONE) for k in ("weights", "bias", "multiplier", "lut")), n.get("first", 0),
        n.get("za", 0), n.get("zb", 0),
        n.get("a", 0.0), n.get("b", 0.0), n.get("least", -math.inf), n.get("most", math.inf),
    )  # fmt: skip


def joined(
    plan: Plan,
    counts: tuple[int, int, int, int],
    image: int,
    card: bytes,
    names: bytes,
    records: bytes,
    weights: Constants,
) -> bytes:
    """The whole file, coded where that is worth it.

    `counts`: of values, operations, groups and outputs; `image`: which of the values that is.
    """
    parts: list[bytes] = []
    at = 2 * PREFIX // UNIT

    def place(data: bytes) -> int:
        nonlocal at
        here, units = at, -(-len(data) // UNIT)
        parts.append(data.ljust(units * UNIT, b"\0"))
        at += units
        return here

    plain, coded = b"".join(weights.parts), weights.coded
    is_coded = len(coded) < WORTH * len(plain)
    header = HEADER.pack(
        place(card), len(card), place(names), len(names), place(records), *counts,
        place(coded if is_coded else plain), weights.units, plan.arena_units, plan.window_units, image,
        *((len(weights.pieces), len(coded)) if is_coded else (0, 0)),
    )  # fmt: skip
    rest = header.ljust(PREFIX, b"\0") + b"".join(parts)
    size = PREFIX + len(rest)
    version = CODED if is_coded else VERSION
    return MAGIC + struct.pack("<IQ", version, size) + hashlib.sha256(rest).digest() + bytes(16) + rest


def card_text(data: bytes, where: str) -> bytes:
    """The card in a .mnet file's bytes. Raises `UserError` for what isn't one, or isn't whole."""
    if data[:4] != MAGIC or len(data) < PREFIX + HEADER.size or data[16:48] != hashlib.sha256(data[PREFIX:]).digest():
        raise UserError(f"{where}: not a .mnet file, or a damaged one")
    at, size = HEADER.unpack_from(data, PREFIX)[:2]
    return data[at * UNIT : at * UNIT + size]


def hollow(data: bytes) -> tuple[bytes, list[tuple[int, int]]]:
    """A file whose layers' weights are zeros, which compresses well; and where they lie: offsets and sizes in bytes."""
    head = HEADER.unpack_from(data, PREFIX)
    plan, values, operations, first, units = head[4], head[5], head[6], head[9], head[10]
    records = [
        OPERATION.unpack_from(data, plan * UNIT + values * VALUE_WORDS * 4 + i * OPERATION.size)
        for i in range(operations)
    ]
    places = sorted({at for r in records for at in r[15:19] if at != NONE} | {units})
    out, found = bytearray(data), []
    for at in sorted({r[15] for r in records if r[14]}):
        size = (places[places.index(at) + 1] - at) * UNIT
        found.append(((first + at) * UNIT, size))
        out[found[-1][0] : found[-1][0] + size] = bytes(size)
    out[16:48] = hashlib.sha256(out[PREFIX:]).digest()
    return bytes(out), found


def stored_precision(path: Path) -> Precision:
    """What the layers of a file read their weights from, but for those that its card keeps in float."""
    data = path.read_bytes()
    try:
        head = HEADER.unpack_from(data, PREFIX)
        card, card_bytes, names, names_bytes, plan, values, operations = head[:7]
        told = parse_json(data[card * UNIT : card * UNIT + card_bytes])
        text = data[names * UNIT : names * UNIT + names_bytes]
        found = set()
        for i in range(operations):
            record = OPERATION.unpack_from(data, plan * UNIT + values * VALUE_WORDS * 4 + i * OPERATION.size)
            name = text[record[1] : text.index(b"\0", record[1])].decode()
            if record[14] and name not in told.get("float_ops", ()):
                found.add(record[14])
    except (struct.error, ValueError, AttributeError) as e:
        raise UserError(f"{path}: not a readable .mnet file: {e}") from e
    if found == {INT8}:
        return "int8"
    return "float16" if found == {FLOAT16} else "float32"
