"""OpenVINO on the CPU: runs a folder of model.xml, the card inside, and model.bin, as any OpenVINO program loads them.

The graph is the ONNX file's, of which OpenVINO makes its own. All of it runs in int8 or 32-bit floats here: bfloat16,
OpenVINO's own choice for floats where a processor has it, is too coarse for these networks. A program that loads the
file by itself gets the same answers with `INFERENCE_PRECISION_HINT` f32. Files of 16-bit floats are half the size
(biases are rounded too) and no faster. In int8, a residual's sum is made in the layer before it, whose own output isn't
rounded then; all else is rounded as an int8 bundle says.
"""

from __future__ import annotations

import errno
import functools
import importlib.metadata
import json
import re
import shutil
import threading
from pathlib import Path

import numpy as np

from mobilenets import processor
from mobilenets.deploy.engines import Outputs, check_card, parse_card, run_batched
from mobilenets.deploy.engines.guard import Guarded
from mobilenets.deploy.engines.imports import without
from mobilenets.errors import UserError
from mobilenets.files import sha256
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card, Precision
from mobilenets.model.images import Pixels

with without("openvino_telemetry"):  # which tells OpenVINO's makers, over the network, that it was imported
    import openvino as ov
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_moc_transformations

# The first tensor ever made of an array sets something up for which two threads would wait on each other for good.
ov.Tensor(np.zeros(1, np.uint8), shared_memory=True)

NAME = "openvino"
XML, BIN = "model.xml", "model.bin"
CARD, DIGEST = ["mobilenets", "card"], ["mobilenets", "weights_sha256"]  # where model.xml has them
PRECISIONS: dict[str, Precision] = {"i8": "int8", "f16": "float16", "f32": "float32"}


def version() -> str:
    return importlib.metadata.version("openvino")


def int8_fault() -> str:
    """What is wrong with int8 on this processor, or nothing (see `engines`)."""
    if not processor.adds_in_16_bits():
        return ""
    return (
        "this processor has AVX2 and no VNNI, where OpenVINO adds int8 products in 16 bits, which overflow: export "
        "float16, or another format, or on a processor with VNNI"
    )


@functools.cache
def core() -> ov.Core:
    return ov.Core()


def read(path: Path) -> tuple[ov.Model, Card]:
    """The model in the folder at `path` and its card, which are of one network."""
    for name in (XML, BIN):
        if not (path / name).is_file():
            raise UserError(f"{path}: {name} is missing; export it again")
    digest = re.search(rf'<{DIGEST[-1]} value="(\w+)"'.encode(), (path / XML).read_bytes())
    if digest and digest[1].decode() != sha256(path / BIN):  # before anything believes what is in it
        raise UserError(f"{path / BIN}: damaged, or of another network than {XML}; export it again")
    try:
        model = core().read_model(path / XML)
    except RuntimeError as e:
        raise UserError(f"{path / XML}: not a readable OpenVINO model: {_reason(e)}") from e
    if not digest or not model.has_rt_info(CARD):
        raise UserError(f"{path / XML}: has no card inside; export it with mobilenets")
    card = parse_card(model.get_rt_info(CARD).astype(str), str(path / XML))
    outputs = {name: _shape(port) for port in model.outputs for name in port.get_names() & {*card.outputs}}
    check_card(card, _shape(model.input(0)), {n: outputs[n] for n in card.outputs if n in outputs}, str(path / XML))
    return model, card


def _shape(port: ov.Output) -> list[int]:
    """Of one image."""
    return [d.get_length() for d in list(port.get_partial_shape())[1:]]


def _reason(e: RuntimeError) -> str:
    """The last line of OpenVINO's messages; the others say where in its source."""
    return [line for line in str(e).splitlines() if line.strip()][-1][:200]


