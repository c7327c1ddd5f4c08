"""The grid: what is trained, kept, resumed, aggregated and drawn. Most tests put a quick stand-in for training."""

import csv
import dataclasses
import html
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from swept import made

from mobilenets.arch import cost, zoo
from mobilenets.commands import sweep
from mobilenets.commands import sweep_jobs as jobs
from mobilenets.errors import Interrupted
from mobilenets.reports import sweep as page
from mobilenets.tasks.classify import PRIMARY as TOP1
from mobilenets.tasks.task import MetricSpec
from mobilenets.training import recipes
from mobilenets.training import trainer as train
from mobilenets.training.sweep import Sweep, networks

GRID = ("--alphas", ".35,.25", "--resolutions", "32")


def rows(out):
    with (out / "sweep.csv").open(newline="") as f:
        return list(csv.DictReader(f))


# ---- what comes out ------------------------------------------------------------------------------------------------


def test_the_grid_is_trained_cheapest_first(command, colours, tmp_path, quick):
    out = tmp_path / "sweep"
    got = command("sweep", colours, "--out", out, *GRID, "--seeds", "2", "--json").json
    macs = {f"v1-{a:g}-{r}": cost.count(zoo.arch("v1", a, r, 3)).macs for a in (0.35, 0.25) for r in (32,)}
    names = sorted(macs, key=macs.get)
    assert quick.trained == [(f"{name}-seed{seed}", False) for seed in (0, 1) for name in names]
    assert [(n["top1"] >= 0, n["seeds"], n["macs"]) for n in got["networks"]] == [
        (True, 2, macs[name]) for name in names
    ]
    table = rows(out)
    assert list(table[0])[:6] == ["arch", "alpha", "resolution_px", "seed", "macs", "params"]
    assert {"top1_percent", "size_bytes", "latency_ms", "train_seconds", "error", "pareto"} <= table[0].keys()
    assert len(table) == 4
    assert {r["train_seconds"] for r in table} == {"2.75"}
    for r in table:
        file = tmp_path / r["folder"] / "model.onnx"
        assert file.stat().st_size == int(r["size_bytes"])
        assert int(r["params"]) == cost.count(zoo.arch("v1", float(r["alpha"]), 32, 3)).params
    assert json.loads((out / "sweep.json").read_text()) == got


@pytest.mark.usefixtures("quick")
def test_scores_are_those_of_the_exported_file(command, colours, tmp_path):
    out = tmp_path / "sweep"
    line = ("sweep", colours, "--out", out, "--alphas", ".25", "--resolutions", "32")
    (run,) = command(*line, "--precision", "int8", "--json").json["runs"]
    assert (Path(run["folder"]) / "int8" / "card.json").exists()
    got = command("eval", Path(run["folder"]) / "model-int8.onnx", colours, "--json").json
    assert (got["top1"], got["split"], got["count"]) == (run["top1"], "val", run["images"])


@pytest.mark.usefixtures("quick")
def test_the_table_and_the_page(command, colours, tmp_path):
    out = tmp_path / "sweep"
    ran = command("sweep", colours, "--out", out, "--alphas", ".25", "--resolutions", "32")
    assert ran.code == 0
    assert "v1 0.25-32" in ran.out
    assert f"page {out / 'sweep.html'}" in " ".join(ran.out.split())
    text = (out / "sweep.html").read_text()
    assert text.count('<svg class="plot"') == 0  # one dot shows nothing
    assert "1 training," in text
    assert "http:" not in text.replace("http://www.w3.org", "")
    assert "so far" not in text


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_files_are_there_after_each_network(colours, tmp_path, monkeypatch):
    seen = []
    write = sweep.write
    monkeypatch.setattr(sweep, "write", lambda m: seen.append(len(m.runs)) or write(m))
    sweep.sweep(str(colours), out=tmp_path / "s", alphas=(0.25, 0.35), resolutions=(32,))
    assert seen == [1, 2, 2]


