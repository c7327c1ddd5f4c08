"""Two-stage detectors in PyTorch that are called as torchvision's are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image

from mobilenets.arch.detectors import two_stage_anchors, two_stage_arch, two_stage_head
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card
from mobilenets.model.images import Preprocess
from mobilenets.model.two_stage import pixels
from mobilenets.tasks.detect.module import MEAN, STD, Detector, Found
from mobilenets.tasks.detect.stages import TwoStageLoss, initialise
from mobilenets.tasks.detect.start import two_stage_transferred
from mobilenets.tasks.detect.two_stage import PROPOSALS

COCO_LABELS = 90


class TwoStageDetector(Detector):
    """A two-stage detector; its losses are four, and a fifth of one with masks."""

    def __init__(self, card: Card) -> None:
        super().__init__(card)
        initialise(self, two_stage_anchors(card.arch, card.config["family"]))

    def losses(
        self, batch: Tensor, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        loss = TwoStageLoss()
        loss.follow(self)
        wanted = [self._placed(t, image) for t, image in zip(targets, images, strict=True)]
        return loss.parts(self.run({self.graph.source: batch}, loss.taps), wanted)

    def _placed(self, target: Mapping[str, Tensor], image: Tensor) -> dict[str, Tensor]:
        """What is on an image, in pixels of the input."""
        boxes, size = target["boxes"].float().reshape(-1, 4), self.card.preprocess.input_size
        height, width = image.shape[1:]
        made = {
            "boxes": boxes * pixels(size, boxes) / pixels((height, width), boxes),
            "labels": target["labels"].long(),
        }
        if "masks" in self.card.outputs:
            if "masks" not in target or target["masks"].shape != (len(boxes), height, width):
                raise UserError(f"{self.card.config['family']} learns masks: each target needs some, [M, H, W]")
            made["masks"] = F.interpolate(target["masks"][None].float(), size)[0] if len(boxes) else target["masks"]
        return made

    def found(self, batch: Tensor, images: Sequence[Tensor]) -> list[Found]:
        answers = self.answers(batch)
        made = []
        for i, image in enumerate(images):
            count = int(answers["count"][i])
            size = int(image.shape[1]), int(image.shape[2])
            boxes = answers["boxes"][i, :count] * pixels(size, answers["boxes"])
            one = {"boxes": boxes, "labels": answers["classes"][i, :count].long() + 1,
                   "scores": answers["scores"][i, :count]}  # fmt: skip
            if "masks" in answers:
                one["masks"] = paste_masks_in_image(answers["masks"][i, :count, None], boxes, size)
            made.append(one)
        return made


def card_of(
    arch: Arch, name: str, labels: Sequence[str], preprocess: Preprocess | None = None,
    proposals: Mapping[str, Any] | None = None,
) -> Card:  # fmt: skip
    """The card of a two-stage detector on `arch`; `proposals` as `two_stage_head` takes it."""
    mean, std = (preprocess.mean, preprocess.std) if preprocess else (MEAN, STD)
    seen = Preprocess(arch.resolution, mean=mean, std=std, framing="stretch", size=arch.size)
    head = two_stage_head(arch, len(labels) + 1, name, proposals)
    config = {"labels": list(labels), "family": name, **({PROPOSALS: dict(proposals)} if proposals else {})}
    return Card(arch, seen, head, task="detect", config=config)


def fresh(name: str, backbone: str | None, alpha: float, resolution: int | None, classes: int) -> TwoStageDetector:
    """A detector with random weights; `classes` has the background in. Raises `UserError`."""
    arch = two_stage_arch(name, backbone, alpha, resolution)
    return TwoStageDetector(card_of(arch, name, [f"class {i}" for i in range(1, classes)]))


def of_bundle(bundle: Bundle, name: str, resolution: int | None, classes: int | None) -> TwoStageDetector:
    """A detector that starts from a bundle, of its family or of another task's body. Raises `UserError`."""
    card = bundle.card
    known = card.task == "detect"
    if known and card.config["family"] != name:
        raise UserError(f"the weights are of {card.config['family']!r}: ask for that detector")
    side = resolution or (card.arch.resolution if known else two_stage_arch(name).resolution)
    size = card.arch.size if known and resolution is None else None
    arch = card.arch.replace(num_classes=0, head=(), resolution=side, size=size)
    count = (len(card.labels) if known else COCO_LABELS) if classes is None else classes - 1
    labels = card.labels if known and len(card.labels) == count else [f"class {i}" for i in range(1, count + 1)]
    net = TwoStageDetector(card_of(arch, name, labels, card.preprocess, card.config.get(PROPOSALS) if known else None))
    state = net.state_dict()
    tensors = two_stage_transferred(bundle, net.card.config)
    net.load_state_dict({**state, **{k: torch.from_numpy(v) for k, v in tensors.items() if k in state}})
    return net
