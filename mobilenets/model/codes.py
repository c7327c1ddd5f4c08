"""Ways to store a layer's weights in few bits: levels, codebooks, hashed buckets, and what is left of pruned ones.

Each is an `Encoding` of weights [cout, ...]; `encodings.ENCODINGS` has them by name. No torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
TINY = 1e-12  # the least scale, for weights that are all zero
# Of Lloyd's algorithm. It hasn't settled then, which is well: levels that still lie evenly take fewer bits once they
# are coded (of normal numbers, at 3.5 bits, 0.26 of a bit above Shannon's bound; after 400 rounds 0.33).
ROUNDS = 25
BINS = 1024  # that many values stand for all of a layer's when levels are sought


@dataclasses.dataclass(frozen=True)
class Encoding:
    """A way to store a layer's weights: as tensors by what is appended to the weights' own name.

    `shapes`: of those tensors, by the weights' shape [cout, ...]. `encode` makes them of float32 weights, `decode`
    gives float32 weights of them and the shape. `holds`: whether it can store these weights at all. `codes`: of those
    tensors that are codes one after another in bytes, the lowest bits first: how many bits a code has, by the shape.
    `varied`: the same with other numbers than its usual ones, which follow its name ("kmeans-3"). `book`: what is
    appended for the tensor whose values alone, here and there with their sign changed, the weights are; it can be
    trained.
    """

    shapes: Callable[[Shape], dict[str, Shape]]
    encode: Callable[[Array], dict[str, Array]]
    decode: Callable[[Mapping[str, Array], Shape], Array]
    holds: Callable[[Array], bool] = lambda _weight: True
    codes: Callable[[Shape], dict[str, int]] = lambda _shape: {}
    varied: Callable[..., Encoding] | None = None
    book: str = ""

    def bits(self, weight: Array) -> float:
        """Bits that each of these weights takes, scales and tables among them."""
        return sum(8 * t.nbytes for t in self.encode(weight).values()) / weight.size


def cut(values: Array, bits: int) -> npt.NDArray[np.uint8]:
    """The bytes of an array as codes of so many bits, the lowest first; the last one is filled up with zeros."""
    flat = np.unpackbits(np.frombuffer(values.tobytes(), np.uint8), bitorder="little")
    whole = np.concatenate([flat, np.zeros(-len(flat) % bits, np.uint8)]).reshape(-1, bits)
    out: npt.NDArray[np.uint8] = whole @ (1 << np.arange(bits, dtype=np.uint8))
    return out


def joined(codes: npt.NDArray[np.uint8], bits: int, size: int) -> npt.NDArray[np.uint8]:
    """What `cut` cut: `size` bytes of codes [n] of so many bits each, filled up with zeros."""
    if 8 % bits == 0:
        some = np.zeros(size * (8 // bits), np.uint8)
        some[: len(codes)] = codes[: len(some)]
        rows = some.reshape(size, 8 // bits) << np.arange(0, 8, bits, dtype=np.uint8)
        out: npt.NDArray[np.uint8] = np.bitwise_or.reduce(rows, 1)
        return out
    flat = np.unpackbits(codes[:, None], 1, bits, bitorder="little").ravel()[: size * 8]
    return np.packbits(np.concatenate([flat, np.zeros(size * 8 - len(flat), np.uint8)]), bitorder="little")


def packed(codes: Array, bits: int) -> npt.NDArray[np.uint8]:
    """Codes below 2**bits, any shape, in as few whole bytes as hold them."""
    return joined(codes.ravel().astype(np.uint8), bits, room(codes.size, bits))


def unpacked(stored: Array, bits: int, shape: Shape) -> npt.NDArray[np.uint8]:
    """The codes that `packed` packed."""
    return cut(stored, bits)[: math.prod(shape)].reshape(shape)


def room(size: int, bits: int) -> int:
    """Bytes that so many codes take."""
    return -(-size * bits // 8)


def _rows(weight: Array) -> Array:
    """Weights [cout, n]."""
    return weight.reshape(len(weight), -1)


# ---- levels, their size one for each output channel


def _by_channel(bits: int, levels: Callable[[Array], Array], fit: Callable[[Array], tuple[Array, Array]]) -> Encoding:
    """Codes [cout, n], and a scale for each channel: a weight is levels(code) * scale."""

    def encode(weight: Array) -> dict[str, Array]:
        codes, scale = fit(_rows(weight).astype(np.float64))
        return {"": packed(codes, bits), "_scale": np.maximum(scale, TINY).astype(np.float32)}

    def decode(stored: Mapping[str, Array], shape: Shape) -> Array:
        codes = unpacked(stored[""], bits, (shape[0], math.prod(shape[1:])))
        values = levels(codes.astype(np.float32)) * stored["_scale"][:, None]
        return np.asarray(values.reshape(shape), np.float32)

    return Encoding(
        lambda s: {"": (room(math.prod(s), bits),), "_scale": (s[0],)}, encode, decode, codes=lambda _s: {"": bits}
    )


def even(bits: int) -> Encoding:
    """2**bits levels evenly around zero, their step that of the least squared error: one weight in `bits` bits."""
    middle = (2**bits - 1) / 2

    def fit(rows: Array) -> tuple[Array, Array]:
        peak = np.abs(rows).max(1)
        best, scale = np.full(len(rows), np.inf), peak
        for part in np.linspace(0.2, 1, 33):
            tried = np.maximum(peak / middle * part, TINY)
            error = (((near(rows, tried) - middle) * tried[:, None] - rows) ** 2).sum(1)
            scale, best = np.where(error < best, tried, scale), np.minimum(error, best)
        return near(rows, scale), scale

    def near(rows: Array, scale: Array) -> Array:
        codes: Array = np.clip(np.rint(rows / scale[:, None] + middle), 0, 2**bits - 1)
        return codes

    return _by_channel(bits, lambda codes: codes - np.float32(middle), fit)


def ternary() -> Encoding:
    """-1, 0 or 1 times a scale (Li et al., arXiv 1605.04711), both of the least squared error: two bits."""

    def fit(rows: Array) -> tuple[Array, Array]:
        order = np.argsort(-np.abs(rows), 1)
        sums = np.cumsum(np.take_along_axis(np.abs(rows), order, 1), 1)
        counts = np.arange(1, rows.shape[1] + 1)
        kept = np.argmax(sums**2 / counts, 1)  # how many of the largest aren't zero, less one
        scale = np.take_along_axis(sums, kept[:, None], 1)[:, 0] / (kept + 1)
        rank = np.argsort(order, 1)
        return np.where(rank <= kept[:, None], np.sign(rows) + 1, 1), scale

    return _by_channel(2, lambda codes: codes - np.float32(1), fit)


def binary() -> Encoding:
    """A sign times the mean of the channel's sizes (XNOR-Net: Rastegari et al., arXiv 1603.05279): one bit."""
    return _by_channel(1, lambda codes: codes * 2 - np.float32(1), lambda rows: (rows >= 0, np.abs(rows).mean(1)))


