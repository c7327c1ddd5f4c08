import itertools
import json
import os
from types import SimpleNamespace

import pytest

from mobilenets import choose, cost, engines, published, zoo
from mobilenets.choose import Budget, grid, measure, pick
from mobilenets.engines import onnxruntime
from mobilenets.errors import UserError

LIMITS = ("latency_ms", "size_mb", "macs_m", "params_m", "memory_mb")


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """Times that depend on the network alone, an empty cache, and a record of what was measured."""
    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path / "cache"))
    measured = []

    def build(bundle, _threads):
        return SimpleNamespace(arch=bundle.card.arch), cost.count(bundle.card.arch).weights

    def time_calls(engine, _batch, _seconds):
        measured.append(engine.arch.title)
        return [cost.count(engine.arch).macs * 1e-11] * 3

    monkeypatch.setattr(onnxruntime, "build", build)
    monkeypatch.setattr(choose, "time_calls", time_calls)
    monkeypatch.setattr(choose, "random_bundle", lambda arch, _p: SimpleNamespace(card=SimpleNamespace(arch=arch)))
    return measured


@pytest.fixture
def small():
    """Three networks small enough to measure in earnest."""
    return [zoo.arch("v1", 0.25, 32, 10), zoo.arch("v1", 0.25, 64, 10), zoo.arch("v2", 0.35, 32, 10)]


@pytest.fixture
def hurry(monkeypatch, tmp_path):
    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choose, "ROUND_SECONDS", 0.005)
    monkeypatch.setattr(choose, "WARM_UP_SECONDS", 0.001)


# ---- the grid ------------------------------------------------------------------------------------------------------


def test_the_grid_is_what_the_papers_published():
    archs = grid(1000)
    assert [a.name for a in archs].count("v1") == 16
    assert [a.name for a in archs].count("v2") == 22
    assert len({a.digest for a in archs}) == 51
    assert {(a.name, a.alpha, a.resolution) for a in archs} == {
        (n, alpha, r) for n, table in published.TOP1.items() for alpha, row in table.items() for r in row
    }
    assert all(a.classes == 1000 for a in archs)


@pytest.mark.parametrize(
    ("side", "v1", "v2"),
    [
        (8, {32}, {32}), (28, {32}, {32}), (32, {32, 64}, {32, 64}), (47, {32, 64}, {32, 64}),
        (48, {32, 64, 96}, {32, 64, 96}), (64, {128}, {96, 128}), (96, {128, 160, 192}, {96, 128, 160, 192}),
        (500, {128, 160, 192, 224}, {96, 128, 160, 192, 224}),
    ],
)  # fmt: skip
def test_small_images_bring_small_resolutions(side, v1, v2):
    archs = grid(10, side)
    assert {a.resolution for a in archs if a.name == "v1"} == v1
    assert {a.resolution for a in archs if a.name == "v2"} == v2
    assert all(a.classes == 10 for a in archs)


# ---- budgets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", LIMITS)
def test_each_limit_holds(clock, limit):
    free = pick(grid(1000), Budget())
    bound = sorted(getattr(c, limit) for c in free.candidates)[12] * 1.0001
    choice = pick(grid(1000), Budget(**{f"max_{limit}": bound}))
    fitting = [c for c in choice.candidates if getattr(c, limit) <= bound]
    assert 0 < len(fitting) < 51
    assert getattr(choice.pick, limit) <= bound < getattr(free.pick, limit)
    assert choice.pick.top1.value == max(c.top1.value for c in fitting)
    assert clock


def test_without_a_budget_the_most_accurate_is_picked(clock):
    choice = pick(grid(1000), Budget())
    assert choice.pick.arch.title == "v4-hybrid-l 1-384"
    assert len(clock) == choose.ROUNDS * 2 * 51  # warm-up and measurement in each round


def test_limits_bind_together(clock):
    both = Budget(max_latency_ms=1.0, max_size_mb=2.0)
    choice = pick(grid(1000), both)
    assert choice.pick.latency_ms <= 1.0
    assert choice.pick.size_mb <= 2.0
    for one in (Budget(max_latency_ms=1.0), Budget(max_size_mb=2.0)):
        assert pick(grid(1000), one).pick.top1.value >= choice.pick.top1.value
    assert clock


