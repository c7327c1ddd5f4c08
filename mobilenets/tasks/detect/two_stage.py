"""Two-stage detection, as the rest of the package asks a task: boxes, and masks where the detector gives them.

It differs from `Detect` in its network's head and losses; data and answers are the same. No torch but in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mobilenets.arch import detectors, published
from mobilenets.arch.detectors import two_stage
from mobilenets.arch.graph import Head
from mobilenets.arch.spec import Arch
from mobilenets.data.dataset import Data, Split
from mobilenets.errors import UserError
from mobilenets.model.bundle import with_random_weights
from mobilenets.model.card import Card, Precision
from mobilenets.model.encodings import weight_name
from mobilenets.model.images import Preprocess
from mobilenets.tasks.detect import start
from mobilenets.tasks.detect.config import DetectorOptions
from mobilenets.tasks.detect.task import PRIOR, Detect
from mobilenets.tasks.detect.tiled import Overlap
from mobilenets.tasks.lesson import Lesson
from mobilenets.tasks.task import Prior, Task, Transform

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mobilenets.model.bundle import Bundle
    from mobilenets.tasks.detect.stages import TwoStageLoss

PROPOSALS = "suppression"  # of a config: how proposals are chosen, where it isn't the family's way
SIDE = 320  # pixels of the input where none are asked for
RANKED_BY = "faster-rcnn-fpn"  # the family whose COCO mAP on small bodies was published
SURE = 10.0  # the logit of a class that is found everywhere


class TwoStage(Detect):
    """Boxes of labels in two stages, `family` saying how; `config` is its name and the labels."""

    taps: tuple[str, ...] = ()  # what is learned from is the objective's to say

    @property
    def recipes(self) -> tuple[str, str]:
        return "two-stage", "two-stage"

    @property
    def how(self) -> two_stage.TwoStage:
        return two_stage.pyramid_family(self.family)

    def asked(self, options: DetectorOptions | None, start: Bundle | None) -> Detect:
        one = super().asked(options, start)
        return TwoStage(one.options, one.like)

    def network(self, arch: str | None, alpha: float | None, resolution: int | None) -> Arch:
        return detectors.two_stage_arch(self.family, arch, 1.0 if alpha is None else alpha, resolution)

    def resolution(self) -> int:
        return SIDE

    def shaped(self, config: Mapping[str, Any], arch: Arch, data: Data) -> dict[str, Any]:  # noqa: ARG002
        if self.options.anchors == "auto":
            raise UserError("--anchors auto is for one-stage detectors: a two-stage one places its boxes again")
        like = self.like if self.like and self.like["family"] == self.family else {}
        return {**config, **{k: like[k] for k in (PROPOSALS,) if k in like}}

    def by(self, config: Mapping[str, Any]) -> Task:
        return TwoStage(self.options, config)

    def begin(self, network: nn.Module, head: Head, config: Mapping[str, Any]) -> None:  # noqa: ARG002
        from mobilenets.tasks.detect.stages import initialise

        initialise(network, detectors.two_stage_anchors(network.arch, str(config["family"])))  # type: ignore[arg-type]

    def open(self, source: str, root: Path | None, seed: int, val: float | None) -> Data:
        data = super().open(source, root, seed, val)
        if self.how.masks and not all(t.masks is not None for t in data.split("train").targets if len(t)):
            raise UserError(f"{source} has boxes without masks, and {self.family} learns masks: take faster-rcnn-fpn")
        return data

    def transforms(self, preprocess: Preprocess, recipe: Any, kind: str) -> Transform:  # noqa: ARG002
        from mobilenets.tasks.detect.transforms import Augmentation

        return Augmentation(preprocess, kind, masks=self.how.masks)

    def head(self, arch: Arch, config: Mapping[str, Any]) -> Head:
        family, proposals = str(config["family"]), config.get(PROPOSALS)
        return detectors.two_stage_head(arch, len(config["labels"]) + 1, family, proposals)

    def objective(  # type: ignore[override]
        self,
        config: Mapping[str, Any],  # noqa: ARG002
        recipe: Any,  # noqa: ARG002
        training: Split,  # noqa: ARG002
    ) -> TwoStageLoss:
        from mobilenets.tasks.detect.stages import TwoStageLoss

        return TwoStageLoss()

    def validation(self, config: Mapping[str, Any]) -> nn.ModuleDict:
        from torch import nn

        from mobilenets.tasks.detect.scoring import scorer
        from mobilenets.tasks.detect.validation import DetectionsPrecision

        scorer()  # before the first epoch, not after it
        return nn.ModuleDict({
            f"val_{name}": DetectionsPrecision(config["labels"], two_stage.FOUND, name) for name in ("ap", "ap50")
        })  # fmt: skip

    def suppression(self, card: Card) -> Overlap:
        how = card.graph.op(two_stage.FOUND).suppression
        assert how is not None
        return how

    def transfer(self, bundle: Bundle, config: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        return start.two_stage_transferred(bundle, config)

    def finished(self, bundle: Bundle) -> Bundle:
        """It gives boxes already."""
        return bundle

    # ---- choice

    def variants(self, classes: int) -> list[Task]:
        """Itself: a detector of two stages is slower than any of one that finds as much, and is chosen by its name."""
        one = TwoStage(self.options, self.like)
        one.classes = classes
        return [one]

    def built(self, body: str, alpha: float, side: int) -> Arch:
        return detectors.two_stage_arch(self.family, body, alpha, side)

    def prior(self, arch: Arch) -> Prior | None:
        """COCO's mAP of the boxes, which nobody published for one with masks: as of one without."""
        found = published.coco_map(RANKED_BY, arch.name, arch.alpha, arch.resolution)
        if not found:
            return None
        return Prior(PRIOR, found[0], found[1] if self.family == RANKED_BY else "extrapolated")

    def configured(self, arch: Arch, labels: list[str]) -> dict[str, Any]:  # noqa: ARG002
        return {"labels": labels, "family": self.family}

    def random(self, arch: Arch, precision: Precision) -> Bundle:
        """It finds as much as it can, where time depends on what is found: on most photos it takes less."""
        card = self.untrained(arch)
        given = {
            f"{name}.anchors": np.array(boxes, np.float32)
            for name, boxes in detectors.two_stage_anchors(arch, self.family).items()
        }
        for name in self.fine(card):  # boxes stay where the anchors are, apart
            op = card.graph.op(name)
            shape = op.weight_shape[:2] if op.kind == "linear" else op.weight_shape
            given[weight_name(op)] = np.zeros(shape, np.float32)
        given["box.classes.bias"] = np.eye(1, self.classes + 1, 1, dtype=np.float32)[0] * SURE
        kept = self.fine(card) if precision == "int8" else ()
        return with_random_weights(card.replace(precision=precision, float_ops=kept), precision, given)

    def teach(self, *_: Any, **__: Any) -> Tensor:
        raise UserError(f"{self.family} isn't distilled: teacher and student would have to make the same proposals")

    def lesson(self, *_: Any, **__: Any) -> Lesson:
        raise UserError(f"{self.family} learns of no teacher: take a student of one stage, as --detector ssdlite")
