"""A TFLite file's graph under construction: tensors and operators -> flatbuffer. No torch, no TensorFlow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from mobilenets.model.card import Precision

Array = npt.NDArray[Any]

SCHEMA_VERSION, IDENTIFIER = 3, b"TFL3"
CARD_KEY = "mobilenets.card"
RUNTIME_KEY = "min_runtime_version"
ALIGNMENT = 16  # bytes; of constants, by the schema: kernels read vectors from them
TYPES: dict[int, str] = {v: k.lower() for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
OPERATORS: dict[int, str] = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
# The operator's version with these types, and the first TensorFlow Lite that has it, by the operator and what decides:
# its first input's type, "hybrid" for int8 weights of a float layer, "groups" for a convolution of groups, "channels"
# for a scale per channel. "": any other.
VERSIONS: dict[str, dict[str, tuple[int, str]]] = {
    "ADD": {"": (1, "1.5.0"), "int8": (2, "1.14.0")},
    "AVERAGE_POOL_2D": {"": (1, "1.5.0"), "int8": (2, "1.14.0")},
    "BATCH_MATMUL": {"": (1, "2.3.0")},
    "CONV_2D": {"": (1, "1.5.0"), "int8": (3, "1.14.0"), "hybrid": (5, "2.4.0"), "groups": (6, "2.9.0")},
    "CONCATENATION": {"": (1, "1.5.0"), "int8": (2, "1.14.0")},
    "DEPTHWISE_CONV_2D": {"": (1, "1.5.0"), "int8": (3, "1.14.0"), "hybrid": (6, "2.3.0")},
    "DENSIFY": {"": (1, "2.4.0")},
    "DEQUANTIZE": {"": (1, "1.13.1"), "int8": (2, "1.14.0"), "float16": (3, "1.15.0"), "channels": (5, "2.7.0")},
    "EXP": {"": (1, "1.7.0")},
    "GATHER": {"": (1, "1.6.0")},
    "GELU": {"": (1, "2.9.0"), "int8": (2, "2.9.0")},
    "HARD_SWISH": {"": (1, "1.15.0")},
    "L2_NORMALIZATION": {"": (1, "1.5.0")},
    "LOGISTIC": {"": (1, "1.14.0")},
    "MAX_POOL_2D": {"": (1, "1.5.0"), "int8": (2, "1.14.0")},
    "MEAN": {"": (1, "1.6.0"), "int8": (2, "1.14.0")},
    "MUL": {"": (1, "1.5.0"), "int8": (2, "1.14.0")},
    "PAD": {"": (1, "1.5.0"), "int8": (2, "1.14.0")},
    "PADV2": {"": (1, "1.9.0"), "int8": (2, "1.14.0")},
    "QUANTIZE": {"": (1, "1.14.0")},
    "REDUCE_MAX": {"": (1, "1.14.0")},
    "RELU": {"": (1, "1.5.0"), "int8": (2, "1.14.0")},
    "RELU6": {"": (1, "1.5.0"), "int8": (2, "1.14.0")},
    "RESHAPE": {"": (1, "1.5.0")},
    "RESIZE_NEAREST_NEIGHBOR": {"": (1, "1.13.1"), "int8": (2, "2.0.0")},
    "REVERSE_V2": {"": (1, "1.14.0")},
    "SLICE": {"": (1, "1.14.0"), "int8": (2, "1.14.0")},
    "SOFTMAX": {"": (1, "1.5.0"), "int8": (2, "1.14.0")},
    "SPLIT": {"": (1, "1.5.0")},
    "SUB": {"": (1, "1.6.0")},
    "TOPK_V2": {"": (1, "1.7.0")},
    "TRANSPOSE": {"": (1, "1.6.0"), "int8": (2, "1.14.0")},
}


class _Buffer(schema.BufferT):  # type: ignore[misc]
    """Bytes on an aligned address; the generated class writes them wherever they fall."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.bytes = data

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802
        builder.Prep(ALIGNMENT, len(self.bytes))
        vector = builder.CreateByteVector(self.bytes)
        schema.BufferStart(builder)
        schema.BufferAddData(builder, vector)
        return int(schema.BufferEnd(builder))


def quantization(scale: Array, zero_point: Array, axis: int = 0) -> schema.QuantizationParametersT:
    """A tensor's, or each index's of `axis`: real = scale x (stored - zero point)."""
    scales, zeros = np.atleast_1d(scale).astype(np.float32), np.atleast_1d(zero_point).astype(np.int64)
    return schema.QuantizationParametersT(scale=scales, zeroPoint=zeros, quantizedDimension=axis)


