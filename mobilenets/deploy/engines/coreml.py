"""Core ML, Apple's runtime: .mlpackage folders, converted on any system, run on macOS alone.

A model takes one RGB image of the card's size, as apps and Vision give it. A classifier gives `classLabel` and
`classLabel_probs`, from label to probability; other networks give the card's outputs by name. Preprocessing is inside,
the card is in the user-defined metadata. It needs iOS 17 or macOS 14. `writers.coreml` says what its precisions are.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobilenets.arch.heads import PROBABILITIES
from mobilenets.deploy.engines import RUNTIMES, Outputs, parse_card
from mobilenets.deploy.engines.guard import Guarded
from mobilenets.deploy.engines.imports import suppress_warnings
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import CARD_KEY, Card, Precision
from mobilenets.model.images import Pixels

NAME = "coreml"

with suppress_warnings():
    import coremltools as ct
    from coremltools.proto import MIL_pb2, Model_pb2


def version() -> str:
    return importlib.metadata.version("coremltools")


def class_names(card: Card) -> list[str]:
    """The labels; those that several classes share (ImageNet has two kinds of crane) with the class's number."""
    count = Counter(card.labels)
    return [label if count[label] == 1 else f"{label} ({i})" for i, label in enumerate(card.labels)]


def is_classifier(card: Card) -> bool:
    """Whether the model says which of its labels an image is, as Core ML's classifiers do."""
    return card.task == "classify"


class CoremlEngine(Guarded):
    name = NAME

    def __init__(self, path: Path) -> None:
        super().__init__(1)
        self.card = card_of(path)
        if not RUNTIMES[NAME].runs_here:
            raise UserError(f"{path}: Core ML runs on macOS alone; run its bundle, or another file of it")
        self.model = ct.models.MLModel(str(path))

    def answer(self, images: Pixels) -> Outputs:
        made = self.model.predict([{"image": Image.fromarray(image)} for image in images])
        if is_classifier(self.card):
            names = class_names(self.card)
            return {PROBABILITIES: np.array([[p["classLabel_probs"][n] for n in names] for p in made], np.float32)}
        return {name: np.concatenate([p[name] for p in made]).astype(np.float32) for name in self.card.outputs}


def load(path: Path, threads: int) -> CoremlEngine:  # noqa: ARG001
    """Core ML chooses its processors and threads itself."""
    return CoremlEngine(path)


def write(bundle: Bundle, path: Path, batch: int | None) -> None:
    """`bundle` as an .mlpackage. Raises `UserError` for a batch of more than one image: Core ML has none."""
    from mobilenets.deploy.writers.coreml import program

    card, size = bundle.card, bundle.card.preprocess.input_size
    if batch not in (None, 1):
        raise UserError("a Core ML file takes one image in every call; leave --batch out")
    with suppress_warnings():
        made = program(bundle)
        model = ct.convert(
            made,
            source="milinternal",
            convert_to="mlprogram",
            inputs=[ct.ImageType("image", (1, 3, *size), color_layout=ct.colorlayout.RGB)],
            classifier_config=ct.ClassifierConfig(class_names(card)) if is_classifier(card) else None,
            compute_precision=ct.precision.FLOAT32,  # as the program is written
            minimum_deployment_target=made.functions["main"].opset_version,
            skip_model_load=True,
        )
        model.user_defined_metadata[CARD_KEY] = json.dumps(card.to_json())
        model.license, model.short_description = card.licence, f"{card.arch.title}, {card.precision}"
        try:
            model.save(str(path))
        except shutil.Error as e:  # of all files that it copied, without a number of its own
            number = re.search(r"\[Errno (\d+)\]", str(e))
            raise OSError(int(number[1]) if number else errno.EIO, "can't be copied") from e


def _spec(path: Path) -> Any:
    try:
        return ct.utils.load_spec(str(path))
    except Exception as e:  # of protobuf, of the package's manifest, of the file system
        raise UserError(f"{path}: not a readable .mlpackage: {str(e).splitlines()[0][:200]}") from e


def card_of(path: Path) -> Card:
    return _card(_spec(path), path)


def _card(spec: Model_pb2.Model, path: Path) -> Card:
    text = dict(spec.description.metadata.userDefined).get(CARD_KEY)
    return parse_card(text, str(path))


def stored_precision(path: Path) -> Precision:
    """What the convolutions read their weights from, and for int8, whether their images are quantized too.

    As many as the card names as kept in float may read floats.
    """
    spec = _spec(path)
    main = spec.mlProgram.functions["main"]
    operations = main.block_specializations[main.opset].operations
    made = {out.name: op for op in operations for out in op.outputs}
    found: Counter[Precision] = Counter()
    for op in operations:
        if op.type == "conv":
            weight, image = (made[op.inputs[k].arguments[0].name] for k in ("weight", "x"))
            if weight.type == "constexpr_affine_dequantize":
                found["int8" if image.type == "dequantize" else "dynamic"] += 1
            elif weight.type == "constexpr_blockwise_shift_scale":
                found["int4"] += 1
            else:
                kind = weight.outputs[0].type.tensorType.dataType
                found["float16" if kind == MIL_pb2.DataType.FLOAT16 else "float32"] += 1
    card = _card(spec, path)
    spared = sum(op.name in card.float_ops for op in card.graph.layers)
    if found["int8"] and set(found) <= {"int8", "float16"} and found["float16"] == spared:
        return "int8"
    if len(found) == 1 and "int8" not in found:
        (only,) = found
        return only
    return "float32"
