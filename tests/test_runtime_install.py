"""The light install: what runs without PyTorch and all else that training takes, and how much it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mobilenets.arch import zoo
from mobilenets.deploy.writers.onnx import onnx_model
from mobilenets.model.bundle import random_bundle

ROOT = Path(__file__).parents[1]
ABSENT = (
    "torch",
    "torchvision",
    "pytorch_lightning",
    "torchmetrics",
    "sklearn",
    "matplotlib",
    "jinja2",
    "onnx",
    "timm",
)
# Runs a command line as if nothing but the core's packages were installed.
ALONE = f"""
import sys
for name in {ABSENT}:
    sys.modules[name] = None
from mobilenets import cli
from mobilenets.arch import zoo
from mobilenets.commands import choose
from mobilenets.deploy import load
load.OFF, load.waiting = 1000.0, lambda: 0  # tests run beside each other
choose.grid = lambda classes, side=None, task=None: [zoo.arch("v1", 0.25, 32, classes)]
sys.exit(cli.run(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, write_colours) -> Path:
    """A folder with an exported network, `model-int8.onnx`, a bundle, and images of its classes."""
    root = tmp_path_factory.mktemp("files")
    bundle = random_bundle(zoo.arch("v1", 0.25, 32, 3), "int8")
    bundle = type(bundle)(bundle.card.with_labels(("blue", "green", "red")), bundle.tensors)
    (root / "model-int8.onnx").write_bytes(onnx_model(bundle))
    bundle.save(root / "bundle")
    write_colours(root / "images", {f"{s}/{c}": 2 for s in ("train", "val") for c in bundle.card.labels})
    return root


def alone(files: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-W", "error", "-c", ALONE, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=files)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "line",
    [
        ("predict", "model-int8.onnx", "images"),
        ("eval", "model-int8.onnx", "images", "--split", "val"),
        ("show", "model-int8.onnx"),
        ("show", "bundle"),
        ("bench", "model-int8.onnx", "--rounds", 1),
        ("choose", "--precision", "int8,float32"),
        ("latency-table", "--out", "table.json"),
        ("list", "v1"),
        ("cost", "v2", "--layers"),
        ("explain", "v1"),
        ("recipes",),
        ("train", "--help"),
    ],
    ids=lambda line: line[0],
)
def test_what_runs_without_pytorch(files, line):
    done = alone(files, *line)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr  # lines of progress, and whether the machine was busy, are there
    assert done.stdout


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("train", "images", "--out", "run"), "train needs PyTorch: pip install 'mobilenets[train]'"),
        (("fit", "images", "--out", "run"), "fit needs PyTorch: pip install 'mobilenets[train]'"),
        (("quantize", "bundle", "--out", "b"), "quantize needs PyTorch: pip install 'mobilenets[train]'"),
        (("export", "bundle", "--out", "m.onnx"), "export needs PyTorch: pip install 'mobilenets[train]'"),
        (("report", "run"), "report needs Jinja: pip install 'mobilenets[train]'"),
        (("eval", "model-int8.onnx", "digits"), "eval needs scikit-learn: pip install 'mobilenets[train]'"),
        (("choose", "--plot", "front.png"), "choose needs matplotlib: pip install 'mobilenets[train]'"),
    ],
)
def test_what_needs_more_says_so_in_one_line(files, line, message):
    done = alone(files, *line)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"mobilenets: {message}\n")


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["bundle", "cifar10-v1-0.25"])
def test_a_bundle_runs_in_onnx_runtime_too(files, bundle):
    done = alone(files, "predict", bundle, "images", "--json")
    assert done.returncode == 0, done.stderr
    with_torch = [sys.executable, "-m", "mobilenets", "predict", bundle, "images", "--json"]
    told = subprocess.run(with_torch, capture_output=True, text=True, check=True, cwd=files).stdout
    ours, theirs = ([json.loads(line) for line in said.splitlines()] for said in (done.stdout, told))
    assert [p["top"][0]["label"] for p in ours] == [p["top"][0]["label"] for p in theirs]


def test_what_is_pytorchs_alone_says_so(files):
    line = "import sys; sys.modules['torch'] = None; import mobilenets; mobilenets.create('v2')"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=False, cwd=files)
    assert done.stderr.splitlines()[-1].endswith("create needs PyTorch: pip install 'mobilenets[train]'")
    assert done.stderr.splitlines()[-1].startswith("mobilenets.errors.Missing")


# ---- in an environment of its own ----------------------------------------------------------------------------------


def test_the_core_asks_for_little():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {d.partition(">")[0] for d in project["dependencies"]}
    assert names == {"cyclopts", "numpy", "onnxruntime", "pillow", "rich", "safetensors"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with `pip install 'mobilenets[runtime]'`; gives its folder."""
    root = tmp_path_factory.mktemp("venv")
    project = root / "project"
    shutil.copytree(ROOT / "mobilenets", project / "mobilenets", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    subprocess.run([sys.executable, "-m", "venv", root / "env"], check=True)
    line = [root / "env/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*line, f"{project}[runtime]"], capture_output=True, text=True, check=False)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    return root / "env"


SIZES = """
import importlib.metadata, json
print(json.dumps({
    d.name.lower(): sum(f.locate().stat().st_size for f in d.files if f.suffix != ".pyc" and f.locate().is_file())
    for d in importlib.metadata.distributions() if d.name.lower() not in ("pip", "setuptools")
}))
"""


def sizes(environment: Path) -> dict[str, int]:
    """Bytes of each distribution's files as they came; Python's bytecode of them is a fifth more."""
    done = subprocess.run([environment / "bin/python", "-c", SIZES], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_first_label_comes_soon(installed, files):
    line = [installed / "bin/mobilenets", "predict", "model-int8.onnx", "images/val/red/000.png"]
    seconds = []
    for _ in range(7):
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=files) as running:
            assert running.stdout.read().startswith("images/val/red/000.png\t")
            _, status, used = os.wait4(running.pid, 0)
            running.returncode = os.waitstatus_to_exitcode(status)
        assert running.returncode == 0
        seconds.append(used.ru_utime + used.ru_stime)  # the processor's, whatever else it does
    assert min(seconds) < 0.6, seconds


@pytest.mark.slow
def test_the_runtime_alone_is_small(installed):
    found = sizes(installed)
    assert not {"torch", "torchvision", "onnx", "matplotlib", "scipy", "sympy"} & set(found)
    assert sum(found.values()) < 150e6, found  # two fifths of it numpy's


@pytest.mark.slow
def test_it_has_no_pytorch(installed, files):
    done = subprocess.run([installed / "bin/python", "-c", "import torch"], capture_output=True, text=True, check=False)
    assert "No module named 'torch'" in done.stderr
    line = [installed / "bin/mobilenets", "train", "images", "--out", "run"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=files)
    assert (done.returncode, done.stderr) == (2, "mobilenets: train needs PyTorch: pip install 'mobilenets[train]'\n")
