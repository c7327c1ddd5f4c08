"""What an embedding is made of and learned by, as a command line has it. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from mobilenets.arguments import checked
from mobilenets.data.alignment import template
from mobilenets.errors import UserError

Head = Literal["pool", "global"]
Loss = Literal["arcface", "cosface", "triplet", "multi-similarity"]
# (margin, scale) as the papers have them. ArcFace's margin is an angle in radians (Deng and others 2019), CosFace's a
# cosine (Wang and others 2018), triplets' a squared distance (Schroff and others 2015); multi-similarity has none.
USUAL: dict[Loss, tuple[float, float]] = {
    "arcface": (0.5, 64.0),
    "cosface": (0.35, 64.0),
    "triplet": (0.2, 0.0),
    "multi-similarity": (0.0, 0.0),
}
TOGETHER: dict[Loss, int] = {"arcface": 1, "cosface": 1, "triplet": 4, "multi-similarity": 4}  # images of an identity
MOST = 4096


def _doc(text: str) -> Any:
    return field(default=None, metadata={"help": f"Of --task embed: {text}"})


@checked
@dataclass(frozen=True)
class EmbedOptions:
    """What an embedding is made of and learned by; None: as usual. Raises `UserError` for numbers that can't be."""

    dim: int | None = _doc("numbers in a vector, 128 by default.")
    embed_head: Literal["pool", "global"] | None = _doc(
        "pool: a linear layer of the mean over all positions, by default; global: of a depthwise convolution over all "
        "of them, as MobileFaceNet has it."
    )
    metric_loss: Literal["arcface", "cosface", "triplet", "multi-similarity"] | None = _doc(
        "arcface (by default), cosface, triplet (semi-hard), multi-similarity; of identities alone, without a teacher."
    )
    margin: float | None = _doc("the loss's margin: .5 radians of arcface, .35 of cosface, .2 of triplets.")
    scale: float | None = _doc("what arcface and cosface multiply cosines by, 64.")
    photos_of_each: int | None = _doc(
        "images of an identity in a batch (K of P x K): 4 for triplets and multi-similarity, else as they come."
    )
    template: str | None = _doc(
        "the landmarks' template that the network takes faces in: arcface, lfw-crop, celeba; that of --aligned by "
        "default."
    )

    def __post_init__(self) -> None:
        if self.dim is not None and not 2 <= self.dim <= MOST:
            raise UserError(f"dim must be from 2 to {MOST}, not {self.dim}")
        for name in ("margin", "scale"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} must be above 0, not {value}")
        if self.photos_of_each is not None and self.photos_of_each < 1:
            raise UserError(f"photos_of_each must be 1 or more, not {self.photos_of_each}")
        if self.template is not None:
            template(self.template)

    @property
    def loss(self) -> Loss:
        return self.metric_loss or "arcface"

    @property
    def together(self) -> int:
        """Images of an identity in a batch."""
        return self.photos_of_each or TOGETHER[self.loss]
