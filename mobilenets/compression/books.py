"""Training of what a network's weights are stored as: codebooks, codes, and the numbers beside them.

They learn to answer as the float network does. A code is the level that is nearest to a weight which is trained as if
it weren't rounded (straight-through: Bengio et al., arXiv 1308.3432), at a price for the bits that it takes, so that a
layer stays as small as it was chosen to be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mobilenets.compression import qat
from mobilenets.compression.coded import BOOK_BITS, coarse, coded_layers, two_numbers
from mobilenets.compression.norms import holder
from mobilenets.compression.shared import Damage
from mobilenets.data import checks
from mobilenets.data.dataset import Data, cache_side
from mobilenets.model.bundle import Bundle
from mobilenets.model.codes import TINY, Array, packed, unpacked
from mobilenets.model.encodings import find, weight_name
from mobilenets.model.net import Net, of_tensors
from mobilenets.training.recipes import Recipe

# Mean and variance are in BatchNorm's shift and factor already: a batch's own would be taken off twice.
RECIPE = dataclasses.replace(qat.RECIPE, epochs=3, batch=32, lr=2e-4, norms="kept")
DEARER = (0.0, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08)  # rates added in the end, where codes came to take more bits
AT_ONCE = 1 << 16  # weights whose distances from all levels are in memory together


def recipe(epochs: int) -> Recipe:
    """The recipe that all this is trained by."""
    return dataclasses.replace(RECIPE, epochs=epochs)


def unit(values: Tensor) -> Tensor:
    """A power of two near each value's size: what is divided by it and multiplied again is what it was."""
    return torch.exp2(values.abs().clamp(min=TINY).log2().round())


class Scaled(nn.Module):
    """Numbers that are trained in units of their own size.

    A step of Adam's is as long for every number: it would carry a small channel's away, and not move a large one's.
    """

    def __init__(self, size: Tensor) -> None:
        super().__init__()
        self.register_buffer("unit", unit(size.detach()))

    unit: Tensor

    def right_inverse(self, value: Tensor) -> Tensor:
        return value / self.unit

    def forward(self, inner: Tensor) -> Tensor:
        return inner * self.unit


class Book(nn.Module):
    """A layer's weights as values of a table that is trained, in units of its own spread, whatever its own were."""

    def __init__(self, index: Array, table: Array) -> None:
        super().__init__()
        self.register_buffer("at", torch.from_numpy(np.abs(index).astype(np.int64) - 1))
        self.register_buffer("sign", torch.from_numpy(np.sign(index)))
        self.unit = float(unit(torch.tensor(float(table.std()) or 1.0)))
        self.inner = nn.Parameter(torch.from_numpy(table.astype(np.float32) / self.unit))

    at: Tensor
    sign: Tensor

    @property
    def table(self) -> Array:
        return (self.inner.detach() * self.unit).numpy()

    def forward(self, _weight: Tensor) -> Tensor:
        return (self.inner * self.unit).flatten()[self.at] * self.sign


class Levels(nn.Module):
    """A layer's weights, each at its level of a table anew in each step; table and weights are trained.

    A level costs its squared distance, and `rate` times the weights' variance for each bit that the code took at first.
    """

    def __init__(self, weight: Array, codes: Array, table: Array, rate: float) -> None:
        super().__init__()
        self.unit = float(unit(torch.tensor(float(table.std()) or 1.0)))
        self.rate, self.variance = rate, float(weight.var()) / self.unit**2
        n = np.bincount(codes.ravel(), minlength=len(table))
        bits = np.where(n > 0, np.log2(codes.size / np.maximum(n, 1)), 64.0).astype(np.float32)
        self.register_buffer("bits", torch.from_numpy(bits))
        self.inner = nn.Parameter(torch.from_numpy(table.astype(np.float32) / self.unit))
        # As near to its own as a weight can be with the code that was chosen for it.
        own, level = (torch.from_numpy(np.asarray(v, np.float32) / self.unit) for v in (weight, table[codes]))
        start, at = level, torch.from_numpy(codes.astype(np.int64))
        for part in (0.25, 0.5, 0.75, 1.0):
            nearer = level + part * (own - level)
            start = torch.where(self.nearest(nearer) == at, nearer, start)
        self.start = start

    bits: Tensor

    @property
    def table(self) -> Array:
        return (self.inner.detach() * self.unit).numpy()

    @torch.no_grad()
    def nearest(self, weight: Tensor, dearer: float = 0.0) -> Tensor:
        """Codes, of the shape of `weight`, which is in this table's unit."""
        price = (self.rate + dearer) * self.variance * self.bits
        parts = [((w[:, None] - self.inner).square() + price).argmin(1) for w in torch.split(weight.flatten(), AT_ONCE)]
        return torch.cat(parts).reshape(weight.shape)

    def right_inverse(self, _weight: Tensor) -> Tensor:
        return self.start

    def forward(self, weight: Tensor) -> Tensor:
        levels = self.inner[self.nearest(weight)]
        return (levels + (weight - weight.detach())) * self.unit  # in this order nothing is rounded


