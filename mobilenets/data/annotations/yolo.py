"""YOLO's text: a file for an image, a line for each object, in shares of the image (docs.ultralytics.com). No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from mobilenets.data.annotations import raw
from mobilenets.data.annotations.raw import Annotations, Picture, Thing
from mobilenets.data.folder import slashed
from mobilenets.data.listing import Listing
from mobilenets.errors import UserError, needed_by

MOST_YAML = 1 << 20  # bytes
MOST_ROWS = 64 << 20  # bytes of one image's file
SPLITS = ("train", "val", "test")
NOT_ROWS = (
    "classes",
    "train",
    "val",
    "test",
    "trainval",
    "readme",
    "readme.roboflow",
    "readme.dataset",
    "requirements",
)
LOOKED_AT = 20  # files of text that tell whether a folder is of this kind


def described(listing: Listing, only: str = "") -> tuple[str, dict[str, Any]] | None:
    """The data.yaml, by its name, and what it says; None where there is none. Raises `UserError` for several."""
    found = []
    for name in listing.notes:
        if name.lower().endswith((".yaml", ".yml")) and (not only or name == only):
            value = _yaml(raw.content(listing, name, MOST_YAML), name)
            if isinstance(value, dict) and isinstance(value.get("names"), list | dict):
                found.append((name, value))
    if len(found) > 1:
        found = [f for f in found if PurePosixPath(f[0]).stem in ("data", "dataset")] or found
    if len(found) > 1:
        raise UserError(f"{found[0][0]} and {found[1][0]} both name classes: give one of them")
    return found[0] if found else None


def _yaml(content: bytes, name: str) -> Any:
    with needed_by("reading YAML"):
        import yaml
    try:
        return yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise UserError(f"{name}: not readable as YAML: {' '.join(str(e).split())[:200]}") from e


def rows_beside(listing: Listing) -> dict[str, str]:
    """The file of text of each image that has one, by the image's name."""
    texts = {name for name in listing.texts if PurePosixPath(name).stem.lower() not in NOT_ROWS}
    found = {}
    for image in listing.files:
        text = next((t for t in _candidates(image) if t in texts), None)
        if text is not None:
            found[image] = text
    return found


def is_yolo(listing: Listing, beside: Mapping[str, str]) -> bool:
    """Whether what lies beside the images are rows of numbers."""
    for text in [*beside.values()][:LOOKED_AT]:
        words = raw.content(listing, text, MOST_ROWS)[:1000].split(b"\n")[0].split()
        if words:
            return len(words) >= 5 and all(not math.isnan(raw.number(w.decode("utf-8", "replace"))) for w in words)
    return False


def _candidates(image: str) -> Iterator[str]:
    path = PurePosixPath(image)
    parts, own = list(path.parent.parts), f"{path.stem}.txt"
    for i in reversed(range(len(parts))):
        if parts[i].lower() == "images":
            yield "/".join([*parts[:i], "labels", *parts[i + 1 :], own])
    yield "/".join([*parts, own])
    yield "/".join([*parts, "labels", own])


def read(listing: Listing, description: tuple[str, dict[str, Any]] | None, beside: Mapping[str, str]) -> Annotations:
    """All images of the folders that data.yaml names, or of those where some image has rows. Raises `UserError`.

    An image without a file has no objects.
    """
    where = _split_of_images(listing, description[1]) if description else {}
    if not where:
        homes = {PurePosixPath(i).parent for i in beside}
        where = {i: None for i in listing.files if PurePosixPath(i).parent in homes}
    keypoints = bool(description and description[1].get("kpt_shape"))
    pictures = []
    for image, split in where.items():
        text = beside.get(image)
        things = [] if text is None else [*_rows(raw.content(listing, text, MOST_ROWS), text, keypoints)]
        pictures.append(Picture(image, things, split=split))
    numbers = sorted({int(t.key) for p in pictures for t in p.things})
    names, notes = _names(listing, description, numbers)
    keys = tuple(names)
    labels = raw.check_labels(description[0] if description else "YOLO text", [*names.values()])
    if numbers and numbers[0] == 1 and numbers[-1] == len(keys) and keys == tuple(range(len(keys))):
        raise UserError(
            f"the rows' classes go from 1 to {numbers[-1]}, and {len(keys)} are named: YOLO's first class is 0; "
            "number them from 0, or name the one before them too"
        )
    ids = dict(zip(labels, keys, strict=True))
    return Annotations("YOLO text", pictures, keys, labels, True, ids=ids, notes=notes)


