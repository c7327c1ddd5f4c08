"""Cross-layer equalization and bias correction (Nagel et al., arXiv 1906.04721), on folded weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from mobilenets.arch.graph import Graph
from mobilenets.arch.operations import Op
from mobilenets.compression.calibrate import batches, watch
from mobilenets.model.card import Card
from mobilenets.model.encodings import Array, Folded, Tensors
from mobilenets.model.images import Pixels
from mobilenets.model.reference import FoldedNetwork, Layer

ROUNDS = 40
HEADROOM = 1.25  # a channel may come this near to a ReLU6's 6, over its largest value on the images


def pairs(graph: Graph) -> Iterator[tuple[Op, Op]]:
    """Layers whose output goes into one other layer alone, through nothing but ReLU, ReLU6 and pooling; and that layer.

    Hard-swish, hard-sigmoid and GELU change when their input is scaled: no pair spans them, nor a shortcut or a gate.
    What the network gives is read by whoever uses it, too.
    """
    given = {o.op for o in graph.outputs}

    def only_reader(name: str) -> Op | None:
        after = () if name in given else graph.readers[name]
        return after[0] if len(after) == 1 else None

    for op in graph.layers:
        after = only_reader(op.name)
        while after and after.kind == "pool":
            after = only_reader(after.name)
        if after and after.is_layer:
            yield op, after


def equalize(card: Card, folded: Folded, images: Pixels, constants: Tensors | None = None) -> Folded:
    """Channels between two layers scaled so that the weights that make and that read each span the same range.

    A layer's channel divided by s and the next layer's weights for it multiplied by s compute the same, through a ReLU
    too. Through a ReLU6 they do while the channel stays below 6: one that doesn't, over `images` (uint8 [N, H, W, 3])
    and some headroom, is left as it is, and no other is scaled beyond. `constants`: as `FoldedNetwork` takes them.
    """
    found = list(pairs(card.graph))
    clipped = {op.name for op, _ in found if op.activation == "relu6"}
    # The least s of each channel; those that reach 6 unscaled have none.
    least = {name: peak * HEADROOM / 6 for name, peak in _peaks(card, folded, images, clipped, constants).items()}
    left = {name: s >= 1 for name, s in least.items()}
    out = {name: (weight.astype(np.float64), bias.astype(np.float64)) for name, (weight, bias) in folded.items()}
    for _ in range(ROUNDS):
        for first, second in found:
            (w1, b1), (w2, b2) = out[first.name], out[second.name]
            by_input = w2.reshape(second.groups, -1, w2.shape[1], w2[0, 0].size)  # channel = group x its own channel
            r1, r2 = np.abs(w1).reshape(len(w1), -1).max(1), np.abs(by_input).max((1, 3)).ravel()
            s = np.sqrt(np.divide(r1, r2, out=np.ones_like(r1), where=(r1 > 0) & (r2 > 0)))
            if first.name in clipped:
                s = np.where(left[first.name], 1, np.maximum(s, least[first.name]))
                least[first.name] /= s
            out[first.name] = w1 / s[:, None, None, None], b1 / s
            out[second.name] = (by_input * s.reshape(second.groups, 1, -1, 1)).reshape(w2.shape), b2
    return {name: (w.astype(np.float32), b.astype(np.float32)) for name, (w, b) in out.items()}


def _peaks(card: Card, folded: Folded, images: Pixels, names: set[str], constants: Tensors | None) -> dict[str, Array]:
    """The largest output of each channel of the layers `names`."""
    peaks: dict[str, Array] = {}

    def see(op: Op, _module: nn.Module, _inputs: tuple[Tensor, ...], y: Tensor) -> None:
        if op.name in names:
            peak = y.amax((0, 2, 3)).double().numpy()
            peaks[op.name] = np.maximum(peaks.get(op.name, peak), peak)

    watch(FoldedNetwork(card.arch, card.graph, folded, constants).eval(), batches(card.preprocess, images), see)
    return peaks


def correct(card: Card, folded: Folded, stored: Folded, images: Pixels, constants: Tensors | None = None) -> Folded:
    """`folded` with biases that make up for what rounded weights, `stored`, add to the mean of each output channel.

    The mean is over `images`, uint8 [N, H, W, 3], or the boxes in them, and all positions; layers read what they do in
    the float network. `constants`: as `FoldedNetwork` takes them.
    """
    network = FoldedNetwork(card.arch, card.graph, folded, constants).eval()
    errors = {name: torch.from_numpy(stored[name][0] - weight) for name, (weight, _) in folded.items()}
    shifts = {name: np.zeros(len(bias)) for name, (_, bias) in folded.items()}
    seen = dict.fromkeys(folded, 0)  # images, or boxes

    def see(op: Op, module: nn.Module, inputs: tuple[Tensor, ...], _y: Tensor) -> None:
        if isinstance(module, Layer):
            shifts[op.name] += module.sums(inputs[0], errors[op.name]).mean((2, 3)).sum(0).double().numpy()
            seen[op.name] += len(inputs[0])

    watch(network, batches(card.preprocess, images), see)
    return {
        name: (weight, (bias - shifts[name] / max(seen[name], 1)).astype(np.float32))
        for name, (weight, bias) in folded.items()
    }
