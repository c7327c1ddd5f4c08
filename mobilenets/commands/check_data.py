"""`mobilenets data check`: what is wrong with images and their labels, before a training finds out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import Parameter

from mobilenets import console, tasks
from mobilenets.arguments import DataSource, StrPath, as_path, checked
from mobilenets.data import checks
from mobilenets.data.annotations.faults import GOOD
from mobilenets.data.annotations.open import NoAnnotations, open_boxes
from mobilenets.data.boxes import Boxes
from mobilenets.data.checks import Scan
from mobilenets.data.dataset import Data
from mobilenets.data.open import open_data
from mobilenets.data.source import Reading, spelled
from mobilenets.errors import UserError
from mobilenets.reports import sheet as contact

if TYPE_CHECKING:
    from rich.console import RenderableType

SMALL, LARGE = 32**2, 96**2  # pixels of an object: COCO's bounds of small, medium and large


@dataclass(frozen=True)
class Checked(console.Notebook):
    """What `data check` found. `faults`: of boxes, the images or boxes of each kind (see `annotations.faults`).

    `objects`: of boxes, numbers of all splits; `sheet`: the contact sheet, if one was asked for.
    """

    task: str
    form: str
    found: Scan
    faults: dict[str, tuple[str, ...]]
    objects: dict[str, Any]
    sheet: Path | None = None

    @property
    def good(self) -> bool:
        """Whether nothing was found that should be looked at."""
        faults = any(items for kind, items in self.faults.items() if kind not in GOOD)
        return not faults and not any((self.found.damaged, self.found.leaks, self.found.empty, self.found.flat))

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.found.source,
            "task": self.task,
            "form": self.form,
            "good": self.good,
            "splits": self._splits(),
            "classes": self.found.counts,
            "objects": self.objects,
            "faults": {kind: list(items) for kind, items in self.faults.items()},
            "findings": [*self.found.findings()],
            "sheet": str(self.sheet) if self.sheet else None,
        }

    def _splits(self) -> dict[str, dict[str, int]]:
        boxes = self.found.boxes
        return {k: {"images": n, **({"boxes": boxes[k]} if boxes else {})} for k, n in self.found.totals.items()}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        o, lines = self.objects, []
        if o:
            more = "".join(f"; {o[what]:,} {what}" for what in ("masks", "crowds") if o[what])
            sizes = ", ".join(f"{o[what]:,} {what}" for what in ("small", "medium", "large"))
            lines.append(
                f"{self.form}: {console.many(o['boxes'], 'box')} in {console.many(o['images'], 'image')}, "
                f"{o['most']:,} at most in one; {sizes}{more}"
            )
        if self.good:
            lines.append("nothing was found wrong")
        if self.sheet:
            lines.append(f"sheet    {self.sheet}")
        return Group(self.found.__rich__(), *map(Text, lines))


@checked
def check_data(
    source: DataSource,
    *,
    task: str | None = None,
    sheet: StrPath | None = None,
    images: int = 24,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    seed: int = 0,
    root: StrPath | None = None,
) -> Checked:
    """Look at every image and every box of a data set: what there is, what is damaged, missing, outside, twice, turned.

    Boxes without width or height, outside of their image or of unknown categories are listed, and left out by training
    too. Images without boxes are kept: there is nothing to find in them.

    Parameters
    ----------
    source
        Folder or zip of images with boxes or of class folders, a file of annotations or a table, shards, a set's name.
    task
        What the images are labelled for: attributes, geolocate, embed; detect or classify is found out.
    sheet
        A contact sheet to write, .html, .png or .jpg: images with their boxes drawn, those with findings first.
    images
        Images on the sheet, at most.
    seed
        Seed of the split if there is none, and of the images on the sheet.
    root
        Where the images are, if not beside the file of annotations; where copies of named sets are.

    Returns
    -------
    Checked
        `found` in the images, and the `faults` of the boxes, by kind.

    Raises
    ------
    UserError
        For data that isn't there or can't be read as any of these.

    Examples
    --------
    >>> import mobilenets
    >>> mobilenets.check_data("flowers").good
    True
    """
    source, sheet, root = spelled(source, reading), as_path(sheet), as_path(root)
    asked = tasks.find(task) if task else None
    if images < 1:
        raise UserError(f"images must be 1 or more, not {images}")
    if sheet:
        contact.check_path(sheet)
    task, data = (asked.name, asked.open(source, root, seed, None)) if asked else _opened(source, root, seed)
    if sheet and task != "detect":
        raise UserError(f"{source}: a contact sheet shows boxes, and there are none")
    found = checks.scan(data, keep=())
    if sheet:
        contact.write(sheet, data, images, [*found.findings()])
    return Checked(task, data.form, found, data.faults, _objects(data), sheet)


def _opened(source: str, root: Path | None, seed: int) -> tuple[str, Data]:
    """Data with boxes where there are any, else with classes."""
    try:
        return "detect", open_boxes(source, root, seed)
    except NoAnnotations:
        return "classify", open_data(source, root, seed)


def _objects(data: Data) -> dict[str, Any]:
    """Numbers of all boxes; none of data without."""
    targets: list[Boxes] = [t for s in data.splits.values() for t in s.targets if isinstance(t, Boxes)]
    if not targets:
        return {}
    counts = np.array([len(t) for t in targets])
    area = np.concatenate([t.area for t in targets])
    return {
        "images": len(targets),
        "boxes": int(counts.sum()),
        "images_without": int((counts == 0).sum()),
        "most": int(counts.max()),
        "median": float(np.median(counts)),
        "small": int((area < SMALL).sum()),
        "medium": int(((area >= SMALL) & (area < LARGE)).sum()),
        "large": int((area >= LARGE).sum()),
        "crowds": int(sum(t.crowd.sum() for t in targets)),
        "masks": sum(len(t) for t in targets if t.masks is not None),
    }
