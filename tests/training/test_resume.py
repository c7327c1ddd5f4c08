"""A run that was stopped or finished goes on, or is left alone."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kept_runs import leftovers, rows, weights

from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.training import run

# A shell's background job ignores Ctrl-C, and so would what it starts.
HEARS_CTRL_C = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from mobilenets.cli import main
main()
"""


# Everything that has a state.
STATEFUL = ("--mixup", 0.3, "--dropout", 0.2, "--frozen-epochs", 2, "--ema", 0.3)


def start(arguments):
    """`mobilenets ...` in a process of its own."""
    line = [sys.executable, "-c", HEARS_CTRL_C, *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(process, out, epoch=1):
    """Until so many epochs are in the last checkpoint; the process must not have finished by then."""
    log = out / "logs" / "metrics.csv"
    end = time.monotonic() + 120
    while not ((out / "checkpoints" / "last.ckpt").exists() and log.exists() and len(rows(out)) >= epoch):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tiny_train, command, tmp_path):
    whole = tiny_train(tmp_path / "whole", "--epochs", 6, *STATEFUL)
    out = tmp_path / "killed"
    line = [str(out) if a == str(whole.out) else a for a in whole.arguments]
    process = start(line)
    try:
        wait_for_checkpoint(process, out, 2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "float").exists()
    assert len(rows(out)) < 6
    ran = command(*line, "--resume")
    assert ran.code == 0, ran.err
    assert weights(out) == weights(whole.out)
    a, b = rows(out), rows(whole.out)
    assert [int(r["epoch"]) for r in a] == list(range(1, 7))
    for r in (*a, *b):
        del r["seconds"]
    assert a == b
    cards = [json.loads((o / "float" / "card.json").read_text()) for o in (out, whole.out)]
    recipes = [{k: v for k, v in c["recipe"].items() if k != "command"} for c in cards]
    assert recipes[0] == recipes[1]
    assert cards[0]["metrics"] == cards[1]["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2, 5])
def test_stopped_at_any_epoch_it_goes_on_to_the_same_weights(tiny_train, command, tmp_path, monkeypatch, stop):
    whole = tiny_train(tmp_path / "whole", "--epochs", 6, *STATEFUL)
    out = tmp_path / "stopped"
    line = [str(out) if a == str(whole.out) else a for a in whole.arguments]
    from mobilenets.training.learner import Learner

    with monkeypatch.context() as patch:
        begin = Learner.on_train_epoch_start

        def stopped(self):
            if self.current_epoch == stop:
                raise UserError("stopped")
            begin(self)

        patch.setattr(Learner, "on_train_epoch_start", stopped)
        assert command(*line).code == 2
    assert len(rows(out)) == stop
    assert command(*line, "--resume").code == 0
    assert weights(out) == weights(whole.out)


@pytest.mark.slow
def test_ctrl_c(tiny_train, command, tmp_path):
    whole = tiny_train(tmp_path / "whole", "--epochs", 4)
    out = tmp_path / "stopped"
    line = [str(out) if a == str(whole.out) else a for a in whole.arguments]
    process = start(line)
    try:
        wait_for_checkpoint(process, out)
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2, said
    assert printed == ""
    last = [s for s in said.splitlines() if s.startswith("mobilenets:")]
    assert last == [f"mobilenets: interrupted; what was finished is in {out} (go on with --resume)"]
    assert said.splitlines()[-1] == last[0]
    assert "Traceback" not in said
    assert "Detected KeyboardInterrupt" not in said
    assert not leftovers(out)
    assert not (out / "float").exists()
    assert command(*line, "--resume").code == 0
    assert weights(out) == weights(whole.out)


def test_a_finished_run_resumed_stays_as_it_is(learned, command):
    before = weights(learned.out)
    ran = command(*learned.arguments, "--resume")
    assert ran.code == 0, ran.err
    assert weights(learned.out) == before
    assert len(rows(learned.out)) == 12


def test_resume_without_a_run_starts_one(tiny_train, tmp_path):
    ran = tiny_train(tmp_path / "r", "--epochs", 1, "--resume").ran
    assert ran.code == 0
    assert "nothing to resume" in ran.err


@pytest.mark.parametrize(
    ("source", "names", "folder"),
    [
        ("flowers.zip", ("v1 0.25-224",), "flowers-v1-0.25-224"),
        ("some/photos.v2/", (), "photos.v2"),
        ("data/..", ("sweep",), "{here}-sweep"),
        ("https://host/shards", ("v2 1-224", "distilled"), "shards-v2-1-224-distilled"),
    ],
)
def test_where_a_run_goes_that_isnt_told(tmp_path, monkeypatch, source, names, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowers.zip").touch()
    (tmp_path / "some" / "photos.v2").mkdir(parents=True)
    assert run.folder(source, *names) == Path("runs", folder.format(here=tmp_path.name))


def test_a_run_that_isnt_told_where_says_where(colours, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ("--arch", "v1", "--alpha", ".25", "--resolution", "32", "--epochs", 1)
    for verb, folder in ((("train",), "v1-0.25-32"), (("distill", "runs/V"), "v1-0.25-32-distilled")):
        out = f"runs/{colours.name}-{folder}"
        ran = command(*(w.replace("V", f"{colours.name}-v1-0.25-32") for w in verb), colours, *line)
        assert ran.code == 0, ran.err
        assert f"run      {out}\ntry next mobilenets predict {out}" in ran.err
        assert Bundle.load(Path(out) / "float").card.arch.title == "v1 0.25-32"


def test_a_run_that_is_there_is_not_overwritten(learned, command):
    before = weights(learned.out)
    line = command(*learned.arguments).line
    assert "holds a run already: go on with it (--resume) or choose another --out" in line
    assert weights(learned.out) == before


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--epochs", "13", "epochs 12, not 13"),
        ("--lr", "0.02", "lr 0.01, not 0.02"),
        ("--seed", "1", "seed 0, not 1"),
        ("--alpha", "0.5", "alpha 0.25, not 0.5"),
        ("--resolution", "64", "resolution 32, not 64"),
        ("--arch", "v2", "name v1, not v2"),
        ("--mixup", "0", "mixup 0.1, not 0.0"),
        ("--init", "INIT", "init"),
    ],
)
def test_a_run_goes_on_with_the_same_arguments_alone(learned, command, make_bundle, tmp_path, option, value, said):
    if value == "INIT":
        make_bundle("v1").save(tmp_path / "b")
        value = str(tmp_path / "b")
    line = list(learned.arguments)
    if option == "--init":  # which brings these two
        for own in ("--arch", "--alpha"):
            del line[line.index(own) : line.index(own) + 2]
    if option in line:
        line[line.index(option) + 1] = value
    else:
        line += [option, value]
    message = command(*line, "--resume", "--recipe", "modern").line
    assert said in message
    assert "resume with the same arguments" in message


def test_a_folder_with_other_things_is_left_alone(tiny_train, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.txt").write_text("mine")
    assert "is not empty and holds no run" in tiny_train(tmp_path / "r").ran.line
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["thesis.txt"]


def test_a_file_is_no_folder(tiny_train, tmp_path):
    (tmp_path / "r").write_text("mine")
    assert str(tmp_path / "r") in tiny_train(tmp_path / "r").ran.line
