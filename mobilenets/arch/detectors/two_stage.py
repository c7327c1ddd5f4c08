"""Two-stage detectors as data, for their cost: what looks at the image, and what at each proposal. No torch, no numpy.

A part is a graph and how often it runs for an image. `table13_parts` is Faster R-CNN as V1's table 13 counts it,
`pyramid_parts` torchvision's on a feature pyramid, with its mask head if asked for.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mobilenets.arch.graph import Activation, Graph, Op
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError

CROP = 7  # side of what is cut out of a map for a proposal
MASK_CROP = 14
TABLE13_ANCHORS, TABLE13_DEPTH = 12, 512  # 4 scales x 3 ratios, and the channels that proposals are made of
PYRAMID_ANCHORS, PYRAMID_DEPTH, BOX_FEATURES = 15, 256, 1024  # 5 sizes x 3 ratios on every map
MASK_LAYERS = 4


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


def pyramid_parts(arch: Arch, classes: int, proposals: int, masks: int = 0) -> tuple[Part, ...]:
    """Torchvision's fasterrcnn_mobilenet_v3_large_fpn on any network; with its mask head, which `masks` detections get.

    Its pyramid has two maps of one size, the first block's of the last stride and the last block's, and every second
    position of the latter; proposals are made on all three. A proposal's 7x7 crop goes through two fully connected
    layers. Raises `UserError`.
    """
    depth, at = PYRAMID_DEPTH, _last_halving(arch)
    tapped = arch.blocks[at], arch.blocks[-1]
    ops: list[Op] = []
    for i, block in reversed([*enumerate(tapped)]):
        ops.append(_conv(f"fpn.{i}.project", block.cout, depth, block.output))
        source = ops[-1].name
        if i == 0:  # both maps are of one size, so there is nothing to enlarge
            ops.append(Op(f"fpn.{i}.sum", "add", depth, depth, inputs=("fpn.1.project", source)))
            source = ops[-1].name
        ops.append(_conv(f"fpn.{i}.smooth", depth, depth, source, 3))
    for i in range(len(tapped)):
        ops += _proposing(f"rpn.{i}", depth, depth, PYRAMID_ANCHORS, 1, f"fpn.{i}.smooth", "rpn.0" if i else "")
    body = arch.graph.upto([b.output for b in tapped])
    first = body.replace(ops=(*body.ops, *ops))
    _, height, width = first.shapes["fpn.1.smooth"]
    above = _proposing("rpn.2", depth, depth, PYRAMID_ANCHORS, 1, "map", "rpn.0")
    crop = depth * CROP**2
    boxes = (
        _linear("box.0", crop, BOX_FEATURES, "crop"),
        _linear("box.1", BOX_FEATURES, BOX_FEATURES, "box.0"),
        _linear("box.classes", BOX_FEATURES, classes, "box.1"),
        _linear("box.boxes", BOX_FEATURES, 4 * classes, "box.1"),
    )
    parts = (
        Part("backbone, pyramid, proposals", first),
        Part(
            "proposals on every second position",
            Graph(tuple(above), (depth, -(-height // 2), -(-width // 2)), source="map"),
        ),
        Part("each proposal", Graph(boxes, (crop, 1, 1), source="crop"), proposals),
    )
    if not masks:
        return parts
    layers: list[Op] = []
    for i in range(MASK_LAYERS):
        layers.append(_conv(f"mask.{i}", depth, depth, layers[-1].name if layers else "crop", 3, "relu"))
    logits = _conv("mask.logits", depth, classes, "map")
    side = 2 * MASK_CROP
    return (
        *parts,
        Part("each mask", Graph(tuple(layers), (depth, MASK_CROP, MASK_CROP), source="crop"), masks),
        Part("each mask, twice as large", Graph((logits,), (depth, side, side), source="map"), masks),
    )
