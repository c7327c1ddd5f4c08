"""Which reader a file is for."""

import os
import shutil

import numpy as np
import pytest
import safetensors.numpy
from foreign_files import (
    keras_arrays,
    line,
    network,
    slim_arrays,
    torch_tensors,
    write_archive,
    write_checkpoint,
    write_h5,
    write_lite,
)

from mobilenets.errors import UserError
from mobilenets.model.convert import formats
from mobilenets.model.convert.formats import hdf5, pytorch
from mobilenets.model.convert.formats import tflite as lite


@pytest.fixture
def arrays():
    return keras_arrays()


@pytest.fixture
def slim():
    return slim_arrays()


@pytest.fixture
def tensors():
    return torch_tensors()


def test_reader(tmp_path, arrays, slim, tensors):
    import torch

    torch.save(tensors, tmp_path / "new.pth")
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    np.savez(tmp_path / "m.npz", **{k.replace("/", "."): a for k, a in arrays.items()})
    (tmp_path / "m.safetensors").write_bytes(safetensors.numpy.save(arrays))
    write_checkpoint(tmp_path / "ckpt", slim)
    write_h5(tmp_path / "w.h5", arrays)
    write_lite(tmp_path / "m.tflite", network("int8"))
    write_archive(tmp_path / "m.keras", tmp_path / "w.h5")
    kinds = {
        "new.pth": "pytorch",
        "old.pth": "pytorch",
        "m.npz": "pytorch",
        "m.safetensors": "pytorch",
        "ckpt.index": "tf_checkpoint",
        "w.h5": "hdf5",
        "m.tflite": "tflite",
        "m.keras": "hdf5",
    }
    for name, kind in kinds.items():
        assert formats.reader(tmp_path / name) == kind
        shutil.copy(tmp_path / name, tmp_path / "unnamed")
        assert formats.reader(tmp_path / "unnamed") == kind
    assert formats.reader(tmp_path / "ckpt") == "tf_checkpoint"
    (tmp_path / "cut.h5").write_bytes(b"")
    assert formats.reader(tmp_path / "cut.h5") == "hdf5"
    (tmp_path / "notes.txt").write_text("hello")
    said = "not a known weight file; known: Keras .h5 and .keras, TFLite .tflite, TensorFlow checkpoint (.index) and fr"
    assert line(formats.reader, tmp_path / "notes.txt").startswith(said)


@pytest.mark.parametrize("read", [formats.reader, hdf5.read, lite.read, pytorch.read])
def test_paths_that_are_no_files(tmp_path, read):
    assert line(read, tmp_path / "none") == "no such file"
    assert line(read, tmp_path) == "not a file"
    os.mkfifo(tmp_path / "pipe")
    assert line(read, tmp_path / "pipe") == "not a file"
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "a\0b")
    with pytest.raises(UserError, match=r"can't be read \(File name too long\)"):
        read(tmp_path / ("a" * 300))
