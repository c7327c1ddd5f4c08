"""Which kind of annotations a folder, a zip or a file holds. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from mobilenets.data.annotations import coco, cvat, instance_masks, label_studio, raw, rows, voc, xml, yolo
from mobilenets.data.annotations.raw import Annotations
from mobilenets.data.folder import TABLES
from mobilenets.data.listing import Listing
from mobilenets.data.source import Reading
from mobilenets.data.table import Table
from mobilenets.errors import UserError

MOST_JSON = 64  # files of JSON that are looked into, the largest first
MOST_XML_SEEN = 8
KNOWN = (
    "COCO JSON, Pascal VOC XML, YOLO text, CSV with a row for each box, Label Studio JSON, CVAT XML, or masks beside "
    "the images"
)


def find(source: str, listing: Listing, reading: Reading, only: str = "") -> Annotations | None:
    """What is said of the images, by the first kind that is there; None where none is.

    `only`: the one file that was given, by its name. What other kinds there are is noted. Raises `UserError`.
    """
    notes = [n for n in listing.notes if not only or n == only]
    values = _json(listing, notes)
    found: list[tuple[str, Any]] = []
    if of_coco := [(n, v) for n, v in values if coco.is_coco(v)]:
        found.append(("COCO JSON", lambda: coco.read(_apart(of_coco))))
    of_cvat, of_voc = _xml(listing, notes)
    if of_cvat:
        found.append(("CVAT XML", lambda: cvat.read(listing, _one(of_cvat))))
    if of_voc:
        found.append(("Pascal VOC XML", lambda: voc.read(listing, of_voc)))
    if studio := [(n, v) for n, v in values if label_studio.is_export(v)]:
        name = _one([n for n, _ in studio])
        found.append(("Label Studio JSON", lambda: label_studio.read(listing, name, studio[0][1])))
    if tables := _tables(listing, only):
        found.append(("a table of boxes", lambda: rows.read(tables, reading)))
    if not only or only.lower().endswith((".yaml", ".yml")):
        described, beside = yolo.described(listing, only), yolo.rows_beside(listing)
        if described or yolo.is_yolo(listing, beside):
            found.append(("YOLO text", lambda: yolo.read(listing, described, beside)))
        if not only and (masks := instance_masks.masks_of(listing)):
            found.append(("masks of instances", lambda: instance_masks.read(listing, masks)))
    if not found:
        return None
    if found[0][0] != "a table of boxes" and reading.columns:
        raise UserError(f"{source}: --{next(iter(reading.columns))}-column is for tables, and this is {found[0][0]}")
    said: Annotations = found[0][1]()
    if others := [kind for kind, _ in found[1:]]:
        said.notes.append(f"{said.kind} was read; there is {' and '.join(others)} too, which wasn't")
    return said


def _json(listing: Listing, notes: Sequence[str]) -> list[tuple[str, Any]]:
    names = [n for n in notes if n.lower().endswith(".json") and coco.may_be(n)]
    largest = sorted(names, key=listing.size, reverse=True)[:MOST_JSON]
    return [(n, raw.parsed(listing, n)) for n in names if n in largest]


def _xml(listing: Listing, notes: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files of CVAT, and those of VOC, by their first element."""
    of_cvat: list[str] = []
    of_voc: list[str] = []
    names = [n for n in notes if n.lower().endswith(".xml")]
    for i, name in enumerate(names):
        if i >= MOST_XML_SEEN and of_voc:  # as those before: one that isn't is told of when it is read
            of_voc.append(name)
            continue
        begin = raw.content(listing, name, xml.MOST_XML)[:4000]
        if b"<annotations" in begin:
            of_cvat.append(name)
        elif b"<annotation" in begin or b"<!ENTITY" in begin:
            of_voc.append(name)
    return of_cvat, of_voc


def _tables(listing: Listing, only: str) -> list[Table]:
    names = [n for n in listing.tables if (not only or n == only) and n.lower().endswith(TABLES)]
    return [t for n in names if rows.is_boxes(t := rows.table_of(listing, n))]


def _one(names: Sequence[str]) -> str:
    if len(names) > 1:
        raise UserError(f"{names[0]} and {names[1]} are both whole exports: give one of them")
    return names[0]


def _apart(files: Sequence[tuple[str, Any]]) -> Sequence[tuple[str, Any]]:
    """COCO's files, of which no two may annotate one image of a split. Raises `UserError`."""
    seen: dict[tuple[str | None, str, str], str] = {}
    for name, value in files:
        for image in raw.objects(value["images"], f"{name}: images"):
            key = raw.split_in(name), raw.folder_of(name), str(image.get("file_name"))
            if (before := seen.setdefault(key, name)) != name:
                raise UserError(
                    f"{before} and {name} both annotate {PurePosixPath(key[2]).name}: give one of them, or call each "
                    "by its split"
                )
    return files
