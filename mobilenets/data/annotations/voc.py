"""Pascal VOC's XML, a file for an image (Everingham et al. 2010), as labelImg, CVAT, Roboflow write it. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from mobilenets.data.annotations import raw, xml
from mobilenets.data.annotations.raw import Annotations, Picture, Thing
from mobilenets.data.listing import Listing
from mobilenets.errors import UserError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MOST_XML = 64 << 20  # bytes of one image's file
LISTS = {"train": "train", "val": "val", "test": "test", "trainval": "train"}


def read(listing: Listing, names: Sequence[str]) -> Annotations:
    """The files `names`. Raises `UserError`.

    Corners are taken as they are, as nearly all tools write them; of VOC's own files, which count pixels from 1 on and
    name the last one inside, 1 is taken from the first corner. Objects marked as difficult are crowds: VOC scores none.
    """
    splits = _lists(listing)
    pictures, unlisted = [], []
    for name in names:
        roots = [*xml.elements(raw.content(listing, name, MOST_XML), name, ("annotation",))]
        if not roots:
            raise UserError(f"{name}: no annotation in it")
        picture = _picture(name, roots[-1])
        if splits:
            picture.split = splits.get(PurePosixPath(name).stem)
            if picture.split is None:
                unlisted.append(picture.name)
                continue
        pictures.append(picture)
    keys = raw.by_name({str(t.key) for p in pictures for t in p.things})
    faults = {"unlisted": unlisted} if unlisted else {}
    return Annotations("Pascal VOC XML", pictures, keys, raw.check_labels("Pascal VOC XML", keys), faults=faults)


def _lists(listing: Listing) -> dict[str, str]:
    """The split of each image that is in one of VOC's lists, ImageSets/Main/train.txt, by its name's stem."""
    found: dict[str, str] = {}
    for name in listing.texts:
        path = PurePosixPath(name)
        if path.parent.parts[-2:] in (("ImageSets", "Main"), ("ImageSets", "Layout")) and path.stem in LISTS:
            text = raw.content(listing, name, MOST_XML).decode("utf-8", "replace")
            for line in text.splitlines():
                if words := line.split():
                    stem = words[0]
                    if path.stem == "trainval":
                        found.setdefault(stem, "train")
                    else:
                        found[stem] = LISTS[path.stem]
    return found


def _picture(name: str, root: Element) -> Picture:
    said = xml.text(root, "filename") or PurePosixPath(name).stem
    if PurePosixPath(said).stem != PurePosixPath(name).stem and not said.strip("."):
        said = PurePosixPath(name).stem
    first = 1.0 if xml.text(root, "source/database").startswith("The VOC") else 0.0
    size = raw.size_of(xml.text(root, "size/width"), xml.text(root, "size/height"))
    things = []
    for one in root.iter("object"):
        box = one.find("bndbox")
        key = xml.text(one, "name")
        if not key:
            raise UserError(f"{name}: an object without a name")
        x1, y1, x2, y2 = (raw.number(xml.text(box, side)) for side in ("xmin", "ymin", "xmax", "ymax"))
        things.append(Thing(key, (x1 - first, y1 - first, x2, y2), crowd=xml.text(one, "difficult") in ("1", "true")))
    near = raw.folder_of(name)
    return Picture(said, things, size, raw.split_in(near) if near else None, near=near)
