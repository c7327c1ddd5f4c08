"""Annotations and the images they are of -> a data set: every box in pixels of its upright image. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets.console import many
from mobilenets.data import identity, rle
from mobilenets.data.annotations import faults as kinds
from mobilenets.data.annotations import measure
from mobilenets.data.annotations.measure import METHODS, Measure
from mobilenets.data.annotations.places import Images
from mobilenets.data.annotations.raw import Annotations, Picture, Thing, some
from mobilenets.data.boxes import Boxes, Masks
from mobilenets.data.dataset import Data, Keyed, Split
from mobilenets.data.folder import split_of
from mobilenets.data.listing import Listing
from mobilenets.data.rle import Polygon, Rle
from mobilenets.errors import UserError

SHARE, PIXEL = 1.01, 1.5  # coordinates up to the one are shares of an image, beyond the other pixels
ALIKE = 0.02  # proportions that differ by less are the same, but for rounding
SLACK = 1.0  # pixels that a box may go over its image's edge: tools round, and count from 0 or 1
SAME = 2  # decimals of a pixel that two boxes share that are one


@dataclass
class _Faults:
    """What was found, by kind."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, item: str) -> None:
        self.found.setdefault(kind, []).append(item)


@dataclass(frozen=True)
class _Found:
    """An image that is there, with what is said of it."""

    name: str
    split: str | None
    picture: Picture


def settled(source: str, said: Annotations, listing: Listing) -> Data:
    """Raises `UserError` where no image is there, or no box is left."""
    faults = _Faults({k: [*v] for k, v in said.faults.items()})
    rows = _located(source, said, listing, faults)
    relative, notes = _unit(said)
    index = {key: i for i, key in enumerate(said.keys)}
    masked = any(t.shape is not None for p in said.pictures for t in p.things)
    kept: list[tuple[_Found, Boxes]] = []
    for row, size in zip(rows, measure.each(listing, [r.name for r in rows]), strict=True):
        boxes = _boxes(row, size, relative, index, masked, faults)
        if boxes is not None:
            kept.append((row, boxes))
            if not len(boxes):
                faults.add("no_boxes", row.name)
    lines = tuple(kinds.lines(faults.found))
    if not any(len(b) for _, b in kept):
        bad = next((line for line in lines if "without boxes, kept" not in line), f"{many(len(kept), 'image')} of none")
        raise UserError(f"{source}: no boxes in {said.kind}: {bad}")
    splits = {}
    for name in ("train", "val", "test"):
        of_split = [(r, b) for r, b in kept if (r.split or "train") == name]
        if of_split:
            splits[name] = _split(name, of_split, listing)
    used = {int(c) for _, b in kept for c in np.unique(b.classes)}
    return Data(
        source, said.labels, splits,
        empty=tuple(label for i, label in enumerate(said.labels) if i not in used),
        left_out=(*said.notes, *notes, *lines),
        images=identity.summary(s.marks for s in splits.values()),
        category_ids=said.ids, faults={k: tuple(v) for k, v in faults.found.items()},
    )  # fmt: skip


def _split(name: str, rows: Sequence[tuple[_Found, Boxes]], listing: Listing) -> Split:
    names = [r.name for r, _ in rows]
    groups = None
    if any(r.picture.group is not None for r, _ in rows):
        said = [r.picture.group or f"\0{r.name}" for r, _ in rows]  # that has none is its own
        number = {g: i for i, g in enumerate(dict.fromkeys(said))}
        groups = np.array([number[g] for g in said], np.int64)
    marks = identity.marks(names, [listing.size(n) for n in names])
    return Split(name, names, [b for _, b in rows], Keyed(listing.read, names), marks=marks, groups=groups)


