"""Detection, as the rest of the package asks a task. No torch but in what training asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets import console
from mobilenets.arch import detectors, published, zoo
from mobilenets.arch.graph import Head
from mobilenets.arch.spec import Arch
from mobilenets.data.dataset import Data, Split
from mobilenets.errors import UserError
from mobilenets.model.bundle import with_random_weights
from mobilenets.model.card import Card, Precision
from mobilenets.model.images import Framing, Preprocess
from mobilenets.tasks.detect import anchors, answers, decode, finish, masks, parity, start, tiled, zero
from mobilenets.tasks.detect.answers import Detections
from mobilenets.tasks.detect.config import LOGITS, OFFSETS, Config, DetectorFamily, DetectorOptions, Suppression
from mobilenets.tasks.detect.scoring import (
    OF_MASKS,
    DetectionScores,
    Evaluation,
    add_boxes,
    add_masks,
    scorer,
    scores_of,
)
from mobilenets.tasks.lesson import Lesson
from mobilenets.tasks.task import Answer, MetricSpec, Outputs, Parity, Prior, Sizes, Task, Tile, Transform

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mobilenets.model.bundle import Bundle
    from mobilenets.tasks.detect.loss import DetectionLoss
    from mobilenets.tasks.linear import Probe

PRIMARY = MetricSpec("ap", "AP")
PRIOR = MetricSpec("coco_ap", "COCO AP")
SIDES = (224, 256, 320, 416)  # of inputs that `choose` measures
FAMILY = "ssdlite"
FAMILIES: tuple[DetectorFamily, ...] = ("ssdlite", "ssd", "ssd-fpnlite")  # that `choose` measures; of equals, the first
BODIES = ("v1", "v2", "v3-small", "v3-large")


class Detect:
    """Boxes of labels: `config` is a `Config` as JSON, once the network is known (see `shaped`)."""

    name = "detect"
    primary: MetricSpec | None = PRIMARY
    taps: tuple[str, ...] = (OFFSETS, LOGITS)
    ragged = True
    framing: Framing = "stretch"

    def __init__(
        self, options: DetectorOptions | None = None, like: Mapping[str, Any] | None = None, by: Config | None = None
    ) -> None:
        """`like`: the config of the detector that a training starts from. `by`: of the network at hand."""
        self.options, self.like, self.known = options or DetectorOptions(), like, by
        self.classes = 80  # labels of the networks that are measured, COCO's
        self.fit: dict[str, Any] = {}  # anchors that were fitted already, by what they were fitted to

    @property
    def family(self) -> str:
        return self.options.detector or (str(self.like["family"]) if self.like else FAMILY)

    # ---- what a detector has besides (see `task.Shaped`)

    @property
    def recipes(self) -> tuple[str, str]:
        """Another detector of its family goes on, of any other network the body."""
        return ("redetect" if self.like and self.like["family"] == self.family else "detect"), "modern"

    def asked(self, options: DetectorOptions | None, start: Bundle | None) -> Detect:
        like = start.card.config if start is not None and start.card.task == self.name else None
        return Detect(options or self.options, like)

    def network(self, arch: str | None, alpha: float | None, resolution: int | None) -> Arch:
        return detectors.detector_arch(self.family, arch, 1.0 if alpha is None else alpha, resolution)

    def resolution(self) -> int:
        return detectors.family(self.family).resolutions[0]

    def shaped(self, config: Mapping[str, Any], arch: Arch, data: Data) -> dict[str, Any]:
        """`config` with what depends on the network: its maps, and with them the anchors."""
        like = self.like if self.like and self.like["family"] == self.family else None
        boxes = like["anchors"]["boxes"] if like else None
        made = detectors.detection_config(arch, list(config["labels"]), self.family, boxes)
        if like:
            kept = {k: like[k] for k in ("background", "scores", "coder")}  # not how few boxes its file gave
            same = {k: v for k, v in like["anchors"].items() if k in ("convention", "offset", "clip")}
            made = {**made, **kept, "anchors": {**made["anchors"], **same}}
        if self.options.anchors != "auto":
            return made
        key = f"{arch.digest}{data.source}"
        if key not in self.fit:
            self.fit[key] = self._fitted(Config.of(made), data)
        return {**made, "anchors": self.fit[key]}

    def _fitted(self, made: Config, data: Data) -> dict[str, Any]:
        """Anchors fitted to the training's boxes, where they fit these better; a line says how well."""
        boxes = [t.xyxy[~t.crowd] / np.array([*t.size, *t.size], np.float32) for t in data.split("train").targets]
        fitted = anchors.fitted(made.anchors, np.concatenate([np.empty((0, 4), np.float32), *boxes]))
        before, after, line = anchors.fit_line(made.anchors, fitted, boxes)
        console.note(line if after > before else f"{line}: the default ones stay")
        return (fitted if after > before else made.anchors).to_json()

    def begin(self, network: nn.Module, head: Head, config: Mapping[str, Any]) -> None:
        from mobilenets.tasks.detect.loss import initialise

        initialise(network, head.own, [n for n in head.own if n.startswith(start.CLASSES)], Config.of(config))

    def by(self, config: Mapping[str, Any]) -> Task:
        return Detect(self.options, self.like, Config.of(config))

    def tensors(self, target: Any) -> Any:
        from mobilenets.tasks.detect.transforms import tensors

        width, height = target.size
        return tensors(target, (height, width))

    # ---- data

    def open(self, source: str, root: Path | None, seed: int, val: float | None) -> Data:
        from mobilenets.data.annotations.open import open_boxes

        return open_boxes(source, root, seed, val)

    def transforms(self, preprocess: Preprocess, recipe: Any, kind: str) -> Transform:  # noqa: ARG002
        from mobilenets.tasks.detect.transforms import Augmentation

        return Augmentation(preprocess, kind)

    # ---- network

    def config(self, data: Data) -> dict[str, Any]:
        return {"labels": list(data.labels), "family": self.family}

    def arch(self, arch: Arch, config: Mapping[str, Any]) -> Arch:  # noqa: ARG002
        return arch.replace(num_classes=0)

    def head(self, arch: Arch, config: Mapping[str, Any]) -> Head:
        how = Config.of(config)
        made = detectors.ssd_head(arch, how.columns, how.family, per_cell=[len(s) for s in how.anchors.boxes])
        return dataclasses.replace(made, own=tuple(op.name for op in made.ops if op.is_layer))

    # ---- training

    def objective(self, config: Mapping[str, Any], recipe: Any, training: Split) -> DetectionLoss:  # noqa: ARG002
        from mobilenets.tasks.detect.loss import DetectionLoss

        return DetectionLoss(Config.of(config), recipe.mosaic)

    def validation(self, config: Mapping[str, Any]) -> nn.ModuleDict:
        from torch import nn

        from mobilenets.tasks.detect.validation import AveragePrecision

        scorer()  # before the first epoch, not after it
        how = Config.of(config)
        return nn.ModuleDict({
            "val_ap": AveragePrecision(how, first=True),
            "val_ap50": AveragePrecision(how, "ap50"),
        })  # fmt: skip

    def validation_loss(self, outputs: Mapping[str, Tensor], targets: Any, config: Mapping[str, Any]) -> Tensor:
        """The training's, of boxes in pixels of the input."""
        from mobilenets.tasks.detect.loss import DetectionLoss, fractions

        loss: Tensor = DetectionLoss(Config.of(config)).to(outputs[OFFSETS].device)(outputs, [*map(fractions, targets)])
        return loss

    def _config(self) -> Config:
        if self.known is None:
            raise UserError("which anchors a detector has isn't known before its network is")
        return self.known

    def monitor(self, recipe: Any) -> str:  # noqa: ARG002
        return "val_ap"

    def transfer(self, bundle: Bundle, config: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        return start.transferred(bundle, config, self.name)

    def probe(self, features: Any, targets: Any, config: Any, seed: int, balanced: bool = False) -> Probe | None:  # noqa: ARG002
        return None

    def teach(self, teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], temperature: float = 1.0) -> Tensor:
        from mobilenets.tasks.detect.loss import difference

        return difference(teacher, student, self._config().scores, temperature)

    def lesson(
        self, labels: Sequence[str], config: Mapping[str, Any], student: Mapping[str, Any], taps: bool
    ) -> Lesson:
        from mobilenets.tasks.detect.lessons import lesson

        return lesson(labels, config, Config.of(student), taps)

    # ---- answers

    def decode(self, outputs: Outputs, card: Card, sizes: Sizes, top: int) -> list[Answer]:  # noqa: ARG002
        every = decode.on_images(decode.found(outputs, _config(card, outputs)), card.preprocess, sizes)
        least = card.trust.reject_below
        shown = answers.LEAST if least is None else least
        return [_said(one, card.labels, shown, size) for one, size in zip(every, sizes, strict=True)]

    def finished(self, bundle: Bundle) -> Bundle:
        """With what makes boxes of offsets and scores (see `task.Finishing`)."""
        return finish.finished(bundle)

    def fine(self, card: Card) -> tuple[str, ...]:
        """Those that say where boxes are (see `task.Finishing`)."""
        return finish.box_layers(card)

    def draw(self, image: Image.Image, answer: Answer) -> Image.Image:
        assert isinstance(answer, answers.Detections)
        return answers.draw(image, answer)

    def joined(self, answers: Sequence[Answer], tiles: Sequence[Tile], size: tuple[int, int], card: Card) -> Answer:
        every = [said for said in answers if isinstance(said, Detections)]
        return tiled.joined(every, tiles, size, self.suppression(card))

    def suppression(self, card: Card) -> tiled.Overlap:
        """Which boxes of an image push out which, in the network of this card."""
        return Suppression(**card.config.get("suppression", {}))

    def metrics(self, card: Card) -> DetectionTally:
        return DetectionTally(card)

    # ---- proof and choice

    def parity(
        self, reference: Outputs, other: Outputs, precision: Precision, limits: tuple[float, float] | None = None
    ) -> Parity:
        return parity.parity(reference, other, precision, limits)

    def prior(self, arch: Arch) -> Prior | None:
        """COCO's mAP of the family on this body, as published or near it: it ranks networks, it promises nothing."""
        found = published.coco_map(self.family, arch.name, arch.alpha, arch.resolution)
        return Prior(PRIOR, *found) if found else None

    @property
    def called(self) -> str:
        return f"{self.family}-{self.classes}"

    def variants(self, classes: int) -> list[Task]:
        """One of each family, or of the one that is asked for."""
        asked = self.options.detector
        made = []
        for name in [asked] if asked else FAMILIES:
            one = Detect(DetectorOptions(name, self.options.anchors), self.like)
            one.classes = classes
            made.append(one)
        return [*made]

    def networks(self, native_side: int | None) -> list[Arch]:
        """Bodies whose width is published, with inputs up to twice the images' short side."""
        sides = [s for s in SIDES if native_side is None or s <= max(SIDES[0], 2 * native_side)]
        bodies = [(n.name, a) for n in zoo.NETWORKS.values() for a in n.alphas if n.name in BODIES]
        every = [self.built(name, alpha, side) for name, alpha in bodies for side in sides]
        return [a for a in every if self.prior(a)]

    def built(self, body: str, alpha: float, side: int) -> Arch:
        """A network of the family, the detector's own layers apart."""
        return detectors.detector_arch(self.family, body, alpha, side)

    def untrained(self, arch: Arch) -> Card:
        config = self.configured(arch, [f"class {i}" for i in range(self.classes)])
        preprocess = Preprocess(arch.resolution, size=arch.size, framing=self.framing)
        return Card(arch, preprocess, self.head(arch, config), task=self.name, config=config)

    def configured(self, arch: Arch, labels: list[str]) -> dict[str, Any]:
        """The config of a network that tells `labels` apart."""
        return detectors.detection_config(arch, labels, self.family)

    def random(self, arch: Arch, precision: Precision) -> Bundle:
        return with_random_weights(self.untrained(arch), precision)