# ---- codebooks: weights, or runs of them, that share values


def lloyd(values: Array, count: int) -> Array:
    """Up to `count` levels in rising order, of the least squared error to `values` (k-means in one dimension).

    Where an eighth of the values or more are exactly zero, as in a pruned layer, zero is one of the levels.
    """
    flat = values.ravel().astype(np.float64)
    zeros = float((flat == 0).mean()) if len(flat) else 1.0
    some = flat[flat != 0] if zeros >= 1 / 8 else flat
    fixed, free = (np.zeros(1), count - 1) if zeros >= 1 / 8 else (np.zeros(0), count)
    if not len(some) or not free:
        return np.zeros(count)
    lows, counts = np.unique(some, return_counts=True)
    if len(lows) > BINS:
        counts, edges = np.histogram(some, BINS)
        lows = (edges[1:] + edges[:-1]) / 2
    levels = np.linspace(lows[0], lows[-1], free)  # evenly, which keeps the large ones (Han et al., arXiv 1510.00149)
    for _ in range(ROUNDS):
        every = np.sort(np.concatenate([levels, fixed]))
        at = nearest(lows, every)
        weight, total = (np.bincount(at, w, len(every)) for w in (counts, counts * lows))
        levels = np.where(weight > 0, total / np.maximum(weight, 1), every)
        levels = np.delete(levels, np.searchsorted(every, 0)) if len(fixed) else levels
    return np.sort(np.concatenate([levels, fixed]))


