"""What the card of a detector says of its answers. No torch, no numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mobilenets.arch.detectors import anchors, heads
from mobilenets.arch.detectors.families import family
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError


def detection_config(
    arch: Arch,
    labels: Sequence[str],
    name: str = "ssdlite",
    boxes: Sequence[Sequence[Sequence[float]]] | None = None,
) -> dict[str, Any]:
    """What the card of a detector says of its answers (JSON): labels without the background, anchors, coder, choice.

    `boxes`: of each map its anchors' (width, height) in fractions of the input, where they aren't the family's own.
    `grids`, where it is there: of each map the first centre and the steps from one to the next, [x, y, dx, dy] in
    fractions of the input; left out, centres are (x + 0.5) / width of the map. Raises `UserError`.
    """
    how, sizes = family(name), heads.maps(arch, name)
    shapes: Sequence[Any] = boxes or anchors.anchor_shapes(how.convention, sizes, arch.input_size)
    if len(shapes) != len(sizes):
        raise UserError(f"{name} on {arch.title} has {len(sizes)} maps, so it needs as many sets of anchors")
    placed: Mapping[str, Any] = (
        {"grids": grid} if (grid := anchors.grids(how.convention, sizes, arch.input_size)) else {}
    )
    return {
        "labels": list(labels),
        "family": how.name,
        "background": how.background,
        "scores": how.scores,
        "anchors": {
            "maps": [list(m) for m in sizes],
            "convention": "fitted" if boxes else how.convention,
            "boxes": [[list(shape) for shape in each] for each in shapes],
            "offset": 0.5,
            "clip": False,
            **placed,
        },
        "coder": {"order": how.order, "scales": list(how.box_scales)},
        "suppression": {"score": how.score, "iou": how.iou, "per_class": how.per_class, "most": how.most},
    }