class DetectionTally:
    """Adds up batches of outputs and `Boxes` into `DetectionScores`; boxes alone are kept."""

    def __init__(self, card: Card) -> None:
        self.card, self.evaluation = card, Evaluation(card.labels)
        self.outlines = Evaluation(card.labels, "segm")  # of the masks of images that have some
        self.cases: list[zero.Case] = []
        self.config: Config | None = None

    def update(self, outputs: Outputs, targets: Sequence[Any]) -> None:
        self.config = _config(self.card, outputs)
        sizes = [t.size for t in targets]
        every = decode.on_images(decode.found(outputs, self.config), self.card.preprocess, sizes)
        for one, target in zip(every, targets, strict=True):
            add_boxes(self.evaluation, one, target)
            if one.masks is not None and (target.masks is not None or not len(target)):
                add_masks(self.outlines, one, target)
            if len(self.cases) < zero.LOOKED_AT:
                unit = np.array([*target.size, *target.size], np.float32)
                true = target.xyxy[~target.crowd] / unit
                shown = dataclasses.replace(one, boxes=one.boxes / unit)
                self.cases.append(zero.Case(shown, true, target.classes[~target.crowd]))

    def compute(self, data: str, split: str, skipped: tuple[str, ...] = ()) -> DetectionScores:
        numbers, labels = self.evaluation.result()
        if self.outlines.images == self.evaluation.images:
            of_masks, _ = self.outlines.result()
            numbers |= {f"mask_{name}": of_masks[name] for name in OF_MASKS}
        found_any = numbers["ap50"] >= zero.NOTHING
        why = "" if found_any else zero.why(self.cases, self.config)
        return scores_of(numbers, labels, self.evaluation.images, split, data, skipped, why)


def _config(card: Card, outputs: Outputs) -> Config | None:
    """How to read raw outputs; None of a file that decodes by itself. Raises `UserError`."""
    if decode.is_finished(outputs):
        return None
    if OFFSETS not in outputs:
        raise UserError(f"a detector gives offsets and scores, or boxes; this one gives {', '.join(outputs)}")
    return Config.of(card.config)


def _said(one: decode.Found, labels: Sequence[str], least: float, size: tuple[int, int]) -> answers.Detections:
    outlines = [None] * len(one) if one.masks is None else masks.run_lengths(one.masks, one.boxes, size)
    every = zip(one.boxes.tolist(), one.scores.tolist(), one.classes.tolist(), outlines, strict=True)
    return answers.Detections(
        tuple(
            answers.Detection(labels[c] if 0 <= c < len(labels) else f"class {c}", s, (x1, y1, x2, y2), mask, c)
            for (x1, y1, x2, y2), s, c, mask in every
        ),
        least,
    )
