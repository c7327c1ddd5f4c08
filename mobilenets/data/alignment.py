"""Faces in one place: five landmarks moved to where a template has them, as the network is used to. No torch.

A face network's accuracy is its alignment's: one tells 99.5% of LFW's pairs right on aligned faces, 94% on close crops,
85% on faces that were only resized. So a card says which template its network takes, and images come with landmarks, or
are aligned to a template that is known.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets import console
from mobilenets.arguments import checked
from mobilenets.data import text_tables
from mobilenets.data.dataset import Read, Split
from mobilenets.data.source import Reading
from mobilenets.data.table import called
from mobilenets.errors import UserError, unknown
from mobilenets.model.card import Card
from mobilenets.model.images import FULL_SIZE, BadImage, open_rgb

Points = npt.NDArray[np.float64]  # [5, 2], x and y in pixels: the eyes from the left on, the nose, the mouth's corners
COUNT = 5
LARGEST = 2.0  # times the template's size: what an aligned face may be larger by, so that no pixel of it is lost
NEAR = 0.03  # by how much an aligned image's proportions may differ from its template's


@dataclass(frozen=True)
class Template:
    """Where the five points lie on an image of `width` x `height` pixels, counted from the first one's centre."""

    name: str
    width: int
    height: int
    points: tuple[tuple[float, float], ...]

    def on(self, width: float, height: float) -> Points:
        """The points on an image of so many pixels, from its corner."""
        share = np.array([width / self.width, height / self.height])
        return np.asarray((np.array(self.points, np.float64) + 0.5) * share)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "width": self.width,
            "height": self.height,
            "points": [list(p) for p in self.points],
        }

    @classmethod
    def from_json(cls, d: Any) -> Template:
        """The inverse of `to_json`. Raises `UserError`."""
        try:
            points = tuple((float(x), float(y)) for x, y in d["points"])
            width, height = int(d["width"]), int(d["height"])
            inside = all(0 <= x <= width and 0 <= y <= height for x, y in points)  # False of NaN too
            if len(points) != COUNT or not inside or not 0 < width <= 4096 or not 0 < height <= 4096:
                raise ValueError("five points inside an image are needed")
            return cls(str(d["name"]), width, height, points)
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise UserError(f"not a template of landmarks: {e}") from e


TEMPLATES = {
    t.name: t
    for t in (
        # ArcFace's (InsightFace), which most public face networks take.
        Template("arcface", 112, 112, ((38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20))),
        # A close crop of LFW's deep-funneled faces.
        Template("lfw-crop", 90, 90, ((24, 33), (66, 33), (45, 60), (28, 82), (64, 81))),
        # CelebA's own, of its aligned faces: the means of its list of landmarks.
        Template("celeba", 178, 218, ((69.5, 111.2), (107.6, 111.1), (88.0, 134.9), (71.5, 152.2), (105.4, 152.1))),
    )
}


def template(name: str) -> Template:
    """The template called `name`; a UserError suggests the nearest."""
    if name not in TEMPLATES:
        raise unknown("template of landmarks", name, TEMPLATES)
    return TEMPLATES[name]


def template_of(card: Card) -> Template | None:
    """The template that a network takes faces in, as its card has it. Raises `UserError`."""
    return Template.from_json(card.config["template"]) if card.config.get("template") else None


def similarity(source: Points, target: Points) -> tuple[complex, complex]:
    """(a, b) of the turn, scale and shift z -> a z + b, of x + iy, that brings points nearest to others."""
    z, w = (p[:, 0] + 1j * p[:, 1] for p in (source, target))
    dz, dw = z - z.mean(), w - w.mean()
    a = complex((dz.conj() * dw).sum() / max(float((np.abs(dz) ** 2).sum()), 1e-12))
    return a, complex(w.mean() - a * z.mean())


