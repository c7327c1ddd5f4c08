"""A folder or a zip of class folders, read as data. No torch."""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

from mobilenets.data.dataset import Data, Split
from mobilenets.errors import UserError
from mobilenets.model.images import SUFFIXES, BadImage

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def _folder(path: Path) -> tuple[list[str], list[str], Callable[[str], Path | bytes]]:
    files, dirs = [], []
    for here, subdirs, names in os.walk(path, followlinks=True):
        subdirs[:] = sorted(d for d in subdirs if not d.startswith("."))
        rel = Path(here).relative_to(path).as_posix()
        dirs.append(rel)
        files += [f"{rel}/{n}".removeprefix("./") for n in sorted(names) if is_image_name(n)]
    return files, dirs[1:], lambda name: path / name


def _zip(path: Path) -> tuple[list[str], list[str], Callable[[str], Path | bytes]]:
    try:
        with zipfile.ZipFile(path) as z:
            names = sorted(z.namelist())
    except (zipfile.BadZipFile, OSError) as e:
        raise UserError(f"{path}: not a folder, nor a readable zip of class folders ({e})") from e
    local = threading.local()  # a ZipFile is not for several threads at once: one each

    def read(name: str) -> bytes:
        if getattr(local, "pid", None) != os.getpid():  # nor for a forked worker
            local.zip, local.pid = zipfile.ZipFile(path), os.getpid()
        return read_member(local.zip, name, name)

    files = [n for n in names if is_image_name(n)]
    dirs = {n.rstrip("/") for n in names if n.endswith("/") and not n.startswith(("__MACOSX", "."))}
    return files, sorted(dirs), read


def read_member(z: zipfile.ZipFile, member: str, name: str) -> bytes:
    """A zip's member; `BadImage`, calling it `name`, if it can't be unpacked."""
    try:
        return z.read(member)
    except Exception as e:  # damaged zips raise many types, from zlib's to NotImplementedError
        raise BadImage(f"{name}: can't be read from the zip ({e})") from e


def is_image_name(name: str) -> bool:
    base = PurePosixPath(name).name
    return base.lower().endswith(SUFFIXES) and not base.startswith(".") and "__MACOSX" not in name


def _from_files(source: str, files: list[str], dirs: list[str], read: Callable[[str], Path | bytes]) -> Data:
    """[outer/][split/]class/... -> Data. `dirs` tells of classes with no image in them."""
    if not files:
        raise UserError(f"{source}: no images; expected a folder of images for each class")
    depth = 0
    while len({f.split("/")[depth] for f in files}) == 1 and all(f.count("/") > depth + 1 for f in files):
        if files[0].split("/")[depth].lower() in SPLITS:
            break
        depth += 1
    tops = {f.split("/")[depth] for f in files if f.count("/") > depth}
    splits_named = {t.lower() for t in tops}
    has_splits = bool(tops) and splits_named <= set(SPLITS) and "train" in splits_named
    at = depth + has_splits
    found: dict[str, list[tuple[str, str]]] = {}
    for f in files:
        parts = f.split("/")
        if len(parts) > at + 1:
            found.setdefault(SPLITS[parts[depth].lower()] if has_splits else "train", []).append((f, parts[at]))
    labels = sorted({c for rows in found.values() for _, c in rows})
    known = {c: i for i, c in enumerate(labels)}
    empty = sorted({p[at] for d in dirs if len(p := d.split("/")) > at and p[at] not in known})
    splits = {}
    for name in ("train", "val", "test"):
        if rows := found.get(name):
            names = [f for f, _ in rows]
            targets = np.array([known[c] for _, c in rows], np.int64)
            splits[name] = Split(name, names, targets, lambda i, names=names: read(names[i]))  # type: ignore[misc]
    return Data(source, tuple(labels), splits, empty=tuple(empty))
