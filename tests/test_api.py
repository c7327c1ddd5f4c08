"""What `import mobilenets` promises: everything is there, and nothing heavy is loaded before it is used."""

import ast
import doctest
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mobilenets
from mobilenets import cli
from mobilenets.arch import cost, zoo
from mobilenets.deploy import choose, latency
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


@pytest.mark.slow
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


# ---- every name at the top -----------------------------------------------------------------------------------------

FUNCTIONS = [n for n in mobilenets.__all__ if n[0].islower()]
GROUPS = (
    "budget",
    "hosting",
    "overrides",
    "distillation",
    "calibration",
    "detector",
    "embedding",
    "faces",
    "foreign",
    "reading",
)  # of options, which say what they are
TRAINING = {"fit", "train", "sweep", "compare", "tune", "distill"}  # a minute together


def test_type_checkers_see_every_name():
    tree = ast.parse(Path(mobilenets.__file__).read_text())
    (seen,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {a.asname: node.module for node in seen.body for a in node.names}
    assert imported == {name: f"mobilenets.{home}" for name, home in mobilenets._HOMES.items()}
    for name in mobilenets.__all__:
        assert getattr(mobilenets, name)


def test_every_verb_is_a_function():
    renamed = {
        "data check": "check_data",
        "list": "list_networks",
        "import": "import_weights",
        "eval": "evaluate",
        "latency-table": "latency_table",
        "push": "push_to_hub",
        "update key": "update_key",
        "update make": "make_update",
        "update show": "show_update",
        "update apply": "apply_update",
        "update rollback": "roll_back",
        "update serve": "serve_updates",
        "update pull": "pull_updates",
    }
    for verb, (target, _) in cli.VERBS.items():
        name = renamed.get(verb, verb)
        assert name in mobilenets.__all__
        if verb != "predict":  # which gives a list in Python, and streams in a shell
            assert target.partition(":")[2] == name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_says_what_it_takes_gives_and_raises(name):
    function = getattr(mobilenets, name)
    text = inspect.getdoc(function)
    parts = [part for part in ("Parameters", "Returns", "Raises") if f"\n{part}\n---" in text]
    assert parts == ["Parameters", "Returns", "Raises"]
    described = text.partition("Parameters\n")[2].partition("\nReturns\n")[0].splitlines()
    options = {p for p in inspect.signature(function).parameters if p not in GROUPS}
    assert options - set(described) == set()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_misspelt_or_missing_argument_is_named(name):
    function = getattr(mobilenets, name)
    parameters = inspect.signature(function).parameters
    first = next(p for p in parameters.values() if p.kind is not p.VAR_POSITIONAL)
    with pytest.raises(UserError, match=f"^{name}: unknown argument '{first.name}x': did you mean '{first.name}'"):
        function(**{f"{first.name}x": 1})
    if first.default is first.empty:
        with pytest.raises(UserError, match=f"^{name}: missing a required argument: '{first.name}'"):
            function()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mobilenets.fit(3), "fit: source must be a path"),
        (lambda: mobilenets.fit("x", budget=4), "fit: budget must be a Budget or None, not 4"),
        (lambda: mobilenets.fit("x", threads="2"), "fit: threads must be a whole number, not '2'"),
        (lambda: mobilenets.fit("x", out=["a"]), "fit: out must be a path"),
        (lambda: mobilenets.bench("x", threads=1.5), "bench: threads must be a whole number or several, not 1.5"),
        (lambda: mobilenets.cost("v2", alpha="1"), "cost: alpha must be a number, not '1'"),
        (lambda: mobilenets.cost("v2", layers=1), "cost: layers must be True or False, not 1"),
        (lambda: mobilenets.cost("v2", 1.0), "cost: too many positional arguments; it takes arch, alpha=, "),
        (lambda: mobilenets.list_networks(sort="topp1"), "unknown sort 'topp1': did you mean 'top1'"),
        (lambda: mobilenets.Budget(max_latency=3), "Budget: unknown argument 'max_latency': did you mean"),
        (lambda: mobilenets.Budget(max_latency_ms="3"), "Budget: max_latency_ms must be a number or None"),
        (lambda: mobilenets.Overrides(optimizer="adam"), "unknown optimizer 'adam': did you mean 'adamw'"),
        (lambda: mobilenets.Overrides(epochs=1.5), "Overrides: epochs must be a whole number or None, not 1.5"),
        (lambda: mobilenets.Bundle.load(3), "load: path must be a path"),
        (lambda: mobilenets.load(None), "load: path must be a path"),
    ],
)
def test_a_wrong_type_is_one_line(call, message):
    with pytest.raises(UserError) as e:
        call()
    assert message in str(e.value)
    assert isinstance(e.value, TypeError)


ADDRESS = "https://example.org/models/b"


