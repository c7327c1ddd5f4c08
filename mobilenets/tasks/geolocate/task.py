"""What a network for geolocation is for: cells in, places out. No torch but in what training asks for."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets.arch.graph import Head, Output
from mobilenets.arch.heads import LOGITS, PROBABILITIES, classifier_head
from mobilenets.arch.operations import Op
from mobilenets.arch.spec import Arch
from mobilenets.data import open as opening
from mobilenets.data.dataset import Data, Split
from mobilenets.data.positions import POSITIONS
from mobilenets.data.source import Source
from mobilenets.errors import UserError
from mobilenets.model.card import Card, Precision
from mobilenets.tasks import classify, linear
from mobilenets.tasks.geolocate import cells, sphere
from mobilenets.tasks.geolocate.cells import Partition
from mobilenets.tasks.geolocate.gallery import Floats, Gallery
from mobilenets.tasks.geolocate.scores import DISTANCES, PlaceTally
from mobilenets.tasks.labelled import Labelled, captioned
from mobilenets.tasks.lesson import Lesson
from mobilenets.tasks.linear import Probe
from mobilenets.tasks.task import Answer, MetricSpec, Outputs, Parity, Sizes, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mobilenets.model.bundle import Bundle
    from mobilenets.tasks.geolocate.losses import CellLoss

PRIMARY = MetricSpec("within25", "within 25 km", share=True)
FLOORS = {"commonest cell": "cell", "best point": "point"}
LEAST_SPREAD = 0.1  # km: nearer than a photo's own position is


@dataclass(frozen=True)
class Guess:
    """A cell that a photo may be from: its photos' mean position, degrees, and how far half of them are from it, km."""

    latitude: float
    longitude: float
    spread_km: float
    probability: float
    cell: str

    def to_json(self) -> dict[str, Any]:
        return {
            "latitude": round(self.latitude, 4), "longitude": round(self.longitude, 4),
            "spread_km": round(self.spread_km, 1), "probability": round(self.probability, 6), "cell": self.cell,
        }  # fmt: skip

    def __str__(self) -> str:
        ns, ew = "NS"[self.latitude < 0], "EW"[self.longitude < 0]
        return (
            f"{abs(self.latitude):.3f}°{ns} {abs(self.longitude):.3f}°{ew} ±{max(self.spread_km, LEAST_SPREAD):,.1f} km"
            f" {100 * self.probability:.1f}%"
        )


@dataclass(frozen=True)
class Place:
    """Where a photo may be from, the most probable first."""

    guesses: tuple[Guess, ...]

    @property
    def best(self) -> Guess:
        return self.guesses[0]

    def to_json(self) -> dict[str, Any]:
        return {**self.best.to_json(), "guesses": [g.to_json() for g in self.guesses]}

    def __str__(self) -> str:
        return "\t".join(map(str, self.guesses))


@functools.lru_cache(8)
def _partitions(text: str) -> tuple[Partition, ...]:
    return tuple(Partition.from_json(p) for p in json.loads(text))


def partitions_of(config: Mapping[str, Any]) -> tuple[Partition, ...]:
    """The partitions of the globe in a card's config, the finest first. Raises `UserError`."""
    found = config.get("partitions")
    if not isinstance(found, list) or not found:
        raise UserError("the card has no partition of the globe")
    return _partitions(json.dumps(found))


def logits_of(i: int) -> str:
    """What the values of partition i are called, before they are probabilities."""
    return LOGITS if i == 0 else f"{LOGITS}{i + 1}"


def probabilities_of(i: int) -> str:
    return PROBABILITIES if i == 0 else f"{PROBABILITIES}{i + 1}"