def _names(
    listing: Listing, description: tuple[str, dict[str, Any]] | None, numbers: Sequence[int]
) -> tuple[dict[int, str], list[str]]:
    """The classes' names by number: of data.yaml, of classes.txt, or the numbers themselves, which is told of."""
    if description:
        said = description[1]["names"]
        pairs = list(said.items() if isinstance(said, dict) else enumerate(said))
        if not all(type(k) is int and k >= 0 for k, _ in pairs):
            raise UserError(f"{description[0]}: names has to give each class's number, from 0 on, and its name")
        return {int(k): str(v) for k, v in sorted(pairs)}, []
    for name in listing.texts:
        if PurePosixPath(name).name.lower() == "classes.txt":
            lines = raw.content(listing, name, MOST_YAML).decode("utf-8-sig", "replace").splitlines()
            return dict(enumerate(line.strip() for line in lines if line.strip())), []
    if numbers and numbers[-1] > raw.MOST_CLASSES:
        raise UserError(f"a row's class is {numbers[-1]:,}, over the limit of {raw.MOST_CLASSES:,}")
    begins = f", of which {numbers[0]} is the first" if numbers and numbers[0] else ""
    note = f"neither data.yaml nor classes.txt names the classes: they are called by their numbers{begins}"
    return {n: str(n) for n in numbers}, [note]


def _rows(content: bytes, name: str, keypoints: bool) -> Iterator[Thing]:
    """Boxes (class, centre, sides) and outlines (class, x, y, x, y, ...). Raises `UserError` for other rows."""
    for n, line in enumerate(content.decode("utf-8-sig", "replace").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        key, values = raw.number(words[0]), [raw.number(w) for w in words[1:]]
        if key != key or key < 0 or key != int(key) or len(values) < 4:
            raise UserError(f"{name}: line {n} is {line[:60]!r}: YOLO's are a class's number, and x y width height")
        if len(values) == 4 or keypoints:
            x, y, w, h = values[:4]
            yield Thing(int(key), (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
        elif len(values) % 2 == 0:
            points = np.array(values).reshape(-1, 2)
            if np.isfinite(points).all():
                yield Thing(int(key), raw.around([points]), [points])
            else:
                yield Thing(int(key), raw.corners(None))
        else:
            raise UserError(
                f"{name}: line {n} has {len(words)} numbers: a box has 5, an outline 7 or more, an odd number (a "
                "network's own predictions, with their scores, are no labels)"
            )


def _split_of_images(listing: Listing, said: Mapping[str, Any]) -> dict[str, str | None]:
    """The split of each image by the folders, or lists, that data.yaml names, as far as they are there."""
    found: dict[str, str | None] = {}
    folders = sorted({PurePosixPath(i).parent.as_posix() for i in listing.files})
    for split in SPLITS:
        entry = said.get(split, said.get("valid") if split == "val" else None)
        for one in entry if isinstance(entry, list) else [entry]:
            if isinstance(one, str):
                for image in _under(listing, folders, one):
                    found.setdefault(image, split)
    return found


def _under(listing: Listing, folders: Sequence[str], entry: str) -> list[str]:
    """The images of a folder, or of a list, that data.yaml names from wherever it once was."""
    parts = [p for p in slashed(entry).split("/") if p not in ("", ".", "..")]
    if entry.lower().endswith(".txt"):
        lists = [t for t in listing.texts if PurePosixPath(t).name == parts[-1]]
        lines = raw.content(listing, lists[0], MOST_ROWS).decode("utf-8", "replace").split("\n") if lists else []
        wanted = {PurePosixPath(slashed(line.strip())).name for line in lines if line.strip()}
        return [i for i in listing.files if PurePosixPath(i).name in wanted]
    for k in range(len(parts)):
        tail = "/".join(parts[k:])
        homes = [f for f in folders if f"/{f}/".endswith(f"/{tail}/") or f"/{tail}/" in f"/{f}/"]
        if homes:
            return [i for i in listing.files if PurePosixPath(i).parent.as_posix() in homes]
    return []
