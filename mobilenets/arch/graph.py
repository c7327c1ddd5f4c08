"""Graphs of operations: shapes, readers, named outputs. No torch.

A `Graph` is what every walker walks: the PyTorch module, the cost, int8's simulation, the writers of files. An `Arch`
gives the graph of its rows; a task appends a `Head` to any operation in it and names the outputs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mobilenets.arch.operations import INPUT, KINDS, Op, Padding, Shape, windows
from mobilenets.errors import UserError, unknown


@dataclass(frozen=True)
class Output:
    """What a network gives, under the `name` that every runtime's file has it by: the operation `op`'s output."""

    name: str
    op: str
    meaning: str = ""


@dataclass(frozen=True)
class Head:
    """What a task adds to an arch: operations on any of its own, and the outputs.

    `own`: the layers that are the task's, which another task or other labels can't start from.
    """

    ops: tuple[Op, ...]
    outputs: tuple[Output, ...]
    own: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "ops": [op.to_json() for op in self.ops],
            "outputs": [dataclasses.asdict(o) for o in self.outputs],
            "own": list(self.own),
        }

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Head:
        """The inverse of `to_json`. Raises `UserError`."""
        try:
            ops = tuple(Op.from_json(op) for op in d["ops"])
            outputs = tuple(Output(str(o["name"]), str(o["op"]), str(o["meaning"])) for o in d["outputs"])
            return cls(ops, outputs, tuple(map(str, d["own"])))
        except (KeyError, TypeError, AttributeError) as e:
            raise UserError(f"not a head: {e}") from e


@dataclass(frozen=True)
class Graph:
    """Operations in an order in which each reads what is there already, from `source`, of `source_shape`, on.

    `integers`: the values that an int8 graph holds as whole numbers (see `arch.rounding`).
    """

    ops: tuple[Op, ...]
    source_shape: Shape
    outputs: tuple[Output, ...] = ()
    padding: Padding = "symmetric"
    source: str = INPUT
    integers: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        there = {self.source}
        for op in self.ops:
            for name in op.inputs:
                if name not in there:
                    raise unknown(f"operation, which {op.name} reads,", name, there)
            if op.name in there:
                raise UserError(f"two operations are called {op.name!r}")
            there.add(op.name)
        for o in self.outputs:
            if o.op not in there:
                raise unknown("operation", o.op, there)
        if len({o.name for o in self.outputs}) < len(self.outputs):
            raise UserError(f"two outputs have one name: {', '.join(o.name for o in self.outputs)}")

    @functools.cached_property
    def by_name(self) -> dict[str, Op]:
        return {op.name: op for op in self.ops}

    def op(self, name: str) -> Op:
        """The operation called `name`; a UserError suggests the nearest."""
        if name not in self.by_name:
            raise unknown("operation", name, self.by_name)
        return self.by_name[name]

    @functools.cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shape, without the batch, of the source and of every operation's output."""
        shapes = {self.source: self.source_shape}
        for op in self.ops:
            shape = shapes[op.name] = KINDS[op.kind].shape(op, [shapes[name] for name in op.inputs])
            if min(shape, default=1) < 1:
                side = "x".join(map(str, self.source_shape[-2:] if self.source == INPUT else self.source_shape[:2]))
                raise UserError(f"an input of {side} is too small for this network: nothing is left of it at {op.name}")
        return shapes

    @functools.cached_property
    def readers(self) -> dict[str, tuple[Op, ...]]:
        """The operations that read each value."""
        found: dict[str, list[Op]] = {name: [] for name in self.shapes}
        for op in self.ops:
            for name in dict.fromkeys(op.inputs):
                found[name].append(op)
        return {name: tuple(ops) for name, ops in found.items()}

    @functools.cached_property
    def last_reads(self) -> tuple[tuple[str, ...], ...]:
        """For each operation, the values that nothing needs after it."""
        reader = {name: i for i, op in enumerate(self.ops) for name in op.inputs}
        kept = {o.op for o in self.outputs}
        return tuple(
            tuple(n for n in dict.fromkeys(op.inputs) if reader[n] == i and n not in kept)
            for i, op in enumerate(self.ops)
        )

    @property
    def layers(self) -> tuple[Op, ...]:
        """The operations with weights, in order."""
        return tuple(op for op in self.ops if op.is_layer)

    @property
    def constants(self) -> dict[str, Shape]:
        """What operations read besides their inputs and weights, by the tensor's name: its shape."""
        return {
            f"{op.name}.{KINDS[op.kind].constant}": self.shapes[op.name]
            for op in self.ops
            if KINDS[op.kind].constant
        }  # fmt: skip

    @property
    def activations(self) -> tuple[str, ...]:
        """The values that an int8 network rounds, each to a scale of its own."""
        return (self.source, *(op.name for op in self.ops if self.rounds(op)))

    def rounds(self, op: Op) -> bool:
        """Whether an int8 network rounds what an operation gives: of a kind that only moves, if who reads it does."""
        kind = KINDS[op.kind]
        return kind.rounded or (kind.moves and any(self.rounds(reader) for reader in self.readers[op.name]))

    @functools.cached_property
    def crops(self) -> dict[str, Op]:
        """Of what runs for each box, not once for an image, the crop that it is behind; of a crop, itself."""
        return {
            op.name: crop
            for crop in self.ops if crop.kind == "crop"
            for op in self.after([crop.name]) if self.rounds(op)
        }  # fmt: skip

    def times(self, value: str) -> int:
        """How often a value is computed for an image: once, or for each of the boxes that there may be."""
        return self.shapes[self.crops[value].inputs[0]][0] if value in self.crops else 1

    @property
    def output_shapes(self) -> dict[str, Shape]:
        return {o.name: self.shapes[o.op] for o in self.outputs}

    def replace(self, **changes: Any) -> Graph:
        return dataclasses.replace(self, **changes)

    def whole(self, head: Head) -> Graph:
        """The graph with a task's operations and outputs."""
        return self.replace(ops=(*self.ops, *head.ops), outputs=head.outputs)

    def with_head(self, head: Head) -> Graph:
        """`whole`, without what the outputs don't need."""
        return self.whole(head).upto(o.op for o in head.outputs)

    def upto(self, names: Iterator[str] | Collection[str]) -> Graph:
        """The part that computes `names`, with the outputs among it."""
        needed = set(names)
        for op in reversed(self.ops):
            if op.name in needed:
                needed |= {*op.inputs}
        ops = tuple(op for op in self.ops if op.name in needed)
        return self.replace(ops=ops, outputs=tuple(o for o in self.outputs if o.op in needed))

    def after(self, names: Collection[str]) -> tuple[Op, ...]:
        """The operations called `names`, and all that depends on them."""
        found = set(names)
        out = []
        for op in self.ops:
            if op.name in found or found & {*op.inputs}:
                found.add(op.name)
                out.append(op)
        return tuple(out)

    def moved(self, value: str) -> str:
        """The value whose numbers a value has, some of them, at other places (`Kind.moves`)."""
        op = self.by_name.get(value)
        return self.moved(op.inputs[0]) if op and KINDS[op.kind].moves else value

    def activation_of(self, value: str) -> str:
        """The activation whose scale a value held in whole numbers has."""
        op = self.by_name.get(value)
        same = op is not None and op.kind in ("quantize", "dequantize", "pad")
        return self.activation_of(op.inputs[0]) if op and same else value


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels TensorFlow's "SAME" adds before and after a side of `size`: the odd one goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def pads(op: Op, shape: Shape, padding: Padding) -> tuple[int, int, int, int]:
    """What an operation adds above, left, below and right of a map of `shape`."""
    if op.kind == "global":
        return 0, 0, 0, 0
    if op.pads is not None:
        return _upto_the_last(op, shape) if op.ceil else op.pads
    if padding == "symmetric":
        up, left = (k // 2 for k in op.kernels)
        return up, left, up, left
    (up, down), (left, right) = (
        same_padding(side, k, op.stride) for side, k in zip(shape[1:], op.kernels, strict=True)
    )
    return up, left, down, right


def _upto_the_last(op: Op, shape: Shape) -> tuple[int, int, int, int]:
    """The pads of an operation whose last windows may stand over the edge, with what those see there."""
    assert op.pads is not None
    ends = []
    for side, k, before, after in zip(shape[1:], op.kernels, op.pads[:2], op.pads[2:], strict=True):
        count = windows(side, before + after, k, op.stride, True, before)
        ends.append(max(after, (count - 1) * op.stride + k - side - before))
    return (*op.pads[:2], ends[0], ends[1])
