"""TFLite files, float or quantized, as a list of layers with float weights.

The flatbuffers library checks no offset, so every length is compared with the file's size before it is used.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mobilenets.errors import UserError
from mobilenets.model.convert.formats import content, damaged, one_line, post_processing
from mobilenets.model.convert.formats.post_processing import PostProcessing

Floats = npt.NDArray[np.float32]
Quantization = tuple[float, int]  # scale and zero point: real = scale x (stored - zero point)
Precision = Literal["float32", "uint8", "int8"]

_MAX_OPS = 4_096
_MAX_TENSORS = 64  # of an operator; dimensions of a tensor
_MAX_LABELS = 2**20  # bytes
_MAX_ELEMENTS = 2**25  # of all weights of a small file
_TYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 9: "int8"}  # schema.fbs: TensorType
_ACTIVATIONS = ("linear", "relu", "relu_n1_to_1", "relu6", "tanh", "sign_bit")  # ActivationFunctionType
_KINDS: dict[str, Literal["conv", "depthwise", "linear"]] = {
    "CONV_2D": "conv",
    "DEPTHWISE_CONV_2D": "depthwise",
    "FULLY_CONNECTED": "linear",
}


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or fully connected layer.

    `weight` is [cout, cin/groups, kh, kw], `bias` [cout] (zeros where the file has none), both dequantized. `pad` is
    what a PAD operator just before it adds: (top, bottom, left, right) pixels, besides what `padding` means.
    """

    name: str
    kind: Literal["conv", "depthwise", "linear"]
    weight: Floats
    bias: Floats
    stride: int
    padding: Literal["same", "valid"]
    pad: tuple[int, int, int, int]
    activation: str
    output_quantization: Quantization | None


@dataclass(frozen=True, eq=False)
class Graph:
    """A classifier, [1, input_size, input_size, 3] in, [1, classes] out; or a detector, `boxes` then.

    `input_type` is what the graph takes, `precision` what its layers compute with. `ops` names every operator in order
    of execution, but for the DEQUANTIZE and DENSIFY of a constant; `layers` are those of them that are CONV_2D,
    DEPTHWISE_CONV_2D or FULLY_CONNECTED. `wires` has for each of `ops` where its inputs come from: an index into `ops`,
    or -1 for the graph's input; constants are left out.
    """

    input_size: int
    input_type: Precision
    input_quantization: Quantization | None
    num_classes: int
    precision: Precision
    layers: tuple[Layer, ...]
    ops: tuple[str, ...]
    wires: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...] | None
    boxes: PostProcessing | None = None


def read(path: Path) -> Graph:
    """The graph in a TFLite file. Raises `UserError` for a damaged one, and for what no MobileNet has."""
    data = content(path)
    if importlib.util.find_spec("tflite") is None:
        raise UserError("reading .tflite files needs tflite: pip install 'mobilenets[weights]'")
    if data[4:8] != b"TFL3":
        raise damaged(path, "TFLite file", "no TFL3 at its start")
    try:
        return _Reader(data).graph()
    except _Unsupported as e:
        raise UserError(f"{path}: {one_line(e)}") from e
    except Exception as e:  # flatbuffers raises nearly anything on hostile bytes
        raise damaged(path, "TFLite file", e) from e


