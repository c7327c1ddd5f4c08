import json
import os
import subprocess
import sys

import pytest

from mobilenets import files
from mobilenets.arch import cost, zoo
from mobilenets.deploy import engines, latency, load
from mobilenets.deploy.latency import Measured, Setting, Table, settings, time_networks
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, random_bundle

INT8 = Setting("onnxruntime", "int8", 1)
FLOAT = Setting("onnxruntime", "float32", 1)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch, tmp_path):
    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(latency, "ROUND_SECONDS", 0.005)
    monkeypatch.setattr(latency, "WARM_UP_SECONDS", 0.001)


@pytest.fixture
def small():
    """Three networks small enough to measure in earnest."""
    return [zoo.arch("v1", 0.25, 32, 10), zoo.arch("v1", 0.25, 64, 10), zoo.arch("v2", 0.35, 32, 10)]


@pytest.fixture
def built(monkeypatch):
    """A record of the networks that were built."""
    build, record = engines.build, []

    def recorded(name, bundle, precision, threads):
        record.append(bundle.card.arch.title)
        return build(name, bundle, precision, threads)

    monkeypatch.setattr(engines, "build", recorded)
    return record


# ---- settings ------------------------------------------------------------------------------------------------------


def test_all_combinations():
    assert settings(["onnxruntime"], ["int8"], [1, 2]) == [INT8, INT8._replace(threads=2)]
    both = settings(["onnxruntime", "torch"], ["int8", "float32"], [1])
    assert {s[:2] for s in both} == {(e, p) for e in ("onnxruntime", "torch") for p in ("int8", "float32")}
    assert (str(INT8), str(INT8._replace(threads=2))) == ("onnxruntime int8, 1 thread", "onnxruntime int8, 2 threads")


@pytest.mark.parametrize(
    ("engine", "precision", "threads", "message"),
    [
        ("onnxrutime", "int8", 1, "unknown engine 'onnxrutime': did you mean 'onnxruntime'"),
        ("onnxruntime", "int9", 1, "unknown precision 'int9'"),
        ("torch", "int4", 1, "no int4 networks to measure: torch has float32, "),
        ("onnxruntime", "int8", 0, "threads must be 1 or more, not 0"),
    ],
)
def test_combinations_that_do_not_exist(engine, precision, threads, message):
    with pytest.raises(UserError, match=message):
        settings([engine], [precision], [threads])


def test_combinations_that_do_not_exist_are_skipped():
    assert settings(["torch"], ["int4", "int8"], [1]) == [Setting("torch", "int8", 1)]


# ---- measuring -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [INT8, FLOAT])
def test_measured_on_this_machine(small, setting):
    rows = time_networks(small, setting)
    a, b, c = (rows[arch.digest] for arch in small)
    assert all(0 < m.latency_ms < 1000 for m in (a, b, c))
    assert b.latency_ms > a.latency_ms  # four times the macs
    for arch, m in zip(small, (a, b, c), strict=True):
        assert m.network == arch.title
        assert m.size_bytes > (1 if setting is INT8 else 4) * cost.count(arch).weights


@pytest.mark.slow
def test_measured_on_torch(small, monkeypatch):
    monkeypatch.setattr(latency, "ROUNDS", 1)
    (m,) = time_networks(small[:1], Setting("torch", "float32", 1)).values()
    assert 0 < m.latency_ms < 1000


def test_the_process_is_on_all_its_processors_again(small):
    before = os.sched_getaffinity(0)
    time_networks(small[:1], INT8)
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("name", ["v1", "v2", "v3-small", "v4-conv-s"])
def test_a_random_bundle_is_a_bundle(name, tmp_path):
    for precision in ("float32", "int8"):
        b = random_bundle(zoo.arch(name, num_classes=10), precision)
        b.save(tmp_path / precision)
        assert Bundle.load(tmp_path / precision).card.precision == precision


# ---- the cache -----------------------------------------------------------------------------------------------------


def test_the_second_time_nothing_is_measured(small, built):
    first = time_networks(small, INT8)
    assert len(built) == latency.ROUNDS * 3
    assert time_networks(small, INT8) == first
    assert len(built) == latency.ROUNDS * 3


def test_only_what_is_missing_is_measured(small, built):
    time_networks(small[:2], INT8)
    built.clear()
    time_networks(small, INT8)
    assert set(built) == {small[2].title}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (latency, "machine", lambda: "another machine x64"),
        (latency, "_instructions", lambda: "other flags"),
        (latency, "PROTOCOL", 99),
        (engines, "version", lambda _name: "99.0"),
    ],
)
def test_the_cache_is_of_one_machine_engine_and_protocol(small, built, monkeypatch, module, name, value):
    time_networks(small, INT8)
    built.clear()
    monkeypatch.setattr(module, name, value)
    time_networks(small, INT8)
    assert len(set(built)) == 3


