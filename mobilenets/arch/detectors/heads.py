"""Detectors' heads: operations on taps of a backbone's graph, of every family. No torch, no numpy.

Whatever the family, a head gives the same values: "offsets" [A, 4], a box for each anchor as the family's coder has it;
"logits" [A, C], the background in column 0; "scores" [A, C], their sigmoid or softmax. Anchors are in the order of
maps, rows, columns, shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

from mobilenets.arch.detectors import anchors
from mobilenets.arch.detectors.families import EXTRAS, Family, family
from mobilenets.arch.graph import Head, Output
from mobilenets.arch.operations import Activation, Op
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError

OFFSETS, LOGITS, SCORES = "offsets", "logits", "scores"
PREFIX = "detect"
EXTRA_KERNEL = HEAD_KERNEL = 3
PYRAMID_DEPTH, PYRAMID_MAPS, TOWER = 128, 5, 4  # of TF's FPNLite
FIRST_LEVEL = 8  # stride of a pyramid's first map
ACTIVATION: Activation = "relu6"  # of every head, whatever the backbone's


def ssd_head(
    arch: Arch,
    classes: int,
    family_name: str = "ssdlite",
    *,
    per_cell: Sequence[int] | None = None,
    kernel: int | None = None,
) -> Head:
    """The head of a one-stage detector on `arch`, a network without a classifier; any classifier there is left out.

    `classes`: columns of the logits, the background's among them. `per_cell`: anchors at a position of each map, the
    family's own if left out; on a pyramid's maps as many, since they share weights. `kernel`: of "ssd"'s predictions, 1
    or 3; as the API's configurations have it, if left out: 1 on V1, 3 on others. The head's own layers are those that
    predict. Raises `UserError`.
    """
    how = family(family_name)
    if classes < 1 + how.background:
        raise UserError(f"a detector needs a class beside the background: classes must be 2 or more, not {classes}")
    most = len(maps(arch, family_name))
    given = per_cell or [
        len(s) for s in anchors.anchor_shapes(how.convention, maps(arch, family_name), arch.input_size)
    ]
    if len(given) != most:
        raise UserError(f"{family_name} on {arch.title} has {most} maps, so it needs as many counts of anchors")
    if how.pyramid:
        if len({*given}) > 1:
            raise UserError(f"the maps of {family_name} share weights, so each needs as many anchors: not {given}")
        ops, tops = _pyramid(arch)
        ops += _towers(tops)
        tops = [f"{PREFIX}.tower.{i}.{TOWER - 1}.pointwise" for i in range(most)]
        predictions = [_shared_prediction(what, i, tap, k * c) for what, c in (("box", 4), ("class", classes))
                       for i, (tap, k) in enumerate(zip(tops, given, strict=True))]  # fmt: skip
    else:
        ops, tops = _with_extras(arch, how)
        shapes = arch.graph.replace(ops=(*arch.graph.ops, *ops)).by_name
        side = HEAD_KERNEL if how.lite else kernel or (1 if arch.name.startswith("v1") else HEAD_KERNEL)
        predictions = [_prediction(what, i, shapes[tap], k * c, how.lite, side)
                       for what, c in (("box", 4), ("class", classes))
                       for i, (tap, k) in enumerate(zip(tops, given, strict=True))]  # fmt: skip
    boxes, kinds = predictions[:most], predictions[most:]
    ops += [op for p in predictions for op in p]
    ops += [*_rows("box", OFFSETS, boxes, 4), *_rows("class", LOGITS, kinds, classes)]
    ops.append(Op(SCORES, how.scores, classes, classes, inputs=(LOGITS,)))
    outputs = (
        Output(OFFSETS, OFFSETS, f"of each anchor's box, {how.order}"),
        Output(SCORES, SCORES, "of each anchor and class, the background first"),
    )
    return Head(tuple(ops), outputs, tuple(op.name for p in predictions for op in p))


def maps(arch: Arch, family_name: str = "ssdlite") -> tuple[anchors.Size, ...]:
    """Height and width of each map that a family's head predicts from, the largest first. Raises `UserError`."""
    how = family(family_name)
    ops, tops = _pyramid(arch) if how.pyramid else _with_extras(arch, how)
    shapes = arch.graph.replace(ops=(*arch.graph.ops, *ops)).shapes
    return tuple((shapes[t][1], shapes[t][2]) for t in tops)


def taps(arch: Arch) -> tuple[str, str]:
    """What SSD reads of a backbone: the last value at twice the last map's size, and the last map.

    That is a block's output in V1 (Conv2d_11_pointwise in TF-slim's names), and where blocks expand, the expansion
    inside the one that halves the map (V2's layer_15/expansion_output, V3 paper section 6.3). Raises `UserError`.
    """
    before, halving = 1, None
    for block in arch.blocks:
        if block.total_stride > before:
            halving = next(op for op in block.ops if op.stride > 1)
        before = block.total_stride
    if halving is None:
        raise UserError(f"{arch.title} never makes its map smaller: a detector has nothing to read")
    return halving.inputs[0], arch.blocks[-1].output


def _layer(name: str, kind: str, cin: int, cout: int, inputs: str, **how: object) -> Op:
    """A layer of a head with BatchNorm and activation; `how` may say otherwise."""
    return Op(name, kind, cin, cout, **{"norm": True, "activation": ACTIVATION, "inputs": (inputs,), **how})  # type: ignore[arg-type]


