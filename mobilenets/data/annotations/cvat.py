"""CVAT's own XML, "CVAT for images 1.1" (docs.cvat.ai): one file for all images. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mobilenets.data import rle
from mobilenets.data.annotations import raw, xml
from mobilenets.data.annotations.raw import Annotations, Picture, Shape, Thing
from mobilenets.data.folder import split_of
from mobilenets.data.listing import Listing
from mobilenets.errors import UserError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def read(listing: Listing, name: str) -> Annotations:
    """One export. Corners are of the upright picture, as CVAT shows it. Raises `UserError`; of videos too."""
    pictures: list[Picture] = []
    order: list[str] = []
    faults: dict[str, list[str]] = {}
    content = raw.content(listing, name, xml.MOST_XML)
    for element in xml.elements(content, name, ("labels", "image", "track")):
        if element.tag == "track":
            raise UserError(f'{name}: an export of a video: export its frames, as "CVAT for images" or COCO')
        if element.tag == "labels":
            order += [label for one in element.iter("label") if (label := xml.text(one, "name"))]
        else:
            pictures.append(_picture(element, raw.folder_of(name), faults))
    used = {str(t.key) for p in pictures for t in p.things}
    keys = tuple(dict.fromkeys(order)) or raw.by_name(used)
    return Annotations("CVAT XML", pictures, keys, raw.check_labels(name, keys), faults=faults)


def _picture(element: Element, near: str, faults: dict[str, list[str]]) -> Picture:
    at = element.attrib
    size = raw.size_of(at.get("width"), at.get("height"))
    picture = Picture(at.get("name", ""), size=size, split=split_of(at.get("subset", "")), near=near, upright=True)
    other = []
    for one in element:
        key = one.attrib.get("label", "")
        if one.tag == "box":
            picture.things.append(Thing(key, _box(one)))
        elif one.tag == "polygon":
            points = raw.polygon([v for pair in one.attrib.get("points", "").split(";") for v in pair.split(",")])
            shape: Shape = None if points is None else [points]
            picture.things.append(Thing(key, raw.corners(None) if points is None else raw.around([points]), shape))
        elif one.tag == "mask":
            try:
                mask = _mask(one, size)
                picture.things.append(Thing(key, rle.bounds(mask), mask))
            except ValueError as e:
                faults.setdefault("bad_mask", []).append(f"{picture.name} ({e})")
        elif one.tag not in ("tag", "attribute"):
            other.append(one.tag)
    if other:
        faults.setdefault("other_shape", []).append(f"{picture.name}: {', '.join(sorted({*other}))}")
    return picture


def _box(one: Element) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (raw.number(one.attrib.get(side)) for side in ("xtl", "ytl", "xbr", "ybr"))
    degrees = raw.number(one.attrib.get("rotation", "0"))
    if not degrees or not np.isfinite([x1, y1, x2, y2, degrees]).all():
        return x1, y1, x2, y2
    about = (x1 + x2) / 2, (y1 + y2) / 2
    return raw.around([raw.turned_box(x1, y1, x2 - x1, y2 - y1, degrees, about)])


def _mask(one: Element, size: tuple[int, int] | None) -> rle.Rle:
    """Run lengths along the rows of a part of the image. Raises ValueError for what can't be one."""
    numbers = [raw.number(one.attrib.get(side)) for side in ("left", "top", "width", "height")]
    if size is None or not np.isfinite(numbers).all():
        raise ValueError("a mask without a place")
    left, top, width, height = map(int, numbers)
    if min(left, top) < 0 or min(width, height) < 1 or left + width > size[0] or top + height > size[1]:
        raise ValueError("a mask outside of its image")
    if size[0] * size[1] > rle.MOST_PIXELS:
        raise ValueError(f"a mask of {size[0]}x{size[1]} pixels")
    counts = np.array([raw.number(v) for v in one.attrib.get("rle", "").split(",")])
    if not np.isfinite(counts).all():
        raise ValueError("run lengths that can't be")
    whole = counts.astype(np.int64)
    rle.check(whole, height, width)
    mask = np.zeros((size[1], size[0]), bool)
    mask[top : top + height, left : left + width] = np.repeat(np.arange(len(whole)) % 2 == 1, whole).reshape(
        height, width
    )
    return rle.encode(mask)
