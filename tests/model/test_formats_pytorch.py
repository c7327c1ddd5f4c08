"""Reading PyTorch's files, safetensors and npz."""

import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from foreign_files import line, same, torch_tensors, zipped

from mobilenets.model.convert.formats import pytorch


@pytest.fixture
def tensors():
    return torch_tensors()


def check_tensors(found, tensors):
    assert set(found) == set(tensors)
    for name, t in tensors.items():
        assert found[name].dtype == (np.float32 if t.is_floating_point() else np.int64)
        np.testing.assert_array_equal(found[name], t.float().numpy())


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize(
    "wrapper",
    ["", "state_dict", "model", "state_dict_ema", "model_ema", "model_state_dict", "model_state", "net", "weights",
     "params", "what the user calls it"],
)  # fmt: skip
def test_pth(tmp_path, tensors, zip_format, wrapper):
    import torch

    saved = {wrapper: {f"module.{k}": t for k, t in tensors.items()}, "epoch": 3} if wrapper else tensors
    if wrapper.endswith("ema"):
        saved[wrapper.removesuffix("_ema")] = {k: t + 1 for k, t in tensors.items()}
    torch.save(saved, tmp_path / "m.pth", _use_new_zipfile_serialization=zip_format)
    check_tensors(pytorch.read(tmp_path / "m.pth"), tensors)


def test_pth_with_weights_deep_inside(tmp_path, tensors):
    import torch

    adam = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"run": {"model": {"state_dict": tensors}}, "optimizer": adam, "epoch": 3}, tmp_path / "deep.pth")
    torch.save({"ema": {"net": tensors}, "net": {k: t + 1 for k, t in tensors.items()}}, tmp_path / "ema.pth")
    torch.save({"teacher": tensors, "student": tensors, "epoch": 3}, tmp_path / "two.pth")
    assert "tensors under several names (teacher, student)" in line(pytorch.read, tmp_path / "two.pth")
    check_tensors(pytorch.read(tmp_path / "ema.pth"), tensors)
    check_tensors(pytorch.read(tmp_path / "deep.pth"), tensors)


class Runs:
    def __reduce__(self):
        return os.mkdir, (os.environ["FORMATS_TEST_MARK"],)


def test_pth_with_code_in_it(tmp_path, tensors, monkeypatch):
    import torch

    monkeypatch.setenv("FORMATS_TEST_MARK", str(tmp_path / "it ran"))
    said = "holds code, not only tensors"
    for zip_format in (True, False):
        path = tmp_path / "m.pth"
        torch.save({**tensors, "x": Runs()}, path, _use_new_zipfile_serialization=zip_format)
        found = line(pytorch.read, path)
        assert found.startswith(f"{said} (posix.mkdir), and loading it would run that code; save it with torch.save(")
        torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=zip_format)
        assert line(pytorch.read, path).startswith(f"{said} (torch.nn.modules.linear.Linear), and")
    (tmp_path / "p.pt").write_bytes(pickle.dumps({"x": Runs()}))
    assert "a pickle that torch.save didn't write, which may hold code" in line(pytorch.read, tmp_path / "p.pt")
    (tmp_path / "s.pt").write_bytes(zipped({"s/data.pkl": b"", "s/code/__torch__.py": "import os"}))
    assert line(pytorch.read, tmp_path / "s.pt") == f"{said} (TorchScript); save its state_dict() instead"
    assert not (tmp_path / "it ran").exists()


def test_pth_that_unpacks_to_more_than_its_size(tmp_path):
    import torch

    torch.save({"a": torch.ones(1).expand(1 << 40)}, tmp_path / "m.pth")
    assert line(pytorch.read, tmp_path / "m.pth") == "damaged PyTorch file (it unpacks to far more than its size)"
    torch.save({"a": torch.ones(1 << 16)}, tmp_path / "n.pth")
    with zipfile.ZipFile(tmp_path / "n.pth") as z:
        members = {i.filename: z.read(i) for i in z.infolist()}
    (tmp_path / "n.pth").write_bytes(zipped(members, zipfile.ZIP_DEFLATED))
    assert "PyTorch doesn't compress" in line(pytorch.read, tmp_path / "n.pth")


