"""Symbols in as few bytes as their frequencies allow: asymmetric numeral systems (Duda, arXiv 1311.2540). No torch.

The coder is constriction's. A stream begins with its model, a byte for each symbol from the least to the largest that
occurs; it is read as exactly the same fractions on every machine, or nothing could be decoded elsewhere.
"""

from __future__ import annotations

import contextlib
import heapq
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets.errors import UserError, needed_by

Symbols = npt.NDArray[np.uint8]
HEAD = struct.Struct("<BBB")  # how it is stored, the least symbol, the largest
RAW, CODED = 0, 1
BYTE = 256


def count(symbols: Symbols) -> npt.NDArray[np.int64]:
    """How often each of the 256 symbols occurs."""
    return np.bincount(symbols, minlength=BYTE).astype(np.int64)


def entropy(symbols: Symbols) -> float:
    """Bits that the symbols take at least, each coded by how often it occurs: n times their entropy (Shannon 1948)."""
    n = count(symbols)
    n = n[n > 0]
    return float(-(n * np.log2(n / n.sum())).sum()) if len(n) > 1 else 0.0


def huffman(symbols: Symbols) -> int:
    """Bits that the symbols take with a whole number of bits for each (Huffman 1952), the code itself apart."""
    heap = [int(n) for n in count(symbols) if n]
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


def pack(symbols: Symbols) -> bytes:
    """Symbols [n] as a stream, as they are where coding them gains nothing."""
    symbols = np.ascontiguousarray(symbols, np.uint8)
    raw = HEAD.pack(RAW, 0, 0) + symbols.tobytes()
    if not len(symbols):
        return raw
    n = count(symbols)
    first, last = (int(i) for i in np.flatnonzero(n)[[0, -1]])
    table = _rough(n[first : last + 1])
    head = HEAD.pack(CODED, first, last)
    if first == last:
        return head
    if len(table) + entropy(symbols) / 8 >= len(symbols):
        return raw
    coder = _constriction().stream.stack.AnsCoder()
    coder.encode_reverse(symbols.astype(np.int32) - first, _model(table))
    made: bytes = head + table.tobytes() + coder.get_compressed().astype("<u4").tobytes()
    return min(made, raw, key=len)


def coded(symbols: Symbols) -> int:
    """Bytes of the symbols alone in a stream, its model apart."""
    stream = pack(symbols)
    how, first, last = HEAD.unpack_from(stream)
    return len(stream) - HEAD.size - (last - first + 1 if how == CODED and first < last else 0)


def unpack(stream: bytes, length: int) -> Symbols:
    """The `length` symbols of a stream that `pack` made.

    Raises ValueError for what can't be one. A stream of other bits gives other symbols: digests tell.
    """
    if len(stream) < HEAD.size:
        raise ValueError("a stream is cut off")
    how, first, last = HEAD.unpack_from(stream)
    body = stream[HEAD.size :]
    if how == RAW:
        if len(body) != length:
            raise ValueError(f"a stream has {len(body)} symbols, not {length}")
        return np.frombuffer(body, np.uint8)
    size = last - first + 1
    if how != CODED or size < 1:
        raise ValueError("a stream is stored in no known way")
    if size == 1:
        return np.full(length, first, np.uint8)
    table, words = np.frombuffer(body[:size], np.uint8), body[size:]
    if len(table) < size or len(words) % 4 or not table.any():
        raise ValueError("a stream's model is cut off")
    with _no_panic():
        coder = _constriction().stream.stack.AnsCoder(np.frombuffer(words, "<u4").astype(np.uint32))
        found: npt.NDArray[np.int32] = coder.decode(_model(table), length)
    symbols: Symbols = (found + first).astype(np.uint8)
    return symbols


# A frequency as a byte: 5 bits of exponent, 3 of mantissa. It is off by a sixteenth at most, which costs less than a
# thousandth of a bit for each symbol, and is a whole number, which all machines read alike.
_VALUES = np.array([0, *((8 + b % 8) << b // 8 for b in range(1, BYTE))], np.float64)


def _rough(counts: npt.NDArray[np.int64]) -> Symbols:
    """Frequencies as bytes, none of those that occur as 0."""
    near = np.searchsorted((_VALUES[1:] + _VALUES[:-1]) / 2, counts * _VALUES[8])
    found: Symbols = near.astype(np.uint8)
    return found


def _model(table: Symbols) -> Any:
    values = _VALUES[table]
    return _constriction().stream.model.Categorical((values / values.sum()).astype(np.float32), perfect=False)


@contextlib.contextmanager
def _no_panic() -> Iterator[None]:
    """What the coder says of words that it didn't make, as a ValueError; a panic of its is no Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, UserError):
        raise
    except BaseException as e:
        raise ValueError(f"a stream can't be decoded: {e}") from e


def _constriction() -> Any:
    with needed_by("a .mnz file"):
        import constriction
    return constriction
