"""The operations that networks are made of: what each kind is, its fields, the shape of what it gives. No torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mobilenets.arch.boxes import COLUMNS, PARTS, Coder, Part, Suppression
from mobilenets.arch.matrices import DENSE, STRUCTURES
from mobilenets.errors import UserError, unknown

Activation = Literal["relu", "relu6", "hard_swish", "hard_sigmoid", "gelu"]
Padding = Literal["symmetric", "same"]
Shape = tuple[int, ...]  # without the batch: of a map (channels, height, width)
ACTIVATIONS: tuple[Activation, ...] = ("relu", "relu6", "hard_swish", "hard_sigmoid", "gelu")
PADDINGS: tuple[Padding, ...] = ("symmetric", "same")
# Clipping costs nothing after a layer, in any runtime; every other activation is an operation of its own.
CLIPS = ("relu", "relu6")
IMAGE, INPUT = "image", "input"  # uint8 pixels [H, W, 3], which only lowered graphs know; normalized [3, H, W]
SAMPLES = 2  # a side of each of a crop's cells (torchvision's default)
MOST = 65536  # channels, or pixels of a kernel


@dataclass(frozen=True)
class Op:
    """One operation of a network: a layer with weights, or what joins layers.

    `kind` is a name in KINDS. "conv", "depthwise", "pointwise", "linear", "global" have weights, then BatchNorm if
    `norm`, a bias if `bias`, then `activation` ("relu", "relu6" or none); "norm": a BatchNorm alone; "activation":
    `activation` alone.
    `kernel` is its height, and its width too unless `kernel_width` says otherwise; `grouped` the groups of a
    convolution that has some. `inputs` are names of earlier operations; in a row's own ops, "" is the block's input.
    `shares`: the earlier layer whose weights and bias it has, its BatchNorm being its own. `pads` (above, left, below,
    right) are known once the graph is lowered; a row may say them, alike on opposite sides, where they aren't those
    that the network has by its `Padding`. `ceil`: the last window may stand over the edge, as long as it begins on the
    map. `first`: of a slice, the channel that it begins with. `coder`, `suppression` and `part` are of what makes
    detections. `structure`: of a linear layer whose matrix is made of a few vectors, how (see `arch.matrices`).
    """

    name: str
    kind: str
    cin: int
    cout: int
    kernel: int = 1
    stride: int = 1
    activation: Activation | None = None
    norm: bool = False
    bias: bool = False
    heads: int = 0
    inputs: tuple[str, ...] = ()
    kernel_width: int = 0
    grouped: int = 0
    shares: str = ""
    pads: tuple[int, int, int, int] | None = None
    coder: Coder | None = None
    suppression: Suppression | None = None
    part: Part | None = None
    ceil: bool = False
    first: int = 0
    structure: str = DENSE

    @property
    def groups(self) -> int:
        return self.grouped or (self.cin if self.kind in ("depthwise", "global", "norm") else 1)

    @property
    def kernels(self) -> tuple[int, int]:
        """Height and width of the kernel."""
        return self.kernel, self.kernel_width or self.kernel

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.cout, self.cin // self.groups, *self.kernels)

    @property
    def is_layer(self) -> bool:
        """Whether it has weights."""
        return KINDS[self.kind].layer

    def to_json(self) -> dict[str, Any]:
        """Its fields, those left out that are as they are by default."""
        values = ((f, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {f.name: _plain(v) for f, v in values if v != f.default}

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Op:
        """The inverse of `to_json`. Raises `UserError`."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        for k in d:
            if k not in known:
                raise unknown("operation field", str(k), known)
        if d.get("kind") not in KINDS:
            raise unknown("operation kind", str(d.get("kind")), KINDS)
        if d.get("activation") not in (None, *ACTIVATIONS):
            raise unknown("activation", str(d["activation"]), ACTIVATIONS)
        numbers = {
            k: d[k] for k in ("cin", "cout", "kernel", "stride", "heads", "kernel_width", "grouped", "first") if k in d
        }
        if not all(type(v) is int and 0 <= v <= MOST for v in numbers.values()):
            raise UserError(f"not an operation: its sizes must be whole numbers up to {MOST}, not {numbers}")
        inputs = d.get("inputs", [])
        names = [d.get("name"), *inputs] if isinstance(inputs, list) else [None]
        shared = isinstance(d.get("shares", ""), str)
        padded = "pads" not in d or _are_pads(d["pads"])
        if not (shared and padded and all(isinstance(n, str) and n for n in names)):
            raise UserError(f"not an operation: {dict(d)}")
        if (d.get("part") in PARTS) != (d["kind"] == "detected"):
            raise UserError(f"not an operation: {dict(d)}")
        if type(d.get("ceil", False)) is not bool:
            raise UserError(f"not an operation: {dict(d)}")
        if d.get("structure", DENSE) not in (STRUCTURES if d["kind"] == "linear" else (DENSE,)):
            raise UserError(f"not an operation: {dict(d)}")
        own: dict[str, Any] = {"inputs": tuple(inputs)} | ({"pads": tuple(d["pads"])} if "pads" in d else {})
        for key, of, kinds in (
            ("coder", Coder, ("boxes", "refine")),
            ("suppression", Suppression, ("suppress", "propose", "refine")),
        ):
            if (key in d) != (d["kind"] in kinds):
                raise UserError(f"not an operation: {dict(d)}")
            if key in d:
                own[key] = of.from_json(d[key])
        return cls(**{**d, **own})


