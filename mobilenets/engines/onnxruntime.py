"""ONNX Runtime on the CPU: runs a .onnx file exported here."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import onnxruntime as ort

from mobilenets.bundle import Bundle, Card
from mobilenets.engines import Scores
from mobilenets.errors import UserError
from mobilenets.images import Pixels

NAME = "onnxruntime"
SUFFIXES = (".onnx",)
CARD_KEY = "mobilenets.card"


def version() -> str:
    return importlib.metadata.version("onnxruntime")


def session(model: str | bytes, threads: int) -> ort.InferenceSession:
    """A CPU session on `threads` threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OnnxEngine:
    name = NAME
    concurrent = True

    def __init__(self, model: Path | bytes, threads: int) -> None:
        where = str(model) if isinstance(model, Path) else "model"
        try:
            self.session = session(str(model) if isinstance(model, Path) else model, threads)
        except Exception as e:  # the runtime's own exception types aren't public; any of them means a damaged file
            raise UserError(f"{where}: not a readable ONNX file: {str(e).splitlines()[0][:200]}") from e
        text = self.session.get_modelmeta().custom_metadata_map.get(CARD_KEY)
        if text is None:
            raise UserError(f"{where}: has no card inside; export it with mobilenets")
        try:
            self.card = Card.from_json(json.loads(text), where)
        except ValueError as e:
            raise UserError(f"{where}: the card inside isn't JSON: {e}") from e
        self.input = self.session.get_inputs()[0].name

    def __call__(self, images: Pixels) -> Scores:
        scores: Scores = self.session.run(None, {self.input: images})[0]
        return scores


def load(path: Path, threads: int) -> OnnxEngine:
    return OnnxEngine(path, threads)


def build(bundle: Bundle, threads: int) -> tuple[OnnxEngine, int]:
    """A bundle as it would be exported, ready to run, and the bytes of its file."""
    from mobilenets.onnx_graph import onnx_model

    model = onnx_model(bundle.card, bundle.tensors).SerializeToString()
    return OnnxEngine(model, threads), len(model)
