"""A bundle's card, as the JSON that was written, and its tensors: what updates carry, to the bit. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilenets.model import bundle as bundles
from mobilenets.model import mnz
from mobilenets.model.encodings import Tensors


@dataclass(frozen=True)
class Contents:
    """`card`: with the digest, which stands for all of it. `labels`: its classes, in order; none for other tasks."""

    card: Mapping[str, Any]
    tensors: Tensors
    labels: tuple[str, ...]

    @property
    def digest(self) -> str:
        return str(self.card.get("digest", ""))

    @classmethod
    def read(cls, path: Path) -> Contents:
        """Of a bundle's folder, a .mnz file, or whatever else a bundle is named by. Raises `UserError`."""
        known, card, tensors = bundles.read(bundles.located(path))
        return cls(card, tensors, known.labels)

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Contents:
        """Of a .mnz file's bytes. Raises `UserError`."""
        known, card, tensors = mnz.unpack(bytes(data), "its network", bundles.verified)
        return cls(card, tensors, known.labels)

    def pack(self) -> bytes:
        """As a .mnz file's bytes."""
        return bundles.as_files(self.card, self.tensors, mnz.SUFFIX)[""]

    def save(self, path: Path) -> None:
        """Write it as what the path's suffix says, a .mnz file or a folder, to the disk itself before this returns."""
        for name, data in bundles.as_files(self.card, self.tensors, path.suffix).items():
            put(path / name, data)
        sync(path.parent)


def put(path: Path, data: bytes) -> None:
    """Write a file that a loss of power doesn't undo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def sync(folder: Path) -> None:
    """Have the names in a folder outlast a loss of power, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