def test_pth_that_asks_for_memory(tmp_path):
    """torch.load(weights_only=True) lets a pickle call bytearray(3 GB)."""
    import torch

    torch.save({"a": torch.ones(1)}, tmp_path / "m.pth")
    with zipfile.ZipFile(tmp_path / "m.pth") as z:
        members = {i.filename: z.read(i) for i in z.infolist()}
    members["m/data.pkl"] = b"\x80\x02cbuiltins\nbytearray\n(\x8a\x05" + (3 << 30).to_bytes(5, "little") + b"tR."
    (tmp_path / "m.pth").write_bytes(zipped(members))
    assert line(pytorch.read, tmp_path / "m.pth").startswith("holds a bytearray, not only tensors; save it with")


def test_pth_of_a_list(tmp_path):
    import torch

    tensors = torch_tensors()
    for saved in ([tensors], (tensors, {"epoch": 3}), [{"epoch": 3}, {"state_dict": tensors}]):
        torch.save(saved, tmp_path / "m.pth")
        check_tensors(pytorch.read(tmp_path / "m.pth"), tensors)
    torch.save(list(tensors.values()), tmp_path / "m.pth")
    assert line(pytorch.read, tmp_path / "m.pth").startswith("a list of tensors, without names; save it with")
    torch.save({"state_dict": tensors, "history": [torch.eye(3)]}, tmp_path / "m.pth")
    check_tensors(pytorch.read(tmp_path / "m.pth"), tensors)


def test_pth_with_other_things_in_it(tmp_path):
    import torch

    torch.save({"epoch": 3, "lr": [0.1]}, tmp_path / "m.pth")
    assert line(pytorch.read, tmp_path / "m.pth") == "no tensors in it"
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "m.pth")
    assert "a is a sparse, quantized or empty tensor" in line(pytorch.read, tmp_path / "m.pth")


def test_safetensors(tmp_path, tensors):
    from safetensors.torch import save_file

    save_file({f"module.{k}": t for k, t in tensors.items()}, tmp_path / "m.safetensors")
    check_tensors(pytorch.read(tmp_path / "m.safetensors"), tensors)


def test_damaged_safetensors(tmp_path):
    path = tmp_path / "m.safetensors"
    data = safetensors.numpy.save({"a": np.ones((4, 4), np.float32)})
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 64]}}).encode()
    for bad in (data[:-1], data[:20], struct.pack("<Q", len(header)) + header + bytes(64)):
        path.write_bytes(bad)
        assert line(pytorch.read, path).startswith("damaged safetensors file (")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    a = np.arange(12, dtype=np.float64).reshape(3, 4)
    save(tmp_path / "m.npz", a=a, f=np.asfortranarray(a), h=a.astype(np.float16), n=np.uint8(3), s=np.array(["x"]))
    found = pytorch.read(tmp_path / "m.npz")
    same({k: v for k, v in found.items() if k != "n"}, {"a": a, "f": a, "h": a})
    assert found["n"].dtype == np.int64
    assert found["n"] == 3


def npy(shape, data, dtype="<f4"):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue() + data


def test_bad_npz(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, a=np.array([{}], object))
    assert line(pytorch.read, path) == "holds Python objects, not only arrays; save plain arrays"
    path.write_bytes(zipped({"a.npy": npy((1 << 40,), bytes(64))}))
    assert "a.npy has 64 bytes, not (1099511627776,) of float32" in line(pytorch.read, path)
    path.write_bytes(zipped({"a.npy": npy((1 << 23,), bytes(1 << 25))}, zipfile.ZIP_DEFLATED))
    assert line(pytorch.read, path) == "damaged zip (it unpacks to far more than its size)"
    path.write_bytes(zipped({"a.npy": npy((4,), bytes(16))}, zipfile.ZIP_LZMA))
    assert line(pytorch.read, path) == "damaged zip (compressed in an unknown way)"
    path.write_bytes(zipped({"readme": b""}))
    assert line(pytorch.read, path) == "a zip, but neither a PyTorch file nor an .npz"
