import json
import os
import re
import subprocess
import sys
import zipfile

import pytest
from PIL import Image

from mobilenets import cli, console
from mobilenets.arch import cost, zoo
from mobilenets.cli import NAMES, VERBS


def process(*arguments, **options):
    line = [sys.executable, "-m", "mobilenets", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60, **options)


@pytest.fixture
def bundle(make_bundle, tmp_path):
    make_bundle("v1").save(tmp_path / "b")
    return tmp_path / "b"


# ---- bad input: one clear line, exit code 2 ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cots v1", "unknown verb 'cots': did you mean 'cost'?"),
        ("prdict x y", "unknown verb 'prdict': did you mean 'predict'?"),
        ("xyzzy", "unknown verb 'xyzzy': known: fit, choose, list, cost"),
        ("cost mobilenet_v9", "unknown arch 'mobilenet_v9'"),
        ("fit", "fit needs SOURCE: mobilenets fit --help"),
        ("show", "show needs PATH: mobilenets show --help"),
        ("quantize x", "quantize needs --out: mobilenets quantize --help"),
        ("update apply", "update apply needs INSTALLED: mobilenets update apply --help"),
        ("fit digits more", "fit takes no more than was given before 'more': mobilenets fit --help"),
        ("fit digits --arch v2", "fit chooses the network itself: --arch is an option of mobilenets train"),
        ("fit digits --out /proc/x", "can't write /proc/x: there is no such folder, and none can be made there"),
        ("cost v11", "unknown arch 'v11': did you mean 'v1'?"),
        ("cost v1 --alpha 0", "alpha must be above 0 and at most 2, not 0"),
        ("cost v1 --alpha=-1", "alpha must be above 0 and at most 2, not -1"),
        ("cost v1 --alpha 2.1", "alpha must be above 0 and at most 2, not 2.1"),
        ("cost v1 --alpha nan", "alpha must be above 0 and at most 2, not nan"),
        ("cost v1 --alpha wide", "wide"),
        ("cost v1 --resolution 7", "resolution must be a whole number from 32 to 4096 pixels, not 7"),
        ("cost v1 --resolution 0", "resolution must be"),
        ("cost v1 --resolution=-224", "resolution must be"),
        ("cost v1 --classes=-1", "classes must be 0 or more"),
        ("cost", "cost needs ARCH"),
        ("cost v1 --alhpa 1", "--alhpa"),
        ("cost v1 v2 0.5 3 4 5", "takes no more than was given"),
        ("quantize x", "--out"),
        ("train digits --out x --arch v3000", "unknown arch 'v3000'"),
        ("train digits --out x --alpha 0", "alpha must be above 0"),
        ("train digits --out x --alpha=-0.5", "alpha must be above 0"),
        ("train digits --out x --resolution 7", "resolution must be"),
        ("train digits --out x --recipe modren", "unknown recipe 'modren': did you mean 'modern'?"),
        ("train digits --out x --epochs 0", "epochs must be 1 or more"),
        ("train digits --out x --epochs 1.5", "--epochs takes a whole number, not 1.5"),
        ("fit digits --candidates 1.5", "--candidates takes a whole number, not 1.5"),
        ("fit digits --seed=inf", "--seed takes a whole number, not inf"),
        ("train digts --out x", "did you mean 'digits'"),
        ("fit digts --out x", "did you mean 'digits'"),
        ("fit --out x", "fit needs SOURCE"),
        ("fit digits --out x --recipe finetun", "did you mean 'finetune'?"),
        ("fit digits --out x --init gone", "gone: no bundle here"),
        ("eval gone", "gone: no such file or folder"),
        ("predict gone x.png", "gone: no such file or folder"),
        ("show gone", "gone: no such file or folder"),
        ("export gone --out x.onnx", "gone: no bundle here"),
        ("quantize gone --out x", "gone: no bundle here"),
        ("bench", "name at least one file"),
        ("choose --max-latency-ms 0", "--max-latency-ms must be above 0"),
    ],
)
def test_bad_input(command, tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    assert message in command(*line.split()).line
    assert not list(tmp_path.iterdir())


def test_a_name_of_two_lines_is_said_in_one(command):
    assert command("show", "new\nline").line == "mobilenets: new\\nline: no such file or folder"


@pytest.mark.parametrize("verb", ["train", "fit"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gone", "gone"),
        ("empty", "no images; expected a folder of images for each class"),
        ("one", "only one class, 'cat'"),
        ("flat", "no class folders"),
        ("text.zip", "nor a readable zip of class folders"),
        ("empty.zip", "no images"),
        ("strangers", "class 'cow' has no training images"),
    ],
)
def test_bad_data(command, write_images, tmp_path, verb, kind, message):
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "one", {"cat": 4})
    write_images(tmp_path, {"flat": 4})
    write_images(tmp_path / "strangers", {"train/cat": 2, "train/dog": 2, "val/cow": 2})
    (tmp_path / "text.zip").write_text("no zip")
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    ran = command(verb, tmp_path / kind, "--out", tmp_path / "run")
    assert ran.code == 2
    assert message in ran.err.splitlines()[-1]
    assert ran.err.count("mobilenets: ") == 1
    assert "Traceback" not in ran.err
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("verb", ["train", "fit"])
def test_a_truncated_jpeg_stops_training(command, write_images, tmp_path, verb):
    data = write_images(tmp_path / "data", {"cat": 4, "dog": 4})
    Image.new("RGB", (64, 64), "red").save(data / "cat" / "cut.jpg")
    (data / "cat" / "cut.jpg").write_bytes((data / "cat" / "cut.jpg").read_bytes()[:300])
    ran = command(verb, data, "--out", tmp_path / "run")
    assert ran.code == 2
    assert "1 damaged image (listed above)" in ran.err.splitlines()[-1]
    assert "cat/cut.jpg: damaged image" in " ".join(ran.err.split())
    assert "Traceback" not in ran.err