def _with_extras(arch: Arch, how: Family) -> tuple[list[Op], list[str]]:
    """The layers behind the backbone, each group halving the map, and the names of all maps read."""
    first, last = taps(arch)
    ops: list[Op] = []
    tops = [first, last]
    cin, source = arch.blocks[-1].cout, last
    for i, channels in enumerate(EXTRAS):
        cout, mid = (how.depth(c, arch.alpha) for c in (channels, channels // 2))
        if how.convention == "torchvision":
            mid = cout // 2
        name = f"{PREFIX}.extra.{i}"
        ops.append(_layer(f"{name}.reduce", "pointwise", cin, mid, source))
        if how.lite:
            ops += [
                _layer(f"{name}.depthwise", "depthwise", mid, mid, ops[-1].name, kernel=EXTRA_KERNEL, stride=2),
                _layer(f"{name}.pointwise", "pointwise", mid, cout, f"{name}.depthwise"),
            ]
        else:
            ops.append(_layer(f"{name}.conv", "conv", mid, cout, ops[-1].name, kernel=EXTRA_KERNEL, stride=2))
        cin, source = cout, ops[-1].name
        tops.append(source)
    return ops, tops


def _prediction(what: str, i: int, tap: Op, cout: int, lite: bool, kernel: int) -> list[Op]:
    name, cin = f"{PREFIX}.{what}.{i}", tap.cout
    plain = {"norm": False, "activation": None, "bias": True}
    if not lite:
        kind = "pointwise" if kernel == 1 else "conv"
        return [_layer(f"{name}.{kind}", kind, cin, cout, tap.name, kernel=kernel, **plain)]
    return [
        _layer(f"{name}.depthwise", "depthwise", cin, cin, tap.name, kernel=kernel),
        _layer(f"{name}.pointwise", "pointwise", cin, cout, f"{name}.depthwise", **plain),
    ]


def _rows(what: str, name: str, predictions: Sequence[Sequence[Op]], width: int) -> list[Op]:
    """Every map's predictions as rows, then one under another."""
    ops = [
        Op(f"{PREFIX}.{what}.{i}.rows", "rows", p[-1].cout, width, inputs=(p[-1].name,))
        for i, p in enumerate(predictions)
    ]
    return [*ops, Op(name, "stack", width, width, inputs=tuple(op.name for op in ops))]


# ---- a feature pyramid whose maps share their predictors' weights (RetinaNet, arXiv 1708.02002), of separable layers


def _separable(
    name: str, cin: int, cout: int, tap: str, *, stride: int = 1, last: bool = False, like: str = ""
) -> list[Op]:
    """A 3x3 layer as the API has it in a pyramid: nothing between depthwise and 1x1; the `last` predicts.

    `like`: the one whose weights it has; its BatchNorm is its own.
    """
    plain = {"norm": False, "activation": None}
    shares = [f"{like}.{part}" if like else "" for part in ("depthwise", "pointwise")]
    return [
        _layer(f"{name}.depthwise", "depthwise", cin, cin, tap, kernel=3, stride=stride, shares=shares[0], **plain),
        _layer(f"{name}.pointwise", "pointwise", cin, cout, f"{name}.depthwise", shares=shares[1],
               **({**plain, "bias": True} if last else {})),
    ]  # fmt: skip


def _pyramid(arch: Arch) -> tuple[list[Op], list[str]]:
    """From the last map of each stride, the smallest first, down to the largest, each added to what is above it.

    As the API's Keras networks have it (TF 2's zoo), where what goes on downwards is smoothed; in its older ones it
    isn't, which costs the same.
    """
    stages = [s for s in arch.stages if s.stride >= FIRST_LEVEL]
    if not stages:
        raise UserError(f"{arch.title} has no map at stride {FIRST_LEVEL} for a pyramid to begin at")
    depth, ops = PYRAMID_DEPTH, []
    tops: list[str] = []
    plain = {"norm": False, "activation": None, "bias": True}
    for i, stage in reversed([*enumerate(stages)]):
        name = f"{PREFIX}.fpn.{i}"
        ops.append(
            _layer(f"{name}.project", "pointwise", stage.channels, depth, arch.blocks[stage.block].output, **plain)
        )
        if tops:
            ops += [
                Op(f"{name}.upsample", "upsample", depth, depth, inputs=(tops[0], f"{name}.project")),
                Op(f"{name}.sum", "add", depth, depth, inputs=(f"{name}.upsample", f"{name}.project")),
                *_separable(name, depth, depth, f"{name}.sum"),
            ]
        tops.insert(0, ops[-1].name)
    for i in range(PYRAMID_MAPS - len(stages)):
        ops += _separable(f"{PREFIX}.extra.{i}", depth, depth, tops[-1], stride=2)
        tops.append(ops[-1].name)
    return ops, tops


def _towers(tops: Sequence[str]) -> list[Op]:
    """Of each map the layers before its predictions, one map's after another's."""
    ops: list[Op] = []
    for i, tap in enumerate(tops):
        for n in range(TOWER):
            like = f"{PREFIX}.tower.0.{n}" if i else ""
            ops += _separable(
                f"{PREFIX}.tower.{i}.{n}", PYRAMID_DEPTH, PYRAMID_DEPTH, tap if n == 0 else ops[-1].name, like=like
            )
    return ops


def _shared_prediction(what: str, i: int, tap: str, cout: int) -> list[Op]:
    like = f"{PREFIX}.{what}.0" if i else ""
    return _separable(f"{PREFIX}.{what}.{i}", PYRAMID_DEPTH, cout, tap, last=True, like=like)