def test_a_candidate_carries_the_networks_own_cost(clock):
    (c,) = measure([zoo.arch("v1", 1.0, 224)], "onnxruntime", "int8", 1)
    assert c.macs_m == 568.740352
    assert c.params_m == 4.231976
    assert c.size_mb == pytest.approx(4.209088)
    assert c.latency_ms == pytest.approx(5.68740352)
    assert c.memory_mb == cost.count(c.arch).peak_activation_elements / 1e6
    (f,) = measure([c.arch], "onnxruntime", "float32", 1)
    assert f.memory_mb == 4 * c.memory_mb
    assert clock


@pytest.mark.parametrize("limit", LIMITS)
def test_a_budget_nothing_meets_names_the_nearest(clock, limit):
    candidates = measure(grid(1000), "onnxruntime", "int8", 1)
    near = min(candidates, key=lambda c: getattr(c, limit))
    with pytest.raises(UserError) as e:
        pick(grid(1000), Budget(**{f"max_{limit}": getattr(near, limit) / 3}))
    text = str(e.value)
    assert text.startswith("no network meets")
    least = [c.arch.title for c in candidates if getattr(c, limit) == getattr(near, limit)]
    assert any(f"the nearest is {title}: " in text for title in least)
    assert f"{near.params_m:.2f} M params" in text
    assert clock


@pytest.mark.parametrize("value", [0, -1, float("nan")])
@pytest.mark.parametrize("limit", LIMITS)
def test_a_bad_limit_is_named_as_its_option(limit, value):
    with pytest.raises(UserError, match=f"--max-{limit.replace('_', '-')} must be above 0"):
        Budget(**{f"max_{limit}": value})


def test_a_budget_in_words():
    assert str(Budget()) == "no limit"
    assert str(Budget(max_latency_ms=4, max_size_mb=2.5)) == "latency 4 ms, size 2.5 MB"
    assert Budget(max_params_m=1).limits() == {"params_m": 1}


# ---- the front -----------------------------------------------------------------------------------------------------


def test_the_front_is_monotone_and_unbeaten(clock):
    choice = pick(grid(1000), Budget())
    front = choice.front
    assert 3 < len(front) < 51
    for a, b in itertools.pairwise(front):
        assert a.latency_ms < b.latency_ms
        assert a.top1.value < b.top1.value
    for c in choice.candidates:
        beaten = any(
            o.latency_ms <= c.latency_ms and o.top1.value >= c.top1.value and o is not c for o in choice.candidates
        )
        assert (c in front) != beaten
    assert choice.pick is front[-1]
    assert clock


# ---- the cache -----------------------------------------------------------------------------------------------------


def test_the_second_time_nothing_is_measured(clock, monkeypatch):
    first = pick(grid(10), Budget())
    monkeypatch.setattr(choose, "time_calls", lambda *_: pytest.fail("measured again"))
    assert pick(grid(10), Budget()).to_json() == first.to_json()
    assert clock


def test_only_what_is_missing_is_measured(clock, small):
    measure(small[:2], "onnxruntime", "int8", 1)
    clock.clear()
    measure(small, "onnxruntime", "int8", 1)
    assert set(clock) == {small[2].title}


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (choose, "machine", lambda: "another machine x64"),
        (choose, "_instructions", lambda: "other flags"),
        (choose, "PROTOCOL", 99),
        (engines, "version", lambda _name: "99.0"),
    ],
)
def test_the_cache_is_of_one_machine_engine_and_protocol(clock, small, monkeypatch, module, name, value):
    measure(small, "onnxruntime", "int8", 1)
    clock.clear()
    measure(small, "onnxruntime", "int8", 1)
    assert not clock
    monkeypatch.setattr(module, name, value)
    measure(small, "onnxruntime", "int8", 1)
    assert len(set(clock)) == 3


@pytest.mark.parametrize(("precision", "threads"), [("float32", 1), ("int8", 2)])
def test_the_cache_is_of_one_precision_and_number_of_threads(clock, small, precision, threads):
    measure(small, "onnxruntime", "int8", 1)
    clock.clear()
    measure(small, "onnxruntime", precision, threads)
    assert len(set(clock)) == 3


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"a": 1}', '{"DIGEST": null}', '{"DIGEST": [1]}', '{"DIGEST": ["x", "y"]}', "\0"]
)
def test_a_damaged_cache_is_measured_anew(clock, small, text):
    first = measure(small, "onnxruntime", "int8", 1)
    path = choose.Cache("onnxruntime", "int8", 1).path
    path.write_text(text.replace("DIGEST", small[0].digest))
    clock.clear()
    assert measure(small, "onnxruntime", "int8", 1) == first
    assert set(clock) == {a.title for a in small}
    assert set(json.loads(path.read_text())) >= {a.digest for a in small}


