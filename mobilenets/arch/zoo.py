"""The networks of the papers, one row of data per row of the table. No torch."""

from __future__ import annotations

import dataclasses
from collections import ChainMap

from mobilenets.arch import spec
from mobilenets.arch.earlier import EARLIER
from mobilenets.arch.operations import Activation
from mobilenets.arch.peers import PEERS
from mobilenets.arch.rows import Conv, InvertedResidual, Row, Separable
from mobilenets.arch.spec import Arch, Network
from mobilenets.arch.v4 import V4_CONV_L, V4_CONV_M, V4_CONV_S, V4_HYBRID_L, V4_HYBRID_M
from mobilenets.errors import unknown

# V1 paper (arXiv 1704.04861), table 1. The table prints the last depthwise layer as "s2"; it runs at stride 1.
V1 = Network(
    name="v1",
    rows=(
        Conv(32, kernel=3, stride=2),
        Separable(64, stride=1),
        Separable(128, stride=2),
        Separable(128, stride=1),
        Separable(256, stride=2),
        Separable(256, stride=1),
        Separable(512, stride=2),
        *(Separable(512, stride=1),) * 5,
        Separable(1024, stride=2),
        Separable(1024, stride=1),
    ),
    activation="relu6",  # the paper says ReLU; every public set of weights has ReLU6
    keep_head=False,
    source="V1 table 1",
    alphas=(0.25, 0.5, 0.75, 1.0),
    resolutions=(128, 160, 192, 224),
)

# V1 for 32x32 images, as V2_CIFAR below: the first two strides are 1, and a map of 4x4 is pooled.
V1_CIFAR = dataclasses.replace(
    V1,
    name="v1-cifar",
    rows=(Conv(32, kernel=3, stride=1), V1.rows[1], Separable(128, stride=1), *V1.rows[3:]),
    source="V1 table 1, strides for 32x32",
    alphas=(1.0,),
    resolutions=(32,),
)

# "Conv MobileNet": V1 with standard convolutions instead of separable ones (V1 paper, table 4).
V1_FULL_CONV = dataclasses.replace(
    V1,
    name="v1-full-conv",
    rows=(V1.rows[0], *(Conv(r.channels, kernel=3, stride=r.stride) for r in V1.rows[1:])),
    source="V1 table 4",
    alphas=(1.0,),
    resolutions=(224,),
)

# "Shallow MobileNet": V1 without its five blocks of 14x14x512 (V1 paper, table 5).
V1_SHALLOW = dataclasses.replace(
    V1,
    name="v1-shallow",
    rows=(*V1.rows[:7], *V1.rows[12:]),
    source="V1 table 5",
    alphas=(1.0,),
    resolutions=(224,),
)


# V1 with a classifier whose matrix is made of a few vectors: a quarter of its numbers, at width .25 half, are there.
V1_TOEPLITZ = dataclasses.replace(V1, name="v1-toeplitz", classifier="toeplitz", source="V1 table 1 and 1510.01722")
V1_FASTFOOD = dataclasses.replace(V1, name="v1-fastfood", classifier="fastfood", source="V1 table 1 and 1412.7149")


def _bottlenecks(t: int, c: int, n: int, s: int) -> tuple[InvertedResidual, ...]:
    """A line of V2's table 2: n bottlenecks of c channels, expansion t, the first of stride s."""
    return (InvertedResidual(c, stride=s, expand=t), *(InvertedResidual(c, stride=1, expand=t),) * (n - 1))


# V2 paper (arXiv 1801.04381), table 2.
V2 = Network(
    name="v2",
    rows=(
        Conv(32, kernel=3, stride=2),
        *_bottlenecks(1, 16, 1, 1),
        *_bottlenecks(6, 24, 2, 2),
        *_bottlenecks(6, 32, 3, 2),
        *_bottlenecks(6, 64, 4, 2),
        *_bottlenecks(6, 96, 3, 1),
        *_bottlenecks(6, 160, 3, 2),
        *_bottlenecks(6, 320, 1, 1),
        Conv(1280, kernel=1, stride=1),
    ),
    activation="relu6",
    keep_head=True,
    source="V2 table 2",
    alphas=(0.35, 0.5, 0.75, 1.0, 1.3, 1.4),
    resolutions=(96, 128, 160, 192, 224),
)

# V2 for 32x32 images: the first two strides are 1, as in the widely used PyTorch CIFAR-10 recipe, and a map of 4x4 is
# pooled.
V2_CIFAR = dataclasses.replace(
    V2,
    name="v2-cifar",
    rows=(
        Conv(32, kernel=3, stride=1),
        *_bottlenecks(1, 16, 1, 1),
        *_bottlenecks(6, 24, 2, 1),
        *V2.rows[4:],
    ),
    source="V2 table 2, strides for 32x32",
    alphas=(1.0,),
    resolutions=(32,),
)


def _bneck(k: int, exp: int, cin: int, out: int, se: bool, nl: Activation, s: int) -> InvertedResidual:
    """A line of V3's tables 1 and 2: kernel, expansion size, output; `cin` is the line before's."""
    return InvertedResidual(out, stride=s, expand=exp / cin, kernel=k, se=se, activation=nl)


def _v3(name: str, source: str, rows: tuple[Row, ...], last: int, head: int, alphas: tuple[float, ...]) -> Network:
    return Network(
        name=name,
        rows=(Conv(16, kernel=3, stride=2), *rows, Conv(last, kernel=1)),
        head=(Conv(head, kernel=1, norm=False),),
        activation="hard_swish",
        keep_head=True,
        source=source,
        alphas=alphas,
        resolutions=(224,),
    )


