"""What storing a layer otherwise does to a network's answers, and how much of it can be made good again.

Damage is measured, not assumed: each layer's output error, by what an error there does to the answers. Codes make up
for each other's errors (Frantar et al., arXiv 2210.17323); codebooks and BatchNorm are trained to answer as the float
network does.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mobilenets import tasks
from mobilenets.arch.operations import Op
from mobilenets.compression import qat
from mobilenets.compression.calibrate import BATCH, batches
from mobilenets.compression.coded import (
    BOOK_BITS,
    NORM_BITS,
    WAYS,
    Option,
    coarse,
    coded_layers,
    numbers_coarse,
    options,
    two_numbers,
)
from mobilenets.data import checks
from mobilenets.data.dataset import Data, cache_side
from mobilenets.model.bundle import Bundle
from mobilenets.model.codes import Array, constrained, packed
from mobilenets.model.encodings import find, weight_name
from mobilenets.model.images import Pixels
from mobilenets.model.module import Taps
from mobilenets.model.net import Net, of_tensors
from mobilenets.training.recipes import Recipe

PROBE = "kmeans-3"  # what a layer is stored as to see what an error in it does
UNSEEN = 5e-4  # what a task's answers may be off without being others, as nats of a classifier's
FEW, FEWER = 32, 16  # images on which damage is measured; those whose layers' inputs are kept while it is
SHRINK = 2  # times the channels, positions at which products of two are worth half
DAMP = 0.01  # of the mean of the second moments, added to each
# Mean and variance are in BatchNorm's shift and factor already: a batch's own would be taken off twice.
RECIPE = dataclasses.replace(qat.RECIPE, epochs=1, lr=5e-4, norms="kept")


def recipe(epochs: int) -> Recipe:
    """The recipe that codebooks and BatchNorm are trained by."""
    return dataclasses.replace(RECIPE, epochs=epochs)


def holder(net: Net, op: Op) -> nn.Module:
    """The module whose `weight` is the layer's."""
    module = net.of(op)
    return cast(nn.Module, getattr(module, "conv", module))


def _taps(net: Net, x: Tensor) -> Taps:
    return net.run({net.graph.source: x}, tasks.of(net.card).taps)


def _linear(op: Op) -> bool:
    """Whether a layer's outputs are sums over its input channels, at each position alone."""
    return op.groups == 1 and op.weight_shape[2:] == (1, 1) and op.stride == 1