def _located(source: str, said: Annotations, listing: Listing, faults: _Faults) -> list[_Found]:
    """The pictures that are there, each image once in a split; what isn't, or is in none, is noted."""
    images = Images(listing)
    found: dict[tuple[str, str | None], _Found] = {}
    for p in said.pictures:
        name = images.find(p.name, p.near, p.split)
        if name is None:
            faults.add("missing", p.name)
            continue
        split = p.split or _split_of(name)
        before = found.get((name, split))
        if before is None:
            found[name, split] = _Found(name, split, p)
        else:
            faults.add("repeated", name)
            before.picture.things.extend(p.things)
    if not found:
        named = some(p.name for p in said.pictures[:2])
        raise UserError(
            f"{source}: none of its images is there, as {named or 'it names none'}; --root names the folder that holds "
            "them"
        )
    rows = [*found.values()]
    if any(r.split for r in rows):
        for r in rows:
            if r.split is None:
                faults.add("unlisted", r.name)
        rows = [r for r in rows if r.split]
    known = {r.name for r in rows} | {*faults.found.get("unlisted", ())}
    if said.kind != "masks of instances":
        for name in listing.files:
            if name not in known:
                faults.add("unannotated", name)
    return rows


def _split_of(name: str) -> str | None:
    """The split that one of an image's folders speaks of, the nearest first."""
    return next((s for folder in reversed(name.split("/")[:-1]) if (s := split_of(folder))), None)


def _unit(said: Annotations) -> tuple[bool, list[str]]:
    """Whether coordinates are shares of the image, which they show; and a line where the format has it otherwise."""
    corners = np.array([t.corners for p in said.pictures for t in p.things], np.float64).reshape(-1, 4)
    corners = corners[np.isfinite(corners).all(1)]
    if not len(corners):
        return said.relative, []
    most = np.abs(corners).max(1)
    if said.relative and (most > PIXEL).mean() > 0.5:
        return False, [f"boxes are in pixels, where {said.kind} has shares of the image: read as pixels"]
    if not said.relative and (most <= SHARE).all() and (corners[:, 2] > corners[:, 0]).any():
        return True, ["all boxes are in shares of the image, from 0 to 1: read so"]
    return said.relative, []