class Graph:
    """Tensors are known by their index. `batch`: how many images every call takes; any number, if None.

    A computed tensor's shape is given without its first dimension, which is the batch.
    """

    def __init__(self, batch: int | None) -> None:
        self.batch = batch
        self.tensors: list[schema.TensorT] = []
        self.operators: list[schema.OperatorT] = []
        self.buffers: list[schema.BufferT] = [schema.BufferT()]  # the first is that of all computed tensors
        self.codes: dict[tuple[str, int], int] = {}
        self.runtime = "1.5.0"

    def type(self, tensor: int) -> str:
        return TYPES[self.tensors[tensor].type]

    def _add(self, tensor: schema.TensorT) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def value(self, name: str, shape: Sequence[int], dtype: str, quantized: Any = None) -> int:
        """A tensor that is computed, or the input."""
        open_batch = None if self.batch else np.array([-1, *shape], np.int32)
        return self._add(
            schema.TensorT(
                name=name, shape=np.array([self.batch or 1, *shape], np.int32), shapeSignature=open_batch,
                type=getattr(schema.TensorType, dtype.upper()), quantization=quantized,
            )
        )  # fmt: skip

    def alone(self, name: str, shape: Sequence[int], dtype: str) -> int:
        """A tensor that is computed, whose shape has no batch."""
        kind = getattr(schema.TensorType, dtype.upper())
        return self._add(schema.TensorT(name=name, shape=np.array(shape, np.int32), type=kind))

    def const(self, name: str, value: Array, quantized: Any = None) -> int:
        self.buffers.append(_Buffer(value.tobytes()))
        return self._add(
            schema.TensorT(
                name=name, shape=np.array(value.shape, np.int32), buffer=len(self.buffers) - 1,
                type=getattr(schema.TensorType, value.dtype.name.upper()), quantization=quantized,
            )
        )  # fmt: skip

    def op(self, kind: str, inputs: Sequence[int], output: int, options: Any = None) -> int:
        """Append an operator; gives `output`."""
        return self.ops(kind, inputs, [output], options)[0]

    def ops(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None) -> Sequence[int]:
        """Append an operator of several outputs; gives them."""
        decides = self.type(inputs[0])
        if kind == "CONV_2D" and self.tensors[inputs[0]].shape[-1] != self.tensors[inputs[1]].shape[-1]:
            decides = "groups"
        elif kind.endswith("CONV_2D") and decides == "float32" and self.type(inputs[1]) == "int8":
            decides = "hybrid"
        elif kind == "DEQUANTIZE" and decides == "int8" and len(self.tensors[inputs[0]].quantization.scale) > 1:
            decides = "channels"
        version, runtime = VERSIONS[kind].get(decides, VERSIONS[kind][""])
        self.runtime = max(self.runtime, runtime, key=lambda v: [int(n) for n in v.split(".")])
        operator = schema.OperatorT(
            opcodeIndex=self.codes.setdefault((kind, version), len(self.codes)),
            inputs=np.array(inputs, np.int32),
            outputs=np.array(outputs, np.int32),
        )
        if options is not None:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            operator.builtinOptions = options
        self.operators.append(operator)
        return outputs

    def custom(self, kind: str, inputs: Sequence[int], outputs: Sequence[int], options: bytes) -> None:
        """Append an operator of TFLite's own extensions, with its options as a flexbuffer."""
        self.operators.append(
            schema.OperatorT(
                opcodeIndex=self.codes.setdefault((kind, 1), len(self.codes)),
                inputs=np.array(inputs, np.int32), outputs=np.array(outputs, np.int32),
                customOptions=np.frombuffer(options, np.uint8),
            )
        )  # fmt: skip

    def scalar(self, const: int) -> int:
        """A constant of one number without its axis."""
        self.tensors[const].shape = np.empty(0, np.int32)
        return const

    def unpacked(self, name: str, const: int) -> int:
        """A constant that is read as float32; runtimes convert it once, when they load the file."""
        out = self._add(schema.TensorT(name=name, shape=self.tensors[const].shape, type=schema.TensorType.FLOAT32))
        return self.op("DEQUANTIZE", [const], out)

    def sparse(self, name: str, value: Array) -> int:
        """A constant [..., n] kept as its numbers that aren't zero and their places in each row; it is read whole."""
        rows = value.reshape(-1, value.shape[-1])
        _, places = np.nonzero(rows)
        starts = np.concatenate([[0], np.cumsum(np.count_nonzero(rows, 1))])
        const = self.const(f"{name}.sparse", rows[rows != 0])
        dense = [schema.DimensionMetadataT(format=schema.DimensionType.DENSE, denseSize=n) for n in value.shape[:-1]]
        (segments, counts), (indices, columns) = _integers(starts), _integers(places)
        last = schema.DimensionMetadataT(
            format=schema.DimensionType.SPARSE_CSR, arraySegmentsType=segments, arraySegments=counts,
            arrayIndicesType=indices, arrayIndices=columns,
        )  # fmt: skip
        order = np.arange(value.ndim, dtype=np.int32)
        self.tensors[const].shape = np.array(value.shape, np.int32)
        self.tensors[const].sparsity = schema.SparsityParametersT(traversalOrder=order, dimMetadata=[*dense, last])
        out = self._add(schema.TensorT(name=name, shape=self.tensors[const].shape, type=self.tensors[const].type))
        return self.op("DENSIFY", [const], out, schema.DensifyOptionsT())

    def write(self, name: str, image: int, outputs: Mapping[str, int], metadata: Mapping[str, bytes]) -> bytes:
        """The file: `image` in, `outputs` out, under the names "image" and theirs."""
        entries = {**metadata, RUNTIME_KEY: self.runtime.encode().ljust(16, b"\0")}
        first = len(self.buffers)
        graph = schema.SubGraphT(
            tensors=self.tensors, inputs=[image], outputs=list(outputs.values()), operators=self.operators, name=name
        )
        signature = schema.SignatureDefT(
            signatureKey="serving_default",
            inputs=[schema.TensorMapT(name="image", tensorIndex=image)],
            outputs=[schema.TensorMapT(name=n, tensorIndex=i) for n, i in outputs.items()],
        )
        model = schema.ModelT(
            version=SCHEMA_VERSION,
            description="mobilenets",
            operatorCodes=[_code(kind, version) for kind, version in self.codes],
            subgraphs=[graph],
            buffers=[*self.buffers, *map(_Buffer, entries.values())],
            metadata=[schema.MetadataT(name=key, buffer=first + i) for i, key in enumerate(entries)],
            signatureDefs=[signature],
        )
        builder = flatbuffers.Builder(2**20)
        builder.Finish(model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())


