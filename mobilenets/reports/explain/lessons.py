"""The ideas that small networks are made of, each beside what it replaces: drawn, counted, said. No torch.

A lesson's ways do the same job; their costs are counted from rows, as those of whole networks are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilenets.arch import cost
from mobilenets.arch.cost import Cost, CostRow
from mobilenets.arch.operations import INPUT, Op
from mobilenets.arch.rows import Conv, InvertedResidual, Row, Separable
from mobilenets.arch.rows_branches import Branches, Step, convolution, fire, pooling
from mobilenets.arch.rows_units import Factorized, Flattened, GhostBottleneck, GroupedShuffleUnit, ShuffleUnit
from mobilenets.arch.spec import Arch
from mobilenets.reports.explain.parts import Shape, shapes_of

SIDE = 32  # of the maps that blocks are shown on


@dataclass(frozen=True)
class Way:
    """One way to do a lesson's job: `rows` after a layer that makes the map they start from."""

    name: str
    rows: tuple[Row, ...]
    cin: int = 128
    side: int = SIDE
    classes: int = 0
    whole: bool = False  # a network of its own, from the image on

    @functools.cached_property
    def cost(self) -> Cost:
        first = (
            () if self.whole else (Conv(self.cin, kernel=1, stride=SIDE * 7 // self.side if self.side < SIDE else 1),)
        )
        resolution = SIDE * 7 if self.side < SIDE else self.side
        return cost.count(Arch("way", 1.0, resolution, self.classes, (*first, *self.rows), activation="relu"))

    @property
    def source(self) -> str:
        """What the drawing starts from."""
        return INPUT if self.whole else self.cost.arch.blocks[0].output

    @functools.cached_property
    def ops(self) -> tuple[Op, ...]:
        """The operations drawn, in order."""
        arch = self.cost.arch
        body = tuple(op for b in arch.blocks[0 if self.whole else 1 :] for op in b.ops)
        return body + (arch.tail if self.classes else ())

    @property
    def _counted(self) -> list[CostRow]:
        names = {op.name for op in self.ops}
        return [r for r in self.cost.rows if r.layer in names]

    @property
    def macs(self) -> int:
        return sum(r.macs for r in self._counted)

    @property
    def params(self) -> int:
        return sum(r.params for r in self._counted)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Of every operation's output and of the source: (channels, height, width)."""
        return shapes_of(self.cost.arch)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "macs": self.macs, "params": self.params, "operations": [o.name for o in self.ops]}


@dataclass(frozen=True)
class Lesson:
    """An idea: its ways from the costly one on, the formula of what it saves, and the paper it is from."""

    name: str
    title: str
    text: str
    formula: str
    source: str
    ways: tuple[Way, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            **{f: getattr(self, f) for f in ("name", "title", "text", "formula", "source")},
            "ways": [w.to_json() for w in self.ways],
        }


@dataclass(frozen=True)
class Lessons:
    """What `explain` says of ideas; `html` is where the page was written."""

    lessons: tuple[Lesson, ...]
    html: Path | None = None

    def to_json(self) -> dict[str, Any]:
        return {"ideas": [x.to_json() for x in self.lessons], "html": str(self.html) if self.html else None}


def _residual(wide: int, narrow: int) -> tuple[Row, ...]:
    """A classical bottleneck: wide, narrow, wide."""
    return (
        Branches((Step("reduce", narrow), Step("conv", narrow, 3, reads="reduce"), Step("expand", wide, reads="conv"))),
    )


def _thinned(strides: Sequence[int]) -> tuple[Row, ...]:
    """Twelve separable layers of 64 channels, those of stride 2 where `strides` says."""
    return (Conv(64, kernel=3), *(Separable(64, stride=2 if i in strides else 1) for i in range(12)))


def _as_vgg_ends() -> tuple[Row, ...]:
    return convolution(4096, 7, pad=0, norm=False), convolution(4096, 1, norm=False)


IMAGENET = 1000
LESSONS = {
    x.name: x
    for x in (
        Lesson(
            "separable",
            "From the standard convolution to the depthwise separable one",
            "A standard convolution filters and mixes channels in one step. Every other way takes the two apart: a "
            "filter inside each channel and a 1x1 layer that mixes them, the input added between (factorized); the "
            "mixing first, then one filter down and one across (flattened); one depthwise filter, then the mixing, "
            "each with BatchNorm and an activation (depthwise separable, what MobileNets are made of).",
            "K²·M·N for M inputs and N outputs; apart K²·M + M·N, that is 1/N + 1/K² of it; a filter in two lines: "
            "2·K·N.",
            "factorized: Wang et al. 1608.04337; flattened: Jin et al. 1412.5474; separable: V1 paper, section 3.1",
            (
                Way("standard", (Conv(128, kernel=3),)),
                Way("factorized", (Factorized(128),)),
                Way("flattened", (Flattened(128),)),
                Way("depthwise separable", (Separable(128),)),
            ),
        ),
        Lesson(
            "1x1",
            "1x1 in place of 3x3",
            "A 1x1 layer mixes channels at each position and looks at no neighbour. Where enough neighbours are "
            "seen already, it does the job of a 3x3 layer for a ninth.",
            "M·N in place of 9·M·N.",
            "SqueezeNet, Iandola et al. 1602.07360, section 3.1, strategy 1",
            (Way("3x3", (Conv(128, kernel=3),)), Way("1x1", (Conv(128, kernel=1),))),
        ),
        Lesson(
            "fire",
            "Fewer channels before the filters: fire",
            "A 1x1 layer squeezes the channels before the 3x3 filters see them, and half of the outputs are made by"
            " 1x1 layers. What is left of the macs is in the few channels that are filtered.",
            "M·S + S·N/2 + 9·S·N/2 in place of 9·M·N, S the squeezed channels.",
            "SqueezeNet, Iandola et al. 1602.07360, section 3.2",
            (Way("standard", (Conv(128, kernel=3),)), Way("fire", (fire(16, 64),))),
        ),
        Lesson(
            "shuffle",
            "1x1 layers in groups, and a shuffle between them",
            "Once filters are depthwise, the 1x1 layers have nearly all of the macs. In groups they have a g-th, but a "
            "group never hears of the others: so the channels are shuffled, which costs no mac. ShuffleNet V2, since "
            "groups are slow on real hardware, has whole 1x1 layers on half of the channels, none narrow.",
            "M·N/g in place of M·N.",
            "Zhang et al. 1707.01083, figure 2; Ma et al. 1807.11164, figure 3",
            (
                Way("1x1 layers whole", (GroupedShuffleUnit(240, groups=1),), 240),
                Way("in 3 groups, shuffled", (GroupedShuffleUnit(240, groups=3),), 240),
                Way("half of the channels", (ShuffleUnit(240),), 240),
            ),
        ),
        Lesson(
            "inverted-residual",
            "The residual turned inside out",
            "A classical block is wide at its ends and narrow inside. Depthwise filters are so cheap that the "
            "inside can be wide and the ends narrow: what is passed on, and waits in memory for the shortcut, is a "
            "sixth.",
            "t·M·M' + K²·t·M + t·M·N with t the expansion; the map that waits has M channels in place of t·M.",
            "V2 paper, section 3.3, figure 3",
            (
                Way("wide, narrow, wide, then + the map", _residual(144, 36), 144),
                Way("narrow, wide, narrow, then + the map", (InvertedResidual(24, expand=6),), 24),
            ),
        ),
        Lesson(
            "ghost",
            "Half of the features from the other half",
            "Many feature maps look like others. A ghost module computes half of them and makes the rest by a "
            "depthwise filter of those.",
            "M·N/2 + K²·N/2 in place of M·N.",
            "GhostNet, Han et al. 1911.11907, figure 1",
            (
                Way("expand and project", (InvertedResidual(40, expand=3, kernel=0),), 40),
                Way("both by ghosts", (GhostBottleneck(40, 120),), 40),
            ),
        ),
        Lesson(
            "stride",
            "A stride in place of pooling",
            "Of four outputs of a convolution, a 2x2 pooling keeps the largest. With a stride of 2, the convolution"
            " computes one of the four in the first place.",
            "three quarters of the macs.",
            "the all-convolutional net, Springenberg et al. 1412.6806, section 2",
            (
                Way("convolution, max pooling", (Conv(128, kernel=3), pooling(2, 2))),
                Way("convolution of stride 2", (Conv(128, kernel=3, stride=2),)),
            ),
        ),
        Lesson(
            "pooling",
            "The mean of a map in place of all its positions",
            "A fully connected layer on a flattened map has a weight for each position. AlexNet and VGG had three "
            "such layers, and most of their parameters there. The mean of the map leaves one number a channel.",
            "M·C weights in place of M·H·W·C.",
            "Network in Network, Lin et al. 1312.4400, section 3.2; V1 table 1",
            (
                Way("flattened, three layers", _as_vgg_ends(), 1024, 7, IMAGENET),
                Way("flattened, one layer", (convolution(IMAGENET, 7, pad=0, norm=False),), 1024, 7),
                Way("mean, one layer", (), 1024, 7, IMAGENET),
            ),
        ),
        Lesson(
            "downsampling",
            "Where the maps are made smaller",
            "The same layers cost what the maps they see cost. Late strides keep maps large, which is good for "
            "accuracy and dear; early ones are cheap and see less; MobileNets space them evenly.",
            "each stride of 2 makes all layers after it cost a quarter.",
            "SqueezeNet 1602.07360, section 3.1, strategy 3; V1 table 1",
            (
                Way("late", _thinned((6, 8, 10)), side=96, whole=True),
                Way("evenly spaced", _thinned((2, 5, 8)), side=96, whole=True),
                Way("early", _thinned((0, 1, 2)), side=96, whole=True),
            ),
        ),
        Lesson(
            "multipliers",
            "Thinner, or a smaller image",
            "Two numbers make a family of networks out of one: alpha, which all channels are multiplied by, and "
            "rho, which the image's sides are.",
            "alpha² of the 1x1 layers' macs and weights; rho² of all macs, and of no weights.",
            "V1 paper, sections 3.3 and 3.4",
            (
                Way("alpha 1, rho 1", (Separable(128),), side=64),
                Way("alpha 1/2", (Separable(64),), 64, 64),
                Way("rho 1/2", (Separable(128),)),
            ),
        ),
    )
}  # fmt: skip
