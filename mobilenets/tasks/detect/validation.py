"""COCO's average precision as a metric of a training's validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torchmetrics
from torch import Tensor

from mobilenets import console
from mobilenets.tasks.detect import zero
from mobilenets.tasks.detect.anchors import centres_and_sizes
from mobilenets.tasks.detect.config import LOGITS, OFFSETS, Config
from mobilenets.tasks.detect.decode import Found, raw_scores, suppressed
from mobilenets.tasks.detect.scoring import Evaluation

WIDTH = 8  # numbers of a row: image, whether it is an object, four of the box, class, score or crowd
AREA = 8


class AveragePrecision(torchmetrics.Metric):
    """COCO's AP or AP50 as a share, of offsets, logits, and boxes in pixels of the input.

    Overlaps are the same on a picture that is stretched; areas are the images' own. `first`: says why where next to
    nothing is found in the first epoch.
    """

    full_state_update = False
    rows: list[Tensor]
    config: Config | None

    def __init__(self, config: Config, name: str = "ap", first: bool = False) -> None:
        super().__init__()
        self.config, self.labels, self.name, self.first = config, config.labels, name, first
        self.epochs = self.images = 0
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Any]]) -> None:
        for one, found in zip(targets, self.found(outputs), strict=True):
            rows, columns = one["boxes"].canvas_size
            unit = torch.tensor([columns, rows] * 2)
            self.rows.append(self._rows(found, one, unit).to(self.device))
            self.images += 1

    def found(self, outputs: Mapping[str, Tensor]) -> Iterator[Found]:
        """What each image's outputs say, boxes in fractions of the input."""
        assert self.config is not None
        offsets, logits = (outputs[name].float().cpu().numpy() for name in (OFFSETS, LOGITS))
        scores = raw_scores(logits, self.config)[..., int(self.config.background) :]
        anchors = centres_and_sizes(self.config.anchors)
        for o, s in zip(offsets, scores, strict=True):
            yield suppressed(o, s, anchors, self.config)

    def _rows(self, found: Found, one: Mapping[str, Any], unit: Tensor) -> Tensor:
        """An image's answers and objects as rows of one tensor, which processes can exchange; at least one."""
        at = self.images * _world() + _rank()
        made = torch.zeros(1 + len(found) + len(one["labels"]), AREA + 1, dtype=torch.float64)
        made[:, 0] = at
        made[0, 1] = -1
        mine, true = made[1 : 1 + len(found)], made[1 + len(found) :]
        mine[:, 2:6], mine[:, 6] = torch.from_numpy(found.boxes), torch.from_numpy(found.classes)
        mine[:, 7] = torch.from_numpy(found.scores)
        true[:, 1] = 1
        true[:, 2:6] = one["boxes"].as_subclass(Tensor).cpu() / unit
        true[:, 6], true[:, 7], true[:, AREA] = (one[k].cpu() for k in ("labels", "crowd", "area"))
        return made

    def compute(self) -> Tensor:
        every = torch.cat(self.rows) if isinstance(self.rows, list) else self.rows
        table = every.cpu().numpy()
        evaluation, cases = Evaluation(self.labels), []
        for at in np.unique(table[:, 0]):
            rows = table[table[:, 0] == at]
            mine, true = rows[rows[:, 1] == 0], rows[rows[:, 1] == 1]
            found = Found(mine[:, 2:6].astype(np.float32), mine[:, 7].astype(np.float32), mine[:, 6].astype(np.int64))
            classes, crowd = true[:, 6].astype(np.int64), true[:, 7] > 0
            evaluation.add(found, true[:, 2:6], classes, crowd, true[:, AREA])
            cases.append(zero.Case(found, true[~crowd, 2:6].astype(np.float32), classes[~crowd]))
        numbers, _ = evaluation.result()
        self.epochs += 1
        if self.first and self.epochs == 1 and not numbers["ap50"] >= zero.NOTHING and _rank() == 0:
            reason = zero.why(cases, self.config, self.epochs)
            if reason:
                console.note(f"AP is {numbers['ap']:.2f}% after the first epoch: {reason}")
        return torch.tensor(np.nan_to_num(numbers[self.name]) / 100)

    def reset(self) -> None:
        super().reset()
        self.images = 0


class DetectionsPrecision(AveragePrecision):
    """The same of a network that gives detections, [N, K, 6], under the name `of`."""

    def __init__(self, labels: Sequence[str], of: str, name: str = "ap") -> None:
        torchmetrics.Metric.__init__(self)
        self.config, self.labels, self.of, self.name, self.first = None, tuple(labels), of, name, False
        self.epochs = self.images = 0
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def found(self, outputs: Mapping[str, Tensor]) -> Iterator[Found]:
        for one in outputs[self.of].float().cpu().numpy():
            there = one[one[:, 4] > 0]
            yield Found(there[:, :4], there[:, 4], there[:, 5].astype(np.int64))


def _rank() -> int:
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if there else 0


def _world() -> int:
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if there else 1
