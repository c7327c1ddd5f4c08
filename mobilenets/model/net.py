"""A network with its card in PyTorch, under the names that timm's users know; and its maps, for detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy.typing as npt
import torch
from torch import Tensor, nn

from mobilenets.arch.spec import Arch, Stage
from mobilenets.arguments import checked
from mobilenets.errors import UserError
from mobilenets.model.card import Card, classifier_card
from mobilenets.model.images import Preprocess
from mobilenets.model.module import MobileNet, classifier_of, initialise
from mobilenets.model.pictures import Picture, is_batch, pictures, rgb_image


class Feature(TypedDict):
    """A map: its channels, the stride it has to the image in pixels, the module whose output it is."""

    num_chs: int
    reduction: int
    module: str


class FeatureInfo(list[Feature]):
    """The maps of a network, from the largest to the smallest, as timm's `feature_info` has them."""

    def channels(self) -> list[int]:
        """Channels of each."""
        return [f["num_chs"] for f in self]

    def reduction(self) -> list[int]:
        """Stride of each: the image's side over the map's."""
        return [f["reduction"] for f in self]

    def module_name(self) -> list[str]:
        """Name of the module that each comes from."""
        return [f["module"] for f in self]


class ToInput:
    """Images to what a network takes: one to float32 [3, H, W], a batch to [N, 3, H, W], cropped, resized, normalized.

    Takes Pillow's images, arrays [H, W, C] or [N, H, W, C], tensors [C, H, W] or [N, C, H, W]: uint8, or floats from 0
    to 1. `how` says what is done. Raises `UserError` for any other, `BadImage` for an image that is damaged.
    """

    def __init__(self, how: Preprocess) -> None:
        self.how = how

    def __call__(self, images: Picture) -> Tensor:
        each = [self.how.fit(rgb_image(one)) for one in pictures(images)]
        made = torch.cat([torch.from_numpy(self.how.normalize(pixels[None])) for pixels in each])
        return made if is_batch(images) else made[0]

    def __repr__(self) -> str:
        return f"ToInput({self.how})"


class Net(MobileNet):
    """A `MobileNet` with its card: images [N, 3, H, W], preprocessed, to logits [N, num_classes].

    `card` says what it is and was trained on, `preprocess` makes its input of images, `num_features` is the length of
    the vector that its classifier reads, `feature_info` tells of the maps that `features` gives.
    """

    def __init__(self, card: Card) -> None:
        super().__init__(card.arch, card.head)
        self.card = card

    @property
    def preprocess(self) -> ToInput:
        """What makes the network's input of an image."""
        return ToInput(self.card.preprocess)

    @property
    def num_classes(self) -> int:
        """Logits that it gives; 0 where it gives its features."""
        return self.arch.num_classes

    @property
    def num_features(self) -> int:
        """Numbers that the classifier reads."""
        return self.arch.features

    @property
    def feature_info(self) -> FeatureInfo:
        """Of the maps at each stride."""
        return _info(self.arch.stages, [f"blocks.{s.block}" for s in self.arch.stages])

    def get_classifier(self) -> nn.Module:
        """The last layer: numbers [N, num_features] to logits [N, num_classes]."""
        found: nn.Module = self.classifier
        return found

    @checked
    def reset_classifier(self, num_classes: int) -> None:
        """Give it a new classifier, with random weights, for other classes; 0: none, so that it gives its features.

        Everything else keeps its weights. Raises `UserError` for a network of another task than classification.
        """
        if self.card.task not in ("classify", "features"):
            raise UserError(f"a network for {self.card.task} has no classifier to change")
        card = card_of(self.arch.replace(num_classes=num_classes), self.card.preprocess, self.card.licence)
        at = next(self.parameters())
        self.card, self.arch, self.graph = card, card.arch, card.arch.graph.whole(card.head)
        self.classifier = classifier_of(card.arch).apply(initialise).to(at.device, at.dtype)
        self.attach(card.head)
        self.train(self.training)


class Backbone(nn.Module):
    """A network up to its maps: images [N, 3, H, W], preprocessed, to those of `out_indices`, the largest first.

    Its children are the stages, one after another, so that torchvision's `IntermediateLayerGetter` and
    `BackboneWithFPN` take it; `feature_info` tells of the maps. It shares its weights with the network it is made of.
    """

    def __init__(self, net: Net, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        stages = net.arch.stages
        wanted = range(len(stages)) if out_indices is None else out_indices
        for i in wanted:
            if not -len(stages) <= i < len(stages):
                raise UserError(f"out_indices are from 0 to {len(stages) - 1} for {net.arch.title}, not {i}")
        self.out_indices = tuple(sorted({i % len(stages) for i in wanted}))
        if not self.out_indices:
            raise UserError("out_indices names no map")
        start = 0
        for stage in stages[: self.out_indices[-1] + 1]:
            self.add_module(stage.name, nn.Sequential(*net.blocks[start : stage.block + 1]))
            start = stage.block + 1
        self.card, self.preprocess = net.card, net.preprocess
        kept = [stages[i] for i in self.out_indices]
        self.feature_info = _info(kept, [s.name for s in kept])

    @property
    def num_features(self) -> int:
        """Channels of the last map."""
        return self.feature_info[-1]["num_chs"]

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for i, stage in enumerate(self.children()):
            x = stage(x)
            if i in self.out_indices:
                maps.append(x)
        return maps


def _info(stages: Sequence[Stage], names: Sequence[str]) -> FeatureInfo:
    return FeatureInfo(
        Feature(num_chs=s.channels, reduction=s.stride, module=n) for s, n in zip(stages, names, strict=True)
    )


def card_of(arch: Arch, preprocess: Preprocess | None = None, licence: str = "") -> Card:
    """The card of `arch` with random weights: its classes have no names yet."""
    labels = [f"class {i}" for i in range(arch.num_classes)]
    return classifier_card(arch, preprocess or Preprocess(arch.resolution, size=arch.size), labels, licence=licence)


def of_tensors(card: Card, tensors: Mapping[str, npt.NDArray[Any]]) -> Net:
    """The float network of a card with its weights, in eval mode. What its outputs don't need stays as it is made."""
    net = Net(card)
    state = {k: torch.from_numpy(v) for k, v in tensors.items()}
    net.load_state_dict(state, strict=len(card.graph.layers) == len(net.graph.layers))
    return net.eval()
