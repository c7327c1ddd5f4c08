"""What TFLite's own tools read beside a graph: names, normalization and labels, by its metadata schema, version 1.

The tables are written field by field: the schema's generated code is in no package that is still released. Its fields'
numbers are those of metadata_schema.fbs, in the order of their declaration.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

import flatbuffers
import numpy as np

from mobilenets.arch.heads import PROBABILITIES
from mobilenets.deploy.lowering import reads_pixels
from mobilenets.model.card import Card

KEY, IDENTIFIER, PARSER = "TFLITE_METADATA", b"M001", "1.0.0"
LABELS = "labels.txt"
TENSOR_AXIS_LABELS, TENSOR_VALUE_LABELS = 2, 3  # AssociatedFileType
FEATURE, IMAGE, BOUNDING_BOX = 1, 2, 3  # ContentProperties
BOUNDARIES = 1  # BoundingBoxType: left, top, right, bottom, unless an index says otherwise; RATIO is CoordinateType 0
# A detector's outputs, in TensorFlow's order, as Task Library and MediaPipe call them.
DETECTIONS = {"boxes": "location", "classes": "category", "scores": "score", "count": "number of detections"}
GROUP = "detection_result"
RGB = 1  # ColorSpaceType
NORMALIZATION = 1  # ProcessUnitOptions


def normalization(card: Card) -> tuple[float, float]:
    """(mean, deviation) of the uint8 image: the network's own, where that is one whole number for all channels.

    Else 0 and 1: the graph takes the pixels as they are, and normalizes them itself.
    """
    p = card.preprocess
    return (p.mean[0], p.std[0]) if reads_pixels(p) else (0.0, 1.0)


def class_names(card: Card) -> tuple[str, ...]:
    """What probabilities are of; nothing where there are none, whatever is called labels there."""
    return card.labels if card.outputs.get(PROBABILITIES) == (len(card.labels),) else ()


def detected_names(card: Card) -> tuple[str, ...]:
    """What a detector's classes are of; nothing where the file doesn't give detections."""
    return card.labels if {*card.outputs} == {*DETECTIONS} else ()


class _Tables:
    """Tables of one flatbuffer, inner ones first."""

    def __init__(self) -> None:
        self.builder = flatbuffers.Builder(2**12)

    def table(self, fields: dict[int, int], enums: dict[int, int] | None = None) -> int:
        """By field number: what was written before, and single bytes."""
        self.builder.StartObject(max([*fields, *(enums or {}), 0]) + 1)
        for i, offset in fields.items():
            self.builder.PrependUOffsetTRelativeSlot(i, offset, 0)
        for i, value in (enums or {}).items():
            self.builder.PrependUint8Slot(i, value, 0)
        return int(self.builder.EndObject())

    def tables(self, *offsets: int) -> int:
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return int(self.builder.EndVector())

    def text(self, value: str) -> int:
        return int(self.builder.CreateString(value))

    def floats(self, values: Sequence[float]) -> int:
        return int(self.builder.CreateNumpyVector(np.array(values, np.float32)))

    def image(self, card: Card) -> int:
        (mean, std), (height, width) = normalization(card), card.preprocess.input_size
        options = self.table({0: self.floats([mean]), 1: self.floats([std])})
        unit = self.table({1: options}, {0: NORMALIZATION})
        return self.table({
            0: self.text("image"),
            1: self.text(f"RGB pixels, uint8 [N, {height}, {width}, 3]"),
            3: self.table({1: self.table({}, {0: RGB})}, {0: IMAGE}),
            4: self.tables(unit),
            5: self.table({0: self.floats([255.0]), 1: self.floats([0.0])}),
        })  # fmt: skip

    def plain(self, name: str, meaning: str) -> int:
        """An output that is just numbers."""
        return self.table({
            0: self.text(name), 1: self.text(meaning), 3: self.table({1: self.table({})}, {0: FEATURE}),
        })  # fmt: skip

    def labels(self, kind: int) -> int:
        return self.table({0: self.text(LABELS), 1: self.text("the classes, one a line")}, {2: kind})

    def detections(self, card: Card) -> list[int]:
        """A detector's outputs, one after another: no table may be begun inside another."""
        meanings = {o.name: o.meaning for o in card.head.outputs}
        out = []
        for name, known_as in DETECTIONS.items():
            if name == "boxes":
                content = {1: self.table({}, {1: BOUNDARIES})}, {0: BOUNDING_BOX}
            else:
                content = {1: self.table({})}, {0: FEATURE}
            fields = {0: self.text(known_as), 1: self.text(meanings[name])}
            if name != "count":
                content[0][2] = self.axis(2)
            fields[3] = self.table(*content)
            if name == "classes":
                fields[6] = self.tables(self.labels(TENSOR_VALUE_LABELS))
            out.append(self.table(fields))
        return out

    def axis(self, at: int) -> int:
        """A ValueRange of one: what the properties are of."""
        self.builder.StartObject(2)
        self.builder.PrependInt32Slot(0, at, 0)
        self.builder.PrependInt32Slot(1, at, 0)
        return int(self.builder.EndObject())

    def group(self) -> int:
        """The tensors that say one thing together."""
        names = [self.text(DETECTIONS[k]) for k in ("boxes", "classes", "scores")]
        return self.tables(self.table({0: self.text(GROUP), 1: self.tables(*names)}))

    def probabilities(self) -> int:
        labels = self.labels(TENSOR_AXIS_LABELS)
        return self.table({
            0: self.text("probabilities"),
            1: self.text("one for each class"),
            3: self.table({1: self.table({})}, {0: FEATURE}),
            5: self.table({0: self.floats([1.0]), 1: self.floats([0.0])}),
            6: self.tables(labels),
        })  # fmt: skip


def metadata(card: Card) -> bytes:
    """The ModelMetadata table."""
    t, names = _Tables(), class_names(card)
    images = t.tables(t.image(card))
    if detects := {*card.outputs} == {*DETECTIONS}:
        outputs = t.detections(card)
    else:
        outputs = [
            t.probabilities() if names and o.name == PROBABILITIES else t.plain(o.name, o.meaning)
            for o in card.head.outputs
        ]
    graph = t.table({2: images, 3: t.tables(*outputs), **({8: t.group()} if detects else {})})
    what = f"image classifier of {len(names)} classes" if card.task == "classify" else f"network for {card.task}"
    root = t.table({
        0: t.text(f"MobileNet {card.arch.title}"),
        1: t.text(f"{card.precision} {what}"),
        3: t.tables(graph),
        5: t.text(card.licence),
        7: t.text(PARSER),
    })  # fmt: skip
    t.builder.Finish(root, IDENTIFIER)
    return bytes(t.builder.Output())


def with_labels(model: bytes, labels: Sequence[str]) -> bytes:
    """The file with its associated file of labels: a zip behind the flatbuffer."""
    out = io.BytesIO(model)
    with zipfile.ZipFile(out, "a") as z:
        z.writestr(zipfile.ZipInfo(LABELS), "".join(f"{' '.join(label.split())}\n" for label in labels))
    return out.getvalue()
