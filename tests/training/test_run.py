"""A run's folder belongs to the images and the process that it was begun with."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mobilenets.data.dataset import Data
from mobilenets.data.open import open_data
from mobilenets.errors import UserError
from mobilenets.tasks import classify
from mobilenets.training import lock, run
from mobilenets.training.recipes import Recipe
from mobilenets.training.trainer import _say_when, network

COLOURS = ("blue", "green", "red")


@pytest.fixture
def photos(write_colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_colours(tmp_path / "photos", dict.fromkeys(COLOURS, 12))


@pytest.fixture
def begun(photos, tiny_train, tmp_path):
    out = tmp_path / "run"
    assert tiny_train(out, "--epochs", 1, data=photos).ran.code == 0
    return out


def contents(folder):
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_package_that_is_missing_leaves_no_run(photos, tmp_path):
    data, out = open_data(str(photos), None, 0), tmp_path / "run"
    with pytest.raises(ImportError), run.taken(out, {"verb": "train", "source": "photos"}, False, data):
        raise ImportError
    with run.taken(out, {"verb": "train", "source": "photos"}, False, data):
        assert (out / run.CONFIG).exists()


def test_a_renamed_class_is_refused_and_the_run_stays_as_it_was(begun, photos, tiny_train):
    before = contents(begun / "float")
    (photos / "green").rename(photos / "aardvark")
    ran = tiny_train(begun, "--epochs", 1, "--resume", data=photos).ran
    assert ran.code == 2
    assert "has other classes than the run" in ran.line
    assert "aardvark is new, green is gone" in ran.line
    assert contents(begun / "float") == before


def test_other_images_of_the_same_classes_are_refused(begun, photos, tiny_train):
    (photos / "red" / "000.png").unlink()
    ran = tiny_train(begun, "--epochs", 1, "--resume", data=photos).ran
    assert ran.code == 2
    assert "has other images than the run" in ran.line
    assert "(36 then, 35 now)" in ran.line


@pytest.mark.sampled(1)
@pytest.mark.parametrize("spelling", ["photos/", "./photos", "photos"])
def test_the_same_images_under_another_spelling_go_on(begun, spelling, tiny_train):
    assert tiny_train(begun, "--epochs", 1, "--resume", data=spelling).ran.code == 0


def test_a_run_of_before_images_were_recorded_goes_on(begun, photos, tiny_train):
    config = json.loads((begun / "run.json").read_text())
    del config["data"]
    (begun / "run.json").write_text(json.dumps(config))
    assert tiny_train(begun, "--epochs", 1, "--resume", data=photos).ran.code == 0


def test_a_choice_that_failed_is_no_run(photos, tmp_path):
    """Its latencies are nothing to go on with: the corrected command is no other run's."""

    def choose():
        with run.taken(tmp_path / "run", {"source": str(photos)}, False, open_data(str(photos))):
            (tmp_path / "run" / "latencies.json").write_text("{}")
            raise UserError("damaged weights")

    with pytest.raises(UserError, match="damaged weights"):
        choose()
    assert not (tmp_path / "run").exists()


