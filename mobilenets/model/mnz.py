"""A bundle in one file, `.mnz`: its card, its tensors entropy-coded, and a digest. NumPy and constriction, no torch.

    "MNZ1", bytes of the head (uint32), the head (zlib of JSON), a stream for each part of a tensor, SHA-256 of all that

Nothing is lost: the tensors come back bit for bit, and so the digest on the card holds here as in a folder. What is
coded of a tensor are symbols of up to 8 bits, in one of three ways, whichever is smallest:

- cut: its bytes cut into symbols of so many bits, for weights stored in codes (`encodings`);
- whole: numbers that are whole multiples of a power of two, less the least of them, as bytes;
- planes: the first bytes of all numbers, then all second ones, and so on.

Parts of few symbols share a stream with those of other layers' tensors of the same name: a model for each would take
more than what it saves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobilenets.errors import UserError
from mobilenets.files import parse_json
from mobilenets.model import entropy
from mobilenets.model.card import Card
from mobilenets.model.codes import Array, cut, joined
from mobilenets.model.encodings import Tensors, tensor_shapes
from mobilenets.model.entropy import Symbols

SUFFIX = ".mnz"
MAGIC = b"MNZ1"
SIZE = struct.Struct("<I")
DIGEST = hashlib.sha256().digest_size
HEAD_MOST, TENSORS_MOST = 4 << 20, 2 << 30  # bytes that are unpacked
EXPANDS = 4096  # times the file's size that its tensors may take
OWN = 4096  # symbols from which a part has a stream of its own
CUT, WHOLE, PLANES = "cut", "whole", "planes"
DTYPES = ("|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")


@dataclass(frozen=True)
class Form:
    """How a tensor's numbers are symbols: `dtype` as NumPy's text, `way` one of three.

    cut: `a` bits for each symbol. whole: a number is (symbols + `a`) * 2**`b`, and it takes `c` bytes.
    """

    dtype: str
    way: str
    a: int = 0
    b: int = 0
    c: int = 1

    @classmethod
    def of(cls, row: Sequence[Any]) -> Form:
        """From what a file says. Raises ValueError, TypeError."""
        form = cls(*row)
        numbers = all(type(v) is int and abs(v) < 1 << 62 for v in (form.a, form.b, form.c))
        if form.dtype not in DTYPES or not numbers or form.c not in (1, 2) or abs(form.b) > 1100:
            raise ValueError(f"a tensor is stored in no known way: {str(row)[:80]}")
        if form.way not in (CUT, WHOLE, PLANES) or (form.way == CUT and not 1 <= form.a <= 8):
            raise ValueError(f"a tensor is stored in no known way: {str(row)[:80]}")
        return form

    def counts(self, size: int) -> tuple[int, ...]:
        """Symbols in each part of a tensor of `size` numbers."""
        width = np.dtype(self.dtype).itemsize
        if self.way == CUT:
            return (-(-size * width * 8 // self.a),)
        return (size,) * (self.c if self.way == WHOLE else width)


def _whole(values: Array) -> tuple[Form, Array] | None:
    """Numbers [n] as whole ones from 0 on; None where they aren't multiples of a power of two below 2**16."""
    power = 0
    if values.dtype.kind == "f":
        wide = values.astype(np.float64)
        if not np.isfinite(wide).all() or (np.signbit(wide) & (wide == 0)).any():
            return None
        mantissa, exponent = np.frexp(wide[wide != 0])
        digits = np.abs(mantissa * 2**53).astype(np.int64)
        last = np.log2((digits & -digits).astype(np.float64)).astype(int) - 53
        power = int((exponent + last).min()) if len(last) else 0
        if exponent.max(initial=0) - power > 62:
            return None
        values = np.ldexp(wide, -power)
    if np.abs(values.astype(np.float64)).max(initial=0) >= 2**62:
        return None
    steps = values.astype(np.int64)
    least, most = (int(steps.min()), int(steps.max())) if len(steps) else (0, 0)
    if most - least >= 1 << 16:
        return None
    return Form("", WHOLE, least, power, 1 if most - least < 1 << 8 else 2), steps - least


def _parts(values: Array, bits: int) -> tuple[Form, tuple[Symbols, ...]]:
    """A tensor as symbols; `bits` of the codes that it is made of, 0 if of none."""
    flat, dtype = values.ravel(), values.dtype.newbyteorder("<").str
    if bits:
        narrow, most = cut(flat, bits), 8 // bits * bits
        form = Form(dtype, CUT, bits)
        if most > bits and len(narrow) >= 16 * OWN:  # several codes at once: as small, and sooner read
            wide = cut(flat, most)
            if entropy.entropy(wide) / 8 + entropy.BYTE < 1.003 * entropy.entropy(narrow) / 8:
                return dataclasses.replace(form, a=most), (wide,)
        return form, (narrow,)
    found = _whole(flat)
    if found and (found[0].c < values.itemsize or values.itemsize == 1):
        form, steps = found
        return dataclasses.replace(form, dtype=dtype), tuple(
            (steps >> 8 * i & 255).astype(np.uint8) for i in range(form.c)
        )
    planes = np.frombuffer(flat.astype(dtype).tobytes(), np.uint8).reshape(flat.size, -1)
    return Form(dtype, PLANES), tuple(np.ascontiguousarray(p) for p in planes.T)


