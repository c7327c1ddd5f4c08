"""Masks beside the photos, a grey value for each object, as Penn-Fudan has them (Wang et al. 2007). No torch."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from mobilenets.data import rle
from mobilenets.data.annotations.raw import Annotations, Picture, Thing, by_name
from mobilenets.data.listing import Listing
from mobilenets.errors import UserError
from mobilenets.model.images import FORMATS, MAX_PIXELS, BadImage

MOST_OBJECTS = 2_000  # grey values of one mask; a photo has more kinds of pixels
VOID = 255  # in 8 bits: what belongs to nothing, as in VOC's masks
CLASSES = {"pedmasks": "person"}  # by the folder, of a set that has one class; others' are called "object"
ENDS = ("_mask", "-mask", "_instance", "")


def masks_of(listing: Listing) -> dict[str, str]:
    """The mask of each photo that has one, by the photo's name: a PNG in a folder whose name ends in "masks"."""
    masks = {n for n in listing.files if _in_masks(n) and n.lower().endswith(".png")}
    stems: dict[str, list[str]] = {}
    for name in masks:
        stem = PurePosixPath(name).stem
        for end in ENDS:
            if stem.endswith(end):
                stems.setdefault(stem.removesuffix(end), []).append(name)
    found = {}
    for image in listing.files:
        near = stems.get(PurePosixPath(image).stem, []) if not _in_masks(image) else []
        if len(near) > 1:  # splits may have files of the same names
            parents = PurePosixPath(image).parents
            near = [n for n in near if PurePosixPath(n).parents[1] in (parents[0], parents[min(1, len(parents) - 1)])]
        if near:
            found[image] = near[0]
    return found


def _in_masks(name: str) -> bool:
    return any(part.lower().endswith("masks") for part in PurePosixPath(name).parent.parts)


def read(listing: Listing, masks: Mapping[str, str]) -> Annotations:
    """Each grey value above 0 is an object. Raises `UserError` for a mask that can't be read, or is none."""
    pictures = []
    for image, name in masks.items():
        folder = next(p for p in reversed(PurePosixPath(name).parent.parts) if p.lower().endswith("masks"))
        label = CLASSES.get(folder.lower(), "object")
        values = _values(listing, name)
        kinds = np.unique(values)
        kinds = kinds[(kinds > 0) & ~((kinds == VOID) & (values.dtype == np.uint8) & (len(kinds) > 2))]
        if len(kinds) > MOST_OBJECTS:
            raise UserError(f"{name}: {len(kinds):,} grey values, so it is no mask of objects")
        shapes = [rle.encode(values == k) for k in kinds]
        things = [Thing(label, rle.bounds(s), s) for s in shapes]
        pictures.append(Picture(image, things, size=(values.shape[1], values.shape[0])))
    keys = by_name({str(t.key) for p in pictures for t in p.things})
    return Annotations("masks of instances", pictures, keys, keys)


def _values(listing: Listing, name: str) -> np.ndarray[tuple[int, int], np.dtype[np.integer]]:
    try:
        source = listing.read(name)
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS) as mask:
            if mask.width * mask.height > MAX_PIXELS:
                raise UserError(f"{name}: {mask.width}x{mask.height} pixels, over the limit of {MAX_PIXELS:,}")
            if mask.mode not in ("1", "L", "P", "I", "I;16"):
                raise UserError(f"{name}: a mask of colours ({mask.mode}); each object needs a grey value of its own")
            return np.asarray(mask)
    except BadImage as e:
        raise UserError(str(e)) from e
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise UserError(f"{name}: can't be read ({str(e)[:100]})") from e
