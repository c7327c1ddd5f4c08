"""How well tags are told: average precision, accuracy, floors, and the thresholds from which they hold. No torch.

Targets [N, C] are 1, 0, or NaN where nobody knows, which counts nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mobilenets.arch.heads import PROBABILITIES
from mobilenets.console import Notebook
from mobilenets.tasks.precision import HALF, average_precision
from mobilenets.tasks.task import Outputs

if TYPE_CHECKING:
    from rich.console import RenderableType

FEW = 20  # images that have a tag: what is measured on fewer is chance above all
BEYOND = 2.5  # standard errors by which the best of many thresholds has to be better than one half
LEAST = 10  # images that have a tag, and as many that don't, to find its threshold on

Floats = npt.NDArray[Any]


def thresholds(probabilities: Floats, targets: Floats, balanced: bool = False) -> tuple[float, ...]:
    """For each tag of probabilities [N, C], from where on calling it held is most often right; 0 to 1.

    `balanced`: where right about those that have it counts as much as right about those that haven't. One half of a tag
    that has too few of either to find one, or for which no other is better by more than chance.
    """
    return tuple(_threshold(p, y, balanced) for p, y in zip(probabilities.T, targets.T, strict=True))


def _threshold(p: Floats, y: Floats, balanced: bool) -> float:
    known = ~np.isnan(y)
    p, y = p[known].astype(np.float64), y[known] > HALF
    yes, no = int(y.sum()), int((~y).sum())
    if min(yes, no) < LEAST:
        return HALF
    order = np.argsort(p, kind="stable")
    p, y = p[order], y[order]
    below = np.append(np.flatnonzero(np.diff(p, prepend=-1.0)), len(p))  # each distinct value; and all, for never
    hits, right = yes - np.cumsum(np.append(0, y))[below], np.cumsum(np.append(0, ~y))[below]
    gain = hits / yes + right / no if balanced else (hits + right).astype(np.float64)
    ends = np.concatenate([[0.0], p, [1.0]])
    at = (ends[below] + ends[below + 1]) / 2
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    found = round(float(at[best[np.abs(at[best] - HALF).argmin()]]), 6)
    between = (p >= found) != (p >= HALF)  # what is answered otherwise than from one half on
    weighs = np.where(y, 1 / yes, 1 / no)[between] if balanced else np.ones(int(between.sum()))
    gained = float(np.where(y[between] == (found < HALF), weighs, -weighs).sum())
    return found if gained > BEYOND * float(np.sqrt(np.square(weighs).sum())) else HALF


@dataclass(frozen=True)
class TagScore:
    """One tag's: `ap`, `accuracy`, `balanced` in percent, of `count` images where it is known, `positives` have it.

    NaN where no image has it, or all have. `threshold`: from which probability on it holds.
    """

    label: str
    ap: float
    accuracy: float
    balanced: float
    positives: int
    count: int
    threshold: float

    @property
    def share(self) -> float:
        """Of the images that have it, percent: the average precision of chance."""
        return 100 * self.positives / max(self.count, 1)

    @property
    def majority(self) -> float:
        """The accuracy of always giving the commoner answer, percent."""
        return max(self.share, 100 - self.share)

    @property
    def few(self) -> bool:
        return self.positives < FEW

    def to_json(self) -> dict[str, Any]:
        values = {"ap": self.ap, "accuracy": self.accuracy, "balanced": self.balanced}
        return {
            **{k: None if np.isnan(v) else v for k, v in values.items()},
            "positives": self.positives, "count": self.count, "share": self.share, "threshold": self.threshold,
            "few": self.few,
        }  # fmt: skip


@dataclass(frozen=True)
class TagScores(Notebook):
    """How well a network did on a split, in percent; `loss` in nats of a tag. Means over tags that can have them."""

    tags: tuple[TagScore, ...]
    loss: float
    count: int
    split: str
    data: str
    skipped: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        return self.map

    @property
    def map(self) -> float:
        """The mean average precision."""
        return _mean([t.ap for t in self.tags])

    @property
    def accuracy(self) -> float:
        return _mean([t.accuracy for t in self.tags])

    @property
    def balanced(self) -> float:
        """The mean of being right about those that have a tag and about those that haven't."""
        return _mean([t.balanced for t in self.tags])

    @property
    def chance(self) -> float:
        """The mean average precision of scores drawn at random."""
        return _mean([t.share for t in self.tags if t.positives])

    @property
    def majority(self) -> float:
        """The mean accuracy of always giving each tag's commoner answer."""
        return _mean([t.majority for t in self.tags if t.count])

    def to_json(self) -> dict[str, Any]:
        return {
            "map": self.map,
            "accuracy": self.accuracy,
            "balanced": self.balanced,
            "count": self.count,
            "split": self.split,
            "data": self.data,
            "loss": self.loss,
            "floors": {"map": self.chance, "accuracy": self.majority, "balanced": 50.0},
            "per_label": {t.label: t.to_json() for t in self.tags},
            "skipped": list(self.skipped),
        }

    def details(self) -> dict[str, Any]:
        return {}

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        from mobilenets.console import many, table

        t = table(f"{self.data}, {self.split} split", ["", "value", "without looking"], left=("",))
        for name, value, floor in (
            ("mean average precision, mAP (%)", f"{self.map:.2f}", f"{self.chance:.2f}"),
            ("mean accuracy (%)", f"{self.accuracy:.2f}", f"{self.majority:.2f}"),
            ("mean balanced accuracy (%)", f"{self.balanced:.2f}", "50.00"),
            ("loss (nats of a tag)", f"{self.loss:.4f}", ""),
            ("images", f"{self.count:,}", ""),
        ):
            t.add_row(name, value, floor)
        columns = ["tag", "AP %", "accuracy %", "balanced %", "have it %", "holds from"]
        each = table("by tag", columns, left=("tag",))
        ranked = sorted(self.tags, key=lambda s: (np.isnan(s.ap), s.ap))
        for s in ranked[:SHOWN]:
            mark = "*" if s.few else ""
            each.add_row(
                f"{s.label}{mark}", *map(_cell, (s.ap, s.accuracy, s.balanced)), f"{s.share:.1f}", f"{s.threshold:.2f}"
            )
        notes = [f"* fewer than {FEW} images have it: its numbers are chance above all"] * any(s.few for s in ranked)
        if len(ranked) > SHOWN:
            each.caption = f"the {SHOWN} worst of {len(ranked)}"
        if self.skipped:
            notes.append(f"{many(len(self.skipped), 'damaged image')} skipped: {'; '.join(self.skipped[:5])}")
        return Group(t, each, *notes)