def test_a_refused_training_leaves_nothing(photos, tiny_train, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    for out in (tmp_path / "new", own):  # the user's own folder stays
        assert tiny_train(out, "--epochs", 1, "--init", tmp_path / "none", data=photos).ran.code == 2
    assert not (tmp_path / "new").exists()
    assert own.is_dir()


def test_a_lock_that_left_with_its_folder_is_nobodys(tmp_path):
    """Another process opened it just before: it comes too late."""
    with (tmp_path / lock.LOCK).open("a+") as file:
        assert lock._is_there(file, tmp_path / lock.LOCK)
        (tmp_path / lock.LOCK).unlink()
        assert not lock._is_there(file, tmp_path / lock.LOCK)
        (tmp_path / lock.LOCK).touch()
        assert not lock._is_there(file, tmp_path / lock.LOCK)


HOLD = """
import os, pathlib, sys, time
from mobilenets.data.dataset import Data
from mobilenets.tasks import classify
from mobilenets.training import lock
from mobilenets.training.recipes import Recipe
from mobilenets.training.trainer import _say_when, network
with lock.alone(pathlib.Path(sys.argv[1])):
    child = sys.argv[2] == "fork" and os.fork()
    if child or sys.argv[2] != "fork":
        print(child, flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holding(folder, how=""):
    """Another process that works in `folder`, and what it printed."""
    line = [sys.executable, "-c", HOLD, str(folder), how]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_a_second_process_is_refused_until_the_first_dies(begun, photos, tiny_train):
    before = contents(begun)
    with holding(begun) as (process, _):
        ran = tiny_train(begun, "--epochs", 1, "--resume", data=photos).ran
        assert ran.code == 2
        assert f"is being worked in by process {process.pid} on " in ran.line
        assert {k: v for k, v in contents(begun).items() if k != lock.LOCK} == {
            k: v for k, v in before.items() if k != lock.LOCK
        }
    assert tiny_train(begun, "--epochs", 1, "--resume", data=photos).ran.code == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_worker_does_not_hold_it_after_its_parents_death(tmp_path):
    with holding(tmp_path, "fork") as (process, child):
        process.kill()
        while process.poll() is None:
            time.sleep(0.01)
        try:
            with lock.alone(tmp_path):
                os.kill(int(child), 0)  # still there
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_within_one_process_too(tmp_path):
    with lock.alone(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} on"), lock.alone(tmp_path):
        pass
    with lock.alone(tmp_path):  # let go of
        pass


def test_a_folder_of_the_users_own_gets_no_lock(photos, tiny_train, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("x")
    assert tiny_train(tmp_path / "mine", "--epochs", 1, data=photos).ran.code == 2
    assert [f.name for f in (tmp_path / "mine").iterdir()] == ["a.txt"]


def test_the_lock_goes_with_time(tmp_path):
    start = time.monotonic()
    for _ in range(100):
        with lock.alone(tmp_path):
            pass
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("arch", "side", "most", "taken"),
    [
        ("v1", 8, None, 32), ("v1", 20, None, 32), ("v1", 40, None, 64), ("v1", 500, None, 224), ("v1", 70, None, 128),
        ("v1", 500, 64, 64), ("v1", 500, 160, 160), ("v2-cifar", 300, None, 32), ("v4-conv-m", 100, None, 256),
    ],
)  # fmt: skip
def test_a_resolution_that_is_not_given_is_what_the_images_are_worth(arch, side, most, taken, monkeypatch):
    monkeypatch.setattr(Data, "native_side", lambda _: side)
    made = network(arch, None, None, None, classify.TASK, {"labels": ["a", "b"]}, Data("d", ("a", "b"), {}), most)
    assert made.resolution == taken
    assert (
        network(arch, None, 96, None, classify.TASK, {"labels": ["a", "b"]}, Data("d", ("a", "b"), {})).resolution == 96
    )


def test_a_student_of_small_images_is_small(command, make_bundle, write_colours, tmp_path):
    make_bundle("v1").save(tmp_path / "teacher")
    photos = write_colours(tmp_path / "photos", dict.fromkeys(COLOURS, 6), side=8)
    line = ("distill", tmp_path / "teacher", photos, "--unlabelled", "--arch", "v1", "--alpha", 0.25, "--epochs", 1)
    ran = command(*map(str, line), "--workers", "0", "--out", str(tmp_path / "run"), "--json")
    assert ran.json["arch"]["resolution"] == 32


def test_a_word_where_later_epochs_brought_nothing(capsys):
    _say_when(2, 2, 30, Recipe(epochs=30))
    assert "epoch 2 of 30 was the best" in capsys.readouterr().err
    _say_when(12, 14, 22, Recipe(epochs=30, patience=10))
    assert "stopped after epoch 22 of 30: none of the last 10 was better" in capsys.readouterr().err
    _say_when(28, 28, 30, Recipe(epochs=30))
    _say_when(1, 1, 3, Recipe(epochs=3))
    assert capsys.readouterr().err == ""


def test_what_stopped_before_it_began_is_no_run(photos, tiny_train, tmp_path):
    (photos / "red" / "broken.png").write_bytes(b"x")
    assert tiny_train(tmp_path / "run", "--epochs", 1, data=photos).ran.code == 2
    assert tiny_train(tmp_path / "run", "--epochs", 1, "--skip-bad", data=photos).ran.code == 0
