"""What a detector's training minimises: SSD's losses, with hard negatives, or the focal loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, sigmoid_focal_loss

from mobilenets.errors import UserError
from mobilenets.tasks.detect.anchors import centres_and_sizes
from mobilenets.tasks.detect.coder import encode
from mobilenets.tasks.detect.config import LOGITS, OFFSETS, Config
from mobilenets.tasks.detect.matcher import BACKGROUND, IGNORED, match, within
from mobilenets.tasks.detect.mosaic import Mosaic

NEGATIVES = 3  # for each anchor that has an object (SSD, section 2.2); and of an image at least, so that one without
# objects says something too, as in TensorFlow's SSDLite
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss (Lin and others 2017), as TensorFlow's FPN detectors have them
BESIDE = 0.01  # weight of an anchor where the teacher sees nothing
RARE = 0.01  # what a logit says of an anchor at first (the same paper, section 3.3)


class DetectionLoss(nn.Module):
    """Smooth L1 of the offsets of anchors that have an object, and the loss of the logits, both a mean over those.

    Logits: with softmax scores the cross-entropy, with sigmoid ones the binary cross-entropy of every column, of the
    objects' anchors and the three times as many of the others that are worst; or the focal loss of all. Anchors within
    crowds are neither. An object that is only so sure, as a teacher's, has "scores" among its targets: as much of its
    anchors is its class and the rest background, and as much do its offsets count.
    """

    def __init__(self, config: Config, mosaic: float = 0.0) -> None:
        """`mosaic`: the share of batches that are mosaics."""
        super().__init__()
        self.config, self.mosaic = config, mosaic
        self.register_buffer("anchors", torch.from_numpy(centres_and_sizes(config.anchors).copy()), persistent=False)

    anchors: Tensor

    def targets(self, batch: Sequence[Any]) -> list[dict[str, Tensor]]:
        """Of images [N, 3, H, W] and their boxes in pixels: boxes [M, 4] (centre x, y, w, h) as fractions, classes."""
        return [*map(fractions, batch[1])]

    def forward(self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Offsets [N, A, 4] and logits [N, A, C]; see `targets`."""
        boxes, kinds = self.parts(outputs, targets)
        return boxes + kinds

    def parts(self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """The losses of the offsets and of the logits, apart."""
        offsets, logits = outputs[OFFSETS].float(), outputs[LOGITS].float()
        if offsets.shape[1] != len(self.anchors):
            raise UserError(
                f"the network answers for {offsets.shape[1]} anchors, its config has {len(self.anchors)}: images have "
                "another size in training (--progressive must be 1)"
            )
        classes, boxes, sure = self._wanted(targets)
        positive = classes >= 0
        wanted = encode(boxes[positive], self.anchors.expand(len(boxes), -1, -1)[positive], self.config.coder)
        each = F.smooth_l1_loss(offsets[positive], wanted, reduction="none")
        off = (each * sure[positive, None]).sum()
        count = sure[positive].sum().clamp(min=1)
        kinds: Tensor = self._of_logits(logits, classes, sure)
        return off / count, kinds / count

    def _wanted(self, targets: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Of each anchor its object's class [N, A], BACKGROUND or IGNORED; its object's box [N, A, 4]; how sure [N, A].

        How sure it is that there is an object is 1 where nothing is said, and of all other anchors.
        """
        classes, boxes, sure = [], [], []
        for t in targets:
            crowd = t["crowd"]
            own, labels = t["boxes"][~crowd], t["labels"][~crowd]
            index = match(own, self.anchors)
            found = index >= 0
            one = index.new_full((len(index),), BACKGROUND)
            one[within(self.anchors, t["boxes"][crowd])] = IGNORED
            one[found] = labels[index[found]]
            box = torch.zeros_like(self.anchors)
            box[found] = own[index[found]]
            how_sure = torch.ones_like(box[:, 0])
            if "scores" in t:
                how_sure[found] = t["scores"][~crowd][index[found]]
            classes.append(one)
            boxes.append(box)
            sure.append(how_sure)
        return torch.stack(classes), torch.stack(boxes), torch.stack(sure)

    def _of_logits(self, logits: Tensor, classes: Tensor, sure: Tensor) -> Tensor:
        column = classes + self.config.background  # of background 0, where there is a column for it
        there = sure * (classes >= 0)
        at = column.clamp(min=0).unsqueeze(-1)
        if self.config.scores == "softmax":
            said = logits.log_softmax(-1)  # cross-entropy with dense targets takes five times as long
            losses = -there * said.gather(-1, at).squeeze(-1) - (1 - there) * said[..., 0]
        else:
            # Sigmoids have no need of a background: it is no object of any kind, as in TensorFlow's detectors
            # (encode_background_as_zeros), whose column for it never says anything.
            wanted = torch.zeros_like(logits).scatter_(-1, at, there.unsqueeze(-1))
            if self.config.focal:
                each: Tensor = sigmoid_focal_loss(logits, wanted, ALPHA, GAMMA)
                return (each.sum(-1) * (classes != IGNORED)).sum()
            losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(-1)
        return losses[(classes >= 0) | hardest(losses.detach(), classes)].sum()

    def mixes(self) -> Sequence[nn.Module]:
        return (Mosaic(self.mosaic),) if self.mosaic else ()


def hardest(losses: Tensor, classes: Tensor) -> Tensor:
    """Of each image's background anchors those with the largest losses [N, A], NEGATIVES for each with an object."""
    background = classes == BACKGROUND
    ranked = losses.masked_fill(~background, -torch.inf).argsort(1, descending=True).argsort(1)
    most = (NEGATIVES * (classes >= 0).sum(1, keepdim=True)).clamp(min=NEGATIVES)
    return background & (ranked < most)


def fractions(target: Mapping[str, Any]) -> dict[str, Tensor]:
    """Boxes in pixels (`tv_tensors`, x1 y1 x2 y2) as centre x, y, width, height, in fractions of their picture."""
    height, width = target["boxes"].canvas_size
    boxes = target["boxes"].as_subclass(Tensor).float()
    boxes = box_convert(boxes, "xyxy", "cxcywh") / boxes.new_tensor([width, height, width, height])
    return {**target, "boxes": boxes}


def difference(teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], scores: str, temperature: float) -> Tensor:
    """How far a detector's answers are from another's with the same anchors: their logits' and offsets'.

    Anchors count as much as the teacher sees an object there, and a little beside: nearly all are background, which
    would be all that is learned. Logits: T^2 times the divergence of softened probabilities, nats; offsets: smooth L1.
    """
    a, b = teacher[LOGITS].float() / temperature, student[LOGITS].float() / temperature
    if a.shape != b.shape:
        raise UserError(
            f"a detector learns from one with the same labels and anchors: the teacher has {tuple(a.shape[1:])} "
            f"logits, the student {tuple(b.shape[1:])}"
        )
    sure = (teacher[LOGITS].float().softmax(-1) if scores == "softmax" else teacher[LOGITS].float().sigmoid())[..., 1:]
    weights = sure.max(-1).values + BESIDE if sure.shape[-1] else torch.ones_like(a[..., 0])
    if scores == "softmax":
        off = F.kl_div(b.log_softmax(-1), a.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    else:
        soft = a.sigmoid()
        each = F.binary_cross_entropy_with_logits(b, soft, reduction="none")
        off = (each - F.binary_cross_entropy_with_logits(a, soft, reduction="none")).sum(-1)
    moved = F.smooth_l1_loss(student[OFFSETS].float(), teacher[OFFSETS].float(), reduction="none").sum(-1)
    return ((temperature**2 * off + moved) * weights).sum() / weights.sum()


def initialise(module: nn.Module, own: Sequence[str], columns: Sequence[str], config: Config) -> None:
    """A detector's `own` layers as they begin: small normal weights (TensorFlow's and torchvision's), biases 0.

    `columns`: those that give logits. Where these are of sigmoids, they begin with saying that objects are rare, or
    else the many anchors without one make up the whole loss.
    """
    for name in own:
        conv = getattr(module.get_submodule(name), "conv", None)
        if not isinstance(conv, nn.Conv2d):
            continue
        nn.init.normal_(conv.weight, std=0.03)
        if conv.bias is None:
            continue
        nn.init.zeros_(conv.bias)
        if name in columns and config.scores == "sigmoid":
            rare = torch.tensor(RARE).logit()
            with torch.no_grad():
                conv.bias.fill_(float(rare))
