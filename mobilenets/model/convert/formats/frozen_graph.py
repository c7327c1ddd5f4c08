"""TensorFlow's frozen graphs (.pb): a GraphDef, one protocol buffer of nodes, in which every weight is a constant.

tensorflow/core/framework has graph.proto, node_def.proto, attr_value.proto and tensor.proto, whose field numbers these
are. Nothing in it is run: constants are read, and of convolutions how they are strided and padded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets.errors import UserError
from mobilenets.model.convert.formats import Array, content, damaged
from mobilenets.model.convert.formats.protobuf import Message, as_bytes, as_int, fields, messages, varints

# tensorflow/core/framework/types.proto: how tensors of a type are stored, and the field of their values one by one.
_TYPES = {1: ("<f4", 5), 2: ("<f8", 6), 3: ("<i4", 7), 9: ("<i8", 10), 14: ("bfloat16", 13), 19: ("<f2", 13)}
_CONVOLUTIONS = {"Conv2D": "conv", "DepthwiseConv2dNative": "depthwise"}
_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3", "BatchNormWithGlobalNormalization")
_MAX_NODES, _MAX_ATTRS, _MAX_INPUTS, _MAX_RANK = 65_536, 64, 4_096, 8
SMALL = 64  # elements of a constant that is a number or a few, not weights


@dataclass(frozen=True)
class Convolution:
    """How a convolution goes over its input; `weight` is the constant it reads."""

    kind: str
    weight: str
    stride: int
    padding: str


@dataclass(frozen=True)
class FrozenGraph:
    """What a graph holds.

    `tensors` are what were its variables, by name, as they are in TensorFlow: filters [kh, kw, cin, cout]. `numbers`
    are its constants of up to 64 elements, in the graph's order. `wires`: node -> its inputs.
    """

    tensors: dict[str, Array]
    numbers: dict[str, npt.NDArray[Any]]
    kinds: dict[str, str]
    wires: dict[str, tuple[str, ...]]
    convolutions: tuple[Convolution, ...]
    bn_eps: float | None


def read(path: Path) -> FrozenGraph:
    """The constants of a frozen graph, and how its layers are computed. Raises `UserError`."""
    data = content(path)
    if data.startswith(b"\x08"):
        raise UserError(f"{path}: a SavedModel, which keeps its weights beside it: give its variables/variables.index")
    try:
        graph = _Reader(data).graph()
    except (ValueError, IndexError, OverflowError, UnicodeDecodeError) as e:
        raise damaged(path, "frozen TensorFlow graph", e) from e
    if not graph.convolutions:
        raise UserError(f"{path}: a TensorFlow graph, but with no convolution of constants in it: not a frozen one")
    return graph


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.left = 2 * len(data)  # elements that may still be made: one value can stand for a whole tensor
        self.tensors: dict[str, Array] = {}
        self.numbers: dict[str, npt.NDArray[Any]] = {}
        self.kinds: dict[str, str] = {}
        self.wires: dict[str, tuple[str, ...]] = {}

    def graph(self) -> FrozenGraph:
        windows: list[tuple[str, str, int, str]] = []  # (kind, what it reads for weights, stride, padding)
        epsilons = set()
        for raw in messages(fields(self.data, _MAX_NODES), 1):
            node = fields(raw, _MAX_INPUTS)
            name, kind = as_bytes(node, 1).decode(), as_bytes(node, 2).decode()
            if name in self.kinds:
                raise ValueError(f"two nodes are called {name}")
            self.kinds[name] = kind
            self.wires[name] = tuple(i.decode() for i in messages(node, 3))
            if kind == "Const":
                self.constant(name, _attributes(node))
            elif kind in _CONVOLUTIONS:
                attributes = _attributes(node)
                if len(self.wires[name]) < 2:
                    raise ValueError(f"{name} reads no weights")
                weight = self.wires[name][1]
                windows.append((_CONVOLUTIONS[kind], weight, _stride(name, attributes), _text(attributes, "padding")))
            elif kind in _NORMS:
                epsilons.add(_float(_attributes(node), "epsilon"))
        if len(epsilons) > 1:
            raise ValueError("its BatchNorms have several epsilons")
        variables = {k: a for k, a in self.tensors.items() if self.kinds.get(f"{k}/read") == "Identity"}
        every = (Convolution(kind, self.source(weight), stride, pads) for kind, weight, stride, pads in windows)
        convolutions = tuple(c for c in every if c.weight in variables)
        bn_eps = epsilons.pop() if epsilons else None
        return FrozenGraph(variables, self.numbers, self.kinds, self.wires, convolutions, bn_eps)

    def source(self, name: str) -> str:
        """The node whose value another passes on."""
        for _ in range(_MAX_ATTRS):
            name = name.removesuffix(":0")
            if self.kinds.get(name) not in ("Identity", "Enter", "Switch") or not self.wires[name]:
                break
            name = self.wires[name][0]
        return name

    def constant(self, name: str, attributes: dict[str, Message]) -> None:
        tensor = fields(as_bytes(attributes.get("value", {}), 8))
        dtype, field = _TYPES.get(as_int(tensor, 1), ("", 0))
        if not dtype:
            return
        dims = messages(fields(as_bytes(tensor, 2), _MAX_RANK), 2)
        shape = [as_int(fields(d), 1) for d in dims]
        count = math.prod(shape)
        self.left -= count
        if self.left < 0:
            raise ValueError("its constants unpack to far more than its size")
        raw = as_bytes(tensor, 4)
        if raw or not count:
            values = _numbers(raw, dtype)
        else:  # the last of the values stands for all that are left
            values = _listed(tensor, dtype, field)
            if len(values) > count or not len(values):
                raise ValueError(f"{name} has {len(values):,} values, not {count:,}")
            values = np.concatenate([values, np.repeat(values[-1:], count - len(values))])
        if len(values) != count:
            raise ValueError(f"{name} has {len(values):,} values, not {shape}")
        array = values.reshape(shape)
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
            self.tensors[name] = array
        if count <= SMALL:
            self.numbers[name] = array


def _attributes(node: Message) -> dict[str, Message]:
    """A node's attributes by name."""
    entries = messages(node, 5)
    if len(entries) > _MAX_ATTRS:
        raise ValueError(f"a node of {len(entries):,} attributes")
    pairs = [fields(entry) for entry in entries]
    return {as_bytes(p, 1).decode(): fields(as_bytes(p, 2)) for p in pairs}


