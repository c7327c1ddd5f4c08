"""Detectors in PyTorch that are called as torchvision's are: lists of images in, losses or boxes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert

from mobilenets.arch.detectors import detection_config, family, ssd_head
from mobilenets.arch.graph import Head
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card, stamp
from mobilenets.model.encodings import tensor_shapes
from mobilenets.model.images import Preprocess
from mobilenets.model.net import Net
from mobilenets.tasks.detect import decode, start
from mobilenets.tasks.detect.config import LOGITS, OFFSETS, SCORE, Config
from mobilenets.tasks.detect.loss import DetectionLoss, initialise

MEAN = STD = (127.5, 127.5, 127.5)  # pixels become -1 to 1, in the API's detectors and in torchvision's SSDLite
Found = dict[str, Tensor]


class Detector(Net):
    """A detector: a list of images [3, H, W], floats from 0 to 1, of any sizes.

    In training with `targets`, of each image "boxes" [M, 4] (x1 y1 x2 y2 in its pixels) and "labels" [M] (from 1 on,
    0 being the background), and "masks" [M, H, W] where it learns these: a dict of losses, by torchvision's names. In
    eval mode of each image a dict of "boxes" [K, 4], "labels" [K] and "scores" [K], the best first, and "masks"
    [K, 1, H, W] where it gives some. Resizing and normalizing happen inside. That is what
    torchvision.models.detection's networks take and give, so what trains those trains this.
    """

    def __init__(self, card: Card) -> None:
        super().__init__(card)
        self.register_buffer("mean", torch.tensor(card.preprocess.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(card.preprocess.std).view(3, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    @property
    def num_classes(self) -> int:
        """Classes with the background."""
        return len(self.card.labels) + 1

    def forward(  # type: ignore[override]  # a classifier's takes a batch
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[Found]:
        """Losses in training, boxes in eval mode; see the class. Raises `UserError` for what can't be."""
        batch = torch.stack([self._input(image) for image in images])
        if not self.training:
            return self.found(batch, images)
        if targets is None or len(targets) != len(images):
            raise UserError("a detector in training takes as many targets as images")
        for t in targets:
            self._check(t)
        return self.losses(batch, images, targets)

    def losses(
        self, batch: Tensor, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Of a batch of the network's input, made of `images`, and what is on these."""
        raise NotImplementedError  # pragma: no cover

    def found(self, batch: Tensor, images: Sequence[Tensor]) -> list[Found]:
        """What the network says of a batch of its input, made of `images`, in these's pixels."""
        raise NotImplementedError  # pragma: no cover

    def bundle(self) -> Bundle:
        """The network as it is now, to save, export, quantize; the classes are called as on its `card`."""
        state = self.state_dict()
        return Bundle(stamp(self.card), {k: state[k].detach().cpu().numpy() for k in tensor_shapes(self.card)})

    def _input(self, image: Tensor) -> Tensor:
        if image.ndim != 3 or len(image) != 3 or not image.is_floating_point():
            raise UserError(
                f"a detector takes images [3, H, W] of floats from 0 to 1, not {image.dtype} {[*image.shape]}"
            )
        size = self.card.preprocess.input_size
        if tuple(image.shape[1:]) != size:
            image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        return (image * 255 - self.mean) / self.std

    def _check(self, target: Mapping[str, Tensor]) -> None:
        boxes, labels = target["boxes"].reshape(-1, 4), target["labels"].reshape(-1)
        if len(boxes) != len(labels):
            raise UserError(f"{len(boxes)} boxes have {len(labels)} labels")
        if not bool(((labels >= 1) & (labels < self.num_classes)).all()):
            raise UserError(
                f"labels are from 1 to {self.num_classes - 1} (0 is the background), not {labels.tolist()[:9]}"
            )
        if not bool((boxes[:, 2:] > boxes[:, :2]).all()):
            wrong = boxes[(boxes[:, 2:] <= boxes[:, :2]).any(1)][0].tolist()
            raise UserError(f"boxes are x1 y1 x2 y2 with x2 > x1 and y2 > y1, not {wrong}")


class OneStage(Detector):
    """A one-stage detector; its two losses are "bbox_regression" and "classification"."""

    def __init__(self, card: Card) -> None:
        super().__init__(card)
        self.config = Config.of(card.config)
        self.loss = DetectionLoss(self.config)
        rows = [op.name for op in card.graph.ops if op.kind == "rows" and op.name.startswith(start.CLASSES)]
        predicting = [card.graph.op(name).inputs[0] for name in rows]
        initialise(self, [op.name for op in card.head.ops if op.is_layer], predicting, self.config)

    @property
    def num_classes(self) -> int:
        """Columns of the logits, the background's among them."""
        return self.config.columns

    def losses(
        self, batch: Tensor, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        wanted = [_fractions(t, image) for t, image in zip(targets, images, strict=True)]
        made = self.run({self.graph.source: batch}, (OFFSETS, LOGITS))
        boxes, kinds = self.loss.parts(made, wanted)
        return {"bbox_regression": boxes, "classification": kinds}

    def found(self, batch: Tensor, images: Sequence[Tensor]) -> list[Found]:
        answers = {name: x.detach().float().cpu().numpy() for name, x in self.answers(batch).items()}
        every = decode.found({OFFSETS: answers[OFFSETS], SCORE: answers[SCORE]}, self.config)
        return [_said(one, image) for one, image in zip(every, images, strict=True)]


def _fractions(target: Mapping[str, Tensor], image: Tensor) -> dict[str, Tensor]:
    boxes, labels = target["boxes"].float().reshape(-1, 4), target["labels"].reshape(-1)
    height, width = image.shape[1:]
    fractions = box_convert(boxes, "xyxy", "cxcywh") / boxes.new_tensor([width, height, width, height])
    none = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    return {"boxes": fractions, "labels": labels.long() - 1, "crowd": none}


def _said(one: decode.Found, image: Tensor) -> Found:
    height, width = image.shape[1:]
    boxes = torch.from_numpy(one.boxes).reshape(-1, 4).float() * torch.tensor([width, height, width, height])
    labels, scores = torch.from_numpy(one.classes) + 1, torch.from_numpy(one.scores)
    return {k: v.to(image.device) for k, v in (("boxes", boxes), ("labels", labels), ("scores", scores))}


def fresh(arch: Arch, name: str, classes: int) -> Detector:
    """A detector of the family `name` on `arch` with random weights; `classes` has the background in."""
    card = card_of(arch, name, tuple(f"class {i}" for i in range(1, classes)))
    return OneStage(card)


def card_of(
    arch: Arch,
    name: str,
    labels: Sequence[str],
    like: Mapping[str, Any] | None = None,
    preprocess: Preprocess | None = None,
) -> Card:
    """The card of a detector; `like`: the config of one whose anchors and choice of answers it has."""
    config = detection_config(arch, labels, name, like["anchors"]["boxes"] if like else None)
    if like:
        kept = {k: like[k] for k in ("background", "scores", "coder", "suppression")}
        config = {**config, **kept, "anchors": {**config["anchors"], "convention": like["anchors"]["convention"]}}
    how = Config.of(config)
    head: Head = ssd_head(arch, how.columns, name, per_cell=[len(s) for s in how.anchors.boxes])
    seen = Preprocess(arch.resolution, mean=MEAN, std=STD, framing="stretch", size=arch.size)
    if preprocess:
        seen = Preprocess(arch.resolution, mean=preprocess.mean, std=preprocess.std, framing="stretch", size=arch.size)
    return Card(arch, seen, head, task="detect", config=config)


def of_bundle(bundle: Bundle, name: str, resolution: int | None, classes: int | None) -> Detector:
    """A detector that starts from a bundle: from another detector of its family whole, else from a classifier's body.

    `resolution`, `classes`: the bundle's own, if left out; of a classifier, the family's first and 91. Raises
    `UserError`.
    """
    card, config = bundle.card, bundle.card.config
    known = card.task == "detect"
    if known and config["family"] != name:
        raise UserError(f"the weights are of {config['family']!r}: ask for that detector")
    side = resolution or (card.arch.resolution if known else family(name).resolutions[0])
    size = card.arch.size if known and resolution is None else None
    arch = card.arch.replace(num_classes=0, head=(), resolution=side, size=size)
    old = tuple(config["labels"]) if known else ()
    count = (len(old) if known else 90) if classes is None else classes - family(name).background
    labels = old if len(old) == count else tuple(f"class {i}" for i in range(1, count + 1))
    net = OneStage(card_of(arch, name, labels, config if known else None, card.preprocess))
    state = net.state_dict()
    tensors = start.transferred(bundle, net.card.config, "detect")
    net.load_state_dict({**state, **{k: torch.from_numpy(v) for k, v in tensors.items() if k in state}})
    return net
