"""TensorFlow Lite Micro: an int8 network as C source for a microcontroller, run here by the same interpreter.

It is for the proof and the sizes. Its kernels are the reference ones here, which are slow, and round twice where the
other runtimes round once: a value in 500 is a step off after each layer. A microcontroller's time isn't measured.

RAM: the arena, measured with pointers of 64 bits; a microcontroller's are shorter, and need a little less. Flash: the
model's bytes; the interpreter's and the kernels' code, which depends on the compiler, is left out.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path

import numpy as np
from tflite_micro import runtime

from mobilenets import files
from mobilenets.deploy.engines import Outputs, check_card, parse_card, run_batched
from mobilenets.deploy.engines.guard import Guarded
from mobilenets.deploy.engines.stderr import capture_stderr
from mobilenets.deploy.writers import c_array, tflite_graph, tflite_metadata
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Precision
from mobilenets.model.convert.formats import one_line
from mobilenets.model.images import Pixels

NAME = "tflm"
HEADER, SOURCE, CARD = "model.h", "model.c", "model.json"
MOST_ARENA = 2**28  # bytes offered to a network whose need isn't known; only what it uses is taken
STEP = 1024  # bytes


def version() -> str:
    return importlib.metadata.version("tflite-micro")


class TFLMEngine(Guarded):
    name = NAME

    def __init__(self, path: Path) -> None:
        super().__init__(1)
        try:
            model = c_array.model_bytes((path / SOURCE).read_text(encoding="utf-8"))
            arena = c_array.number((path / HEADER).read_text(encoding="utf-8"), "MODEL_ARENA_BYTES")
            card = (path / CARD).read_bytes()
        except (OSError, ValueError) as e:
            raise UserError(f"{path}: not a readable c-array folder: {e}") from e
        self.card = parse_card(card, str(path / CARD))
        self.interpreter = interpreter(model, arena, str(path))
        # It knows outputs by their order alone.
        count = tflite_graph.open_model(model).Subgraphs(0).OutputsLength()
        names = [*self.card.outputs, *(f"output {i}" for i in range(len(self.card.outputs), count))]
        shapes = [self.interpreter.get_output_details(i)["shape"][1:] for i in range(count)]
        image = self.interpreter.get_input_details(0)["shape"][1:]
        check_card(self.card, image, dict(zip(names, shapes, strict=False)), str(path))

    def _run(self, images: Pixels) -> Outputs:
        self.interpreter.set_input(np.ascontiguousarray(images), 0)
        self.interpreter.invoke()
        return {name: np.array(self.interpreter.get_output(i)) for i, name in enumerate(self.card.outputs)}

    def answer(self, images: Pixels) -> Outputs:
        return run_batched(self._run, images, 1)


def load(path: Path, threads: int) -> TFLMEngine:  # noqa: ARG001
    """The network in a c-array folder, in an arena of the size that its header gives; on one thread, always."""
    return TFLMEngine(path)


def interpreter(model: bytes, arena_bytes: int, where: str) -> runtime.Interpreter:
    """A UserError names the operator that TensorFlow Lite Micro hasn't got, or says that the arena is too small."""
    said: list[str] = []
    try:
        tflite_graph.open_model(model)
        with capture_stderr() as said:
            return runtime.Interpreter.from_bytes(model, arena_size=arena_bytes)
    except Exception as e:  # flatbuffers raises nearly anything on damaged bytes
        lines = "\n".join(said)
        if missing := re.search(r"builtin opcode '(\w+)'", lines):
            reason = f"it has no {missing[1]} operator; choose another network"
        elif "missing: " in lines:
            reason = f"an arena of {arena_bytes:,} bytes is too small; export the network again"
        else:
            reason = lines.strip().partition("\n")[0] or one_line(e)
        raise UserError(f"{where}: TensorFlow Lite Micro can't run this: {reason[:200]}") from e


def arena_bytes(model: bytes, where: str = "network") -> int:
    """RAM that a TFLite file takes to set up and run, measured to a kilobyte. A `UserError` where it can't run."""
    ready = interpreter(model, MOST_ARENA, where)
    with capture_stderr() as said:
        ready.print_allocations()
    found = re.search(r"Arena allocation total (\d+) bytes", "\n".join(said))
    if found is None:
        raise UserError(f"tflite-micro {version()} doesn't say how much memory it uses; install another version")
    low = high = int(found[1])  # what it holds in the end; planning takes more than that in some small networks
    while not _fits(model, high):
        low, high = high, 2 * high
    while high - low > STEP:
        middle = (low + high) // 2 // 16 * 16
        low, high = (low, middle) if _fits(model, middle) else (middle, high)
    return high


def _fits(model: bytes, arena: int) -> bool:
    try:
        interpreter(model, arena, "network")
    except UserError:
        return False
    return True


def model(bundle: Bundle) -> bytes:
    """The TFLite file that goes into flash: no card, no metadata."""
    from mobilenets.deploy.writers.tflite import tflite_graph as graph

    if bundle.card.precision != "int8":
        raise UserError(f"a microcontroller runs int8 networks, and this one is {bundle.card.precision}; quantize it")
    return graph(bundle, 1, micro=True)


def needs(bundle: Bundle) -> tuple[int, int]:
    """(arena bytes, flash bytes) of an int8 bundle, measured; the module says what they leave out."""
    data = model(bundle)
    return arena_bytes(data, bundle.card.arch.title), len(data)


def write(bundle: Bundle, path: Path, batch: int | None) -> None:
    """`bundle` as a folder: model.h and model.c to compile, and model.json, its card."""
    if batch not in (None, 1):
        raise UserError(f"TensorFlow Lite Micro runs one image at a time, not {batch}; leave --batch out")
    data = model(bundle)
    kinds = tflite_graph.operators(tflite_graph.open_model(data))
    arena = arena_bytes(data, bundle.card.arch.title)
    path.mkdir()
    files.write_text(path / HEADER, c_array.header(bundle.card, data, arena, kinds))
    files.write_text(path / SOURCE, c_array.source(data, tflite_metadata.class_names(bundle.card)))
    files.write_text(path / CARD, json.dumps(bundle.card.to_json(), indent=2) + "\n")


def ram_bytes(path: Path) -> int:
    return c_array.number((path / HEADER).read_text(encoding="utf-8"), "MODEL_ARENA_BYTES")


def stored_precision(path: Path) -> Precision:
    """What the convolutions in the folder's model.c read, but for those that its card keeps in float."""
    opened = tflite_graph.open_model(c_array.model_bytes((path / SOURCE).read_text(encoding="utf-8")))
    card = parse_card((path / CARD).read_bytes(), str(path / CARD))
    return tflite_graph.stored_precision(opened, card.float_ops)