@pytest.mark.sampled(1)
@pytest.mark.parametrize("setting", [FLOAT, INT8._replace(threads=2)])
def test_the_cache_is_of_one_precision_and_number_of_threads(small, built, setting):
    time_networks(small, INT8)
    built.clear()
    time_networks(small, setting)
    assert len(set(built)) == 3


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"a": 1}',
        '{"DIGEST": null}',
        '{"DIGEST": []}',
        '{"DIGEST": [1, NaN, 1, 1]}',
        '{"DIGEST": ["x", "y"]}',
        "\0",
    ],
)
def test_a_damaged_cache_is_measured_anew(small, built, text):
    time_networks(small[:1], INT8)
    path = latency.cache_of(INT8).path
    path.write_text(text.replace("DIGEST", small[0].digest))
    built.clear()
    time_networks(small[:1], INT8)
    assert built == [small[0].title] * latency.ROUNDS
    assert len(json.loads(path.read_text())[small[0].digest]) == latency.HEAD + latency.ROUNDS


def test_a_stopped_measurement_goes_on_where_it_was(small, built, monkeypatch):
    build = engines.build

    def interrupt(*arguments):
        if len(built) == 4:  # in the second round
            raise KeyboardInterrupt
        return build(*arguments)

    monkeypatch.setattr(engines, "build", interrupt)
    with pytest.raises(KeyboardInterrupt):
        time_networks(small, INT8)
    kept = json.loads(latency.cache_of(INT8).path.read_text())
    assert [len(kept[a.digest]) - latency.HEAD for a in small] == [2, 1, 1]
    monkeypatch.setattr(engines, "build", build)
    rows = time_networks(small, INT8)
    assert len(built) == latency.ROUNDS * 3
    for a in small:
        assert rows[a.digest].latency_ms <= min(kept[a.digest][latency.HEAD :])


# ---- a busy machine -------------------------------------------------------------------------------------------------


@pytest.fixture
def neighbour(monkeypatch):
    """`neighbour(3)`: from now on, the machine is busy with something that makes the reference loop take 3 times."""
    monkeypatch.setattr(load, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(load, "PATIENCE_SECONDS", 0.003)
    monkeypatch.setattr(load, "OFF", 1.1)
    monkeypatch.setattr(latency, "once", lambda _arch, _setting, _of=None: (state["ms"], 1000))
    state = {"ms": 2.0}

    def busy(times, ms=2.0):
        monkeypatch.setattr(load, "loop", lambda: 0.001 * times)
        state["ms"] = ms

    busy(1)
    return busy


def test_what_is_measured_beside_a_busy_program_is_not_kept(small, neighbour, capsys):
    time_networks(small[:1], INT8)  # the loop's best time is known
    neighbour(3, ms=9.0)
    loaded = time_networks(small, INT8)
    assert [m.latency_ms for m in loaded.values()] == [2.0, 9.0, 9.0]
    told = " ".join(capsys.readouterr().err.split())
    assert (
        "busy with something else while it measured 2 of 3 networks (a fixed loop took up to 2.9 times as long)" in told
    )
    assert set(latency.cache_of(INT8).rows) == {small[0].digest}
    neighbour(1)
    assert [m.latency_ms for m in time_networks(small, INT8).values()] == [2.0] * 3
    assert capsys.readouterr().err == ""
    assert set(latency.cache_of(INT8).rows) == {a.digest for a in small}


@pytest.mark.usefixtures("neighbour")
def test_a_full_run_queue_is_a_busy_machine(small, monkeypatch, capsys):
    monkeypatch.setattr(load, "waiting", lambda: 100)
    time_networks(small[:1], INT8)
    assert "busy" in capsys.readouterr().err
    assert latency.cache_of(INT8).rows == {}


@pytest.mark.usefixtures("neighbour")
def test_it_waits_for_a_quiet_moment(small, monkeypatch, capsys):
    moments = iter([0.001] * 3 + [0.003] * 2)
    monkeypatch.setattr(load, "loop", lambda: next(moments, 0.001))
    time_networks(small[:1], INT8)
    assert capsys.readouterr().err == ""
    assert set(latency.cache_of(INT8).rows) == {small[0].digest}


@pytest.mark.usefixtures("neighbour")
def test_rounds_far_apart_are_taken_again_and_not_kept(small, monkeypatch, capsys):
    found = iter([2.0, 3.0, 4.0, 5.0, 6.0, 2.0, 3.0, 4.0, 2.1])
    monkeypatch.setattr(latency, "once", lambda _arch, _setting, _of=None: (next(found), 1000))
    assert time_networks(small[:1], INT8)[small[0].digest].latency_ms == 2.0
    assert "aren't kept" in " ".join(capsys.readouterr().err.split())
    assert latency.cache_of(INT8).rows == {}
    assert time_networks(small[:1], INT8)[small[0].digest].latency_ms == 2.0
    assert set(latency.cache_of(INT8).rows) == {small[0].digest}


def test_measuring_again(small, neighbour):
    time_networks(small, INT8)
    neighbour(1, ms=1.5)
    assert {m.latency_ms for m in time_networks(small, INT8).values()} == {2.0}
    assert {m.latency_ms for m in time_networks(small, INT8, remeasure=True).values()} == {1.5}
    assert {m.latency_ms for m in time_networks(small, INT8).values()} == {1.5}


@pytest.mark.usefixtures("neighbour")
def test_cached_figures_say_when_and_how_they_were_measured(small):
    time_networks(small, INT8)
    for m in time_networks(small, INT8).values():
        assert m.measured[:4].isdigit()
        assert m.load_average >= 0
        assert m.reference == 1.0
    assert latency.dates(time_networks(small, INT8).values()).count("-") == 2


def test_the_loop_takes_about_as_long_each_time():
    times = sorted(load.loop() for _ in range(20))
    assert 0 < times[0] <= times[10] < 20 * times[0]


# ---- tables --------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(small):
    """What a table's file says."""
    entries = {
        s: {small[0].digest: Measured(small[0].title, 1.5, 1000, "2026-11-02T10:00:00+00:00", 0.5, 1.02)}
        for s in (INT8, FLOAT)
    }
    return Table("a machine x2", {"onnxruntime": "1.0"}, entries).to_json()


def test_a_table_is_read_as_it_was_written(table, tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(table))
    read = Table.read(tmp_path / "t.json")
    assert {k: v for k, v in read.to_json().items() if k != "made"} == {k: v for k, v in table.items() if k != "made"}
    assert (read.machine, set(read.entries)) == ("a machine x2", {INT8, FLOAT})


def test_a_table_says_what_it_is(table, small):
    assert {"kind", "format", "protocol", "measured", "machine", "made", "mobilenets", "tables"} == set(table)
    assert table["tables"][0] == {
        "engine": "onnxruntime", "engine_version": "1.0", "precision": "int8", "threads": 1,
        "networks": {small[0].digest: {
            "network": "v1 0.25-32", "latency_ms": 1.5, "size_bytes": 1000,
            "measured": "2026-11-02T10:00:00+00:00", "load_average": 0.5, "reference": 1.02,
        }},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "other"}, "not a latency table; make one with: mobilenets latency-table --out t.json"),
        ({"format": None}, "not a latency table"),
        ({"format": 99}, r"written by a newer mobilenets \(table format 99"),
        ({"protocol": 1}, "measured by protocol 1, this mobilenets by"),
        ({"tables": None}, "damaged: a field is missing or malformed"),
        ({"tables": [{}]}, "damaged"),
        ({"machine": ...}, "damaged"),
        ({"latency_ms": "fast"}, "damaged"),
        ({"latency_ms": -1}, "damaged.*out of range"),
        ({"latency_ms": float("nan")}, "damaged.*out of range"),
        ({"latency_ms": float("inf")}, "damaged.*out of range"),
        ({"size_bytes": float("inf")}, "damaged"),
        ({"size_bytes": 0}, "damaged.*out of range"),
        ({"network": ...}, "damaged"),
    ],
)
def test_a_wrong_table_is_one_line(table, tmp_path, change, message):
    ((name, value),) = change.items()
    where = table if name in table else next(iter(table["tables"][0]["networks"].values()))
    if value is ...:
        del where[name]
    else:
        where[name] = value
    (tmp_path / "t.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=rf"t\.json: {message}"):
        Table.read(tmp_path / "t.json")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b"3"])