def test_a_truncated_jpeg_is_told_by_predict(command, bundle, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:300])
    ran = command("predict", bundle, tmp_path / "cut.jpg")
    assert (ran.code, ran.out) == (1, "")
    assert "cut.jpg: damaged image" in ran.err


def missing_weights(b):
    (b / "weights.safetensors").unlink()


def altered_weights(b):
    data = bytearray((b / "weights.safetensors").read_bytes())
    data[-100] ^= 1
    (b / "weights.safetensors").write_bytes(data)


def altered_card(b):
    (b / "card.json").write_text((b / "card.json").read_text().replace('"class 3"', '"class X"'))


def newer_card(b):
    card = json.loads((b / "card.json").read_text())
    (b / "card.json").write_text(json.dumps(card | {"format": 99}))


def garbled_card(b):
    (b / "card.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing_weights, "weights.safetensors is missing"),
        (altered_weights, "weights.safetensors: altered or damaged (its digest differs)"),
        (altered_card, "card.json: altered since it was written"),
        (newer_card, "written by a newer mobilenets (card format 99"),
        (garbled_card, "not readable as JSON"),
    ],
)
@pytest.mark.parametrize("verb", ["predict", "eval", "show", "export", "quantize", "train"])
def test_a_spoilt_bundle(command, bundle, write_images, tmp_path, verb, spoil, message):
    data = write_images(tmp_path / "data", {"class 0": 2, "class 1": 2})
    spoil(bundle)
    line = {
        "predict": (bundle, data),
        "eval": (bundle, data),
        "show": (bundle,),
        "export": (bundle, data, "--out", tmp_path / "m.onnx"),
        "quantize": (bundle, data, "--out", tmp_path / "q"),
        "train": (data, "--out", tmp_path / "run", "--init", bundle),
    }[verb]
    assert message in command(verb, *line).line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "data"]


# ---- --debug, --json, --help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["before", "after"])
def test_debug_shows_the_traceback(where):
    line = ["cost", "v1", "--alpha", "0"]
    done = process(*(["--debug", *line] if where == "before" else [*line, "--debug"]))
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "UserError: alpha must be above 0" in done.stderr
    plain = process(*line)
    assert plain.returncode == 2
    assert plain.stderr == "mobilenets: alpha must be above 0 and at most 2, not 0.0\n"
    assert plain.stdout == ""


