"""`predict --ray`: the same rows as on one machine, each once, whatever is lost and begun again."""

from __future__ import annotations

import json
import os
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mobilenets.commands import predict_jobs
from mobilenets.deploy.engines import trial
from mobilenets.deploy.inputs import sources
from mobilenets.deploy.predict import load

pq = pytest.importorskip("pyarrow.parquet")


class FakeRay:
    """What is used of Ray; the last task is done first, and each is carried out twice, as where its answer was lost."""

    __version__ = "0"

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.most = 0

    def init(self, **options: Any) -> None:
        self.asked.append(options["address"])

    def shutdown(self) -> None:
        self.asked.append("shutdown")

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **options: Any) -> Any:
        assert options == {"num_cpus": 1, "max_retries": -1}
        return lambda f: type("Task", (), {"remote": staticmethod(lambda *a: (f, a))})

    def wait(self, waiting: list[Any]) -> tuple[list[Any], list[Any]]:
        self.most = max(self.most, len(waiting))
        return waiting[-1:], waiting[:-1]

    def get(self, task: Any) -> Any:
        task[0](*task[1])
        return task[0](*task[1])


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(trial, "check", lambda *_: None)
    monkeypatch.setattr(predict_jobs, "SIZE", 4)
    predict_jobs._networks.clear()
    here = Path.cwd()
    yield
    os.chdir(here)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def rows(path: Path) -> list[dict[str, Any]]:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    return [row for f in files for row in pq.read_table(f).to_pylist()]


def test_the_same_rows_as_on_one_machine(
    ray: FakeRay, model: Path, photos: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as z:
        for p in sorted((photos / "b").glob("*.png")):
            z.write(p, f"zipped/{p.name}")
    (photos / "a" / "007.png").write_bytes(b"no image")
    line = ("predict", model, photos, tmp_path / "more.zip", "--top", 2)
    alone = command(*line, "--out", tmp_path / "alone.parquet")
    many = command(*line, "--out", tmp_path / "many.parquet", "--ray", "auto", "--json")
    assert (alone.code, many.code) == (1, 1)
    assert many.err == alone.err
    assert json.loads(many.out)["images"] == 40
    assert rows(tmp_path / "many.parquet") == rows(tmp_path / "alone.parquet")
    assert ray.asked == ["auto", "shutdown"]
    assert ray.most == 4  # two for each of two processors, of ten parts


@pytest.mark.usefixtures("ray")
def test_it_goes_on_where_it_was(model: Path, photos: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    line = ("predict", model, photos, "--out", out, "--ray", "local")
    assert command(*line).code == 0
    before = rows(out)
    stamps = {p.name: p.stat().st_mtime_ns for p in out.glob("*.parquet")}
    first, second, *_ = sorted(stamps)
    (out / first).unlink()
    assert command(*line).code == 0
    after = {p.name: p.stat().st_mtime_ns for p in out.glob("*.parquet")}
    assert {n for n in stamps if stamps[n] != after[n]} == {first}
    assert rows(out) == before
    (photos / "a" / "005.png").unlink()  # in the second part: what comes after moves up
    assert command(*line).code == 0
    assert len(rows(out)) == len(before) - 1
    assert not (out / second).exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--out", "x.jsonl"), "--ray writes a folder of Parquet files"),
        (("--out", "x.parquet", "--draw", "d"), "--ray writes what is said into a folder"),
        ((), "--ray writes what is said into a folder"),
        (("--out", "taken.parquet"), "isn't empty, and isn't of predict --ray"),
        (("--out", "done.parquet", "--top", "3"), "has the answers of another network, or to other options"),
        (("--out", "file.parquet"), "is a file"),
    ],
)
@pytest.mark.usefixtures("ray")
def test_what_is_wrong_is_one_line(
    model: Path, photos: Path, command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...], line: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("file.parquet").touch()
    Path("taken.parquet").mkdir()
    Path("taken.parquet/x").touch()
    Path("done.parquet").mkdir()
    Path("done.parquet/_job.json").write_text('{"job": "other"}')
    assert line in command("predict", model, photos, "--ray", "auto", *options).line


def test_without_ray(
    model: Path, photos: Path, command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    line = ("predict", model, photos, "--out", tmp_path / "x.parquet", "--ray", "auto")
    assert "pip install 'mobilenets[ray]'" in command(*line).line
    assert not (tmp_path / "x.parquet").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_worker_that_is_killed(model: Path, photos: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    """Each worker of a real cluster kills itself in the midst of its first part."""
    pytest.importorskip("ray")
    died = tmp_path / "died"
    ask = KillsItself(model, died)
    job = predict_jobs.Job(ask, "job", 5, Path.cwd(), tmp_path / "rows.parquet")
    written = predict_jobs.predict(job, sources([photos]), "local")
    assert died.exists()
    assert written.images == 30
    assert command("predict", model, photos, "--out", tmp_path / "alone.parquet").code == 0
    assert rows(tmp_path / "rows.parquet") == rows(tmp_path / "alone.parquet")


class KillsItself:
    """Answers as the network does; the first of all processes that has answered two images ends by a signal."""

    def __init__(self, model: Path, died: Path) -> None:
        self.model, self.died = model, died

    def __call__(self) -> Any:
        network = load(self.model)

        def answer(images: Any, top: int) -> Iterator[Any]:
            for n, said in enumerate(network.stream(images, top)):
                if n == 2 and not self.died.exists():
                    self.died.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield said

        return answer
