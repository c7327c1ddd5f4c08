"""Reading Keras' files."""

import subprocess
import sys
import time

import numpy as np
import pytest
from foreign_files import keras3_layers, keras_arrays, line, network, same, write_h5, write_keras3, write_lite

from mobilenets.errors import UserError
from mobilenets.model.convert.formats import hdf5
from mobilenets.model.convert.formats import tflite as lite

h5py = pytest.importorskip("h5py")


@pytest.fixture
def arrays():
    return keras_arrays()


@pytest.mark.parametrize("root", ["", "model_weights"])
@pytest.mark.parametrize("suffix", [":0", ""])
def test_keras_weights(tmp_path, arrays, root, suffix):
    same(hdf5.read(write_h5(tmp_path / "w.h5", arrays, root, suffix)), arrays)


def test_keras_weights_compressed_and_of_other_precision(tmp_path, arrays):
    for dtype in (np.float16, np.float64, ">f4"):
        other = {k: a.astype(dtype) for k, a in arrays.items()}
        same(hdf5.read(write_h5(tmp_path / "w.h5", other, compression="gzip")), other)


def test_a_keras_model_in_a_model(tmp_path, arrays):
    same(hdf5.read(write_h5(tmp_path / "w.h5", arrays, group="mobilenet_1.00_224")), arrays)


def test_keras_1_names(tmp_path, arrays):
    with h5py.File(write_h5(tmp_path / "w.h5", {}), "a") as f:
        f.attrs["layer_names"] = [b"conv1"]
        f["conv1/conv1_1/kernel:0"] = arrays["conv1/kernel"]
        f["conv1"].attrs["weight_names"] = [b"conv1_1/kernel:0"]
    same(hdf5.read(tmp_path / "w.h5"), {"conv1/kernel": arrays["conv1/kernel"]})


def test_keras_splits_long_lists_of_names(tmp_path, arrays):
    with h5py.File(write_h5(tmp_path / "w.h5", arrays), "a") as f:
        names = f.attrs["layer_names"]
        del f.attrs["layer_names"]
        f.attrs["layer_names0"], f.attrs["layer_names1"] = names[:2], names[2:]
    same(hdf5.read(tmp_path / "w.h5"), arrays)


def test_keras_3_weights(tmp_path, arrays):
    expected = {k.replace("depthwise_kernel", "kernel"): a for k, a in arrays.items()}
    same(hdf5.read(write_keras3(tmp_path / "a.weights.h5", keras3_layers(arrays))), expected)


def test_keras_3_weights_without_names_are_refused(tmp_path, arrays):
    path = write_keras3(tmp_path / "a.weights.h5", keras3_layers(arrays), named=False)
    assert "doesn't say which layer's variables it holds; write it with model.save('name.h5')" in line(hdf5.read, path)
    layers = keras3_layers(arrays)
    layers["batch_normalization", "conv1_bn"].pop()  # scale=False or center=False: which of the four?
    assert "doesn't say which" in line(hdf5.read, write_keras3(tmp_path / "b.weights.h5", layers))


def test_damaged_hdf5(tmp_path, arrays):
    path = write_h5(tmp_path / "w.h5", arrays)
    data = path.read_bytes()
    for cut in (0, 7, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        assert line(hdf5.read, path).startswith("damaged HDF5 file (")
    with h5py.File(path, "w") as f:
        f["a"] = 1
    assert line(hdf5.read, path) == "an HDF5 file, but without Keras weights in it"


def test_an_hdf5_bomb(tmp_path):
    """A gigabyte of zeros in a few kilobytes of file."""
    zeros = {"conv1/kernel": np.zeros((1, 1, 1, 1), np.float32)}
    with h5py.File(write_h5(tmp_path / "w.h5", zeros), "a") as f:
        del f["conv1/conv1/kernel:0"]
        f["conv1"].create_dataset("conv1/kernel:0", (1024, 1024, 256), "f4", compression="gzip", chunks=(64, 1024, 16))
    assert line(hdf5.read, tmp_path / "w.h5") == "damaged HDF5 file (it unpacks to far more than its size)"


def test_hdf5_that_reads_other_files(tmp_path, arrays):
    write_h5(tmp_path / "other.h5", arrays)
    with h5py.File(write_h5(tmp_path / "w.h5", arrays), "a") as f:
        del f["conv1/conv1/kernel:0"]
        f["conv1/conv1/kernel:0"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "conv1/conv1/kernel:0")
    assert "isn't an array in this file" in line(hdf5.read, tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5", "a") as f:
        del f["conv1/conv1/kernel:0"]
        f["conv1"].create_dataset("conv1/kernel:0", (4,), "f4", external=[(str(tmp_path / "other.h5"), 0, 16)])
    assert "isn't an array in this file" in line(hdf5.read, tmp_path / "w.h5")


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("os.kill(os.getpid(), 11)", "the HDF5 library stopped with code -11"),
        ("time.sleep(60)", "reading it takes too long"),
        ("bytearray(8 << 30)", "the HDF5 library stopped with code 1"),
        ("[sys.stdout.write('x' * (1 << 20)) for _ in range(32)]", "damaged HDF5 file ("),
        ("sys.stdout.write('not tensors')", "damaged HDF5 file ("),
    ],
)
def test_the_hdf5_library_crashes_or_hangs(tmp_path, arrays, monkeypatch, does, said):
    """The child imports an h5py that misbehaves."""
    path = write_h5(tmp_path / "w.h5", arrays)
    (tmp_path / "h5py.py").write_text(f"import os, sys, time\ntry:\n    {does}\nfinally:\n    os._exit(0)\n")
    if "bytearray" in does:
        (tmp_path / "h5py.py").write_text(
            f"import os\ntry:\n    {does}\nexcept MemoryError:\n    os._exit(1)\nos._exit(0)\n"
        )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    run = subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda *a, timeout, **k: run(*a, timeout=1 if "sleep" in does else timeout, **k)
    )
    started = time.monotonic()
    with pytest.raises(UserError, match="damaged HDF5 file") as e:
        hdf5.read(path)
    assert said in str(e.value)
    assert time.monotonic() - started < 30


def test_without_the_optional_packages(tmp_path, arrays, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for read, path, name in (
        (hdf5.read, write_h5(tmp_path / "w.h5", arrays), "h5py"),
        (lite.read, write_lite(tmp_path / "m.tflite", network("float32")), "tflite"),
    ):
        with pytest.raises(UserError, match=rf"needs {name}: pip install 'mobilenets\[weights\]'$"):
            read(path)
