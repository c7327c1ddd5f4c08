"""What a network is, as data: the `Network` that rows form in a paper, and the `Arch` that scaling gives.

    Network (a paper's table) --scale(alpha, resolution, classes)--> Arch (final integer channels)

Everything else (the model, its cost, its exported files, its pictures) walks `Arch.ops`, so they can't disagree.
No torch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mobilenets.arch.expansions import around_expansions
from mobilenets.arch.graph import Graph
from mobilenets.arch.matrices import DENSE, STRUCTURES
from mobilenets.arch.operations import ACTIVATIONS, CLIPS, PADDINGS, Activation, Op, Padding
from mobilenets.arch.row_types import row_from_json
from mobilenets.arch.rows import Conv, InvertedResidual, Row, Scaling, chain, round_channels
from mobilenets.arguments import checked
from mobilenets.errors import UserError, unknown

Shortcut = Literal["bottleneck", "expansion", "none"]
Convention = Literal["slim", "torchvision"]
Classifies = Literal["pooled", "map"]
SHORTCUTS: tuple[Shortcut, ...] = ("bottleneck", "expansion", "none")
CONVENTIONS: tuple[Convention, ...] = ("slim", "torchvision")
CLASSIFIER = "classifier"  # the layer that gives what the probabilities are of
CLASSIFIES: tuple[Classifies, ...] = ("pooled", "map")


@dataclass(frozen=True)
class Block:
    """A row with its operations laid out, under their full names; the last one's output is the block's."""

    name: str
    source: str
    ops: tuple[Op, ...]
    total_stride: int

    @property
    def cin(self) -> int:
        return self.ops[0].cin

    @property
    def cout(self) -> int:
        return self.ops[-1].cout

    @property
    def output(self) -> str:
        return self.ops[-1].name

    @property
    def shortcut(self) -> bool:
        return self.ops[-1].kind == "add"


@dataclass(frozen=True)
class Stage:
    """The last block at one stride: where detection heads tap the network."""

    name: str
    block: int
    stride: int
    channels: int


@dataclass(frozen=True)
class Network:
    """A paper's table before scaling: the rows at alpha 1 and the conventions for scaling them.

    `rows` up to the global pooling, `head` from there to the classifier. `keep_head`: the last of all rows isn't
    narrowed below alpha 1 (V2 paper, section 4). `alphas` and `resolutions` are those of published networks, the last
    resolution the one that the paper leads with. `widths`: at alphas for which the paper has a table of its own,
    the channels there by those here; `fixed`: channels that no width changes. `classifies` and `classifier`: as
    an `Arch` has them.
    """

    name: str
    rows: tuple[Row, ...]
    activation: Activation
    keep_head: bool
    source: str
    alphas: tuple[float, ...]
    resolutions: tuple[int, ...]
    head: tuple[Row, ...] = ()
    widths: Mapping[float, Mapping[int, int]] = dataclasses.field(default_factory=dict)
    fixed: frozenset[int] = frozenset()
    classifies: Classifies = "pooled"
    classifier: str = DENSE


@dataclass(frozen=True)
class Arch:
    """A network resolved to final channels: the one description the model, its cost and its files share.

    `num_classes` is 0 for a headless network. `divisor`, `min_depth`, `keep_head`, `keep_stem` and `convention` record
    how the channels were rounded (see `scale`). `size` is the input's (height, width) where it isn't a square of
    `resolution`, the shorter of the two then. `padding` is "symmetric" (PyTorch's) or "same" (TensorFlow's: a stride-2
    convolution pads bottom and right first). `linear_bottleneck` and `shortcut` are V2's ablations (V2 paper, figure
    6): without the first, an activation follows the projection too; the shortcuts join the bottlenecks, or the
    expansions (over depthwise, project and the next expansion, as in a classical residual block), or there are none.
    `classifies`: what the classifier reads, the "pooled" vector; or the last "map", at every position of which it is a
    1x1 convolution with the network's activation, and what it gives is pooled (SqueezeNet). `classifier`: its matrix,
    of numbers each by itself ("dense") or made of a few vectors (`arch.matrices`).
    """

    name: str
    alpha: float
    resolution: int
    num_classes: int
    rows: tuple[Row, ...]
    head: tuple[Row, ...] = ()
    activation: Activation = "relu6"
    padding: Padding = "symmetric"
    linear_bottleneck: bool = True
    shortcut: Shortcut = "bottleneck"
    bn_eps: float = 1e-5
    bn_momentum: float = 0.1
    dropout: float = 0.0
    divisor: int = 8
    min_depth: int = 8
    keep_head: bool = False
    keep_stem: bool = False
    convention: Convention = "slim"
    size: tuple[int, int] | None = None
    classifies: Classifies = "pooled"
    classifier: str = DENSE

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        for side in (self.resolution, *self.input_size):
            check_resolution(side)
        if self.resolution != min(self.input_size):
            raise UserError(f"an input of {self.input_size} has a resolution of {min(self.input_size)}")
        if self.num_classes < 0:
            raise UserError(f"classes must be 0 or more, not {self.num_classes}")
        for field, known in (
            ("padding", PADDINGS),
            ("activation", ACTIVATIONS),
            ("shortcut", SHORTCUTS),
            ("convention", CONVENTIONS),
            ("classifies", CLASSIFIES),
            ("classifier", STRUCTURES),
        ):
            if getattr(self, field) not in known:
                raise unknown(field, str(getattr(self, field)), known)
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be in [0, 1), not {self.dropout}")
        if not self.rows:
            raise UserError("an Arch needs at least one row")
        if self.classifies == "map" and self.classifier != DENSE:
            raise UserError(f"a classifier of a map's positions is {DENSE}, not {self.classifier}")
        if self.classifies == "map" and (self.head or self.activation not in CLIPS):
            raise UserError(f"a classifier of a map's positions has no rows before it, and {' or '.join(CLIPS)} after")

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The rows up to the global pooling."""
        return _laid_out("blocks", self.rows, "input", 3, 1, self.scaling, self.shortcut)

    @functools.cached_property
    def head_blocks(self) -> tuple[Block, ...]:
        """The rows between the global pooling and the classifier."""
        return _laid_out("head", self.head, "pool", self.blocks[-1].cout, 1, self.scaling, self.shortcut)

    @functools.cached_property
    def tail(self) -> tuple[Op, ...]:
        """From the last map to the classes: the global pooling, the head's layers, the classifier."""
        last = self.blocks[-1]
        if self.num_classes and self.classifies == "map":
            layer = Op(CLASSIFIER, "pointwise", last.cout, self.num_classes, activation=self.activation, bias=True)
            pool = Op("pool", "pool", self.num_classes, self.num_classes)
            return chain(layer, pool, source=last.output)
        pool = Op("pool", "pool", last.cout, last.cout, inputs=(last.output,))
        ops = (pool, *(op for b in self.head_blocks for op in b.ops))
        if not self.num_classes:
            return ops
        inputs = (ops[-1].name,)
        return *ops, Op(
            CLASSIFIER, "linear", self.features, self.num_classes, bias=True, inputs=inputs, structure=self.classifier
        )

    @property
    def scaling(self) -> Scaling:
        return Scaling(self.activation, self.linear_bottleneck, self.divisor, self.min_depth)

    @functools.cached_property
    def ops(self) -> tuple[Op, ...]:
        """Every operation in order, from the image ("input") to the classes: what every walker walks."""
        return *(op for b in self.blocks for op in b.ops), *self.tail

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.size or (self.resolution, self.resolution)

    @functools.cached_property
    def graph(self) -> Graph:
        """The network's own operations, its classifier among them where it has one; a task adds its head to them."""
        return Graph(self.ops, (3, *self.input_size), padding=self.padding)

    @functools.cached_property
    def sides(self) -> dict[str, int]:
        """Height of "input" and of every operation's output; the width too in square networks, as the papers' are."""
        return {name: shape[1] for name, shape in self.graph.shapes.items()}

    @property
    def layers(self) -> tuple[Op, ...]:
        """The operations with weights, in order, the classifier last."""
        return self.graph.layers

    @property
    def features(self) -> int:
        """Numbers that the classifier reads."""
        return (self.head_blocks or self.blocks)[-1].cout

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The last block at each stride, from stride 2 to the network's total stride: feature taps for detection."""
        last = {b.total_stride: i for i, b in enumerate(self.blocks)}
        taps = ((s, i) for s, i in last.items() if s > 1)
        return tuple(Stage(f"stage{n}", i, s, self.blocks[i].cout) for n, (s, i) in enumerate(taps, 1))

    @property
    def title(self) -> str:
        side = f"{self.size[0]}x{self.size[1]}" if self.size else self.resolution
        return f"{self.name} {self.alpha:g}-{side}"

    def replace(self, **changes: Any) -> Arch:
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        d = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.size is None:  # the digests are those of before there were others
            del d["size"]
        if self.classifies == "pooled":
            del d["classifies"]
        if self.classifier == DENSE:
            del d["classifier"]
        d["classes"] = d.pop("num_classes")  # as it was called when the first digests were made
        for part in ("rows", "head"):
            d[part] = [{"type": type(r).__name__, **dataclasses.asdict(r)} for r in d[part]]
        return d

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Arch:
        """The inverse of `to_json`; a UserError names a field that is missing, unknown or of the wrong type."""
        known = {"classes" if f.name == "num_classes" else f.name for f in dataclasses.fields(cls)}
        for k in d:
            if k not in known:
                raise unknown("Arch field", k, known)
        try:
            rows, head = (tuple(row_from_json(r) for r in part) for part in (d["rows"], d.get("head", ())))
            size = {"size": tuple(d["size"])} if d.get("size") else {}
            fields = {k: v for k, v in d.items() if k != "classes"}
            made = cls(**{**fields, "num_classes": d["classes"], "rows": rows, "head": head, **size})
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise UserError(f"not an Arch: {e}") from e
        made._check_channels()
        return made

    def _check_channels(self) -> None:
        """Raises `UserError` where an operation can't read the channels that it is given."""
        for op in self.ops:
            given = self.graph.shapes[op.inputs[0]][0]
            layer = op.is_layer and (given != op.cin or op.cin % op.groups or op.cout % op.groups)
            if layer or (op.kind == "slice" and op.first + op.cout > given):
                raise UserError(f"not an Arch: {op.name} can't read {given} channels")

    @functools.cached_property
    def digest(self) -> str:
        import hashlib  # with OpenSSL, which what only counts needs not

        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_alpha(alpha: float) -> None:
    if not (isinstance(alpha, int | float) and 0 < alpha <= 2):
        raise UserError(f"alpha must be above 0 and at most 2, not {alpha}")


