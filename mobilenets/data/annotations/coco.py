"""COCO's JSON (cocodataset.org, "Data format"; Lin et al. 2014): boxes, polygons, run lengths, crowds. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from mobilenets.data import rle
from mobilenets.data.annotations import raw
from mobilenets.data.annotations.raw import Annotations, Key, Picture, Shape, Thing
from mobilenets.errors import UserError

KEYS = {"images", "annotations", "categories"}
IN_MOST = 0.5  # boxes whose numbers are corners, where they should be a corner and two sides
OTHERS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")  # COCO's own files that hold no boxes


def is_coco(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= KEYS


def may_be(name: str) -> bool:
    """Whether a file's name says of none of COCO's own that it holds other annotations than boxes."""
    return not PurePosixPath(name).name.startswith(OTHERS)


def read(files: Sequence[tuple[str, dict[str, Any]]]) -> Annotations:
    """Files of one data set, by name: for each split one, or several. Raises `UserError`."""
    names: dict[Key, str] = {}
    pictures: list[Picture] = []
    faults: dict[str, list[str]] = {}
    for name, value in files:
        for key, label in _categories(name, value).items():
            if names.setdefault(key, label) != label:
                raise UserError(
                    f"{name}: category {key} is {label!r}, and {names[key]!r} in another file: number them alike"
                )
        pictures += _pictures(name, value, faults)
    notes = _roughly_named(names, pictures)
    keys = tuple(sorted(names, key=lambda k: (isinstance(k, str), k)))
    labels = raw.check_labels(files[0][0], [names[k] for k in keys])
    ids = {label: key for key, label in zip(keys, labels, strict=True) if isinstance(key, int)}
    return Annotations("COCO JSON", pictures, keys, labels, ids=ids, notes=notes, faults=faults)


def _key(value: Any) -> Key | None:
    return value if type(value) is int or (isinstance(value, str) and value) else None


def _categories(name: str, value: Mapping[str, Any]) -> dict[Key, str]:
    found: dict[Key, str] = {}
    for c in raw.objects(value["categories"], f"{name}: categories"):
        key, label = _key(c.get("id")), c.get("name")
        if key is None or not isinstance(label, str):
            raise UserError(f"{name}: a category without an id and a name: {ascii(c)[:100]}")
        if found.setdefault(key, label) != label:
            raise UserError(f"{name}: two categories have the id {key}: {found[key]!r} and {label!r}")
    if not found:
        raise UserError(f"{name}: no categories, so nothing says what the boxes are of")
    return found


def _pictures(name: str, value: Mapping[str, Any], faults: dict[str, list[str]]) -> list[Picture]:
    split, near = raw.split_in(name), raw.folder_of(name)
    pictures: dict[Any, Picture] = {}
    for image in raw.objects(value["images"], f"{name}: images"):
        key, file = _key(image.get("id")), image.get("file_name")
        if key is None or not isinstance(file, str):
            raise UserError(f"{name}: an image without an id and a file_name: {ascii(image)[:100]}")
        if key in pictures:
            raise UserError(f"{name}: two images have the id {key}: {pictures[key].name} and {file}")
        size = raw.size_of(image.get("width"), image.get("height"))
        pictures[key] = Picture(file, size=size, split=split, near=near)
    nowhere, over, as_corners, known = [], 0, 0, 0
    for one in raw.objects(value["annotations"], f"{name}: annotations"):
        key = _key(one.get("image_id"))
        picture = pictures.get(key) if key is not None else None
        if picture is None:
            nowhere.append(f"annotation {ascii(one.get('id'))[:20]} of image {ascii(one.get('image_id'))[:20]}")
            continue
        x, y, w, h = raw.corners(one.get("bbox"))
        if picture.size and w > 0 and h > 0:
            wide, high = picture.size
            known += 1
            over += x + w > wide + 1 or y + h > high + 1
            as_corners += x < w <= wide + 1 and y < h <= high + 1
        picture.things.append(_thing(one, (x, y, x + w, y + h), picture, faults))
    if nowhere:
        faults.setdefault("unknown_image", []).extend(nowhere)
    if known and over > IN_MOST * known and as_corners > 0.99 * known:
        raise UserError(
            f"{name}: {over:,} of {known:,} boxes leave their images: a bbox is x, y, width, height in COCO's files, "
            "and these look like x1, y1, x2, y2"
        )
    return [*pictures.values()]


def _thing(one: Mapping[str, Any], box: tuple[float, ...], picture: Picture, faults: dict[str, list[str]]) -> Thing:
    shape: Shape = None
    said = one.get("segmentation")
    if said:
        try:
            shape = _shape(said, picture.size)
        except (ValueError, KeyError, TypeError) as e:
            where = f"{picture.name}: annotation {ascii(one.get('id'))[:20]}"
            faults.setdefault("bad_mask", []).append(f"{where} ({str(e)[:80]})")
    if not isinstance(one.get("bbox"), list) and shape is not None:  # some tools write the mask alone
        box = rle.bounds(shape) if isinstance(shape, dict) else raw.around(shape)
    area, number = raw.number(one.get("area")), one.get("id")
    key = _key(one.get("category_id"))
    return Thing(
        key="" if key is None else key,
        corners=(box[0], box[1], box[2], box[3]),
        shape=shape,
        crowd=one.get("iscrowd") in (1, True) or one.get("ignore") in (1, True),
        area=area if area > 0 and math.isfinite(area) else None,
        id=number if type(number) is int and abs(number) < 1 << 62 else None,
    )


def _shape(said: Any, size: tuple[int, int] | None) -> Shape:
    """Polygons, or run lengths as a list or as text. Raises ValueError, KeyError or TypeError for what is neither."""
    if isinstance(said, list):
        found = [p for points in said if (p := raw.polygon(points)) is not None]
        if len(found) < len(said) and not found:
            raise ValueError("a polygon needs three points of finite numbers")
        return found
    height, width = said["size"]
    if type(height) is not int or type(width) is not int or (size and (width, height) != size):
        raise ValueError(f"a mask of another size than its image's, {ascii(said['size'])[:40]}")
    if height < 1 or width < 1 or height * width > rle.MOST_PIXELS:
        raise ValueError(f"a mask of {width}x{height} pixels")
    counts = said["counts"]
    if isinstance(counts, list):
        return rle.of_counts(counts, height, width)
    rle.check(rle.from_text(counts), height, width)
    return {"size": [height, width], "counts": counts}


def _roughly_named(names: dict[Key, str], pictures: Sequence[Picture]) -> list[str]:
    """Roboflow's exports begin with a category of the whole set's name, which has no boxes: it goes, and is told of."""
    zero = names.get(0)
    if zero is None or len(names) < 2 or any(t.key == 0 for p in pictures for t in p.things):
        return []
    del names[0]
    return [f"category 0, {zero!r}, has no boxes and stands before the others, as in Roboflow's exports: left out"]
