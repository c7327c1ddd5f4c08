"""COCO's average precision, computed by faster-coco-eval, and what a table shows of it. No torch.

Lin and others 2014, and cocodataset.org, "detection evaluation": crowds are ignored, areas are the masks' where there
are any, the best 100 boxes of an image count, precision is read at 101 recalls and averaged over ten overlaps.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mobilenets.console import Notebook
from mobilenets.errors import needed_by
from mobilenets.tasks.detect.masks import run_lengths

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mobilenets.data.boxes import Boxes
    from mobilenets.data.rle import Rle
    from mobilenets.tasks.detect.decode import Found

AREAS = {"small": [0, 32**2], "medium": [32**2, 96**2], "large": [96**2, 1e5**2]}  # square pixels
SHOWN = 50  # labels in a table
HALF, THREE_QUARTERS = 0, 5  # places of .5 and .75 among COCO's overlaps .5, .55, ... .95
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelScore:
    """One label's, percent; NaN where no image has it. `objects`: how many, crowds left out.

    `curve`: at an overlap of one half, the precision at recalls 0, .01, ... 1.
    """

    label: str
    ap: float
    ap50: float
    ar100: float
    objects: int
    curve: Floats

    def to_json(self) -> dict[str, Any]:
        values = {"ap": self.ap, "ap50": self.ap50, "ar100": self.ar100}
        return {**{k: _number(v) for k, v in values.items()}, "objects": self.objects}


@dataclass(frozen=True)
class DetectionScores(Notebook):
    """How well a detector did on a split, in percent: COCO's twelve numbers, NaN where there is nothing to find.

    `ap` is the mean over overlaps from .5 to .95, `ap50` and `ap75` are at one; `ap_small` and so on of objects of that
    size; `ar1`, `ar10`, `ar100` the recalls of so many boxes an image. `mask_ap` and so on are of masks, which overlap
    in place of boxes, where the detector gives some and the images have some. `why`: what is wrong where nothing was
    found.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    labels: tuple[LabelScore, ...]
    count: int
    split: str
    data: str
    skipped: tuple[str, ...] = ()
    why: str = ""
    mask_ap: float = float("nan")
    mask_ap50: float = float("nan")
    mask_ap75: float = float("nan")

    @property
    def value(self) -> float:
        return 0.0 if np.isnan(self.ap) else self.ap

    @property
    def numbers(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in NUMBERS}

    @property
    def of_masks(self) -> dict[str, float]:
        """Those numbers that are of masks, by their names among the others; none where there are no masks."""
        values = {name: getattr(self, f"mask_{name}") for name in OF_MASKS}
        return {} if np.isnan(self.mask_ap) else values

    @property
    def per_class(self) -> dict[str, LabelScore]:
        return {s.label: s for s in self.labels}

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: _number(v) for name, v in self.numbers.items()},
            **{f"mask_{name}": v for name, v in self.of_masks.items()},
            "count": self.count, "split": self.split, "data": self.data,
            "per_class": {s.label: s.to_json() for s in self.labels},
            "skipped": list(self.skipped),
            **({"why": self.why} if self.why else {}),
        }  # fmt: skip

    def details(self) -> dict[str, Any]:
        """Precision by recall of each label that is there, at an overlap of one half, 0 to 1."""
        return {"curves": {s.label: np.round(s.curve, 4).tolist() for s in self.labels if s.objects}}

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        from mobilenets.console import many, table

        t = table(f"{self.data}, {self.split} split", ["", "all", "small", "medium", "large"], left=("",))
        ap = [self.ap, self.ap_small, self.ap_medium, self.ap_large]
        ar = [self.ar100, self.ar_small, self.ar_medium, self.ar_large]
        t.add_row("average precision, AP (%)", *map(_cell, ap))
        t.add_row("at an overlap of .5, AP50", _cell(self.ap50), "", "", "")
        t.add_row("at .75, AP75", _cell(self.ap75), "", "", "")
        t.add_row("recall with 100 boxes, AR100", *map(_cell, ar))
        t.add_row("with 10, with 1", f"{_cell(self.ar10)}, {_cell(self.ar1)}", "", "", "")
        if self.of_masks:
            t.add_row("of masks, AP, AP50, AP75", ", ".join(map(_cell, self.of_masks.values())), "", "", "")
        t.add_row("images", f"{self.count:,}", "", "", "")
        each = table("by label", ["label", "AP %", "AP50 %", "AR100 %", "objects"], left=("label",))
        ranked = sorted((s for s in self.labels if s.objects), key=lambda s: (np.isnan(s.ap), s.ap))
        for s in ranked[:SHOWN]:
            each.add_row(s.label, _cell(s.ap), _cell(s.ap50), _cell(s.ar100), f"{s.objects:,}")
        if len(ranked) > SHOWN:
            each.caption = f"the {SHOWN} worst of {len(ranked)}"
        notes = [self.why] * bool(self.why)
        if self.skipped:
            notes.append(f"{many(len(self.skipped), 'damaged image')} skipped: {'; '.join(self.skipped[:5])}")
        return Group(t, *([each] if ranked else []), *notes)


NUMBERS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100", "ar_small", "ar_medium",
    "ar_large",
)  # fmt: skip

OF_MASKS = ("ap", "ap50", "ap75")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.1f}"


