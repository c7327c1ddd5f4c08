"""Which image is which: told by name and size, however the folder is spelled, copied, zipped or added to. No torch."""

from __future__ import annotations

import base64
import binascii
import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Marks = npt.NDArray[np.uint32]


def marks(names: Sequence[str], sizes: Sequence[int]) -> Marks:
    """A number for each image, of its name below the folders that hold them all, and of its size in bytes."""
    folders = [n.split("/")[:-1] for n in names]
    shared = 0
    while all(len(f) > shared for f in folders) and len({f[shared] for f in folders}) == 1:
        shared += 1
    out = np.empty(len(names), "<u4")
    for i, (name, size) in enumerate(zip(names, sizes, strict=True)):
        own = unicodedata.normalize("NFC", "/".join(name.split("/")[shared:]))
        said = f"{own}\0{size}".encode(errors="surrogateescape")
        out[i] = int.from_bytes(hashlib.blake2b(said, digest_size=4).digest(), "little")
    return out


def summary(of: Iterable[Marks | None]) -> dict[str, Any] | None:
    """How many images splits have together and a digest of which, in whatever order; None where there are no marks."""
    found = [m for m in of if m is not None]
    if not found:
        return None
    every = np.sort(np.concatenate(found)).astype("<u4")
    return {"count": len(every), "digest": hashlib.sha256(every.tobytes()).hexdigest()[:16]}


def pack(of: Marks) -> str:
    """Marks as text for a card: 16 letters for 3 images."""
    return base64.b64encode(np.sort(of).astype("<u4").tobytes()).decode()


def unpack(text: Any) -> Marks:
    """The inverse of `pack`; none of what isn't such a text."""
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<u4")
    except (binascii.Error, TypeError, ValueError):
        return np.empty(0, "<u4")
