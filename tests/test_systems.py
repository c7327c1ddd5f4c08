"""What runs where a system has less than Linux: Windows's and macOS's limits, terminals of any encoding."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Python as it is on Windows: in every process that it starts, for `site` imports it first.
SITE = """
import errno, os, signal, subprocess, sys, types  # subprocess asks for msvcrt to know its system
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"):
    sys.modules[name] = None
for name in ("fork", "forkpty", "sysconf", "pread", "pwrite", "preadv", "getloadavg", "getuid", "geteuid", "getgid",
             "sched_getaffinity", "sched_setaffinity", "statvfs", "chown", "mkfifo", "nice", "killpg",
             "getpgid", "setsid"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGALRM", "SIGHUP", "SIGQUIT"):
    if hasattr(signal, name):
        delattr(signal, name)

sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=0, locking=lambda *_: None)
fsync, rename = os.fsync, os.rename

def fsync_of_what_is_written(fd):
    try:
        os.write(fd, b"")
    except OSError:
        raise OSError(errno.EBADF, "Bad file descriptor") from None
    fsync(fd)

def rename_to_nothing(a, b, **how):
    if os.path.lexists(b):
        raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", a, None, b)
    rename(a, b, **how)

os.fsync, os.rename = fsync_of_what_is_written, rename_to_nothing
"""
LINES = """
import json, sys
from mobilenets import cli
if __name__ == "__main__":
    for line in json.loads(sys.argv[1]):
        code = cli.run(line)
        if code:
            sys.exit(f"{line}: {code}")
"""


@pytest.fixture
def windows(tmp_path):
    """`windows(["cost", "v1"], ...)`: command lines carried out in one process without what Windows lacks."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    (tmp_path / "lines.py").write_text(LINES, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}

    def run(*lines, script=("lines.py",)):
        given = [json.dumps([[str(word) for word in line] for line in lines])] if lines else []
        line = [sys.executable, *script, *given]
        done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_a_file_is_labelled_scored_and_measured(windows, colours, make_bundle, tmp_path):
    from mobilenets.deploy.writers.onnx import onnx_model

    made = make_bundle("v1")
    (tmp_path / "a model.onnx").write_bytes(onnx_model(made))
    done = windows(
        ["cost", "v1"],
        ["predict", "a model.onnx", colours / "val"],
        ["show", "a model.onnx"],
        ["bench", "a model.onnx", "--rounds", 1],
        ["shards", colours, "shards"],
    )
    assert "Traceback" not in done.stderr
    assert (tmp_path / "shards" / "index.json").is_file()


@pytest.mark.slow
def test_shards_are_trained_on_by_processes_that_start_anew_and_the_network_exported(windows, written, tmp_path):
    size = ("--alpha", 0.25, "--resolution", 32, "--epochs", 1, "--batch", 24)
    windows(
        ["train", written.out, "--arch", "v1", *size, "--workers", 1, "--out", "a run"],
        ["eval", "a run", written.out],
        ["export", "a run", written.out, "--out", "m.onnx"],
    )
    assert (tmp_path / "m.onnx").is_file()


@pytest.mark.slow
def test_the_whole_journey(windows, colours, tmp_path):
    windows(["fit", colours, "--max-macs-m", 15, "--epochs", 1, "--batch", 24, "--out", "run"])
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_every_module_can_be_imported(windows, tmp_path):
    """Those for a runtime whose own package can't be are let go."""
    (tmp_path / "every.py").write_text(
        "import importlib, pkgutil, mobilenets\n"
        "for m in pkgutil.walk_packages(mobilenets.__path__, 'mobilenets.'):\n"
        "    if m.name.endswith('__main__'):\n"
        "        continue\n"
        "    try:\n"
        "        importlib.import_module(m.name)\n"
        "    except Exception as e:\n"
        "        t = e.__traceback__\n"
        "        while t.tb_next:\n"
        "            t = t.tb_next\n"
        "        assert '.engines.' in m.name and 'mobilenets' not in t.tb_frame.f_globals['__name__'], m.name\n",
        encoding="utf-8",
    )
    windows(script=("every.py",))


