"""Classification: one class per image. No torch but in what training asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets.arch.graph import Head
from mobilenets.arch.heads import LOGITS, PROBABILITIES, classifier_head
from mobilenets.arch.spec import Arch
from mobilenets.console import Notebook
from mobilenets.data.dataset import Split
from mobilenets.data.labelling import CLASSES
from mobilenets.model.card import Card, Precision
from mobilenets.model.trust import Trust
from mobilenets.tasks import linear
from mobilenets.tasks.confusion import Confusion
from mobilenets.tasks.labelled import Labelled, captioned
from mobilenets.tasks.levels import Level, levels
from mobilenets.tasks.linear import Probe
from mobilenets.tasks.reliability import Rejection, Reliability, tempered
from mobilenets.tasks.task import Answer, MetricSpec, Outputs, Parity, Sizes, Task

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import Tensor, nn

    from mobilenets.tasks.losses import CrossEntropy

TOP = 5


PRIMARY = MetricSpec("top1", "top-1", share=True)
# What a right export may differ by, in percent of top-1 and in probability: float sums are taken in another order. In
# int8, roundings at a tie fall either way, layer after layer: on photos of ImageNet's classes, runtimes that agree with
# each other differ from PyTorch's simulation in up to 3% of the top-1, and by .15 in an unsure image's probability.
LIMITS: dict[Precision, tuple[float, float]] = {
    "float32": (99.0, 1e-3),
    "float16": (99.0, 0.03),
    "int8": (93.0, 0.25),
    "dynamic": (92.0, 0.25),
    "int4": (99.0, 0.03),
}
NEAR_TIE = 0.05  # between the two best probabilities: roundings decide which is the better


@dataclass(frozen=True)
class Labels:
    """An image's best labels with their probabilities, best first.

    `unsure`: whether the best is less probable than an answer has to be; `unlike`: whether the image is unlike those
    that were held out in training; None where that wasn't asked.
    """

    top: tuple[tuple[str, float], ...]
    unsure: bool | None = None
    unlike: bool | None = None

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"top": [{"label": c, "probability": round(p, 6)} for c, p in self.top]}
        if self.unsure is not None:
            out |= {"label": None if self.unsure else self.top[0][0], "guess": self.top[0][0]}
        if self.unlike is not None:
            out["unlike_training"] = self.unlike
        return out

    def __str__(self) -> str:
        each = [f"{c} {100 * p:.1f}%" for c, p in self.top]
        return "\t".join(["unsure"] * bool(self.unsure) + each + ["unlike the training images"] * bool(self.unlike))


def best(scores: npt.NDArray[np.float32], labels: tuple[str, ...], k: int) -> list[Labels]:
    """Probabilities [N, C] -> for each image its k best."""
    k = min(k, len(labels))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return [Labels(tuple((labels[c], float(row[c])) for c in some)) for row, some in zip(scores, order, strict=True)]


@dataclass(frozen=True)
class Scores(Notebook):
    """How well a network did on a split. Accuracies in percent.

    `uncalibrated`: how reliable its probabilities were before its card's temperature; `rejection`: what is left where
    unsure answers are none.
    """

    top1: float
    top5: float
    loss: float
    count: int
    split: str
    data: str
    labels: tuple[str, ...]
    confusion: Confusion
    reliability: Reliability
    skipped: tuple[str, ...] = ()
    uncalibrated: Reliability | None = None
    rejection: Rejection | None = None

    @property
    def value(self) -> float:
        return self.top1

    @property
    def per_class(self) -> dict[str, float]:
        """Top-1 in percent (recall) of each class that has images."""
        n, right = self.confusion.images.tolist(), self.confusion.right.tolist()
        return {c: 100 * right[i] / n[i] for i, c in enumerate(self.labels) if n[i]}

    @property
    def levels(self) -> tuple[Level, ...]:
        """Top-1 at each level above the classes, where their names are paths, as dog/beagle."""
        return levels(self.labels, self.confusion)

    @property
    def precision(self) -> dict[str, float]:
        """Of the images that were given each class, the share in percent that have it; 0 where none was given it."""
        given, right = self.confusion.answers.tolist(), self.confusion.right.tolist()
        return {c: 100 * right[i] / max(given[i], 1) for i, c in enumerate(self.labels)}

    @property
    def balanced(self) -> float:
        """The mean over classes of their top-1, percent: what counts where classes differ in size."""
        return sum(self.per_class.values()) / max(len(self.per_class), 1)

    def to_json(self) -> dict[str, Any]:
        return {
            "top1": self.top1,
            "top5": self.top5,
            "count": self.count,
            "split": self.split,
            "data": self.data,
            "loss": self.loss,
            "balanced": self.balanced,
            "ece": self.reliability.ece(),
            "ece_adaptive": self.reliability.ece(adaptive=True),
            **({"ece_uncalibrated": self.uncalibrated.ece()} if self.uncalibrated else {}),
            **({"rejection": self.rejection.to_json()} if self.rejection else {}),
            **({"levels": [level.to_json() for level in found]} if (found := self.levels) else {}),
            "per_class": self.per_class,
            "per_class_precision": self.precision,
            "skipped": list(self.skipped),
        }

    def details(self) -> dict[str, Any]:
        shown = {"reliability": self.reliability, "reliability_uncalibrated": self.uncalibrated}
        bins = {k: [b.to_json() for b in r.bins()] for k, r in shown.items() if r}
        return {"confusion": self.confusion.to_json(), **bins}

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        from mobilenets.console import many, table

        t = table(f"{self.data}, {self.split} split", ["", "value"], left=("",))
        for name, value in (
            ("top-1 (%)", f"{self.top1:.2f}"),
            (f"top-{min(TOP, len(self.labels))} (%)", f"{self.top5:.2f}"),
            *((f"top-1 of level {at.level}, {at.classes} classes (%)", f"{at.top1:.2f}") for at in self.levels),
            ("mean over classes (%)", f"{self.balanced:.2f}"),
            ("loss (nats)", f"{self.loss:.4f}"),
            ("calibration error, ECE (%)", f"{self.reliability.ece():.2f}"),
            *((("  before temperature scaling", f"{self.uncalibrated.ece():.2f}"),) if self.uncalibrated else ()),
            ("  in bins of as many images (%)", f"{self.reliability.ece(adaptive=True):.2f}"),
            ("images", f"{self.count:,}"),
        ):
            t.add_row(name, value)
        by_class = table("by class", ["class", "top-1 (recall) %", "precision %", "F1 %", "images"], left=("class",))
        rows = sorted(self.per_class.items(), key=lambda kv: kv[1])
        counts, precisions = dict(zip(self.labels, self.confusion.images.tolist(), strict=True)), self.precision
        for c, recall in rows[:20]:
            precision = precisions[c]
            f1 = 2 * precision * recall / max(precision + recall, 1e-9)
            by_class.add_row(c, f"{recall:.1f}", f"{precision:.1f}", f"{f1:.1f}", str(counts[c]))
        if len(rows) > 20:
            by_class.caption = f"the 20 worst of {len(rows)}"
        bad = f"{many(len(self.skipped), 'damaged image')} skipped: {'; '.join(self.skipped[:5])}"
        notes = [str(self.rejection)] * bool(self.rejection) + [bad] * bool(self.skipped)
        return Group(t, by_class, *notes)


class Tally:
    """Adds up batches of probabilities into `Scores`: a few numbers are kept of each image.

    `temperature`: what the logits were divided by, for how reliable the probabilities were before.
    """

    def __init__(self, labels: tuple[str, ...], temperature: float = 1.0) -> None:
        self.labels, self.temperature = labels, temperature
        self.confidence: list[npt.NDArray[Any]] = []
        self.uncalibrated: list[npt.NDArray[Any]] = []
        self.true: list[npt.NDArray[np.int64]] = []
        self.given: list[npt.NDArray[np.int64]] = []
        self.top5 = 0
        self.nats = 0.0

    def update(self, outputs: Outputs, targets: Sequence[Any]) -> None:
        """Probabilities [N, C] and true classes [N]."""
        scores, true = outputs[PROBABILITIES], np.asarray(targets)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
        self.true.append(true)
        self.given.append(best[:, 0])
        self.confidence.append(scores.max(1))
        if self.temperature != 1:
            self.uncalibrated.append(tempered(scores, 1 / self.temperature).max(1))
        self.top5 += int((best == true[:, None]).any(1).sum())
        p = scores[np.arange(len(true)), true].astype(np.float64)
        self.nats -= float(np.log(np.maximum(p, 1e-12)).sum())

    def compute(self, data: str, split: str, skipped: tuple[str, ...] = ()) -> Scores:
        none = [np.empty(0, np.int64)]
        true, given = (np.concatenate(some or none) for some in (self.true, self.given))
        n, right = len(true), true == given
        confidence, before = (np.concatenate(some or [np.empty(0)]) for some in (self.confidence, self.uncalibrated))
        return Scores(
            100 * int(right.sum()) / max(n, 1),
            100 * self.top5 / max(n, 1),
            self.nats / max(n, 1),
            n,
            split,
            data,
            self.labels,
            Confusion.of(true, given, len(self.labels)),
            Reliability(confidence, right),
            skipped,
            Reliability(before, right) if self.temperature != 1 else None,
        )


class Classify(Labelled):
    """One class per image: `config["labels"]` are their names, in the order of the probabilities."""

    name = "classify"
    labelling = CLASSES
    primary: MetricSpec | None = PRIMARY
    agreeing = "top-1"
    losses = ("cross-entropy", "bootstrap", "symmetric", "co-teaching")

    def head(self, arch: Arch, config: Mapping[str, Any]) -> Head:  # noqa: ARG002
        return classifier_head(arch)

    # ---- training

    def objective(self, config: Mapping[str, Any], recipe: Any, training: Split) -> CrossEntropy:
        from mobilenets.tasks.losses import LOSSES, class_weights

        classes = len(config["labels"])
        counts = np.bincount(training.targets, minlength=classes).tolist()
        weights = class_weights(counts) if recipe.class_weights == "balanced" else None
        return LOSSES[recipe.loss](recipe, classes, weights)

    def validation(self, config: Mapping[str, Any]) -> nn.ModuleDict:
        from mobilenets.tasks.losses import accuracies

        return accuracies(len(config["labels"]))

    def validation_loss(self, outputs: Mapping[str, Tensor], targets: Tensor, config: Mapping[str, Any]) -> Tensor:  # noqa: ARG002
        from mobilenets.tasks.losses import cross_entropy

        return cross_entropy(outputs[LOGITS], targets)

    def monitor(self, recipe: Any) -> str:
        return "val_balanced" if recipe.class_weights == "balanced" else "val_top1"

    def probe(
        self,
        features: npt.NDArray[np.float32],
        targets: Any,
        config: Mapping[str, Any],
        seed: int,
        balanced: bool = False,
    ) -> Probe:
        """Logistic regression, its penalty chosen by cross-validation."""
        return linear.fit(features, np.asarray(targets), len(config["labels"]), seed, balanced)

    def teach(self, teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], temperature: float = 1.0) -> Tensor:
        """The divergence of the student's softened probabilities from the teacher's, nats (Hinton and others 2015)."""
        from mobilenets.tasks.losses import divergence

        return divergence(teacher[LOGITS], student[LOGITS], temperature)

    def unread(self, probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Up to a constant of each image, which no probability depends on; below 1e-7, they are rounding."""
        return np.asarray(np.log(np.maximum(probabilities, 1e-7)))

    def read(self, logits: npt.NDArray[np.float32], trust: Trust) -> npt.NDArray[Any]:  # noqa: ARG002
        """The best class of each image [N]."""
        return np.asarray(logits.argmax(1))

    def agreement(self, said: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
        return 100 * float((said == targets).mean())

    # ---- answers

    def decode(self, outputs: Outputs, card: Card, sizes: Sizes, top: int) -> list[Answer]:  # noqa: ARG002
        return [*best(outputs[PROBABILITIES], card.labels, top)]

    def told(self, answer: Answer, target: Any, card: Card) -> tuple[str, str, str]:
        assert isinstance(answer, Labels)
        (label, probability), *_ = answer.top
        return card.labels[int(target)], label, f"{100 * probability:.2f}"

    def draw(self, image: Image.Image, answer: Answer) -> Image.Image:
        """The image with the best label in its corner."""
        return captioned(image, str(answer).partition("\t")[0])

    def metrics(self, card: Card) -> Tally:
        return Tally(card.labels, card.trust.temperature)

    # ---- proof and choice

    def parity(
        self, reference: Outputs, other: Outputs, precision: Precision, limits: tuple[float, float] | None = None
    ) -> Parity:
        """Images with the same best label, and the largest difference of a probability, within `limits` or LIMITS."""
        a, b = reference[PROBABILITIES], other[PROBABILITIES]
        other_label = a.argmax(1) != b.argmax(1)
        differ = int(other_label.sum())
        best = np.sort(a, axis=1)[:, ::-1]
        ties = int((other_label & (best[:, 0] - best[:, 1:2].max(1, initial=0) < NEAR_TIE)).sum())
        agreement, difference = 100 * (1 - differ / len(a)), float(np.abs(a - b).max())
        least, most = bounds = limits or LIMITS[precision]
        # Of few images, one at a tie would be more than the limit's share; how far it differs is bounded anyway.
        kept = (differ <= 1 or agreement >= least) and difference <= most
        reason = f"top-1 agreement {agreement:.2f}%, needs {least}%; largest difference {difference:.3g}, limit {most}"
        return Parity(agreement, difference, "" if kept else reason, bounds, ties)


TASK: Task = Classify()