def trainable(plain: Bundle, made: Bundle, rates: Mapping[str, float]) -> tuple[Net, dict[str, Book | Levels]]:
    """The network of `made`, in which tables, codes of tables of numbers, BatchNorm and biases can be trained.

    `plain`: the float network, in canonical form. `rates`: what a bit costs, by layer; 0 where none is said.
    """
    net, books = of_tensors(made.card, made.dense().tensors), dict[str, "Book | Levels"]()
    for op in made.card.graph.layers:
        if op.kind != "norm":
            cast(Tensor, holder(net, op).weight).requires_grad_(False)
        if op.norm:
            norm = cast(nn.Module, net.of(op).norm)
            factor, shift = cast(Tensor, norm.weight), cast(Tensor, norm.bias)
            for name, size in (("weight", factor), ("bias", torch.maximum(factor.abs(), shift.abs()))):
                parametrize.register_parametrization(norm, name, Scaled(size))
    for op in coded_layers(made.card):
        layer, key = holder(net, op), weight_name(op)
        how = find(made.card.encodings.get(op.name, "plain"))
        if not how.book:
            continue
        table, shape = made.tensors[key + how.book], tuple(cast(Tensor, layer.weight).shape)
        bits = how.codes(shape).get("")
        if bits and table.ndim == 1:
            codes = unpacked(made.tensors[key], bits, shape)
            books[op.name] = Levels(plain.tensors[key], codes, table, rates.get(op.name, 0.0))
            cast(Tensor, layer.weight).requires_grad_(True)
        else:
            places = np.arange(1, table.size + 1, dtype=np.float32).reshape(table.shape)
            stored = {s: made.tensors[key + s] for s in how.shapes(shape)} | {how.book: places}
            books[op.name] = Book(how.decode(stored, shape), table)
        parametrize.register_parametrization(layer, "weight", books[op.name], unsafe=True)
    return net, books


def tuned(
    source: Bundle, made: Bundle, damage: Damage, data: Data, folder: Path, recipe: Recipe = RECIPE, seed: int = 0,
    rates: Mapping[str, float] | None = None, fits: Callable[[Bundle], bool] = lambda _made: True,
    teacher: Bundle | None = None,
) -> Bundle:  # fmt: skip
    """`made`, of `damage.plain`, trained to answer as `source` or its `teacher` does of training images of `data`.

    `folder` is for checkpoints while it trains. `rates`: what a bit costs, by layer. Where the result doesn't `fits`,
    bits become dearer.
    """
    from mobilenets.training import loop

    torch.manual_seed(seed)
    data = dataclasses.replace(data, splits={k: v for k, v in data.splits.items() if k != "test"})  # which isn't read
    checks.scan(data, side=cache_side(max(source.card.preprocess.input_size)))  # damaged images are left out
    net, books = trainable(damage.plain, made, rates or {})
    with loop.suppress_warnings():
        setup = qat.taught(source, net, source.card.preprocess, data, recipe, seed, teacher)
        loop.train(setup, data.split("val"), folder, resume=False, where=folder, resume_hint="start again")
    learned, weights = taken(net.cpu(), books)
    for dearer in DEARER:
        codes = {n: b.nearest(weights[n], dearer).numpy() for n, b in books.items() if isinstance(b, Levels)}
        out = settled(made, learned, {n: b.table for n, b in books.items()}, codes, damage)
        if fits(out):
            break
    return out


def taken(net: Net, books: Mapping[str, Book | Levels]) -> tuple[dict[str, Array], dict[str, Tensor]]:
    """What a trained network computes with, by its tensors' names; and by layer the weights that choose levels."""
    weights = {}
    for op in net.graph.layers:
        if isinstance(books.get(op.name), Levels):
            weights[op.name] = cast(Any, holder(net, op)).parametrizations.weight.original.detach().clone()
    for module in [m for m in net.modules() if parametrize.is_parametrized(m)]:
        for name in [*cast(Any, module).parametrizations]:
            parametrize.remove_parametrizations(module, name)
    return {k: v.detach().numpy() for k, v in net.state_dict().items()}, weights


def settled(
    made: Bundle, learned: Mapping[str, Array], tables: Mapping[str, Array], codes: Mapping[str, Array], damage: Damage
) -> Bundle:
    """`made` with a trained network's numbers, tables and codes, rounded, and its channels' means as they were."""
    graph = made.card.graph
    whole = {**made.dense().tensors, **learned}
    whole |= two_numbers(made.card, whole)
    beside = whole.keys() & made.tensors.keys() - {weight_name(op) for op in coded_layers(made.card)}
    tensors = {**made.tensors, **{k: whole[k] for k in beside}}
    for name, table in tables.items():
        key, how = weight_name(graph.op(name)), find(made.card.encodings[name])
        tensors[key + how.book] = coarse(table, BOOK_BITS)
        if name in codes:
            tensors[key] = packed(codes[name], how.codes(codes[name].shape)[""])
    return damage.fitted(Bundle(made.card, tensors, made.digest), Bundle(made.card.replace(encodings={}), whole))
