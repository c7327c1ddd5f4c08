"""Training that is killed, or whose disk is full, or whose workers die: it goes on as if nothing had been."""

import csv
import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from mobilenets.data import dataset as data
from mobilenets.model.images import BadImage
from mobilenets.training.learner import Learner

MANY = ("--batch", 3, "--epochs", 2)
STEPS = 24  # in an epoch, the last 16 without a checkpoint
ALWAYS = ("--checkpoint-minutes", 0)


def weights(out):
    return (out / "float" / "weights.safetensors").read_bytes()


def rows(out):
    with (out / "logs" / "metrics.csv").open(newline="") as f:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(f)]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("checkpoints/last.ckpt", lambda b: b[: len(b) // 2], r"last.ckpt: a damaged checkpoint"),
        (
            "checkpoints/last.ckpt",
            lambda b: b[:5000] + bytes([b[5000] ^ 8]) + b[5001:],
            r"last.ckpt: a damaged checkpoint",
        ),
        ("checkpoints/last.ckpt", lambda _: b"", r"last.ckpt: a damaged checkpoint"),
        ("checkpoints/best.ckpt", lambda _: b"PK", r"best.ckpt: a damaged checkpoint"),
        ("run.json", lambda _: b"{", r"run.json: not readable as JSON"),
        ("run.json", lambda _: b"[]", r"run.json: not a file of a run"),
        ("run.json", lambda b: b.replace(b'"recipe": {', b'"recipe": 3, "r": {'), r"was made with"),
        ("logs/metrics.csv", lambda _: b"epoch\n\xff", r"metrics.csv: a damaged log of epochs"),
        ("logs/metrics.csv", lambda b: b.splitlines(keepends=True)[0], r"metrics.csv: has no epoch"),
    ],
)
def test_a_damaged_file_of_a_run_is_one_line(whole, command, tmp_path, name, change, message):
    shutil.copytree(whole.out, tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_bytes(change(path.read_bytes()))
    ran = command(*as_in(whole, tmp_path / "run", "--resume"))
    assert ran.code == 2, ran.err
    assert message in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err


def checkpoint(out, name="last"):
    return torch.load(out / "checkpoints" / f"{name}.ckpt", weights_only=True)


def as_in(whole, out, *more):
    """The command line of the run `whole`, for another folder."""
    return [*(str(out) if a == str(whole.out) else a for a in whole.arguments), *map(str, more)]


class Stop(Exception):
    """As sudden as a kill: nothing of ours or Lightning's knows it."""


def stop_at(monkeypatch, epoch, step):
    """Training stops, as if killed, at the start of a step."""
    train_step = Learner.training_step

    def step_or_stop(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (epoch, step):
            raise Stop
        return train_step(self, batch, batch_idx)

    monkeypatch.setattr(Learner, "training_step", step_or_stop)


@pytest.fixture(scope="module")
def whole(tiny_train, tmp_path_factory):
    """A run that nothing happened to."""
    run = tiny_train(tmp_path_factory.mktemp("whole") / "run", *MANY)
    assert run.ran.code == 0, run.ran.err
    return run


# ---- in the middle of an epoch -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epoch", "step", "kept", "workers"),
    [
        (1, 5, 5, 1),
        pytest.param(0, 3, 3, 0, marks=pytest.mark.slow),
        # not in the 16 batches that averaged weights are measured on
        pytest.param(1, 20, 8, 0, marks=pytest.mark.slow),
        pytest.param(1, 0, 0, 1, marks=pytest.mark.slow),  # at an epoch's end
    ],
)
def test_a_stopped_epoch_goes_on_in_its_middle(whole, command, tmp_path, monkeypatch, epoch, step, kept, workers):
    out = tmp_path / "r"
    line = as_in(whole, out, *ALWAYS)
    line[line.index("--workers") + 1] = str(workers)
    with monkeypatch.context() as patch:
        stop_at(patch, epoch, step)
        with pytest.raises(Stop):
            command(*line)
    progress = checkpoint(out)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert progress["current"]["ready"] == (kept or STEPS)
    seen, train_step = [], Learner.training_step

    def noted(self, batch, batch_idx):
        seen.append((self.current_epoch, batch_idx))
        return train_step(self, batch, batch_idx)

    monkeypatch.setattr(Learner, "training_step", noted)
    ran = command(*line, "--resume")
    assert ran.code == 0, ran.err
    assert seen[0] == (epoch, kept)
    assert len(seen) == (2 - epoch) * STEPS - kept
    assert weights(out) == weights(whole.out)
    assert rows(out) == rows(whole.out)  # the means over the epoch's losses too


# ---- workers -------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("death", "how"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "signal: Segmentation fault"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "signal: Killed"),
        (lambda: os._exit(3), "it exited"),
    ],
)
def test_a_worker_that_dies_names_the_file(tiny_train, tmp_path, monkeypatch, death, how):
    """As a decoder's crash would end it; so does a system that is out of memory.

    On a busy machine PyTorch may see that a process is gone before it is told by which signal.
    """
    monkeypatch.setattr(data.Split, "cached", lambda split, i, _side: death() if i == 30 else split.cache[i])
    run = tiny_train(tmp_path / "r", "--workers", 2)
    said = run.ran.err.splitlines()[-1].replace("(it exited)", f"({how})")
    assert said.startswith(
        f"mobilenets: a process that prepares images died ({how}) reading train/green/006.png; go on with --resume"
    )
    assert run.ran.code == 2
    assert "Traceback" not in run.ran.err
    assert not (run.out / "float").exists()


