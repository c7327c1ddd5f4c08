"""The ideas that a network uses, each in a sentence or two, with where it is from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mobilenets.arch.matrices import RANK
from mobilenets.arch.spec import Arch
from mobilenets.reports.explain.parts import ATTENTION, FUSED, INVERTED, SEPARABLE, VARIANTS, short


@dataclass(frozen=True)
class Idea:
    """An idea that a network uses, in a sentence or two; `source` is where it is from."""

    name: str
    text: str
    source: str


def ideas_of(arch: Arch, kinds: Collection[str]) -> tuple[Idea, ...]:
    """The ideas that a network uses, from its operations; `kinds` are its parts'."""
    names = {short(op) for op in arch.ops}
    acts = {op.activation for op in arch.ops}
    variants = [v for v in VARIANTS.values() if v in kinds]
    bottlenecks = bool(variants) or INVERTED in kinds or FUSED in kinds
    every = (
        (SEPARABLE in kinds, "Separable convolution",
         "A standard convolution filters and mixes channels in one step. Here a depthwise layer filters each channel "
         "by itself, then a 1x1 layer mixes the channels: nearly the same job for 1/N + 1/K² of the mult-adds.",
         "V1 paper, section 3.1, figure 2"),
        (arch.name == "v1-full-conv", "The network to compare with",
         "V1 with standard convolutions in place of its separable ones: 8.6 times the mult-adds and 7 times the "
         "parameters for 1.1% more ImageNet top-1 (71.7 against 70.6, as the paper prints them).",
         "V1 paper, table 4"),
        (arch.name == "v1-shallow", "Thin rather than shallow",
         "V1 without its five blocks of 512 channels at 14x14. At about the same cost, V1 made thinner (alpha 0.75) "
         "is better: 68.4 against 65.3% ImageNet top-1.",
         "V1 paper, table 5"),
        (arch.classifier == "toeplitz", "A classifier of low displacement rank",
         f"Its matrix is a sum of {RANK} products of a circulant and a skew-circulant one, each of which is one vector "
         "shifted from row to row: 2 numbers a column for each product in place of one an entry. Files hold the whole "
         "matrix; training and bundles, the vectors.",
         "Sindhwani et al. 2015, arXiv 1510.01722"),
        (arch.classifier == "fastfood", "A deep fried classifier",
         "Its matrix is S·H·G·P·H·B: three diagonals that are trained, a permutation that is drawn, and Hadamard's "
         "matrix, which mixes and has no numbers of its own. Files hold the whole matrix; training and bundles, the "
         "diagonals.",
         "Yang et al. 2015, arXiv 1412.7149"),
        (arch.name == "v2-cifar", "V2 for small images",
         "V2's first two strides of 2 become 1, so that a 32x32 image still has a 4x4 map at the end; rows and "
         "weights are V2's.",
         "V2 table 2, with the strides of the common CIFAR-10 recipe"),
        (arch.name == "v1-cifar", "V1 for small images",
         "V1's first two strides of 2 become 1, so that a 32x32 image still has a 4x4 map at the end; rows and "
         "weights are V1's.",
         "V1 table 1, with the strides that V2 has in the common CIFAR-10 recipe"),
        (bottlenecks, "Inverted residual",
         "Blocks pass on few channels, and expand them inside, where the spatial filtering is done. The shortcut joins "
         "the narrow ends, so little has to wait in memory: a classical residual block is wide-narrow-wide.",
         "V2 paper, section 3.3, figure 3"),
        (bottlenecks and arch.linear_bottleneck, "Linear bottleneck",
         "The last 1x1 layer of a block has no activation. Zeroing the negatives of a few channels destroys "
         "information that can't come back; in the wide middle, other channels still carry it.",
         "V2 paper, section 3.2, figure 1"),
        (bool(variants), "Universal inverted bottleneck",
         "An inverted residual with two optional depthwise layers, before the expansion and inside it; a search chose "
         f"at each block. Both: extra depthwise; the inner alone: inverted bottleneck (V2's); the outer alone: "
         f"ConvNext-like; none: feed-forward. Here: {', '.join(variants)}.",
         "V4 paper, “Universal Inverted Bottlenecks”"),
        (FUSED in kinds, "Fused inverted residual",
         "Early, where channels are few and maps large, expansion and depthwise layer are one standard convolution: "
         "more mult-adds, but fewer passes over large maps, which is what accelerators wait for.",
         "V4 paper, “Universal Inverted Bottlenecks”"),
        (ATTENTION in kinds, "Multi-query attention",
         "Each position asks what to take from all others. The heads have queries of their own but share one key and "
         "one value, so less memory is read; some blocks also look at keys and values at half the resolution.",
         "V4 paper, “Mobile MQA”; Shazeer 2019, arXiv 1911.02150"),
        ("se" in names, "Squeeze-and-excite",
         "Each channel's mean over the map goes through two small 1x1 layers that give it a weight between 0 and 1: "
         "what the image as a whole shows decides which channels count.",
         "V3 paper, section 5.3, figure 4; Hu et al. 2018, arXiv 1709.01507"),
        ("hard_swish" in acts, "Hard-swish",
         "x · relu6(x + 3) / 6: nearly the smooth swish, from operations that are cheap and exact in int8. V3 keeps it "
         "for where maps are small; most blocks of the first half have ReLU.",
         "V3 paper, section 5.2, figure 6"),
        ("relu6" in acts, "ReLU6",
         "ReLU cut off at 6. A known range lets a few bits cover it evenly, which makes int8 robust; clipping costs "
         "nothing extra." + " V1's paper says ReLU, its published weights have ReLU6." * arch.name.startswith("v1"),
         "V2 paper, section 4"),
        (bool(arch.head), "A late last layer",
         f"The widest 1x1 layer, to {arch.features} channels, comes after the pooling: on one position instead of "
         "a whole map, it costs that many times less.",
         "V3 paper, section 5.1, figure 5"),
        (arch.name.endswith("minimalistic"), "Minimalistic",
         "V3 without squeeze-and-excite, hard-swish and 5x5 kernels, for hardware that is slow at them.",
         "TF-slim, mobilenet_v3"),
    )  # fmt: skip
    return tuple(Idea(name, text, source) for used, name, text, source in every if used)
