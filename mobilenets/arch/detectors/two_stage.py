"""Two-stage detectors as data: what looks at the image, and what at each proposal. No torch, no numpy.

`two_stage_head` is torchvision's detector on a feature pyramid as operations: its layers behind a crop run for each
box. For the cost, a part is a graph and how often it runs for an image: `pyramid_parts` of that head, `table13_parts`
of Faster R-CNN as V1's table 13 counts it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mobilenets.arch import spec, zoo
from mobilenets.arch.boxes import PARTS, Coder, Suppression
from mobilenets.arch.detectors.families import BN_EPS
from mobilenets.arch.graph import Graph, Head, Output
from mobilenets.arch.operations import Activation, Op
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError, unknown

CROP = 7  # side of what is cut out of a map for a proposal
MASK_CROP = 14
TABLE13_ANCHORS, TABLE13_DEPTH = 12, 512  # 4 scales x 3 ratios, and the channels that proposals are made of
BOX_FEATURES = 1024
MASK_LAYERS = 4
RATIOS = (0.5, 1.0, 2.0)  # height over width
SIZES = (32, 64, 128, 256, 512)  # pixels
PROPOSING = Coder("xywh", (1.0, 1.0, 1.0, 1.0))
REFINING = Coder("xywh", (10.0, 10.0, 5.0, 5.0))
LOOKED_AT = 1000  # of a map's boxes, before some are suppressed
PROPOSED_IOU, FOUND_IOU, LEAST = 0.7, 0.5, 0.05
FIRST_STRIDE = 8  # of a pyramid's first map
MASKED = 100  # detections, and with them masks (torchvision's box_detections_per_img)
FOUND, MASK = "found", "masks"  # the operations that give detections, and their masks


@dataclass(frozen=True)
class TwoStage:
    """A two-stage detector: where it is from, the network and resolution it was published with, proposals.

    `halving`: the pyramid is of the maps before and after the last blocks, of one size, as torchvision's; else of the
    last map of each stride from 8 on, as the paper of feature pyramids has it (1612.03144), with one size of anchors on
    each. `depth`: the pyramid's channels. `masks`: it gives masks too.
    """

    name: str
    source: str
    backbone: str
    resolutions: tuple[int, ...]
    proposals: int
    halving: bool = True
    depth: int = 256
    masks: bool = False


TWO_STAGE: dict[str, TwoStage] = {
    t.name: t
    for t in (
        TwoStage("faster-rcnn", "V1 table 13", "v1", (300, 600), 300),
        TwoStage(
            "faster-rcnn-fpn", "torchvision fasterrcnn_mobilenet_v3_large_320_fpn, _fpn", "v3-large", (320, 800), 150
        ),
        # A mask is read off maps of 1/8 of the image. Its pyramid is as deep as TensorFlow's FPNLite: at 256, what
        # makes the masks costs four times as much.
        TwoStage(
            "mask-rcnn", "torchvision MaskRCNN, pyramid of strides 8 to 32", "v2", (320, 800), 150,
            halving=False, depth=128, masks=True,
        ),
    )
}  # fmt: skip
PYRAMIDS = tuple(name for name in TWO_STAGE if name != "faster-rcnn")


def pyramid_family(name: str) -> TwoStage:
    """The two-stage detector on a pyramid called `name`; a UserError suggests the nearest."""
    if name not in PYRAMIDS:
        raise unknown("two-stage detector", name, PYRAMIDS)
    return TWO_STAGE[name]


def two_stage_arch(
    name: str, backbone: str | None = None, alpha: float = 1.0, resolution: int | tuple[int, int] | None = None
) -> Arch:
    """The backbone of a two-stage detector on a pyramid, as torchvision builds it. Raises `UserError`."""
    how = pyramid_family(name)
    side = how.resolutions[0] if resolution is None else resolution
    network = zoo.network(backbone or how.backbone)
    return spec.scale(network, alpha, side, 0, bn_eps=BN_EPS, convention="torchvision").replace(head=())


@dataclass(frozen=True)
class Part:
    """A graph that runs `times` for an image."""

    name: str
    graph: Graph
    times: int = 1


def _conv(
    name: str, cin: int, cout: int, inputs: str, kernel: int = 1, activation: Activation | None = None, shares: str = ""
) -> Op:
    kind = "pointwise" if kernel == 1 else "conv"
    return Op(name, kind, cin, cout, kernel, activation=activation, bias=True, inputs=(inputs,), shares=shares)


def _linear(name: str, cin: int, cout: int, inputs: str) -> Op:
    return Op(name, "linear", cin, cout, bias=True, inputs=(inputs,))


def _proposing(prefix: str, channels: int, depth: int, anchors: int, scores: int, tap: str, like: str = "") -> list[Op]:
    """What proposes boxes on a map: a 3x3 layer, then for each anchor `scores` numbers and a box."""

    def shared(part: str) -> str:
        return f"{like}.{part}" if like else ""

    conv = _conv(f"{prefix}.conv", channels, depth, tap, 3, "relu", shared("conv"))
    return [
        conv,
        _conv(f"{prefix}.scores", depth, anchors * scores, conv.name, shares=shared("scores")),
        _conv(f"{prefix}.boxes", depth, anchors * 4, conv.name, shares=shared("boxes")),
    ]


def _last_halving(arch: Arch) -> int:
    """The block from which on the map has its last size."""
    last = arch.blocks[-1].total_stride
    at = next(i for i, b in enumerate(arch.blocks) if b.total_stride == last)
    if at == 0 or last == 1:
        raise UserError(f"{arch.title} never makes its map smaller: a detector has nothing to read")
    return at


def table13_parts(arch: Arch, classes: int, proposals: int = 300) -> tuple[Part, ...]:
    """Faster R-CNN as V1's table 13 counts it; of the structure of the API's faster_rcnn_mobilenet_v1.

    The network up to the last map of stride 16, and there the proposals. Each is cut out, 7x7, and goes through the
    blocks that are left, none of which makes it smaller; then the mean, the classes (the background among them) and a
    box for each class beside the background. The API's own extractor has stride 2 in the first of those blocks, a third
    of the work, which the table doesn't count. Raises `UserError`.
    """
    at = _last_halving(arch)
    tap, channels = arch.blocks[at].source, arch.blocks[at].cin
    body = arch.graph.upto([tap])
    first = body.replace(ops=(*body.ops, *_proposing("rpn", channels, TABLE13_DEPTH, TABLE13_ANCHORS, 2, tap)))
    left = [dataclasses.replace(op, stride=1) for b in arch.blocks[at:] for op in b.ops]
    last, features = left[-1].name, arch.blocks[-1].cout
    left += [
        Op("box.pool", "pool", features, features, inputs=(last,)),
        _linear("box.classes", features, classes, "box.pool"),
        _linear("box.boxes", features, 4 * (classes - 1), "box.pool"),
    ]
    second = Graph(tuple(left), (channels, CROP, CROP), padding=arch.padding, source=tap)
    return Part("backbone, proposals", first), Part("each proposal", second, proposals)


def _pyramid(arch: Arch, how: TwoStage) -> tuple[list[Op], tuple[str, ...]]:
    """A pyramid's operations, and its maps, the largest first: the last is every second position of the one before."""
    if how.halving:
        blocks = [arch.blocks[_last_halving(arch)], arch.blocks[-1]]
    else:
        blocks = [arch.blocks[s.block] for s in arch.stages if s.stride >= FIRST_STRIDE]
    if not blocks:
        raise UserError(f"{arch.title} has no map at stride {FIRST_STRIDE} for a pyramid to begin at")
    ops: list[Op] = []
    above, depth = "", how.depth
    for i, block in reversed([*enumerate(blocks)]):
        ops.append(_conv(f"fpn.{i}.project", block.cout, depth, block.output))
        if above:
            up = Op(f"fpn.{i}.upsample", "upsample", depth, depth, inputs=(above, f"fpn.{i}.project"))
            ops += [up, Op(f"fpn.{i}.sum", "add", depth, depth, inputs=(up.name, f"fpn.{i}.project"))]
        above = ops[-1].name
        ops.append(_conv(f"fpn.{i}.smooth", depth, depth, above, 3))
    last = f"fpn.{len(blocks)}.subsample"
    ops.append(Op(last, "subsample", depth, depth, stride=2, inputs=(f"fpn.{len(blocks) - 1}.smooth",)))
    return ops, (*(f"fpn.{i}.smooth" for i in range(len(blocks))), last)