SHOWN = 50


def _mean(values: Sequence[float]) -> float:
    kept = [v for v in values if not np.isnan(v)]
    return sum(kept) / max(len(kept), 1)


def _cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.1f}"


class TagTally:
    """Adds up batches of probabilities into `TagScores`; each image's are kept, four bytes for each tag twice."""

    def __init__(self, labels: tuple[str, ...], at: tuple[float, ...]) -> None:
        self.labels, self.at = labels, at or (HALF,) * len(labels)
        self.seen: list[Floats] = []
        self.true: list[Floats] = []

    def update(self, outputs: Outputs, targets: Sequence[Any]) -> None:
        """Probabilities [N, C] and tags [N, C]."""
        self.seen.append(outputs[PROBABILITIES])
        self.true.append(np.asarray(targets, np.float32).reshape(-1, len(self.labels)))

    def compute(self, data: str, split: str, skipped: tuple[str, ...] = ()) -> TagScores:
        none = np.empty((0, len(self.labels)), np.float32)
        p, y = (np.concatenate([none, *some]) for some in (self.seen, self.true))
        known = ~np.isnan(y)
        q = np.clip(p.astype(np.float64), 1e-7, 1 - 1e-7)
        nats = -np.where(y > HALF, np.log(q), np.log1p(-q))[known]
        return TagScores(
            tuple(self._each(p, y)), float(nats.mean()) if nats.size else 0.0, len(p), split, data, skipped
        )

    def _each(self, p: Floats, y: Floats) -> Iterator[TagScore]:
        for label, at, scores, said in zip(self.labels, self.at, p.T, y.T, strict=True):
            known = ~np.isnan(said)
            holds, true = scores[known] >= at, said[known] > HALF
            n, yes = len(true), int(true.sum())
            right = holds == true
            nan = float("nan")
            both = (right[true].mean() + right[~true].mean()) / 2 if 0 < yes < n else nan
            ap, accuracy = average_precision(scores, said), float(right.mean()) if n else nan
            yield TagScore(label, 100 * ap, 100 * accuracy, 100 * float(both), yes, n, at)