def _minimalistic(network: Network) -> Network:
    """Without squeeze-and-excite, hard-swish and 5x5 kernels (TF-slim's "minimalistic" V3)."""
    rows = tuple(
        dataclasses.replace(r, kernel=3, se=False, activation=None) if isinstance(r, InvertedResidual) else r
        for r in network.rows
    )
    name = f"{network.name}-minimalistic"
    return dataclasses.replace(
        network, name=name, rows=rows, activation="relu", source="TF-slim mobilenet_v3", alphas=(1.0,)
    )


# V3 paper (arXiv 1905.02244), table 1.
V3_LARGE = _v3(
    "v3-large",
    "V3 table 1",
    (
        _bneck(3, 16, 16, 16, False, "relu", 1),
        _bneck(3, 64, 16, 24, False, "relu", 2),
        _bneck(3, 72, 24, 24, False, "relu", 1),
        _bneck(5, 72, 24, 40, True, "relu", 2),
        _bneck(5, 120, 40, 40, True, "relu", 1),
        _bneck(5, 120, 40, 40, True, "relu", 1),
        _bneck(3, 240, 40, 80, False, "hard_swish", 2),
        _bneck(3, 200, 80, 80, False, "hard_swish", 1),
        _bneck(3, 184, 80, 80, False, "hard_swish", 1),
        _bneck(3, 184, 80, 80, False, "hard_swish", 1),
        _bneck(3, 480, 80, 112, True, "hard_swish", 1),
        _bneck(3, 672, 112, 112, True, "hard_swish", 1),
        _bneck(5, 672, 112, 160, True, "hard_swish", 2),
        _bneck(5, 960, 160, 160, True, "hard_swish", 1),
        _bneck(5, 960, 160, 160, True, "hard_swish", 1),
    ),
    last=960,
    head=1280,
    alphas=(0.75, 1.0),
)

# V3 paper, table 2.
V3_SMALL = _v3(
    "v3-small",
    "V3 table 2",
    (
        _bneck(3, 16, 16, 16, True, "relu", 2),
        _bneck(3, 72, 16, 24, False, "relu", 2),
        _bneck(3, 88, 24, 24, False, "relu", 1),
        _bneck(5, 96, 24, 40, True, "hard_swish", 2),
        _bneck(5, 240, 40, 40, True, "hard_swish", 1),
        _bneck(5, 240, 40, 40, True, "hard_swish", 1),
        _bneck(5, 120, 40, 48, True, "hard_swish", 1),
        _bneck(5, 144, 48, 48, True, "hard_swish", 1),
        _bneck(5, 288, 48, 96, True, "hard_swish", 2),
        _bneck(5, 576, 96, 96, True, "hard_swish", 1),
        _bneck(5, 576, 96, 96, True, "hard_swish", 1),
    ),
    last=576,
    head=1024,
    alphas=(0.75, 1.0),
)


NETWORKS: dict[str, Network] = {
    n.name: n
    for n in (
        V1,
        V1_FULL_CONV,
        V1_SHALLOW,
        V1_CIFAR,
        V2,
        V2_CIFAR,
        V3_LARGE,
        V3_SMALL,
        _minimalistic(V3_LARGE),
        _minimalistic(V3_SMALL),
        V4_CONV_S,
        V4_CONV_M,
        V4_CONV_L,
        V4_HYBRID_M,
        V4_HYBRID_L,
    )
}
# Those that MobileNets are measured against: everything walks them too, but nothing chooses among them by itself.
OTHERS: dict[str, Network] = {n.name: n for n in (*EARLIER, V1_TOEPLITZ, V1_FASTFOOD, *PEERS)}
EVERY: ChainMap[str, Network] = ChainMap(OTHERS, NETWORKS)  # told from the last on


def canonical(name: str) -> str:
    """`name` as `EVERY` spells it: "MobileNet_V3_Large", "mobilenetv3-large" and "v3_large" are "v3-large"."""
    key = name.lower().replace("_", "-")
    if key in EVERY:
        return key
    key = key.removeprefix("mobilenet").removeprefix("-")
    sizes = {"-small": "-s", "-medium": "-m", "-large": "-l"}
    if key.startswith("v4"):
        for long, short in sizes.items():
            key = key.replace(long, short)
    return key


def network(name: str) -> Network:
    """The table called `name` ("v1", "v2", ..., or an alias); a UserError suggests the nearest name."""
    if canonical(name) not in EVERY:
        raise unknown("arch", name, EVERY)
    return EVERY[canonical(name)]


def arch(name: str, alpha: float = 1.0, resolution: int | None = None, num_classes: int = 1000) -> Arch:
    """`name` at width `alpha` and input `resolution`, with the papers' conventions; `spec.scale` takes every other.

    `resolution` None is the one the paper leads with: 224, but for the CIFAR variants (32), larger V4 (256, 384).
    """
    return spec.scale(network(name), alpha, resolution, num_classes)


SMALL, SMALL_RESOLUTIONS = 128, (32, 64, 96)  # for images with less to see than V1's smallest published resolution


def worthwhile(name: str, native_side: int) -> list[int]:
    """The resolutions of a network that images of a short side of `native_side` pixels are worth, smallest first.

    At most twice their own: beyond, there is nothing more to see. Small ones are among them where the images are small.
    """
    most = max(SMALL_RESOLUTIONS[0], 2 * native_side)
    small = SMALL_RESOLUTIONS if most < SMALL else ()
    return [r for r in sorted({*small, *network(name).resolutions}) if r <= most]