@pytest.mark.parametrize("line", [(), ("--help",), ("-h",)])
def test_help_lists_every_verb(command, line):
    ran = command(*line)
    assert ran.code == 0
    for name in NAMES:
        assert re.search(rf"^\W*{name}\s+\w", ran.out, re.MULTILINE), name
    assert "--json" in ran.out
    assert "--debug" in ran.out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_describes_every_parameter(command, verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    ran = command(*verb.split(), "--help")
    assert ran.code == 0, ran.err
    assert f"mobilenets {verb}" in ran.out
    rows = [line.strip("│ ") for line in ran.out.splitlines() if line.startswith("│")]
    assert rows
    named = [row for row in rows if re.match(r"(\*\s+)?(--?[a-z]|[A-Z]+\b)", row)]
    assert named
    for row in named:
        text = re.sub(r"\[[^\]]*\]", "", row).split("  ", 1)
        assert len(text) == 2, row
        assert re.search(r"[a-z]{3}", text[1]), row


def test_the_version(command):
    import mobilenets

    assert command("--version").out.strip() == mobilenets.__version__


def test_cost_json(command):
    got = command("cost", "v1", "--alpha", 0.5, "--resolution", 160, "--classes", 10, "--json").json
    assert set(got) >= {
        "arch", "alpha", "resolution", "classes", "macs", "adds", "weights", "trainable_params",
        "peak_activation_elements", "layers",
    }  # fmt: skip
    c = cost.count(zoo.arch("v1", 0.5, 160, 10))
    assert (got["arch"], got["alpha"], got["resolution"], got["classes"]) == ("v1", 0.5, 160, 10)
    assert (got["macs"], got["adds"], got["weights"], got["trainable_params"]) == (c.macs, c.adds, c.weights, c.params)
    assert got["peak_activation_elements"] == c.peak_activation_elements
    assert len(got["layers"]) == 28
    assert sum(r["macs"] for r in got["layers"]) == got["macs"]


@pytest.mark.parametrize("width", ["40", "80", "200"])
def test_no_table_is_cut_to_the_terminal(command, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    ran = command("cost", "v2", "--layers")
    for r in cost.rows(zoo.arch("v2")):
        assert re.search(rf"{re.escape(r.layer)} .* {r.macs:,} .* {r.params:,} ", ran.out), r.layer


def test_a_header_of_several_words_cuts_no_other_column(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    t = console.table("sizes", ["as PyTorch\n%", "size\nMB"])
    t.add_row("100.00", "12345.67")
    console.err.cache_clear()
    console.note(t)
    console.err.cache_clear()
    said = capsys.readouterr().err
    assert "as PyTorch" in said
    assert "12345.67" in said


def test_show(command, bundle):
    got = command("show", bundle, "--json").json
    assert got[str(bundle)]["config"]["labels"] == [f"class {i}" for i in range(10)]
    ran = command("show", bundle)
    assert "v1 0.25-32, float32" in ran.out
    assert "Apache-2.0" in ran.out


def test_a_fault_of_ours_is_not_hidden(monkeypatch):
    from mobilenets.commands import cost

    monkeypatch.setattr(cost, "count", lambda _arch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.run(["cost", "v1"])


@pytest.mark.slow
def test_a_reader_that_has_seen_enough(bundle, write_images, tmp_path):
    data = write_images(tmp_path / "data", {"x": 300}, side=16)
    line = f"{sys.executable} -u -m mobilenets predict {bundle} {data} | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"{line}; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=True
    )
    first, code = done.stdout.splitlines()
    assert first.startswith(str(data))
    assert code == "0"
    assert done.stderr == ""


# ---- start-up ------------------------------------------------------------------------------------------------------


def seconds(*line):
    """Processor time, which is the time on an idle machine: nothing here waits but for the processor."""
    before = os.times()
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "120"})
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize(("line", "limit"), [(("--help",), 0.3), (("cost", "v1"), 0.5)])
def test_it_starts_at_once(line, limit):
    """The quickest of several runs, paired with an empty program's; a busy machine gets more tries.

    The limit is for a processor that starts Python in 25 ms; a slower one has as much more.
    """
    ours, empty = [], []
    for i in range(20):
        empty.append(seconds(sys.executable, "-c", "pass"))
        ours.append(seconds(sys.executable, "-m", "mobilenets", *line))
        allowed = limit * max(1.0, min(empty) / 0.025)
        if i >= 2 and min(ours) - min(empty) < allowed:
            break
    assert min(ours) - min(empty) < allowed


@pytest.mark.parametrize("line", [["--help"], ["cost", "v1"], ["cost", "v2", "--json"], ["cots"]])
def test_no_torch_to_start(line):
    code = f"""
import sys
from mobilenets import cli
cli.run({line!r})
sys.exit([m for m in ("torch", "numpy", "PIL", "onnxruntime") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.replace("mobilenets: unknown verb 'cots': did you mean 'cost'?", "").strip() in ("", "[]")


def test_names_are_printed_as_they_are(command, write_images, tmp_path):
    """A [bracket] and a :cat: in names of folders are neither markup nor emoji."""
    names = ("cat [1]", "[red]dog", ":fox:", "x [bold]")
    root = write_images(tmp_path / "photos [new]", {f"{s}/{c}": 3 for s in ("train", "val") for c in names})
    line = ("train", root, "--arch", "v1", "--alpha", 0.25, "--resolution", 32, "--epochs", 1, "--workers", 0)
    ran = command(*line, "--out", tmp_path / "r")
    assert ran.code == 0, ran.err
    for shown in (ran.err, command("eval", tmp_path / "r").out):
        text = " ".join(shown.split())  # a title is broken between words
        assert [c for c in ("photos [new]", *names) if c not in text] == []
    assert "[red]" in command("show", tmp_path / "r" / "float").out


@pytest.mark.slow
def test_a_name_that_is_no_text_ends_nothing(write_images, tmp_path):
    root = write_images(tmp_path / "photos", {"cat": 3})
    os.rename(root / "cat" / "001.png", os.fsencode(root / "cat") + b"/caf\xe9.png")  # noqa: PTH104  (bytes)
    line = [sys.executable, "-m", "mobilenets", "predict", "cifar10-v1-0.25", str(root), "--top", "1"]
    env = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 3
    assert "caf\\udce9.png" in done.stdout


def test_a_class_whose_name_is_no_text_is_refused(command, write_images, tmp_path):
    root = write_images(tmp_path / "photos", {"cat": 3, "dog": 3, "نیم\u200cفاصله": 3})
    os.rename(root / "dog", os.fsencode(root) + b"/d\xf6g")  # noqa: PTH104  (bytes)
    said = command("train", root, "--out", tmp_path / "r").line
    assert "the class folder 'd\\udcf6g' has a name that isn't UTF-8: rename it" in said
