"""Classification: one class per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import Tensor

TOP = 5


def loss(logits: Tensor, targets: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy in nats, float32: logits [N, C], targets [N] or, mixed, [N, C]; `weights` [C] of the classes.

    With weights, the sum over images is divided by their number, whatever their classes weigh.
    """
    from torch.nn import functional as F

    total = F.cross_entropy(logits.float(), targets, weights, label_smoothing=smoothing, reduction="sum")
    return total / len(logits)


def decode(scores: npt.NDArray[np.float32], labels: tuple[str, ...], k: int) -> list[list[tuple[str, float]]]:
    """Probabilities [N, C] -> for each image its k best (label, probability), best first."""
    k = min(k, len(labels))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return [[(labels[c], float(row[c])) for c in order] for row, order in zip(scores, best, strict=True)]


@dataclass(frozen=True)
class Scores:
    """How well a network did on a split. Accuracies in percent; `confusion[true, predicted]` counts images."""

    top1: float
    top5: float
    loss: float
    count: int
    split: str
    data: str
    labels: tuple[str, ...]
    confusion: npt.NDArray[np.int64]
    skipped: tuple[str, ...] = ()

    @property
    def per_class(self) -> dict[str, float]:
        """Top-1 in percent (recall) of each class that has images."""
        n = self.confusion.sum(1)
        return {c: 100 * float(self.confusion[i, i] / n[i]) for i, c in enumerate(self.labels) if n[i]}

    @property
    def precision(self) -> dict[str, float]:
        """Of the images that were given each class, the share in percent that have it; 0 where none was given it."""
        given = self.confusion.sum(0)
        return {c: 100 * float(self.confusion[i, i] / max(given[i], 1)) for i, c in enumerate(self.labels)}

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
            "per_class": self.per_class,
            "per_class_precision": self.precision,
            "skipped": list(self.skipped),
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        from mobilenets.console import table

        t = table(f"{self.data}, {self.split} split", ["", "value"], left=("",))
        for name, value in (
            ("top-1 (%)", f"{self.top1:.2f}"),
            (f"top-{min(TOP, len(self.labels))} (%)", f"{self.top5:.2f}"),
            ("mean over classes (%)", f"{self.balanced:.2f}"),
            ("loss (nats)", f"{self.loss:.4f}"),
            ("images", f"{self.count:,}"),
        ):
            t.add_row(name, value)
        by_class = table("by class", ["class", "top-1 (recall) %", "precision %", "F1 %", "images"], left=("class",))
        rows = sorted(self.per_class.items(), key=lambda kv: kv[1])
        counts = dict(zip(self.labels, self.confusion.sum(1), strict=True))
        for c, recall in rows[:20]:
            precision = self.precision[c]
            f1 = 2 * precision * recall / max(precision + recall, 1e-9)
            by_class.add_row(c, f"{recall:.1f}", f"{precision:.1f}", f"{f1:.1f}", str(counts[c]))
        if len(rows) > 20:
            by_class.caption = f"the 20 worst of {len(rows)}"
        notes = [f"{len(self.skipped)} damaged images skipped: {'; '.join(self.skipped[:5])}"] if self.skipped else []
        return Group(t, by_class, *notes)


class Tally:
    """Adds up batches of probabilities into `Scores`, at constant memory."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.confusion = np.zeros((len(labels), len(labels)), np.int64)
        self.top5 = 0
        self.nats = 0.0

    def add(self, scores: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> None:
        """Probabilities [N, C] and true classes [N]."""
        best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
        np.add.at(self.confusion, (targets, best[:, 0]), 1)
        self.top5 += int((best == targets[:, None]).any(1).sum())
        p = scores[np.arange(len(targets)), targets].astype(np.float64)
        self.nats -= float(np.log(np.maximum(p, 1e-12)).sum())

    def scores(self, data: str, split: str, skipped: tuple[str, ...] = ()) -> Scores:
        n = int(self.confusion.sum())
        top1 = 100 * float(np.trace(self.confusion)) / max(n, 1)
        return Scores(
            top1,
            100 * self.top5 / max(n, 1),
            self.nats / max(n, 1),
            n,
            split,
            data,
            self.labels,
            self.confusion,
            skipped,
        )
