"""What `import mobilenets` promises: everything is there, and nothing heavy is loaded before it is used."""

import subprocess
import sys

import pytest

import mobilenets
from mobilenets.arch import cost, zoo
from mobilenets.errors import UserError, unknown

HEAVY = {"torch", "torchvision", "pytorch_lightning", "sklearn", "onnx", "onnxruntime", "matplotlib", "tensorboard"}


def loaded_by(code):
    """Names of the top-level modules that a new interpreter has loaded after `code`."""
    report = "import sys; print('\\n'.join({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import mobilenets; mobilenets.__version__; dir(mobilenets)",
        "from mobilenets.arch import cost, zoo; assert cost.rows(zoo.arch('v1'))[0].macs == 10838016",
        "from mobilenets.commands.cost import cost; cost('v2').to_json()",
        "import mobilenets; mobilenets.Arch; mobilenets.UserError",
    ],
)
def test_nothing_heavy_is_imported(code):
    loaded = loaded_by(code)
    assert "mobilenets" in loaded
    assert not loaded & (HEAVY | {"numpy", "PIL", "rich"})


def test_printing_a_cost_imports_no_torch():
    assert "torch" not in loaded_by(
        "import rich; from mobilenets.commands.cost import cost; rich.print(cost('v1', layers=True))"
    )


def test_the_check_itself_can_fail():
    assert "torch" in loaded_by("import mobilenets; mobilenets.create")


def test_names_at_the_top():
    net = mobilenets.create("v2", alpha=0.5, resolution=160, num_classes=10)
    assert net.arch == zoo.arch("v2", 0.5, 160, 10)
    assert isinstance(net.arch, mobilenets.Arch)
    assert mobilenets.UserError is UserError
    assert cost.rows(net.arch)[-1].out_shape == (10, 1, 1)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'creat'"):
        _ = mobilenets.creat


def test_dir_lists_what_can_be_used():
    assert {"create", "load", "Bundle", "UserError"} <= set(dir(mobilenets))


def test_unknown_lists_all_where_nothing_is_near():
    assert str(unknown("thing", "zzz", ["ab", "cd"])) == "unknown thing 'zzz': known: ab, cd"
    assert str(unknown("thing", "abd", ["abc", "xyz"])) == "unknown thing 'abd': did you mean 'abc'?"


def test_images_are_read_where_there_is_no_fcntl_and_no_sysconf(tmp_path, write_images):
    """As on Windows, where nothing that touches images could start without them."""
    images = write_images(tmp_path / "photos", {"cat": 2})
    hidden = "import os, sys; del os.sysconf; sys.modules['fcntl'] = None; from mobilenets import cli; "
    line = [sys.executable, "-c", f"{hidden}sys.exit(cli.run(sys.argv[1:]))", "predict", "cifar10-v1-0.25", str(images)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2