def check_resolution(resolution: int) -> None:
    if not isinstance(resolution, int) or not 32 <= resolution <= 4096:
        raise UserError(f"resolution must be a whole number from 32 to 4096 pixels, not {resolution}")


@functools.lru_cache(256)  # the same for every resolution and number of classes
def _laid_out(
    prefix: str, rows: tuple[Row, ...], source: str, cin: int, stride: int, scaling: Scaling, shortcut: Shortcut
) -> tuple[Block, ...]:
    bodies: list[tuple[tuple[Op, ...], bool]] = []  # a block's operations, and whether a shortcut spans them
    for row in rows:
        ops = row.ops(cin, scaling)
        bodies.append((ops, row.RESIDUAL and row.stride == 1 and cin == ops[-1].cout))
        cin = ops[-1].cout
    if bodies and shortcut == "expansion":
        bodies = around_expansions(bodies)
    blocks = []
    for i, (ops, joined) in enumerate(bodies):
        name = f"{prefix}.{i}"
        if joined and shortcut != "none":
            last = ops[-1]
            ops = (*ops, Op("sum", "add", last.cout, last.cout, inputs=("", last.name)))
        full = {"": source} | {op.name: f"{name}.{op.name}" for op in ops}
        ops = tuple(dataclasses.replace(op, name=full[op.name], inputs=tuple(full[x] for x in op.inputs)) for op in ops)
        strides = {source: stride}
        for op in ops:
            strides[op.name] = strides[op.inputs[0]] * op.stride
        blocks.append(Block(name, source, ops, stride := strides[ops[-1].name]))
        source = ops[-1].name
    return tuple(blocks)