class OpenVinoEngine(Guarded):
    name = NAME
    concurrent = True
    forks = False

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(threads)
        self.model, self.card = read(path)
        batch = self.model.input(0).get_partial_shape()[0]
        self.batch = batch.get_length() if batch.is_static else None
        cores = processor.cores()
        streams = max(cores // threads, 1)  # how many callers can be served at once
        self.config = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams * threads,
            "ENABLE_CPU_PINNING": False,  # other processes are on these cores too
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self.compiled: dict[int, ov.CompiledModel] = {}
        self.compiling = threading.Lock()
        self.own = threading.local()  # each caller's requests
        try:
            self._request(self.batch or 1)
        except RuntimeError as e:
            raise UserError(f"{path}: OpenVINO {version()} can't run it on this processor: {_reason(e)}") from e

    def _request(self, batch: int) -> ov.InferRequest:
        requests = self.own.__dict__.setdefault("requests", {})
        if batch not in requests:
            with self.compiling:
                if batch not in self.compiled:
                    model = self.model.clone()
                    # Compiled for any number of images, networks with squeeze-and-excite take up to half as long again.
                    model.reshape([batch, *self.model.input(0).get_partial_shape()[1:]])
                    self.compiled[batch] = core().compile_model(model, "CPU", self.config)
            requests[batch] = self.compiled[batch].create_infer_request()
        request: ov.InferRequest = requests[batch]
        return request

    def _run(self, images: Pixels) -> Outputs:
        request = self._request(len(images))
        request.infer([images], share_inputs=True)
        return {name: request.get_tensor(name).data.copy() for name in self.card.outputs}

    def answer(self, images: Pixels) -> Outputs:
        n = len(images)
        # What is left of many isn't worth compiling for.
        larger = [b for b in list(self.compiled) if n < b <= 2 * n]
        batch = self.batch or (n if n in self.compiled or not larger else min(larger))
        return run_batched(self._run, images, batch)


def load(path: Path, threads: int) -> OpenVinoEngine:
    return OpenVinoEngine(path, threads)


def write(bundle: Bundle, path: Path, batch: int | None) -> None:
    """`bundle` as a folder, the card in model.xml."""
    from mobilenets.deploy.writers.onnx import onnx_model

    card = bundle.card
    half = card.precision == "float16"
    wide = card.replace(precision="float32") if half else card
    try:
        model = core().read_model(onnx_model(Bundle(wide, bundle.tensors), batch))
    except RuntimeError as e:
        raise UserError(f"OpenVINO {version()} doesn't take {card.arch.title} in {card.precision}: {_reason(e)}") from e
    del model.rt_info["framework"]  # the ONNX file's card
    if card.precision == "int8":
        _integer_image(model, card)
    apply_moc_transformations(model, cf=True)  # as its converter does: half the layers, loaded in half the time
    model.set_rt_info(json.dumps(card.to_json()), CARD)
    path.mkdir()
    try:
        ov.save_model(model, path / XML, compress_to_fp16=half)
        model.set_rt_info(sha256(path / BIN), DIGEST)
        ov.save_model(model, path / XML, compress_to_fp16=half)
    except RuntimeError as e:  # its stream's, which doesn't say why
        if shutil.disk_usage(path).free < sum(t.nbytes for t in bundle.tensors.values()):
            raise OSError(errno.ENOSPC, "the disk is full") from e
        raise UserError(f"OpenVINO can't write {path}: {_reason(e)}") from e


def _integer_image(model: ov.Model, card: Card) -> None:
    """Normalization as OpenVINO's own kind of quantization, which it can leave out: the pixels are int8 as they are.

    From ONNX's kind it makes float pixels and a float first layer: a fifth of the time of the whole of V2.
    """
    from mobilenets.deploy.writers.onnx import NORMALIZED

    first = next(node for node in model.get_ordered_ops() if node.get_type_name() == "Convolution")
    if first.input_value(0).get_node().get_friendly_name() != NORMALIZED:
        return  # normalized by a mean or deviation for each channel, and rounded then

    def number(value: float) -> ov.Node:
        return ops.constant(np.full((1, 1, 1, 1), value, np.float32))

    mean, std = card.preprocess.mean[0], card.preprocess.std[0]
    x = ops.transpose(ops.convert(model.input(0).get_node(), "f32"), ops.constant(np.array([0, 3, 1, 2])))
    x = ops.fake_quantize(x, number(0), number(255), number((0 - mean) / std), number((255 - mean) / std), 256)
    first.input(0).replace_source_output(x.output(0))


def stored_precision(path: Path) -> Precision:
    """What the convolutions of model.xml have their weights as, and for int8, that they read rounded values.

    Those that the card names as kept in float are passed over; float32 if the others differ.
    """
    from mobilenets.deploy.writers.onnx import CONV

    model, card = read(path)
    found = set()
    for node in model.get_ops():
        name = node.get_friendly_name().removesuffix("/WithoutBiases").removesuffix(CONV)
        if not node.get_type_name().endswith("Convolution") or name in card.float_ops:
            continue
        weight = node.input_value(1).get_node()
        while weight.get_input_size():
            weight = weight.input_value(0).get_node()
        found.add(PRECISIONS.get(weight.get_element_type().get_type_name(), "float32"))
    if found == {"int8"} and not any(node.get_type_name() == "FakeQuantize" for node in model.get_ops()):
        return "dynamic"
    return found.pop() if len(found) == 1 else "float32"