def _first_stage(arch: Arch, how: TwoStage) -> tuple[list[Op], tuple[str, ...]]:
    """The pyramid and what its maps say of proposals, as layers; and the maps."""
    ops, maps = _pyramid(arch, how)
    for i, tap in enumerate(maps):
        ops += _proposing(f"rpn.{i}", how.depth, how.depth, len(_shapes(how, i)), 1, tap, "rpn.0" if i else "")
    return ops, maps


def _box_layers(depth: int, classes: int, source: str) -> list[Op]:
    return [
        _linear("box.0", depth * CROP**2, BOX_FEATURES, source),
        Op("box.0.relu", "activation", BOX_FEATURES, BOX_FEATURES, activation="relu", inputs=("box.0",)),
        _linear("box.1", BOX_FEATURES, BOX_FEATURES, "box.0.relu"),
        Op("box.1.relu", "activation", BOX_FEATURES, BOX_FEATURES, activation="relu", inputs=("box.1",)),
        _linear("box.classes", BOX_FEATURES, classes, "box.1.relu"),
        _linear("box.boxes", BOX_FEATURES, 4 * classes, "box.1.relu"),
    ]


def _mask_layers(depth: int, classes: int, source: str) -> list[Op]:
    ops: list[Op] = []
    for i in range(MASK_LAYERS):
        ops.append(_conv(f"mask.{i}", depth, depth, ops[-1].name if ops else source, 3, "relu"))
    up = Op(
        "mask.transposed", "transposed", depth, depth, 2, activation="relu", bias=True, inputs=(ops[-1].name,)
    )  # fmt: skip
    return [*ops, up, _conv("mask.logits", depth, classes, up.name)]