# ---- going on, and failing -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_resume_trains_what_is_missing(command, colours, tmp_path, quick):
    out = tmp_path / "sweep"
    line = ("sweep", colours, "--out", out, "--resolutions", "32")
    assert command(*line, "--alphas", ".25").code == 0
    assert "holds a run already" in command(*line, "--alphas", ".25").err.splitlines()[-1]
    quick.trained.clear()
    assert command(*line, "--alphas", ".25,.35", "--resume").code == 0
    assert [name for name, _ in quick.trained] == ["v1-0.35-32-seed0"]
    assert len(rows(out)) == 2
    other = command(*line, "--alphas", ".25", "--resume", "--lr", "0.5")
    assert other.code == 2
    assert "was made with lr 0.002, not 0.5" in other.err.splitlines()[-1]


def test_resume_goes_on_inside_a_network(colours, tmp_path, quick, monkeypatch):
    out, stop = tmp_path / "s", quick
    folder = out / "v1-0.25-32-seed0"

    def stopped(_d, _arch, _recipe, out, **_):
        (out / "checkpoints").mkdir(parents=True)
        (out / "checkpoints" / "last.ckpt").touch()
        raise Interrupted("interrupted")

    monkeypatch.setattr(train, "train_bundle", stopped)
    with pytest.raises(Interrupted):
        sweep.sweep(str(colours), out=out, alphas=(0.25,), resolutions=(32,))
    assert not (folder / "result.json").exists()
    monkeypatch.setattr(train, "train_bundle", stop)
    sweep.sweep(str(colours), out=out, alphas=(0.25,), resolutions=(32,), resume=True)
    assert quick.trained == [(folder.name, True)]


def test_a_trained_network_is_not_trained_again_for_its_score(colours, tmp_path, quick):
    out = tmp_path / "s"
    sweep.sweep(str(colours), out=out, alphas=(0.25,), resolutions=(32,))
    result = out / "v1-0.25-32-seed0" / "result.json"
    before = result.read_text()
    result.write_text("{")  # damaged
    quick.trained.clear()
    sweep.sweep(str(colours), out=out, alphas=(0.25,), resolutions=(32,), resume=True)
    assert quick.trained == []
    assert result.read_text() == before


@pytest.mark.slow
def test_a_failed_network_is_noted_and_the_rest_goes_on(command, colours, tmp_path, quick):
    out = tmp_path / "sweep"
    quick.failures.add((0.25, 0))
    line = ("sweep", colours, "--out", out, "--alphas", ".25,.35", "--resolutions", "32")
    ran = command(*line)
    assert ran.code == 2
    last = " ".join(ran.err.splitlines()[-1].split())
    assert last.startswith("mobilenets: 1 of 2 trainings failed (v1 0.25-32 seed 0: the loss became nan")
    assert [(r["alpha"], r["error"], r["top1_percent"] != "") for r in rows(out)] == [
        ("0.25", "the loss became nan in epoch 1", False), ("0.35", "", True),
    ]  # fmt: skip
    assert "the loss became nan in epoch 1" in (out / "sweep.html").read_text()
    assert "v1 0.35-32" in ran.err  # the table
    quick.failures.clear()
    assert command(*line, "--resume").code == 0
    assert all(not r["error"] for r in rows(out))