def test_an_image_that_goes_bad_while_training(tiny_train, tmp_path, monkeypatch):
    """The check before training saw it whole."""

    def cached(split, i, _side):
        if i == 30:
            raise BadImage(f"{split.names[i]}: no such file")
        return split.cache[i]

    monkeypatch.setattr(data.Split, "cached", cached)
    for workers in (0, 1):
        ran = tiny_train(tmp_path / str(workers), "--workers", workers).ran
        assert (ran.code, ran.err.splitlines()[-1]) == (2, "mobilenets: train/green/006.png: no such file")
        assert "Traceback" not in ran.err


# ---- a full disk ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_disk_in_the_middle_of_an_epoch_keeps_the_checkpoint_before(whole, command, tmp_path, monkeypatch):
    out = tmp_path / "r"
    line = as_in(whole, out, *ALWAYS)
    write_bytes = type(out).write_bytes

    def until_full(path, content):
        if path.name.endswith(".last.ckpt") and checkpoint_number() == 5:
            write_bytes(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, content)

    checkpoint_number = itertools.count(1).__next__
    with monkeypatch.context() as patch:
        patch.setattr(type(out), "write_bytes", until_full)
        said = command(*line)
    assert said.code == 2
    assert said.err.splitlines()[-1].startswith("mobilenets: can't write")
    assert "the disk is full" in said.err
    assert not [p for p in out.rglob("*") if ".tmp." in p.name or ".old." in p.name]
    assert checkpoint(out)["global_step"] == 4
    assert command(*line, "--resume").code == 0
    assert weights(out) == weights(whole.out)


# ---- a run of an older version -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_from_before_a_recipe_had_all_its_fields_goes_on(whole, command, tmp_path, monkeypatch):
    out = tmp_path / "r"
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 2)
        with pytest.raises(Stop):
            command(*as_in(whole, out))
    config = json.loads((out / "run.json").read_text())
    for later in ("lr_batch", "progressive", "clip"):
        del config["recipe"][later]
    (out / "run.json").write_text(json.dumps(config))
    said = command(*as_in(whole, out, "--progressive", 0.5, "--resume"))
    assert "was made with progressive 1.0, not 0.5" in said.err
    assert command(*as_in(whole, out, "--resume")).code == 0
    assert weights(out) == weights(whole.out)


# ---- kills ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [0, 2])
def test_twenty_kills(colours, tmp_path, workers):
    """Kill -9 at random moments, while it starts, reads, trains, validates or writes: the weights are the same."""
    options = ("--batch", "3", "--epochs", "12", "--workers", str(workers))
    plain = ["train", str(colours), "--arch", "v1", "--alpha", "0.25", "--resolution", "32", *options]
    python = [sys.executable, "-m", "mobilenets"]
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "killed"
    since = time.monotonic()
    subprocess.run([*python, *plain, "--out", str(undisturbed)], check=True, capture_output=True)
    seconds = time.monotonic() - since
    last = out / "checkpoints" / "last.ckpt"
    seed = 0
    chance = random.Random(seed)
    kills, steps = [], []
    while len(kills) < 20:
        line = [*python, *plain, "--out", str(out), "--checkpoint-minutes", "0", "--resume"]
        process = subprocess.Popen(
            line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        written = last.stat().st_mtime_ns if last.exists() else 0
        if chance.random() < 0.8:  # the others may be killed before training begins
            while process.poll() is None and (not last.exists() or last.stat().st_mtime_ns == written):
                time.sleep(0.01)
        moment = chance.uniform(0, seconds / 30)
        time.sleep(moment)
        assert process.poll() is None, process.communicate()
        os.killpg(process.pid, signal.SIGKILL)  # its workers too
        process.communicate()
        kills.append(round(moment, 3))
        steps.append(checkpoint(out)["global_step"] if last.exists() else 0)
    print(f"seed {seed}; killed after (s) {kills}; last checkpoints at step {steps}, of {12 * STEPS}")
    assert steps == sorted(steps)
    assert len(set(steps)) > 10
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert weights(out) == weights(undisturbed)
    assert rows(out) == rows(undisturbed)
