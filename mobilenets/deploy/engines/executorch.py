"""ExecuTorch, PyTorch's runtime for phones: .pte files whose layers all run in XNNPACK, in float or in int8.

A file takes uint8 images [N, H, W, 3], N up to MOST unless it is fixed, and gives the card's outputs in order; other
methods are constants: `card` (JSON text) and `batch` (0: open). Lowering is slow, up to a minute of CPU time for an
int8 network. Threads are those of XNNPACK's pool, which the whole process shares: an engine of another number of
threads makes a new one when it is called. No 16-bit floats: XNNPACK's files hold a convolution's float weights in 32.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobilenets.deploy.engines import Outputs, check_card, joined, parse_card, run_batched
from mobilenets.deploy.engines.guard import Guarded
from mobilenets.deploy.engines.imports import suppress_warnings
from mobilenets.deploy.engines.stderr import capture_stderr
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Precision
from mobilenets.model.images import Pixels

with suppress_warnings():
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

NAME = "executorch"
MOST = 32  # images in a call of a file with an open batch: ExecuTorch plans memory for the largest
# What runs outside XNNPACK: the image's own conversion to float.
OUTSIDE = {"aten::permute_copy", "dim_order_ops::_to_dim_order_copy"}
CONVOLUTIONS = ("XNNConv2d", "XNNDepthwiseConv2d", "XNNFullyConnected")


def version() -> str:
    return importlib.metadata.version("executorch")


_pools = 0


def _pool(threads: int) -> int:
    """XNNPACK's pool, made anew where it hasn't `threads` threads; gives the number of the pool.

    What was loaded with an earlier one still points at it, so its number says what has to be loaded again.
    """
    global _pools
    if portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)
        _pools += 1
    return _pools


class ExecutorchEngine(Guarded):
    name = NAME

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(threads)
        self.data = path.read_bytes()
        try:
            with self.turn():
                self._open()
            if not {"card", "batch"} <= self.program.method_names:
                raise UserError(f"{path}: has no card inside; export it with mobilenets")
            text, self.batch = (self.program.load_method(name).execute([])[0] for name in ("card", "batch"))
        except (RuntimeError, KeyError) as e:
            reason = str(e).splitlines()[0][:200]
            raise UserError(
                f"{path}: not readable by ExecuTorch {version()} ({reason}): damaged, or made for another version"
            ) from e
        self.card = parse_card(text, str(path))
        meta = self.forward.metadata
        outputs = [meta.output_tensor_meta(i).sizes() for i in range(meta.num_outputs())]
        names = [*self.card.outputs, *(f"output {i}" for i in range(len(outputs)))]  # the card doesn't know these
        shapes = {n: shape for n, (_, *shape) in zip(names, outputs, strict=False)}
        check_card(self.card, meta.input_tensor_meta(0).sizes()[1:], shapes, str(path))

    def _open(self) -> None:
        with capture_stderr():  # its C++ side describes the processor, and says each error once more
            self.pool = _pool(self.threads)
            self.program = Runtime.get().load_program(self.data)
            self.forward = self.program.load_method("forward")

    def _run(self, images: Pixels) -> Outputs:
        made = self.forward.execute([torch.from_numpy(images)])
        return {name: x.numpy() for name, x in zip(self.card.outputs, made, strict=True)}

    def answer(self, images: Pixels) -> Outputs:
        if _pool(self.threads) != self.pool:
            self._open()
        images = np.require(images, requirements=("C", "W"))  # PyTorch warns of arrays that can't be written to
        if self.batch:
            return run_batched(self._run, images, self.batch)
        return joined([self._run(images[i : i + MOST]) for i in range(0, len(images), MOST)])


def load(path: Path, threads: int) -> ExecutorchEngine:
    return ExecutorchEngine(path, threads)


def write(bundle: Bundle, path: Path, batch: int | None) -> None:
    """`bundle` as a .pte file, every layer of it in XNNPACK, the card inside as a method that gives it.

    Raises `UserError` where XNNPACK has no operation that the network needs.
    """
    with suppress_warnings():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        from mobilenets.deploy.writers.program import export_program

        lowered = to_edge_transform_and_lower(
            export_program(bundle, batch, MOST),
            partitioner=[XnnpackPartitioner()],
            constant_methods={"card": json.dumps(bundle.card.to_json()), "batch": batch or 0},
        )
        path.write_bytes(lowered.to_executorch().buffer)
    if others := operators(path) - OUTSIDE:
        names = ", ".join(sorted(others))
        raise UserError(f"{bundle.card.arch.title} needs {names}, which XNNPACK hasn't; take another --to")


def _read(path: Path) -> Any:
    from executorch.exir._serialize import _deserialize_pte_binary

    return _deserialize_pte_binary(path.read_bytes()).program


def operators(path: Path) -> set[str]:
    """Names of the operators that the file at `path` runs outside XNNPACK."""
    return {o.name for plan in _read(path).execution_plan for o in plan.operators}


def _graphs(path: Path) -> Iterator[dict[str, Any]]:
    """What the file hands to XNNPACK, by XNNPACK's own schema."""
    from executorch.backends.xnnpack import serialization
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize._flatbuffer import _run_flatc

    schema = importlib.resources.files(serialization).joinpath("schema.fbs")
    for delegate in _read(path).backend_delegate_data:
        data = bytes(delegate.data)
        header = XNNHeader.from_bytes(data[: XNNHeader.EXPECTED_LENGTH])
        with tempfile.TemporaryDirectory() as folder, importlib.resources.as_file(schema) as fbs:
            binary = Path(folder) / "graph.bin"
            binary.write_bytes(data[header.flatbuffer_offset :][: header.flatbuffer_size])
            _run_flatc(["--json", "--strict-json", "--raw-binary", "-o", folder, str(fbs), "--", str(binary)])
            text = binary.with_suffix(".json").read_text(encoding="utf-8")
            yield json.loads(re.sub(r": (-?)inf\b", r": \1Infinity", text))  # flatc's word for it isn't JSON's


def stored_precision(path: Path) -> Precision:
    """What the convolutions in XNNPACK's graph read: int8 if all do, both weights and images, but for the card's float.

    A convolution outside it would be a float one, whatever its weights are.
    """
    integer = floats = 0
    for graph in _graphs(path):
        types = {}
        for value in graph["xvalues"]:
            tensor = value["xvalue_union"]
            tensor = tensor.get("tensor_value", tensor)
            types[tensor.get("id_out", 0)] = tensor.get("datatype")
        for node in graph["xnodes"]:
            if node["xnode_union_type"] in CONVOLUTIONS:
                reads = node["xnode_union"]
                pair = types[reads.get("input1_id", 0)], types[reads["filter_id"]]
                if pair == ("xnn_datatype_qint8", "xnn_datatype_qcint8"):
                    integer += 1
                else:
                    floats += 1
    card = load(path, 1).card
    layers = card.graph.layers
    kept = sum(op.name in card.float_ops for op in layers)
    return "int8" if (integer, floats) == (len(layers) - kept, kept) else "float32"
