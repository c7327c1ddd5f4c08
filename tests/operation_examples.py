"""Every kind of operation in a small network, for tests of whatever computes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from mobilenets.arch.boxes import PARTS, Coder, Suppression
from mobilenets.arch.graph import Head, Output
from mobilenets.arch.operations import ACTIVATIONS, Op
from mobilenets.arch.rows import Conv, Separable
from mobilenets.arch.spec import Arch
from mobilenets.model.bundle import Bundle, with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.images import Preprocess

ARCH = Arch("small", 1.0, 32, 0, (Conv(8, stride=2), Separable(16, stride=2)), activation="relu6")
LAST, MIDDLE = "blocks.1.pointwise", "blocks.1.depthwise"


def layer(kind: str, **how: object) -> tuple[Op, ...]:
    return (Op("extra", kind, 16, 16, bias=True, inputs=(LAST,), **how),)  # type: ignore[arg-type]


SMALLER = Op("smaller", "conv", 16, 16, kernel=3, stride=3, bias=True, inputs=(LAST,))  # 3x3
RAW = (
    Op("offsets", "rows", 16, 4, inputs=(LAST,)),
    Op("wide", "pointwise", 16, 12, bias=True, inputs=(LAST,)),
    Op("logits", "rows", 12, 3, inputs=("wide",)),
    Op("chances", "softmax", 3, 3, inputs=("logits",)),
)
BOXES = Op("extra", "boxes", 4, 4, inputs=("offsets",), coder=Coder("yxhw", (10.0, 10.0, 5.0, 5.0)))
SUPPRESS = Op(
    "extra", "suppress", 3, 6, inputs=("boxes", "chances"), suppression=Suppression(0.3, 0.5, 30, 30, True)
)  # fmt: skip
FOUND = (*RAW, dataclasses.replace(BOXES, name="boxes"))


PROPOSED = (
    *FOUND,
    Op("narrow", "pointwise", 16, 4, bias=True, inputs=(LAST,)),
    Op("objects", "rows", 4, 1, inputs=("narrow",)),
    Op("proposed", "propose", 4, 4, inputs=("boxes", "objects"), suppression=Suppression(0.0, 0.7, 20, 5, False)),
)
CROPPED = Op("crop", "crop", 16, 16, 3, inputs=("proposed", LAST))
REFINED = (
    *PROPOSED,
    CROPPED,
    Op("flat", "flatten", 16, 144, inputs=("crop",)),
    Op("classes", "linear", 144, 3, bias=True, inputs=("flat",)),
    Op("moves", "linear", 144, 12, bias=True, inputs=("flat",)),
    Op("refined", "refine", 6, 6, inputs=("proposed", "classes", "moves"),
       coder=Coder("xywh", (10.0, 10.0, 5.0, 5.0)), suppression=Suppression(0.05, 0.5, 5, 5, True)),
)  # fmt: skip


# Of each kind, operations that end in "made"'s place, on maps of 16 channels.
EXAMPLES: dict[str, tuple[Op, ...]] = {
    "conv": layer("conv", kernel=3),
    "conv grouped": layer("conv", kernel=3, grouped=4),
    "conv 3x5": layer("conv", kernel=3, kernel_width=5),
    "depthwise": layer("depthwise", kernel=5),
    "pointwise": layer("pointwise"),
    "global": layer("global", kernel=8),
    "linear": (
        Op("mean", "pool", 16, 16, inputs=(LAST,)),
        Op("extra", "linear", 16, 5, bias=True, inputs=("mean",)),
    ),
    "norm": (Op("extra", "norm", 16, 16, norm=True, inputs=(LAST,)),),
    **{f"activation {a}": (Op("extra", "activation", 16, 16, activation=a, inputs=(LAST,)),) for a in ACTIVATIONS},
    "pool": (Op("extra", "pool", 16, 16, inputs=(LAST,)),),
    "maxpool": (Op("extra", "maxpool", 16, 16, 3, 2, inputs=(LAST,), pads=(1, 1, 1, 1)),),
    "maxpool over the edge": (Op("extra", "maxpool", 16, 16, 3, 2, inputs=(LAST,), pads=(0, 0, 0, 0), ceil=True),),
    "maxpool of less than 0": (
        *layer("pointwise"),
        Op("most", "maxpool", 16, 16, 3, 2, inputs=("extra",), pads=(1, 1, 1, 1)),
    ),
    "avgpool": (Op("extra", "avgpool", 16, 16, 3, 2, inputs=(LAST,), pads=(1, 1, 1, 1)),),
    "shuffle": (Op("extra", "shuffle", 16, 16, grouped=2, inputs=(LAST,)),),
    "slice": (Op("extra", "slice", 16, 7, first=5, inputs=(LAST,)),),
    "conv unpadded": layer("conv", kernel=3, stride=2, pads=(0, 0, 0, 0)),
    "conv 11x11": layer("conv", kernel=11, stride=4, pads=(4, 4, 4, 4)),
    "conv 1x1 grouped": layer("conv", grouped=4),
    "depthwise 1x3": layer("depthwise", kernel=1, kernel_width=3, stride=2),
    "add": (*layer("pointwise"), Op("sum", "add", 16, 16, inputs=("extra", LAST))),
    "mul": (
        Op("mean", "pool", 16, 16, inputs=(LAST,)),
        Op("extra", "mul", 16, 16, inputs=(LAST, "mean")),
    ),
    "attend": (
        Op("query", "pointwise", 16, 16, inputs=(LAST,)),
        Op("key", "pointwise", 16, 8, inputs=(LAST,)),
        Op("value", "pointwise", 16, 8, inputs=(LAST,)),
        Op("extra", "attend", 8, 16, heads=2, inputs=("query", "key", "value")),
    ),
    "concat": (Op("extra", "concat", 24, 24, inputs=(LAST, MIDDLE)),),
    "flatten": (Op("extra", "flatten", 16 * 64, 16 * 64, inputs=(LAST,)),),
    "rows": (Op("extra", "rows", 16, 4, inputs=(LAST,)),),
    "stack": (
        Op("rows", "rows", 16, 4, inputs=(LAST,)),
        SMALLER,
        Op("fewer", "rows", 16, 4, inputs=("smaller",)),
        Op("extra", "stack", 4, 4, inputs=("rows", "fewer")),
    ),
    "upsample": (Op("extra", "upsample", 16, 16, inputs=(LAST, "blocks.0.conv")),),
    "upsample 3 to 8": (SMALLER, Op("extra", "upsample", 16, 16, inputs=("smaller", LAST))),
    "softmax of rows": (
        Op("rows", "rows", 16, 4, inputs=(LAST,)),
        Op("extra", "softmax", 4, 4, inputs=("rows",)),
    ),
    "boxes": (*RAW[:1], BOXES),
    "boxes xywh": (*RAW[:1], dataclasses.replace(BOXES, coder=Coder("xywh", (10.0, 8.0, 5.0, 4.0)))),
    "suppress": (*FOUND, SUPPRESS),
    "suppress few of a class": (
        *FOUND,
        dataclasses.replace(SUPPRESS, suppression=Suppression(0.3, 0.5, 3, 30, False)),
    ),
    **{
        f"detected {part}": (
            *FOUND,
            dataclasses.replace(SUPPRESS, name="found"),
            Op("extra", "detected", 6, 1, inputs=("found",), part=part),
        )
        for part in PARTS
    },
    "detected scores of many": (
        *FOUND,
        dataclasses.replace(SUPPRESS, name="found", suppression=Suppression(0.3, 0.9, 10, 10, True)),
        Op("extra", "detected", 6, 1, inputs=("found",), part="scores"),
    ),
    "subsample": (Op("extra", "subsample", 16, 16, stride=2, inputs=(LAST,)),),
    "transposed": (Op("extra", "transposed", 16, 8, 2, bias=True, activation="relu", inputs=(LAST,)),),
    "propose": (*PROPOSED[:-1], dataclasses.replace(PROPOSED[-1], name="extra")),
    "crop": (*PROPOSED, dataclasses.replace(CROPPED, name="extra")),
    "refine": (*REFINED[:-1], dataclasses.replace(REFINED[-1], name="extra")),
    "masks": (*REFINED, Op("extra", "masks", 16, 5, inputs=("refined", "crop"))),
    "softmax": (
        Op("mean", "pool", 16, 16, inputs=(LAST,)),
        Op("flat", "flatten", 16, 16, inputs=("mean",)),
        Op("extra", "softmax", 16, 16, inputs=("flat",)),
    ),
    "sigmoid": (
        Op("mean", "pool", 16, 16, inputs=(LAST,)),
        Op("flat", "flatten", 16, 16, inputs=("mean",)),
        Op("extra", "sigmoid", 16, 16, inputs=("flat",)),
    ),
    "l2norm": (
        Op("mean", "pool", 16, 16, inputs=(LAST,)),
        Op("flat", "flatten", 16, 16, inputs=("mean",)),
        Op("extra", "l2norm", 16, 16, inputs=("flat",)),
    ),
}


def network(ops: tuple[Op, ...], precision: str = "float32") -> Bundle:
    """A network whose only output, "answer", is the last of `ops`."""
    return headed(Head(ops, (Output("answer", ops[-1].name),)), precision)


def together(kinds: Iterable[str], precision: str = "float32") -> Bundle:
    """A network with an output for each of the examples `kinds`, which has its name."""
    ops, outputs = list[Op](), []
    for kind in kinds:
        own = {op.name: f"{kind} {op.name}".replace(" ", "_") for op in EXAMPLES[kind]}
        ops += [
            dataclasses.replace(op, name=own[op.name], inputs=tuple(own.get(i, i) for i in op.inputs))
            for op in EXAMPLES[kind]
        ]
        outputs.append(Output(kind, ops[-1].name))
    return headed(Head(tuple(ops), tuple(outputs)), precision)


def headed(head: Head, precision: str) -> Bundle:
    card = Card(ARCH, Preprocess(ARCH.resolution), head, task="features")
    return with_random_weights(card, precision)  # type: ignore[arg-type]
