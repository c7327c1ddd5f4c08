import os

import numpy as np
import pytest
from small import quantized

from mobilenets.deploy import bench, engines
from mobilenets.deploy.writers import onnx as onnx_graph


@pytest.fixture(scope="module")
def files(make_bundle, pixels, tmp_path_factory):
    """A run: a bundle, a float and an int8 file."""
    root = tmp_path_factory.mktemp("run")
    b = make_bundle("v1")
    b.save(root / "float")
    for name, x in (("model", b), ("model-int8", quantized(b, pixels))):
        (root / f"{name}.onnx").write_bytes(onnx_graph.onnx_model(x))
    return root


KEYS = {
    "path", "engine", "title", "precision", "threads", "batch", "median_ms", "p95_ms", "images_per_s", "load_ms",
    "peak_rss_bytes", "size_bytes", "runs", "rounds_ms", "reference", "load_average",
}  # fmt: skip


def test_two_files_in_turn(files, command):
    a, b = files / "model.onnx", files / "model-int8.onnx"
    rows = command("bench", a, b, "--rounds", 2, "--batch", "2,3", "--json").json
    assert [r["path"] for r in rows] == [str(a), str(b)]
    assert [r["precision"] for r in rows] == ["float32", "int8"]
    for r, path in zip(rows, (a, b), strict=True):
        assert set(r) == KEYS
        assert 0 < r["median_ms"] <= r["p95_ms"] < 1000
        assert r["images_per_s"]["2"] == pytest.approx(2 * 1e3 / r["median_ms"])
        assert r["images_per_s"]["3"] > 0
        assert len(r["rounds_ms"]) == 2
        assert min(r["rounds_ms"]) == pytest.approx(r["median_ms"])
        assert r["size_bytes"] == path.stat().st_size
        assert 20e6 < r["peak_rss_bytes"] < 2e9
        assert r["load_ms"] > 0
        assert r["runs"] >= 10
        assert (r["engine"], r["title"], r["threads"], r["batch"]) == ("onnxruntime", "v1 0.25-32", 1, 2)


@pytest.mark.slow
def test_rounds_alternate(files, monkeypatch):
    order = []
    measure = bench._Worker.measure
    monkeypatch.setattr(
        bench._Worker, "measure", lambda self, n: (order.append(self.subject.path.name), measure(self, n))
    )
    bench.bench_files([files / "model.onnx", files / "model-int8.onnx"], rounds=3)
    assert order == ["model.onnx", "model-int8.onnx"] * 3


def test_the_table_and_a_run(files, command):
    ran = command("bench", files, "--rounds", 1)
    assert ran.code == 0, ran.err
    assert "model-int8.onnx" in "".join(ran.out.split())  # of a run, what it ships
    assert "median" in ran.out
    assert "v1 0.25-32" in ran.out


@pytest.mark.slow
def test_a_bundle_runs_on_torch(files):
    (t,) = bench.bench_files([files / "float"], rounds=1)
    assert (t.engine, t.precision) == ("torch", "float32")
    assert t.size_bytes == sum(p.stat().st_size for p in (files / "float").iterdir())


def paired_ratio(files, rounds):
    """Median over pairs of rounds of one file's median over its own, measured a second time beside it."""
    a, b = bench.bench_files([files / "model.onnx", files / "model.onnx"], rounds=rounds)
    return float(np.median(np.divide(a.rounds_ms, b.rounds_ms)))


@pytest.mark.slow
def test_a_file_against_itself(files):
    assert any(abs(paired_ratio(files, 4) - 1) < 0.25 for _ in range(3))  # where the machine is busy, it takes two


@pytest.mark.slow
def test_a_file_against_itself_to_3_percent(files):
    ratios = [paired_ratio(files, 10) for _ in range(5)]
    assert abs(np.median(ratios) - 1) < 0.03


def test_time_calls_has_its_least_number_and_its_time(files):
    engine = engines.load(files / "model.onnx")
    assert len(bench.time_calls(engine, 1, 0.0)) == 5
    assert len(bench.time_calls(engine, 3, 0.0, at_least=2)) == 2
    times = bench.time_calls(engine, 1, 0.1)
    assert 0.03 < sum(times) < 1


def test_pinned():
    before = os.sched_getaffinity(0)
    with bench.pinned(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_the_processes_end(files, monkeypatch):
    workers = []
    init = bench._Worker.__init__
    monkeypatch.setattr(bench._Worker, "__init__", lambda self, *a: (workers.append(self), init(self, *a))[1])
    bench.bench_files([files / "model.onnx"], rounds=1)
    (w,) = workers
    w.process.join(5)
    assert w.process.exitcode is not None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ((), "name at least one file"),
        (("gone.onnx",), "gone.onnx: no such file or folder"),
        (("model.onnx", "gone.onnx"), "gone.onnx: no such file or folder"),
        (("cut.onnx",), "cut.onnx: not a readable ONNX file"),
        (("notes.txt",), "no engine runs a .txt file"),
        (("altered",), "digest differs"),
        (("empty",), "neither a bundle nor a finished run"),
        (("model.onnx", "--threads", "0"), "threads must be 1 or more"),
        (("model.onnx", "--batch", "8,0"), "batch must be 1 or more"),
        (("model.onnx", "--batch", "1,many"), "--batch takes whole numbers with commas between"),
        (("model.onnx", "--rounds", "-1"), "rounds must be 1 or more"),
        (("model.onnx", "--rounds", "many"), "rounds"),
    ],
)
def test_bad_arguments(files, make_bundle, command, monkeypatch, line, message):
    monkeypatch.chdir(files)
    (files / "cut.onnx").write_bytes((files / "model.onnx").read_bytes()[:1000])
    (files / "notes.txt").write_text("")
    (files / "empty").mkdir(exist_ok=True)
    make_bundle("v1").save(files / "altered")
    weights = files / "altered" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert message in command("bench", *line).line


def test_a_process_that_dies_is_told(files, monkeypatch, command):
    """Killed from outside, as when memory runs out."""
    measure = bench._Worker.measure

    def killed(self, batch):
        self.process.kill()
        self.process.join()
        measure(self, batch)

    monkeypatch.setattr(bench._Worker, "measure", killed)
    assert "the process measuring it died" in command("bench", files / "model.onnx").line


@pytest.mark.slow
def test_images_that_no_memory_holds(files, command):
    ran = command("bench", files / "model.onnx", "--batch", 10**14, "--rounds", 1)
    assert ran.line.endswith(f"there isn't the memory for {10**14} images in a call")
    assert "Traceback" not in ran.err


def test_many_subjects_are_measured_in_groups_and_come_back_in_order(files, monkeypatch):
    monkeypatch.setattr(bench, "AT_ONCE", 2)
    names = ["model.onnx", "model-int8.onnx", "model.onnx"]
    got = bench.time_files([bench.Subject(files / n) for n in names], rounds=1)
    assert [t.path for t in got] == [str(files / n) for n in names]
