"""`mobilenets index`: images enrolled by name, to be searched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import Parameter

from mobilenets import console
from mobilenets.arguments import StrPath, as_path, checked
from mobilenets.console import Notebook
from mobilenets.data.alignment import Faces
from mobilenets.deploy import gallery, inputs
from mobilenets.deploy.embedder import open_embedder
from mobilenets.deploy.foreign import Foreign
from mobilenets.deploy.gallery import SUFFIX, Index
from mobilenets.errors import UserError
from mobilenets.model.images import BadImage

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOWN = 20


@dataclass(frozen=True)
class Indexed(Notebook):
    """What is in an index: images by name. `skipped`: those that couldn't be read."""

    path: Path
    people: dict[str, int]
    skipped: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"index": str(self.path), "names": self.people, "skipped": list(self.skipped)}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        total = sum(self.people.values())
        t = console.table(f"{self.path}: {total:,} images", ["name", "images"], left=("name",))
        for name, n in [*self.people.items()][:SHOWN]:
            t.add_row(Text(console.plain(name)), f"{n:,}")
        if len(self.people) > SHOWN:
            t.caption = f"{SHOWN} of {len(self.people):,} names"
        notes = [Text(f"{console.many(len(self.skipped), 'image')} left out: {'; '.join(self.skipped[:5])}")]
        return Group(t, *(notes if self.skipped else []))


@checked
def index(
    source: StrPath,
    *,
    model: Annotated[StrPath | None, Parameter(name="--with")] = None,
    out: StrPath | None = None,
    into: StrPath | None = None,
    name: str | None = None,
    find: str | None = None,
    delete: str | None = None,
    rename: str | None = None,
    faces: Annotated[Faces | None, Parameter(name="*")] = None,
    foreign: Annotated[Foreign | None, Parameter(name="*")] = None,
) -> Indexed:
    """Enrol images under names, to be searched; find, delete or rename those that are.

    Parameters
    ----------
    source
        Images to enrol: a folder, a zip or one image; or an index (.idx) to look into or to change.
    model
        What gives their vectors: a run, bundle or exported file of --task embed, or a classifier's bundle.
    out
        The index to write, a .idx file.
    into
        The index to add them to.
    name
        What they are called; by default the folder that each lies in, or an image's own name.
    find
        Of an index: the images of this name alone.
    delete
        Of an index: take out the images of this name.
    rename
        Of an index: "OLD=NEW".

    Returns
    -------
    Indexed
        `people`: the number of images by name; of `find`, by image.

    Raises
    ------
    UserError
        For images, an index or a name that isn't there, landmarks that are missing, a network of other vectors.

    Examples
    --------
    >>> import mobilenets
    >>> mobilenets.index("flowers/val", model="runs/flowers", out="flowers.idx").people
    {'blue': 8, 'green': 8, 'red': 8}
    >>> mobilenets.index("flowers.idx", rename="red=rose").people["rose"]
    8
    """
    path = as_path(source)
    asked = [o for o, v in (("--find", find), ("--delete", delete), ("--rename", rename)) if v is not None]
    if path.suffix == SUFFIX and path.is_file():
        if model is not None or out is not None or into is not None or name is not None or len(asked) > 1:
            raise UserError(f"{path} is an index: look into it, or give one of --find, --delete, --rename")
        return _kept(path, find, delete, rename)
    if path.suffix == SUFFIX:
        raise UserError(f"{path}: no such index")
    if asked:
        raise UserError(f"{asked[0]} is of an index: name the .idx file")
    target = as_path(out or into)
    if target is None or (out is not None and into is not None):
        raise UserError("--out names the index to write, --into one to add to: give one of them")
    if target.suffix != SUFFIX:
        raise UserError(f"{target}: an index is called *{SUFFIX}")
    if out is not None and target.exists():
        raise UserError(f"{target} is there already: --into adds to it")
    before = Index.load(target) if into is not None else None
    where = model or (before.network if before else None)
    if where is None:
        raise UserError("--with names the network that gives the vectors")
    network = open_embedder(as_path(where), foreign)
    start = before or gallery.empty(str(where), network.digest)
    if start.digest != network.digest:
        raise UserError(f"{target} has vectors of another network ({start.network}): enrol with that")
    vectors, images, skipped = [], [], []
    with console.progress() as bar:
        task = bar.add_task("enrolling", total=None, status="")
        for image, vector in network.stream(inputs.sources([path]), faces):
            bar.advance(task)
            if isinstance(vector, BadImage):
                skipped.append(str(vector))
            else:
                vectors.append(vector)
                images.append(image.name)
    if not vectors:
        raise UserError(f"{path}: no image can be enrolled: {skipped[0] if skipped else 'there is none'}")
    names = [name] * len(images) if name else gallery.names_of(images, path)
    made = start.enrolled(np.stack(vectors), names, images).save(target)
    return Indexed(target, gallery.people(made), tuple(skipped))


def _kept(path: Path, find: str | None, delete: str | None, rename: str | None) -> Indexed:
    """An index looked into, or changed."""
    there = Index.load(path)
    if find is not None:
        return Indexed(path, dict.fromkeys((there.images[i] for i in there.known(find)), 1))
    if delete is not None:
        there = there.without(delete).save(path)
    if rename is not None:
        old, equals, new = rename.partition("=")
        if not equals:
            raise UserError(f'--rename takes "OLD=NEW", not {rename!r}')
        there = there.renamed(old, new).save(path)
    return Indexed(path, gallery.people(there))
