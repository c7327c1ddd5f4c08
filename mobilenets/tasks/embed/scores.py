"""How well vectors tell what is the same: pairs verified, images found again, strangers told. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mobilenets.console import Notebook, many
from mobilenets.data.pairs import Seen
from mobilenets.errors import UserError
from mobilenets.tasks.embed.retrieval import Identified, Retrieved, identify, retrieve
from mobilenets.tasks.embed.verification import Verified, drawn_pairs, verify
from mobilenets.tasks.task import Outputs

if TYPE_CHECKING:
    from rich.console import RenderableType

VECTOR = "vector"
COLLAPSED = 0.98  # the mean cosine of two images from which on all are as good as one


@dataclass(frozen=True)
class EmbedScores(Notebook):
    """How well a network did on a split. `alike`: the mean cosine of two images that show different things.

    `given`: the pairs were, as LFW's; else they were drawn. `incomplete`: pairs of which an image couldn't be read.
    `single`: identities with one image.
    """

    verified: Verified
    retrieved: Retrieved | None
    identified: Identified | None
    alike: float
    given: bool
    incomplete: int
    single: int
    count: int
    split: str
    data: str
    skipped: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        return self.verified.accuracy

    @property
    def collapsed(self) -> bool:
        return self.alike > COLLAPSED

    def to_json(self) -> dict[str, Any]:
        return {
            "accuracy": self.verified.accuracy,
            "count": self.count,
            "split": self.split,
            "data": self.data,
            "verification": {**self.verified.to_json(), "given": self.given, "incomplete": self.incomplete},
            "retrieval": self.retrieved and self.retrieved.to_json(),
            "identification": self.identified and self.identified.to_json(),
            "cosine_of_different": self.alike,
            "collapsed": self.collapsed,
            "single": self.single,
            "skipped": list(self.skipped),
        }

    def details(self) -> dict[str, Any]:
        return {"roc": [list(p) for p in self.verified.roc]}

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        from mobilenets.console import table

        v = self.verified
        t = table(f"{self.data}, {self.split} split", ["", "value", "of"], left=("", "of"))
        t.add_row(
            "verification accuracy (%)", f"{v.accuracy:.2f} ± {v.error:.2f}",
            f"{v.same:,} same and {v.different:,} different pairs, {'given' if self.given else 'drawn'}, "
            f"{many(len(v.folds), 'fold')}",
        )  # fmt: skip
        for r in v.rates:
            of = f"{r.accepts} of {r.different:,} accepted falsely" if r.tar is not None else str(r)
            t.add_row(f"  accepted at FAR {r.far:g} (%)", "" if r.tar is None else str(r), of)
        t.add_row("  area under the ROC curve", f"{v.auc:.4f}", f"best threshold: cosine {v.threshold:.3f}")
        if self.retrieved:
            for k, value in self.retrieved.recall.items():
                t.add_row(f"recall@{k} (%)", f"{value:.2f}", f"{self.retrieved.queries:,} queries")
            t.add_row("mean average precision (%)", f"{self.retrieved.map:.2f}", "")
        if self.identified:
            i = self.identified
            for alarm, rate in i.rate.items():
                t.add_row(
                    f"identified at {100 * alarm:g}% false alarms (%)", "" if rate is None else f"{rate:.2f}",
                    f"{i.known:,} images of {i.enrolled:,} enrolled, {i.strangers:,} strangers",
                )  # fmt: skip
        t.add_row("images", f"{self.count:,}", f"mean cosine of different ones {self.alike:.3f}")
        notes = []
        if self.collapsed:
            notes.append(collapse(self.alike))
        if self.single:
            notes.append(f"{self.single:,} identities with one image: in no drawn pair, strangers to identification")
        if self.incomplete:
            notes.append(f"{many(self.incomplete, 'pair')} left out: an image couldn't be read")
        if self.skipped:
            notes.append(f"{many(len(self.skipped), 'damaged image')} skipped: {'; '.join(self.skipped[:5])}")
        return Group(t, *notes)


def collapse(alike: float) -> str:
    """The line that says that all vectors are the same."""
    return (
        f"the vectors have collapsed: two different images have a cosine of {alike:.4f} on the mean; a lower --lr, "
        "another --metric-loss, or more images of each (--photos-of-each) and a larger --batch may help"
    )


def mean_cosine(vectors: npt.NDArray[Any], identities: npt.NDArray[np.int64]) -> float:
    """Of unit vectors [N, K] with other identities, all of them."""
    v = vectors.astype(np.float64)
    every, pairs = float(np.square(v.sum(0)).sum()), len(v) ** 2
    _, which = np.unique(identities, return_inverse=True)
    sums = np.zeros((which.max(initial=-1) + 1, v.shape[1]))
    np.add.at(sums, which, v)
    own, same = float(np.square(sums).sum()), float(np.square(np.bincount(which).astype(np.float64)).sum())
    return (every - own) / (pairs - same) if pairs > same else 0.0


class VectorTally:
    """Adds up batches of vectors into `EmbedScores`; all are kept."""

    def __init__(self) -> None:
        self.vectors: list[npt.NDArray[np.float32]] = []
        self.targets: list[Any] = []

    def update(self, outputs: Outputs, targets: Sequence[Any]) -> None:
        """Vectors [N, K] and identities [N], or what is known of pairs too (`data.pairs.Seen`)."""
        self.vectors.append(outputs[VECTOR])
        self.targets += list(targets)

    def compute(self, data: str, split: str, skipped: tuple[str, ...] = ()) -> EmbedScores:
        v = np.concatenate([*self.vectors]) if self.vectors else np.empty((0, 1), np.float32)
        v = v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12)
        given = bool(self.targets) and isinstance(self.targets[0], Seen)
        who = np.array([t.identity if given else int(t) for t in self.targets], np.int64)
        incomplete = 0
        if given:
            pairs, same, fold, incomplete = _given(self.targets)
        else:
            pairs, same, fold = drawn_pairs(who)
        if not same.any() or same.all():
            raise UserError(f"{data}: no two images of one identity, or none of two: there is nothing to verify")
        cosines = (v[pairs[:, 0]] * v[pairs[:, 1]]).sum(1).astype(np.float64)
        return EmbedScores(
            verify(cosines, same, fold), retrieve(v, who), identify(v, who), mean_cosine(v, who), given, incomplete,
            int((np.unique(who, return_counts=True)[1] == 1).sum()), len(v), split, data, skipped,
        )  # fmt: skip


def _given(
    seen: Sequence[Seen],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.int64], int]:
    """The pairs [P, 2] that images know of, the same ones among them, their folds, and how many lack an image."""
    found: dict[int, list[int]] = {}
    about: dict[int, tuple[bool, int]] = {}
    for i, one in enumerate(seen):
        for number, same, fold in one.pairs:
            found.setdefault(number, []).append(i)
            about[number] = same, fold
    whole = [n for n, ends in sorted(found.items()) if len(ends) == 2]
    pairs = np.array([found[n] for n in whole], np.int64).reshape(-1, 2)
    are_same, folds = (np.array([about[n][k] for n in whole]) for k in (0, 1))
    return pairs, are_same.astype(bool), folds.astype(np.int64), len(found) - len(whole)