@dataclass(frozen=True)
class _Way:
    """How what is said of an image becomes pixels of the upright one: scaled to `size`, then turned as `turn` says."""

    scale: npt.NDArray[np.float64]
    size: tuple[int, int]
    turn: Measure | None

    def points(self, given: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        scaled = given * self.scale
        return scaled if self.turn is None else self.turn.turn(scaled, self.size)

    def mask(self, given: Rle) -> Rle:
        (made,) = Masks([given], (given["size"][1], given["size"][0])).resized(self.size)
        if self.turn is None:
            return made
        turned = Image.fromarray(rle.decode(made)).transpose(METHODS[self.turn.orientation])
        return rle.encode(np.asarray(turned))


def _way(row: _Found, size: Measure | None, relative: bool, faults: _Faults) -> tuple[_Way, tuple[int, int]] | None:
    """How an image's boxes are to be read, and its size; None, and noted, of one whose boxes can't be its own."""
    said, one = row.picture.size, np.ones(2)
    if size is None:
        if said is None:
            faults.add("unreadable", row.name)
            return None
        size = Measure(said)  # a check of the images says more
    upright, lying = size.upright, size.size
    if relative:
        if size.orientation != 1 and not row.picture.upright:
            faults.add("maybe_turned", row.name)
        return _Way(np.array(upright, np.float64), upright, None), upright
    if said is None or said == upright:
        told = upright != lying and said is not None
        if size.orientation != 1 and not told and not row.picture.upright:
            faults.add("maybe_turned", row.name)
        return _Way(one, upright, None), upright
    what = f"{row.name} ({said[0]}x{said[1]}, is {upright[0]}x{upright[1]})"
    if said == lying:
        faults.add("turned", row.name)
        return _Way(one, lying, size), upright
    for actual, turn in ((upright, None), (lying, size)):
        if abs(math.log((said[0] / said[1]) / (actual[0] / actual[1]))) < ALIKE:
            faults.add("resized", what)
            return _Way(np.array(actual) / np.array(said), actual, turn), upright
    far = np.array([t.corners[2:] for t in row.picture.things], np.float64).reshape(-1, 2)
    if (far <= np.array(upright) + SLACK).all():
        faults.add("misstated", what)
        return _Way(one, upright, None), upright
    faults.add("mismatched", what)
    return None


def _boxes(
    row: _Found, measured: Measure | None, relative: bool, index: dict[str | int, int], masked: bool, faults: _Faults
) -> Boxes | None:
    found = _way(row, measured, relative, faults)
    if found is None:
        return None
    way, size = found
    things = _known(row, index, faults)
    corners = np.array([t.corners for t in things], np.float64).reshape(-1, 2, 2)
    sides = corners[:, 1] - corners[:, 0]
    good = np.isfinite(corners).all((1, 2)) & (np.nan_to_num(sides) > 0).all(1)
    moved = way.points(corners)
    moved = np.concatenate([moved.min(1), moved.max(1)], 1)  # a turned picture's corners are others
    limits = np.array([*size, *size], np.float64)
    clipped = np.clip(moved, 0, limits).astype(np.float32)
    inside = (clipped[:, 2:] > clipped[:, :2]).all(1)
    over = (np.abs(moved - np.clip(moved, 0, limits)) > SLACK).any(1)
    for kind, which in (("degenerate", ~good), ("outside", good & ~inside), ("clipped", good & inside & over)):
        for i in np.flatnonzero(which):
            faults.add(kind, f"{row.name}: {', '.join(f'{v:.6g}' for v in things[i].corners)}")
    keep = np.flatnonzero(good & inside)
    things = [things[i] for i in keep]
    xyxy = clipped[keep]
    classes = np.array([index[t.key] for t in things], np.int64)
    rounded = np.round(np.column_stack([xyxy, classes]), SAME)
    if len(np.unique(rounded, axis=0)) < len(rounded):
        first = np.unique(rounded, axis=0, return_index=True)[1]
        for i in np.setdiff1d(np.arange(len(rounded)), first):
            faults.add("duplicate", f"{row.name}: {', '.join(f'{v:.6g}' for v in xyxy[i].tolist())}")
    shapes = [_shape(t, way, size) for t in things]
    areas = [_area(t, s, box, way, relative) for t, s, box in zip(things, shapes, xyxy, strict=True)]
    masks = None
    if masked:
        for t in things:
            if t.shape is None:
                faults.add("no_mask", row.name)
        masks = Masks([_rectangle(box) if s is None else s for s, box in zip(shapes, xyxy, strict=True)], size)
    ids = [t.id for t in things if t.id is not None]
    return Boxes.of(
        xyxy, classes, size, crowd=[t.crowd for t in things], area=areas, masks=masks,
        ids=ids if len(ids) == len(things) else None,
    )  # fmt: skip


def _known(row: _Found, index: dict[str | int, int], faults: _Faults) -> list[Thing]:
    known = []
    for t in row.picture.things:
        if t.key in index:
            known.append(t)
        else:
            faults.add("unknown_class", f"{row.name}: {ascii(t.key)[:60]}")
    return known


def _shape(t: Thing, way: _Way, size: tuple[int, int]) -> Rle | list[Polygon] | None:
    if t.shape is None:
        return None
    if not isinstance(t.shape, dict):
        return [way.points(p) for p in t.shape]
    made = way.mask(t.shape)
    return made if made["size"] == [size[1], size[0]] else None


def _area(
    t: Thing, shape: Rle | list[Polygon] | None, box: npt.NDArray[np.float32], way: _Way, relative: bool
) -> float:
    if t.area is not None and not relative:
        return t.area * float(way.scale.prod())
    if shape is None:
        return float((box[2] - box[0]) * (box[3] - box[1]))
    return float(rle.area(shape)) if isinstance(shape, dict) else rle.polygon_area(shape)


def _rectangle(box: npt.NDArray[np.float32]) -> list[Polygon]:
    x1, y1, x2, y2 = box.tolist()
    return [np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)]
