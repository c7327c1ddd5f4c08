"""What tasks have in common whose answers are probabilities of the labels in `config["labels"]`, in their order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets.arch import published
from mobilenets.arch.heads import LOGITS
from mobilenets.arch.spec import Arch
from mobilenets.data.dataset import Data
from mobilenets.data.labelling import Labelling
from mobilenets.data.open import open_data
from mobilenets.tasks.task import MetricSpec, Prior, Transform

if TYPE_CHECKING:
    from mobilenets.model.bundle import Bundle
    from mobilenets.model.images import Preprocess

PRIOR = MetricSpec("imagenet_top1", "ImageNet top-1")


class Labelled:
    """A part of a task: its data, how images are varied, where another network's weights can serve, the drawing.

    Subclasses name their `labelling`: how labels are read from tables and folders.
    """

    name: str
    labelling: Labelling
    taps: tuple[str, ...] = (LOGITS,)
    ragged = False

    def open(self, source: str, root: Path | None, seed: int, val: float | None) -> Data:
        return open_data(source, root, seed, val, self.labelling)

    def transforms(self, preprocess: Preprocess, recipe: Any, kind: str) -> Transform:
        from mobilenets.tasks.augment import augmentation

        return augmentation(kind, preprocess, recipe)

    def config(self, data: Data) -> dict[str, Any]:
        return {"labels": list(data.labels)}

    def arch(self, arch: Arch, config: Mapping[str, Any]) -> Arch:
        return arch.replace(num_classes=len(config["labels"]))

    def transfer(self, bundle: Bundle, config: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Everything, or all but the task's own layers where the labels differ, or the task."""
        tensors = bundle.dense().tensors
        same = bundle.card.task == self.name and list(bundle.card.labels) == list(config["labels"])
        own = tuple(f"{name}." for name in bundle.card.head.own)
        return {k: np.array(v) for k, v in tensors.items() if same or not k.startswith(own)}

    def prior(self, arch: Arch) -> Prior | None:
        """ImageNet's top-1 as published: it ranks networks, it promises nothing."""
        found = published.imagenet_top1(arch.name, arch.alpha, arch.resolution)
        return Prior(PRIOR, found.value, found.source) if found else None


def captioned(image: Image.Image, text: str) -> Image.Image:
    """The image with lines of text in its corner."""
    from PIL import ImageDraw

    out = image.convert("RGB")
    pen = ImageDraw.Draw(out)
    pen.rectangle(pen.textbbox((4, 4), text), fill="white")
    pen.text((4, 4), text, fill="black")
    return out
