"""What a network costs, counted from its rows: mult-adds, additions, parameters, activations, peak memory. No torch.

Conventions (the papers'): one mac is one multiply-add; macs and adds are of layers with weights, so pooling,
activations and shortcut additions aren't counted; BatchNorm is folded at inference and costs nothing. `adds` are the
additions inside the dot products: outputs x (K*K*Cin/groups - 1).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mobilenets.arch.graph import Graph
from mobilenets.arch.matrices import DENSE, vectors
from mobilenets.arch.operations import Op, Shape
from mobilenets.arch.spec import Arch
from mobilenets.console import Notebook

if TYPE_CHECKING:
    from rich.console import RenderableType

# The layer types of V1's table 2.
TYPE_NAMES: dict[str, str] = {
    "pointwise": "Conv 1x1",
    "depthwise": "Conv DW",
    "conv": "Conv",
    "linear": "Fully connected",
    "global": "Global DW",
    "norm": "BatchNorm",
    "attend": "Attention",
    "transposed": "Transposed conv",
}
FLOAT_BYTES = 4
# Write over an input, or read it in another order.
IN_PLACE: tuple[str, ...] = ("activation", "add", "mul", "rows", "flatten")


@dataclass(frozen=True)
class CostRow(Notebook):
    """One layer. Shapes are (channels, height, width); `weights` has no BatchNorm and biases, `params` has.

    `times`: how often it runs for an image, which `macs` and `adds` have in; the layers of a two-stage detector that
    look at proposals run for each. Weights that another layer's row has already aren't counted again.
    """

    layer: str
    type: str
    kernel: int
    stride: int
    in_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]
    macs: int
    adds: int
    weights: int
    params: int
    activation_bytes: int
    times: int = 1
    kernel_width: int = 1

    @property
    def in_elements(self) -> int:
        c, h, w = self.in_shape
        return c * h * w

    @property
    def out_elements(self) -> int:
        c, h, w = self.out_shape
        return c * h * w


def _map(shape: Shape) -> tuple[int, int, int]:
    """A shape as a map's: of a vector, one position."""
    channels, height, width = (*shape, 1, 1)[:3]
    return channels, height, width


def _row(op: Op, shapes: Mapping[str, Shape], times: int) -> CostRow:
    (_, height, width), (_, rows, columns) = (_map(shapes[name]) for name in (op.inputs[0], op.name))
    outputs = op.cout * rows * columns
    weights = 0
    match op.kind:
        case "attend":  # every query by every key, then the values weighed by those scores
            keys = math.prod(shapes[op.inputs[1]][1:])
            scores = op.heads * rows * columns * keys
            macs = scores * op.cin + outputs * keys
            adds = scores * (op.cin - 1) + outputs * (keys - 1)
        case "norm":
            macs = adds = 0
        case "transposed":  # every input position is written to four outputs
            weights = op.cin * op.cout * 4
            macs = outputs * op.cin
            adds = macs - outputs
        case _:
            fan_in = math.prod(op.weight_shape[1:])
            weights = op.cout * fan_in
            if op.structure != DENSE:  # run as the matrix that its vectors stand for
                weights = sum(map(math.prod, vectors(op.structure, op.cin, op.cout).values()))
            macs, adds = outputs * fan_in, outputs * (fan_in - 1)
    own = not op.shares
    # BatchNorm trains a scale and a shift per channel.
    params = own * (weights + op.cout * op.bias) + 2 * op.cout * op.norm
    return CostRow(
        layer=op.name,
        type=op.kind,
        kernel=op.kernel,
        stride=op.stride,
        in_shape=(op.cin, height, width),
        out_shape=(op.cout, rows, columns),
        macs=times * macs,
        adds=times * adds,
        weights=own * weights,
        params=params,
        activation_bytes=outputs * FLOAT_BYTES,
        times=times,
        kernel_width=op.kernels[1],
    )