def two_stage_head(arch: Arch, classes: int, name: str, proposals: Mapping[str, Any] | None = None) -> Head:
    """The head of a two-stage detector on a pyramid on `arch`; `classes` has the background in.

    `proposals`: how they are chosen, fields of a `Suppression` by name, where it isn't the family's way.

    Its outputs are detections: `boxes` [K, 4], `scores` [K], `classes` [K], `count` []; `masks` [K, 28, 28] of one with
    masks. Raises `UserError`.
    """
    how = pyramid_family(name)
    if classes < 2:
        raise UserError(f"a detector needs a class beside the background: classes must be 2 or more, not {classes}")
    ops, maps = _first_stage(arch, how)
    levels = []
    for i in range(len(maps)):
        anchors = len(_shapes(how, i))
        ops += [
            Op(f"rpn.{i}.scores.rows", "rows", anchors, 1, inputs=(f"rpn.{i}.scores",)),
            Op(f"rpn.{i}.boxes.rows", "rows", anchors * 4, 4, inputs=(f"rpn.{i}.boxes",)),
            Op(f"rpn.{i}.at", "boxes", 4, 4, inputs=(f"rpn.{i}.boxes.rows",), coder=PROPOSING),
        ]
        levels += [f"rpn.{i}.at", f"rpn.{i}.scores.rows"]
    usual = {"score": 0.0, "iou": PROPOSED_IOU, "per_class": LOOKED_AT, "most": how.proposals}
    proposing = Suppression.from_json({**usual, **(proposals or {}), "background": False})
    refining = Suppression(LEAST, FOUND_IOU, MASKED, MASKED, background=True)
    ops += [
        Op("proposals", "propose", 4, 4, inputs=tuple(levels), suppression=proposing),
        Op("box.crop", "crop", how.depth, how.depth, CROP, inputs=("proposals", *maps[:-1])),
        Op("box.flat", "flatten", how.depth, how.depth * CROP**2, inputs=("box.crop",)),
        *_box_layers(how.depth, classes, "box.flat"),
        Op(FOUND, "refine", 6, 6, inputs=("proposals", "box.classes", "box.boxes"),
           coder=REFINING, suppression=refining),
        *(Op(f"{FOUND}.{part}", "detected", 6, 4 if part == "boxes" else 1, inputs=(FOUND,), part=part)
          for part in PARTS),
    ]  # fmt: skip
    outputs = [Output(part, f"{FOUND}.{part}") for part in PARTS]
    if how.masks:
        ops += [
            Op("mask.crop", "crop", how.depth, how.depth, MASK_CROP, inputs=(FOUND, *maps[:-1])),
            *_mask_layers(how.depth, classes, "mask.crop"),
            Op(MASK, "masks", classes, MASKED, inputs=(FOUND, "mask.logits")),
        ]
        outputs.append(Output(MASK, MASK, "of each box, its probability in it"))
    return Head(tuple(ops), tuple(outputs), tuple(op.name for op in ops if op.is_layer))


