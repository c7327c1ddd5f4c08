"""Attributes: any number of yes/no tags for each image, as of faces. No torch but in what training asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets.arch.graph import Head
from mobilenets.arch.heads import LOGITS, PROBABILITIES, tag_head
from mobilenets.arch.spec import Arch
from mobilenets.data.dataset import Split
from mobilenets.data.tags import TAGS
from mobilenets.model.card import Card, Precision
from mobilenets.model.trust import Trust
from mobilenets.tasks import linear, tagging
from mobilenets.tasks.labelled import Labelled, captioned
from mobilenets.tasks.linear import Probe
from mobilenets.tasks.precision import HALF
from mobilenets.tasks.task import Answer, MetricSpec, Outputs, Parity, Sizes, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mobilenets.tasks.tag_losses import BinaryCrossEntropy

PRIMARY = MetricSpec("map", "mAP")
BETWEEN = "|"  # tags in one cell of a table
DRAWN = 6  # tags on a drawing
# What a right export may differ by: the least percent of equal tags, and the largest difference of a probability. The
# reasons are those of a classifier's limits.
LIMITS: dict[Precision, tuple[float, float]] = {
    "float32": (99.5, 1e-3),
    "float16": (99.0, 0.03),
    "int8": (93.0, 0.35),
    "dynamic": (92.0, 0.35),
    "int4": (99.0, 0.03),
}
NEAR = 0.05  # from its threshold: roundings decide whether a tag holds


@dataclass(frozen=True)
class Tag:
    """One tag of an image: how probable it is, and whether that is enough."""

    label: str
    probability: float
    holds: bool


@dataclass(frozen=True)
class Tags:
    """An image's tags, all that the network knows, in its order."""

    tags: tuple[Tag, ...]

    @property
    def holding(self) -> tuple[Tag, ...]:
        """Those that hold, the most probable first."""
        return tuple(sorted((t for t in self.tags if t.holds), key=lambda t: -t.probability))

    def to_json(self) -> dict[str, Any]:
        return {
            "tags": [t.label for t in self.holding],
            "labels": {t.label: {"probability": round(t.probability, 6), "holds": t.holds} for t in self.tags},
        }

    def __str__(self) -> str:
        return "\t".join(f"{t.label} {100 * t.probability:.1f}%" for t in self.holding) or "none"


