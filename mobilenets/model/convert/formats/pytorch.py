"""Tensors by name: PyTorch's .pth, .safetensors, and numpy's .npz."""

from __future__ import annotations

import math
import mmap
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from mobilenets.errors import UserError
from mobilenets.model.convert.formats import Array, check, content, damaged, one_line, path_errors, plain

_MB = 2**20
# Under these names training scripts keep weights, the averaged ones first: they are what was scored.
_EMA = re.compile(r"(^|_)ema(_|$)", re.IGNORECASE)
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights", "params")
_STATE = re.compile(r"optim|sched|scaler|loops|callbacks|param_groups", re.IGNORECASE)  # of the training, not weights
DEEPEST = 4  # dictionaries in each other
_SAVE = "save it with torch.save(model.state_dict(), ...)"
_SAFETENSORS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U8": "|u1",
}  # fmt: skip


def read(path: Path) -> dict[str, Array]:
    """Every tensor by its name in the state dict: floats as float32, integers as int64.

    What a checkpoint wraps them in is taken off, and "module.", which DataParallel adds. Raises `UserError`, too where
    there are several sets of tensors under names that say nothing.
    """
    check(path)
    with path_errors(path), path.open("rb") as f:
        head = f.read(9)
    if head[:4] == b"PK\x03\x04":
        arrays = _zip(path)
    elif head[8:9] == b"{":
        arrays = _safetensors(path)
    elif head[:1] == b"\x80":
        arrays = _torch(path, mapped=False)
    else:
        raise UserError(f"{path}: neither PyTorch, safetensors nor npz; damaged, or of another kind")
    if not arrays:
        raise UserError(f"{path}: no tensors in it")
    return {k.removeprefix("module."): a for k, a in arrays.items()}


def _weights(found: Any, path: Path, depth: int = DEEPEST) -> dict[Any, Any]:
    """The dictionary of tensors in what was saved: itself, or the one inside, however deep; empty of none."""
    import torch

    if isinstance(found, list | tuple) and depth == DEEPEST:  # (weights, the rest), as some scripts save them
        if any(isinstance(t, torch.Tensor) for t in found):
            raise UserError(f"{path}: a list of tensors, without names; {_SAVE}")
        found = dict(enumerate(found))
    if not isinstance(found, dict) or not depth:
        return {}
    if any(isinstance(t, torch.Tensor) for t in found.values()):
        return found
    sets = {str(k): w for k, v in found.items() if not _STATE.search(str(k)) and (w := _weights(v, path, depth - 1))}
    ranked = [k for k in sets if _EMA.search(k)] + [k for k in _WRAPPERS if k in sets] + list(sets)[: len(sets) == 1]
    if sets and not ranked:
        names = ", ".join(map(one_line, list(sets)[:8]))
        raise UserError(f"{path}: tensors under several names ({names}): save the weights alone, as a state_dict()")
    return sets[ranked[0]] if sets else {}


def _safetensors(path: Path) -> dict[str, Array]:
    try:
        found = safetensors.deserialize(content(path))  # type: ignore[no-untyped-call]
    except Exception as e:  # of its own type, or from Rust
        raise damaged(path, "safetensors file", e) from e
    arrays = {}
    for name, t in found:
        if t["dtype"] not in _SAFETENSORS:
            continue
        array = np.frombuffer(t["data"], _SAFETENSORS[t["dtype"]]).reshape(t["shape"])
        if t["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        if (a := plain(array)) is not None:
            arrays[name] = a
    return arrays


def _zip(path: Path) -> dict[str, Array]:
    """An .npz or a .pth, both of which are zips."""
    size = check(path)
    try:
        with zipfile.ZipFile(path) as z:
            members = z.infolist()
            if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in members):
                raise ValueError("compressed in an unknown way")
            if sum(m.file_size for m in members) > 16 * size + 16 * _MB:
                raise ValueError("it unpacks to far more than its size")
            if members and all(m.filename.endswith(".npy") for m in members):
                return {m.filename.removesuffix(".npy"): a for m in members if (a := _npy(z, m)) is not None}
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    except Exception as e:  # damaged zips raise many types, from zlib's to NotImplementedError
        raise damaged(path, "zip", e) from e
    if any("/code/" in m.filename for m in members):
        raise UserError(f"{path}: holds code, not only tensors (TorchScript); save its state_dict() instead")
    if not any(m.filename.endswith("data.pkl") for m in members):
        raise UserError(f"{path}: a zip, but neither a PyTorch file nor an .npz")
    if any(m.compress_type for m in members):
        raise damaged(path, "PyTorch file", "PyTorch doesn't compress, and this is")
    return _torch(path, mapped=True)


def _npy(z: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array | None:
    """An array of an .npz, None if not of numbers. numpy's own reader makes room for what the header says first."""
    with z.open(member) as f:
        version = np.lib.format.read_magic(f)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read_header[version](f)
        if dtype.hasobject:
            raise UserError("holds Python objects, not only arrays; save plain arrays")
        data = f.read(member.file_size)
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{member.filename} has {len(data):,} bytes, not {shape} of {dtype}")
    return plain(np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C"))


def _torch(path: Path, mapped: bool) -> dict[str, Array]:
    import torch

    size = check(path)
    with path_errors(path), path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        if whole.find(b"bytearray") >= 0:  # torch lets a pickle make one of any size
            raise UserError(f"{path}: holds a bytearray, not only tensors; {_SAVE}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of what the file then fails by
            found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as e:
        if named := re.search(r"GLOBAL (\S+)", str(e)):
            code = one_line(named[1])
            raise UserError(
                f"{path}: holds code, not only tensors ({code}), and loading it would run that code; {_SAVE}"
            ) from e
        if "Unsupported operand" in str(e):
            raise UserError(
                f"{path}: damaged, or a pickle that torch.save didn't write, which may hold code; {_SAVE}"
            ) from e
        raise damaged(path, "PyTorch file", e) from e
    except Exception as e:  # torch raises nearly anything on hostile bytes
        raise damaged(path, "PyTorch file", e) from e
    inner = _weights(found, path)
    left = 4 * size + _MB  # a tensor can repeat one number of the file any number of times
    arrays = {}
    for name, t in inner.items():
        if not isinstance(t, torch.Tensor):
            continue
        if t.layout != torch.strided or t.device.type != "cpu" or t.is_quantized:
            raise UserError(
                f"{path}: {one_line(name)} is a sparse, quantized or empty tensor; save a float model's state_dict()"
            )
        left -= t.numel() * t.element_size()
        if left < 0:
            raise damaged(path, "PyTorch file", "it unpacks to far more than its size")
        t = t.detach().resolve_conj().resolve_neg()
        if (a := plain((t.float() if t.is_floating_point() else t).numpy())) is not None:
            arrays[str(name)] = a
    return arrays
