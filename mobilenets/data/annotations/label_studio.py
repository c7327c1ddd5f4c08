"""Label Studio's JSON and JSON-MIN (labelstud.io, "Export"): rectangles and polygons in percent. No torch."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from mobilenets.data.annotations import raw
from mobilenets.data.annotations.raw import Annotations, Picture, Shape, Thing
from mobilenets.data.listing import Listing
from mobilenets.errors import UserError

UPLOADED = re.compile(r"[0-9a-f]{6,8}-(.+)")  # what it puts before the name of an uploaded file
SHAPES = ("rectanglelabels", "polygonlabels")
OTHER = ("brushlabels", "ellipselabels", "keypointlabels", "bitmasklabels", "rectangle", "polygon")
PERCENT = 100.0


def is_export(value: Any) -> bool:
    """Whether a JSON value is an export: a list of tasks, each with its data and its annotations, or small ones."""
    first = value[0] if isinstance(value, list) and value else None
    if not isinstance(first, dict):
        return False
    return ("annotations" in first and "data" in first) or ("annotation_id" in first and "id" in first)


def read(listing: Listing, name: str, tasks: Any) -> Annotations:
    """One export. Of several people's annotations of an image the one marked as true counts, or the first.

    Raises `UserError`.
    """
    pictures: list[Picture] = []
    faults: dict[str, list[str]] = {}
    several = 0
    known = {PurePosixPath(n).name for n in listing.files}
    for task in raw.objects(tasks, name):
        results, more = _results(task)
        several += more
        said = _image(task)
        if said is None:
            raise UserError(f"{name}: a task without an image: {ascii(task)[:100]}")
        picture = Picture(_file(said, known), near=raw.folder_of(name), upright=True)
        for result in results:
            _add(picture, result, faults)
        pictures.append(picture)
    keys = raw.by_name({str(t.key) for p in pictures for t in p.things})
    notes = [f"{several:,} images have annotations of several people: one's count"] if several else []
    labels = raw.check_labels(name, keys)
    return Annotations("Label Studio JSON", pictures, keys, labels, True, notes=notes, faults=faults)


def _results(task: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], bool]:
    """The shapes of a task, and whether several people drew some."""
    given = task.get("annotations")
    if isinstance(given, list):
        done = [a for a in given if isinstance(a, dict) and not a.get("was_cancelled")]
        chosen = next((a for a in done if a.get("ground_truth")), done[0] if done else {})
        results = chosen.get("result")
        return [r for r in results if isinstance(r, dict)] if isinstance(results, list) else [], len(done) > 1
    small: list[Mapping[str, Any]] = []  # JSON-MIN: the shapes of each control beside the image, their values alone
    for value in task.values():
        for one in value if isinstance(value, list) else ():
            if isinstance(one, dict):
                kind = next((k for k in (*SHAPES, *OTHER) if k in one), None)
                small += [{"type": kind, "value": one}] if kind else []
    return small, False


def _image(task: Mapping[str, Any]) -> str | None:
    """Where a task's image is, as far as it says."""
    data = task.get("data", task)
    texts = [v for v in _texts(data) if PurePosixPath(urllib.parse.urlsplit(v).path).suffix or "?d=" in v]
    return texts[0] if texts else None


def _texts(data: Any) -> Iterator[str]:
    if isinstance(data, dict):
        for key in ("image", "img", "url"):
            if isinstance(data.get(key), str):
                yield data[key]
        yield from (v for k, v in data.items() if isinstance(v, str) and k not in ("image", "img", "url"))


def _file(said: str, known: set[str]) -> str:
    """An address, or the path of an upload or of local storage -> the path of the file as it was before."""
    try:
        at = urllib.parse.urlsplit(said)
    except ValueError:
        return said
    path = urllib.parse.parse_qs(at.query).get("d", [urllib.parse.unquote(at.path)])[0]
    name = PurePosixPath(path).name
    before = UPLOADED.fullmatch(name)
    return before[1] if before and name not in known else path


def _add(picture: Picture, result: Mapping[str, Any], faults: dict[str, list[str]]) -> None:
    kind, value = result.get("type"), result.get("value")
    if kind in OTHER:
        faults.setdefault("other_shape", []).append(f"{picture.name}: {kind}")
    if kind not in SHAPES or not isinstance(value, dict):
        return
    picture.size = raw.size_of(result.get("original_width"), result.get("original_height")) or picture.size
    if picture.size is None:
        picture.size = raw.size_of(value.get("original_width"), value.get("original_height"))
    labels = value.get(kind)
    if not isinstance(labels, list) or not labels or not isinstance(labels[0], str):
        faults.setdefault("unlabelled", []).append(picture.name)
        return
    shape: Shape = None
    if kind == "polygonlabels":
        found = raw.polygon(_flat(value.get("points")))
        box = raw.corners(None)
        if found is not None:
            shape = [found / PERCENT]
            box = raw.around(shape)
    else:
        box = _rectangle(value, picture.size)
    picture.things.append(Thing(labels[0], box, shape))


def _flat(points: Any) -> list[Any] | None:
    """Pairs one after another; None of what isn't pairs."""
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        return None
    return [v for p in points for v in p]


def _rectangle(value: Mapping[str, Any], size: tuple[int, int] | None) -> tuple[float, float, float, float]:
    """A rectangle in percent as shares; one that is turned, about its first corner, as the box around it."""
    x, y, w, h = (raw.number(value.get(k)) / PERCENT for k in ("x", "y", "width", "height"))
    degrees = raw.number(value.get("rotation", 0))
    if not degrees or not np.isfinite([x, y, w, h, degrees]).all():
        return x, y, x + w, y + h
    wide, high = size or (1, 1)  # it is turned in pixels
    turned = raw.turned_box(x * wide, y * high, w * wide, h * high, degrees, (x * wide, y * high))
    return _shares(turned, (wide, high))


def _shares(points: Any, size: Sequence[int]) -> tuple[float, float, float, float]:
    return raw.around([points / np.array(size)])
