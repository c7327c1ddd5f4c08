"""`mobilenets verify`: whether two images show the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mobilenets.arguments import StrPath, as_path, checked
from mobilenets.console import Notebook
from mobilenets.data.alignment import Faces
from mobilenets.deploy.embedder import open_embedder
from mobilenets.deploy.foreign import Foreign
from mobilenets.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Compared(Notebook):
    """Two images' cosine, and whether they are `same` by the `threshold`; None where none is known."""

    a: str
    b: str
    cosine: float
    threshold: float | None

    @property
    def same(self) -> bool | None:
        return None if self.threshold is None else self.cosine >= self.threshold

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "same": self.same}

    def __rich__(self) -> RenderableType:
        from rich.text import Text

        said = {True: "same", False: "different", None: "no threshold is known: --threshold says one"}[self.same]
        at = "" if self.threshold is None else f", same from {self.threshold:.3f} on"
        return Text(f"{said}\tcosine {self.cosine:.4f}{at}")


@checked
def verify(
    a: StrPath,
    b: StrPath,
    *,
    model: Annotated[StrPath, Parameter(name="--with")],
    threshold: float | None = None,
    faces: Annotated[Faces | None, Parameter(name="*")] = None,
    foreign: Annotated[Foreign | None, Parameter(name="*")] = None,
) -> Compared:
    """Whether two images show the same person, product or place.

    Parameters
    ----------
    a
        An image.
    b
        Another.
    model
        What compares them: a run, bundle or exported file of --task embed, or a classifier's bundle.
    threshold
        The cosine from which on they are the same; by default the network's own, found on its val images.

    Returns
    -------
    Compared
        `cosine` of the two vectors, and `same`, None where no threshold is known.

    Raises
    ------
    UserError
        For an image or a network that isn't there, landmarks that are missing.

    Examples
    --------
    >>> import mobilenets
    >>> found = mobilenets.verify("flowers/val/red/000.png", "flowers/val/red/001.png", model="runs/flowers")
    >>> -1 <= found.cosine <= 1, found.same
    (True, None)
    """
    if threshold is not None and not -1 <= threshold <= 1:
        raise UserError(f"a threshold is a cosine, from -1 to 1, not {threshold}")
    network = open_embedder(as_path(model), foreign)
    v, w = network.of([as_path(a), as_path(b)], faces)
    at = network.threshold if threshold is None else threshold
    return Compared(str(a), str(b), round(float(v @ w), 6), at)
