"""Which layer is stored how: what each way costs in bytes and answers, and the choice that meets a size. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mobilenets.arch.operations import Op
from mobilenets.model import entropy
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card
from mobilenets.model.codes import Array, constrained, cut, packed
from mobilenets.model.encodings import Tensors, find, weight_name

BOOK_BITS = 12  # of the numbers of codebooks and biases, as shares of their largest
NORM_BITS = range(8, 15)  # of BatchNorm's: networks differ in how far apart their channels' sizes are
# What is tried for each layer; a rate is what `constrained` takes.
WAYS: tuple[tuple[str, float], ...] = (
    *((name, 0.0) for name in ("int8", "int4", "int3", "int2", "ternary", "binary", "hashed-8")),
    *((f"product-{block}-256", 0.0) for block in (2, 4)),
    *((f"kmeans-{bits}", 0.0) for bits in (2, 3, 4, 5, 6)),
    *(("kmeans-6", rate) for rate in (0.0005, 0.001, 0.002, 0.004)),
    *(("kmeans-5", rate) for rate in (0.005, 0.01)),
    *(("kmeans-4", rate) for rate in (0.02, 0.04, 0.08, 0.15, 0.25, 0.4, 0.6, 0.9, 1.4)),
)


@dataclass(frozen=True)
class Option:
    """A way to store a layer: its tensors by suffix, the bits they take when coded, the damage that it does alone."""

    encoding: str
    rate: float
    stored: Mapping[str, Array] = field(repr=False)
    bits: float
    damage: float


def coded_layers(card: Card) -> list[Op]:
    """The layers whose weights can be stored otherwise: those that have their own."""
    lent = {op.shares for op in card.graph.layers if op.shares}
    return [op for op in card.graph.layers if op.kind != "norm" and not op.shares and op.name not in lent]


def two_numbers(card: Card, tensors: Tensors) -> dict[str, Array]:
    """BatchNorm's tensors, mean and variance taken into its shift and factor: these two are all there is to store."""
    out: dict[str, Array] = {}
    for op in card.graph.layers:
        if op.norm:
            gamma, beta, mean, var = (
                tensors[f"{op.name}.norm.{k}"].astype(np.float64)
                for k in ("weight", "bias", "running_mean", "running_var")
            )
            factor = gamma / np.sqrt(var + card.arch.bn_eps)
            new = factor, beta - mean * factor, np.zeros(op.cout), np.full(op.cout, 1 - card.arch.bn_eps)
            names = ("weight", "bias", "running_mean", "running_var")
            out |= {f"{op.name}.norm.{k}": v.astype(np.float32) for k, v in zip(names, new, strict=True)}
            out[f"{op.name}.norm.num_batches_tracked"] = np.asarray(0, np.int64)
    return out


def canonical(source: Bundle) -> Bundle:
    """The same float network with BatchNorm in two numbers a channel, and weights of size 1 in each channel.

    The channels' sizes go into BatchNorm's factor: weights of all channels can share levels. Layers without BatchNorm
    stay as they are.
    """
    source = source.dense()
    out = {**source.tensors, **two_numbers(source.card, source.tensors)}
    for op in coded_layers(source.card):
        if op.norm and not op.bias:
            weight = out[weight_name(op)].astype(np.float64)
            found = np.sqrt((weight.reshape(op.cout, -1) ** 2).mean(1))
            size = np.where(found > 0, found, 1)
            out[weight_name(op)] = (weight / size[:, None, None, None]).astype(np.float32)
            out[f"{op.name}.norm.weight"] = (out[f"{op.name}.norm.weight"] * size).astype(np.float32)
    return Bundle(source.card, out, source.digest)


def coarse(values: Array, bits: int) -> Array:
    """Numbers as multiples of a power of two that has so many bits for the largest of them: they code in few bytes."""
    most = float(np.abs(values).max(initial=0))
    if not most or not math.isfinite(most):
        return values
    step = 2.0 ** math.ceil(math.log2(most / (2 ** (bits - 1) - 1)))
    return np.asarray(np.rint(values / step) * step, np.float32) + np.float32(0)  # no -0.0


