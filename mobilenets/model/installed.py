"""A bundle's folder whose network is replaced by updates: a file in it says which of its versions is the one. No torch.

That one file is replaced at once, so whoever reads the bundle has all of one version or all of another.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from mobilenets import files
from mobilenets.errors import UserError

POINTER = "installed.json"  # {"current": "versions/20261127120000-1f2e...", ...}
CURRENT = "current"
ITSELF = "."  # the version that lies in the folder itself: the first


def inside(folder: Path, name: object) -> Path:
    """What a pointer names, which lies in the folder. Raises `UserError`."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ("..",)
    if any(p == ".." or p.startswith(("/", "\\")) or ":" in p for p in parts):
        raise UserError(f"{folder / POINTER}: names a version outside of its folder")
    return folder.joinpath(*parts)


def current(path: Path) -> Path:
    """The folder of the version that is in use, of a folder that was updated; else the path itself."""
    pointer = path / POINTER
    if not pointer.is_file():
        return path
    return inside(path, files.read_json(pointer, (CURRENT,), "an updated bundle")[CURRENT])