@pytest.mark.parametrize(
    "call",
    [
        lambda a: mobilenets.load(a),
        lambda a: mobilenets.Bundle.load(a),
        lambda a: mobilenets.create("v2", pretrained=a),
        lambda a: mobilenets.evaluate(a, "x"),
        lambda a: mobilenets.show(a),
        lambda a: mobilenets.bench(a),
        lambda a: mobilenets.export(a, out="x.onnx"),
        lambda a: mobilenets.quantize(a, out="x"),
        lambda a: mobilenets.import_weights(f"{a}.pth", out="x"),
        lambda a: mobilenets.train("digits", init=a, out="x"),
        lambda a: mobilenets.distill(a, "digits", out="x"),
        lambda a: mobilenets.predict("cifar10-v1-0.25", a),
    ],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_is_said_not_to_be_read(call, kind, tmp_path, monkeypatch):
    """Path() folds the slashes: the line has them as they were."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^https://example\.org/models/b.*: addresses aren't read here; download it"):
        call(kind(ADDRESS))
    assert not list(tmp_path.iterdir())


def test_an_address_on_the_command_line(command):
    assert f"{ADDRESS}: addresses aren't read" in command("show", ADDRESS).line
    assert f"{ADDRESS}.jpg: addresses aren't read" in command("predict", "cifar10-v1-0.25", f"{ADDRESS}.jpg").line


# ---- what the docstrings show --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flowers(colours, tiny_train, tmp_path_factory):
    """A folder as the examples have it: flowers/, a trained run, a latency table."""
    root = tmp_path_factory.mktemp("examples")
    (root / "flowers").symlink_to(colours)
    assert tiny_train(root / "runs" / "flowers", "--epochs", 1).ran.code == 0
    setting = latency.Setting("onnxruntime", "int8", 1)
    archs = [a for n in (3, 1000) for side in (None, 63) for a in choose.grid(n, side)]
    measured = {a.digest: latency.Measured(a.title, cost.count(a).macs / 1e8, 1000) for a in archs}
    table = latency.Table("a Raspberry Pi 5", {"onnxruntime": "1"}, {setting: measured})
    (root / "pi5.json").write_text(json.dumps(table.to_json()))
    return root


def examples(name):
    """The doctests of a public name: the function's own, or those of a class's methods."""
    finder = doctest.DocTestFinder(recurse=True)
    return [t for t in finder.find(getattr(mobilenets, name), name, module=False, globs={}) if t.examples]


SHOWN = [pytest.param(n, marks=[pytest.mark.slow] if n in TRAINING else []) for n in mobilenets.__all__ if examples(n)]


@pytest.mark.sampled(14)
@pytest.mark.parametrize("name", SHOWN)
def test_examples_run(name, flowers, monkeypatch):
    monkeypatch.chdir(flowers)
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in examples(name):
        runner.run(test, out=said.append)
    assert runner.tries
    assert not runner.failures, "".join(said)


# ---- a user's script -----------------------------------------------------------------------------------------------

SCRIPT = Path(__file__).with_name("typed_user.py")


def checked_by_mypy(script):
    line = ["--strict", "--follow-imports=silent", "--cache-dir", str(script.parent / "cache"), str(script)]
    return subprocess.run([sys.executable, "-m", "mypy", *line], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_users_script_is_typed(tmp_path):
    """But for the lines that import torchvision, which has no types."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.read_text())
    said = checked_by_mypy(script).stdout
    assert {line.split("error: ")[1].split('"')[0] for line in said.splitlines() if "error" in line} == {
        "Skipping analyzing "
    }
    script.write_text(f"{SCRIPT.read_text()}\nmobilenets.fit('x', out=3, threads='2').steps\n")
    said = checked_by_mypy(script).stdout
    assert 'Argument "out" to "fit" has incompatible type "int"' in said
    assert 'Argument "threads" to "fit" has incompatible type "str"' in said
    assert 'Item "None" of "Fitted | None" has no attribute "steps"' in said


@pytest.mark.slow
def test_a_users_script_runs(flowers, colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fl").symlink_to(colours)
    shutil.make_archive("fl", "zip", colours / "val")
    shutil.copy(flowers / "pi5.json", "t.json")
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) == SCRIPT.read_text().count("print(")


@pytest.mark.slow
def test_a_script_is_not_run_again_by_the_processes_that_measure(tmp_path):
    """Python's own way runs the main module in each of them."""
    script = tmp_path / "script.py"
    script.write_text(
        "import mobilenets\nprint('begun')\n"
        "print(len(mobilenets.bench('cifar10-v1-0.25', batch=1, rounds=1).timings))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["begun", "1"]), done.stderr


def test_most_functions_have_an_example():
    of_the_web, of_minutes = {"fetch", "pull_updates", "push_to_hub", "serve"}, {"latency_table", "measure"}
    assert {n for n in FUNCTIONS if not examples(n)} == of_the_web | of_minutes


def test_unknown_lists_all_where_nothing_is_near():
    assert str(unknown("thing", "zzz", ["ab", "cd"])) == "unknown thing 'zzz': known: ab, cd"
    assert str(unknown("thing", "abd", ["abc", "xyz"])) == "unknown thing 'abd': did you mean 'abc'?"


@pytest.mark.slow
def test_images_are_read_where_there_is_no_fcntl_and_no_sysconf(tmp_path, write_images):
    """As on Windows, where nothing that touches images could start without them."""
    images = write_images(tmp_path / "photos", {"cat": 2})
    hidden = "import os, sys; del os.sysconf; sys.modules['fcntl'] = None; from mobilenets import cli; "
    line = [sys.executable, "-c", f"{hidden}sys.exit(cli.run(sys.argv[1:]))", "predict", "cifar10-v1-0.25", str(images)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2
