"""Keras weights in HDF5: `model.save_weights` and `model.save` files of Keras 1, 2 and 3, .keras archives too.

libhdf5 can crash or hang on a damaged file, so it runs in a child process with limits on memory, time and output; what
the child sends back is read as safetensors.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from mobilenets.errors import UserError
from mobilenets.model import child
from mobilenets.model.convert.formats import KERAS_WEIGHTS, Array, check, damaged, is_keras_archive, one_line, plain

_MB = 2**20
_DAMAGED, _REFUSED = 3, 4  # the child's exit codes when what it wrote is the reason, not arrays

# Keras 3 numbers a layer's variables and doesn't name them.
_KERAS_3 = re.compile(r"(?:.*/)?layers/([^/]+?)(?:_\d+)?/vars/(\d+)$")
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_VARIABLES = {
    "batch_normalization": _NORM,
    "normalization": ("mean", "variance", "count"),
    **dict.fromkeys(("conv2d", "depthwise_conv2d", "dense"), ("kernel", "bias")),
}
_CONFIG = "config.json"  # of a .keras archive


def read(path: Path) -> dict[str, Array]:
    """Every float variable as float32 in Keras's own layout: {"conv1/kernel": [kh, kw, cin, cout], ...}.

    A depthwise kernel, [kh, kw, channels, 1], is "conv_dw_1/depthwise_kernel" in files of Keras 1 and 2, and
    "conv_dw_1/kernel" in those of Keras 3.
    """
    return read_described(path)[0]


def read_described(path: Path) -> tuple[dict[str, Array], str]:
    """`read`, and the description of the model's layers, JSON; empty where the file has none, as one of weights."""
    limit = 16 * check(path) + 16 * _MB
    if not is_keras_archive(path):
        return _read(path, path)
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder, KERAS_WEIGHTS)
        try:
            with zipfile.ZipFile(path) as z:
                if sum(z.getinfo(n).file_size for n in {KERAS_WEIGHTS, _CONFIG} & set(z.namelist())) > limit:
                    raise ValueError("it unpacks to far more than its size")
                with z.open(KERAS_WEIGHTS) as f:
                    inner.write_bytes(f.read(limit))
                config = z.read(_CONFIG).decode() if _CONFIG in z.namelist() else ""
        except Exception as e:  # damaged zips raise many types, from zlib's to NotImplementedError
            raise damaged(path, ".keras archive", e) from e
        return _read(inner, path)[0], config


