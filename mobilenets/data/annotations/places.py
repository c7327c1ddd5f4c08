"""Which image a file of annotations means: paths there are often of another machine. No torch."""

from __future__ import annotations

from pathlib import PurePosixPath

from mobilenets.data.annotations.raw import split_in
from mobilenets.data.folder import slashed
from mobilenets.data.listing import Listing
from mobilenets.errors import UserError


class Images:
    """The images of a folder or a zip, found by what is said of them."""

    def __init__(self, listing: Listing) -> None:
        self.names: dict[str, list[str]] = {}
        self.stems: dict[str, list[str]] = {}
        for name in listing.files:
            path = PurePosixPath(name)
            self.names.setdefault(path.name, []).append(name)
            self.stems.setdefault(path.stem, []).append(name)

    def find(self, said: str, near: str = "", split: str | None = None) -> str | None:
        """The image called so: the one whose folders are the same, from the last on, as far as any's are.

        Among several the one of the split is meant, then the one nearest to `near`. One of another kind of file will do
        where there is none of that kind. Raises `UserError` where several may be meant.
        """
        path = PurePosixPath(slashed(said))
        found = self.names.get(path.name) or self.stems.get(path.stem) or self.stems.get(path.name) or []
        if len(found) < 2:
            return found[0] if found else None
        ranks = {name: (_shared(path, name), split is not None and split_in(name) == split) for name in found}
        best = max(ranks.values())
        left = [name for name in found if ranks[name] == best]
        if len(left) > 1:
            nearness = {name: _begin(name, near) for name in left}
            left = [name for name in left if nearness[name] == max(nearness.values())]
        if len(left) > 1:
            raise UserError(
                f"{said[:200]} may be {left[0]} or {left[1]}: say which in the annotations, with its folder, or keep "
                "one of them"
            )
        return left[0]


def _shared(path: PurePosixPath, name: str) -> int:
    """How many folders two paths share, from the last on."""
    count = 0
    for a, b in zip(reversed(path.parent.parts), reversed(PurePosixPath(name).parent.parts), strict=False):
        if a != b:
            break
        count += 1
    return count


def _begin(name: str, near: str) -> tuple[int, int]:
    """How many folders a path shares with `near` from the first on; and how few it has besides."""
    folders, other = PurePosixPath(name).parent.parts, PurePosixPath(near).parts
    count = 0
    for a, b in zip(folders, other, strict=False):
        if a != b:
            break
        count += 1
    return count, -len(folders)
