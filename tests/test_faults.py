"""A full disk and Ctrl-C: one clear line, exit code 2, nothing half-written, what was there before kept."""

import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from small import quantized

from mobilenets import files
from mobilenets.compression.quantize import quantize_bundle
from mobilenets.deploy import engines, export
from mobilenets.deploy.engines import onnxruntime
from mobilenets.errors import UserError
from mobilenets.model.bundle import WEIGHTS, Bundle


def tree(root):
    """Every file with what is in it."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def grow(disk, size):
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def last_line(ran):
    assert ran.code == 2, ran.err
    assert "Traceback" not in ran.err
    lines = [line for line in ran.err.splitlines() if line.startswith("mobilenets: ")]
    assert len(lines) == 1
    assert ran.err.splitlines()[-1] == lines[0]
    return lines[0]


@pytest.fixture
def images(write_images, tmp_path):
    return write_images(tmp_path / "data", {f"{s}/class {i}": 2 for s in ("train", "val") for i in range(10)})


# ---- a full disk ---------------------------------------------------------------------------------------------------


def test_saving_a_bundle(make_bundle, small_disk):
    disk = small_disk("1m")
    b = make_bundle("v1")
    b.save(disk / "0")
    before = tree(disk)
    with pytest.raises(UserError, match=r"can't write .*: the disk is full; nothing was left half-written"):
        b.save(disk / "1")
    assert set(before) == {"0/card.json", "0/weights.safetensors"}
    assert tree(disk) == before
    with pytest.raises(UserError, match="the disk is full"):
        b.save(disk / "0")  # replacing needs room for both
    assert tree(disk) == before
    assert sorted(p.name for p in disk.iterdir()) == ["0"]
    Bundle.load(disk / "0")


def test_what_can_not_be_written_is_said_before_the_work(make_bundle, command, tmp_path):
    """Before images are read: there are none here."""
    make_bundle("v1").save(tmp_path / "b")
    (tmp_path / "file.c-source").write_text("mine")
    for folder in ("folder.mnz", "folder.mnet"):
        (tmp_path / folder).mkdir()
    for verb, out, said in (
        (("compress", "--method", "int8"), "folder.mnz", "is a folder, and a bundle of that name is one file"),
        (("compress", "--method", "int8"), "file.c-source/x.mnz", "a part of the path is a file"),
        (("prune", "--unstructured", "50%"), "file.c-source/x", "a part of the path is a file"),
        (("export",), "folder.mnet", "is a folder, and native is a file"),
        (("export",), "file.c-source", "is a file, and c is a folder"),
        (("export",), "file.c-source/x.mnet", "a part of the path is a file"),
    ):
        ran = command(verb[0], tmp_path / "b", tmp_path / "none", "--out", tmp_path / out, *verb[1:])
        assert said in ran.line
        assert ran.code == 2
    assert (tmp_path / "file.c-source").read_text() == "mine"


def test_a_full_place_for_temporary_files(make_bundle, small_disk, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk("100k")))
    with pytest.raises(UserError, match=r"can't write temporary files \(TMPDIR says where\): the disk is full"):
        engines.build("native", make_bundle("v1"), "float32", 1)


def test_exporting(make_bundle, images, small_disk, command, tmp_path):
    make_bundle("v1").save(tmp_path / "b")
    disk = small_disk("300k")
    line = command("export", tmp_path / "b", images, "--out", disk / "m.onnx").line
    assert line == f"mobilenets: can't write {disk / 'm.onnx'}: the disk is full; nothing was left half-written"
    assert not list(disk.iterdir())
    grow(disk, "4m")
    assert command("export", tmp_path / "b", images, "--out", disk / "m.onnx").code == 0
    before = tree(disk)
    grow(disk, "1100k")
    assert "the disk is full" in command("export", tmp_path / "b", images, "--out", disk / "m.onnx").line
    assert tree(disk) == before


@pytest.mark.filterwarnings("ignore")  # of the converters
@pytest.mark.parametrize(
    "engine", ["litert", "openvino", "ncnn", "torch", pytest.param("coreml", marks=pytest.mark.slow),
               pytest.param("executorch", marks=pytest.mark.slow), "tflm"]
)  # fmt: skip
def test_exporting_to_any_runtime(make_bundle, pixels, small_disk, engine):
    disk = small_disk("60k")
    b = quantized(make_bundle("v1"), pixels)
    path = disk / f"m{engines.runtime(engine).suffix}"
    with pytest.raises(UserError, match=r"can't write .*: the disk is full; nothing was left half-written"):
        export.export_bundle(b, pixels, path, "noise", engine)
    assert not list(disk.iterdir())


def test_quantizing(make_bundle, images, small_disk, command, tmp_path):
    make_bundle("v1").save(tmp_path / "b")
    disk = small_disk("100k")
    assert "the disk is full" in command("quantize", tmp_path / "b", images, "--out", disk / "q").line
    assert not list(disk.iterdir())


@pytest.mark.slow
def test_a_checkpoint(tiny_train, small_disk, command, tmp_path):
    """The disk has room for the first epoch's checkpoints and no more; the run goes on when it has."""
    whole = tiny_train(tmp_path / "whole", "--epochs", 3)
    disk = small_disk("9m")
    out = disk / "run"
    line = [str(out) if a == str(whole.out) else a for a in whole.arguments]
    said = last_line(command(*line))
    assert "can't write" in said
    assert "the disk is full" in said
    assert not (out / "float").exists()
    assert not [p for p in out.rglob("*") if ".tmp." in p.name or ".old." in p.name]
    for name in ("best", "last"):
        kept = torch.load(out / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert kept["epoch"] == 0
    grow(disk, "64m")
    ran = command(*line, "--resume")
    assert ran.code == 0, ran.err
    for name in ("weights.safetensors",):
        assert (out / "float" / name).read_bytes() == (whole.out / "float" / name).read_bytes()


def test_a_first_checkpoint(tiny_train, small_disk):
    disk = small_disk("2m")
    run = tiny_train(disk / "run", "--epochs", 2)
    assert "the disk is full" in last_line(run.ran)
    assert not list((disk / "run").rglob("*.ckpt"))
    assert not [p for p in disk.rglob("*") if ".tmp." in p.name or ".old." in p.name]


def test_a_folder_that_cannot_be_written(make_bundle, small_disk):
    disk = small_disk("1m")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(UserError, match=r"can't write .*: the file system is read-only"):
        make_bundle("v1").save(disk / "b")
    with pytest.raises(UserError, match="the file system is read-only"):
        files.write_json(disk / "a.json", {})


# ---- Ctrl-C --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["while it is written", "while it is proved"])
@pytest.mark.parametrize("old", [False, True])
def test_ctrl_c_during_export(make_bundle, images, command, tmp_path, monkeypatch, where, old):
    make_bundle("v1").save(tmp_path / "b")
    path = tmp_path / "m.onnx"
    if old:
        path.write_text("old")
    before = tree(tmp_path)

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    if where == "while it is written":
        load = onnxruntime.load
        monkeypatch.setattr(onnxruntime, "load", lambda p, t: (load(p, t), interrupted()))
    else:
        monkeypatch.setattr(onnxruntime.OnnxEngine, "__call__", interrupted)
    line = command("export", tmp_path / "b", images, "--out", path).line
    assert line == "mobilenets: interrupted; nothing was left half-written"
    assert tree(tmp_path) == before


def test_ctrl_c_while_a_bundle_is_saved(make_bundle, images, command, tmp_path, monkeypatch):
    make_bundle("v1").save(tmp_path / "b")
    before = tree(tmp_path)
    write = Path.write_bytes

    def interrupted(path, data):
        if path.name == WEIGHTS:
            raise KeyboardInterrupt
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    assert "interrupted" in command("quantize", tmp_path / "b", images, "--out", tmp_path / "q").line
    assert tree(tmp_path) == before


@pytest.mark.sampled(1)
@pytest.mark.parametrize("hook", ["training_step", "validation_step", "on_train_epoch_start"])
def test_ctrl_c_during_training(tiny_train, tmp_path, monkeypatch, hook):
    from mobilenets.training.learner import Learner

    step = getattr(Learner, hook)

    def interrupted(self, *args):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(Learner, hook, interrupted)
    run = tiny_train(tmp_path / "r", "--epochs", 3)
    said = last_line(run.ran)
    assert said == f"mobilenets: interrupted; what was finished is in {run.out} (go on with --resume)"
    assert (run.out / "checkpoints" / "last.ckpt").is_file()
    assert not (run.out / "float").exists()


def test_ctrl_c_before_the_first_epochs_end(tiny_train, tmp_path, monkeypatch):
    from mobilenets.training.learner import Learner

    monkeypatch.setattr(Learner, "validation_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    run = tiny_train(tmp_path / "r", "--epochs", 3)
    assert "no epoch was finished" in last_line(run.ran)


def test_ctrl_c_works_again_after_an_interrupted_training(tiny_train, tmp_path, monkeypatch):
    """A program that trains again and again must stay interruptible."""
    import signal

    from mobilenets.training.learner import Learner

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Learner, "training_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        assert tiny_train(tmp_path / "r", "--epochs", 1).ran.code == 2
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_predicting(make_bundle, images, command, tmp_path, monkeypatch):
    b = make_bundle("v1")
    export.export_bundle(b, quantize_images(b), tmp_path / "m.onnx", "noise")
    monkeypatch.setattr(onnxruntime.OnnxEngine, "__call__", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert "interrupted" in command("predict", tmp_path / "m.onnx", images).line


def quantize_images(b):
    import numpy as np

    r = b.card.preprocess.resolution
    return np.random.default_rng(0).integers(0, 256, (8, r, r, 3), dtype=np.uint8)


def test_the_int8_bundle_of_a_full_disk_is_not_half_there(make_bundle, small_disk):
    disk = small_disk("100k")
    b = make_bundle("v1")
    with pytest.raises(UserError, match="the disk is full"):
        quantize_bundle(b, quantize_images(b)).save(disk / "int8")
    assert not list(disk.iterdir())
    with pytest.raises(UserError, match="neither a bundle nor a finished run"):
        engines.load(disk)
