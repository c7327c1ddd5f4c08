"""LiteRT (TensorFlow Lite) on the CPU, through XNNPACK: runs a .tflite file exported here."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from mobilenets.deploy.engines import Outputs, check_card, parse_card, run_batched
from mobilenets.deploy.engines.guard import Guarded
from mobilenets.deploy.engines.stderr import capture_stderr
from mobilenets.deploy.writers import tflite_graph
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card, Precision
from mobilenets.model.convert.formats import one_line
from mobilenets.model.images import Pixels

NAME = "litert"


def version() -> str:
    return importlib.metadata.version("ai-edge-litert")


def read_card(data: bytes, where: str) -> Card:
    """The card inside a file; a UserError for a damaged file, and for one without a card."""
    try:
        text = tflite_graph.entry(tflite_graph.open_model(data), tflite_graph.CARD_KEY)
    except Exception as e:  # flatbuffers raises nearly anything on damaged bytes
        raise UserError(f"{where}: not a readable TFLite file: {one_line(e)}") from e
    return parse_card(text, where)


class LiteRTEngine(Guarded):
    """An interpreter is for one call at a time: as many are made as calls are under way at once, and kept.

    Each has weights in XNNPACK's layout of its own, besides the file's bytes, which they share.
    """

    name = NAME
    concurrent = True

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(threads)
        self.data = path.read_bytes()
        self.card = read_card(self.data, str(path))
        try:
            self.idle = [self._interpreter()]
        except (ValueError, RuntimeError) as e:
            raise UserError(f"{path}: not a readable TFLite file: {one_line(e)}") from e
        image = self.idle[0].get_input_details()[0]
        shapes = {o["index"]: o["shape"][1:] for o in self.idle[0].get_output_details()}
        self.outputs = tflite_graph.signature_outputs(tflite_graph.open_model(self.data))
        given = {name: shapes[i] for name, i in self.outputs.items() if i in shapes}
        check_card(self.card, image["shape"][1:], given, str(path))
        self.batch = int(image["shape"][0]) if image["shape_signature"][0] > 0 else None

    def _interpreter(self) -> Interpreter:
        with capture_stderr():  # it announces its delegate
            interpreter = Interpreter(model_content=self.data, num_threads=self.threads)
            interpreter.allocate_tensors()
        return interpreter

    def _run(self, images: Pixels) -> Outputs:
        try:
            interpreter = self.idle.pop()  # one step, whatever other threads do
        except IndexError:
            interpreter = self._interpreter()
        try:
            image = interpreter.get_input_details()[0]
            if image["shape"][0] != len(images):
                interpreter.resize_tensor_input(image["index"], [len(images), *image["shape"][1:]])
                interpreter.allocate_tensors()
            interpreter.set_tensor(image["index"], np.ascontiguousarray(images))
            interpreter.invoke()
            return {name: interpreter.get_tensor(self.outputs[name]) for name in self.card.outputs}
        finally:
            self.idle.append(interpreter)

    def answer(self, images: Pixels) -> Outputs:
        return run_batched(self._run, images, self.batch)


def load(path: Path, threads: int) -> LiteRTEngine:
    return LiteRTEngine(path, threads)


def write(bundle: Bundle, path: Path, batch: int | None) -> None:
    """`bundle` as a TFLite file, with TFLite's own metadata, the labels, and the card in it."""
    from mobilenets.deploy.writers.tflite import tflite_model

    path.write_bytes(tflite_model(bundle, batch))


def stored_precision(path: Path) -> Precision:
    """What the convolutions of the file at `path` read, but for those that its card keeps in float."""
    data = path.read_bytes()
    return tflite_graph.stored_precision(tflite_graph.open_model(data), read_card(data, str(path)).float_ops)
