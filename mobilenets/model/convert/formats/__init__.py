"""Readers of weight files that other frameworks wrote; none needs the framework, and none trusts the file.

Each module has `read(path)`. Whatever is wrong with a file, truncated or hostile, is one `UserError` that names it;
what is allocated is a small multiple of the file's size, and nothing in a file is ever executed.
"""

from __future__ import annotations

import contextlib
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets.errors import UserError

Array = npt.NDArray[Any]

# What a file is taken for when its first bytes don't say.
READERS = {
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".keras": "hdf5",
    ".tflite": "tflite",
    ".index": "tf_checkpoint",
    ".ckpt": "tf_checkpoint",
    ".pb": "frozen_graph",
    ".pth": "pytorch",
    ".pt": "pytorch",
    ".bin": "pytorch",
    ".safetensors": "pytorch",
    ".npz": "pytorch",
}

KERAS_WEIGHTS = "model.weights.h5"  # in a .keras archive
_SHARD = re.compile(r"\.data-\d{5}-of-\d{5}$")


def reader(path: Path) -> str:
    """The module that reads the file: hdf5, tflite, tf_checkpoint, frozen_graph or pytorch.

    Its first bytes say it, or its name.
    """
    with path_errors(path):
        if _SHARD.search(path.name) or (not path.exists() and Path(f"{path}.index").is_file()):
            return "tf_checkpoint"
    size = check(path)
    with path_errors(path), path.open("rb") as f:
        head = f.read(16)
        f.seek(max(size - 8, 0))
        tail = f.read(8)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head[4:8] == b"TFL3":
        return "tflite"
    if tail == b"\x57\xfb\x80\x8b\x24\x75\x47\xdb":
        return "tf_checkpoint"
    if head.startswith(b"PK\x03\x04") and is_keras_archive(path):
        return "hdf5"
    if head.startswith((b"PK\x03\x04", b"\x80")) or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size):
        return "pytorch"
    if path.suffix.lower() in READERS:
        return READERS[path.suffix.lower()]
    raise UserError(
        f"{path}: not a known weight file; known: Keras .h5 and .keras, TFLite .tflite, TensorFlow checkpoint "
        "(.index) and frozen graph (.pb), PyTorch .pth, .safetensors, .npz"
    )


def is_keras_archive(path: Path) -> bool:
    """Whether a file is a .keras archive, a zip of weights and the description of their model."""
    try:
        with zipfile.ZipFile(path) as z:
            return KERAS_WEIGHTS in z.namelist()
    except Exception:  # damaged zips raise many types
        return False


@contextlib.contextmanager
def path_errors(path: Path) -> Iterator[None]:
    """Turn a path that can't be opened or read into a UserError."""
    try:
        yield
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such file") from e
    except OSError as e:
        raise UserError(f"{path}: can't be read ({e.strerror})") from e


def check(path: Path) -> int:
    """The size of a regular file, bytes; `UserError` for what isn't one."""
    if "\0" in str(path):
        raise UserError(f"{str(path)!r}: no such file")
    with path_errors(path):
        found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # a pipe or a device may have no end
        raise UserError(f"{path}: not a file")
    return found.st_size


def content(path: Path) -> bytes:
    """All of a regular file."""
    size = check(path)
    with path_errors(path), path.open("rb") as f:
        return f.read(size)


def plain(array: Array) -> Array | None:
    """Floats as float32, integers as int64, both in native byte order; None for anything else."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return array.astype(np.float32)
    return array.astype(np.int64) if array.dtype.kind in "iu" else None


def one_line(reason: object) -> str:
    """A message as one line fit for a terminal; it may quote the file."""
    line = " ".join(str(reason).split()) or type(reason).__name__
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= 200 else line[:200] + "..."


def damaged(path: Path, what: str, reason: object) -> UserError:
    """The error for a file that isn't what it says it is."""
    return UserError(f"{path}: damaged {what} ({one_line(reason)})")