def test_all_may_fail(command, colours, tmp_path, quick):
    quick.failures.add((0.25, 0))
    ran = command("sweep", colours, "--out", tmp_path / "s", "--alphas", ".25", "--resolutions", "32")
    assert "1 of 1 training failed" in ran.err.splitlines()[-1]
    assert "<svg" not in (tmp_path / "s" / "sweep.html").read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--alphas .25,wide", "--alphas takes numbers with commas between, not '.25,wide'"),
        ("--alphas .25,", "--alphas takes numbers"),
        ("--resolutions 32.5", "--resolutions takes whole numbers"),
        ("--alphas 0", "alpha must be above 0"),
        ("--resolutions 16", "resolution must be"),
        ("--arch v1,v9", "unknown arch 'v9'"),
        ("--macs 0", "macs must be 1 or more"),
        ("--seeds 0", "seeds must be 1 or more"),
        ("--threads 0", "threads must be 1 or more"),
        ("--precision int9", "int9"),
        ("--recipe modren", "did you mean 'modern'"),
        ("--ray 127.0.0.1:1", "Ray"),
    ],
)
def test_mistakes(command, tmp_path, line, message):
    assert message in command("sweep", "digits", "--out", tmp_path / "s", *line.split()).line
    assert not (tmp_path / "s").exists()


