"""MobileNet V4's networks, one row of data per row of the table. No torch."""

from __future__ import annotations

from mobilenets.arch.operations import Activation
from mobilenets.arch.rows import Attention, Conv, FusedInvertedResidual, InvertedResidual, Row
from mobilenets.arch.spec import Network


def _uib(start: int, mid: int, out: int, t: float, s: int = 1) -> InvertedResidual:
    """A universal inverted bottleneck as V4's tables print it: both depthwise kernels (0 for none), output, ratio.

    Both: the extra-depthwise variant; the second alone: V2's inverted residual; the first alone: ConvNext-like; none: a
    feed-forward network.
    """
    return InvertedResidual(out, stride=s, expand=t, kernel=mid, start=start)


def _v4(name: str, resolution: int, rows: tuple[Row, ...], activation: Activation = "relu") -> Network:
    return Network(
        name=name,
        rows=(*rows, Conv(960, kernel=1)),
        head=(Conv(1280, kernel=1),),
        activation=activation,
        keep_head=True,
        source="V4 appendix",
        alphas=(1.0,),
        resolutions=(resolution,),
    )


# V4 paper (arXiv 2404.10518), the tables of its appendix, read with the authors' code where they leave a choice.
V4_CONV_S = _v4(
    "v4-conv-s",
    224,
    (
        Conv(32, kernel=3, stride=2),
        Conv(32, kernel=3, stride=2),
        Conv(32, kernel=1),
        Conv(96, kernel=3, stride=2),
        Conv(64, kernel=1),
        _uib(5, 5, 96, 3, s=2),
        *(_uib(0, 3, 96, 2),) * 4,
        _uib(3, 0, 96, 4),
        _uib(3, 3, 128, 6, s=2),
        _uib(5, 5, 128, 4),
        _uib(0, 5, 128, 4),
        _uib(0, 5, 128, 3),
        *(_uib(0, 3, 128, 4),) * 2,
    ),
)
V4_CONV_M = _v4(
    "v4-conv-m",
    256,
    (
        Conv(32, kernel=3, stride=2),
        FusedInvertedResidual(48, stride=2, expand=4),
        _uib(3, 5, 80, 4, s=2),
        _uib(3, 3, 80, 2),
        _uib(3, 5, 160, 6, s=2),
        *(_uib(3, 3, 160, 4),) * 2,
        _uib(3, 5, 160, 4),
        _uib(3, 3, 160, 4),
        _uib(3, 0, 160, 4),
        _uib(0, 0, 160, 2),
        _uib(3, 0, 160, 4),
        _uib(5, 5, 256, 6, s=2),
        _uib(5, 5, 256, 4),
        *(_uib(3, 5, 256, 4),) * 2,
        _uib(0, 0, 256, 4),
        _uib(3, 0, 256, 4),
        _uib(3, 5, 256, 2),
        _uib(5, 5, 256, 4),
        *(_uib(0, 0, 256, 4),) * 2,
        _uib(5, 0, 256, 2),
    ),
)
V4_CONV_L = _v4(
    "v4-conv-l",
    384,
    (
        Conv(24, kernel=3, stride=2),
        FusedInvertedResidual(48, stride=2, expand=4),
        _uib(3, 5, 96, 4, s=2),
        _uib(3, 3, 96, 4),
        _uib(3, 5, 192, 4, s=2),
        *(_uib(3, 3, 192, 4),) * 3,
        _uib(3, 5, 192, 4),
        *(_uib(5, 3, 192, 4),) * 5,
        _uib(3, 0, 192, 4),
        _uib(5, 5, 512, 4, s=2),
        *(_uib(5, 5, 512, 4),) * 3,
        _uib(5, 0, 512, 4),
        _uib(5, 3, 512, 4),
        *(_uib(5, 0, 512, 4),) * 2,
        _uib(5, 3, 512, 4),
        _uib(5, 5, 512, 4),
        *(_uib(5, 0, 512, 4),) * 3,
    ),
)
V4_HYBRID_M = _v4(
    "v4-hybrid-m",
    256,
    (
        Conv(32, kernel=3, stride=2),
        FusedInvertedResidual(48, stride=2, expand=4),
        _uib(3, 5, 80, 4, s=2),
        _uib(3, 3, 80, 2),
        _uib(3, 5, 160, 6, s=2),
        _uib(0, 0, 160, 2),
        _uib(3, 3, 160, 4),
        _uib(3, 5, 160, 4),
        Attention(160, heads=4, dim=64, kv_stride=2),
        _uib(3, 3, 160, 4),
        Attention(160, heads=4, dim=64, kv_stride=2),
        _uib(3, 0, 160, 4),
        Attention(160, heads=4, dim=64, kv_stride=2),
        _uib(3, 3, 160, 4),
        Attention(160, heads=4, dim=64, kv_stride=2),
        _uib(3, 0, 160, 4),
        _uib(5, 5, 256, 6, s=2),
        _uib(5, 5, 256, 4),
        *(_uib(3, 5, 256, 4),) * 2,
        _uib(0, 0, 256, 2),
        _uib(3, 5, 256, 2),
        _uib(0, 0, 256, 2),
        _uib(0, 0, 256, 4),
        Attention(256, heads=4, dim=64),
        _uib(3, 0, 256, 4),
        Attention(256, heads=4, dim=64),
        _uib(5, 5, 256, 4),
        Attention(256, heads=4, dim=64),
        _uib(5, 0, 256, 4),
        Attention(256, heads=4, dim=64),
        _uib(5, 0, 256, 4),
    ),
)
V4_HYBRID_L = _v4(
    "v4-hybrid-l",
    384,
    (
        Conv(24, kernel=3, stride=2),
        FusedInvertedResidual(48, stride=2, expand=4),
        _uib(3, 5, 96, 4, s=2),
        _uib(3, 3, 96, 4),
        _uib(3, 5, 192, 4, s=2),
        *(_uib(3, 3, 192, 4),) * 3,
        _uib(3, 5, 192, 4),
        *(_uib(5, 3, 192, 4),) * 2,
        *(Attention(192, heads=8, dim=48, kv_stride=2), _uib(5, 3, 192, 4)) * 3,
        Attention(192, heads=8, dim=48, kv_stride=2),
        _uib(3, 0, 192, 4),
        _uib(5, 5, 512, 4, s=2),
        *(_uib(5, 5, 512, 4),) * 3,
        _uib(5, 0, 512, 4),
        _uib(5, 3, 512, 4),
        *(_uib(5, 0, 512, 4),) * 2,
        _uib(5, 3, 512, 4),
        _uib(5, 5, 512, 4),
        *(Attention(512, heads=8, dim=64), _uib(5, 0, 512, 4)) * 4,
    ),
    activation="gelu",
)
