"""Thousands of damaged weight files: each is read or is one line of UserError, soon, and with little memory."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from damage import MAX_MB, fuzz, memory, mutated, outcome
from foreign_files import keras3_layers, network, write_checkpoint, write_h5, write_keras3, write_lite, zipped

from mobilenets.errors import UserError
from mobilenets.model.convert import formats
from mobilenets.model.convert.formats import hdf5, pytorch, tf_checkpoint, tflite

pytestmark = pytest.mark.slow

MAX_HDF5_S = 45  # libhdf5 does hang on some; it is stopped after 8 CPU seconds, or 24


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    names = {"conv1/kernel": (3, 3, 3, 8), "conv1_bn/gamma": (8,), "conv_dw_1/depthwise_kernel": (3, 3, 8, 1)}
    names |= {f"conv1_bn/{n}": (8,) for n in ("beta", "moving_mean", "moving_variance")}
    names |= {"conv_preds/kernel": (1, 1, 8, 5), "conv_preds/bias": (5,)}
    return {k: rng.normal(0, 1, s).astype(np.float32) for k, s in names.items()}


@pytest.mark.parametrize("kind", ["float32", "float16", "uint8", "int8"])
def test_tflite(tmp_path, kind):
    path = write_lite(tmp_path / "m.tflite", network(kind), zipped({"labels.txt": "a\nb\nc\nd\ne\n"}, 8))
    fuzz(tflite.read, path.read_bytes(), path, 2000, 1)


@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("checksums", [True, False])
def test_checkpoint(tmp_path, arrays, part, checksums, monkeypatch):
    """Without checksums, so that damage reaches what they protect; a hostile file has the right ones."""
    prefix = write_checkpoint(tmp_path / "m.ckpt", {f"{k}/ExponentialMovingAverage": a for k, a in arrays.items()})
    if not checksums:
        monkeypatch.setattr(tf_checkpoint, "_verify", lambda *_: None)
    path = Path(f"{prefix}.{part}")
    fuzz(tf_checkpoint.read, path.read_bytes(), path, 1500, 2)


def test_safetensors(tmp_path, arrays):
    fuzz(pytorch.read, safetensors.numpy.save(arrays), tmp_path / "m.safetensors", 2000, 3)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, arrays, save):
    path = tmp_path / "m.npz"
    save(path, **{k.replace("/", "."): a for k, a in arrays.items()})
    fuzz(pytorch.read, path.read_bytes(), path, 1500, 4)


@pytest.mark.parametrize("zip_format", [True, False])
def test_pth(tmp_path, arrays, zip_format):
    import torch

    path = tmp_path / "m.pth"
    saved = {k: torch.from_numpy(a) for k, a in arrays.items()}
    torch.save({"state_dict": saved}, path, _use_new_zipfile_serialization=zip_format)
    fuzz(pytorch.read, path.read_bytes(), path, 2000, 5)


@pytest.mark.parametrize("layout", ["contiguous", "gzip", "keras 3"])
def test_hdf5(tmp_path, arrays, layout):
    """In threads, because each starts a process; that process's limits are what bounds its memory."""
    path = tmp_path / "w.h5"
    if layout == "keras 3":
        write_keras3(path, keras3_layers(arrays))
    else:
        write_h5(path, arrays, **({"compression": "gzip", "shuffle": True} if layout == "gzip" else {}))
    data, rng = path.read_bytes(), np.random.default_rng(6)
    paths = []
    for i in range(300):
        paths.append(tmp_path / f"w{i}.h5")
        paths[-1].write_bytes(mutated(data, rng))
    before = memory("VmRSS")
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda p: outcome(hdf5.read, p, MAX_HDF5_S), paths))
    assert {"read", "refused"} == set(done)
    assert not memory("VmRSS") - before > MAX_MB


def test_which_reader(tmp_path, arrays):
    """Any bytes under any name: no reader for them, or one that refuses them."""
    rng = np.random.default_rng(7)
    starts = (
        b"\x1c\0\0\0TFL3",
        b"PK\x03\x04",
        b"\x80\x02",
        safetensors.numpy.save(arrays)[:64],
        b"",
    )
    readers = {"tflite": tflite.read, "tf_checkpoint": tf_checkpoint.read, "pytorch": pytorch.read}
    for i in range(1000):
        path = tmp_path / f"x{i}{rng.choice(['', '.bin', '.tflite', '.index', '.pth'])}"
        path.write_bytes(starts[rng.integers(len(starts))] + rng.bytes(int(rng.integers(200))))
        with pytest.raises(UserError):
            readers[formats.reader(path)](path)
