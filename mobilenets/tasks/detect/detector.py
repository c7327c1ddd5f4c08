"""The task "detect": which of its two kinds, of one stage or two, a detector's family is of. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mobilenets.arch.detectors import PYRAMIDS
from mobilenets.tasks.detect.config import DetectorOptions
from mobilenets.tasks.detect.task import Detect
from mobilenets.tasks.detect.two_stage import TwoStage
from mobilenets.tasks.task import Task

if TYPE_CHECKING:
    from mobilenets.model.bundle import Bundle


class Detector(Detect):
    """One stage, until a family is known: asked for, or on the card of a network."""

    def asked(self, options: DetectorOptions | None, start: Bundle | None) -> Detect:
        one = super().asked(options, start)
        return TwoStage(one.options, one.like) if one.family in PYRAMIDS else one

    def by(self, config: Mapping[str, Any]) -> Task:
        return TwoStage().by(config) if config.get("family") in PYRAMIDS else super().by(config)


TASK: Task = Detector()