def constrained(values: Array, bits: int, rate: float) -> tuple[Array, Array, Array]:
    """Codes [n], up to 2**bits levels in rising order, and the bits that an entropy coder needs for each level's code.

    Least is the squared error plus `rate` times the values' variance for each bit (entropy-constrained quantization:
    Chou, Lookabaugh, Gray 1989): levels that few values have are given up, and most values share one near zero.
    """
    flat = values.ravel().astype(np.float64)
    counts, edges = np.histogram(flat, BINS)
    middles = (edges[1:] + edges[:-1]) / 2
    levels, price = lloyd(flat, 2**bits), np.zeros(2**bits)
    slope = rate * float(flat.var())
    for _ in range(ROUNDS):
        at = np.argmin((middles[:, None] - levels) ** 2 + slope * price, 1)
        n, total = (np.bincount(at, w, len(levels)) for w in (counts, counts * middles))
        levels = np.where(n > 0, total / np.maximum(n, 1), levels)
        price = np.where(n > 0, np.log2(n.sum() / np.maximum(n, 1)), 64.0)
    place = np.clip(((flat - edges[0]) / max(edges[-1] - edges[0], TINY) * BINS).astype(int), 0, BINS - 1)
    return at[place], levels, price


def nearest(values: Array, levels: Array) -> Array:
    """Which of the levels, in rising order, is nearest to each value."""
    at: Array = np.searchsorted((levels[1:] + levels[:-1]) / 2, values)
    return at


def kmeans(bits: int = 4) -> Encoding:
    """Weights that share 2**bits values, those of k-means (Deep Compression: Han et al., arXiv 1510.00149)."""

    def encode(weight: Array) -> dict[str, Array]:
        book = lloyd(weight, 2**bits).astype(np.float32)
        return {"": packed(nearest(weight.ravel(), book), bits), "_book": book}

    return Encoding(
        lambda s: {"": (room(math.prod(s), bits),), "_book": (2**bits,)},
        encode,
        lambda t, s: np.asarray(t["_book"][unpacked(t[""], bits, s)], np.float32),
        codes=lambda _s: {"": bits},
        varied=_within(kmeans, (1, 8)),
        book="_book",
    )