@pytest.mark.slow  # a process that imports PyTorch
@pytest.mark.parametrize("kind", ["folder", "zip", "shards"])
def test_processes_that_start_anew_draw_the_same(colours, written, tmp_path, monkeypatch, kind):
    from mobilenets.data.open import open_data
    from mobilenets.model.images import Preprocess
    from mobilenets.tasks.augment import augmentation
    from mobilenets.training import loader
    from mobilenets.training.recipes import Recipe

    source = written.out if kind == "shards" else colours
    if kind == "zip":
        source = zipped(colours, tmp_path / "colours.zip", "/")
    split = open_data(str(source)).split("train")

    def drawn(workers):
        recipe = Recipe(batch=24, workers=workers)
        images = loader.TrainImages(split, augmentation("photo", Preprocess(32), recipe), 0)
        return [(x.numpy().tobytes(), y.tolist()) for x, y in loader.train_loader(images, recipe, 1, 0)]

    here = drawn(0)
    assert len(here) == 3
    monkeypatch.setattr(loader, "START", "spawn")
    assert drawn(1) == here


# ---- files ---------------------------------------------------------------------------------------------------------


def zipped(folder, path, slash):
    with zipfile.ZipFile(path, "w") as z:
        for p in sorted(folder.rglob("*.png")):
            member = zipfile.ZipInfo("x")
            member.filename = p.relative_to(folder).as_posix().replace("/", slash)
            z.writestr(member, p.read_bytes())
    return path


def test_zips_with_backslashes_are_as_those_with_slashes(colours, tmp_path):
    """As some of Windows's tools write them."""
    from mobilenets.data.open import open_data
    from mobilenets.deploy import inputs

    a, b = (open_data(str(zipped(colours, tmp_path / f"{n}.zip", s))) for n, s in enumerate("/\\"))
    assert {k: s.names for k, s in a.splits.items()} == {k: s.names for k, s in b.splits.items()}
    assert a.labels == b.labels == ("blue", "green", "red")
    assert [b.split("val").read(i) for i in range(24)] == [a.split("val").read(i) for i in range(24)]
    found = list(inputs.sources([tmp_path / "1.zip"]))
    assert found[0].name == f"{tmp_path / '1.zip'}/train/blue/000.png"


def in_words(path):
    """Calls that open a text file without saying its encoding, or write one without saying its line ends."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if ast.unparse(node.func) in ("files.write_text", "write_text", "tarfile.open"):  # say both, or are no text
            continue
        said = {k.arg for k in node.keywords}
        modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        opens = name == "open" and (not node.args or modes) and "b" not in "".join(modes)
        writes = name == "write_text" or (opens and set("".join(modes)) & set("wax"))
        if (opens or name in ("read_text", "write_text")) and "encoding" not in said:
            yield f"{path.name}:{node.lineno} encoding"
        elif writes and "newline" not in said and "a+" not in modes:
            yield f"{path.name}:{node.lineno} newline"


@pytest.mark.slow
def test_text_files_are_the_same_on_every_system():
    """Windows's own encoding isn't UTF-8, and its lines end otherwise, in files whose digests are compared."""
    assert [said for path in (ROOT / "mobilenets").rglob("*.py") for said in in_words(path)] == []


# ---- terminals -----------------------------------------------------------------------------------------------------


@pytest.mark.sampled(5)
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "utf-8"])
@pytest.mark.parametrize("line", [("explain", "v1"), ("list", "v1"), ("cost", "v2", "--json"), ("no-verb-é→",)])
def test_a_terminal_of_any_encoding(encoding, line):
    env = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-m", "mobilenets", *line], capture_output=True, check=False, env=env)
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == (2 if line[0].startswith("no") else 0), err
    assert "Error" not in err
    if encoding == "ascii":
        assert "\\u25" not in out + err  # drawings and bars, a letter for a letter


@pytest.mark.slow
def test_columns_stay_where_a_terminal_has_no_drawings():
    def width(encoding):
        env = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "100"}
        line = [sys.executable, "-m", "mobilenets", "explain", "v1"]
        done = subprocess.run(line, capture_output=True, check=True, env=env)
        return [len(row) for row in done.stdout.decode(encoding).splitlines()]

    assert width("ascii") == width("utf-8")