def _shapes(how: TwoStage, level: int) -> list[tuple[float, float]]:
    """Width and height in pixels of the anchors of a map, rounded as torchvision's AnchorGenerator rounds them."""
    sizes = SIZES if how.halving else (SIZES[min(level, len(SIZES) - 1)],)
    roots = [(math.sqrt(r), s) for r in RATIOS for s in sizes]
    return [(2.0 * round(s / root / 2), 2.0 * round(s * root / 2)) for root, s in roots]


def two_stage_anchors(arch: Arch, name: str) -> dict[str, list[tuple[float, float, float, float]]]:
    """Of each operation that decodes a map's proposals the anchors: centre x, y, width, height, fractions of the input.

    As torchvision's AnchorGenerator has them: centres at the corners of cells, strides in whole pixels.
    """
    how = pyramid_family(name)
    ops, maps = _pyramid(arch, how)
    shapes = arch.graph.replace(ops=(*arch.graph.ops, *ops)).shapes
    height, width = arch.input_size
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for i, tap in enumerate(maps):
        _, rows, columns = shapes[tap]
        down, across = height // rows, width // columns
        found[f"rpn.{i}.at"] = [
            (x * across / width, y * down / height, w / width, h / height)
            for y in range(rows)
            for x in range(columns)
            for w, h in _shapes(how, i)
        ]
    return found


def pyramid_parts(arch: Arch, name: str, classes: int, proposals: int) -> tuple[Part, ...]:
    """What `two_stage_head` runs once, for each proposal, and for each detection where it gives masks.

    Raises `UserError`.
    """
    how = pyramid_family(name)
    ops, _ = _first_stage(arch, how)
    first = arch.graph.replace(ops=(*arch.graph.ops, *ops))
    crop = how.depth * CROP**2
    parts = (
        Part("backbone, pyramid, proposals", first.upto(op.name for op in ops)),
        Part("each proposal", Graph(tuple(_box_layers(how.depth, classes, "crop")), (crop, 1, 1), source="crop"),
             proposals),
    )  # fmt: skip
    if not how.masks:
        return parts
    layers = tuple(_mask_layers(how.depth, classes, "crop"))
    return *parts, Part("each mask", Graph(layers, (how.depth, MASK_CROP, MASK_CROP), source="crop"), MASKED)