def test_torchrun_is_refused(command, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "without torchrun" in command("sweep", "digits", "--out", tmp_path / "s").line


# ---- numbers and figures -------------------------------------------------------------------------------------------


def test_networks_are_means_over_seeds():
    got = networks(
        [made(score=90, seed=0), made(score=94, seed=1), made(0.5, score=91, latency=2.0), made(1.0, error="x")],
        TOP1,
    )
    assert [(n.alpha, n.score, n.seeds) for n in got] == [(0.25, 92, 2), (0.5, 91, 1)]
    assert got[0].spread == pytest.approx(8**0.5)
    assert got[1].spread is None
    assert got[0].train_seconds == 4


def test_the_front_has_no_network_that_another_beats():
    points = [(0.25, 80, 1.0), (0.35, 85, 2.0), (0.5, 84, 3.0), (0.75, 85, 2.5), (1.0, 90, 4.0), (1.4, 79, 1.0)]
    got = networks([made(a, score=t, latency=ms) for a, t, ms in points], TOP1)
    assert {n.alpha for n in got if n.front} == {0.25, 0.35, 1.0}


def test_of_an_error_the_smallest_is_best(tmp_path):
    """A task whose score is better when it is lower: the front, the table, the page and the file's column say so."""
    metric = MetricSpec("error_km", "median error", "km", higher_is_better=False)
    runs = tuple(made(a, score=t, latency=ms) for a, t, ms in [(0.25, 90, 1.0), (0.5, 95, 2.0), (1.0, 40.5, 3.0)])
    assert {n.alpha for n in networks(runs, metric) if n.front} == {0.25, 1.0}
    s = sweep.write(Sweep(tmp_path, "globe", recipes.recipe("modern"), "float32", 1, 3, runs, metric))
    assert [n["error_km"] for n in s.to_json()["networks"]] == [90, 95, 40.5]
    assert [r["error_km_km"] for r in rows(tmp_path)] == ["90", "95", "40.5"]
    text = (tmp_path / "sweep.html").read_text()
    assert "40.50 km" in text
    assert "Median error against macs" in text
    assert "top-1" not in text


def test_the_slope_is_of_the_logarithm_of_macs():
    dots = networks([made(a, score=50.0) for a in (0.25, 0.5, 1.0)], TOP1)
    dots = [dataclasses.replace(n, macs=2**i * 10**6, score=60 + 3 * i) for i, n in enumerate(dots)]
    assert page.slope(dots) == pytest.approx((60, 3))


def labels(fig):
    return " ".join(t.get_text() for t in fig.findobj(lambda a: hasattr(a, "get_text")))


@pytest.mark.parametrize("runs", [
    [made()],
    [made(a, r, s, 80 + 10 * a + r / 32 + s, a * r, arch) for a in (0.25, 0.5, 1.0) for r in (32, 64) for s in (0, 1)
     for arch in ("v1", "v2")],
], ids=["one", "many"])  # fmt: skip
def test_figures(runs):
    dots = networks(runs, TOP1)
    macs, params = page.over_macs(dots, TOP1, "$x_ data"), page.over_params(dots, TOP1, "data")
    latency = page.over_latency(dots, TOP1, "data", "onnxruntime")
    for fig in (macs, params, latency):
        assert fig.axes[0].get_xscale() == "log"
        assert "32 px" in labels(fig)
        bars = [c for c in fig.axes[0].containers if c.has_yerr]
        assert len(fig.axes[0].containers) == (1 if len(runs) == 1 else 4)
        assert len(bars) == (0 if len(runs) == 1 else 4)
    assert ("points for each doubling" in labels(macs)) == (len(runs) > 1)
    assert all(n.title in labels(latency) for n in dots if n.front)


def test_a_hostile_source_is_text_on_the_page(tmp_path):
    name = "<script>alert(1)</script> $x_"
    s = Sweep(tmp_path, name, recipes.recipe("modern"), "float32", 1, 2, (made(),), TOP1)
    text = page.page(s)
    assert name not in text
    assert html.escape(name, quote=False) in text
    assert "1 of 2 trainings so far" in text


# ---- Ray -----------------------------------------------------------------------------------------------------------


def test_ray_asked_for_but_not_installed(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'mobilenets[ray]'" in command("sweep", "digits", "--out", tmp_path / "s", "--ray", "auto").line
    assert not (tmp_path / "s").exists()


def test_ray_named_by_the_environment_but_not_installed(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert sweep._ray_of_environment() is None


class FakeRay:
    """What `cluster` uses of Ray; the last task is ready first."""

    __version__ = "0"

    def __init__(self):
        self.calls = []

    def init(self, **options):
        self.calls.append(options["address"])

    def shutdown(self):
        self.calls.append("shutdown")

    def remote(self, num_cpus):
        self.calls.append(num_cpus)
        return lambda f: type("Task", (), {"remote": staticmethod(lambda *a: (f, a))})

    def wait(self, waiting):
        return waiting[-1:], waiting[:-1]

    def get(self, task):
        return task[0](*task[1])


@pytest.mark.usefixtures("quick")
def test_results_come_as_tasks_end(command, colours, tmp_path, monkeypatch):
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    jobs._opened.cache_clear()
    line = ("sweep", colours, "--out", tmp_path / "s", "--alphas", ".25,.35", "--resolutions", "32")
    got = command(*line, "--ray", "auto", "--ray-cpus", 1.5, "--json").json
    assert ray.calls == ["auto", 1.5, "shutdown"]
    assert [r["alpha"] for r in got["runs"]] == [0.35, 0.25]


@pytest.mark.slow
def test_a_local_ray(command, colours, tmp_path):
    pytest.importorskip("ray")
    line = ("--alphas", ".25,.35", "--resolutions", "32", "--epochs", 1, "--workers", 0, "--json")
    here = command("sweep", colours, "--out", tmp_path / "here", *line).json
    there = command("sweep", colours, "--out", tmp_path / "there", *line, "--ray", "local").json
    scores = [{(r["alpha"], r["top1"]) for r in got["runs"]} for got in (here, there)]
    assert scores[0] == scores[1]


# ---- for real ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_weights(command, colours, tmp_path):
    """Killed inside the first network, resumed, and compared with an undisturbed sweep."""
    line = ["sweep", str(colours), "--alphas", ".25,.35", "--resolutions", "32", "--epochs", "6", "--workers", "0"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "mobilenets", *line, "--out", str(killed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    end = time.monotonic() + 120
    while not (killed / "v1-0.25-32-seed0" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "v1-0.25-32-seed0" / "float").exists()
    resumed = command(*line, "--out", killed, "--resume", "--json").json
    other = command(*line, "--out", whole, "--json").json
    assert [r["top1"] for r in resumed["runs"]] == [r["top1"] for r in other["runs"]]
    for name in ("v1-0.25-32-seed0", "v1-0.35-32-seed0"):
        a, b = (out / name / "float" / "weights.safetensors" for out in (killed, whole))
        assert a.read_bytes() == b.read_bytes()
    assert all(r["latency_ms"] > 0 for r in resumed["runs"])
