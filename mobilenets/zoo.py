"""The networks of the papers, one row of data per row of the table. No torch."""

from __future__ import annotations

from mobilenets import spec
from mobilenets.errors import unknown
from mobilenets.spec import Arch, Conv, InvertedResidual, Network, Separable

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

NETWORKS: dict[str, Network] = {n.name: n for n in (V1, V2)}
ALIASES = {"mobilenet_v1": "v1", "mobilenetv1": "v1", "mobilenet_v2": "v2", "mobilenetv2": "v2"}


def network(name: str) -> Network:
    """The table called `name` ("v1", "v2", or an alias); a UserError suggests the nearest name."""
    key = ALIASES.get(name.lower(), name.lower())
    if key not in NETWORKS:
        raise unknown("arch", name, NETWORKS)
    return NETWORKS[key]


def arch(name: str, alpha: float = 1.0, resolution: int = 224, classes: int = 1000) -> Arch:
    """`name` at width `alpha` and input `resolution`, with the papers' conventions; `spec.scale` takes every other."""
    return spec.scale(network(name), alpha, resolution, classes)
