"""The networks before MobileNets, which their papers are measured against, one row of data per row of a table.

No torch. GoogLeNet and Inception v3 are without the classifiers on their side, which only training has. Convolutions
with a BatchNorm where the paper had none, or another kernel, are as torchvision has them, whose weights people use.
"""

from __future__ import annotations

from mobilenets.arch.operations import Activation
from mobilenets.arch.rows import Conv, Row
from mobilenets.arch.rows_branches import SAME, Branches, Pooling, Step, convolution, fire, pooling
from mobilenets.arch.rows_units import BareSeparable, Factorized, Flattened, XceptionBlock
from mobilenets.arch.spec import Classifies, Network


def _network(
    name: str, source: str, rows: tuple[Row, ...], resolution: int = 224, classifies: Classifies = "pooled"
) -> Network:
    activation: Activation = "relu"
    return Network(
        name, rows, activation, keep_head=False, source=source, alphas=(1.0,), resolutions=(resolution,),
        classifies=classifies,
    )  # fmt: skip


_DOWN = pooling(3, 2, ceil=True)  # as Caffe pools

# SqueezeNet paper (1602.07360), table 1, and the authors' second version, which downsamples earlier.
SQUEEZENET_1_0 = _network(
    "squeezenet-1.0",
    "SqueezeNet table 1",
    (
        convolution(96, 7, 2, pad=0, norm=False),
        _DOWN,
        *(fire(16, 64), fire(16, 64), fire(32, 128)),
        _DOWN,
        *(fire(32, 128), fire(48, 192), fire(48, 192), fire(64, 256)),
        _DOWN,
        fire(64, 256),
    ),
    classifies="map",
)
SQUEEZENET_1_1 = _network(
    "squeezenet-1.1",
    "SqueezeNet's repository, v1.1",
    (
        convolution(64, 3, 2, pad=0, norm=False),
        _DOWN,
        *(fire(16, 64), fire(16, 64)),
        _DOWN,
        *(fire(32, 128), fire(32, 128)),
        _DOWN,
        *(fire(48, 192), fire(48, 192), fire(64, 256), fire(64, 256)),
    ),
    classifies="map",
)

# Xception paper (1610.02357), figure 5; its first two convolutions have no padding, as in the author's Keras.
XCEPTION = _network(
    "xception",
    "Xception figure 5",
    (
        convolution(32, 3, 2, pad=0),
        convolution(64, 3, pad=0),
        XceptionBlock(128, stride=2, repeats=2, active=False),
        XceptionBlock(256, stride=2, repeats=2),
        XceptionBlock(728, stride=2, repeats=2),
        *(XceptionBlock(728),) * 8,
        XceptionBlock(1024, stride=2, repeats=2, late=True),
        BareSeparable(1536),
        BareSeparable(2048),
    ),
    resolution=299,
)

# AlexNet on one GPU (1404.5997), as torchvision has it. A fully connected layer on a map is a convolution of its size.
ALEXNET = _network(
    "alexnet",
    "One weird trick (1404.5997), as in torchvision",
    (
        convolution(64, 11, 4, pad=2, norm=False),
        pooling(3, 2),
        convolution(192, 5, norm=False),
        pooling(3, 2),
        convolution(384, norm=False),
        convolution(256, norm=False),
        convolution(256, norm=False),
        pooling(3, 2),
        convolution(4096, 6, pad=0, norm=False),
        convolution(4096, 1, norm=False),
    ),
)


def _vgg(*stages: tuple[int, int]) -> tuple[Row, ...]:
    """Stages of (channels, how many 3x3 convolutions), a pooling after each."""
    return tuple(row for c, n in stages for row in (*(convolution(c, norm=False),) * n, pooling(2, 2)))


