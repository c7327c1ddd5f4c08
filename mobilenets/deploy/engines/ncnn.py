"""ncnn: runs a folder of model.param and model.bin, as any ncnn program loads them, and mobilenets.json, the card."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import ncnn
import numpy as np

from mobilenets import files
from mobilenets.arch.boxes import COLUMNS
from mobilenets.deploy.engines import Outputs
from mobilenets.deploy.engines.guard import Guarded
from mobilenets.deploy.writers.ncnn_detect import DETECTIONS
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card, Precision
from mobilenets.model.images import Pixels

NAME = "ncnn"
NOTHING = -100  # what ncnn says of a blob that is empty
PARAM, BIN, CARD = "model.param", "model.bin", "mobilenets.json"


def version() -> str:
    return importlib.metadata.version("ncnn")


def read_card(path: Path) -> Card:
    """The card of the folder at `path`, whose other files are what was written with it."""
    if not (path / CARD).is_file():
        raise UserError(f"{path}: has no card ({CARD} is missing); export it with mobilenets")
    d = files.read_json(path / CARD, (), "an ncnn network: not a mobilenets card")
    card = Card.from_json(d, str(path / CARD))
    for name in (PARAM, BIN):
        if not (path / name).is_file():
            raise UserError(f"{path}: {name} is missing; export it again")
        if d.get(name) != files.sha256(path / name):
            raise UserError(f"{path / name}: damaged, or of another network than its card; export it again")
    return card


class NcnnEngine(Guarded):
    """ncnn takes one image at a time."""

    name = NAME
    concurrent = True

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(threads)
        self.card = read_card(path)
        self.net = ncnn.Net()
        self.net.opt.num_threads = threads
        if self.card.precision == "float32":  # by default, weights and values are rounded to 16 bits as they are read
            self.net.opt.use_fp16_packed = self.net.opt.use_fp16_storage = self.net.opt.use_fp16_arithmetic = False
        if self.net.load_param(str(path / PARAM)) or self.net.load_model(str(path / BIN)):
            raise UserError(f"{path}: ncnn {version()} can't load it; upgrade with: pip install --upgrade ncnn")

    def _run(self, image: Pixels) -> Outputs:
        """The outputs of one image, without the batch."""
        height, width, _ = image.shape
        pixels = ncnn.Mat.from_pixels(np.ascontiguousarray(image), ncnn.Mat.PixelType.PIXEL_RGB, width, height)
        extractor = self.net.create_extractor()
        extractor.set_light_mode(len(self.card.outputs) == 1)  # else it forgets what the next output needs
        extractor.input("image", pixels)
        if any(op.kind == "suppress" for op in self.card.graph.ops):
            return self._detections(extractor)
        out = {}
        for name, shape in self.card.outputs.items():
            failed, values = extractor.extract(name)
            if failed:
                raise UserError(f"ncnn {version()} can't run this network (code {failed}); out of memory?")
            out[name] = np.array(values).reshape(shape)
        return out

    def _detections(self, extractor: Any) -> Outputs:
        """The parts of one image's detections, of ncnn's own blob of them."""
        failed, values = extractor.extract(DETECTIONS)
        if failed not in (0, NOTHING):
            raise UserError(f"ncnn {version()} can't run this network (code {failed}); out of memory?")
        graph = self.card.graph
        rows = np.array(values).reshape(-1, COLUMNS) if not failed else np.empty((0, COLUMNS), np.float32)
        parts = {"boxes": rows[:, 2:], "scores": rows[:, 1], "classes": rows[:, 0] - 1}
        out = {}
        for o in self.card.head.outputs:
            made = out[o.name] = np.zeros(self.card.outputs[o.name], np.float32)
            part = graph.op(o.op).part
            if part == "count":
                made[...] = len(rows)
            elif part is not None:
                made[: len(rows)] = parts[part]
        return out

    def answer(self, images: Pixels) -> Outputs:
        out = {name: np.empty((len(images), *shape), np.float32) for name, shape in self.card.outputs.items()}
        for i, image in enumerate(images):
            for name, values in self._run(image).items():
                out[name][i] = values
        return out


def load(path: Path, threads: int) -> NcnnEngine:
    return NcnnEngine(path, threads)


def write(bundle: Bundle, path: Path, batch: int | None) -> None:
    """`bundle` as a folder; the card has the digests of the two other files."""
    from mobilenets.deploy.writers.ncnn import ncnn_model

    if batch not in (None, 1):
        raise UserError(f"an ncnn file takes one image in a call, not {batch}; leave the batch out")
    text, weights = ncnn_model(bundle)
    path.mkdir()
    files.write_text(path / PARAM, text)
    (path / BIN).write_bytes(weights)
    digests = {name: files.sha256(path / name) for name in (PARAM, BIN)}
    files.write_text(path / CARD, json.dumps({**bundle.card.to_json(), **digests}, indent=2) + "\n")


def stored_precision(path: Path) -> Precision:
    """What the weights in model.bin are; layers that the card names as kept in float aside."""
    from mobilenets.deploy.writers.ncnn import stored_precision

    card = read_card(path)
    return stored_precision((path / PARAM).read_text(encoding="utf-8"), (path / BIN).read_bytes(), card.float_ops)
