"""Cross-layer equalization and bias correction (Nagel et al., arXiv 1906.04721), on folded weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from mobilenets.arch.graph import Op
from mobilenets.arch.spec import Arch
from mobilenets.compression.calibrate import batches, watch
from mobilenets.model.encodings import Array, Folded
from mobilenets.model.images import Pixels, Preprocess
from mobilenets.model.reference import FoldedNetwork, Layer

ROUNDS = 40
HEADROOM = 1.25  # a channel may come this near to a ReLU6's 6, over its largest value on the images


def pairs(arch: Arch) -> Iterator[tuple[Op, Op]]:
    """Layers whose output goes into one other layer alone, through nothing but ReLU, ReLU6 and pooling; and that layer.

    Hard-swish, hard-sigmoid and GELU change when their input is scaled: no pair spans them, nor a shortcut or a gate.
    """
    readers: dict[str, list[Op]] = {name: [] for name in arch.activations}
    for op in arch.ops:
        for name in op.inputs:
            readers[name].append(op)
    for op in arch.layers:
        after = readers[op.name]
        while len(after) == 1 and after[0].kind == "pool":
            after = readers[after[0].name]
        if len(after) == 1 and after[0].is_layer:
            yield op, after[0]


def equalize(arch: Arch, preprocess: Preprocess, folded: Folded, images: Pixels) -> Folded:
    """Channels between two layers scaled so that the weights that make and that read each span the same range.

    A layer's channel divided by s and the next layer's weights for it multiplied by s compute the same, through a ReLU
    too. Through a ReLU6 they do while the channel stays below 6: one that doesn't, over `images` (uint8 [N, H, W, 3])
    and some headroom, is left as it is, and no other is scaled beyond.
    """
    found = list(pairs(arch))
    clipped = {op.name for op, _ in found if op.activation == "relu6"}
    # The least s of each channel; those that reach 6 unscaled have none.
    least = {name: peak * HEADROOM / 6 for name, peak in _peaks(arch, preprocess, folded, images, clipped).items()}
    left = {name: s >= 1 for name, s in least.items()}
    out = {name: (weight.astype(np.float64), bias.astype(np.float64)) for name, (weight, bias) in folded.items()}
    for _ in range(ROUNDS):
        for first, second in found:
            (w1, b1), (w2, _) = out[first.name], out[second.name]
            by_input = w2 if second.groups > 1 else w2.swapaxes(0, 1)  # [channels, ...]
            r1, r2 = (np.abs(w).reshape(len(w), -1).max(1) for w in (w1, by_input))
            s = np.sqrt(np.divide(r1, r2, out=np.ones_like(r1), where=(r1 > 0) & (r2 > 0)))
            if first.name in clipped:
                s = np.where(left[first.name], 1, np.maximum(s, least[first.name]))
                least[first.name] /= s
            out[first.name] = w1 / s[:, None, None, None], b1 / s
            by_input *= s.reshape(-1, *[1] * 3)
    return {name: (w.astype(np.float32), b.astype(np.float32)) for name, (w, b) in out.items()}


def _peaks(arch: Arch, preprocess: Preprocess, folded: Folded, images: Pixels, names: set[str]) -> dict[str, Array]:
    """The largest output of each channel of the layers `names`."""
    peaks: dict[str, Array] = {}

    def see(op: Op, _module: nn.Module, _inputs: tuple[Tensor, ...], y: Tensor) -> None:
        if op.name in names:
            peak = y.amax((0, 2, 3)).double().numpy()
            peaks[op.name] = np.maximum(peaks.get(op.name, peak), peak)

    watch(FoldedNetwork(arch, folded).eval(), batches(preprocess, images), see)
    return peaks


def correct(arch: Arch, preprocess: Preprocess, folded: Folded, stored: Folded, images: Pixels) -> Folded:
    """`folded` with biases that make up for what rounded weights, `stored`, add to the mean of each output channel.

    The mean is over `images`, uint8 [N, H, W, 3], and all positions; layers read what they do in the float network.
    """
    network = FoldedNetwork(arch, folded).eval()
    errors = {name: torch.from_numpy(stored[name][0] - weight) for name, (weight, _) in folded.items()}
    shifts = {name: np.zeros(len(bias)) for name, (_, bias) in folded.items()}

    def see(op: Op, module: nn.Module, inputs: tuple[Tensor, ...], _y: Tensor) -> None:
        if isinstance(module, Layer):
            shifts[op.name] += module.sums(inputs[0], errors[op.name]).mean((2, 3)).sum(0).double().numpy()

    watch(network, batches(preprocess, images), see)
    return {
        name: (weight, (bias - shifts[name] / len(images)).astype(np.float32))
        for name, (weight, bias) in folded.items()
    }