# VGG paper (1409.1556), table 1, column D.
VGG16 = _network(
    "vgg16",
    "VGG table 1, D",
    (
        *_vgg((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
        convolution(4096, 7, pad=0, norm=False),
        convolution(4096, 1, norm=False),
    ),
)


def _step(name: str, text: str, reads: str) -> Step:
    """A step as "64", "96 3", "192 1x7", "384 3/2" or "max 3/2": channels or a pooling, the kernel, the stride.

    With a stride nothing is around the map.
    """
    what, _, window = text.partition(" ")
    sides, _, stride = (window or "1").partition("/")
    height, _, width = sides.partition("x")
    pools: Pooling = "max" if what == "max" else "mean" if what == "mean" else ""
    return Step(
        name, 0 if pools else int(what), int(height), int(stride or 1), 0 if stride else SAME, int(width or 0), reads,
        pools,
    )  # fmt: skip


def _branches(*lines: str) -> Branches:
    """Branches by a line each, steps with commas between; what is after a "|" reads what is before the first."""
    steps: list[Step] = []
    for i, line in enumerate(lines):
        trunk, *forks = line.split(" | ")
        before = ""
        for j, text in enumerate(trunk.split(", ")):
            steps.append(_step(f"branch{i}_{j}", text, before))
            before = steps[-1].name
        steps += [_step(f"{before}_{j}", text, before) for j, text in enumerate(forks)]
    return Branches(tuple(steps))


def _inception(b1: int, r3: int, b3: int, r5: int, b5: int, pool: int) -> Branches:
    """A line of GoogLeNet's table 1; torchvision has 3x3 in the place of 5x5."""
    return _branches(f"{b1}", f"{r3}, {b3} 3", f"{r5}, {b5} 3", f"max 3, {pool}")


# GoogLeNet paper (1409.4842), table 1.
GOOGLENET = _network(
    "googlenet",
    "GoogLeNet table 1, as in torchvision",
    (
        Conv(64, kernel=7, stride=2),
        _DOWN,
        Conv(64, kernel=1),
        Conv(192, kernel=3),
        _DOWN,
        _inception(64, 96, 128, 16, 32, 32),
        _inception(128, 128, 192, 32, 96, 64),
        _DOWN,
        _inception(192, 96, 208, 16, 48, 64),
        _inception(160, 112, 224, 24, 64, 64),
        _inception(128, 128, 256, 24, 64, 64),
        _inception(112, 144, 288, 32, 64, 64),
        _inception(256, 160, 320, 32, 128, 128),
        pooling(2, 2, ceil=True),
        _inception(256, 160, 320, 32, 128, 128),
        _inception(384, 192, 384, 48, 128, 128),
    ),
)


def _a(pool: int) -> Branches:
    return _branches("64", "48, 64 5", "64, 96 3, 96 3", f"mean 3, {pool}")


def _c(n: int) -> Branches:
    return _branches("192", f"{n}, {n} 1x7, 192 7x1", f"{n}, {n} 7x1, {n} 1x7, {n} 7x1, 192 1x7", "mean 3, 192")


_E = _branches("320", "384 | 384 1x3 | 384 3x1", "448, 384 3 | 384 1x3 | 384 3x1", "mean 3, 192")

# Inception v3 paper (1512.00567), table 1, its modules as in figures 5 to 7 and the authors' code.
INCEPTION_V3 = _network(
    "inception-v3",
    "Inception v3 table 1",
    (
        convolution(32, 3, 2, pad=0),
        convolution(32, 3, pad=0),
        convolution(64, 3),
        pooling(3, 2),
        convolution(80, 1),
        convolution(192, 3, pad=0),
        pooling(3, 2),
        *(_a(32), _a(64), _a(64)),
        _branches("384 3/2", "64, 96 3, 96 3/2", "max 3/2"),
        *(_c(128), _c(160), _c(160), _c(192)),
        _branches("192, 320 3/2", "192, 192 1x7, 192 7x1, 192 3/2", "max 3/2"),
        *(_E, _E),
    ),
    resolution=299,
)


def _as_v1(name: str, source: str, row: type[Flattened] | type[Factorized]) -> Network:
    """V1's table with another layer in the place of its depthwise separable one: the ideas beside one another."""
    strides = {2: 2, 4: 2, 6: 2, 12: 2}
    widths = (64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)
    rows = (row(c, stride=strides.get(i, 1)) for i, c in enumerate(widths, 1))
    return _network(name, source, (Conv(32, kernel=3, stride=2), *rows))


FLATTENED = _as_v1("flattened", "V1 table 1 with the layers of 1412.5474", Flattened)
FACTORIZED = _as_v1("factorized", "V1 table 1 with the layers of 1608.04337", Factorized)

EARLIER = (
    SQUEEZENET_1_0, SQUEEZENET_1_1, XCEPTION, ALEXNET, VGG16, GOOGLENET, INCEPTION_V3, FLATTENED, FACTORIZED,
)  # fmt: skip
