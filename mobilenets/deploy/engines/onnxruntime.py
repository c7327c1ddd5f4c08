"""ONNX Runtime on the CPU: runs a .onnx file exported here."""

from __future__ import annotations

import functools
import importlib.metadata
import os
from pathlib import Path

# Importing it otherwise leaves a device's id and a database in the home folder, and reports to its makers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from mobilenets import processor
from mobilenets.deploy.engines import Outputs, check_card, parse_card, run_batched
from mobilenets.deploy.engines.guard import Guarded
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, find_bundle, is_file
from mobilenets.model.card import CARD_KEY, Precision
from mobilenets.model.images import Pixels

NAME = "onnxruntime"


def version() -> str:
    return importlib.metadata.version("onnxruntime")


def exact_everywhere() -> bool:
    """Whether this version computes int8 exactly on processors that have AVX2 and no VNNI too."""
    return tuple(int(n) for n in ort.__version__.split(".")[:2]) >= (1, 30)


@functools.cache
def exact_by_itself() -> bool:
    """Whether this processor multiplies bytes exactly (VNNI): the exact way of others would only take longer here."""
    return processor.has_vnni()


def int8_fault() -> str:
    """What is wrong with int8 on this processor, or nothing (see `engines`)."""
    if exact_everywhere() or not processor.adds_in_16_bits():
        return ""
    return "before 1.30, ONNX Runtime adds int8 products in 16 bits where there is no VNNI, which overflow: upgrade it"


def session(model: str | bytes, threads: int, widen: bool = False) -> ort.InferenceSession:
    """A CPU session on `threads` threads. `widen`: weights in 4 bits become float once, as the file is loaded."""
    options = ort.SessionOptions()
    # Processors with AVX2 alone (no VNNI) add two products in 16 bits, which overflow; this takes the exact way there.
    # Before 1.30 it ends the process, by a check in ONNX Runtime's own code (seen with 1.20 to 1.29).
    if exact_everywhere() and not exact_by_itself():
        options.add_session_config_entry("session.x64quantprecision", "1")
    if widen:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OnnxEngine(Guarded):
    name = NAME
    concurrent = True

    def __init__(self, model: Path | bytes, threads: int) -> None:
        super().__init__(threads)
        where = str(model) if isinstance(model, Path) else "model"
        source = str(model) if isinstance(model, Path) else model
        try:
            self.session = session(source, threads)
        except Exception as e:  # the runtime's own exception types aren't public; any of them means a damaged file
            raise UserError(f"{where}: not a readable ONNX file: {str(e).splitlines()[0][:200]}") from e
        self.card = parse_card(self.session.get_modelmeta().custom_metadata_map.get(CARD_KEY), where)
        if self.card.precision == "int4":  # else they would be widened in every call, which takes longer than the rest
            self.session = session(source, threads, widen=True)
        image, outputs = self.session.get_inputs()[0], self.session.get_outputs()
        check_card(self.card, image.shape[1:], {o.name: o.shape[1:] for o in outputs}, where)
        self.input, batch = image.name, image.shape[0]
        self.batch = batch if isinstance(batch, int) else None
        self.names = list(self.card.outputs)

    def _run(self, images: Pixels) -> Outputs:
        return dict(zip(self.names, self.session.run(self.names, {self.input: images}), strict=True))

    def answer(self, images: Pixels) -> Outputs:
        return run_batched(self._run, images, self.batch)


def load(path: Path, threads: int) -> OnnxEngine:
    """The file at `path`, or a bundle."""
    if path.is_dir() or is_file(path):
        from mobilenets.deploy.writers.onnx import onnx_model

        return OnnxEngine(onnx_model(Bundle.load(find_bundle(path))), threads)
    return OnnxEngine(path, threads)


def write(bundle: Bundle, path: Path, batch: int | None) -> None:
    """`bundle` as an ONNX file, the card in its metadata."""
    from mobilenets.deploy.writers.onnx import onnx_model

    path.write_bytes(onnx_model(bundle, batch))


def stored_precision(path: Path) -> Precision:
    """What the convolutions of the file at `path` read their weights from."""
    from mobilenets.deploy.writers.onnx import stored_precision

    return stored_precision(path)
