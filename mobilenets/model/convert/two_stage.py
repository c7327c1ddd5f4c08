"""torchvision's Faster R-CNN on MobileNet (fasterrcnn_mobilenet_v3_large_fpn, _320_fpn) by the names of its tensors."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from mobilenets.arch import detectors
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card
from mobilenets.model.convert.detector_bundle import named
from mobilenets.model.convert.foreign import IMAGENET_PREPROCESS, Stated
from mobilenets.model.convert.namings import NAMINGS
from mobilenets.model.convert.recognise import Arrays, Match, convert, match, slots_of, widths

FAMILY = "faster-rcnn-fpn"
SIDE, LARGE_SIDE = 320, 800
BN_EPS = 1e-5  # its BatchNorms aren't those of torchvision's V3
_LAST = "roi_heads.box_predictor.cls_score.bias"
_PYRAMID = "backbone.fpn.inner_blocks."
_LARGE = re.compile(r"large_fpn")  # as torchvision names its file of 800 pixels; the other's has the 320 between
# Before torchvision 0.13, these convolutions were no parts of a sequence.
_BEFORE = (
    (re.compile(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^rpn\.head\.conv\.(weight|bias)$"), r"rpn.head.conv.0.0.\1"),
)
_HEADS = {
    "fpn.project": "backbone.fpn.inner_blocks.{i}.0",
    "fpn.smooth": "backbone.fpn.layer_blocks.{i}.0",
    "rpn.conv": "rpn.head.conv.0.0",
    "rpn.scores": "rpn.head.cls_logits",
    "rpn.boxes": "rpn.head.bbox_pred",
    "box.0": "roi_heads.box_head.fc6",
    "box.1": "roi_heads.box_head.fc7",
    "box.classes": "roi_heads.box_predictor.cls_score",
    "box.boxes": "roi_heads.box_predictor.bbox_pred",
}


def proposals(side: int) -> dict[str, Any]:
    """How torchvision's two choose what they look at again, as a card's config has it."""
    count = 1000 if side >= LARGE_SIDE else 150
    return {"score": 0.05, "iou": 0.7, "per_class": count, "most": count}


def _unprefixed(tensors: Arrays) -> dict[str, Any]:
    """By today's names, without what stands before all of them."""
    prefix = next((k.removesuffix(_LAST) for k in tensors if k.endswith(_LAST)), "")
    out = {}
    for name, array in tensors.items():
        name = name.removeprefix(prefix)
        for pattern, now in _BEFORE:
            name = pattern.sub(now, name)
        out[name] = array
    return out


def is_known(tensors: Arrays) -> bool:
    """Whether they are of a Faster R-CNN on a pyramid on a MobileNet, with no masks or key points."""
    own = _unprefixed(tensors)
    other = any(name.startswith(("roi_heads.mask", "roi_heads.keypoint")) for name in own)
    return _LAST in own and f"{_PYRAMID}0.0.weight" in own and "backbone.body.0.0.weight" in own and not other


def _tried(tensors: Arrays, network: str, alpha: float, classes: int) -> Match:
    arch = detectors.two_stage_arch(FAMILY, network, alpha)
    naming = next(n for n in NAMINGS if (n.origin, n.family) == ("torchvision", network.split("-")[0]))
    head = detectors.two_stage_head(arch, classes, FAMILY)
    kept = arch.graph.with_head(head).by_name
    rows = [
        (op, pattern.replace("features.", "backbone.body."), scale)
        for op, pattern, scale in naming.patterns(arch)
        if op.name in kept
    ]
    for op in head.ops:
        if op.is_layer:
            part, i, kind = (*op.name.split("."), "")[:3]
            pattern = _HEADS[op.name] if part == "box" else _HEADS[f"{part}.{kind}"].format(i=i)
            rows.append((op, pattern, ""))
    return match(naming, arch, tensors, slots_of(naming.style, rows))


def bundle(tensors: Arrays, said: Stated, where: str, **fields: Any) -> Bundle:
    """The bundle of tensors that are known (see `is_known`). Raises `UserError` where they fit no network.

    Images are stretched to the input, where torchvision keeps their proportions: the same answers on a square image.
    """
    own = _unprefixed(tensors)
    classes = int(own[_LAST].size)
    tried = [
        _tried(own, network, alpha, classes)
        for network in ("v3-large", "v3-small", "v2")
        for alpha in widths(said.alpha, network)
        if said.arch in (None, network) and said.alpha in (None, alpha)
    ]
    if not tried or classes < 2:
        raise UserError(f"{where}: a detector of two stages, but none that is known: those on V2 and V3 are")
    found = min(tried, key=lambda m: m.faults)
    if not found.exact:
        raise UserError(f"{where}: the weights fit no such detector; the nearest is on {found} ({found.complaint})")
    side = said.resolution or (LARGE_SIDE if _LARGE.search(where) else SIDE)
    arch: Arch = found.arch.replace(
        resolution=side, padding=said.padding or found.arch.padding, bn_eps=said.bn_eps or BN_EPS
    )
    labels = [n if n is not None else f"unused {i}" for i, n in enumerate(named(said.labels, classes - 1, where), 1)]
    chosen = proposals(side)
    config = {"labels": labels, "family": FAMILY, "suppression": chosen}
    usual = dataclasses.replace(IMAGENET_PREPROCESS, crop=1.0, framing="stretch")
    preprocess = dataclasses.replace(said, resolution=side).of_images(usual)
    head = detectors.two_stage_head(arch, classes, FAMILY, chosen)
    anchors = {f"{k}.anchors": np.array(v, np.float32) for k, v in detectors.two_stage_anchors(arch, FAMILY).items()}
    card = Card(arch, preprocess, head, task="detect", config=config, **fields)
    return Bundle(card, {**convert(found, own), **anchors})
