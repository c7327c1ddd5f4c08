"""Thousands of damaged weight files: each is read or is one line of UserError, soon, and with little memory."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from foreign_files import keras3_layers, network, write_checkpoint, write_h5, write_keras3, write_lite, zipped

from mobilenets.errors import UserError
from mobilenets.model.convert import formats
from mobilenets.model.convert.formats import hdf5, pytorch, tf_checkpoint, tflite

pytestmark = pytest.mark.slow

MB = 2**20
MAX_S, MAX_MB = 10, 96
MAX_HDF5_S = 45  # libhdf5 does hang on some; it is stopped after 8 CPU seconds, or 24
INTERESTING = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0xFFFF,
    1 << 20,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    2**63 - 1,
    2**64 - 1,
)


def mutated(data, rng):
    """One to four changes: flipped bits, bytes, inflated lengths, cuts, insertions, removals, moved pieces."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not out:
            break
        # where structures are: half of the changes near one of the ends
        at = int(rng.integers(len(out))) if rng.random() < 0.5 else int(rng.integers(min(len(out), 256)))
        at = len(out) - 1 - at if rng.random() < 0.25 else at
        match rng.integers(8):
            case 0:
                out[at] ^= 1 << rng.integers(8)
            case 1:
                out[at] = rng.integers(256)
            case 2 | 3:
                width = int(rng.choice([1, 2, 4, 8]))
                at -= at % width if rng.random() < 0.7 else 0
                value = int(rng.choice(INTERESTING, 1)[0] if rng.random() < 0.7 else len(data) * rng.integers(1, 9))
                out[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
            case 4:
                del out[at:]
            case 5:
                out[at:at] = rng.bytes(int(rng.integers(1, 64)))
            case 6:
                del out[at : at + int(rng.integers(1, 64))]
            case 7:
                source = int(rng.integers(len(out)))
                piece = out[source : source + int(rng.integers(1, 64))]
                out[at : at + len(piece)] = piece
    return bytes(out)


def memory(key):
    """VmRSS or VmHWM of this process, MB; nan where the system doesn't say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return float("nan")
    return int(status.split(f"{key}:")[1].split()[0]) / 1024


def outcome(read, path, limit=MAX_S):
    """What reading did: "read" or "refused"; anything else is a failure of the test."""
    started = time.monotonic()
    try:
        read(path)
        line = None
    except UserError as e:
        line = str(e)
    assert time.monotonic() - started < limit
    if line is None:
        return "read"
    assert "\n" not in line
    assert line.startswith(str(path).rsplit(".", 1)[0])
    assert len(line) < len(str(path)) + 400
    return "refused"


def fuzz(read, data, path, count, seed):
    """How many of `count` mutations of `data` were read, and how many refused."""
    rng = np.random.default_rng(seed)
    done = {"read": 0, "refused": 0}
    for i in range(count):
        path.write_bytes(mutated(data, rng))
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
        before = memory("VmRSS")
        try:
            done[outcome(read, path)] += 1
        except BaseException as e:
            e.add_note(f"case {i} of seed {seed}")
            raise
        assert not memory("VmHWM") - before > MAX_MB, f"case {i} of seed {seed}"
    assert done["refused"] > count / 10, done
    return done


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
