"""The target of detection: the boxes of one image, with their classes and, where there are any, their masks. No torch.

As COCO has them (Lin et al. 2014): crowds are regions of many objects, which are neither learned nor scored; areas are
the masks', where there are masks, and say whether an object is small, medium or large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets.data import rle
from mobilenets.data.rle import Polygon, Rle

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Masks(Sequence[Rle]):
    """Masks of one size, (width, height), as COCO's run lengths; polygons become them when they are asked for.

    `shapes`: of each object its run lengths, or its polygons, float [K, 2] as x and y in pixels.
    """

    def __init__(self, shapes: Sequence[Rle | Sequence[Polygon]], size: tuple[int, int]) -> None:
        self.shapes, self.size = tuple(shapes), size

    def __len__(self) -> int:
        return len(self.shapes)

    @overload
    def __getitem__(self, i: int) -> Rle: ...
    @overload
    def __getitem__(self, i: slice) -> list[Rle]: ...
    def __getitem__(self, i: int | slice) -> Rle | list[Rle]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        shape = self.shapes[i]
        return shape if isinstance(shape, dict) else rle.of_polygons(shape, self.size[1], self.size[0])

    def some(self, index: Sequence[int] | npt.NDArray[np.int64]) -> Masks:
        return Masks([self.shapes[int(i)] for i in index], self.size)

    def resized(self, size: tuple[int, int]) -> Masks:
        """Of an image that is resized to `size`."""
        if size == self.size:
            return self
        scale = np.array(size) / np.array(self.size)
        shapes: list[Rle | Sequence[Polygon]] = []
        for shape in self.shapes:
            if isinstance(shape, dict):
                whole = Image.fromarray(rle.decode(shape)).resize(size, Image.Resampling.NEAREST)
                shapes.append(rle.encode(np.asarray(whole)))
            else:
                shapes.append([p * scale for p in shape])
        return Masks(shapes, size)

    def to_json(self) -> list[Any]:
        return [s if isinstance(s, dict) else [np.round(p, 2).ravel().tolist() for p in s] for s in self.shapes]

    @classmethod
    def from_json(cls, shapes: Sequence[Any], size: tuple[int, int]) -> Masks:
        """The inverse of `to_json`. Raises ValueError or TypeError for what isn't of that size."""
        made: list[Rle | Sequence[Polygon]] = []
        for shape in shapes:
            if isinstance(shape, dict):
                rle.check(rle.from_text(shape["counts"]), size[1], size[0])
                made.append({"size": [size[1], size[0]], "counts": shape["counts"]})
            else:
                made.append([np.array(p, np.float64).reshape(-1, 2) for p in shape])
        return cls(made, size)


