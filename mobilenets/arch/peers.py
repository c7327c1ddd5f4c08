"""Small networks of others, which users ask for beside MobileNets, one row of data per row of a table. No torch."""

from __future__ import annotations

import math

from mobilenets.arch.rows import Conv, FusedInvertedResidual, InvertedResidual, Row, round_channels
from mobilenets.arch.rows_branches import convolution, pooling
from mobilenets.arch.rows_units import (
    BiasedSeparable,
    GhostBottleneck,
    GroupedShuffleUnit,
    InvertedBottleneck,
    ShuffleUnit,
)
from mobilenets.arch.spec import Network

_STAGES = (4, 8, 4)  # units in each of ShuffleNet's


def _shuffle_v1(groups: int, first: int) -> Network:
    """ShuffleNet paper (1707.01083), table 1: a column, by the channels of its second stage."""
    rows: list[Row] = [Conv(24, kernel=3, stride=2), pooling(3, 2, pad=1)]
    for i, n in enumerate(_STAGES):
        c = first * 2**i
        rows += [GroupedShuffleUnit(c, 2, groups, dense=i == 0), *[GroupedShuffleUnit(c, 1, groups)] * (n - 1)]
    name = "shufflenet-v1" if groups == 3 else f"shufflenet-v1-g{groups}"
    source, fixed = f"ShuffleNet table 1, g = {groups}", frozenset({24})
    return Network(name, tuple(rows), "relu", False, source, (1.0,), (224,), fixed=fixed)


SHUFFLENETS_V1 = tuple(_shuffle_v1(g, c) for g, c in ((1, 144), (2, 200), (3, 240), (4, 272), (8, 384)))

# ShuffleNet V2 paper (1807.11164), table 5: the table at 1x, and the channels of the other columns.
SHUFFLENET_V2 = Network(
    name="shufflenet-v2",
    rows=(
        Conv(24, kernel=3, stride=2),
        pooling(3, 2, pad=1),
        *(ShuffleUnit(c, stride=1 + (i == 0)) for c, n in zip((116, 232, 464), _STAGES, strict=True) for i in range(n)),
        Conv(1024, kernel=1),
    ),
    activation="relu",
    keep_head=False,
    source="ShuffleNet V2 table 5",
    alphas=(0.5, 1.0, 1.5, 2.0),
    resolutions=(224,),
    fixed=frozenset({24, 1024}),
    widths={
        alpha: dict(zip((24, 116, 232, 464, 1024), columns, strict=True))
        for alpha, columns in {
            0.5: (24, 48, 96, 192, 1024),
            1.0: (24, 116, 232, 464, 1024),
            1.5: (24, 176, 352, 704, 1024),
            2.0: (24, 244, 488, 976, 2048),
        }.items()
    },
)


def _bottlenecks(c: int, n: int, s: int, kernel: int, t: float) -> tuple[InvertedResidual, ...]:
    """N inverted residuals of c channels, the first of stride s."""
    first, other = (InvertedResidual(c, stride=stride, expand=t, kernel=kernel) for stride in (s, 1))
    return first, *(other,) * (n - 1)


# MnasNet paper (1807.11626), figure 7's B1 as in torchvision. The last layer has one width.
MNASNET = Network(
    name="mnasnet",
    rows=(
        Conv(32, kernel=3, stride=2),
        InvertedResidual(16, expand=1),
        *_bottlenecks(24, 3, 2, 3, 3),
        *_bottlenecks(40, 3, 2, 5, 3),
        *_bottlenecks(80, 3, 2, 5, 6),
        *_bottlenecks(96, 2, 1, 3, 6),
        *_bottlenecks(192, 4, 2, 5, 6),
        *_bottlenecks(320, 1, 1, 3, 6),
        Conv(1280, kernel=1),
    ),
    activation="relu",
    keep_head=False,
    source="MnasNet B1",
    alphas=(0.5, 0.75, 1.0, 1.3),
    resolutions=(224,),
    fixed=frozenset({1280}),
)


