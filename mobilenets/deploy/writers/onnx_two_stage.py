"""What two-stage detectors are made of, as ONNX nodes: proposals, what they enclose, detections, masks. No torch.

As torchvision computes them (`model.two_stage`). What is behind a crop runs for the boxes that there are, of all images
one after another, and no others: a file's time depends on what is seen. Where each belongs is kept by the crop's name.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from mobilenets.arch.boxes import Coder
from mobilenets.arch.operations import SAMPLES, Op
from mobilenets.deploy.writers import proto
from mobilenets.deploy.writers.onnx_detect import (
    Writer,
    apart,
    best,
    columns,
    gathered,
    picked,
    surest,
    told,
    whole,
)

PER_PROPOSAL = 4  # classes of a proposal, in the mean, that may score enough to be looked at
NARROWEST_PROPOSAL, NARROWEST = 1e-3, 1e-2  # pixels: narrower boxes are none (torchvision)
MOST_GROWTH = math.log(1000 / 16)  # of a logarithm of a side (torchvision's BoxCoder)
# A box of the area of CANONICAL squared, in pixels, is cut out of the map whose stride is 2 to LEVEL (1612.03144).
CANONICAL, LEVEL, SLACK = 224, 4, 1e-6


def linear(w: Writer, op: Op, x: str) -> str:
    """A fully connected layer of many boxes at once: as a convolution, runtimes would read its weights for each."""
    weights = w.lowered.weights(op)
    values, how = weights.values.reshape(op.cout, op.cin), {"transB": 1}
    if weights.bits != 4:  # whose scales are of blocks of inputs, as they lie
        values, how = np.ascontiguousarray(values.T), {}
    plain = dataclasses.replace(weights, values=values)
    if not _in_rows(w, op.inputs[0]):  # else nothing may be between whole numbers and the layer that reads them
        x = w.node("Flatten", [x], f"{op.name}.flat")
    return w.node("Gemm", [x, *w.parameters(op, plain, axis=1)], f"{op.name}.out", **how)


def _in_rows(w: Writer, value: str) -> bool:
    """Whether a value behind a crop is [M, C] here, as layers like `linear` make it."""
    op = w.graph.op(value)
    while op.kind in ("activation", "quantize", "dequantize"):
        op = w.graph.op(op.inputs[0])
    return op.kind in ("flatten", "linear")


def transposed(w: Writer, op: Op, x: str) -> str:
    """In floats, in int8 too: no runtime has it in whole numbers, and made of a 1x1 convolution it is no faster."""
    weights = w.lowered.weights(op)
    turned = dataclasses.replace(weights, values=np.ascontiguousarray(weights.values.swapaxes(0, 1)))
    how = {"kernel_shape": [op.kernel] * 2, "strides": [op.kernel] * 2}
    y = w.node("ConvTranspose", [x, *w.parameters(op, turned, axis=1)], f"{op.name}.out", **how)
    return w.activation(op, y) if op.activation else y


def subsample(w: Writer, op: Op, x: str) -> str:
    return w.node("MaxPool", [x], f"{op.name}.out", kernel_shape=[1, 1], strides=[op.stride] * 2)


def _corners(w: Writer, name: str, boxes: str, axis: int) -> tuple[str, str]:
    """The first two and the last two numbers of boxes [..., 4], which lie along `axis`."""
    low, high = (columns(w, f"{name}.{k}", boxes, axis, i, i + 2) for k, i in (("low", 0), ("high", 2)))
    return low, high


def _each(w: Writer, pairs: str, axis: int) -> list[str]:
    """The first and the second of pairs [..., 2], which lie along `axis`."""
    return [
        w.node("Gather", [pairs, w.const(f"number.{i}", np.array(i, np.int64))], f"{pairs}.{i}", axis=axis)
        for i in range(2)
    ]


def _of_a_size(w: Writer, name: str, places: str, scores: str, least: float) -> str:
    """Scores [N, P] of boxes [N, P, 4], 0 of those with a side below `least` pixels."""
    height, width = w.lowered.card.preprocess.input_size
    low, high = _corners(w, f"{name}.sized", places, 2)
    sides = w.node("Sub", [high, low], f"{name}.sides")
    bounds = w.const(f"{name}.narrowest", np.array([least / width, least / height], np.float32))
    wide = w.node("GreaterOrEqual", [sides, bounds], f"{name}.sides.fit")
    both = w.node("And", _each(w, wide, 2), f"{name}.fits")
    return w.node("Where", [both, scores, w.number("zero", 0)], f"{name}.scores.sized")


def _inside(w: Writer, name: str, places: str) -> str:
    return w.node("Clip", [places, w.number("zero", 0), w.number("one", 1)], name)


def propose(w: Writer, op: Op, *inputs: str) -> str:
    assert op.suppression is not None
    how, name = op.suppression, op.name
    boxes, logits, moves = [], [], []
    for i, (places, said) in enumerate(zip(inputs[::2], inputs[1::2], strict=True)):
        count, _ = w.graph.shapes[op.inputs[2 * i]]
        said = w.node("Squeeze", [said, whole(w, "last", -1)], f"{name}.{i}.logits")
        if count > how.per_class:
            said, which = best(w, f"{name}.{i}", said, how.per_class)
            places = gathered(w, f"{name}.{i}.boxes", places, which)
        boxes.append(places)
        logits.append(said)
        moves += [i] * min(count, how.per_class)
    places = _inside(w, f"{name}.inside", w.node("Concat", boxes, f"{name}.every", axis=1))
    scores = w.node("Sigmoid", [w.node("Concat", logits, f"{name}.logits", axis=1)], f"{name}.scores.every")
    scores = _of_a_size(w, name, places, scores, NARROWEST_PROPOSAL)
    level = w.const(f"{name}.levels", np.array([moves], np.int64))
    wide = w.node("Unsqueeze", [scores, whole(w, "one_axis", 1)], f"{name}.scores.wide")  # [N, 1, P]
    kept = dataclasses.replace(
        op, suppression=dataclasses.replace(how, per_class=how.most)
    )  # that is looked at of a map
    found, which = surest(w, kept, apart(w, name, places, level), wide, scores, len(moves))
    used = w.node("Greater", [found, w.number("zero", 0)], f"{name}.used")
    row = w.node("Unsqueeze", [used, whole(w, "last", -1)], f"{name}.rows")
    out = picked(w, f"{name}.out", places, which, row)
    w.parts[name] = {"boxes": out, "used": used}
    return out


def crop(w: Writer, op: Op, _boxes: str, *maps: str) -> str:
    """[M, C, kernel, kernel] of the M boxes that there are: `at` [M, 2] says of each its image and its place there."""
    name, parts = op.name, w.parts[op.inputs[0]]
    height, width = w.lowered.card.preprocess.input_size
    first = np.zeros((1, w.graph.shapes[op.inputs[0]][0]), bool)
    first[0, 0] = True  # which is there always, as runtimes don't like batches of none
    used = w.node("Or", [parts["used"], w.const(f"{name}.first", first)], f"{name}.used")
    at = w.node("Transpose", [w.node("NonZero", [used], f"{name}.there")], f"{name}.at", perm=[1, 0])
    w.parts[name] = {"at": at}
    unit = w.const(f"{name}.unit", np.array([width, height] * 2, np.float32))
    corners = w.node("Mul", [w.node("GatherND", [parts["boxes"], at], f"{name}.boxes"), unit], f"{name}.pixels")
    image, _ = _each(w, at, 1)
    strides = [2 ** round(math.log2(height / w.graph.shapes[m][1])) for m in op.inputs[1:]]
    levels = list(range(round(math.log2(strides[0])), round(math.log2(strides[-1])) + 1))
    if len(levels) == 1:
        return _aligned(w, op, name, maps[0], corners, image, strides[0])
    low, high = _corners(w, f"{name}.pixels", corners, 1)
    area = w.node("Mul", _each(w, w.node("Sub", [high, low], f"{name}.sides"), 1), f"{name}.area")
    pieces, order = [], []
    for i, (level, stride, x) in enumerate(zip(levels, strides, maps, strict=False)):
        own = f"{name}.{i}"
        # From one map on, and not from the next one on; the first and the last have all that is beyond.
        tests = [
            w.node(
                kind, [area, w.number(f"{own}.{kind}", (CANONICAL * 2 ** (k - LEVEL - SLACK)) ** 2)], f"{own}.{kind}.is"
            )
            for kind, k, there in (("GreaterOrEqual", level, i > 0), ("Less", level + 1, level < levels[-1]))
            if there
        ]
        fits = tests[0] if len(tests) == 1 else w.node("And", tests, f"{own}.fits")
        which = w.node("Squeeze", [w.node("NonZero", [fits], f"{own}.there"), whole(w, "zero_axis", 0)], f"{own}.which")
        some = [w.node("Gather", [v, which], f"{own}.{k}") for k, v in (("boxes", corners), ("image", image))]
        pieces.append(_aligned(w, op, own, x, some[0], some[1], stride))
        order.append(which)
    every = w.node("Concat", order, f"{name}.order", axis=0)
    # Where each box is among the pieces: a permutation of falling numbers, sorted, is its own inverse's.
    count = w.node("Shape", [every], f"{name}.count")
    falling = w.node("Neg", [every], f"{name}.falling")
    back = f"{name}.back"
    w.nodes.append(proto.node("TopK", [falling, count], [f"{name}.sorted", back], back, axis=0))
    return w.node("Gather", [w.node("Concat", pieces, f"{name}.pieces", axis=0), back], f"{name}.out", axis=0)


def _aligned(w: Writer, op: Op, name: str, x: str, corners: str, image: str, stride: int) -> str:
    return w.node(
        "RoiAlign", [x, corners, image], f"{name}.crops",
        output_height=op.kernel, output_width=op.kernel, sampling_ratio=SAMPLES, spatial_scale=1 / stride,
        coordinate_transformation_mode="output_half_pixel",
    )  # fmt: skip


def _cut_for(w: Writer, value: str) -> str:
    """Where the boxes are that a value behind a crop is of."""
    op = w.graph.op(value)
    while op.kind != "crop":
        op = w.graph.op(op.inputs[0])
    return w.parts[op.name]["at"]


def _spread(w: Writer, name: str, rows: str, at: str, *shape: int) -> str:
    """What is said of the boxes that there are [M, ...] for all [N, K, ...], zeros for the others.

    `shape`: of one image's.
    """
    images = w.node("Shape", [w.graph.source], f"{name}.images", start=0, end=1)
    size = w.node("Concat", [images, whole(w, f"{name}.each", *shape)], f"{name}.size", axis=0)
    return w.node("ScatterND", [w.node("ConstantOfShape", [size], f"{name}.zeros"), at, rows], name)


def refine(w: Writer, op: Op, proposals: str, logits: str, offsets: str) -> str:
    assert op.suppression is not None
    assert op.coder is not None
    how, name = op.suppression, op.name
    (count, _), classes = w.graph.shapes[op.inputs[0]], w.graph.op(op.inputs[1]).cout
    objects = classes - 1
    at = _cut_for(w, op.inputs[1])
    chances = w.node("Softmax", [logits], f"{name}.chances", axis=-1)
    chances = columns(w, f"{name}.objects", chances, 1, 1, classes)
    offsets = columns(w, f"{name}.offsets", offsets, 1, 4, 4 * classes)
    chances = _spread(w, f"{name}.scores.every", chances, at, count, objects)
    offsets = _spread(w, f"{name}.offsets.every", offsets, at, count, 4 * objects)
    pairs = min(max(how.most, PER_PROPOSAL * count), count * objects)
    flat = w.node("Reshape", [chances, whole(w, f"{name}.flat", 0, -1)], f"{name}.all")
    scores, which = best(w, f"{name}.pairs", flat, pairs)
    divisor = whole(w, f"{name}.number", objects)
    box, label = (w.node(kind, [which, divisor], f"{name}.{k}") for kind, k in (("Div", "box"), ("Mod", "class")))
    moves = w.node("Reshape", [offsets, whole(w, f"{name}.fours", 0, -1, 4)], f"{name}.offsets.rows")
    moves = gathered(w, f"{name}.offsets.kept", moves, which)
    places = _moved(w, name, gathered(w, f"{name}.proposals", proposals, box), moves, op.coder)
    places = _inside(w, f"{name}.inside", places)
    scores = _of_a_size(w, name, places, scores, NARROWEST)
    wide = w.node("Unsqueeze", [scores, whole(w, "one_axis", 1)], f"{name}.scores.wide")
    found, kept = surest(w, op, apart(w, name, places, label), wide, scores, pairs)
    label = w.node("Cast", [label], f"{name}.label", to=proto.TYPES["float32"])
    return told(w, op, places, label, found, kept)


def _moved(w: Writer, name: str, boxes: str, offsets: str, coder: Coder) -> str:
    """Boxes [N, P, 4] moved by offsets [N, P, 4] in the coder's units."""
    low, high = _corners(w, f"{name}.before", boxes, 2)
    at, size = _corners(w, f"{name}.offsets", offsets, 2)
    scales = np.array(coder.scales, np.float32)
    half = w.node("Mul", [w.node("Sub", [high, low], f"{name}.size"), w.number("half", 0.5)], f"{name}.half.before")
    middle = w.node("Add", [low, half], f"{name}.middle.before")
    at = w.node("Mul", [at, w.const(f"{name}.steps", 2 / scales[:2])], f"{name}.steps.taken")
    middle = w.node("Add", [middle, w.node("Mul", [at, half], f"{name}.way")], f"{name}.middle")
    size = w.node("Mul", [size, w.const(f"{name}.units", 1 / scales[2:])], f"{name}.log")
    size = w.node("Min", [size, w.number(f"{name}.most", MOST_GROWTH)], f"{name}.log.most")
    half = w.node("Mul", [w.node("Exp", [size], f"{name}.times"), half], f"{name}.half")
    corners = [w.node(kind, [middle, half], f"{name}.{kind.lower()}") for kind in ("Sub", "Add")]
    return w.node("Concat", corners, f"{name}.corners", axis=2)


def masks(w: Writer, op: Op, _detections: str, logits: str) -> str:
    name, parts, at = op.name, w.parts[op.inputs[0]], _cut_for(w, op.inputs[1])
    label = w.node("Cast", [parts["classes"]], f"{name}.label", to=proto.TYPES["int64"])
    label = w.node("Add", [label, whole(w, "one_axis", 1)], f"{name}.column")  # the background is first
    label = w.node("GatherND", [label, at], f"{name}.own")
    chosen = gathered(w, f"{name}.logits", logits, label)
    chances = w.node("Sigmoid", [chosen], f"{name}.chances")
    every = _spread(w, f"{name}.every", chances, at, *w.graph.shapes[name])
    used = w.node("Unsqueeze", [parts["used"], whole(w, "last_two", -1, -2)], f"{name}.used")
    return w.node("Where", [used, every, w.number("zero", 0)], f"{name}.out")