@dataclass
class Evaluation:
    """Adds up what was found in images and what there is, boxes in any unit that both have, as x1, y1, x2, y2.

    `overlap`: of boxes, or of masks ("segm"), which are then given as run lengths.
    """

    labels: Sequence[str]
    overlap: Literal["bbox", "segm"] = "bbox"
    images: int = 0
    sizes: dict[int, dict[str, int]] = field(default_factory=dict)  # of the images, where masks need them
    there: list[dict[str, Any]] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self, found: Found, boxes: Floats, classes: Any, crowd: Any, area: Any,
        masks: tuple[Sequence[Rle], Sequence[Rle]] | None = None,
    ) -> None:  # fmt: skip
        """One image's: what was found, and its objects' boxes [M, 4], classes, crowd flags and areas [M].

        `masks`: of what was found, and of the objects.
        """
        self.images += 1
        said, there = ([{"segmentation": dict(m)} for m in each] for each in masks) if masks else (None, None)
        rows = zip(np.asarray(boxes, np.float64).tolist(), classes.tolist(), crowd.tolist(), area.tolist(),
                   there or [{}] * len(boxes), strict=True)  # fmt: skip
        for (x1, y1, x2, y2), c, several, size, mask in rows:
            self.there.append({
                "id": len(self.there) + 1, "image_id": self.images, "category_id": int(c) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": size, "iscrowd": int(several), **mask,
            })  # fmt: skip
        every = zip(found.boxes.astype(np.float64).tolist(), found.scores.tolist(), found.classes.tolist(),
                    said or [{}] * len(found), strict=True)  # fmt: skip
        for (x1, y1, x2, y2), score, c, mask in every:
            where: dict[str, Any] = mask or {"bbox": [x1, y1, x2 - x1, y2 - y1]}
            self.said.append({"image_id": self.images, "category_id": int(c) + 1, "score": score, **where})

    def result(self) -> tuple[dict[str, float], tuple[LabelScore, ...]]:
        """COCO's twelve numbers by name and each label's, percent, NaN where there is nothing to find."""
        coco, evaluator = scorer()
        images = [{"id": i, **self.sizes.get(i, {})} for i in range(1, self.images + 1)]
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(self.labels)]
        nan = float("nan")
        counts = np.bincount(
            [a["category_id"] - 1 for a in self.there if not a["iscrowd"]], minlength=len(self.labels)
        ).tolist()
        if not sum(counts):
            none = np.full(101, nan)
            return dict.fromkeys(NUMBERS, nan), tuple(LabelScore(n, nan, nan, nan, 0, none) for n in self.labels)
        with contextlib.redirect_stdout(io.StringIO()):
            true = coco({"images": images, "annotations": self.there, "categories": categories})
            how = evaluator(true, true.loadRes([dict(d) for d in self.said]), self.overlap, ranges=AREAS)
            how.evaluate()
            how.accumulate()
        precision, recall = how.eval["precision"], how.eval["recall"]  # [T, R, K, A, M], [T, K, A, M]
        numbers = {
            "ap": _mean(precision[:, :, :, 0, -1]),
            "ap50": _mean(precision[HALF, :, :, 0, -1]),
            "ap75": _mean(precision[THREE_QUARTERS, :, :, 0, -1]),
            **{f"ap_{name}": _mean(precision[:, :, :, i + 1, -1]) for i, name in enumerate(AREAS)},
            **{f"ar{n}": _mean(recall[:, :, 0, i]) for i, n in enumerate((1, 10, 100))},
            **{f"ar_{name}": _mean(recall[:, :, i + 1, -1]) for i, name in enumerate(AREAS)},
        }
        each = tuple(
            LabelScore(
                name,
                _mean(precision[:, :, k, 0, -1]),
                _mean(precision[HALF, :, k, 0, -1]),
                _mean(recall[:, k, 0, -1]),
                counts[k],
                np.where(precision[HALF, :, k, 0, -1] < 0, nan, precision[HALF, :, k, 0, -1]),
            )
            for k, name in enumerate(self.labels)
        )
        return numbers, each


def _mean(values: Floats) -> float:
    kept = values[values > -1]  # -1: no object
    return 100 * float(kept.mean()) if kept.size else float("nan")


def scorer() -> tuple[Any, Any]:
    """What computes the scores. Raises `UserError` where it isn't installed."""
    with needed_by("a detector's score"):
        from faster_coco_eval import COCO, COCOeval_faster
    return COCO, COCOeval_faster


def add_boxes(to: Evaluation, found: Found, target: Boxes) -> None:
    """One image's, both in pixels of the image."""
    to.add(found, np.asarray(target.xyxy, np.float64), target.classes, target.crowd, target.area)


def add_masks(to: Evaluation, found: Found, target: Boxes) -> None:
    """The same of their masks: what was found has some, and so has what there is."""
    assert found.masks is not None
    said = run_lengths(found.masks, found.boxes, target.size)
    true = [] if target.masks is None else [*target.masks]
    to.add(found, np.asarray(target.xyxy, np.float64), target.classes, target.crowd, target.area, (said, true))
    to.sizes[to.images] = {"width": target.size[0], "height": target.size[1]}


def scores_of(
    numbers: Mapping[str, float], labels: tuple[LabelScore, ...], count: int, split: str, data: str,
    skipped: tuple[str, ...] = (), why: str = "",
) -> DetectionScores:  # fmt: skip
    return DetectionScores(**numbers, labels=labels, count=count, split=split, data=data, skipped=skipped, why=why)
