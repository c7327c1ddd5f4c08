"""What a detector costs: its backbone, its head, what runs for each proposal. No torch, no numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mobilenets.arch import zoo
from mobilenets.arch.cost import Cost, layers, peak, peak_blockwise
from mobilenets.arch.detectors import two_stage
from mobilenets.arch.detectors.families import FAMILIES, detector_arch
from mobilenets.arch.detectors.heads import PREFIX, ssd_head
from mobilenets.arch.detectors.two_stage import TWO_STAGE
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError, unknown

if TYPE_CHECKING:
    from rich.console import RenderableType

# COCO's 80 kinds have ids up to 90, which the API and torchvision take as columns; and the background.
COCO_CLASSES = 91
# Parts of a detector, by the beginning of their layers' names; what has none of them is the backbone.
PARTS = {
    f"{PREFIX}.extra.": "extra maps", f"{PREFIX}.fpn.": "pyramid", f"{PREFIX}.tower.": "shared tower",
    f"{PREFIX}.box.": "boxes", f"{PREFIX}.class.": "classes",
    "fpn.": "pyramid", "rpn.": "proposals", "box.": "each proposal", "mask.": "masks",
}  # fmt: skip


HIGH_RESOLUTION, MANY_PROPOSALS = 800, 1000  # fasterrcnn_mobilenet_v3_large_fpn keeps so many
NAMES = (*FAMILIES, *TWO_STAGE)


@dataclass(frozen=True)
class DetectorCost(Cost):
    """A detector's cost; `arch` is its backbone, `classes` has the background in.

    `peak_activation_elements` is of the whole, all proposals at once; the other peak of the backbone's blocks alone.
    `anchors`: boxes that a one-stage head gives, 0 for others; `proposals`: what a two-stage one looks at again.
    """

    family: str = ""
    classes: int = COCO_CLASSES
    anchors: int = 0
    proposals: int = 0

    @property
    def title(self) -> str:
        again = f", {self.proposals} proposals" if self.proposals else f", {self.anchors} anchors"
        return f"{self.family} on {self.arch.title}, {self.classes} classes with the background{again}"

    def parts(self) -> dict[str, tuple[int, int]]:
        """Macs and trainable parameters of each part."""
        found: dict[str, tuple[int, int]] = {}
        for r in self.rows:
            name = next((n for prefix, n in PARTS.items() if r.layer.startswith(prefix)), "backbone")
            if self.proposals and r.times > 1 and name == "backbone":
                name = "each proposal"
            macs, params = found.get(name, (0, 0))
            found[name] = macs + r.macs, params + r.params
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            **super().to_json(),
            "arch": self.family,
            "backbone": self.arch.name,
            "classes": self.classes,
            "anchors": self.anchors,
            "proposals": self.proposals,
            "parts": {k: {"macs": m, "trainable_params": p} for k, (m, p) in self.parts().items()},
        }

    def _share_table(self) -> RenderableType:
        from mobilenets.console import table

        t = table("share by part", ["part", "macs (M)", "macs %", "params (M)", "params %"], left=("part",))
        for name, (macs, params) in self.parts().items():
            t.add_row(
                name,
                f"{macs / 1e6:,.2f}",
                f"{100 * macs / self.macs:.2f}",
                f"{params / 1e6:.3f}",
                f"{100 * params / self.params:.2f}",
            )
        if self.proposals:
            masks = next((f", at a mask {r.times}" for r in self.rows if r.layer.startswith("mask.")), "")
            t.caption = f"what looks at a proposal runs {self.proposals} times{masks}"
        return t


def count(
    name: str,
    backbone: str | None = None,
    alpha: float = 1.0,
    resolution: int | None = None,
    classes: int = COCO_CLASSES,
    proposals: int | None = None,
    reduced_tail: bool | None = None,
) -> DetectorCost:
    """Count a detector by its name, exactly; `backbone`, `resolution` and `proposals` are its own, if left out.

    `classes` has the background in. `reduced_tail`: of a one-stage one on V3, as `detector_arch` takes it. Raises
    `UserError`.
    """
    if name not in NAMES:
        raise unknown("detector", name, NAMES)
    if classes < 2:
        raise UserError(f"a detector needs a class beside the background: classes must be 2 or more, not {classes}")
    if name in FAMILIES:
        if proposals is not None:
            raise UserError(f"{name} makes no proposals: only {', '.join(TWO_STAGE)} do")
        arch = detector_arch(name, backbone, alpha, resolution, reduced_tail=reduced_tail)
        return of_arch(arch, name, classes)
    how = TWO_STAGE[name]
    network = zoo.network(backbone or how.backbone)
    side = resolution or how.resolutions[0]
    if name == "faster-rcnn":
        arch = detector_arch("ssd", network.name, alpha, side)
        kept = how.proposals if proposals is None else proposals
        parts = two_stage.table13_parts(arch, classes, _checked(kept))
    else:
        arch = two_stage.two_stage_arch(name, network.name, alpha, side)
        kept = proposals if proposals is not None else MANY_PROPOSALS if side >= HIGH_RESOLUTION else how.proposals
        parts = two_stage.pyramid_parts(arch, name, classes, _checked(kept))
    rows = [r for p in parts for r in layers(p.graph, p.times)]
    most = max(p.times * peak(p.graph) for p in parts)
    return DetectorCost(arch, tuple(rows), most, peak_blockwise(arch), family=name, classes=classes, proposals=kept)


def of_arch(arch: Arch, name: str, classes: int, per_cell: Sequence[int] | None = None) -> DetectorCost:
    """Count the one-stage detector of the family `name` on `arch`; `per_cell` as `ssd_head` takes it."""
    graph = arch.graph.with_head(ssd_head(arch, classes, name, per_cell=per_cell))
    anchors = graph.output_shapes["offsets"][0]
    return DetectorCost(
        arch, layers(graph), peak(graph), peak_blockwise(arch), family=name, classes=classes, anchors=anchors
    )


def _checked(proposals: int) -> int:
    if not 1 <= proposals <= 10_000:
        raise UserError(f"proposals must be from 1 to 10000, not {proposals}")
    return proposals
