"""What images there are in what somebody gives: files, folders, zips, open files, pictures in memory."""

from __future__ import annotations

import itertools
import os
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilenets import files
from mobilenets.arguments import StrPath
from mobilenets.data.folder import is_hidden, is_image_name, open_zip, read_member, slashed, unreadable
from mobilenets.errors import UserError
from mobilenets.model.images import UNREADABLE
from mobilenets.model.pictures import is_batch, is_picture, pictures

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".3gp")


def is_video(path: Path) -> bool:
    """By its name's end."""
    return path.suffix.lower() in VIDEOS


@dataclass(frozen=True)
class Source:
    """An image to read: a file, or a member of an open zip.

    All threads share the zip: its directory is all that grows with the number of images, so there should be one.
    """

    name: str
    path: Path | zipfile.ZipFile
    member: str = ""


_zip_turn = threading.Lock()  # a ZipFile is not for several threads at once


def sources(paths: Iterable[Path]) -> Iterator[Source]:
    """The images at `paths` (files, folders, zips), found as they are needed.

    `UserError` at once for a path that isn't there, and when its turn comes for one with no images.
    """
    return itertools.chain.from_iterable(map(_images_at, [there(p) for p in paths]))


def there(path: StrPath) -> Path:
    """`path`; a `UserError` where nothing is."""
    if not Path(path).exists():
        raise UserError(f"{files.local(path)}: no such file or folder")
    return Path(path)


def _images_at(path: Path) -> Iterator[Source]:
    if path.is_dir():
        found, others = False, []
        for here, subdirs, names in os.walk(path):
            subdirs[:] = sorted(d for d in subdirs if not is_hidden(d))
            others += [n for n in names if n.lower().endswith(UNREADABLE)]
            for n in sorted(names):
                if is_image_name(n):
                    found = True
                    yield Source(str(Path(here) / n), Path(here) / n)
        if not found:
            raise UserError(f"{path}: no images in this folder{unreadable(others, '; ')}")
    elif zipfile.is_zipfile(path):
        z = open_zip(path)  # closed with the last Source that names it
        found = False
        for info in z.infolist():
            if is_image_name(name := slashed(info.filename)):
                found = True
                yield Source(f"{path}/{name}", z, info.filename)
        if not found:
            raise UserError(f"{path}: no images in this zip")
    else:
        yield Source(str(path), path)


TAKES = "paths of images, folders or zips, bytes, open files, Pillow's images, arrays, tensors; one or many"


def each(images: Any) -> tuple[Iterable[Any], bool]:
    """The images in what `predict` was given, and whether it is a single one."""
    if isinstance(images, str | Path):
        path = there(images)
        several = path.is_dir() or zipfile.is_zipfile(path)
        return (_images_at(path), False) if several else ([images], True)
    if isinstance(images, bytes | bytearray | memoryview) or hasattr(images, "read"):
        return [images], True
    if is_picture(images):
        return pictures(images), not is_batch(images)
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise UserError(f"predict takes {TAKES}; got {type(images).__name__}")
    return spread(images), False


def spread(images: Iterable[Any]) -> Iterator[Any]:
    """Images one after another: those in a folder, a zip or a batch, any other item as it is."""
    return itertools.chain.from_iterable(map(_inside, images))


def _inside(item: Any) -> Iterable[Any]:
    if is_picture(item):
        return pictures(item)
    if isinstance(item, str | Path) and (Path(item).is_dir() or str(item).lower().endswith(".zip")):
        return _images_at(Path(item))
    return [item]


def named(item: Any, number: int) -> str:
    """What an image is called, a file's or zip's member among them."""
    return item.name if isinstance(item, Source) else name_of(item, number)


def name_of(item: Any, number: int) -> str:
    """What an image is called: its path, an open file's, or its number."""
    if isinstance(item, str | Path):
        return str(item)
    own = getattr(item, "name", None) if hasattr(item, "read") else None
    return own if isinstance(own, str) else f"image {number}"


def opened(file: Any) -> bytes:
    found = file.read()
    if isinstance(found, bytes):
        return found
    raise UserError(f"{name_of(file, 0)}: opened as text; open it with mode 'rb'")


def content(item: Source) -> Path | bytes:
    """What an image is read from: its file, or the bytes of a zip's member."""
    if isinstance(item.path, Path):
        return item.path
    with _zip_turn:
        return read_member(item.path, item.member, item.name)