def product(block: int = 4, count: int = 256) -> Encoding:
    """Runs of `block` weights of a channel that share `count` vectors, one codebook a layer (Stock et al., 1907.05686).

    A layer of few runs has fewer vectors: one for eight runs at most, and a power of two. Raises `ValueError` for a
    `count` that isn't one.
    """
    if count & (count - 1):
        raise ValueError("a power of two of vectors")

    def sizes(shape: Shape) -> tuple[int, int]:
        """Runs of weights, and bits of a code."""
        runs = shape[0] * -(-math.prod(shape[1:]) // block)
        return runs, max(1, min(count.bit_length() - 1, (max(2, runs // 8)).bit_length() - 1))

    def encode(weight: Array) -> dict[str, Array]:
        rows = _rows(weight)
        whole = np.pad(rows, ((0, 0), (0, -rows.shape[1] % block))).reshape(-1, block)
        bits = sizes(weight.shape)[1]
        book = _vectors(whole, 2**bits)
        return {"": packed(_closest(whole, book), bits), "_book": book}

    def decode(stored: Mapping[str, Array], shape: Shape) -> Array:
        runs, bits = sizes(shape)
        rows = stored["_book"][unpacked(stored[""], bits, (runs,))].reshape(shape[0], -1)
        return np.asarray(rows[:, : math.prod(shape[1:])].reshape(shape), np.float32)

    def shapes(shape: Shape) -> dict[str, Shape]:
        runs, bits = sizes(shape)
        return {"": (room(runs, bits),), "_book": (2**bits, block)}

    return Encoding(
        shapes,
        encode,
        decode,
        lambda w: w.shape[1] >= block and math.prod(w.shape[2:]) == 1 and w.size >= 64 * block,
        lambda s: {"": sizes(s)[1]},
        _within(product, (1, 64), (2, 256)),
        "_book",
    )


def _closest(vectors: Array, book: Array) -> Array:
    """Which row of `book` [K, d] is nearest to each vector [n, d], a few thousand at a time."""
    own = (book**2).sum(1)
    parts = [np.argmin(own - 2 * (vectors[i : i + 1024] @ book.T), 1) for i in range(0, len(vectors), 1024)]
    out: Array = np.concatenate(parts)
    return out


def _vectors(vectors: Array, count: int) -> Array:
    """`count` vectors of small squared distance to `vectors` [n, d]: k-means, its start spread over their sizes."""
    order = np.argsort((vectors**2).sum(1), kind="stable")
    book = vectors[order[np.linspace(0, len(order) - 1, count).astype(int)]].astype(np.float32)
    some = vectors[:: len(vectors) // (16 * count) + 1].astype(np.float32)  # as many as a codebook can learn from
    for _ in range(ROUNDS // 2):
        at = _closest(some, book)
        n = np.bincount(at, minlength=count)
        total = np.stack([np.bincount(at, column, count) for column in some.T], 1)
        book = np.where(n[:, None] > 0, total / np.maximum(n, 1)[:, None], book).astype(np.float32)
    out: Array = book
    return out


# ---- hashed buckets


def hashed(ratio: int = 8) -> Encoding:
    """Weights that a hash puts into one of 1/ratio as many buckets, with a sign (HashedNets: Chen et al., 1504.04788).

    Nothing but the buckets' values is stored: the hash is of a weight's place, the same everywhere.
    """

    def buckets(shape: Shape) -> int:
        return max(1, math.prod(shape) // ratio)

    def encode(weight: Array) -> dict[str, Array]:
        at, sign = _hash(weight.size, buckets(weight.shape))
        n = np.bincount(at, minlength=buckets(weight.shape))
        total = np.bincount(at, weight.ravel() * sign, len(n))
        return {"_buckets": (total / np.maximum(n, 1)).astype(np.float32)}

    def decode(stored: Mapping[str, Array], shape: Shape) -> Array:
        at, sign = _hash(math.prod(shape), buckets(shape))
        return np.asarray((stored["_buckets"][at] * sign).reshape(shape), np.float32)

    return Encoding(
        lambda s: {"_buckets": (buckets(s),)},
        encode,
        decode,
        lambda w: w.size >= 64 * ratio,
        varied=_within(hashed, (2, 1024)),
        book="_buckets",
    )


def _hash(size: int, count: int) -> tuple[Array, Array]:
    """The bucket and the sign of each place: the last step of MurmurHash3, which sends near places far apart."""
    x = np.arange(1, size + 1, dtype=np.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = (x ^ x >> np.uint32(shift)) * np.uint32(factor)
    return (x >> np.uint32(1)) % np.uint32(count), np.where(x & 1, np.float32(1), np.float32(-1))


# ---- what pruning leaves


def sparse(percent: int = 70) -> Encoding:
    """So many percent of the weights are zero, those of the least size; a bit says which, the others are int8."""

    def kept(shape: Shape) -> int:
        return math.prod(shape) - math.prod(shape) * percent // 100

    def encode(weight: Array) -> dict[str, Array]:
        flat, count = weight.ravel(), kept(weight.shape)
        mask = np.zeros(len(flat), bool)
        mask[np.argsort(-np.abs(flat), kind="stable")[:count]] = True
        scale = np.maximum(np.abs(_rows(weight)).max(1) / 127, TINY).astype(np.float32)
        codes = np.clip(np.rint(_rows(weight) / scale[:, None]), -127, 127).astype(np.int8)
        return {"": packed(mask, 1), "_kept": codes.ravel()[mask], "_scale": scale}

    def decode(stored: Mapping[str, Array], shape: Shape) -> Array:
        mask = unpacked(stored[""], 1, (math.prod(shape),)).astype(bool)
        values, some = np.zeros(len(mask), np.float32), stored["_kept"][: mask.sum()]
        values[np.flatnonzero(mask)[: len(some)]] = some
        return np.asarray(values.reshape(shape[0], -1) * stored["_scale"][:, None], np.float32).reshape(shape)

    return Encoding(
        lambda s: {"": (room(math.prod(s), 1),), "_kept": (kept(s),), "_scale": (s[0],)},
        encode,
        decode,
        codes=lambda _s: {"": 1},
        varied=_within(sparse, (1, 99)),
    )


def _within(make: Callable[..., Encoding], *ranges: tuple[int, int]) -> Callable[..., Encoding]:
    """`make`, which raises ValueError for other numbers than those."""

    def varied(*numbers: int) -> Encoding:
        if len(numbers) != len(ranges) or any(not a <= n <= b for n, (a, b) in zip(numbers, ranges, strict=True)):
            raise ValueError(" and ".join(f"{a} to {b}" for a, b in ranges))
        return make(*numbers)

    return varied
