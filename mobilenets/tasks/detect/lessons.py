"""What a detector learns of another: all that this says of the same anchors; of any other, the boxes that it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert

from mobilenets.errors import UserError
from mobilenets.tasks.detect import decode
from mobilenets.tasks.detect.config import LOGITS, OFFSETS, SCORE, Config
from mobilenets.tasks.detect.loss import DetectionLoss, difference
from mobilenets.tasks.lesson import Learning, Lesson
from mobilenets.tasks.task import Objective
from mobilenets.tasks.taught import Taught

MOST, NUMBERS = 100, 6  # boxes of an image, each x1, y1, x2, y2 (fractions of it), score, class
LEAST = 0.1  # score of a box that is learned: there are many of less, and nearly none is an object


def lesson(labels: Sequence[str], config: Mapping[str, Any], student: Config, taps: bool) -> Lesson:
    """What a student learns of a detector with these labels and config. Raises `UserError` where they share no label.

    `config` may be empty, of a network that gives boxes; `taps`: whether it gives what its anchors say.
    """
    theirs = Config.of(config) if "anchors" in config else None
    if taps and theirs is not None and _anchored(theirs) == _anchored(student):
        return OfAnchors(student)
    columns = [student.labels.index(label) if label in student.labels else -1 for label in labels]
    if max(columns, default=-1) < 0:
        raise UserError(f"the teacher knows none of the student's labels ({', '.join(student.labels[:5])})")
    return OfBoxes(theirs, columns)


def _anchored(config: Config) -> tuple[Any, ...]:
    """What two detectors have in common that say the same of the same anchors."""
    return config.labels, config.scores, config.background, config.anchors, config.coder


class OfAnchors:
    """Offsets and logits of every anchor, which teacher and student share."""

    learns = "anchors"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.width = config.anchors.count * (4 + config.columns)

    def read(self, said: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([said[OFFSETS].flatten(1), said[LOGITS].flatten(1)], 1)

    def off(self, outputs: Mapping[str, Tensor], said: Tensor, _loss: DetectionLoss, temperature: float) -> Tensor:
        """The same as in `teach`: T^2 times the divergence of softened probabilities, and smooth L1 of the offsets."""
        anchors, columns = self.config.anchors.count, self.config.columns
        offsets, logits = torch.split(said, [4 * anchors, columns * anchors], 1)
        shaped = {OFFSETS: offsets.view(-1, anchors, 4), LOGITS: logits.view(-1, anchors, columns)}
        return difference(shaped, outputs, self.config.scores, temperature)

    def objective(self, labels: Objective, how: Learning, ask: Callable[[Tensor], Tensor] | None) -> Objective:
        return Taught(labels, self, how, ask)


class OfBoxes:
    """Boxes with scores, whatever they are found by: objects that are as sure as their scores."""

    width = MOST * NUMBERS

    def __init__(self, config: Config | None, columns: Sequence[int]) -> None:
        """`config`: how the teacher's outputs are read, None of boxes; `columns`: its labels, as here, or -1."""
        self.config, self.columns = config, torch.tensor(columns)
        self.learns = f"boxes of {list(columns)}"

    def read(self, said: Mapping[str, Tensor]) -> Tensor:
        given = {name: x.float().cpu().numpy() for name, x in said.items()}
        if LOGITS in given:
            assert self.config is not None
            given[SCORE] = decode.raw_scores(given[LOGITS], self.config)
        every = [*decode.found(given, self.config)]
        out = torch.zeros(len(every), MOST, NUMBERS)
        for row, one in zip(out, every, strict=True):
            kinds = self.columns[torch.from_numpy(one.classes).clamp(0, len(self.columns) - 1)]
            scores = torch.from_numpy(one.scores)
            keep = ((kinds >= 0) & (scores >= LEAST)).nonzero()[:MOST, 0]
            row[: len(keep), :4] = torch.from_numpy(one.boxes)[keep]
            row[: len(keep), 4], row[: len(keep), 5] = scores[keep], kinds[keep].float()
        return out.flatten(1)

    def off(self, outputs: Mapping[str, Tensor], said: Tensor, loss: DetectionLoss, _temperature: float) -> Tensor:
        """The detector's own loss, of the teacher's boxes."""
        taught = []
        for rows in said.view(len(said), MOST, NUMBERS):
            some = rows[rows[:, 4] > 0]
            none = torch.zeros(len(some), dtype=torch.bool, device=some.device)
            boxes = box_convert(some[:, :4], "xyxy", "cxcywh")
            taught.append({"boxes": boxes, "labels": some[:, 5].long(), "scores": some[:, 4], "crowd": none})
        found: Tensor = loss(outputs, taught)
        return found

    def objective(self, labels: Objective, how: Learning, ask: Callable[[Tensor], Tensor] | None) -> Objective:
        return Taught(labels, self, how, ask)