def test_a_file_that_is_no_table_is_one_line(tmp_path, data):
    (tmp_path / "t.json").write_bytes(data)
    with pytest.raises(UserError, match=r"t\.json: not "):
        Table.read(tmp_path / "t.json")


def test_without_a_home_to_write_to_it_goes_on(small, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path / "file" / "cache"))
    assert len(time_networks(small, INT8)) == len(small)
    assert capsys.readouterr().err.count("what is measured can't be kept") == 1


def test_the_cache_is_where_the_system_has_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("MOBILENETS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_root() == tmp_path / "xdg" / "mobilenets"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_root() == tmp_path / ".cache" / "mobilenets"


def test_the_verb(command, small, monkeypatch, tmp_path):
    monkeypatch.setattr("mobilenets.commands.choose.grid", lambda _classes, _side=None, _task=None: small)
    ran = command("latency-table", "--precision", "int8,float32", "--out", tmp_path / "t.json")
    assert ran.code == 0, ran.err
    assert "onnxruntime float32, 1 thread" in ran.out
    read = Table.read(tmp_path / "t.json")
    assert set(read.entries) == {INT8, FLOAT}
    assert read.entries[INT8] == time_networks(small, INT8)


ALONE = """
import sys
for name in ("torch", "torchvision", "onnx", "matplotlib", "jinja2", "sklearn"):
    sys.modules[name] = None
from mobilenets import cli
from mobilenets.arch import zoo
from mobilenets.commands import choose
from mobilenets.deploy import load
load.OFF, load.waiting = 1000.0, lambda: 0
choose.grid = lambda classes, side=None, task=None: [zoo.arch("v1", 0.25, 32, classes)]
sys.exit(cli.run(sys.argv[1:]))
"""


def test_a_table_needs_neither_torch_nor_onnx(tmp_path):
    out = tmp_path / "t.json"
    line = [sys.executable, "-c", ALONE, "latency-table", "--precision", "int8,float32", "--out", str(out)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(Table.read(out).entries) == 2
