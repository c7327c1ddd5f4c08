"""A contact sheet: images with their boxes drawn, as a picture or an HTML page. No torch."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mobilenets import files
from mobilenets.data import rle
from mobilenets.data.boxes import Boxes
from mobilenets.data.dataset import Data
from mobilenets.errors import UserError
from mobilenets.model.images import BadImage

SIDE, GAP, LINE = 320, 8, 14  # pixels: of a tile, between two, of a line of text below
NAMED = 30  # boxes of an image beyond which they aren't named
MASK = 90  # of 255: how strongly masks are tinted
SUFFIXES = (".html", ".png", ".jpg", ".jpeg")
# Okabe and Ito's palette, bright enough to be seen on a photo; classes beyond take them again.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")


@dataclass(frozen=True)
class Tile:
    """One image, drawn: its split, its name, what is said below it."""

    split: str
    name: str
    said: str
    image: Image.Image


def check_path(out: Path) -> None:
    """Raises `UserError` for a file of another kind than a sheet can be."""
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"{out}: a contact sheet is {', '.join(SUFFIXES)}")


def chosen(data: Data, count: int) -> list[tuple[str, int]]:
    """Up to `count` images, a split's name and an index: those something was found of first, then some of all."""
    where = {s.names[i]: (name, i) for name, s in data.splits.items() for i in range(len(s))}
    told = {item: kind for kind, items in data.faults.items() for item in items}
    faulty = [where[n] for item in told if (n := _name(item, where)) is not None]
    rest = [*where.values()]
    order = np.random.default_rng(data.seed).permutation(len(rest))
    return [*dict.fromkeys([*faulty[: count // 2], *(rest[i] for i in order)])][:count]


def _name(item: str, known: Mapping[str, Any]) -> str | None:
    """The image that a line of what was found begins with."""
    return next((n for n in (item, item.rpartition(": ")[0], item.rpartition(" (")[0]) if n in known), None)


def tiles(data: Data, which: Sequence[tuple[str, int]]) -> Iterator[Tile]:
    """Those images, each with its boxes; none of one that can't be read."""
    for name, i in which:
        split = data.splits[name]
        target: Boxes = split.targets[i]
        try:
            image = split.rgb(i, SIDE)
        except BadImage:
            continue
        w, h = target.size
        f = min(1.0, SIDE / max(w, h))
        small = image.resize((max(1, round(w * f)), max(1, round(h * f))), Image.Resampling.BILINEAR)
        boxes = f"{len(target)} box{'es' * (len(target) != 1)}"
        yield Tile(name, split.names[i], f"{w}x{h}, {boxes}", drawn(small, target.resized(small.size), data.labels))


def drawn(image: Image.Image, boxes: Boxes, labels: Sequence[str]) -> Image.Image:
    """The image with its boxes, large ones first; crowds thin, masks tinted, names where there is room for them."""
    out = image.convert("RGB")
    order = np.argsort(-boxes.area, kind="stable").tolist()
    if boxes.masks is not None:
        for i in order:
            tint = Image.new("RGB", out.size, COLOURS[int(boxes.classes[i]) % len(COLOURS)])
            mask = rle.decode(boxes.masks[i]).astype(np.uint8) * MASK
            out.paste(tint, mask=Image.fromarray(mask))
    pen = ImageDraw.Draw(out)
    for i in order:
        colour, crowd = COLOURS[int(boxes.classes[i]) % len(COLOURS)], bool(boxes.crowd[i])
        corners = [min(max(v, 0), side - 1) for v, side in zip(boxes.xyxy[i].tolist(), out.size * 2, strict=True)]
        pen.rectangle(corners, outline=colour, width=1 if crowd else 2)
        if len(boxes) <= NAMED:
            text = labels[int(boxes.classes[i])] + (" (crowd)" if crowd else "")
            around = pen.textbbox((corners[0] + 2, corners[1] + 1), text)
            pen.rectangle(around, fill=colour)
            pen.text((corners[0] + 2, corners[1] + 1), text, fill="black")
    return out


def write(out: Path, data: Data, count: int, lines: Sequence[str]) -> int:
    """Write the sheet, as its suffix says; how many images are on it. Raises `UserError`."""
    check_path(out)
    drawings = [*tiles(data, chosen(data, count))]
    with files.atomic_file(out) as tmp:
        if out.suffix.lower() == ".html":
            files.write_text(tmp, _page(data, drawings, lines))
        else:
            _grid(drawings).save(tmp, "PNG" if out.suffix.lower() == ".png" else "JPEG")
    return len(drawings)


def _grid(drawings: Sequence[Tile]) -> Image.Image:
    columns = max(1, math.ceil(math.sqrt(len(drawings))))
    rows = max(1, math.ceil(len(drawings) / columns))
    cell = SIDE + GAP
    whole = Image.new("RGB", (columns * cell + GAP, rows * (cell + LINE) + GAP), "white")
    pen = ImageDraw.Draw(whole)
    for k, tile in enumerate(drawings):
        x, y = GAP + k % columns * cell, GAP + k // columns * (cell + LINE)
        whole.paste(tile.image, (x, y))
        below = f"{tile.split}: {Path(tile.name).name[-28:]}, {tile.said}"
        pen.text((x, y + tile.image.height + 1), below.encode("latin-1", "replace").decode("latin-1"), fill="black")
    return whole


def _page(data: Data, drawings: Sequence[Tile], lines: Sequence[str]) -> str:
    from mobilenets.reports import pages

    rows = []
    for t in drawings:
        buffer = io.BytesIO()
        t.image.save(buffer, "WEBP", quality=80)
        uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
        rows.append({"uri": uri, "split": t.split, "name": t.name, "said": t.said})
    splits = {
        name: (len(s), sum(map(len, s.targets)), sum(not len(t) for t in s.targets)) for name, s in data.splits.items()
    }
    return pages.render("sheet.html", pages.NUMBERS, data=data, splits=splits, tiles=rows, lines=lines)
