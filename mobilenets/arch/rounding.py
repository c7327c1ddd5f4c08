"""Where an int8 network's values are whole numbers: the one place for its rules. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection

from mobilenets.arch.graph import Graph
from mobilenets.arch.operations import KINDS, Op


def with_rounding(
    graph: Graph, float_ops: Collection[str] = (), in_float: Callable[[Op], bool] = lambda _op: False
) -> Graph:
    """An int8 network's graph: where values become whole numbers ("quantize") and floats again ("dequantize").

    This is the one place for its rules. Every activation is rounded to its scale, but for those of `float_ops`, which
    are computed in float and stay so; an int8 operation that reads one rounds what it reads. Answers (KINDS says which)
    are computed in float. `in_float`: operations that a runtime computes in float though their output is rounded,
    beside the kinds that all do.
    """
    out: list[Op] = []
    integers: set[str] = set()
    forms: dict[tuple[str, bool], str] = {}  # (activation, in whole numbers) -> the value that is it

    def convert(name: str, value: str, kind: str) -> str:
        like = graph.by_name.get(name)
        channels = like.cout if like else graph.source_shape[0]
        new = f"{name}.{'int8' if kind == 'quantize' else 'float'}"
        out.append(Op(new, kind, channels, channels, inputs=(value,)))
        if kind == "quantize":
            integers.add(new)
        return new

    def read(name: str, integer: bool) -> str:
        if (name, integer) not in forms:
            kind = "quantize" if integer else "dequantize"
            forms[name, integer] = convert(name, forms[name, not integer], kind)
        return forms[name, integer]

    def made(name: str, integer: bool, rounded: bool) -> None:
        forms[name, integer] = name
        if integer:
            integers.add(name)
        elif rounded:  # whoever reads it in float reads it rounded
            forms[name, True] = convert(name, name, "quantize")
            del forms[name, False]

    made(graph.source, False, True)
    for op in graph.ops:
        rounded = graph.rounds(op) and op.name not in float_ops
        integer = rounded and not (KINDS[op.kind].in_float or in_float(op))
        inputs = tuple(read(name, integer) for name in op.inputs)
        out.append(dataclasses.replace(op, inputs=inputs))
        made(op.name, integer, rounded)
    outputs = tuple(dataclasses.replace(o, op=read(o.op, False)) for o in graph.outputs)
    return graph.replace(ops=tuple(out), outputs=outputs, integers=frozenset(integers))