@checked
@dataclass(frozen=True)
class Variant:
    """How a network is built where it isn't as its paper has it; None and the defaults are the paper's.

    `Arch` says what the fields are, `scale` how the last five change the channels. Not in the papers: `dropout`, and
    PyTorch's "symmetric" padding.
    """

    activation: Activation | None = None
    padding: Padding = "symmetric"
    linear_bottleneck: bool = True
    shortcut: Shortcut = "bottleneck"
    bn_eps: float = 1e-5
    bn_momentum: float = 0.1
    dropout: float = 0.0
    divisor: int = 8
    min_depth: int = 8
    keep_head: bool | None = None
    keep_stem: bool = False
    convention: Convention = "slim"


def scale(
    network: Network,
    alpha: float = 1.0,
    resolution: int | tuple[int, int] | None = None,
    num_classes: int = 1000,
    *,
    activation: Activation | None = None,
    padding: Padding = "symmetric",
    linear_bottleneck: bool = True,
    shortcut: Shortcut = "bottleneck",
    bn_eps: float = 1e-5,
    bn_momentum: float = 0.1,
    dropout: float = 0.0,
    divisor: int = 8,
    min_depth: int = 8,
    keep_head: bool | None = None,
    keep_stem: bool = False,
    convention: Convention = "slim",
) -> Arch:
    """Resolve a paper's table at width `alpha` and input `resolution` in pixels (V1 paper, sections 3.3 and 3.4).

    `resolution` is one side of a square, or (height, width); None is the one the paper leads with. Every row's channels
    are multiplied by alpha and rounded (`round_channels`); `keep_head` spares the last row below alpha 1, `keep_stem`
    the first. At other widths than 1 two conventions exist for the expanded channels: "slim" (TF-slim's and timm's, the
    papers' authors' own) applies the expansion ratio to the rounded input; "torchvision" multiplies the table's
    expanded channels by alpha and narrows the head too. They differ for V3 alone, since V2's ratios are whole numbers.
    """
    check_alpha(alpha)
    if convention not in CONVENTIONS:
        raise unknown("convention", str(convention), CONVENTIONS)
    keep = network.keep_head and not (network.head and convention == "torchvision") if keep_head is None else keep_head
    table = (*network.rows, *network.head)
    widths = [alpha] * len(table)
    if keep:
        widths[-1] = max(alpha, 1.0)
    if keep_stem:
        widths[0] = 1.0
    rows: list[Row] = []
    exact = network.widths.get(alpha)
    for row, width in zip(table, widths, strict=True):
        of = exact.__getitem__ if exact else functools.partial(_widened, network.fixed, width, divisor, min_depth)
        new = row.scaled(of)
        if network.head and convention == "torchvision" and rows:
            before, narrowed = table[len(rows) - 1].channels, rows[-1].channels
            if isinstance(new, InvertedResidual) and isinstance(row, InvertedResidual):
                mid = round_channels(before * row.expand * alpha, divisor, min_depth)
                new = dataclasses.replace(new, mid=mid)
            elif isinstance(new, Conv) and len(rows) == len(network.rows) - 1:
                new = dataclasses.replace(new, channels=row.channels // before * narrowed)
        rows.append(new)
    n = len(network.rows)
    side = network.resolutions[-1] if resolution is None else resolution
    size = side if isinstance(side, tuple) else (side, side)
    return Arch(
        name=network.name,
        alpha=float(alpha),
        resolution=min(size),
        num_classes=num_classes,
        rows=tuple(rows[:n]),
        head=tuple(rows[n:]),
        activation=activation or network.activation,
        padding=padding,
        linear_bottleneck=linear_bottleneck,
        shortcut=shortcut,
        bn_eps=bn_eps,
        bn_momentum=bn_momentum,
        dropout=dropout,
        divisor=divisor,
        min_depth=min_depth,
        keep_head=keep,
        keep_stem=keep_stem,
        convention=convention,
        size=size if size[0] != size[1] else None,
        classifies=network.classifies,
        classifier=network.classifier,
    )


def _widened(fixed: frozenset[int], width: float, divisor: int, min_depth: int, channels: int) -> int:
    return channels if channels in fixed else round_channels(channels * width, divisor, min_depth)