@dataclass(frozen=True, eq=False)
class Boxes:
    """The M objects of one image; there may be none.

    `xyxy`: float32 [M, 4], the corners' x1, y1, x2, y2 in pixels of the upright image, inside of it, x1 < x2, y1 < y2.
    `classes`: int64 [M], indices into `Data.labels`, no background among them. `size`: (width, height) of the upright
    image. `crowd`: bool [M]. `area`: float32 [M], square pixels of the mask where there is one, else of the box.
    `masks`: of each object, COCO's run lengths `{"size": [height, width], "counts": text}`; None of data without.
    `ids`: int64 [M], the objects' own in a file of COCO's; None of others.
    """

    xyxy: Floats
    classes: Ints
    crowd: Bools
    area: Floats
    size: tuple[int, int]
    masks: Masks | None = None
    ids: Ints | None = None

    @classmethod
    def of(
        cls,
        xyxy: npt.ArrayLike,
        classes: npt.ArrayLike,
        size: tuple[int, int],
        *,
        crowd: npt.ArrayLike | None = None,
        area: npt.ArrayLike | None = None,
        masks: Masks | None = None,
        ids: npt.ArrayLike | None = None,
    ) -> Boxes:
        """Boxes of what is given: no crowds, and the boxes' own areas, where nothing is said of them.

        Raises ValueError where not all are of as many objects.
        """
        corners = np.asarray(xyxy, np.float32).reshape(-1, 4)
        sides = corners[:, 2:] - corners[:, :2]
        made = cls(
            corners,
            np.asarray(classes, np.int64),
            np.zeros(len(corners), bool) if crowd is None else np.asarray(crowd, bool),
            np.asarray(sides.prod(1) if area is None else area, np.float32),
            (int(size[0]), int(size[1])),
            masks,
            None if ids is None else np.asarray(ids, np.int64),
        )
        each = [made.classes, made.crowd, made.area, *([made.ids] if made.ids is not None else [])]
        if any(a.shape != (len(corners),) for a in each) or (masks is not None and len(masks) != len(corners)):
            raise ValueError(f"{len(corners)} boxes with other numbers of classes, crowds, areas, masks or ids")
        return made

    def __len__(self) -> int:
        return len(self.xyxy)

    def subset(self, keep: Sequence[int] | npt.NDArray[Any]) -> Boxes:
        """Those of the objects: their indices, or a bool [M]."""
        index = np.arange(len(self))[np.asarray(keep, bool if np.asarray(keep).dtype == bool else np.int64)]
        return Boxes(
            self.xyxy[index],
            self.classes[index],
            self.crowd[index],
            self.area[index],
            self.size,
            None if self.masks is None else self.masks.some(index),
            None if self.ids is None else self.ids[index],
        )

    def resized(self, size: tuple[int, int]) -> Boxes:
        """Of the image when it is resized to `size`, (width, height): as a cache keeps it, or a network takes it."""
        if size == self.size:
            return self
        x, y = size[0] / self.size[0], size[1] / self.size[1]
        return Boxes(
            np.asarray(self.xyxy * np.array([x, y, x, y]), np.float32),
            self.classes,
            self.crowd,
            np.asarray(self.area * (x * y), np.float32),
            size,
            None if self.masks is None else self.masks.resized(size),
            self.ids,
        )

    def renumbered(self, to: npt.NDArray[np.int64]) -> Boxes:
        """With class `to[c]` for class c."""
        return Boxes(self.xyxy, to[self.classes], self.crowd, self.area, self.size, self.masks, self.ids)

    def to_json(self) -> dict[str, Any]:
        """What shards keep beside the image: what isn't there, or is as `of` makes it, is left out."""
        out: dict[str, Any] = {
            "size": list(self.size),
            "boxes": [[round(v, 3) for v in row] for row in self.xyxy.tolist()],
            "classes": self.classes.tolist(),
        }
        plain = Boxes.of(out["boxes"], self.classes, self.size)
        if self.crowd.any():
            out["crowd"] = self.crowd.astype(int).tolist()
        if not np.array_equal(plain.area, self.area):
            out["area"] = [round(v, 3) for v in self.area.tolist()]
        if self.masks is not None:
            out["masks"] = self.masks.to_json()
        if self.ids is not None:
            out["ids"] = self.ids.tolist()
        return out

    @classmethod
    def from_json(cls, d: dict[str, Any]) -> Boxes:
        """The inverse of `to_json`. Raises KeyError, TypeError, ValueError or OverflowError for what it can't be."""
        width, height = (int(n) for n in d["size"])
        masks = Masks.from_json(d["masks"], (width, height)) if "masks" in d else None
        made = cls.of(
            d["boxes"], d["classes"], (width, height),
            crowd=d.get("crowd"), area=d.get("area"), masks=masks, ids=d.get("ids"),
        )  # fmt: skip
        if not np.isfinite(made.xyxy).all() or (len(made) and made.classes.min() < 0):
            raise ValueError("boxes that can't be")
        return made


def presence(targets: Sequence[Boxes]) -> Floats:
    """Which classes each image holds, and none: 0 or 1, float32 [N, C + 1]; to draw splits in which all are."""
    count = max((int(t.classes.max()) + 1 for t in targets if len(t)), default=0)
    out = np.zeros((len(targets), count + 1), np.float32)
    for row, t in zip(out, targets, strict=True):
        row[t.classes] = 1
        row[count] = not len(t)
    return out
