"""A TFLite graph as one of our networks: recognised by the order of its layers, which have no names of use."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mobilenets.arch import zoo
from mobilenets.arch.operations import Activation, Op
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError
from mobilenets.model.convert.formats import tflite
from mobilenets.model.convert.recognise import Array, variants, widths


def from_graph(graph: tflite.Graph, where: str, name: str | None, alpha: float | None) -> tuple[Arch, dict[str, Array]]:
    """The network whose layers are the graph's, one by one, and its tensors; BatchNorm is in the biases already."""
    wanted = None if name is None else zoo.network(name).name
    theirs = [(x.weight.shape, x.stride) for x in graph.layers]
    padded = any(x.pad == (1, 1, 1, 1) and x.padding == "valid" for x in graph.layers)
    best: tuple[int, Arch] | None = None
    for network, width in ((n, w) for n in zoo.NETWORKS for w in widths(alpha, n)):
        if wanted in (None, network) and alpha in (None, width):
            for arch in variants(
                network, width, graph.num_classes, padding="symmetric" if padded else "same", bn_eps=1e-3
            ):
                ours = [((op.cout, op.cin // op.groups, op.kernel, op.kernel), op.stride) for op in arch.layers]
                if arch.head and len(ours) > len(theirs):  # somebody's own classifier, right after the pooling
                    arch = arch.replace(head=())
                    ours = [((op.cout, op.cin // op.groups, op.kernel, op.kernel), op.stride) for op in arch.layers]
                if ours == theirs and _joins(graph) == _joins_of(arch):
                    arch = arch.replace(resolution=graph.input_size, activation=_activation(graph, arch))
                    return arch, _unfolded(graph, arch)
                alike = sum(a == b for a, b in zip(ours, theirs, strict=False))
                if best is None or alike > best[0]:
                    best = (alike, arch)
    assert best
    alike, arch = best
    raise UserError(
        f"{where}: not one of these networks: the nearest, {arch.name.upper()} at alpha {arch.alpha:g}, has "
        f"{len(arch.layers)} layers, {alike} of them as in the file's {len(theirs)}"
    )


def _joins(graph: tflite.Graph) -> tuple[int, int]:
    """How often two tensors are added, and how many hard-swishes there are."""
    return sum(op == "ADD" and len(w) == 2 for op, w in zip(graph.ops, graph.wires, strict=True)), graph.ops.count(
        "HARD_SWISH"
    )


def _joins_of(arch: Arch) -> tuple[int, int]:
    return sum(op.kind == "add" for op in arch.ops), sum(op.activation == "hard_swish" for op in arch.ops)


def _activation(graph: tflite.Graph, arch: Arch) -> Activation:
    """The network's activation, but ReLU where the file has that in the place of ReLU6."""
    fused = {x.activation for x in graph.layers}
    return "relu" if arch.activation == "relu6" and "relu" in fused and "relu6" not in fused else arch.activation


def _unfolded(graph: tflite.Graph, arch: Arch) -> dict[str, Array]:
    return unfolded(zip(arch.layers, graph.layers, strict=True), arch.bn_eps)


def unfolded(layers: Iterable[tuple[Op, tflite.Layer]], bn_eps: float) -> dict[str, Array]:
    """Tensors of our layers from the file's, in whose biases BatchNorm is already."""
    out: dict[str, Array] = {}
    for op, layer in layers:
        bias = layer.bias
        if op.name.endswith("se_expand") and layer.activation == "relu6":
            bias = bias - np.float32(3)  # a hard sigmoid is relu6(x + 3) / 6; converters add the 3 to the bias
        if op.kind == "linear":
            out |= {f"{op.name}.weight": layer.weight[:, :, 0, 0], f"{op.name}.bias": bias}
            continue
        out[f"{op.name}.conv.weight"] = layer.weight
        if op.bias:
            out[f"{op.name}.conv.bias"] = bias
        if op.norm:  # one that changes nothing but adds the bias
            ones, zeros = np.ones(op.cout, np.float32), np.zeros(op.cout, np.float32)
            out |= {f"{op.name}.norm.weight": ones, f"{op.name}.norm.bias": bias}
            out |= {
                f"{op.name}.norm.running_mean": zeros,
                f"{op.name}.norm.running_var": ones - np.float32(bn_eps),
            }
            out[f"{op.name}.norm.num_batches_tracked"] = np.asarray(0)
    return out
