"""Folders that are no classes: what a download holds besides, one level too high, classes in the files' names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import PurePosixPath

# What folders of a download are called that hold all its images, or what belongs to them; and what a class may be
# called too, so that one alone says nothing.
NOT_CLASSES = {
    "image", "img", "jpeg", "jpegimage", "annotation", "annot", "segmentation", "segmentationclas", "trimap",
    "groundtruth", "gt", "bbox", "heatmap", "keypoint",
}  # fmt: skip
PERHAPS = {"photo", "picture", "original", "thumbnail", "label", "mask", "depth", "edge", "contour", "box", "rgb"}
PHOTOS = {"image", "img", "jpeg", "jpegimage", "photo", "picture", "original", "rgb"}  # of those, where photos are
SAME = 0.9  # of the names of two classes
MANY = 20  # folders beyond which they aren't images and their masks, and pairs are too many to compare
LEAST = 4  # images below which names say nothing
NUMBERED = re.compile(r"(.*?[^\W\d_].*?)[\s_.-]*\(?\d+\)?")  # Abyssinian_12, great pyrenees (3)


def class_of(name: str) -> str | None:
    """The class that a file's name says before its number: "Abyssinian" of "Abyssinian_12.jpg"."""
    found = NUMBERED.fullmatch(PurePosixPath(name).stem)
    return found[1] if found else None


def classes_in_names(names: Iterable[str]) -> Counter[str]:
    """How many images there are of each class, by their names; empty where most don't say one, or all the same."""
    every = list(names)
    found = Counter(c for c in map(class_of, every) if c)
    enough = len(found) > 1 and found.total() >= max(SAME * len(every), 2 * len(found))
    return found if enough else Counter()


def doubts(source: str, by_class: Mapping[str, Sequence[str]]) -> list[str]:
    """Why the folders of `source` may not be classes, a line each. `by_class`: each one's files, below its folder."""
    strange = [c for c in by_class if _singular(c) in NOT_CLASSES | PERHAPS]
    out = []
    if len(strange) > 1 or any(_singular(c) in NOT_CLASSES for c in strange):
        out.append(f"{', '.join(strange)}: {'no name' if len(strange) == 1 else 'no names'} of a class")
    pairs = combinations(by_class, 2) if len(by_class) <= MANY else ()
    twins = next(((a, b) for a, b in pairs if _twins(by_class, a, b)), None)
    if twins:
        out.append(f"{twins[0]} and {twins[1]} hold files of the same names")
    if not out:
        return []
    root = source.rstrip("/")
    for c, files in sorted(by_class.items(), key=lambda item: (_singular(item[0]) not in PHOTOS, -len(item[1]))):
        inside = Counter(f.split("/")[0] for f in files if "/" in f)
        if len(inside) > 1 and inside.total() >= SAME * len(files):
            return [*out, f"train on {root}/{c}? It has a folder for each of {len(inside)} classes"]
        if c in strange and (named := classes_in_names(files)):
            return [*out, f"{root}/{c} --class-from-name takes {len(named)} classes from the files' names"]
    return out


def _singular(name: str) -> str:
    word = re.sub(r"[\W_]+", "", name.casefold())
    return word.removesuffix("es") if word.endswith("xes") else word.removesuffix("s")


def _twins(by_class: Mapping[str, Sequence[str]], a: str, b: str) -> bool:
    """Whether two folders hold the same names, as images and their masks do; images that are numbered may do so too."""
    stems = [{str(PurePosixPath(f).with_suffix("")) for f in by_class[c]} for c in (a, b)]
    fewer = min(map(len, stems))
    if fewer < LEAST or len(stems[0] & stems[1]) < SAME * fewer:
        return False
    kinds = [{PurePosixPath(f).suffix.lower() for f in by_class[c]} for c in (a, b)]
    return not kinds[0] & kinds[1] or len({class_of(s) for s in stems[0] & stems[1]} - {None}) > 1