def options(weight: Array, ways: Sequence[tuple[str, float]] = WAYS) -> Iterator[Option]:
    """The ways that can store a layer's weights; their damage isn't measured yet."""
    for name, rate in ways:
        how = find(name)
        if not how.holds(weight):
            continue
        if rate:
            bits = how.codes(weight.shape)[""]
            codes, levels, _ = constrained(weight, bits, rate)
            stored: dict[str, Array] = {"": packed(codes, bits), "_book": levels.astype(np.float32)}
        else:
            stored = how.encode(weight)
        yield Option(name, rate, stored, stored_bits(name, stored, weight.shape), math.nan)


def stored_bits(encoding: str, stored: Mapping[str, Array], shape: tuple[int, ...]) -> float:
    """About how many bits a layer's tensors take when they are entropy-coded."""
    codes, total = find(encoding).codes(shape), 0.0
    for suffix, values in stored.items():
        if suffix in codes:
            symbols = cut(values, codes[suffix])
            total += entropy.entropy(symbols) + 8 * min(len(np.unique(symbols)), len(symbols))
        elif values.dtype.kind == "f":
            total += BOOK_BITS * values.size
        else:
            total += entropy.entropy(np.ascontiguousarray(values).view(np.uint8).ravel())
    return total


def choose(found: Mapping[str, Sequence[Option]], bits: float) -> dict[str, Option]:
    """For each layer an option, of the least damage together that take at most so many bits together.

    By one price of a bit for all layers (Shoham and Gersho 1988); where even the smallest take more, those.
    """

    def at(price: float) -> dict[str, Option]:
        return {name: min(some, key=lambda o: o.damage + price * o.bits) for name, some in found.items()}

    def total(chosen: Mapping[str, Option]) -> float:
        return sum(o.bits for o in chosen.values())

    low, high = 1e-16, 1e6
    if total(at(low)) <= bits:
        return at(low)
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if total(at(middle)) <= bits else (middle, high)
    return at(high)


def assembled(plain: Bundle, chosen: Mapping[str, Option], norm_bits: int = NORM_BITS[-1]) -> Bundle:
    """`plain`, a canonical bundle, with layers stored as chosen, and its other numbers rounded coarsely."""
    out = dict(plain.tensors)
    for name, option in chosen.items():
        key = weight_name(plain.card.graph.op(name))
        del out[key]
        for suffix, values in option.stored.items():
            out[key + suffix] = coarse(values, BOOK_BITS) if values.dtype.kind == "f" else values
    encodings = {name: option.encoding for name, option in chosen.items()}
    return numbers_coarse(Bundle(plain.card.replace(encodings=encodings), out, plain.digest), norm_bits)


def numbers_coarse(made: Bundle, norm_bits: int) -> Bundle:
    """A bundle with the numbers of BatchNorm, in so many bits, and the biases rounded coarsely."""
    out = dict(made.tensors)
    for op in made.card.graph.layers:
        for part, bits in (("norm.weight", norm_bits), ("norm.bias", norm_bits), ("bias", BOOK_BITS)):
            if (key := f"{op.name}.{part}") in out:
                out[key] = coarse(out[key], bits)
    return Bundle(made.card, out, made.digest)


def uniform(plain: Bundle, encoding: str) -> dict[str, Option]:
    """All layers of a canonical bundle that `encoding` can hold stored so, the others as int8."""
    how, chosen = find(encoding), {}
    for op in coded_layers(plain.card):
        weight = plain.tensors[weight_name(op)]
        name = encoding if how.holds(weight) else "int8"
        chosen[op.name] = Option(name, 0.0, find(name).encode(weight), math.nan, math.nan)
    return chosen
