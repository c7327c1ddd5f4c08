"""A torch.export program and its card as one .pt2 file, and back.

PyTorch trusts what it loads: it unpickles tensors and constants, evaluates sizes, executes guards, runs any operator
that is named. So a file is read only after it has been seen to hold none of that: the members that `write` makes and
no others, each whole and uncompressed, tensors as plain bytes, the operations that networks are made of.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from mobilenets.errors import UserError
from mobilenets.files import parse_json
from mobilenets.model.bundle import CARD
from mobilenets.model.card import Card, Precision

MODEL, INPUTS = "models/model.json", "data/sample_inputs/model.pt"
CONFIGS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
MEMBERS = {MODEL, INPUTS, *CONFIGS, f"extra/{CARD}", "archive_format", "archive_version", "byteorder"}
TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_\d+|\.data/\w+|\.\w+")
OPERATION = re.compile(
    r"torch\.ops\.aten\.(add|avg_pool2d|bmm|cat|clamp|contiguous|conv2d|div|gelu|hardswish|hardtanh|max_pool2d"
    r"|mean|mul|narrow|pad|permute|relu|sigmoid|softmax|sqrt|sub|to|transpose|upsample_nearest2d|view|_assert_tensor_metadata)\.\w+"
    r"|torch\.ops\.quantized_decomposed\.(de)?quantize_per_(tensor|channel)\.default"
)
SIZE = re.compile(r"s\d+|\d+|Symbol\('s\d+'(, \w+=True)*\)")


def write(program: ExportedProgram, card: Card, path: Path) -> None:
    """The program as a file, the card in it as an extra file."""
    for node in program.graph.nodes:  # half of a small file, and where its writer's source code lies
        node.meta.pop("stack_trace", None)
        node.meta.pop("nn_module_stack", None)
    whole = io.BytesIO()  # on a full disk, PyTorch's own writer ends the process
    torch.export.save(program, whole, extra_files={CARD: json.dumps(card.to_json())})
    path.write_bytes(whole.getvalue())


def read(path: Path) -> tuple[ExportedProgram, Card]:
    """The program and the card of a file that `write` made; a UserError for any other, before anything in it runs."""
    try:
        data = path.read_bytes()
        if data[-22:-18] != b"PK\x05\x06":  # zipfile would take the end of a zip in this zip for its own
            raise ValueError("its end is missing")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            text = _checked(archive, str(path))
    except (zipfile.BadZipFile, EOFError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"{path}: not a readable .pt2 file: {e}") from e
    try:
        card = Card.from_json(parse_json(text), str(path))
    except ValueError as e:
        raise UserError(f"{path}: the card inside isn't JSON: {e}") from e
    try:
        return torch.export.load(io.BytesIO(data)), card
    except Exception as e:  # whatever it is that PyTorch's reader stumbles over
        reason = str(e).splitlines()[0][:200] if str(e) else type(e).__name__
        raise UserError(f"{path}: not readable by PyTorch {torch.__version__}: {reason}") from e


def _checked(archive: zipfile.ZipFile, where: str) -> bytes:
    """The card's text, if there is nothing in the file that could do harm."""
    names = [i.filename.partition("/")[2] for i in archive.infolist()]
    content = dict(zip(names, archive.infolist(), strict=True))
    if f"extra/{CARD}" not in names:
        raise UserError(f"{where}: has no card inside; export it with mobilenets")
    strange = [n for n in names if n not in MEMBERS and not TENSOR.fullmatch(n)]
    if strange or len(content) < len(names) or any(i.compress_type != zipfile.ZIP_STORED for i in content.values()):
        raise ValueError(f"it holds more than a program and its tensors: {', '.join(strange[:3])}")
    if damaged := archive.testzip():
        raise ValueError(f"{damaged} is damaged")
    for config in CONFIGS:
        if any(value is not False for value in _values(parse_json(archive.read(content[config])), "use_pickle")):
            raise ValueError("it holds pickled tensors")
    model = parse_json(archive.read(content[MODEL]))
    for key, allowed in (("target", OPERATION), ("expr_str", SIZE)):
        for value in _values(model, key):
            if not (isinstance(value, str) and allowed.fullmatch(value)):
                raise ValueError(f"a MobileNet has no {value!r}")
    if any(_values(model, "guards_code")):
        raise ValueError("it holds code")
    try:  # where this fails, PyTorch would go on to unpickle whatever it is
        torch.load(io.BytesIO(archive.read(content[INPUTS])), weights_only=True)
    except Exception as e:
        raise ValueError("its example isn't plain tensors") from e
    return archive.read(content[f"extra/{CARD}"])


def _values(json_value: Any, key: str) -> Iterator[Any]:
    """What stands under `key`, anywhere in a JSON value."""
    if isinstance(json_value, dict):
        for k, v in json_value.items():
            if k == key:
                yield v
            yield from _values(v, key)
    elif isinstance(json_value, list):
        for v in json_value:
            yield from _values(v, key)


def sizes(program: ExportedProgram) -> tuple[list[int], list[list[int]]]:
    """Those of the images that a call takes, and of each tensor that it gives; 0 where any will do."""
    signature = program.graph_signature
    named = {n.name: n for n in program.graph.nodes}

    def of(name: str) -> list[int]:
        return [n if isinstance(n, int) else 0 for n in named[name].meta["val"].shape]

    (image,) = signature.user_inputs
    return of(image), [of(name) for name in signature.user_outputs]


def stored_precision(program: ExportedProgram, card: Card) -> Precision:
    """What the convolutions read their weights from, and for int8, whether activations are quantized too.

    Those that the card names as kept in float don't count.
    """
    spared = {f"weights.{name.replace('.', '_')}.weight" for name in card.float_ops}
    found = set()
    for node in program.graph.nodes:
        if node.target == torch.ops.aten.conv2d.default:
            source: Node = node.args[1]
            while source.op == "call_function":
                source = source.args[0]  # type: ignore[assignment]
            buffer = program.graph_signature.inputs_to_buffers[source.name]
            if buffer not in spared:
                found.add(program.state_dict[buffer].dtype)
    if found == {torch.int8}:
        quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
        return "int8" if any(n.target == quantize for n in program.graph.nodes) else "dynamic"
    return "float16" if found == {torch.float16} else "float32"