def align(image: Image.Image, points: Points, to: Template) -> Image.Image:
    """An RGB image moved so that `points` of it, in pixels from its corner, lie where the template has them.

    It is as large as the template, or larger by as much as the face was, up to LARGEST. What lies beyond the image's
    edge is its edge again.
    """
    a, _ = similarity(points, to.on(to.width, to.height))
    factor = min(max(1.0, 1 / max(abs(a), 1e-6)), LARGEST)
    width, height = round(to.width * factor), round(to.height * factor)
    a, b = similarity(to.on(width, height), points)  # from the output to the image
    if abs(a) > 2:  # what Pillow samples at points would leave out pixels between them
        shrink = int(abs(a))
        image = image.reduce(shrink)
        a, b = a / shrink, b / shrink
    corners = np.array([a * z + b for z in (0, width, 1j * height, width + 1j * height)])
    beyond = max(0.0, -corners.real.min(), -corners.imag.min())
    beyond = max(beyond, corners.real.max() - image.width, corners.imag.max() - image.height)
    edge = min(math.ceil(beyond), 4 * max(image.size)) + 1
    around = Image.fromarray(np.pad(np.asarray(image), ((edge, edge), (edge, edge), (0, 0)), mode="edge"))
    b += edge * (1 + 1j)
    return around.transform(
        (width, height), Image.Transform.AFFINE, (a.real, -a.imag, b.real, a.imag, a.real, b.imag),
        Image.Resampling.BICUBIC,
    )  # fmt: skip


# ---- where an image's points are known from


class Located(Protocol):
    """Knows where the five points of an image lie."""

    def __call__(self, name: str, image: Image.Image) -> Points:
        """In pixels of the image from its corner. Raises `BadImage` where it doesn't know."""


@dataclass(frozen=True)
class AsTemplate:
    """Images that are aligned to a template already, of any size in its proportions."""

    template: Template

    def __call__(self, name: str, image: Image.Image) -> Points:
        t, (width, height) = self.template, image.size
        if abs(width / height * t.height / t.width - 1) > NEAR:
            raise BadImage(
                f"{name}: {width}x{height} pixels, and aligned as {t.name} it would have {t.width}x{t.height}, or that "
                "scaled"
            )
        return t.on(width, height)


@dataclass(frozen=True)
class FromTable:
    """Landmarks of a table, by image: ten numbers, x and y of each point in pixels of the whole image."""

    path: str = field(repr=False)
    points: Mapping[str, Points] = field(repr=False)
    digest: str = ""  # of the table: what tells two apart, wherever they lie

    def __call__(self, name: str, image: Image.Image) -> Points:
        found = _lookup(self.points, name)
        if found is None:
            raise BadImage(f"{name}: no landmarks in {self.path}")
        full = image.info.get(FULL_SIZE, image.size)
        if not np.isfinite(found).all() or (found < 0).any() or (found > np.array(full)).any():
            x, y = next(p for p in found if not (np.isfinite(p).all() and (p >= 0).all() and (p <= full).all()))
            raise BadImage(f"{name}: a landmark at {x:g}, {y:g} isn't on its {full[0]}x{full[1]} pixels")
        return np.asarray((found + 0.5) * (np.array(image.size) / np.array(full)))


@runtime_checkable
class Finder(Protocol):
    """Finds a face: five points [5, 2] of an RGB image, x and y in pixels from its corner; None where there is none."""

    def __call__(self, image: Image.Image) -> npt.ArrayLike | None: ...


@dataclass(frozen=True)
class Detected:
    """Landmarks that somebody's detector finds."""

    find: Finder

    def __call__(self, name: str, image: Image.Image) -> Points:
        found = self.find(image)
        if found is None:
            raise BadImage(f"{name}: no face is found on it")
        points = np.asarray(found, np.float64)
        if points.shape != (COUNT, 2):
            raise UserError(f"what finds faces gives {COUNT} points, x and y of each, not {points.shape} numbers")
        if not (np.isfinite(points).all() and (points >= 0).all() and (points <= image.size).all()):
            raise BadImage(f"{name}: a landmark was found that isn't on its {image.width}x{image.height} pixels")
        return points


def _stem(name: str) -> str:
    return str(PurePosixPath(name.replace("\\", "/")).with_suffix("")).lower().removeprefix("./")