class Geolocate(Labelled):
    """`config["partitions"]` are the globe's, the finest first; the network's classes are the first one's cells.

    Each coarser one has a classifier of its own, of the same features. A cell's score is the product of its own
    probability and those of the coarser cells that hold it (Müller-Budack and others 2018).
    """

    name = "geolocate"
    labelling = POSITIONS
    primary: MetricSpec | None = PRIMARY

    def __init__(self, gallery: Gallery | None = None) -> None:
        """`gallery`: what answers are taken from; none: the cells' mean positions."""
        self.gallery = gallery

    # ---- network

    def config(self, data: Data) -> dict[str, Any]:
        """Parts the globe by the training images' positions, or by others, as the data's reading says."""
        reading = Source.parse(data.source).reading
        train = np.asarray(data.splits["train"].targets if "train" in data.splits else data.split("all").targets)
        at = train
        if reading.positions is not None:
            at = np.asarray(opening.open_positions(reading.positions))
        wanted = cells.parse(reading.cells) if reading.cells else cells.usual(len(at))
        found = [cells.partition(at, most, least) for most, least in wanted]
        found.sort(key=len, reverse=True)
        if len(np.unique(at, axis=0)) < 2:
            raise UserError(f"{data.source}: all positions are the same place: there is nothing to learn")
        if len(found[0]) < 2:
            raise UserError(
                f"{data.source}: the globe in one cell; --cells T_MAX,T_MIN with a smaller T_MAX parts it further"
            )
        inside = train[found[0].find(train) >= 0]
        if not len(inside):
            raise UserError(f"{data.source}: no training image lies in any of the {len(found[0])} cells")
        commonest = np.bincount(found[0].find(inside)).argmax()
        return {
            "partitions": [p.to_json() for p in found],
            "soft_cells_km": reading.soft_cells or 0.0,
            "floors": {
                "cell": np.round(found[0].means[commonest], 4).tolist(),
                "point": np.round(sphere.best_point(train, DISTANCES[PRIMARY.name]), 4).tolist(),
            },
        }

    def arch(self, arch: Arch, config: Mapping[str, Any]) -> Arch:
        return arch.replace(num_classes=len(partitions_of(config)[0]))

    def head(self, arch: Arch, config: Mapping[str, Any]) -> Head:
        if arch.classifies == "map":
            raise UserError(f"{arch.name} classifies a map's positions: places need a network that pools first")
        head = classifier_head(arch)
        features = arch.ops[-1].inputs
        ops, outputs, own = [*head.ops], [*head.outputs], [*head.own]
        for i, p in enumerate(partitions_of(config)[1:], 1):
            layer, n = f"classifier{i + 1}", len(p)
            ops += [
                Op(layer, "linear", arch.features, n, bias=True, inputs=features),
                Op(logits_of(i), "flatten", n, n, inputs=(layer,)),
                Op(probabilities_of(i), "softmax", n, n, inputs=(logits_of(i),)),
            ]
            outputs.append(Output(probabilities_of(i), probabilities_of(i), "of each coarser cell"))
            own.append(layer)
        return Head(tuple(ops), tuple(outputs), tuple(own))

    # ---- training

    def objective(self, config: Mapping[str, Any], recipe: Any, training: Split) -> CellLoss:  # noqa: ARG002
        from mobilenets.tasks.geolocate.losses import CellLoss

        if recipe.class_weights == "balanced":
            raise UserError("cells hold about as many photos each already: leave out --class-weights balanced")
        parts = partitions_of(config)
        return CellLoss(recipe, parts, [logits_of(i) for i in range(len(parts))], float(config["soft_cells_km"]))

    def validation(self, config: Mapping[str, Any]) -> nn.ModuleDict:
        from mobilenets.tasks.geolocate.losses import scores

        return scores(partitions_of(config)[0], DISTANCES)

    def validation_loss(self, outputs: Mapping[str, Tensor], targets: Tensor, config: Mapping[str, Any]) -> Tensor:
        from mobilenets.tasks.geolocate.losses import validation_loss

        return validation_loss(outputs[LOGITS], targets, partitions_of(config)[0])

    def monitor(self, recipe: Any) -> str:  # noqa: ARG002
        return f"val_{PRIMARY.name}"

    def transfer(self, bundle: Bundle, config: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Everything, or all but the classifiers where the cells differ."""
        tensors = bundle.dense().tensors
        same = bundle.card.config.get("partitions") == config["partitions"]
        own = tuple(f"{name}." for name in bundle.card.head.own)
        return {k: np.array(v) for k, v in tensors.items() if same or not k.startswith(own)}

    def probe(
        self,
        features: npt.NDArray[np.float32],
        targets: Any,
        config: Mapping[str, Any],
        seed: int,
        balanced: bool = False,
    ) -> Probe:
        """Logistic regression to the finest cells, of the photos that lie in one."""
        fine = partitions_of(config)[0]
        inside = fine.find(targets)
        known = inside >= 0
        return linear.fit(features[known], inside[known], len(fine), seed, balanced)

    def teach(self, teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], temperature: float = 1.0) -> Tensor:
        from mobilenets.tasks.losses import divergence

        return divergence(teacher[LOGITS], student[LOGITS], temperature)

    def lesson(
        self,
        labels: Sequence[str],  # noqa: ARG002
        config: Mapping[str, Any],
        student: Mapping[str, Any],
        taps: bool,  # noqa: ARG002
    ) -> Lesson:
        from mobilenets.tasks.geolocate.lessons import OfCells

        ours = partitions_of(student)
        return OfCells(partitions_of(config)[0], ours, [logits_of(i) for i in range(len(ours))])

    # ---- answers

    def scored(self, outputs: Outputs, card: Card) -> npt.NDArray[np.float64]:
        """Of each cell of the finest partition, how probable it is with the coarser ones' say: [N, C], sum 1."""
        parts = partitions_of(card.config)
        scores = outputs[PROBABILITIES].astype(np.float64)
        for i, above in enumerate(cells.hierarchy(parts), 1):
            coarser = outputs[probabilities_of(i)].astype(np.float64)
            scores = scores * np.where(above >= 0, coarser[:, np.maximum(above, 0)], coarser.min(1, keepdims=True))
        return np.asarray(scores / np.maximum(scores.sum(1, keepdims=True), 1e-300))

    def decode(self, outputs: Outputs, card: Card, sizes: Sizes, top: int) -> list[Answer]:  # noqa: ARG002
        fine = partitions_of(card.config)[0]
        tokens = fine.tokens()
        return [
            Place(tuple(_guess(at, fine, tokens, cell, p) for at, p, cell in self._best(row, fine, top)))
            for row in self.scored(outputs, card)
        ]

    def _best(self, scores: Floats, fine: Partition, top: int) -> list[tuple[Floats, float, int]]:
        """Positions with their probabilities and cells, the most probable first: the gallery's, or the cells' means."""
        if self.gallery is not None:
            return self.gallery.best(scores, fine, top)
        order = np.argsort(-scores, kind="stable")[:top].tolist()
        return [(fine.means[c], float(scores[c]), c) for c in order]

    def among(self, gallery: str) -> Task:
        """The task whose answers are positions of a table. Raises `UserError`."""
        return Geolocate(Gallery(opening.open_positions(gallery)))

    def told(self, answer: Answer, target: Any, card: Card) -> tuple[str, str, str]:  # noqa: ARG002
        assert isinstance(answer, Place)
        best = answer.best
        lat, lon = (float(v) for v in target)
        return f"{lat:.4f},{lon:.4f}", f"{best.latitude:.4f},{best.longitude:.4f}", f"{100 * best.probability:.2f}"

    def draw(self, image: Image.Image, answer: Answer) -> Image.Image:
        """The image with the best guess in its corner."""
        assert isinstance(answer, Place)
        return captioned(image, str(answer.best))

    def metrics(self, card: Card) -> _Tally:
        return _Tally(self, card)

    # ---- proof

    def parity(
        self, reference: Outputs, other: Outputs, precision: Precision, limits: tuple[float, float] | None = None
    ) -> Parity:
        """Images with the same best cell of the finest partition, as of a classifier's classes."""
        return classify.TASK.parity(reference, other, precision, limits)


def _guess(at: Floats, fine: Partition, tokens: list[str], cell: int, probability: float) -> Guess:
    latitude, longitude = map(float, at)
    return Guess(latitude, longitude, float(fine.spreads[cell]), probability, tokens[cell])


class _Tally(PlaceTally):
    """Batches of outputs, as guesses."""

    def __init__(self, task: Geolocate, card: Card) -> None:
        floors = card.config["floors"]
        super().__init__({name: floors[key] for name, key in FLOORS.items()})
        self.task, self.card, self.fine = task, card, partitions_of(card.config)[0]

    def update(self, outputs: Outputs, targets: Any) -> None:
        """Probabilities and positions [N, 2]."""
        true = np.asarray(targets, np.float64).reshape(-1, 2)
        scores = self.task.scored(outputs, self.card)
        inside = self.fine.find(true)
        probable = np.where(inside >= 0, scores[np.arange(len(true)), np.maximum(inside, 0)], np.nan)
        self.add(self.fine.means[scores.argmax(1)], true, probable)


TASK: Task = Geolocate()