@dataclass(frozen=True)
class Cost(Notebook):
    """An Arch's cost, layer by layer and in all.

    Peak activation memory in elements, two conventions (V2 paper, section 5.1): `peak_activation_elements` runs layer
    by layer, input and output of each (and a shortcut waiting across it) held at once;
    `peak_activation_elements_blockwise` runs a block as one operation whose inner tensors are disposable.
    """

    arch: Arch
    rows: tuple[CostRow, ...]
    peak_activation_elements: int
    peak_activation_elements_blockwise: int
    show_layers: bool = False

    @property
    def title(self) -> str:
        return f"{self.arch.title}, {self.arch.num_classes} classes"

    @property
    def macs(self) -> int:
        return sum(r.macs for r in self.rows)

    @property
    def adds(self) -> int:
        return sum(r.adds for r in self.rows)

    @property
    def weights(self) -> int:
        return sum(r.weights for r in self.rows)

    @property
    def params(self) -> int:
        return sum(r.params for r in self.rows)

    def shares(self) -> dict[str, tuple[float, float]]:
        """Percent of macs and of weights by layer type, as in V1's table 2."""
        return {
            kind: (
                100 * sum(r.macs for r in self.rows if r.type == kind) / self.macs,
                100 * sum(r.weights for r in self.rows if r.type == kind) / self.weights,
            )
            for kind in TYPE_NAMES
            if any(r.type == kind for r in self.rows)
        }

    def weight_bytes(self, bits: int) -> int:
        """Bytes of the folded network: every weight at `bits`, no BatchNorm."""
        return self.weights * bits // 8

    def to_json(self) -> dict[str, Any]:
        return {
            "arch": self.arch.name,
            "alpha": self.arch.alpha,
            "resolution": self.arch.resolution,
            "classes": self.arch.num_classes,
            "macs": self.macs,
            "adds": self.adds,
            "weights": self.weights,
            "trainable_params": self.params,
            "peak_activation_elements": self.peak_activation_elements,
            "peak_activation_elements_blockwise": self.peak_activation_elements_blockwise,
            "weight_bytes": {str(b): self.weight_bytes(b) for b in (32, 16, 8)},
            "shares_percent": {k: {"macs": m, "weights": w} for k, (m, w) in self.shares().items()},
            "layers": [dataclasses.asdict(r) for r in self.rows],
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        tables = [self._layer_table()] if self.show_layers else []
        return Group(*tables, self._total_table(), self._share_table())

    def _layer_table(self) -> RenderableType:
        from mobilenets.console import table

        t = table(
            f"{self.title}, layer by layer",
            [
                "layer",
                "type",
                "kernel",
                "stride",
                "in (CxHxW)",
                "out (CxHxW)",
                "macs",
                "adds",
                "params",
                "activation B",
            ],
            left=("layer", "type"),
        )
        t.columns[0].min_width = max(len(r.layer) for r in self.rows)
        for r in self.rows:
            t.add_row(
                r.layer,
                TYPE_NAMES[r.type],
                f"{r.kernel}x{r.kernel_width}",
                str(r.stride),
                "x".join(map(str, r.in_shape)),
                "x".join(map(str, r.out_shape)),
                f"{r.macs:,}",
                f"{r.adds:,}",
                f"{r.params:,}",
                f"{r.activation_bytes:,}",
            )
        t.caption = "params has BatchNorm and bias in; activation bytes are of the float32 output"
        return t

    def _total_table(self) -> RenderableType:
        from mobilenets.console import megabytes, table

        t = table(self.title, ["", "value", "exactly"], left=("",))
        for name, n in (
            ("macs (M)", self.macs),
            ("additions (M)", self.adds),
            ("weights (M), conv and linear alone", self.weights),
            ("trainable params (M), BatchNorm and biases in", self.params),
        ):
            t.add_row(name, f"{n / 1e6:.2f}", f"{n:,}")
        for bits in (32, 16, 8):
            t.add_row(
                f"weights at {bits} bits (MB)", megabytes(self.weight_bytes(bits)), f"{self.weight_bytes(bits):,} B"
            )
        for name, n in (
            ("peak activations, layer by layer (K elements)", self.peak_activation_elements),
            ("peak activations, a block as one operation (K elements)", self.peak_activation_elements_blockwise),
        ):
            t.add_row(name, f"{n / 1e3:.1f}", f"{n:,}")
        return t

    def _share_table(self) -> RenderableType:
        from mobilenets.console import table

        t = table("share by layer type", ["type", "macs %", "weights %"], left=("type",))
        for kind, (macs, weights) in self.shares().items():
            t.add_row(TYPE_NAMES[kind], f"{macs:.2f}", f"{weights:.2f}")
        return t


def rows(arch: Arch) -> tuple[CostRow, ...]:
    """A `CostRow` for each layer with weights, in order."""
    return count(arch).rows


def layers(graph: Graph, times: int = 1) -> tuple[CostRow, ...]:
    """A `CostRow` for each layer of a graph that runs `times` for an image."""
    counted = (op for op in graph.ops if op.is_layer or op.kind == "attend")
    return tuple(_row(op, graph.shapes, times * graph.times(op.name)) for op in counted)


def peak(graph: Graph) -> int:
    """Most elements that are held at once when a graph runs layer by layer."""
    sizes = {name: graph.times(name) * math.prod(shape) for name, shape in graph.shapes.items()}
    live, most = {graph.source}, 0
    for op, unread in zip(graph.ops, graph.last_reads, strict=True):
        if op.kind not in IN_PLACE:
            most = max(most, sum(sizes[name] for name in live) + sizes[op.name])
        live = (live | {op.name}) - set(unread)
    return most


def peak_blockwise(arch: Arch) -> int:
    """Most elements that are held at once when a block runs as one operation, of the blocks alone."""
    shapes = arch.graph.shapes
    return max(math.prod(shapes[b.source]) + math.prod(shapes[b.output]) for b in arch.blocks)


def count(arch: Arch, graph: Graph | None = None) -> Cost:
    """Count `arch`: its rows and its peak memory. Exact integers. `graph`: with a task's head, its own if left out."""
    whole = arch.graph if graph is None else graph
    return Cost(arch, layers(whole), peak(whole), peak_blockwise(arch))