def _lookup(points: Mapping[str, Points], name: str) -> Points | None:
    """By as much of an image's path as the table has, whatever its suffix."""
    parts = _stem(name).split("/")
    return next((points[key] for i in range(len(parts)) if (key := "/".join(parts[i:])) in points), None)


def read_landmarks(path: str) -> FromTable:
    """A table of a column of images and ten of coordinates, in CelebA's order. Raises `UserError`."""
    where = Path(path)
    if not where.is_file():
        raise UserError(f"{path}: no such table of landmarks")
    content = text_tables.read_bytes(where)
    table = text_tables.of_text(content, path)
    names = [c for c in table.columns if called(c, "images")] or [*table.columns[:1]]
    numbers = [c for c in table.columns if c.lower().endswith(("_x", "_y")) or c.lower().strip("xy12345") == ""]
    if len(numbers) != 2 * COUNT:
        raise UserError(
            f"{path}: landmarks are ten columns, x and y of the eyes, the nose and the mouth's corners (lefteye_x, "
            f"lefteye_y, ... or x1, y1, ... y5); there are {len(numbers)} called so"
        )
    images, columns = table.values(names[0]), [table.values(c) for c in numbers]
    found: dict[str, Points] = {}
    for i, image in enumerate(images):
        try:
            found[_stem(image or "")] = np.array([float(c[i] or "nan") for c in columns]).reshape(COUNT, 2)
        except ValueError as e:
            raise UserError(f"{path}: row {i + 1} has something else than numbers for landmarks") from e
    return FromTable(path, found, hashlib.sha256(content).hexdigest()[:16])


@checked
@dataclass(frozen=True)
class Faces:
    """Where the landmarks of images are, for a network that takes faces aligned; of a data set, `Reading` says it."""

    landmarks: str | None = field(
        default=None,
        metadata={
            "help": "Of faces, a table of five points for each image, x and y in pixels: the eyes, the nose, the "
            "mouth's corners."
        },
    )
    aligned: str | None = field(
        default=None,
        metadata={"help": "Of faces, the template that they are aligned to already: arcface, lfw-crop, celeba."},
    )


def sought(said: Faces | Finder | None, wanted: Template | None, whose: str) -> Located | None:
    """`located`; None where a network takes images as they are, and a line where landmarks are said in vain."""
    if wanted is not None:
        return Detected(said) if isinstance(said, Finder) else located(said, wanted, whose)
    if said is not None and said != Faces():
        console.note(f"{whose} has no template of landmarks: it takes images as they are, not aligned")
    return None


def located(said: Faces | Reading | None, wanted: Template, whose: str) -> Located:
    """How images know their landmarks. Raises `UserError` where nothing says where they are."""
    if said is not None and said.landmarks is not None:
        return read_landmarks(said.landmarks)
    if said is not None and said.aligned is not None:
        return AsTemplate(template(said.aligned))
    raise UserError(
        f"{whose} takes faces aligned as {wanted.name} has them ({wanted.width}x{wanted.height}), and nothing says "
        f"where these images' landmarks are: --landmarks FILE has them, or --aligned {wanted.name} says that they are "
        "aligned"
    )


@dataclass(frozen=True)
class Aligned:
    """Reads image i aligned to a template: `read` gives it as it is, `names` its name."""

    read: Read
    names: Any
    where: Located
    to: Template

    def __call__(self, i: int) -> Image.Image:
        source, name = self.read(i), self.names[i]
        image = source.convert("RGB") if isinstance(source, Image.Image) else open_rgb(source, name)
        return placed(image, name, self.where, self.to)


def placed(image: Image.Image, name: str, where: Located, to: Template) -> Image.Image:
    """An image aligned to a template; as it is where it is so already. Raises `BadImage`."""
    points = where(name, image)
    if isinstance(where, AsTemplate) and where.template == to:
        return image
    return align(image, points, to)


def aligned(split: Split, where: Located, to: Template) -> Split:
    """A split whose images are aligned to a template as they are read."""
    split.read = Aligned(split.read, split.names, where, to)
    return split