def test_a_cache_that_cannot_be_written_is_a_clear_line(clock, monkeypatch, tmp_path, command):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path / "file" / "cache"))
    ran = command("choose", "--json")
    assert ran.code == 2
    assert "can't write" in ran.err.splitlines()[-1]
    assert clock


# ---- in earnest ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_measured_on_this_machine(small, precision):
    rows = measure(small, "onnxruntime", precision, 1)
    assert all(0 < c.latency_ms < 1000 for c in rows)
    assert rows[1].latency_ms > rows[0].latency_ms  # four times the macs
    per_weight = 1 if precision == "int8" else 4
    for c in rows:
        assert c.size_mb > per_weight * cost.count(c.arch).weights / 1e6


@pytest.mark.usefixtures("hurry")
def test_measured_on_torch(small):
    (c,) = measure(small[:1], "torch", "float32", 1)
    assert 0 < c.latency_ms < 1000


@pytest.mark.usefixtures("hurry")
def test_the_process_is_on_all_its_processors_again(small):
    before = os.sched_getaffinity(0)
    measure(small[:1], "onnxruntime", "int8", 1)
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_a_random_bundle_is_a_bundle(name, tmp_path):
    from mobilenets.bundle import Bundle

    for precision in ("float32", "int8"):
        b = choose.random_bundle(zoo.arch(name, 0.5, 32, 10), precision)
        b.save(tmp_path / precision)
        assert Bundle.load(tmp_path / precision).card.precision == precision


# ---- the verb ------------------------------------------------------------------------------------------------------


def test_json(clock, command):
    got = command("choose", "--max-latency-ms", 2, "--max-size-mb", 4, "--json").json
    assert set(got) == {
        "pick", "arch", "budget", "engine", "engine_version", "precision", "threads", "machine", "front", "candidates",
    }  # fmt: skip
    assert len(got["candidates"]) == 51
    row = {"arch", "alpha", "resolution", "imagenet_top1", "imagenet_top1_source", *LIMITS}
    for c in (got["pick"], *got["front"], *got["candidates"]):
        assert set(c) == row
    assert got["pick"] in got["candidates"]
    assert got["pick"]["latency_ms"] <= 2
    assert got["budget"] == {"latency_ms": 2, "size_mb": 4}
    assert got["arch"]["classes"] == 1000
    assert clock


def test_the_table_marks_the_pick(clock, command):
    ran = command("choose", "--max-latency-ms", 2)
    assert ran.code == 0
    (row,) = (line for line in ran.out.splitlines() if "→ v" in line)
    best = command("choose", "--max-latency-ms", 2, "--json").json["pick"]
    assert f"{best['arch']} {best['alpha']:g}-{best['resolution']}" in row
    assert "●" in ran.out
    assert "│ budget" in ran.out
    assert clock


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot(clock, command, tmp_path, suffix):
    path = tmp_path / f"front.{suffix}"
    ran = command("choose", "--max-latency-ms", 2, "--plot", path)
    assert ran.code == 0, ran.err
    data = path.read_bytes()
    assert len(data) > 5000
    assert data.startswith(b"\x89PNG") if suffix == "png" else b"<svg" in data
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == [path.name]
    assert clock


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--max-latency-ms", 0), "--max-latency-ms must be above 0"),
        (("--max-size-mb", "-1"), "--max-size-mb must be above 0"),
        (("--max-size-mb", "small"), "max-size-mb"),
        (("--engine", "onnxrutime"), "unknown engine 'onnxrutime': did you mean 'onnxruntime'"),
        (("--precision", "int4"), "int4"),
        (("--threads", 0), "threads must be 1 or more"),
        (("--classes", "-1"), "classes must be"),
        (("--max-latency", 3), "max-latency"),
    ],
)
def test_bad_arguments(clock, command, line, message):
    assert message in command("choose", *line).line
    assert not clock


def test_a_budget_nothing_meets_is_one_line(clock, command):
    command("choose", "--json")
    assert "the nearest is v" in command("choose", "--max-latency-ms", 1e-6).line
    assert clock


@pytest.mark.slow
def test_the_whole_grid(monkeypatch, tmp_path):
    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path))
    choice = pick(grid(1000), Budget(), "onnxruntime", "int8", 1)
    by = {c.arch.title: c.latency_ms for c in choice.candidates}
    assert by["v1 0.25-128"] < by["v1 0.5-160"] < by["v1 1-224"]
    assert by["v2 0.35-96"] < by["v2 1-160"] < by["v2 1.4-224"]
