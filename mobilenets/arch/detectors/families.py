"""The families of one-stage detectors: what each is, how its networks are built, its numbers. No torch, no numpy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from mobilenets.arch import spec, zoo
from mobilenets.arch.detectors.anchors import Convention
from mobilenets.arch.rows import Conv, InvertedResidual, round_channels
from mobilenets.arch.spec import Arch, Variant
from mobilenets.errors import UserError, unknown

Order = Literal["yxhw", "xywh"]
EXTRAS = (512, 256, 256, 128)  # channels of the maps behind the backbone, at alpha 1
MIN_DEPTH = 16  # channels of a layer, as the API's configurations and torchvision have it
# BatchNorm of the API's configurations and of torchvision's SSDLite. The former move their running statistics by 0.0003
# of a step, made for 200,000 of them; torchvision's 0.03 is what a training of hundreds can do with.
BN_EPS, BN_MOMENTUM = 1e-3, 0.03


@dataclass(frozen=True)
class Family:
    """A family of detectors.

    `lite`: separable layers in place of 3x3 convolutions; `pyramid`: a feature pyramid in place of layers behind the
    backbone. `scores`: what makes them of the logits. `order` of a box's numbers, and what they are multiplied by
    (`box_scales`). `background`: the logits' column 0 is no class. `backbone` and `resolutions` are those it was
    published with, the first resolution the one that it leads with. What follows is how answers are chosen:
    a least score, the largest IoU of two boxes of one class, boxes of a class and in all.
    """

    name: str
    source: str
    backbone: str
    resolutions: tuple[int, ...]
    lite: bool = True
    pyramid: bool = False
    convention: Convention = "tf"
    scores: Literal["sigmoid", "softmax"] = "sigmoid"
    order: Order = "yxhw"
    box_scales: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    background: bool = True
    padding: Literal["same", "symmetric"] = "same"
    score: float = 1e-8
    iou: float = 0.6
    per_class: int = 100
    most: int = 100

    def depth(self, channels: int, alpha: float) -> int:
        """Channels of a layer behind the backbone at width `alpha`."""
        return max(int(channels * alpha), MIN_DEPTH)

    def variant(self, network: str) -> Variant:
        """How the family's backbones differ from their papers'."""
        ours = Variant(padding=self.padding, bn_eps=BN_EPS, bn_momentum=BN_MOMENTUM)
        if self.convention == "torchvision":
            return dataclasses.replace(ours, convention="torchvision")
        # The API never goes below 16 channels. In V3 that would be of the bottlenecks alone, which have 16 anyway.
        return dataclasses.replace(ours, min_depth=MIN_DEPTH) if network.startswith(("v1", "v2")) else ours


FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Family("ssd", "V1 section 4.6; TF OD API", "v1", (300,), lite=False),
        Family("ssdlite", "V2 section 6.2; TF OD API", "v2", (320, 300)),
        Family(
            "ssdlite-torchvision", "torchvision ssdlite320", "v3-large", (320,), convention="torchvision",
            scores="softmax", order="xywh", padding="symmetric", score=1e-3, iou=0.55, per_class=300, most=300,
        ),
        Family("ssd-fpnlite", "TF 2 OD API", "v2", (320, 640), pyramid=True, convention="tf-pyramid"),
    )
}  # fmt: skip


def family(name: str) -> Family:
    """The family called `name`; a UserError suggests the nearest."""
    if name not in FAMILIES:
        raise unknown("detector", name, FAMILIES)
    return FAMILIES[name]


def detector_arch(
    name: str = "ssdlite",
    backbone: str | None = None,
    alpha: float = 1.0,
    resolution: int | tuple[int, int] | None = None,
    *,
    reduced_tail: bool | None = None,
) -> Arch:
    """The backbone that a family's head goes on, up to its last map, as those who published the family build it.

    `backbone` and `resolution` (a side in pixels, or height and width) are the family's own, if left out.
    `reduced_tail` halves the channels behind V3's stride of 16 (V3 paper, section 6.3 and table 6); left out, it is as
    torchvision has it where it starts from no weights: yes for "ssdlite-torchvision" on V3, no for all else. Raises
    `UserError`.
    """
    how = family(name)
    network = zoo.network(backbone or how.backbone)
    v3 = network.name.startswith("v3")
    if reduced_tail and not v3:
        raise UserError(f"the reduced tail is V3's: {network.name} has none")
    side = how.resolutions[0] if resolution is None else resolution
    arch = spec.scale(network, alpha, side, 0, **dataclasses.asdict(how.variant(network.name))).replace(head=())
    tail = how.convention == "torchvision" and v3 if reduced_tail is None else reduced_tail
    return reduce_tail(arch) if tail else arch


def reduce_tail(arch: Arch) -> Arch:
    """V3 with half the channels in its last blocks, from the one on whose output has a stride of 32."""
    at = next(i for i, b in enumerate(arch.blocks) if b.total_stride == arch.blocks[-1].total_stride)
    rows = list(arch.rows)
    for i in range(at, len(rows)):
        row = rows[i]
        channels = round_channels(row.channels / 2, arch.divisor, arch.min_depth)
        if isinstance(row, InvertedResidual) and row.mid:
            mid = row.mid if i == at else round_channels(row.mid / 2, arch.divisor, arch.min_depth)
            rows[i] = dataclasses.replace(row, channels=channels, mid=mid)
        elif isinstance(row, InvertedResidual | Conv):
            rows[i] = dataclasses.replace(row, channels=channels)
    return arch.replace(rows=tuple(rows))