def _values(form: Form, parts: tuple[Symbols, ...], shape: tuple[int, ...]) -> Array:
    """The tensor that `_parts` took apart. Raises ValueError, OverflowError, FloatingPointError."""
    dtype, size = np.dtype(form.dtype), math.prod(shape)
    if form.way == CUT:
        return joined(parts[0], form.a, size * dtype.itemsize).view(dtype).reshape(shape)
    if form.way == PLANES:
        return np.frombuffer(bytearray(np.stack(parts, 1)), dtype).reshape(shape)
    steps: Array
    if form.c == 1 and abs(form.a) < 1 << 14:  # 16 bits do, and are sooner gone over
        steps = parts[0].astype(np.int16) + np.int16(form.a)
    else:
        steps = sum((p.astype(np.int64) << 8 * i for i, p in enumerate(parts)), np.zeros(size, np.int64)) + form.a
    with np.errstate(over="raise"):  # no number that was taken apart is too large for its type
        values = steps if dtype.kind in "iu" else np.ldexp(steps.astype(np.float64), form.b)
        return values.astype(dtype).reshape(shape)


def _streams(names: Sequence[str], forms: Sequence[Form], sizes: Sequence[int]) -> dict[Any, list[tuple[int, int]]]:
    """Which parts, as (tensor, part), each stream holds, in the file's order."""
    out: dict[Any, list[tuple[int, int]]] = {}
    for i, (name, form, size) in enumerate(zip(names, forms, sizes, strict=True)):
        for part, count in enumerate(form.counts(size)):
            alike = re.sub(r"\d+", "", name), form.way, form.a if form.way == CUT else 0
            out.setdefault((name if count >= OWN else alike, part), []).append((i, part))
    return out


def sizes(values: Array, bits: int) -> tuple[float, float, float, float]:
    """Bytes of a tensor as it is, by Huffman's code, coded here, and the entropy of its symbols: models apart.

    `bits` of the codes that it is made of, 0 if of none.
    """
    parts = (cut(values, bits),) if bits else _parts(values, 0)[1]
    coded = sum(map(entropy.coded, parts))
    return values.nbytes, sum(map(entropy.huffman, parts)) / 8, coded, sum(map(entropy.entropy, parts)) / 8


def pack(card: Mapping[str, Any], tensors: Tensors, bits: Mapping[str, int]) -> bytes:
    """A file's bytes: of a card's JSON, and of tensors, some of which are made of codes of so many `bits`."""
    names = sorted(tensors)
    made = [_parts(np.asarray(tensors[n], order="C"), bits.get(n, 0)) for n in names]
    forms = [form for form, _ in made]
    held = _streams(names, forms, [tensors[n].size for n in names])
    streams = [entropy.pack(np.concatenate([made[i][1][part] for i, part in members])) for members in held.values()]
    head = {"card": card, "tensors": [dataclasses.astuple(f) for f in forms], "streams": [len(s) for s in streams]}
    text = zlib.compress(json.dumps(head, separators=(",", ":")).encode(), 9)
    whole = b"".join([MAGIC, SIZE.pack(len(text)), text, *streams])
    return whole + hashlib.sha256(whole).digest()


def unpack(
    data: bytes, where: str, card_of: Callable[[dict[str, Any], str], Card] = Card.from_json
) -> tuple[Card, dict[str, Any], dict[str, Array]]:
    """The card, the same as JSON, and the tensors of a file's bytes. Raises `UserError`: for damage, any other file.

    `card_of` makes the card of its JSON. What a file says is bounded before memory is given to it: its head, and its
    tensors by the card's shapes.
    """
    start = len(MAGIC) + SIZE.size
    if not data.startswith(MAGIC) or len(data) < start + DIGEST:
        raise UserError(f"{where}: not a {SUFFIX} file")
    whole, said = memoryview(data)[:-DIGEST], data[-DIGEST:]
    if hashlib.sha256(whole).digest() != said:
        raise UserError(f"{where}: altered or damaged (its digest differs); restore or re-create it")
    try:
        end = start + SIZE.unpack_from(data, len(MAGIC))[0]
        reader = zlib.decompressobj()
        text = reader.decompress(whole[start:end], HEAD_MOST)
        if not reader.eof:
            raise ValueError("its head is cut off, or too large")
        head = parse_json(text)
        card = card_of(head["card"], where)
        return card, head["card"], _read(card, head, whole[end:])
    except (zlib.error, KeyError, TypeError, ValueError, IndexError, ArithmeticError, struct.error) as e:
        raise UserError(f"{where}: not readable as a {SUFFIX} file: {e}") from e


def _read(card: Card, head: Mapping[str, Any], body: memoryview) -> dict[str, Array]:
    shapes = tensor_shapes(card)
    names, forms = sorted(shapes), [Form.of(f) for f in head["tensors"]]
    if len(forms) != len(names) or sum(head["streams"]) != len(body):
        raise ValueError("it has other tensors than its card's network")
    sizes = [math.prod(shapes[n]) for n in names]
    # A symbol is a byte while it is read, however few bits it stands for.
    memory = sum(max(s * np.dtype(f.dtype).itemsize, *f.counts(s)) for s, f in zip(sizes, forms, strict=True))
    if memory > min(TENSORS_MOST, EXPANDS * (len(body) + entropy.BYTE)):
        raise ValueError(f"it would take {memory:,} bytes, more than can come of a file of its size")
    held, at = _streams(names, forms, sizes), 0
    parts: list[list[Symbols]] = [[] for _ in names]
    for members, length in zip(held.values(), head["streams"], strict=True):
        counts = [forms[i].counts(sizes[i])[part] for i, part in members]
        symbols = entropy.unpack(bytes(body[at : at + length]), sum(counts))
        at += length
        for (i, _), some in zip(members, np.split(symbols, np.cumsum(counts)[:-1]), strict=True):
            parts[i].append(some)
    return {n: _values(f, tuple(p), shapes[n]) for n, f, p in zip(names, forms, parts, strict=True)}
