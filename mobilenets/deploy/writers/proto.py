"""ONNX's messages, written and read with numpy alone: those fields of onnx.proto that a network's file needs.

A protocol buffer is a row of fields, each a key (field number and wire type) and a value: a varint, 4 or 8 bytes, or
a length and that many bytes, which may be a message themselves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mobilenets.errors import UserError

# TensorProto.DataType by numpy's names, and by ONNX's for two values in a byte.
TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "float16": 10,
    "float64": 11, "uint4": 21, "int4": 22,
}  # fmt: skip
NAMES = {number: name for name, number in TYPES.items()}
Value = int | float | str | bytes
Attribute = int | float | str | Sequence[int]


def varint(n: int) -> bytes:
    """Seven bits a byte, the lowest first; a negative number as its 64-bit complement."""
    n &= 2**64 - 1
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def field(number: int, value: Value) -> bytes:
    """A field of a message; bytes are a message, or raw data."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def message(*fields: tuple[int, Value | Iterable[Value]]) -> bytes:
    """Fields in turn; several values are a repeated field."""
    return b"".join(field(n, v) for n, value in fields for v in ([value] if isinstance(value, Value) else value))


def node(kind: str, inputs: Iterable[str], outputs: Iterable[str], name: str, **attributes: Attribute) -> bytes:
    """NodeProto: one operator."""
    return message((1, inputs), (2, outputs), (3, name), (4, kind), (5, [_attribute(*a) for a in attributes.items()]))


def _attribute(name: str, value: Attribute) -> bytes:
    # Where AttributeProto has values of this type, and the type's number.
    at, kind = {float: (2, 1), int: (3, 2), str: (4, 3)}.get(type(value), (8, 7))
    return message((1, name), (at, value), (20, kind))


def tensor(name: str, array: npt.NDArray[Any], kind: str = "") -> bytes:
    """TensorProto: a constant. `kind` "int4" or "uint4" packs whole numbers, two a byte, the first in its low half."""
    kind = kind or array.dtype.name
    if kind in ("int4", "uint4"):
        codes = np.append(array.astype(np.int8).view(np.uint8).ravel() & 15, np.zeros(array.size % 2, np.uint8))
        data = (codes[::2] | codes[1::2] << 4).tobytes()
    else:
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return message((1, array.shape), (2, TYPES[kind]), (8, name), (9, data))


def value(name: str, kind: str, shape: Iterable[int | str]) -> bytes:
    """ValueInfoProto: an input or output; a dimension that is a name may be any number."""
    dims = [message((1 if isinstance(d, int) else 2, d)) for d in shape]
    return message((1, name), (2, message((1, message((1, TYPES[kind]), (2, message((1, dims))))))))


def model(
    title: str,
    nodes: Iterable[bytes],
    constants: Iterable[bytes],
    inputs: Iterable[bytes],
    outputs: Iterable[bytes],
    opset: int,
    ir: int,
    metadata: Mapping[str, str],
) -> bytes:
    """ModelProto: a whole file. `nodes` are in an order in which they can be computed."""
    graph = message((1, nodes), (2, title), (5, constants), (11, inputs), (12, outputs))
    properties = [message((1, k), (2, v)) for k, v in metadata.items()]
    return message((1, ir), (2, "mobilenets"), (7, graph), (8, message((1, ""), (2, opset))), (14, properties))


class Node(NamedTuple):
    """An operator of a file."""

    kind: str
    inputs: list[str]
    outputs: list[str]


class Graph(NamedTuple):
    """What a file computes: its operators, and the type ("int8", "float16", ...) of each constant; its metadata."""

    nodes: list[Node]
    types: dict[str, str]
    metadata: dict[str, str]

    def origin(self, name: str) -> str:
        """The type of the constant that a tensor is made of, going back through each operator's first input.

        "" where it is made of none.
        """
        made = {o: n.inputs[0] for n in self.nodes for o in n.outputs if n.inputs}
        for _ in self.nodes:  # a damaged file may go round in circles
            name = made.get(name, name)
        return self.types.get(name, "")


def fields(data: memoryview) -> dict[int, list[Any]]:
    """Field number -> its values in a message: ints, or views of the bytes. A ValueError where `data` is no message."""
    out: dict[int, list[Any]] = {}
    at = 0

    def take(size: int) -> memoryview:
        nonlocal at
        if size > len(data) - at:
            raise ValueError("it is cut off")
        at += size
        return data[at - size : at]

    def number() -> int:
        n = 0
        for shift in range(0, 70, 7):
            byte = take(1)[0]
            n |= (byte & 127) << shift
            if byte < 128:
                return n
        raise ValueError("a number has no end")

    while at < len(data):
        key = number()
        match key & 7:
            case 0:
                found: int | memoryview = number()
            case 1 | 5 as wire:
                found = take(8 if wire == 1 else 4)
            case 2:
                found = take(number())
            case wire:
                raise ValueError(f"no field has the wire type {wire}")
        out.setdefault(key >> 3, []).append(found)
    return out


def read(path: Path) -> Graph:
    """The graph of the ONNX file at `path`. A damaged one is a `UserError`."""

    def texts(message: dict[int, list[Any]], number: int) -> list[str]:
        return [str(v, "utf8") for v in message.get(number, ())]

    try:
        file = fields(memoryview(path.read_bytes()))
        (graph,) = file[7]
        parts = fields(graph)
        nodes, constants = ([fields(m) for m in parts.get(n, ())] for n in (1, 5))
        types = {texts(c, 8)[0]: NAMES.get(c[2][0], "of another type") for c in constants}
        metadata = {texts(m, 1)[0]: texts(m, 2)[0] for m in map(fields, file.get(14, ()))}
        return Graph([Node(texts(n, 4)[0], texts(n, 1), texts(n, 2)) for n in nodes], types, metadata)
    except (ValueError, LookupError, TypeError) as e:
        raise UserError(f"{path}: not a readable ONNX file: {e}") from e
