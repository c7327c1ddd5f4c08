"""What is read of others' networks: their tensors, and what is said of them besides. No torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import PurePath

from mobilenets.arch.operations import Padding
from mobilenets.errors import UserError
from mobilenets.model.card import Metric
from mobilenets.model.convert.formats import tflite
from mobilenets.model.convert.formats.post_processing import PostProcessing
from mobilenets.model.convert.recognise import Arrays
from mobilenets.model.images import Framing, Interpolation, Preprocess

Channels = tuple[float, float, float]
TF_PREPROCESS = Preprocess(224, 0.875, (127.5,) * 3, (127.5,) * 3)
IMAGENET_PREPROCESS = Preprocess(224, 0.875, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_IMAGES = ("resolution", "mean", "std", "crop", "interpolation", "framing")  # fields of a `Preprocess`


@dataclass(frozen=True)
class Stated:
    """What is said of a network besides its weights; what isn't said is None.

    `called` is what its library calls it. `mean` and `std` are of pixels from 0 to 255. `pooling` is how it pools where
    these networks can't: they average.
    """

    called: str | None = None
    arch: str | None = None
    alpha: float | None = None
    num_classes: int | None = None
    padding: Padding | None = None
    bn_eps: float | None = None
    labels: tuple[str, ...] | None = None
    licence: str | None = None
    pooling: str | None = None
    resolution: int | None = None
    mean: Channels | None = None
    std: Channels | None = None
    crop: float | None = None
    interpolation: Interpolation | None = None
    framing: Framing | None = None

    def __post_init__(self) -> None:
        if self.bn_eps is not None and not 0 < self.bn_eps < 1:
            raise UserError(f"BatchNorm's epsilon must be above 0 and below 1, not {self.bn_eps:g}")
        if self.std is not None and not all(s > 0 for s in self.std):
            raise UserError(f"std must be above 0, not {', '.join(f'{s:g}' for s in self.std)}")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise UserError(f"crop must be above 0 and at most 1, not {self.crop:g}")

    def over(self, other: Stated) -> Stated:
        """What is said here, and of the rest what `other` says."""
        return dataclasses.replace(other, **{k: v for k, v in vars(self).items() if v is not None})

    def of_images(self, usual: Preprocess) -> Preprocess:
        """How images are prepared, as `usual` where it isn't said."""
        said = {k: v for k in _IMAGES if (v := getattr(self, k)) is not None}
        return dataclasses.replace(usual, **said)


def prepared(p: Preprocess, **more: object) -> Stated:
    """A network whose preprocessing is known, and `more` of it."""
    return Stated(**{k: getattr(p, k) for k in _IMAGES}, **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Foreign:
    """What was read: tensors by their own names, or a TFLite graph; and what is known besides the weights.

    `boxes`: what a detector's file says of its boxes. `strides`: of the convolutions that read tensors, in a graph.
    """

    where: str
    tensors: Arrays | tflite.Graph
    said: Stated = Stated()
    metrics: tuple[Metric, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    boxes: PostProcessing = field(default_factory=PostProcessing)
    strides: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Where it is from without the folders it lay in."""
        return PurePath(self.where).name