def _lite(n: int, width: float, depth: float, resolution: int) -> Network:
    """EfficientNet-Lite (tensorflow/tpu, models/official/efficientnet/lite): EfficientNet without gates, with ReLU6.

    Scaled in width and depth together; the first and the last stage keep their one block, and stem and head their
    width.
    """
    table = ((16, 1, 1, 3, 1), (24, 2, 2, 3, 6), (40, 2, 2, 5, 6), (80, 3, 2, 3, 6), (112, 3, 1, 5, 6),
             (192, 4, 2, 5, 6), (320, 1, 1, 3, 6))  # fmt: skip
    rows: list[Row] = [Conv(32, kernel=3, stride=2)]
    for c, times, s, k, t in table:
        deep = times if times == 1 else math.ceil(times * depth)
        rows += _bottlenecks(round_channels(c * width), deep, s, k, t)
    return Network(
        f"efficientnet-lite{n}", (*rows, Conv(1280, kernel=1)), "relu6", True, "EfficientNet-Lite", (1.0,),
        (resolution,),
    )  # fmt: skip


EFFICIENTNET_LITES = tuple(
    _lite(n, *how)
    for n, how in enumerate(((1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 280), (1.4, 1.8, 300)))
)

# MobileNetEdgeTPU (tensorflow/models, official/projects/edgetpu/vision, v1).
MOBILENET_EDGETPU = Network(
    name="mobilenet-edgetpu",
    rows=(
        Conv(32, kernel=3, stride=2),
        Conv(16, kernel=1),
        FusedInvertedResidual(32, stride=2, expand=8),
        *(FusedInvertedResidual(32, expand=4),) * 3,
        FusedInvertedResidual(48, stride=2, expand=8),
        *(FusedInvertedResidual(48, expand=4),) * 3,
        InvertedResidual(96, stride=2, expand=8),
        *_bottlenecks(96, 3, 1, 3, 4),
        InvertedBottleneck(96, expand=8),
        *_bottlenecks(96, 3, 1, 3, 4),
        InvertedResidual(160, stride=2, expand=8, kernel=5),
        *_bottlenecks(160, 3, 1, 5, 4),
        InvertedResidual(192, expand=8),
        Conv(1280, kernel=1),
    ),
    activation="relu",
    keep_head=True,
    source="MobileNetEdgeTPU v1",
    alphas=(1.0,),
    resolutions=(224,),
)


def _mobileone(n: int, widths: tuple[float, ...]) -> Network:
    """MobileOne paper (2206.04040), tables 2 and 3, folded for inference."""
    stages = zip((64, 128, 256, 512), (2, 8, 10, 1), widths, strict=True)
    rows = [BiasedSeparable(int(c * width), stride=1 + (i == 0)) for c, times, width in stages for i in range(times)]
    stem = convolution(int(min(64, 64 * widths[0])), 3, 2, norm=False)
    return Network(f"mobileone-s{n}", (stem, *rows), "relu", False, "MobileOne table 2", (1.0,), (224,))


MOBILEONES = tuple(
    _mobileone(n, widths)
    for n, widths in enumerate(((0.75, 1, 1, 2), (1.5, 1.5, 2, 2.5), (1.5, 2, 2.5, 4), (2, 2.5, 3, 4)))
)

_GHOST_WIDTHS = (16, 24, 40, 48, 72, 80, 112, 120, 160, 184, 200, 240, 480, 672, 960)
# GhostNet paper (1911.11907), table 1; the last layer has one width.
GHOSTNET = Network(
    name="ghostnet",
    rows=(
        Conv(16, kernel=3, stride=2),
        GhostBottleneck(16, 16),
        GhostBottleneck(24, 48, stride=2),
        GhostBottleneck(24, 72),
        GhostBottleneck(40, 72, stride=2, kernel=5, se=True),
        GhostBottleneck(40, 120, kernel=5, se=True),
        GhostBottleneck(80, 240, stride=2),
        GhostBottleneck(80, 200),
        *(GhostBottleneck(80, 184),) * 2,
        GhostBottleneck(112, 480, se=True),
        GhostBottleneck(112, 672, se=True),
        GhostBottleneck(160, 672, stride=2, kernel=5, se=True),
        *(GhostBottleneck(160, 960, kernel=5), GhostBottleneck(160, 960, kernel=5, se=True)) * 2,
        Conv(960, kernel=1),
    ),
    head=(Conv(1280, kernel=1, norm=False),),
    activation="relu",
    keep_head=False,
    source="GhostNet table 1",
    alphas=(0.5, 1.0, 1.3),
    resolutions=(224,),
    fixed=frozenset({1280}),
    widths={a: {1280: 1280} | {c: round_channels(c * a, 4, 4) for c in _GHOST_WIDTHS} for a in (0.5, 1.3)},
)

PEERS = (
    *SHUFFLENETS_V1, SHUFFLENET_V2, MNASNET, *EFFICIENTNET_LITES, MOBILENET_EDGETPU, *MOBILEONES, GHOSTNET,
)  # fmt: skip
