"""The papers' numbers that other modules rank by or are tested against, each with its source. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

# ImageNet top-1 in percent, float32, by alpha and resolution.
# V1: TF-slim README, MobileNet_v1 checkpoints (published together with V1's tables 6 and 7).
V1_TOP1: dict[float, dict[int, float]] = {
    1.0: {224: 70.9, 192: 70.0, 160: 68.0, 128: 65.2},
    0.75: {224: 68.4, 192: 67.2, 160: 65.3, 128: 62.1},
    0.5: {224: 63.3, 192: 61.7, 160: 59.1, 128: 56.3},
    0.25: {224: 49.8, 192: 47.7, 160: 45.5, 128: 41.5},
}
# The same 16 after 8-bit quantization, TF-slim README.
V1_TOP1_INT8: dict[float, dict[int, float]] = {
    1.0: {224: 69.7, 192: 69.0, 160: 67.3, 128: 64.0},
    0.75: {224: 67.9, 192: 66.2, 160: 63.9, 128: 59.8},
    0.5: {224: 62.2, 192: 60.4, 160: 57.7, 128: 54.9},
    0.25: {224: 48.2, 192: 45.8, 160: 43.5, 128: 39.9},
}
# V2: TF-slim README, MobileNet_v2 checkpoints.
V2_TOP1: dict[float, dict[int, float]] = {
    1.4: {224: 75.0},
    1.3: {224: 74.4},
    1.0: {224: 71.8, 192: 70.7, 160: 68.8, 128: 65.3, 96: 60.3},
    0.75: {224: 69.8, 192: 68.7, 160: 66.4, 128: 63.2, 96: 58.8},
    0.5: {224: 65.4, 192: 63.9, 160: 61.0, 128: 57.7, 96: 51.2},
    0.35: {224: 60.3, 192: 58.2, 160: 55.7, 128: 50.8, 96: 45.5},
}
TOP1: dict[str, dict[float, dict[int, float]]] = {
    "v1": V1_TOP1,
    "v1-full-conv": {1.0: {224: 71.7}},  # V1 paper, table 4
    "v1-shallow": {1.0: {224: 65.3}},  # V1 paper, table 5
    "v2": V2_TOP1,
    # TF-slim README, MobileNet_v3 checkpoints.
    "v3-large": {1.0: {224: 75.2}, 0.75: {224: 73.3}},
    "v3-small": {1.0: {224: 67.5}, 0.75: {224: 65.4}},
    "v3-large-minimalistic": {1.0: {224: 72.3}},
    "v3-small-minimalistic": {1.0: {224: 61.9}},
    # V4 paper, ImageNet-1k without distillation.
    "v4-conv-s": {1.0: {224: 73.8}},
    "v4-conv-m": {1.0: {256: 79.9}},
    "v4-conv-l": {1.0: {384: 82.9}},
    "v4-hybrid-m": {1.0: {256: 80.7}},
    "v4-hybrid-l": {1.0: {384: 83.4}},
}

# Mult-adds in millions as printed beside those accuracies. V1's are exact to the digits shown; V2's are whole millions.
V1_MACS_M: dict[float, dict[int, float]] = {
    1.0: {224: 568.74, 192: 418.12, 160: 290.68, 128: 186.40},
    0.75: {224: 325.40, 192: 239.27, 160: 166.40, 128: 106.77},
    0.5: {224: 149.50, 192: 109.97, 160: 76.52, 128: 49.16},
    0.25: {224: 41.03, 192: 30.21, 160: 21.06, 128: 13.57},
}
V2_MACS_M: dict[float, dict[int, float]] = {
    1.4: {224: 582},
    1.3: {224: 509},
    1.0: {224: 300, 192: 221, 160: 154, 128: 99, 96: 56},
    0.75: {224: 209, 192: 153, 160: 107, 128: 69, 96: 39},
    0.5: {224: 97, 192: 71, 160: 50, 128: 32, 96: 18},
    0.35: {224: 59, 192: 43, 160: 30, 128: 20, 96: 11},
}
# Trainable parameters, BatchNorm and biases in, 1000 classes: exact.
V1_PARAMS = {1.0: 4_231_976, 0.75: 2_585_560, 0.5: 1_331_592, 0.25: 470_072}
V2_PARAMS = {1.4: 6_108_776, 1.3: 5_386_792, 1.0: 3_504_872, 0.75: 2_636_424, 0.5: 1_968_680, 0.35: 1_677_128}


@dataclass(frozen=True)
class Detector:
    """A detector that somebody published: mAP on COCO's validation images (0.50 to 0.95), None where nobody did.

    The zoos measure a part of them. `classes` has the background in; `reduced_tail` as `detector_arch` takes it.
    """

    name: str
    backbone: str
    alpha: float
    resolution: int
    coco_map: float | None
    source: str
    classes: int = 91
    reduced_tail: bool = False


_TF1, _TF2, _TORCHVISION = "TF 1 detection zoo", "TF 2 detection zoo", "torchvision"
DETECTORS = (
    Detector("ssd", "v1", 1.0, 300, 19.3, "V1 table 13"),
    Detector("ssd", "v1", 1.0, 300, 21.0, _TF1),
    Detector("ssd", "v1", 0.75, 300, 18.0, _TF1),
    Detector("ssd", "v2", 1.0, 300, 22.0, _TF1),
    Detector("ssdlite", "v1", 1.0, 320, 22.2, "V2 table 6", 81),
    Detector("ssdlite", "v2", 1.0, 320, 22.1, "V2 table 6", 81),
    Detector("ssdlite", "v2", 1.0, 300, 22.0, _TF1),
    Detector("ssdlite", "v3-large", 1.0, 320, 22.6, _TF1, reduced_tail=True),
    Detector("ssdlite", "v3-small", 1.0, 320, 15.4, _TF1, reduced_tail=True),
    Detector("ssdlite-torchvision", "v3-large", 1.0, 320, 21.3, _TORCHVISION, reduced_tail=True),
    Detector("ssd-fpnlite", "v2", 1.0, 320, 22.2, _TF2),
    Detector("ssd-fpnlite", "v2", 1.0, 640, 28.2, _TF2),
    Detector("faster-rcnn", "v1", 1.0, 300, 16.4, "V1 table 13"),
    Detector("faster-rcnn", "v1", 1.0, 600, 19.8, "V1 table 13"),
    Detector("faster-rcnn-fpn", "v3-large", 1.0, 320, 22.8, _TORCHVISION),
    Detector("faster-rcnn-fpn", "v3-large", 1.0, 800, 32.8, _TORCHVISION),
    Detector("mask-rcnn", "v3-large", 1.0, 320, None, _TORCHVISION),
)


# For ranking detectors that nobody published: COCO mAP goes with this power of the body's top-1 on ImageNet, as from
# V3-Small to V3-Large in SSDLite, and grows by this factor with twice the input's side, as SSD FPNLite's from 320.
TOP1_POWER, PER_DOUBLING = 3.5, 1.27


def coco_map(family: str, name: str, alpha: float, resolution: int) -> tuple[float, str] | None:
    """COCO mAP of a family of detectors on a backbone, and "published" or "extrapolated"; None where nothing is known.

    From the nearest that somebody published, of this family, by what the body has on ImageNet at its own resolution
    and by the input's size: good for ranking networks against each other, not for promising a score.
    """
    body = TOP1.get(name, {}).get(alpha)
    known = [d for d in DETECTORS if d.name == family and d.coco_map is not None]
    if not body or not known:
        return None
    exact = [d.coco_map for d in known if (d.backbone, d.alpha, d.resolution) == (name, alpha, resolution)]
    if exact:
        return max(v for v in exact if v is not None), "published"
    near = min(
        known, key=lambda d: (d.backbone != name, abs(d.alpha - alpha), abs(math.log2(d.resolution / resolution)))
    )
    better = max(body.values()) / max(TOP1[near.backbone][near.alpha].values())
    larger = math.log2(resolution / near.resolution)
    assert near.coco_map is not None
    return near.coco_map * better**TOP1_POWER * PER_DOUBLING**larger, "extrapolated"


@dataclass(frozen=True)
class Top1:
    """ImageNet top-1 in percent; `extrapolated` where nobody published that resolution."""

    value: float
    source: Literal["published", "extrapolated"]

    def __str__(self) -> str:
        return f"{self.value:.1f}" if self.source == "published" else f"≈{self.value:.0f}"


def imagenet_top1(name: str, alpha: float, resolution: int) -> Top1 | None:
    """Published ImageNet top-1 of a network, or None where its width was never published.

    At an unpublished resolution the line through the two nearest published ones, accuracy over log2(resolution), is
    extended. That is good for ranking networks against each other, not for promising an accuracy.
    """
    row = TOP1.get(name, {}).get(alpha)
    if row is None:
        return None
    if resolution in row:
        return Top1(row[resolution], "published")
    if len(row) < 2:
        return None
    a, b = sorted(sorted(row), key=lambda r: abs(math.log2(r / resolution)))[:2]
    slope = (row[a] - row[b]) / (math.log2(a) - math.log2(b))
    return Top1(row[a] + slope * (math.log2(resolution) - math.log2(a)), "extrapolated")
