"""A recognised detector as a bundle: its labels, its anchors and how its boxes are chosen, on the card."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets.arch import detectors
from mobilenets.arch.detectors import anchors
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError
from mobilenets.model import coco
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card
from mobilenets.model.convert.detectors import Detector
from mobilenets.model.convert.formats.post_processing import PostProcessing
from mobilenets.model.convert.recognise import Array
from mobilenets.model.images import Preprocess

# What lists of labels have in the place of an id that nothing has.
UNUSED = ("", "-", "???", "n/a", "unused")
SAME = 1e-6  # fractions of the input by which two anchors may differ

Shapes = Sequence[Sequence[Sequence[float]]]


def detector_bundle(
    found: Detector, said: PostProcessing, labels: tuple[str, ...] | None, preprocess: Preprocess, where: str,
    **fields: Any,
) -> Bundle:  # fmt: skip
    """The bundle of a detector. Raises `UserError` for labels or anchors that aren't its."""
    arch = found.arch.replace(resolution=preprocess.resolution)
    names = named(labels, found.classes - 1, where)
    # Where scores don't depend on each other, columns of ids that nothing has can go.
    apart = detectors.family(found.family).scores == "sigmoid"
    keep = [i for i, name in enumerate(names) if name is not None or not apart]
    tensors = _columns(found, keep) if len(keep) < len(names) else found.tensors
    shown = [name if name is not None else f"unused {i}" for i, name in enumerate(names, 1)]
    config = detectors.detection_config(arch, [shown[i] for i in keep], found.family, _shapes(found, said, arch, where))
    if said.scales:
        config["coder"]["scales"] = list(said.scales)
    told = {k: getattr(said, k) for k in ("score", "iou", "per_class", "most")}
    config["suppression"] |= {k: v for k, v in told.items() if v is not None}
    if said.together:
        config["suppression"]["together"] = True
    counts = [len(shapes) for shapes in config["anchors"]["boxes"]]
    kernel = next(op.kernel for op in found.head.ops if op.name.startswith("detect.box.0."))
    head = detectors.ssd_head(arch, len(keep) + 1, found.family, per_cell=counts, kernel=kernel)
    head = dataclasses.replace(head, own=tuple(op.name for op in head.ops if op.is_layer))
    return Bundle(Card(arch, preprocess, head, task="detect", config=config, **fields), tensors)


def named(labels: tuple[str, ...] | None, count: int, where: str) -> list[str | None]:
    """A name for each of `count` classes, None for one that nothing has; COCO's of 90, if none are given.

    A line for the background before them is left out. Raises `UserError`.
    """
    if labels is None:
        return list(coco.BY_ID) if count == len(coco.BY_ID) else [f"class {i}" for i in range(count)]
    if len(labels) == count + 1:
        labels = labels[1:]
    if len(labels) != count:
        raise UserError(f"{where}: there are {len(labels)} labels for {count} classes; give the right --labels")
    return [None if name.strip().lower() in UNUSED else name for name in labels]


def _columns(found: Detector, keep: Sequence[int]) -> dict[str, Array]:
    """The tensors, those that give logits for the background and the classes `keep` alone."""
    columns = [0, *(i + 1 for i in keep)]
    graph = found.arch.graph.with_head(found.head)
    rows = [op for op in graph.ops if op.kind == "rows" and op.name.startswith("detect.class.")]
    out = dict(found.tensors)
    for name in (op.inputs[0] for op in rows):
        for part in ("weight", "bias"):
            tensor = out[f"{name}.conv.{part}"]
            each = tensor.reshape(-1, found.classes, *tensor.shape[1:])[:, columns]
            out[f"{name}.conv.{part}"] = np.ascontiguousarray(each.reshape(-1, *tensor.shape[1:]))
    return out


def _shapes(found: Detector, said: PostProcessing, arch: Arch, where: str) -> Shapes | None:
    """Of each map the (width, height) of its anchors; None where they are the family's own. Raises `UserError`."""
    maps = detectors.maps(arch, found.family)
    usual = anchors.anchor_shapes(detectors.family(found.family).convention, maps, arch.input_size)
    counts = [op.cout // 4 for op in found.head.ops if op.name.startswith("detect.box.") and op.bias]
    if said.anchors is not None:
        return _of_anchors(said.anchors, said.step, usual, maps, counts, where)
    shapes = said.shapes
    if shapes is None:
        if [len(s) for s in usual] != counts:
            raise UserError(f"{where}: {counts} anchors at a position of each map, as no known detector of its family")
        return None
    if [len(s) for s in shapes] != counts:
        raise UserError(f"{where}: its anchors are of {[len(s) for s in shapes]} shapes, its layers for {counts}")
    near = [np.abs(np.array(a) - np.array(b)).max() for a, b in zip(shapes, usual, strict=True) if len(a) == len(b)]
    return None if len(near) == len(usual) and max(near) < SAME else shapes


def _of_anchors(
    given: npt.NDArray[np.float32], step: float, usual: Shapes, maps: Sequence[tuple[int, int]],
    counts: Sequence[int], where: str,
) -> Shapes | None:  # fmt: skip
    """The shapes of anchors [A, 4] (centre y, x, height, width), which must stand at the centres of the maps' cells.

    Anchors that were rounded to multiples of `step` are the family's own where those would be rounded so.
    """
    slack = SAME + step / 2
    if len(given) != sum(h * w * k for (h, w), k in zip(maps, counts, strict=True)):
        raise UserError(f"{where}: {len(given):,} anchors, and maps of {maps} with {counts} at a position")
    shapes: list[list[list[float]]] = []
    own, start = True, 0
    for (rows, columns), k, theirs in zip(maps, counts, usual, strict=True):
        part = given[start : start + rows * columns * k].reshape(rows, columns, k, 4).astype(np.float64)
        start += rows * columns * k
        y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
        centres = np.stack([y, x], -1)[:, :, None]
        sides = part[0, 0, :, 2:]
        if np.abs(part[..., :2] - centres).max() > slack or np.abs(part[..., 2:] - sides).max() > SAME:
            raise UserError(f"{where}: anchors that aren't the same at the centre of each cell of its maps")
        if not (sides > 0).all():
            raise UserError(f"{where}: anchors without a size")
        own &= len(theirs) == k and bool(np.abs(sides[:, ::-1] - np.array(theirs)).max() <= slack)
        shapes.append(sides[:, ::-1].tolist())
    return None if own else shapes
