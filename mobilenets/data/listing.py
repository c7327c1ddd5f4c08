"""What a folder or a zip holds. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Listing:
    """What a folder or a zip holds, names with / between: images, folders, and other pictures, which can't be read.

    `size`: of a file, in bytes. `tables`: of text, which may say what the images are; `texts` may be lists of it,
    `notes` annotations of boxes. `head`: a file, or its first bytes, enough for an image's size.
    """

    files: list[str]
    folders: list[str]
    unreadable: list[str]
    read: Callable[[str], Path | bytes]
    size: Callable[[str], int]
    head: Callable[[str], Path | bytes]
    tables: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
