"""BatchNorm's statistics of a network that came without them, as one whose BatchNorm was folded into its weights.

Training replaces statistics by those of each batch: where a network's own are far from these, it becomes another
network at once. So they are measured first, and BatchNorm's weight and bias set such that it computes what it did.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from mobilenets.data.dataset import Split, gather
from mobilenets.errors import UserError
from mobilenets.model.images import Pixels, Preprocess
from mobilenets.model.module import MobileNet

PIXELS = 64 * 224 * 224  # of the images measured on: more images where they are small, since their last maps are too
MOST, BATCH = 1024, 16  # images
# The divergence, nats, that a tenth of a network's channels exceed. Trained networks reach 0.04 to 1.8, the last on
# images unlike any that they were trained on; those whose BatchNorm was folded 5.7 and more.
MISFIT = 3.0

Moments = Mapping[nn.BatchNorm2d, tuple[Tensor, Tensor]]


def settle(net: MobileNet, fresh: Collection[str], split: Split, preprocess: Preprocess, seed: int) -> int:
    """Give a network the statistics of the split's images, where its own don't fit them: on how many, or 0.

    In eval mode it computes what it did. The `fresh` layers, which come from nowhere, stay as they are. Raises
    `UserError` where the network gives values that aren't finite.
    """
    norms = [
        module
        for op in net.graph.layers
        if op.norm and op.name not in fresh
        for module in net.of(op).modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    if not any(norm.bias.any() for norm in norms):  # nobody trained it: what it computes is worth nothing
        return 0
    images = _sample(split, preprocess, seed)
    if not len(images):
        return 0
    found = moments(net, norms, _batches(images, preprocess))
    if not (_bare(norms) or misfit(found) > MISFIT):
        return 0
    for norm, (mean, variance) in found.items():
        restate(norm, mean, variance)
    return len(images)


def moments(net: MobileNet, norms: Collection[nn.BatchNorm2d], batches: Iterator[Tensor]) -> Moments:
    """Mean and variance over images and positions of what each of `norms` reads, float64 [C], the network in eval mode.

    One pass serves all layers: none reads another's statistics anew, since what they compute doesn't change.
    """
    sums: dict[nn.Module, tuple[Tensor, Tensor, int]] = {}

    def see(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].double().transpose(0, 1).flatten(1)  # [C, N*H*W]
        if not torch.isfinite(x).all():
            raise UserError("--init: the network gives values that aren't finite; its weights are damaged")
        mean = x.mean(1)
        before, spread, count = sums.get(norm, (torch.zeros_like(mean), torch.zeros_like(mean), 0))
        now = count + x.shape[1]
        step = mean - before
        spread = spread + (x - mean[:, None]).square().sum(1) + step.square() * count * x.shape[1] / now
        sums[norm] = before + step * x.shape[1] / now, spread, now

    training = net.training
    handles = [norm.register_forward_pre_hook(see) for norm in norms]
    try:
        net.eval()
        with torch.no_grad():
            for x in batches:
                net.answers(x)
    finally:
        net.train(training)
        for handle in handles:
            handle.remove()
    return {n: (sums[n][0], sums[n][1] / sums[n][2]) for n in norms if n in sums}


def misfit(found: Moments) -> float:
    """The divergence of measured statistics from the network's own, nats, that a tenth of all channels exceed.

    Of normal distributions, as if each channel had one.
    """
    each = []
    for norm, (mean, variance) in found.items():
        own_mean, own_variance = _own(norm)
        seen, kept = variance + norm.eps, own_variance + norm.eps
        each.append((torch.log(kept / seen) + (seen + (mean - own_mean).square()) / kept - 1) / 2)
    return float(torch.cat(each).quantile(0.9))


@torch.no_grad()
def restate(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Set a layer's running statistics, and its weight and bias such that it computes what it did."""
    own_mean, own_variance = _own(norm)
    gain = norm.weight.double() / (own_variance + norm.eps).sqrt()
    norm.bias.copy_(norm.bias.double() + (mean - own_mean) * gain)
    norm.weight.copy_(gain * (variance + norm.eps).sqrt())
    for buffer, value in ((norm.running_mean, mean), (norm.running_var, variance)):
        assert buffer is not None
        buffer.copy_(value)


def _own(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.double(), norm.running_var.double()


def _bare(norms: Collection[nn.BatchNorm2d]) -> bool:
    """Whether all have a mean of 0 and one variance, which stand for none where BatchNorm was folded."""
    variances = torch.cat([_own(norm)[1] for norm in norms])
    return not any(_own(norm)[0].any() for norm in norms) and bool((variances == variances[0]).all())


def _sample(split: Split, preprocess: Preprocess, seed: int) -> Pixels:
    """Images of a split as a prediction sees them, [N, H, W, 3]: in shards the first, elsewhere any."""
    height, width = preprocess.input_size
    order = np.arange(len(split)) if split.shards else np.random.default_rng(seed).permutation(len(split))
    return gather(split.subset(order[: min(MOST, 1 + PIXELS // (height * width))]), preprocess).pixels


def _batches(images: Pixels, preprocess: Preprocess) -> Iterator[Tensor]:
    for i in range(0, len(images), BATCH):
        yield torch.from_numpy(preprocess.normalize(images[i : i + BATCH]))
