"""Files from outside run in a child process first: once, and at no cost to files of one's own."""

import hashlib
import json
import re
import shutil

import numpy as np
import pytest

from mobilenets.arch import zoo
from mobilenets.deploy import engines, export
from mobilenets.deploy.engines import probe, trial
from mobilenets.errors import UserError
from mobilenets.model import child
from mobilenets.model.bundle import random_bundle


@pytest.fixture
def children(monkeypatch, tmp_path):
    """The files that a child process was started for; a cache of the test's own."""
    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trial, "_seen", set())
    started, run = [], child.run

    def counted(module, *arguments, **how):
        started.append(str(arguments[-1]))
        return run(module, *arguments, **how)

    monkeypatch.setattr(child, "run", counted)
    return started


def foreign(path, precision="int8"):
    """A file that nobody here has proved."""
    engines.module(engines.for_suffix(path)).write(random_bundle(zoo.arch("v1", 0.25, 32, 10), precision), path, None)
    return path


def test_a_file_from_outside_is_tried_once(children, monkeypatch, tmp_path):
    path = foreign(tmp_path / "m.onnx")
    engines.load(path)
    assert children == [str(path)]
    engines.load(path)
    monkeypatch.setattr(trial, "_seen", set())  # another process, which finds it in the cache
    engines.load(shutil.copy(path, tmp_path / "copy.onnx"))
    assert len(children) == 1
    path.write_bytes(path.read_bytes() + b"\x00" * 3)
    with pytest.raises(UserError):
        engines.load(path)
    assert len(children) == 2


def test_without_a_cache_it_is_tried_once_in_a_process(children, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path / "file"))
    path = foreign(tmp_path / "m.onnx")
    engines.load(path)
    engines.load(path)
    assert len(children) == 1


def test_an_exported_file_isnt_tried(children, make_bundle, pixels, tmp_path):
    made = export.export_bundle(make_bundle("v1"), pixels, tmp_path / "m.onnx", "noise")
    engines.load(made.path)
    assert children == []


def test_a_file_that_ends_its_runtime_is_one_line(children, command, tmp_path):
    """Ncnn's int8 layers read scales whose kind the text says; another kind, and it reads what isn't there."""
    pytest.importorskip("ncnn")
    path = foreign(tmp_path / "m.ncnn")
    text = (path / "model.param").read_text()
    text = re.sub(r"(Convolution blocks\.2\.pointwise .*) 8=101", r"\1 7=101", text)
    (path / "model.param").write_text(text)
    card = json.loads((path / "mobilenets.json").read_text())
    card["model.param"] = hashlib.sha256(text.encode()).hexdigest()
    (path / "mobilenets.json").write_text(json.dumps(card))
    line = command("show", path).line
    assert "m.ncnn: damaged: ncnn crashed when it was loaded" in line
    assert children == [str(path)]
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("children")
def test_a_runtime_that_never_comes_back_is_stopped(monkeypatch, tmp_path):
    def run(*_, **__):
        raise child.TooSlow

    monkeypatch.setattr(child, "run", run)
    with pytest.raises(UserError, match=r"m\.onnx: damaged, or too much for this machine: onnxruntime takes over 8 s"):
        engines.load(foreign(tmp_path / "m.onnx"))


def test_the_child_says_why(monkeypatch, capfd, tmp_path):
    """What a runtime raises, whatever it is, is a reason; the file is called as the user called it."""
    monkeypatch.setattr(child, "limit", lambda **_: None)
    monkeypatch.setattr(probe.faulthandler, "dump_traceback_later", lambda *_, **__: None)
    path = tmp_path / "m.onnx"
    path.write_bytes(b"")

    def fails(error):
        def load(*_):
            raise error

        monkeypatch.setattr(engines.module("onnxruntime"), "load", load)
        code = probe.tried("onnxruntime", path, "m.onnx")
        return code, capfd.readouterr().out

    assert fails(UserError(f"{path}: no card")) == (trial.REFUSED, "m.onnx: no card")
    assert fails(MemoryError())[1] == "m.onnx: damaged: onnxruntime takes more memory than it can need"
    assert fails(KeyError("two\nlines"))[1].startswith("m.onnx: damaged: onnxruntime can't run it (KeyError: ")


def test_children_have_limits():
    """Memory that is asked for beyond the limit isn't given; a signal says that the processor's time is up."""
    pytest.importorskip("resource")
    code = (
        "import sys; from mobilenets.model import child; child.limit(AS=child.memory() + (1 << 27)); bytearray(1 << 28)"
    )
    assert child.memory() > 0
    with pytest.raises(child.TooSlow):
        child.run("timeit", "-n", "1", "import time; time.sleep(30)", seconds=0.5)
    status, _ = child.run("timeit", "-n", "1", "-r", "1", code, seconds=60)
    assert status == 1
    burn = "from mobilenets.model import child; child.limit(CPU=1)\nwhile True: pass"
    status, _ = child.run("timeit", "-n", "1", "-r", "1", burn, seconds=60)
    assert status == trial.TIME_UP


@pytest.mark.sampled(2)
@pytest.mark.parametrize("suffix", [".tflite", ".ncnn", ".c-array"])
def test_sound_files_survive_their_trial(children, pixels, tmp_path, suffix):
    """Those of the other runtimes are loaded where they are tested."""
    if not engines.available(engines.for_suffix(tmp_path / f"m{suffix}")):
        pytest.skip("its runtime isn't installed")
    path = foreign(tmp_path / f"m{suffix}")
    assert all(np.isfinite(x).all() for x in engines.load(path)(pixels[:3]).values())
    assert children == [str(path)]


def test_what_a_runtime_prints_is_no_reason(children, tmp_path):
    """ONNX Runtime prints to stdout what it couldn't decode."""
    path = foreign(tmp_path / "m.onnx")
    at = path.read_bytes().index(b"blocks.1")  # of an operation's name
    path.write_bytes(path.read_bytes()[:at] + b"\xfa" + path.read_bytes()[at + 1 :])
    with pytest.raises(UserError) as e:
        engines.load(path)
    assert str(e.value).startswith(f"{path}: not a readable ONNX file")
    assert len(children) == 1


def test_a_child_that_fails_itself_isnt_taken_for_a_slow_file(tmp_path):
    code, said = child.run("mobilenets.deploy.engines.probe", "nonesuch", tmp_path / "m.onnx", "m.onnx", seconds=60)
    assert (code, said) == (trial.FAILED, b"")