class _Unsupported(Exception):
    """A sound file with something in it that this reader doesn't know."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        import tflite

        self.tflite = tflite
        self.data = data
        # Elements that may still be unpacked: neither layers that share weights nor zeros left out can multiply them.
        self.left = max(2 * len(data), _MAX_ELEMENTS)
        self.model = tflite.Model.GetRootAs(data, 0)
        if self.count(self.model.SubgraphsLength) != 1:
            raise _Unsupported("more than one graph in it, or none")
        self.main = self.model.Subgraphs(0)
        self.tensors = self.count(self.main.TensorsLength)
        self.buffers = self.count(self.model.BuffersLength)
        self.made: dict[int, int] = {}  # tensor -> the operator that makes it
        self.constants: dict[int, int] = {}  # tensor -> the constant that DEQUANTIZE makes it from
        self.pads: dict[int, tuple[int, int, int, int]] = {}  # tensor -> what PAD added to it

    def count(self, length: Callable[[], int]) -> int:
        """A vector's length, at least 4 bytes for each of its elements."""
        found = length()
        if 4 * found > len(self.data):
            raise ValueError(f"a list of {found:,} in a file of {len(self.data):,} bytes")
        return found

    def integers(self, vector: Any) -> list[int]:
        """What a ...AsNumpy method gives: 0 if there is none."""
        if isinstance(vector, int):
            return []
        if len(vector) > _MAX_TENSORS:
            raise _Unsupported(f"an operator or a tensor of {len(vector):,} parts in it")
        return [int(v) for v in vector]

    def tensor(self, index: int) -> Any:
        if not 0 <= index < self.tensors:
            raise IndexError(f"tensor {index} of {self.tensors}")
        return self.main.Tensors(index)

    def type(self, index: int) -> str:
        kind = self.tensor(index).Type()
        if kind not in _TYPES:
            raise _Unsupported(f"a tensor of type {kind} in it; known: {', '.join(_TYPES.values())}")
        return _TYPES[kind]

    def precision(self, index: int) -> Precision:
        match self.type(index):
            case "float32" | "uint8" | "int8" as found:
                return found
            case found:
                raise _Unsupported(f"it computes in {found}; known: float32, uint8, int8")

    def shape(self, index: int) -> list[int]:
        return self.integers(self.tensor(index).ShapeAsNumpy())

    # ---- constants

    def stored(self, index: int) -> npt.NDArray[Any] | None:
        """A constant as the file has it, or None for a tensor that is computed."""
        tensor = self.tensor(index)
        if not 0 <= tensor.Buffer() < self.buffers:
            raise IndexError(f"buffer {tensor.Buffer()} of {self.buffers}")
        buffer = self.model.Buffers(tensor.Buffer())
        if buffer.Offset() > 1:
            raise _Unsupported("its weights are outside its flatbuffer, as in files over 2 GB")
        raw = buffer.DataAsNumpy()
        if isinstance(raw, int) or not len(raw):
            return None
        shape, dtype = self.shape(index), np.dtype(self.type(index)).newbyteorder("<")
        self.left -= math.prod(shape)
        if self.left < 0:
            raise ValueError("its layers unpack to far more than its size")
        sparsity = tensor.Sparsity()
        if min(shape, default=1) < 1 or (sparsity is None and math.prod(shape) * dtype.itemsize != len(raw)):
            raise ValueError(f"tensor {index} has {len(raw):,} bytes, not {shape} of {dtype.itemsize}")
        values: npt.NDArray[Any] = raw.view(dtype)
        return values.reshape(shape) if sparsity is None else self.whole(sparsity, values, shape)

    def whole(self, sparsity: Any, values: npt.NDArray[Any], shape: list[int]) -> npt.NDArray[Any]:
        """A constant of `shape` [..., n] kept as its `values` that aren't zero, and where they are in each row."""
        dims = [sparsity.DimMetadata(i) for i in range(min(sparsity.DimMetadataLength(), _MAX_TENSORS))]
        order = self.integers(sparsity.TraversalOrderAsNumpy())
        rows_of = [d.Format() for d in dims] == [*[0] * (len(shape) - 1), 1] and order == [*range(len(shape))]
        if not rows_of or sparsity.BlockMapLength():
            raise _Unsupported("weights in it that are sparse by blocks, or in another order than by rows")
        starts = self.places(dims[-1].ArraySegmentsType(), dims[-1].ArraySegments())
        columns = self.places(dims[-1].ArrayIndicesType(), dims[-1].ArrayIndices())
        counts, rows = np.diff(starts), math.prod(shape[:-1])
        sound = len(starts) == rows + 1 and starts[0] == 0 and counts.min() >= 0 and starts[-1] == len(columns)
        if (
            not sound
            or len(columns) != len(values)
            or not 0 <= columns.min(initial=0) <= columns.max(initial=0) < shape[-1]
        ):
            raise ValueError("sparse weights whose places aren't those of their shape")
        out = np.zeros((rows, shape[-1]), values.dtype)
        out[np.repeat(np.arange(rows), counts), columns] = values
        return out.reshape(shape)

    def places(self, kind: int, table: Any) -> npt.NDArray[np.int64]:
        """A union of the schema's: a vector of whole numbers, of one of three sizes."""
        vectors = {1: self.tflite.Int32Vector, 2: self.tflite.Uint16Vector, 3: self.tflite.Uint8Vector}
        if table is None or kind not in vectors:
            raise ValueError("sparse weights without places")
        vector = vectors[kind]()
        vector.Init(table.Bytes, table.Pos)
        found = vector.ValuesAsNumpy()
        return np.zeros(0, np.int64) if isinstance(found, int) else found.astype(np.int64)

    def floats(self, index: int) -> Floats:
        """A constant, dequantized."""
        index = self.constants.get(index, index)
        stored = self.stored(index)
        if stored is None:
            raise _Unsupported(f"the weights at tensor {index} aren't constant")
        if stored.dtype.kind == "f":
            return stored.astype(np.float32)
        q = self.tensor(index).Quantization()
        scale = None if q is None else q.ScaleAsNumpy()
        if scale is None or isinstance(scale, int) or not len(scale):
            raise ValueError(f"tensor {index} is quantized, without a scale")
        zero = q.ZeroPointAsNumpy()
        zero = np.zeros(1) if isinstance(zero, int) or not len(zero) else zero
        axis = q.QuantizedDimension()
        if len(scale) > 1 and not (0 <= axis < stored.ndim and len(scale) == stored.shape[axis]):
            raise ValueError(f"tensor {index} has {len(scale)} scales for {stored.shape}")
        if len(zero) not in (1, len(scale)) or not (np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError(f"tensor {index} has scales that aren't positive numbers")
        along = [-1 if i == axis else 1 for i in range(stored.ndim)] if len(scale) > 1 else [1]
        real = (stored - zero.astype(np.float64).reshape(along if len(zero) > 1 else [1])) * scale.reshape(along)
        with np.errstate(over="ignore"):
            floats: Floats = real.astype(np.float32)
        return floats

    def quantization(self, index: int) -> Quantization | None:
        """Scale and zero point of a tensor that is computed."""
        if self.precision(index) == "float32":
            return None
        q = self.tensor(index).Quantization()
        scale, zero = (0, 0) if q is None else (q.ScaleAsNumpy(), q.ZeroPointAsNumpy())
        if isinstance(scale, int) or isinstance(zero, int) or len(scale) != 1 or len(zero) != 1 or not scale[0] > 0:
            raise ValueError(f"tensor {index} is quantized, without one scale and zero point")
        return float(scale[0]), int(zero[0])

    # ---- operators

    def op_name(self, op: Any) -> str:
        if not 0 <= op.OpcodeIndex() < self.count(self.model.OperatorCodesLength):
            raise IndexError(f"operator code {op.OpcodeIndex()}")
        code = self.model.OperatorCodes(op.OpcodeIndex())
        number = max(code.DeprecatedBuiltinCode(), code.BuiltinCode())
        if number == self.tflite.BuiltinOperator.CUSTOM:
            return (code.CustomCode() or b"")[:100].decode(errors="replace")
        return str(self.tflite.BUILTIN_OPCODE2NAME.get(number, f"OPERATOR_{number}"))

    def graph(self) -> Graph:
        ends = [self.integers(self.main.InputsAsNumpy()), self.integers(self.main.OutputsAsNumpy())]
        count = self.count(self.main.OperatorsLength)
        if count > _MAX_OPS:
            raise _Unsupported(f"it has {count:,} operators, over the limit of {_MAX_OPS:,}")
        detector = bool(count) and self.op_name(self.main.Operators(count - 1)) == post_processing.OPERATOR
        if len(ends[0]) != 1 or len(ends[1]) != (4 if detector else 1):
            raise _Unsupported(
                "neither a classifier, of one input and one output, nor a detector, whose last operator is "
                f"{post_processing.OPERATOR}"
            )
        start, end = ends[0][0], ends[1][0]
        shape, out = self.shape(start), self.shape(end)
        if len(shape) != 4 or shape[1] != shape[2] or shape[1] < 1 or shape[3] != 3:
            raise _Unsupported(f"its input is {shape}, not [1, size, size, 3]")
        if not detector and (not out or out[-1] < 1 or math.prod(out[:-1]) != 1):
            raise _Unsupported(f"its output is {out}, not [1, classes]")
        self.made[start] = -1
        layers: list[Layer] = []
        ops: list[str] = []
        wires: list[tuple[int, ...]] = []
        precision: Precision | None = None
        boxes: PostProcessing | None = None
        for i in range(count):
            op = self.main.Operators(i)
            name = self.op_name(op)
            inputs, outputs = self.integers(op.InputsAsNumpy()), self.integers(op.OutputsAsNumpy())
            if name in ("DEQUANTIZE", "DENSIFY") and inputs[0] not in self.made:
                self.constants[outputs[0]] = self.constants.get(inputs[0], inputs[0])
                continue
            if name == "PAD":
                self.pads[outputs[0]] = self.padding(inputs[1])
            elif name in _KINDS:
                precision = precision or self.precision(inputs[0])
                layers.append(self.layer(_KINDS[name], op, inputs, outputs[0]))
            elif name == post_processing.OPERATOR:
                boxes = self.boxes(op, inputs)
            wires.append(tuple(self.made[t] for t in inputs if t in self.made))
            self.made |= dict.fromkeys(outputs, len(ops))
            ops.append(name)
        if precision is None:
            raise _Unsupported("no layers in it")
        if end not in self.made:
            raise ValueError("nothing makes its output")
        classes = (boxes.classes or 0) if boxes else out[-1]
        return Graph(
            shape[1], self.precision(start), self.quantization(start), classes, precision,
            tuple(layers), tuple(ops), tuple(wires), self.labels(), boxes,
        )  # fmt: skip

    def boxes(self, op: Any, inputs: list[int]) -> PostProcessing:
        """What a detector's last operator says: its inputs are boxes, scores and, constant, the anchors [A, 4]."""
        raw = op.CustomOptionsAsNumpy()
        if isinstance(raw, int) or len(inputs) != 3 or not {*inputs[:2]} <= self.made.keys():
            raise ValueError(f"{post_processing.OPERATOR} without options, or without boxes, scores and anchors")
        anchors = self.floats(inputs[2])
        if anchors.ndim != 2 or anchors.shape[1] != 4 or not np.isfinite(anchors).all():
            raise ValueError(f"anchors of shape {anchors.shape}")
        rounded = self.precision(inputs[2]) != "float32"
        step = float(self.tensor(inputs[2]).Quantization().ScaleAsNumpy()[0]) if rounded else 0.0
        return dataclasses.replace(
            post_processing.of_operator(raw.tobytes()),
            anchors=anchors,
            step=step,
            boxes=self.made[inputs[0]],
            scores=self.made[inputs[1]],
        )

    def padding(self, index: int) -> tuple[int, int, int, int]:
        pads = self.stored(index)
        if pads is None or pads.dtype.kind != "i" or pads.shape != (4, 2) or pads[[0, 3]].any() or pads.min() < 0:
            raise _Unsupported("a PAD in it that isn't of height and width")
        (top, bottom), (left, right) = pads[1:3].tolist()
        return top, bottom, left, right

    def layer(self, kind: Literal["conv", "depthwise", "linear"], op: Any, inputs: list[int], out: int) -> Layer:
        tensor_name = (self.tensor(out).Name() or b"")[:500].decode(errors="replace")
        options: Any = {
            "conv": self.tflite.Conv2DOptions,
            "depthwise": self.tflite.DepthwiseConv2DOptions,
            "linear": self.tflite.FullyConnectedOptions,
        }[kind]()
        table = op.BuiltinOptions()
        if table is None:
            raise ValueError(f"{tensor_name}: no options")
        options.Init(table.Bytes, table.Pos)
        weight = self.floats(inputs[1])
        if kind == "linear":
            if weight.ndim != 2 or options.WeightsFormat():
                raise _Unsupported(f"{tensor_name}: weights that aren't [out, in]")
            weight = weight[:, :, None, None]
            stride, padding = 1, 1
        else:
            if weight.ndim != 4 or (kind == "depthwise" and weight.shape[0] != 1):
                raise ValueError(f"{tensor_name}: weights of shape {weight.shape}")
            weight = weight.transpose(0, 3, 1, 2) if kind == "conv" else weight.transpose(3, 0, 1, 2)
            stride, padding = options.StrideH(), options.Padding()
            if stride != options.StrideW() or stride < 1 or padding not in (0, 1):
                raise _Unsupported(f"{tensor_name}: strides {stride} and {options.StrideW()}, padding {padding}")
            if options.DilationHFactor() != 1 or options.DilationWFactor() != 1:
                raise _Unsupported(f"{tensor_name}: a dilated convolution")
        cout = weight.shape[0]
        bias = self.floats(inputs[2]) if len(inputs) > 2 and inputs[2] >= 0 else np.zeros(cout, np.float32)
        if bias.shape != (cout,):
            raise ValueError(f"{tensor_name}: a bias of shape {bias.shape} for {cout} channels")
        activation = options.FusedActivationFunction()
        if not 0 <= activation < len(_ACTIVATIONS):
            raise ValueError(f"{tensor_name}: activation {activation}")
        return Layer(
            tensor_name,
            kind,
            np.ascontiguousarray(weight),
            bias,
            stride,
            "valid" if padding else "same",
            self.pads.get(inputs[0], (0, 0, 0, 0)),
            _ACTIVATIONS[activation],
            self.quantization(out),
        )

    def labels(self) -> tuple[str, ...] | None:
        """The label file among those appended to the model as a zip, if there is one."""
        if not zipfile.is_zipfile(io.BytesIO(self.data)):
            return None
        with zipfile.ZipFile(io.BytesIO(self.data)) as z:
            names = [i for i in z.infolist() if "label" in i.filename.lower() and i.filename.lower().endswith(".txt")]
            if len(names) != 1 or names[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                return None
            with z.open(names[0]) as f:
                text = f.read(_MAX_LABELS + 1)
        if len(text) > _MAX_LABELS:
            raise ValueError(f"labels of more than {_MAX_LABELS:,} bytes")
        return tuple(line.strip() for line in text.decode("utf-8-sig").strip().split("\n")) or None