def _numbers(raw: bytes, dtype: str) -> npt.NDArray[Any]:
    if dtype == "bfloat16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, dtype)


def _listed(tensor: Message, dtype: str, field: int) -> npt.NDArray[Any]:
    """Values of a tensor that lists them: packed, or one by one."""
    parts = tensor.get(field, [])
    if dtype in ("<f4", "<f8"):
        raw = b"".join(p if isinstance(p, bytes) else p.to_bytes(int(dtype[2]), "little") for p in parts)
        return _numbers(raw, dtype)
    whole = [v for p in parts for v in (varints(p) if isinstance(p, bytes) else [p])]
    if dtype in ("<f2", "bfloat16"):  # their bits, as integers
        return _numbers(np.array([v & 0xFFFF for v in whole], "<u2").tobytes(), dtype)
    return np.array([v - (1 << 64) if v >> 63 else v for v in whole], np.int64).astype(dtype)


def _text(attributes: dict[str, Message], name: str) -> str:
    return as_bytes(attributes.get(name, {}), 2).decode()


def _float(attributes: dict[str, Message], name: str) -> float:
    return float(str(np.uint32(as_int(attributes.get(name, {}), 4) & 0xFFFFFFFF).view(np.float32)))  # 0.001 as written


def _stride(name: str, attributes: dict[str, Message]) -> int:
    """Of height and width; anything that no MobileNet has is a `ValueError`."""
    if _text(attributes, "data_format") not in ("", "NHWC"):
        raise ValueError(f"{name} is laid out as {_text(attributes, 'data_format')}, not NHWC")

    def four(what: str) -> list[int]:
        listed = fields(as_bytes(attributes.get(what, {}), 1)).get(3, [])
        return [v for p in listed for v in (varints(p) if isinstance(p, bytes) else [p])]

    strides, dilations = four("strides"), four("dilations") or [1] * 4
    if len(strides) != 4 or strides[1] != strides[2] or not strides[1]:
        raise ValueError(f"{name} has strides {strides}")
    if dilations != [1] * 4:
        raise ValueError(f"{name} is a dilated convolution")
    return strides[1]