class Damage:
    """A canonical float bundle and images, on which ways to store its layers are measured."""

    def __init__(self, plain: Bundle, images: Pixels) -> None:
        self.plain, self.net = plain, of_tensors(plain.card, plain.tensors)
        self.layers = coded_layers(plain.card)
        self.seen: dict[tuple[str, str, float], Option] = {}  # refined before
        self.images = images
        self.task = tasks.of(plain.card)
        self.few = torch.cat(list(batches(plain.card.preprocess, images[:FEW])))
        with torch.inference_mode():
            self.answers = _taps(self.net, self.few)

    def of(self, op: Op, stored: Array) -> float:
        """How far the answers are with one layer's weights in the place of its own."""
        layer = holder(self.net, op)
        weight = cast(Tensor, layer.weight)
        own = weight.detach().clone()
        with torch.inference_mode():
            weight.copy_(torch.from_numpy(stored))
            found = float(self.task.teach(self.answers, _taps(self.net, self.few)))
            weight.copy_(own)
        return max(found, 1e-12)

    @functools.cached_property
    def norm_bits(self) -> int:
        """The fewest bits for BatchNorm's numbers that leave the answers as they are; most where none are compared."""
        if not self.task.taps:
            return NORM_BITS[-1]
        for bits in NORM_BITS:
            net = of_tensors(self.plain.card, numbers_coarse(self.plain, bits).tensors)
            with torch.inference_mode():
                if float(self.task.teach(self.answers, _taps(net, self.few))) <= UNSEEN:
                    break
        return bits

    def measured(self, ways: Sequence[tuple[str, float]] = WAYS) -> dict[str, list[Option]]:
        """Ways to store each layer, with what they do to the answers.

        Answers are asked for one way alone; the others' errors in the layer's output are taken as proportional to it.
        """
        out: dict[str, list[Option]] = {}

        def see(op: Op, layer: nn.Module, x: Tensor) -> None:
            weight = self.plain.tensors[weight_name(op)]

            def error(option_weight: Array) -> float:
                difference = torch.from_numpy(option_weight - weight)
                if isinstance(layer, nn.Linear):
                    return float((x.flatten(1) @ difference.T).square().mean())
                return float(nn.Conv2d._conv_forward(cast(nn.Conv2d, layer), x, difference, None).square().mean())

            def back(name: str, stored: Mapping[str, Array]) -> Array:
                return find(name).decode(stored, weight.shape)

            probe = back(PROBE, find(PROBE).encode(weight))
            slope = self.of(op, probe) / max(error(probe), 1e-30)
            some = [
                dataclasses.replace(o, damage=slope * error(back(o.encoding, o.stored))) for o in options(weight, ways)
            ]
            out[op.name] = some

        with torch.inference_mode():
            for op, x in self._inputs(self.few[:FEWER]):
                see(op, holder(self.net, op), x)
        return out

    def _inputs(self, x: Tensor) -> list[tuple[Op, Tensor]]:
        """What each layer reads."""
        seen: dict[str, Tensor] = {}
        hooks = [
            holder(self.net, op).register_forward_pre_hook(lambda _m, args, name=op.name: seen.update({name: args[0]}))
            for op in self.layers
        ]
        _taps(self.net, x)
        for hook in hooks:
            hook.remove()
        return [(op, seen[op.name]) for op in self.layers if op.name in seen]

    @functools.cached_property
    def moments(self) -> dict[str, Array]:
        """Of each layer that sums over channels alone: the mean of products of two input channels, [cin, cin].

        Products of two channels are shrunk, the more the fewer positions they were seen at: what few images say of
        channels that go together isn't so of others (Ledoit and Wolf 2004).
        """
        sums: dict[str, Tensor] = {}
        counts: Counter[str] = Counter()

        def add(op: Op, x: Tensor) -> None:
            flat = x.transpose(0, 1).flatten(1) if x.ndim == 4 else x.T
            made = flat @ flat.T
            counts[op.name] += flat.shape[1]
            sums[op.name] = sums[op.name] + made if op.name in sums else made

        hooks = [
            holder(self.net, op).register_forward_pre_hook(lambda _m, args, op=op: add(op, args[0]))
            for op in self.layers
            if _linear(op)
        ]
        with torch.inference_mode():
            for x in batches(self.plain.card.preprocess, self.images, 4 * BATCH):
                _taps(self.net, x)
        for hook in hooks:
            hook.remove()
        out = {}
        for name, s in sums.items():
            whole, seen = s.double().numpy() / counts[name], counts[name]
            kept = seen / (seen + SHRINK * len(whole))
            out[name] = kept * whole + (1 - kept) * np.diag(np.diag(whole))
        return out

    def refined(self, chosen: Mapping[str, Option]) -> dict[str, Option]:
        """The same choice, the codes of codebooks chosen one input channel after another: later ones make up for it."""
        return {
            name: self._refined(name, option)
            if name in self.moments and option.encoding.startswith("kmeans")
            else option
            for name, option in chosen.items()
        }

    def _refined(self, name: str, option: Option) -> Option:
        key = name, option.encoding, option.rate
        if key not in self.seen:
            weight = self.plain.tensors[weight_name(self.plain.card.graph.op(name))]
            bits = find(option.encoding).codes(weight.shape)[""]
            _, levels, price = constrained(weight, bits, option.rate)
            codes = compensated(weight.reshape(len(weight), -1), self.moments[name], levels, price, option.rate)
            stored: dict[str, Array] = {"": packed(codes, bits), "_book": levels.astype(np.float32)}
            self.seen[key] = dataclasses.replace(option, stored=stored)
        return self.seen[key]


def compensated(weight: Array, moments: Array, levels: Array, price: Array, rate: float) -> Array:
    """Codes of `weight` [cout, cin]: column by column, each error spread over the columns that are still to come.

    `moments` [cin, cin] of the inputs say how. A code costs its squared error at the output, plus `rate` times the
    weights' variance for each bit of its price.
    """
    own = moments + np.eye(len(moments)) * (DAMP * np.trace(moments) / len(moments) + 1e-12)
    factor = np.linalg.cholesky(np.linalg.inv(own)).T  # upper: row i says how column i's error goes on
    left, codes = weight.astype(np.float64).copy(), np.zeros(weight.shape, np.uint8)
    scale = 1 / np.diag(factor) ** 2
    slope = rate * weight.var() * scale.mean() * price
    for i in range(weight.shape[1]):
        column = left[:, i]
        codes[:, i] = np.argmin((column[:, None] - levels) ** 2 * scale[i] + slope, 1)
        error = (column - levels[codes[:, i]]) / factor[i, i]
        left[:, i + 1 :] -= error[:, None] * factor[i, i + 1 :]
    return codes


