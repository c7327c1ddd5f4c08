"""A network as what it differs by from another, of the same architecture or not. No torch.

    the card's JSON (deflated, the base's as dictionary), a byte for each of its tensors in their names' order (0: as in
    the base; else its type), then the streams of the others

Tensors of under `SMALL` numbers share a stream with the others of their type. Codes of 8 bits are foretold by the
base's weights in the steps of the new scales, which come first.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobilenets import files
from mobilenets.deploy.update import residual
from mobilenets.deploy.update.contents import Contents
from mobilenets.deploy.update.residual import Malformed, Reader, block
from mobilenets.model import bundle as bundles
from mobilenets.model.encodings import Array, Tensors, tensor_shapes

SMALL = 2048  # numbers
CARD_MOST = 4 << 20  # bytes, unpacked
EXPANDS, WEIGHTS_LEAST = 4096, 64 << 20  # times an update's bytes that its tensors may take, or so many bytes
SAME = 0
TYPES = ("", "f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1")  # by a tensor's byte
WHOLE, DIFFERENCE = range(2)  # how a stream is coded


@dataclass(frozen=True)
class Changed:
    """A tensor that isn't as it was."""

    name: str
    kind: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


def encode(new: Contents, base: Contents) -> bytes:
    """What `decode` makes `new` of, where there is `base`."""
    fresh, old = new.tensors, base.tensors
    changed = [Changed(n, t.dtype, t.shape) for n, t in sorted(fresh.items()) if not same(t, old.get(n))]
    types = {c.name: TYPES.index(c.kind.str[1:]) for c in changed}
    streams = []
    for group in _streams(changed):
        values = np.concatenate([fresh[c.name].ravel() for c in group])
        foretold = np.concatenate([_foretold(c, old, fresh) for c in group])
        ways = (bytes((WHOLE,)) + residual.encode(values, None),
                bytes((DIFFERENCE,)) + residual.encode(values, foretold))  # fmt: skip
        streams.append(min(ways, key=len))
    card = _deflate(_text(new), _text(base))
    return b"".join([block(card), bytes(types.get(n, SAME) for n in sorted(fresh)), *streams])


def decode(data: bytes | memoryview, base: Contents) -> Contents:
    """The network that `encode` was given. Raises `UserError` for bytes that it can't have made of this base."""
    source, old = Reader(memoryview(data)), base.tensors
    try:
        card = files.parse_json(_inflate(source.block(CARD_MOST), _text(base)))
    except ValueError as e:
        raise Malformed(f"its card can't be read: {e}") from e
    known = bundles.verified(card, "its card")
    shapes = tensor_shapes(known)
    fresh: dict[str, Array] = {}
    changed, total = [], 0
    for name, kind in zip(sorted(shapes), source.take(len(shapes)), strict=True):
        if kind == SAME:
            if name not in old or old[name].shape != shapes[name]:
                raise Malformed(f"tensor {name} should be as it was, and isn't there")
            fresh[name] = old[name]
        elif kind < len(TYPES):
            changed.append(Changed(name, np.dtype(TYPES[kind]), shapes[name]))
            total += changed[-1].count * changed[-1].kind.itemsize
        else:
            raise Malformed(f"tensor {name} is of no known type")
    if total > EXPANDS * len(data) + WEIGHTS_LEAST:
        raise Malformed(f"it would take {total:,} bytes, more than can come of an update of its size")
    for group in _streams(changed):
        how, count = source.byte(), sum(c.count for c in group)
        if how not in (WHOLE, DIFFERENCE):
            raise Malformed("a stream is stored in no known way")
        foretold = np.concatenate([_foretold(c, old, fresh) for c in group]) if how == DIFFERENCE else None
        values = residual.decode(source, group[0].kind, count, foretold)
        for c, part in zip(group, np.split(values, np.cumsum([c.count for c in group])[:-1]), strict=True):
            fresh[c.name] = part.reshape(c.shape)
    if source.at < len(source.data):
        raise Malformed("there are bytes after its end")
    return Contents(card, fresh, known.labels)


def same(values: Array, before: Array | None) -> bool:
    """Whether two tensors are the same bit for bit."""
    if before is None or (values.shape, values.dtype) != (before.shape, before.dtype):
        return False
    return values.tobytes() == before.tobytes()


def _streams(changed: Sequence[Changed]) -> Iterator[list[Changed]]:
    """Which tensors share a stream: small ones of a type; they come first, for they may be others' scales."""
    small: dict[str, list[Changed]] = {}
    for c in changed:
        if c.count < SMALL:
            small.setdefault(c.kind.str[1:], []).append(c)
    yield from (small[kind] for kind in TYPES if kind in small)
    yield from ([c] for c in changed if c.count >= SMALL)


def _foretold(c: Changed, old: Tensors, fresh: Mapping[str, Array]) -> Array:
    """What a tensor's numbers, flat, would be if the network had stayed as it was; zeros where it had no such part."""
    before, out = old.get(c.name), np.zeros(c.shape, c.kind)
    if before is None or before.dtype.kind != c.kind.kind or before.ndim != len(c.shape):
        return out.ravel()
    both = tuple(slice(min(a, b)) for a, b in zip(c.shape, before.shape, strict=True))
    with np.errstate(over="ignore"):
        known = before[both].astype(c.kind)
    scale, scale_before = fresh.get(f"{c.name}_scale"), old.get(f"{c.name}_scale")
    if c.kind == np.int8 and scale is not None and scale_before is not None and scale.shape == c.shape[:1]:
        count = len(known)
        ratio = scale_before[:count].astype(np.float64) / np.maximum(scale[:count].astype(np.float64), 1e-30)
        steps = np.rint(known * np.nan_to_num(ratio).reshape(-1, *[1] * (known.ndim - 1)))
        known = np.clip(steps, -128, 127).astype(np.int8)
    out[both] = known
    return out.ravel()


def _text(contents: Contents) -> bytes:
    return json.dumps(contents.card, separators=(",", ":")).encode()


def _deflate(data: bytes, base: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=-15, zdict=base[-(1 << 15) :])
    return packer.compress(data) + packer.flush()


def _inflate(data: memoryview, base: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=-15, zdict=base[-(1 << 15) :])
    try:
        found = unpacker.decompress(data, CARD_MOST)
    except zlib.error as e:
        raise Malformed(f"its card can't be unpacked: {e}") from e
    if not unpacker.eof or unpacker.unused_data:
        raise Malformed("its card is cut off, or larger than it may be")
    return found
