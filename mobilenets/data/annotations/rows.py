"""Tables with a row for each box, as CSV: of TensorFlow, Open Images, Kaggle. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from mobilenets.data import tables, text_tables
from mobilenets.data.annotations import raw
from mobilenets.data.annotations.raw import Annotations, Picture, Thing
from mobilenets.data.folder import split_of
from mobilenets.data.listing import Listing
from mobilenets.data.source import Reading
from mobilenets.data.table import Cell, Table, called
from mobilenets.errors import UserError, unknown

# What columns are called, letters and digits alone.
LEFT = ("x1", "xmin", "left", "xtl", "bboxx1", "minx", "x0")
TOP = ("y1", "ymin", "top", "ytl", "bboxy1", "miny", "y0")
RIGHT = ("x2", "xmax", "right", "xbr", "bboxx2", "maxx")
BOTTOM = ("y2", "ymax", "bottom", "ybr", "bboxy2", "maxy")
X, Y = ("x", "bboxx", "bboxleft", *LEFT), ("y", "bboxy", "bboxtop", *TOP)
CENTRE_X, CENTRE_Y = ("xcenter", "cx", "centerx", "xc"), ("ycenter", "cy", "centery", "yc")
WIDTH, HEIGHT = ("w", "width", "bboxwidth", "boxwidth", "bboxw"), ("h", "height", "bboxheight", "boxheight", "bboxh")
WHOLE = ("bbox", "box", "boundingbox")  # x, y, width, height in one cell, as in COCO
IMAGE_WIDTH, IMAGE_HEIGHT = ("imagewidth", "imgwidth", "imgw"), ("imageheight", "imgheight", "imgh")
CROWD = ("iscrowd", "isgroupof", "crowd", "difficult")
IMAGE = ("imageid", "imgid")  # besides those that tables of classes have: Open Images'
LABEL = ("labelname", "name")


def is_boxes(table: Table) -> bool:
    """Whether columns have boxes."""
    return _corners(table) is not None


def table_of(listing: Listing, name: str) -> Table:
    """Raises `UserError`."""
    return text_tables.of_text(raw.content(listing, name), name, raw.folder_of(name))


def read(found: Sequence[Table], reading: Reading) -> Annotations:
    """Tables of one data set. A row without a box says that its image is there. Raises `UserError`."""
    pictures: dict[tuple[str, str | None], Picture] = {}
    for table in found:
        _add(pictures, table, reading)
    keys = raw.by_name({str(t.key) for p in pictures.values() for t in p.things})
    return Annotations("a table of boxes", [*pictures.values()], keys, raw.check_labels(found[0].name, keys))


def _add(pictures: dict[tuple[str, str | None], Picture], table: Table, reading: Reading) -> None:
    corners = _corners(table)
    if corners is None:
        raise UserError(
            f"{table.name}: no columns are called as corners are, xmin ymin xmax ymax or x y width height (there are: "
            f"{', '.join(table.columns[:20])})"
        )
    images, labels = _named(table, reading, "images", IMAGE), _named(table, reading, "label", LABEL)
    split = _optional(table, reading, "split")
    group = _optional(table, reading, "group")
    crowd = _column(table, CROWD)
    uses_width = _column(table, LEFT) is None or _column(table, RIGHT) is None
    wide = _column(table, IMAGE_WIDTH) or (None if uses_width else _column(table, WIDTH))
    high = _column(table, IMAGE_HEIGHT) or (None if uses_width else _column(table, HEIGHT))
    own = raw.split_in(PurePosixPath(table.name).name)
    near = table.folder
    nothing = [None] * len(table.values(images))
    named = (images, labels, split, group, crowd, wide, high)
    columns: list[Sequence[Cell]] = [table.values(c) if c else nothing for c in named]
    for i, (image, label, part, of, many, w, h) in enumerate(zip(*columns, strict=True)):
        if image is None:
            raise UserError(f"{table.name}: row {i + 1} has no image")
        chosen = own if part is None else split_of(part)
        if part is not None and chosen is None:
            raise UserError(f"{table.name}: column {split!r} says {part!r}, which isn't train, val or test")
        picture = pictures.setdefault((image, chosen), Picture(image, split=chosen, group=of, near=near))
        picture.size = picture.size or raw.size_of(w, h)
        box = corners(i)
        if box is None:
            continue
        if label is None:
            raise UserError(f"{table.name}: row {i + 1} has a box, and no class")
        picture.things.append(Thing(label, box, crowd=(many or "").lower() in ("1", "1.0", "true")))


def _column(table: Table, names: Sequence[str]) -> str | None:
    plain = {re.sub(r"[^a-z0-9]", "", c.lower()): c for c in reversed(table.columns)}
    return next((plain[n] for n in names if n in plain), None)


def _named(table: Table, reading: Reading, kind: str, more: Sequence[str]) -> str:
    """The column of images, or of classes: as named, as tables of classes call it, or as some of boxes do."""
    asked = reading.columns.get(kind)
    if asked is not None:
        if asked not in table.columns:
            raise UserError(f"{table.name}: {unknown('column', asked, table.columns)}")
        return asked
    if not any(called(c, kind) for c in table.columns) and (other := _column(table, more)):
        return other
    return tables.choose(table, reading, (kind,))[kind]


def _optional(table: Table, reading: Reading, kind: str) -> str | None:
    asked = reading.columns.get(kind)
    if asked is not None and asked not in table.columns:
        raise UserError(f"{table.name}: {unknown('column', asked, table.columns)}")
    if asked is None and kind == "split":
        return next((c for c in table.columns if called(c, "split")), None)
    return asked


def _corners(table: Table) -> Callable[[int], tuple[float, float, float, float] | None] | None:
    """What gives the corners in a row, None where its cells are empty; None where no columns have them."""
    for columns in ((LEFT, TOP, RIGHT, BOTTOM), (CENTRE_X, CENTRE_Y, WIDTH, HEIGHT), (X, Y, WIDTH, HEIGHT)):
        names = [_column(table, c) for c in columns]
        if None not in names:
            cells = [table.values(str(n)) for n in names]
            return _Reader(cells, centred=columns[0] is CENTRE_X, sides=columns[2] is WIDTH)
    whole = _column(table, WHOLE)
    if whole is None:
        return None
    split = [re.sub(r"[\[\]()]", "", v or "").replace(",", " ").split() for v in table.values(whole)]
    rows = [(*v, *[None] * 4)[:4] if len(v) <= 4 else ("?",) * 4 for v in split]
    return _Reader([[row[k] for row in rows] for k in range(4)], centred=False, sides=True)


class _Reader:
    def __init__(self, cells: Sequence[Sequence[Cell]], centred: bool, sides: bool) -> None:
        self.cells, self.centred, self.sides = cells, centred, sides

    def __call__(self, i: int) -> tuple[float, float, float, float] | None:
        said = [column[i] for column in self.cells]
        if not any(said):
            return None
        a, b, c, d = map(raw.number, said)
        if self.centred:
            return a - c / 2, b - d / 2, a + c / 2, b + d / 2
        return (a, b, a + c, b + d) if self.sides else (a, b, c, d)
