"""Arrays as what they differ by from other arrays, entropy-coded. No torch.

The difference is taken of whole numbers: of floats, of their bit patterns in the order of their values, so that floats
which lie near each other differ by little. Each byte of the differences is a stream of its own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobilenets.errors import UserError
from mobilenets.model import entropy
from mobilenets.model.encodings import Array


class Malformed(UserError):
    """Bytes that end before what they should hold, or hold what can't be."""


@dataclass
class Reader:
    """Bytes that are taken one piece after another; raises `Malformed` where there are too few."""

    data: memoryview
    at: int = 0

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise Malformed("it ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def block(self, most: int) -> memoryview:
        """Bytes with their number before them, at most `most`."""
        (count,) = struct.unpack("<I", self.take(4))
        if count > most:
            raise Malformed(f"it has {count} bytes where {most} are the most")
        return self.take(count)


def block(data: bytes) -> bytes:
    """Bytes with their number before them."""
    return struct.pack("<I", len(data)) + data


def encode(values: Array, base: Array | None) -> bytes:
    """Numbers [N] by what they differ by from `base` [N], of the same type; None: by themselves."""
    bits = _bits(values) if base is None else _zigzag(_ordered(values) - _ordered(base))
    planes = bits.astype(bits.dtype.newbyteorder("<")).view(np.uint8).reshape(len(bits), bits.itemsize).T
    return b"".join(block(entropy.pack(p)) for p in planes)


def decode(source: Reader, kind: np.dtype[Any], count: int, base: Array | None) -> Array:
    """The inverse of `encode`: `count` numbers of a type. Raises `Malformed`."""
    bits = np.empty((count, kind.itemsize), np.uint8)
    for i in range(kind.itemsize):
        try:
            bits[:, i] = entropy.unpack(bytes(source.block(count + 512)), count)
        except ValueError as e:
            raise Malformed(str(e)) from e
    whole: Array = bits.view(f"<u{kind.itemsize}").reshape(count)
    if base is None:
        return whole.view(kind)
    return _from_ordered(_unzigzag(whole) + _ordered(base), kind)


def _bits(values: Array) -> Array:
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


def _ordered(values: Array) -> Array:
    """Unsigned numbers in the order of the values: of floats, and of whole numbers with a sign."""
    bits = _bits(values)
    top = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    if values.dtype.kind == "u":
        return bits
    if values.dtype.kind == "i":
        flipped: Array = bits ^ top
        return flipped
    out: Array = np.where(bits & top, ~bits, bits | top)
    return out


def _from_ordered(bits: Array, kind: np.dtype[Any]) -> Array:
    top = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    if kind.kind == "i":
        bits = bits ^ top
    elif kind.kind == "f":
        bits = np.where(bits & top, bits ^ top, ~bits)
    return np.ascontiguousarray(bits).view(kind)


def _zigzag(bits: Array) -> Array:
    """Differences, modulo their width, as 0, -1, 1, -2, ... -> 0, 1, 2, 3, ...: small ones have zeros above."""
    last = bits.dtype.type(8 * bits.dtype.itemsize - 1)
    out: Array = (bits << bits.dtype.type(1)) ^ (np.zeros_like(bits) - (bits >> last))
    return out


def _unzigzag(bits: Array) -> Array:
    one = bits.dtype.type(1)
    out: Array = (bits >> one) ^ (np.zeros_like(bits) - (bits & one))
    return out