def _read(path: Path, named: Path) -> tuple[dict[str, Array], str]:
    """Arrays and description in the HDF5 file at `path`; errors name the file as `named`."""
    size = check(path)
    if importlib.util.find_spec("h5py") is None:
        raise UserError("reading .h5 files needs h5py: pip install 'mobilenets[weights]'")
    limits = [512 * _MB + 16 * size, 8 + size // (10 * _MB), 16 * _MB + 16 * size]  # bytes, CPU seconds, bytes
    environment = {
        "HDF5_PLUGIN_PRELOAD": "::",  # no filter from a library outside h5py
        "HDF5_USE_FILE_LOCKING": "FALSE",
    }
    try:
        code, answer = child.run(__name__, path.absolute(), *limits, seconds=3 * limits[1], environment=environment)
    except child.TooSlow as e:
        raise damaged(named, "HDF5 file", "reading it takes too long") from e
    if len(answer) > limits[2] + _MB:
        raise damaged(named, "HDF5 file", "it unpacks to far more than its size")
    if code == _REFUSED:
        raise UserError(f"{named}: {one_line(answer.decode(errors='replace'))}")
    if code == _DAMAGED:
        raise damaged(named, "HDF5 file", answer.decode(errors="replace"))
    if code:
        raise damaged(named, "HDF5 file", f"the HDF5 library stopped with code {code}")
    try:
        arrays: dict[str, Array] = safetensors.numpy.load(answer)
    except (safetensors.SafetensorError, ValueError) as e:
        raise damaged(named, "HDF5 file", e) from e
    if not arrays:
        raise UserError(f"{named}: an HDF5 file, but without Keras weights in it")
    header = json.loads(answer[8 : 8 + int.from_bytes(answer[:8], "little")])
    return arrays, header.get("__metadata__", {}).get(_CONFIG, "")


def _arrays(path: str, most: int) -> tuple[dict[str, Array], str]:
    """The arrays in a file, of no more than `most` bytes, and the model's description, if there is one."""
    import h5py

    found: dict[str, Array] = {}
    config = ""
    with h5py.File(path, "r") as file:

        def take(name: str, data: Any) -> None:
            nonlocal most
            if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external or data.file.filename != path:
                raise ValueError(f"{name} isn't an array in this file")
            if data.dtype.kind != "f":
                return
            most -= data.size * max(data.dtype.itemsize, 4)
            if most < 0:
                raise ValueError("it unpacks to far more than its size")
            array = plain(np.asarray(data[()]))
            if array is not None:
                found[name] = array

        if isinstance(text := file.attrs.get("model_config", ""), str | bytes) and len(text) <= most:
            config = text.decode() if isinstance(text, bytes) else text
        root = file.get("model_weights", file)
        if "layer_names" in root.attrs or "layer_names0" in root.attrs:
            for layer in _strings(root, "layer_names"):
                group = root[layer]
                weights = _strings(group, "weight_names")
                # Keras 1 wrote "conv1_1/kernel:0" for layer conv1; a model in a model has its layers' own names.
                parts = [w.split(":")[0].rpartition("/") for w in weights]
                one_layer = len({leaf for _, _, leaf in parts}) == len(parts)
                for weight, (inner, _, leaf) in zip(weights, parts, strict=True):
                    take(f"{layer if one_layer else inner or layer}/{leaf}", group[weight])
        elif "layers" in file:
            variables: dict[tuple[str, str, str], dict[int, Any]] = {}

            def visit(name: str, data: Any) -> None:
                if (m := _KERAS_3.match(name)) and len(m[2]) < 4:
                    layer = data.parent.attrs.get("name", "")
                    variables.setdefault((data.parent.name, m[1], layer), {})[int(m[2])] = data

            file.visititems(visit)
            for (where, kind, layer), numbered in variables.items():
                names = _VARIABLES.get(kind, ())
                whole = sorted(numbered) == list(range(len(numbered))) and len(numbered) <= len(names)
                if not layer or not whole or (names is _NORM and len(numbered) != 4):
                    raise UserError(
                        f"{where} doesn't say which layer's variables it holds; write it with model.save('name.h5')"
                    )
                for i, data in numbered.items():
                    take(f"{layer}/{names[i]}", data)
    return found, config


def _strings(group: Any, name: str) -> list[str]:
    """A list of names among a group's attributes; Keras splits a long one into name0, name1, ..."""
    parts = [name] if name in group.attrs else []
    while f"{name}{len(parts)}" in group.attrs:
        parts.append(f"{name}{len(parts)}")
    return [s.decode() if isinstance(s, bytes) else str(s) for p in parts for s in np.ravel(group.attrs[p])]


def _child(path: str, memory: int, seconds: int, output: int) -> int:
    child.limit(AS=memory, CPU=seconds, FSIZE=output + _MB, CORE=0)
    try:
        arrays, config = _arrays(path, output)
        answer = safetensors.numpy.save(arrays, {_CONFIG: config})
        code = 0
    except Exception as e:  # h5py raises nearly anything
        answer = one_line(e).encode(errors="replace")
        code = _REFUSED if isinstance(e, UserError) else _DAMAGED
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    return code


if __name__ == "__main__":
    os._exit(_child(sys.argv[1], *map(int, sys.argv[2:])))  # past libhdf5's clean-up, which can crash too