def _are_pads(value: Any) -> bool:
    """Whether a JSON value is what an operation may say of its pads: four numbers, alike on opposite sides."""
    whole = isinstance(value, list) and len(value) == 4 and all(type(v) is int and 0 <= v <= MOST for v in value)
    return whole and value[:2] == value[2:]


def _plain(value: Any) -> Any:
    """A field as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {k: _plain(v) for k, v in vars(value).items()}
    return list(value) if isinstance(value, tuple) else value


# ---- kinds of operation


@dataclass(frozen=True)
class Kind:
    """What holds for all operations of a kind.

    `shape`: the output's, of the operation and its inputs' shapes. `layer`: it has weights. `rounded`: an int8 network
    rounds its output, which has a scale; what comes after the network's own operations, answers, stays float.
    `constant`: the name of numbers that it reads beside its inputs, in the shape of its output. `windowed`: each
    position is of a window of the input's, with pads around. `moves`: its numbers are some of its input's, at other
    places, so that it has their scale. `in_float`: an int8 network computes it in floats, and rounds its output after.
    """

    shape: Callable[[Op, Sequence[Shape]], Shape]
    layer: bool = False
    rounded: bool = True
    constant: str = ""
    windowed: bool = False
    moves: bool = False
    in_float: bool = False


def windows(side: int, around: int, kernel: int, stride: int, ceil: bool = False, before: int = 0) -> int:
    """How many windows fit on a side of so many pixels with `around` more around, `before` of them before the first."""
    span = side + around - kernel
    if not ceil:
        return span // stride + 1
    count = -(-span // stride) + 1
    return count - ((count - 1) * stride >= side + before)


def _strided(op: Op, inputs: Sequence[Shape]) -> Shape:
    """Of a layer that pads so that stride 1 keeps the size; once it is lowered, as its pads say."""
    _, height, width = inputs[0]
    if op.pads is None:
        return op.cout, -(-height // op.stride), -(-width // op.stride)
    (above, left, below, right), (rows, columns) = op.pads, op.kernels
    return (
        op.cout,
        windows(height, above + below, rows, op.stride, op.ceil, above),
        windows(width, left + right, columns, op.stride, op.ceil, left),
    )


def _pooled(op: Op, _inputs: Sequence[Shape]) -> Shape:
    return (op.cout, 1, 1)


def _kept(_op: Op, inputs: Sequence[Shape]) -> Shape:
    return inputs[0]


def _attended(op: Op, inputs: Sequence[Shape]) -> Shape:
    return (op.cout, *inputs[0][1:])


def _flattened(_op: Op, inputs: Sequence[Shape]) -> Shape:
    return (math.prod(inputs[0]),)


def _concatenated(_op: Op, inputs: Sequence[Shape]) -> Shape:
    return (sum(s[0] for s in inputs), *inputs[0][1:])


def _in_rows(op: Op, inputs: Sequence[Shape]) -> Shape:
    return (math.prod(inputs[0]) // op.cout, op.cout)


def _stacked(op: Op, inputs: Sequence[Shape]) -> Shape:
    return (sum(s[0] for s in inputs), op.cout)


def _resized(op: Op, inputs: Sequence[Shape]) -> Shape:
    return (op.cout, *inputs[1][1:])


def _detections(op: Op, _inputs: Sequence[Shape]) -> Shape:
    assert op.suppression is not None
    return (op.suppression.most, COLUMNS)


def _part(op: Op, inputs: Sequence[Shape]) -> Shape:
    (most, _) = inputs[0]
    return {"boxes": (most, 4), "count": ()}.get(op.part or "", (most,))


def _proposed(op: Op, _inputs: Sequence[Shape]) -> Shape:
    assert op.suppression is not None
    return (op.suppression.most, 4)


def _cropped(op: Op, _inputs: Sequence[Shape]) -> Shape:
    return op.cout, op.kernel, op.kernel


def _doubled(op: Op, inputs: Sequence[Shape]) -> Shape:
    _, height, width = inputs[0]
    return op.cout, 2 * height, 2 * width


def _of_detections(_op: Op, inputs: Sequence[Shape]) -> Shape:
    (most, _), (_, height, width) = inputs
    return most, height, width


def _planes_first(_op: Op, inputs: Sequence[Shape]) -> Shape:
    height, width, planes = inputs[0]
    return planes, height, width


def _padded(op: Op, inputs: Sequence[Shape]) -> Shape:
    above, left, below, right = op.pads or (0, 0, 0, 0)
    channels, height, width = inputs[0]
    return channels, height + above + below, width + left + right


KINDS: dict[str, Kind] = {
    "conv": Kind(_strided, layer=True),
    "depthwise": Kind(_strided, layer=True),
    "pointwise": Kind(_strided, layer=True),
    "linear": Kind(_pooled, layer=True),
    "transposed": Kind(_doubled, layer=True),  # each position becomes a square of 2x2
    "global": Kind(_pooled, layer=True),  # depthwise, its kernel as large as the map, nothing around it
    "norm": Kind(_kept, layer=True),
    "activation": Kind(_kept),
    "pool": Kind(_pooled),  # the mean over all positions
    "maxpool": Kind(_strided, windowed=True, moves=True),  # the largest of each window; what is around it never is
    "avgpool": Kind(_strided, windowed=True),  # the mean of each window, with zeros around
    # Channels in g = `grouped` groups of n, from (g, n) to (n, g): group by group becomes one of each group in turn
    # (ShuffleNet, 1707.01083, section 3.1).
    "shuffle": Kind(_kept, moves=True),
    "slice": Kind(_attended, moves=True),  # the `cout` channels from `first` on
    "add": Kind(_kept),  # of two inputs, broadcast, as mul
    "mul": Kind(_kept),
    "attend": Kind(_attended),  # attention of query, key, value
    "concat": Kind(_concatenated),  # of channels
    "flatten": Kind(_flattened, rounded=False, moves=True),  # to one number after the other, channels first
    # Of a map [K * cout, H, W], what is said of each of K things at every position: [H * W * K, cout].
    "rows": Kind(_in_rows, rounded=False),
    "stack": Kind(_stacked, rounded=False),  # rows, one input's after another's
    "upsample": Kind(_resized),  # to the second input's height and width, each pixel the nearest one's
    "softmax": Kind(_kept, rounded=False),  # of a vector, or of each row; as l2norm
    "sigmoid": Kind(_kept, rounded=False),  # of each number by itself
    "l2norm": Kind(_kept, rounded=False),
    # Offsets [A, 4] from anchors as boxes [A, 4], x1, y1, x2, y2 in fractions of the input, by the `coder`.
    "boxes": Kind(_kept, rounded=False, constant="anchors"),
    # Boxes [A, 4] and their scores [A, C] -> detections [most, 6], best first: x1, y1, x2, y2, score, class (from 0 on,
    # the background not counted), by the `suppression`. Of equal scores, the first class is first, then the first box.
    # Rows that are left over are zeros.
    "suppress": Kind(_detections, rounded=False),
    "detected": Kind(_part, rounded=False),  # of detections a `part`: boxes [most, 4], scores, classes, their count []
    # Of a two-stage detector (Faster R-CNN, 1506.01497; Mask R-CNN, 1703.06870). What follows a crop runs for each box,
    # so that its batch is of boxes: N images' K one after another.
    "subsample": Kind(_strided, moves=True),  # every position of a stride
    # Of each map in turn the boxes [A, 4] and their logits [A, 1] -> the best boxes [most, 4], by the `suppression`: of
    # a map `per_class` are looked at, and push out none of another's. Boxes that are left over are zeros.
    "propose": Kind(_proposed, rounded=False),
    # Boxes [K, 4] or detections [K, 6], and maps, the largest first -> what each box encloses, of the map that suits
    # its size, K times [C, kernel, kernel] (RoIAlign, SAMPLES a side of each cell).
    "crop": Kind(_cropped, in_float=True),
    # Boxes [K, 4], and of each the logits [C] and offsets [C * 4], the background first -> detections, by the `coder`
    # and the `suppression`.
    "refine": Kind(_detections, rounded=False),
    # Detections [K, 6] and of each logits [C, H, W], the background first -> of its class the probabilities [H, W].
    "masks": Kind(_of_detections, rounded=False),
    # What lowering makes explicit. "pixels" reads the bytes as the numbers they stand for, "normalize" makes them.
    "pixels": Kind(_planes_first),
    "normalize": Kind(_planes_first),
    "quantize": Kind(_kept),
    "dequantize": Kind(_kept, rounded=False),
    "pad": Kind(_padded),
}


# ---- graphs
