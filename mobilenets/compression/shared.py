"""What storing a layer otherwise does to a network's answers, and codes that make up for each other's errors.

Damage is measured, not assumed: each layer's output error, by what an error there does to the answers. That in a
channel's mean is none: the numbers beside the weights make good for it (`norms`). Codes are chosen one after another,
later ones for what those before them did (Frantar et al., arXiv 2210.17323).
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from mobilenets import tasks
from mobilenets.arch.operations import Op
from mobilenets.compression import norms
from mobilenets.compression.calibrate import BATCH, batches
from mobilenets.compression.coded import NORM_BITS, WAYS, Option, assembled, coded_layers, numbers_coarse, options
from mobilenets.compression.norms import holder
from mobilenets.model.bundle import Bundle
from mobilenets.model.codes import Array, constrained, packed
from mobilenets.model.encodings import find, weight_name
from mobilenets.model.images import Pixels
from mobilenets.model.module import Taps
from mobilenets.model.net import Net, of_tensors

PROBE = "kmeans-3"  # what a layer is stored as to see what an error in it does
UNSEEN = 5e-4  # what a task's answers may be off without being others, as nats of a classifier's
FEW, FEWER = 32, 16  # images on which damage is measured; those whose layers' inputs are kept while it is
SHRINK = 2  # times the channels, positions at which products of two are worth half
DAMP = 0.01  # of the mean of the second moments, added to each


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

    def of(self, op: Op, stored: Array, moved: Tensor) -> float:
        """How far the answers are with one layer's weights in the place of its own.

        `moved` [cout]: by how much the means of the layer's sums are off then, which its shift or bias makes good.
        """
        layer = holder(self.net, op)
        weight = cast(Tensor, layer.weight)
        shift, by = cast("Tensor | None", getattr(layer, "bias", None)), -moved
        if op.norm:
            norm = cast(nn.Module, self.net.of(op).norm)
            shift, by = cast(Tensor, norm.bias), -moved * cast(Tensor, norm.weight)
        with torch.inference_mode():
            own = [(t, t.clone()) for t in (weight, shift) if t is not None]
            weight.copy_(torch.from_numpy(stored))
            if shift is not None:
                shift += by
            found = float(self.task.teach(self.answers, _taps(self.net, self.few)))
            for tensor, before in own:
                tensor.copy_(before)
        return max(found, 1e-12)

    def fitted(self, made: Bundle, like: Bundle) -> Bundle:
        """`made` with BatchNorm's numbers and biases rounded, and such that its channels are those of `like`."""
        return norms.fitted(numbers_coarse(made, self.norm_bits), like, self.few, self.norm_bits)

    def assembled(self, chosen: Mapping[str, Option]) -> Bundle:
        """The network with layers stored as chosen, and the numbers beside them fitted to that."""
        return self.fitted(assembled(self.plain, chosen, self.norm_bits), self.plain)

    @functools.cached_property
    def norm_bits(self) -> int:
        """The fewest bits for BatchNorm's numbers that leave the answers as they are; most where none are compared."""
        if not self.task.taps:
            return NORM_BITS[-1]
        for bits in NORM_BITS:
            rounded = norms.fitted(numbers_coarse(self.plain, bits), self.plain, self.few, bits)
            net = of_tensors(self.plain.card, rounded.tensors)
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

            def errors(option_weight: Array) -> Tensor:
                """Of the layer's sums, [cout, n]."""
                difference = torch.from_numpy(option_weight - weight)
                if isinstance(layer, nn.Linear):
                    return difference @ x.flatten(1).T
                made: Tensor = nn.Conv2d._conv_forward(cast(nn.Conv2d, layer), x, difference, None)
                return made.transpose(0, 1).flatten(1)

            def error(option_weight: Array) -> float:
                return float(errors(option_weight).var(1, correction=0).mean())

            def back(name: str, stored: Mapping[str, Array]) -> Array:
                return find(name).decode(stored, weight.shape)

            probe = back(PROBE, find(PROBE).encode(weight))
            slope = self.of(op, probe, errors(probe).mean(1)) / max(error(probe), 1e-30)
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
        """Of each layer that sums over channels alone: the covariances of its input channels, [cin, cin].

        Products of two channels are shrunk, the more the fewer positions they were seen at: what few images say of
        channels that go together isn't so of others (Ledoit and Wolf 2004).
        """
        sums: dict[str, Tensor] = {}
        totals: dict[str, Tensor] = {}
        counts: Counter[str] = Counter()

        def add(op: Op, x: Tensor) -> None:
            flat = x.transpose(0, 1).flatten(1) if x.ndim == 4 else x.T
            made = flat @ flat.T
            counts[op.name] += flat.shape[1]
            sums[op.name] = sums[op.name] + made if op.name in sums else made
            totals[op.name] = totals.get(op.name, 0) + flat.sum(1)

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
            seen = counts[name]
            mean = totals[name].double().numpy() / seen
            whole = s.double().numpy() / seen - np.outer(mean, mean)
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
