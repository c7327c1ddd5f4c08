"""Keras weights in HDF5: `model.save_weights` and `model.save` files of Keras 1, 2 and 3.

libhdf5 can crash or hang on a damaged file, so it runs in a child process with limits on memory, time and output; what
the child sends back is read as safetensors.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from mobilenets.errors import UserError
from mobilenets.model import child
from mobilenets.model.convert.formats import Array, check, damaged, one_line, plain

_MB = 2**20
_DAMAGED, _REFUSED = 3, 4  # the child's exit codes when what it wrote is the reason, not arrays

# Keras 3 numbers a layer's variables and doesn't name them.
_KERAS_3 = re.compile(r"(?:.*/)?layers/([^/]+?)(?:_\d+)?/vars/(\d+)$")
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def read(path: Path) -> dict[str, Array]:
    """Every float variable as float32 in Keras's own layout: {"conv1/kernel": [kh, kw, cin, cout], ...}.

    A depthwise kernel, [kh, kw, channels, 1], is "conv_dw_1/depthwise_kernel" in files of Keras 1 and 2, and
    "conv_dw_1/kernel" in those of Keras 3.
    """
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
        raise damaged(path, "HDF5 file", "reading it takes too long") from e
    if len(answer) > limits[2] + _MB:
        raise damaged(path, "HDF5 file", "it unpacks to far more than its size")
    if code == _REFUSED:
        raise UserError(f"{path}: {one_line(answer.decode(errors='replace'))}")
    if code == _DAMAGED:
        raise damaged(path, "HDF5 file", answer.decode(errors="replace"))
    if code:
        raise damaged(path, "HDF5 file", f"the HDF5 library stopped with code {code}")
    try:
        arrays: dict[str, Array] = safetensors.numpy.load(answer)
    except (safetensors.SafetensorError, ValueError) as e:
        raise damaged(path, "HDF5 file", e) from e
    if not arrays:
        raise UserError(f"{path}: an HDF5 file, but without Keras weights in it")
    return arrays


def _arrays(path: str, most: int) -> dict[str, Array]:
    import h5py

    found: dict[str, Array] = {}
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

        root = file.get("model_weights", file)
        if "layer_names" in root.attrs or "layer_names0" in root.attrs:
            for layer in _strings(root, "layer_names"):
                group = root[layer]
                weights = _strings(group, "weight_names")
                # Keras 1 wrote "conv1_1/kernel:0" for layer conv1; a model in a model has its layers' own names.
                leaves = [w.split(":")[0].rsplit("/", 1)[-1] for w in weights]
                one_layer = len(set(leaves)) == len(leaves)
                for weight, leaf in zip(weights, leaves, strict=True):
                    inner = layer if one_layer else (weight.split("/")[-2:-1] or [layer])[0]
                    take(f"{inner}/{leaf}", group[weight])
        elif "layers" in file:
            variables: dict[tuple[str, str, str], dict[int, Any]] = {}

            def visit(name: str, data: Any) -> None:
                if (m := _KERAS_3.match(name)) and len(m[2]) < 4:
                    layer = data.parent.attrs.get("name", "")
                    variables.setdefault((data.parent.name, m[1], layer), {})[int(m[2])] = data

            file.visititems(visit)
            for (where, kind, layer), numbered in variables.items():
                names = _NORM if kind == "batch_normalization" else ("kernel", "bias")
                known = kind in ("batch_normalization", "conv2d", "depthwise_conv2d", "dense")
                whole = sorted(numbered) == list(range(len(numbered))) and len(numbered) <= len(names)
                if not layer or not known or not whole or (names is _NORM and len(numbered) != 4):
                    raise UserError(
                        f"{where} doesn't say which layer's variables it holds; write it with model.save('name.h5')"
                    )
                for i, data in numbered.items():
                    take(f"{layer}/{names[i]}", data)
    return found


def _strings(group: Any, name: str) -> list[str]:
    """A list of names among a group's attributes; Keras splits a long one into name0, name1, ..."""
    parts = [name] if name in group.attrs else []
    while f"{name}{len(parts)}" in group.attrs:
        parts.append(f"{name}{len(parts)}")
    return [s.decode() if isinstance(s, bytes) else str(s) for p in parts for s in np.ravel(group.attrs[p])]


def _child(path: str, memory: int, seconds: int, output: int) -> int:
    child.limit(AS=memory, CPU=seconds, FSIZE=output + _MB, CORE=0)
    try:
        answer = safetensors.numpy.save(_arrays(path, output))
        code = 0
    except Exception as e:  # h5py raises nearly anything
        answer = one_line(e).encode(errors="replace")
        code = _REFUSED if isinstance(e, UserError) else _DAMAGED
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    return code


if __name__ == "__main__":
    os._exit(_child(sys.argv[1], *map(int, sys.argv[2:])))  # past libhdf5's clean-up, which can crash too