def _integers(values: Array) -> tuple[int, Any]:
    """Positions as a table of the schema's, of the fewest bytes that hold the largest, and which kind it is."""
    largest = int(values.max(initial=0))
    name = "Uint8" if largest < 2**8 else "Uint16" if largest < 2**16 else "Int32"
    made = getattr(schema, f"{name}VectorT")(values=values.astype(name.lower()))
    return getattr(schema.SparseIndexVector, f"{name}Vector"), made


def _code(kind: str, version: int) -> schema.OperatorCodeT:
    if kind not in VERSIONS:
        custom = schema.BuiltinOperator.CUSTOM
        return schema.OperatorCodeT(deprecatedBuiltinCode=custom, builtinCode=custom, customCode=kind, version=version)
    number = getattr(schema.BuiltinOperator, kind)
    return schema.OperatorCodeT(deprecatedBuiltinCode=min(number, 127), builtinCode=number, version=version)


def open_model(data: bytes) -> schema.Model:
    """The model in a file. A ValueError for any other file; a damaged one may raise anything, here or later."""
    if data[4:8] != IDENTIFIER:
        raise ValueError("no TFL3 at its start")
    return schema.Model.GetRootAs(data, 0)


def entry(model: schema.Model, key: str) -> bytes | None:
    """The metadata under `key`, if there is any."""
    for i in range(model.MetadataLength()):
        if model.Metadata(i).Name() == key.encode():
            return bytes(model.Buffers(model.Metadata(i).Buffer()).DataAsNumpy())
    return None


def signature_outputs(model: schema.Model) -> dict[str, int]:
    """The outputs by the names of its first signature: their tensors. None where it has no signature."""
    if not model.SignatureDefsLength():
        return {}
    signature = model.SignatureDefs(0)
    found = [signature.Outputs(i) for i in range(signature.OutputsLength())]
    return {o.Name().decode(): o.TensorIndex() for o in found}


def operators(model: schema.Model) -> list[str]:
    """The kinds of operator in it, each once, in alphabetical order."""
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    return sorted({OPERATORS[max(c.BuiltinCode(), c.DeprecatedBuiltinCode())] for c in codes})


def stored_precision(model: schema.Model, float_ops: Collection[str]) -> Precision:
    """What the convolutions, but for those that make `float_ops`, read: int8 only if all that they read is int8."""
    graph = model.Subgraphs(0)
    constants: dict[int, int] = {}  # what is read as float32 -> what is stored
    found = set()
    for i in range(graph.OperatorsLength()):
        op = graph.Operators(i)
        code = model.OperatorCodes(op.OpcodeIndex())
        kind, out = OPERATORS[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())], op.Outputs(0)
        if kind in ("DEQUANTIZE", "DENSIFY"):
            constants[out] = constants.get(op.Inputs(0), op.Inputs(0))
        elif kind.endswith("CONV_2D") and graph.Tensors(out).Name().decode() not in float_ops:
            weight = constants.get(op.Inputs(1), op.Inputs(1))
            found.add((TYPES[graph.Tensors(op.Inputs(0)).Type()], TYPES[graph.Tensors(weight).Type()]))
    match sorted(found):
        case [("int8", "int8")]:
            return "int8"
        case [("float32", "float16")]:
            return "float16"
        case [("float32", "int8")]:
            return "dynamic"
        case _:
            return "float32"
