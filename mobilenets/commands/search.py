"""`mobilenets search`: the images of an index that are nearest to others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mobilenets import console, files
from mobilenets.arguments import StrPath, as_path, checked
from mobilenets.console import Notebook
from mobilenets.data.alignment import Faces
from mobilenets.deploy import inputs
from mobilenets.deploy.embedder import open_embedder
from mobilenets.deploy.foreign import Foreign
from mobilenets.deploy.gallery import Found, Index
from mobilenets.errors import UserError
from mobilenets.model.images import BadImage

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Searched:
    """What is nearest to an image: `found`, the nearest first. `threshold`: from which cosine on it is the same.

    `error`: why the image couldn't be read.
    """

    image: str
    found: tuple[Found, ...]
    threshold: float | None = None
    error: str | None = None

    @property
    def name(self) -> str | None:
        """Of the nearest, where that is near enough, or nobody knows what is."""
        near = [f for f in self.found[:1] if self.threshold is None or f.cosine >= self.threshold]
        return near[0].name if near else None

    def to_json(self) -> dict[str, Any]:
        if self.error:
            return {"image": self.image, "error": self.error}
        return {"image": self.image, "name": self.name, "threshold": self.threshold,
                "found": [f.to_json() for f in self.found]}  # fmt: skip

    def line(self) -> str:
        said = [f"{f.name} {f.cosine:.3f}" for f in self.found]
        unknown = ["nobody known"] * (self.name is None)
        return console.plain("\t".join([self.image, *([self.error] if self.error else [*unknown, *said])]))


@dataclass(frozen=True)
class Searches(Notebook):
    """What is nearest to each image that was asked for."""

    each: tuple[Searched, ...]

    @property
    def skipped(self) -> tuple[str, ...]:
        """Why images couldn't be read."""
        return tuple(s.error for s in self.each if s.error)

    def to_json(self) -> dict[str, Any]:
        return {"searched": [s.to_json() for s in self.each]}

    def __rich__(self) -> RenderableType:
        from rich.text import Text

        return Text("\n".join(s.line() for s in self.each))


@checked
def search(
    index: StrPath,
    *images: StrPath,
    model: Annotated[StrPath | None, Parameter(name="--with")] = None,
    count: int = 5,
    threshold: float | None = None,
    html: StrPath | None = None,
    faces: Annotated[Faces | None, Parameter(name="*")] = None,
    foreign: Annotated[Foreign | None, Parameter(name="*")] = None,
) -> Searches:
    """Find who or what is on images, among those that an index has.

    Parameters
    ----------
    index
        An index (.idx) that `mobilenets index` wrote.
    images
        Images, folders or zips of images.
    model
        The network that the index was made with, if it isn't where it was then.
    count
        How many of the nearest to name.
    threshold
        The cosine from which on they are the same; by default the network's own, if it has one.
    html
        Write a page to this file, each image beside the nearest.

    Returns
    -------
    Searches
        `each` image in their order: `found`, each with `name`, `image` and `cosine`; `name`, None where none is near
        enough.

    Raises
    ------
    UserError
        For an index, a network or an image that isn't there, a network of other vectors, landmarks that are missing.

    Examples
    --------
    >>> import mobilenets
    >>> made = mobilenets.index("flowers/val", model="runs/flowers", out="all.idx")
    >>> mobilenets.search("all.idx", "flowers/val/red/000.png").each[0].found[0].image
    'flowers/val/red/000.png'
    """
    if not images:
        raise UserError("name at least one image, folder or zip")
    if count < 1:
        raise UserError(f"count must be 1 or more, not {count}")
    if threshold is not None and not -1 <= threshold <= 1:
        raise UserError(f"a threshold is a cosine, from -1 to 1, not {threshold}")
    there = Index.load(as_path(index))
    network = open_embedder(as_path(model or there.network), foreign)
    if network.digest != there.digest:
        raise UserError(f"{index} was made with another network ({there.network}): --with names it")
    at = network.threshold if threshold is None else threshold
    found = []
    for image, vector in network.stream(inputs.sources([Path(i) for i in images]), faces):
        if isinstance(vector, BadImage):
            found.append(Searched(image.name, (), at, str(vector)))
        else:
            found.append(Searched(image.name, tuple(there.search(vector, count)), at))
    if html is not None:
        from mobilenets.reports import gallery

        with files.atomic_file(as_path(html)) as tmp:
            files.write_text(tmp, gallery.page(str(index), [(s.image, s.name, s.error, s.found) for s in found]))
    return Searches(tuple(found))