class Attributes(Labelled):
    """`config["labels"]` are the tags' names, in the order of the probabilities."""

    name = "attributes"
    labelling = TAGS
    primary: MetricSpec | None = PRIMARY
    agreeing = "of the tags"

    def __init__(self, at: tuple[float, ...] = ()) -> None:
        """`at`: from which probability on each tag holds, of a network's card (see `of`); none: one half."""
        self.at = at

    def of(self, card: Card) -> Task:
        """The task as a network's card has it."""
        return Attributes(card.trust.thresholds)

    def head(self, arch: Arch, config: Mapping[str, Any]) -> Head:  # noqa: ARG002
        return tag_head(arch)

    # ---- training

    def objective(self, config: Mapping[str, Any], recipe: Any, training: Split) -> BinaryCrossEntropy:
        from mobilenets.tasks.tag_losses import BinaryCrossEntropy, tag_weights

        weights = tag_weights(training.targets) if recipe.class_weights == "balanced" else None
        return BinaryCrossEntropy(recipe, len(config["labels"]), weights)

    def validation(self, config: Mapping[str, Any]) -> nn.ModuleDict:
        from mobilenets.tasks.tag_losses import tag_scores

        return tag_scores(len(config["labels"]))

    def validation_loss(self, outputs: Mapping[str, Tensor], targets: Tensor, config: Mapping[str, Any]) -> Tensor:  # noqa: ARG002
        from mobilenets.tasks.tag_losses import binary_cross_entropy

        return binary_cross_entropy(outputs[LOGITS], targets)

    def monitor(self, recipe: Any) -> str:  # noqa: ARG002
        return "val_map"

    def probe(
        self,
        features: npt.NDArray[np.float32],
        targets: Any,
        config: Mapping[str, Any],  # noqa: ARG002
        seed: int,
        balanced: bool = False,
    ) -> Probe:
        """A logistic regression for each tag, scored by its mean average precision, cross-validated."""
        return linear.fit_tags(features, np.asarray(targets, np.float32), seed, balanced)

    def teach(self, teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], temperature: float = 1.0) -> Tensor:
        """T^2 x the divergence of the student's softened tags from the teacher's, the mean over tags, nats."""
        from mobilenets.tasks.tag_losses import bernoulli_divergence

        soft = (teacher[LOGITS].float() / temperature).sigmoid()
        return temperature**2 * bernoulli_divergence(student[LOGITS] / temperature, soft)

    # ---- what another network learns from, and what is found after training

    def unread(self, probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        p = np.clip(probabilities, 1e-7, 1 - 1e-7)
        return np.asarray(np.log(p) - np.log1p(-p), np.float32)

    def read(self, logits: npt.NDArray[np.float32], trust: Trust) -> npt.NDArray[np.float32]:
        """Which tags hold, 1 or 0 [N, C]."""
        probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
        return np.asarray(probabilities >= (trust.thresholds or HALF), np.float32)

    def agreement(self, said: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
        """Percent of the tags that are known."""
        known = ~np.isnan(targets)
        return 100 * float((said == targets)[known].mean()) if known.any() else 0.0

    def settled(self, outputs: Outputs, targets: npt.NDArray[Any], card: Card) -> Trust:
        """The threshold of each tag: where it is right most often; of both answers alike, where training weighed so."""
        balanced = card.recipe.get("class_weights") == "balanced"
        found = tagging.thresholds(outputs[PROBABILITIES], targets, balanced)
        return Trust(len(targets), thresholds=found)

    # ---- answers

    def decode(self, outputs: Outputs, card: Card, sizes: Sizes, top: int) -> list[Answer]:  # noqa: ARG002
        at = card.trust.thresholds or (HALF,) * len(card.labels)
        return [
            Tags(tuple(Tag(c, float(p), bool(p >= t)) for c, p, t in zip(card.labels, row, at, strict=True)))
            for row in outputs[PROBABILITIES]
        ]

    def told(self, answer: Answer, target: Any, card: Card) -> tuple[str, str, str]:
        """The tags that are known to hold, those that are said to, and of all how probable they are."""
        assert isinstance(answer, Tags)
        true = BETWEEN.join(c for c, y in zip(card.labels, target, strict=True) if y > HALF)
        said = BETWEEN.join(t.label for t in answer.tags if t.holds)
        return true, said, BETWEEN.join(f"{100 * t.probability:.2f}" for t in answer.tags)

    def draw(self, image: Image.Image, answer: Answer) -> Image.Image:
        """The image with the tags that hold in its corner, one below the other."""
        assert isinstance(answer, Tags)
        lines = [f"{t.label} {100 * t.probability:.1f}%" for t in answer.holding[:DRAWN]] or ["none"]
        more = len(answer.holding) - len(lines)
        return captioned(image, "\n".join([*lines, *[f"and {more} more"] * (more > 0)]))

    def metrics(self, card: Card) -> tagging.TagTally:
        return tagging.TagTally(card.labels, card.trust.thresholds)

    # ---- proof and choice

    def parity(
        self, reference: Outputs, other: Outputs, precision: Precision, limits: tuple[float, float] | None = None
    ) -> Parity:
        """Tags that hold in both or in neither, and the largest difference of a probability."""
        a, b = reference[PROBABILITIES], other[PROBABILITIES]
        at = np.asarray(self.at or HALF)
        differ = (a >= at) != (b >= at)
        ties = int((differ & (np.abs(a - at) < NEAR)).sum())
        agreement, difference = 100 * (1 - float(differ.mean())), float(np.abs(a - b).max())
        least, most = bounds = limits or LIMITS[precision]
        # Of few tags, one at its threshold would be more than the limit's share; how far it differs is bounded anyway.
        kept = (differ.sum() <= 1 or agreement >= least) and difference <= most
        reason = (
            f"{agreement:.2f}% of the tags agree, needs {least}%; largest difference {difference:.3g}, limit {most}"
        )
        return Parity(agreement, difference, "" if kept else reason, bounds, ties)


TASK: Task = Attributes()