class Book(nn.Module):
    """A layer's weights as values of a table that is trained, whatever its own were.

    The table is trained in units of its own spread: a step of Adam's is as long for every number, and would carry a
    table of small weights away.
    """

    def __init__(self, index: Array, table: Array) -> None:
        super().__init__()
        self.register_buffer("at", torch.from_numpy(np.abs(index).astype(np.int64) - 1))
        self.register_buffer("sign", torch.from_numpy(np.sign(index)))
        self.unit = 2.0 ** round(math.log2(float(table.std()) or 1.0))  # a power of two: nothing is rounded by it
        self.inner = nn.Parameter(torch.from_numpy(table.astype(np.float32) / self.unit))

    at: Tensor
    sign: Tensor

    @property
    def table(self) -> Tensor:
        return self.inner * self.unit

    def forward(self, _weight: Tensor) -> Tensor:
        return self.table.flatten()[self.at] * self.sign


def trainable(made: Bundle) -> tuple[Net, dict[str, Book]]:
    """The network of an encoded bundle, in which tables, BatchNorm and biases are what can be trained."""
    net, books = of_tensors(made.card, made.dense().tensors), {}
    for op in made.card.graph.layers:
        if op.kind != "norm":
            cast(Tensor, holder(net, op).weight).requires_grad_(False)
    for op in coded_layers(made.card):
        layer, key = holder(net, op), weight_name(op)
        how = find(made.card.encodings.get(op.name, "plain"))
        if how.book:
            table = made.tensors[key + how.book]
            places = np.arange(1, table.size + 1, dtype=np.float32).reshape(table.shape)
            shape = tuple(cast(Tensor, layer.weight).shape)
            stored = {s: made.tensors[key + s] for s in how.shapes(shape)} | {how.book: places}
            books[op.name] = Book(how.decode(stored, shape), table)
            parametrize.register_parametrization(layer, "weight", books[op.name], unsafe=True)
    return net, books


def tuned(
    source: Bundle, made: Bundle, data: Data, folder: Path, recipe: Recipe = RECIPE, seed: int = 0,
    norm_bits: int = NORM_BITS[-1],
) -> Bundle:  # fmt: skip
    """`made` with codebooks, BatchNorm and biases trained to answer as `source` does of training images of `data`.

    `folder` is for checkpoints while it trains; `norm_bits` are for each of BatchNorm's numbers.
    """
    from mobilenets.training import loop

    torch.manual_seed(seed)
    data = dataclasses.replace(data, splits={k: v for k, v in data.splits.items() if k != "test"})  # which isn't read
    checks.scan(data, side=cache_side(max(source.card.preprocess.input_size)))  # damaged images are left out
    net, books = trainable(made)
    with loop.suppress_warnings():
        setup = qat.taught(source, net, source.card.preprocess, data, recipe, seed)
        loop.train(setup, data.split("val"), folder, resume=False, where=folder, resume_hint="start again")
    net = net.cpu()
    for name in books:
        parametrize.remove_parametrizations(holder(net, made.card.graph.op(name)), "weight")
    state = {k: v.detach().numpy() for k, v in net.state_dict().items()}
    return settled(made, state, {name: b.table.detach().numpy() for name, b in books.items()}, norm_bits)


def settled(made: Bundle, state: Mapping[str, Any], tables: Mapping[str, Array], norm_bits: int) -> Bundle:
    """`made` with a trained network's numbers beside its codes."""
    graph = made.card.graph
    tensors = {k: v for k, v in state.items() if k in made.tensors and not k.endswith("weight")}
    tensors |= {key: state[key] for op in graph.layers if op.norm for key in (f"{op.name}.norm.weight",)}
    for name, table in tables.items():
        key = weight_name(graph.op(name)) + find(made.card.encodings[name]).book
        tensors[key] = coarse(table, BOOK_BITS)
    trained = {**made.tensors, **tensors}
    return numbers_coarse(Bundle(made.card, {**trained, **two_numbers(made.card, trained)}, made.digest), norm_bits)
