import functools
import itertools
import json
import sys
from types import SimpleNamespace

import pytest

from mobilenets.arch import cost, published, zoo
from mobilenets.deploy import engines, latency
from mobilenets.deploy.choose import Budget, grid, pick
from mobilenets.errors import UserError

LIMITS = ("latency_ms", "size_mb", "macs_m", "params_m", "memory_mb")
MEMORY = ("ram_kb", "flash_kb")
SLOWNESS = {"onnxruntime": 1, "torch": 3, "int8": 1, "float32": 2}


@functools.cache
def counted(arch):
    return cost.count(arch)


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """Times that depend on the network, engine and precision alone, an empty cache, a record of what was measured."""
    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path / "cache"))
    measured = []

    def build(engine, bundle, precision, _threads):
        arch = bundle.card.arch
        seconds = counted(arch).macs * 1e-11 * SLOWNESS[engine] * SLOWNESS[precision]
        return SimpleNamespace(arch=arch, seconds=seconds), counted(arch).weights

    def time_calls(engine, _batch, _seconds):
        measured.append(engine.arch.title)
        return [engine.seconds] * 3

    monkeypatch.setattr(engines, "build", build)
    monkeypatch.setattr(latency, "time_calls", time_calls)
    monkeypatch.setattr(
        "mobilenets.deploy.latency.random_bundle", lambda arch, _p: SimpleNamespace(card=SimpleNamespace(arch=arch))
    )
    return measured


# ---- the grid ------------------------------------------------------------------------------------------------------


def test_the_grid_is_what_the_papers_published():
    archs = grid(1000)
    assert [a.name for a in archs].count("v1") == 16
    assert [a.name for a in archs].count("v2") == 22
    assert len({a.digest for a in archs}) == 51
    assert {(a.name, a.alpha, a.resolution) for a in archs} == {
        (n, alpha, r) for n, table in published.TOP1.items() for alpha, row in table.items() for r in row
    }
    assert all(a.num_classes == 1000 for a in archs)


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
    assert all(a.num_classes == 10 for a in archs)


# ---- budgets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", LIMITS)
def test_each_limit_holds(clock, limit):
    free = pick(grid(1000), Budget())
    bound = sorted(getattr(c, limit) for c in free.candidates)[12] * 1.0001
    choice = pick(grid(1000), Budget(**{f"max_{limit}": bound}))
    fitting = [c for c in choice.candidates if getattr(c, limit) <= bound]
    assert 0 < len(fitting) < 51
    assert getattr(choice.pick, limit) <= bound < getattr(free.pick, limit)
    assert choice.pick.prior.value == max(c.prior.value for c in fitting)
    assert clock


def test_without_a_budget_the_most_accurate_is_picked(clock):
    choice = pick(grid(1000), Budget())
    assert choice.pick.arch.title == "v4-hybrid-l 1-384"
    assert len(clock) == latency.ROUNDS * 2 * 51  # warm-up and measurement in each round


def test_limits_bind_together(clock):
    both = Budget(max_latency_ms=1.0, max_size_mb=2.0)
    choice = pick(grid(1000), both)
    assert choice.pick.latency_ms <= 1.0
    assert choice.pick.size_mb <= 2.0
    for one in (Budget(max_latency_ms=1.0), Budget(max_size_mb=2.0)):
        assert pick(grid(1000), one).pick.prior.value >= choice.pick.prior.value
    assert clock


def test_a_candidate_carries_the_networks_own_cost(clock):
    c = pick([zoo.arch("v1", 1.0, 224)], Budget()).pick
    assert c.macs_m == 568.740352
    assert c.params_m == 4.231976
    assert c.size_mb == pytest.approx(4.209088)
    assert c.latency_ms == pytest.approx(5.68740352)
    assert c.memory_mb == cost.count(c.arch).peak_activation_elements / 1e6
    f = pick([c.arch], Budget(), precision="float32").pick
    assert f.memory_mb == 4 * c.memory_mb
    assert clock


@pytest.mark.sampled(2)
@pytest.mark.parametrize("limit", LIMITS)
def test_a_budget_nothing_meets_names_the_nearest(clock, limit):
    candidates = pick(grid(1000), Budget()).candidates
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
@pytest.mark.parametrize("limit", [*LIMITS, *MEMORY])
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
        assert a.prior.value < b.prior.value
    for c in choice.candidates:
        beaten = any(
            o.latency_ms <= c.latency_ms and o.prior.value >= c.prior.value and o is not c for o in choice.candidates
        )
        assert (c in front) != beaten
    assert choice.pick is front[-1]
    assert clock


# ---- several engines and precisions --------------------------------------------------------------------------------


BOTH = {"engine": ("onnxruntime", "torch"), "precision": ("int8", "float32")}


def test_every_engine_and_precision_is_a_candidate(clock):
    choice = pick(grid(1000), Budget(), **BOTH)
    ways = [(c.setting.engine, c.setting.precision) for c in choice.candidates]
    assert {w: ways.count(w) for w in ways} == dict.fromkeys(itertools.product(*BOTH.values()), 51)
    assert set(choice.versions) == {"onnxruntime", "torch"}
    assert clock


def test_of_two_alike_the_faster_way_is_picked(clock):
    choice = pick(grid(1000), Budget(), **BOTH)
    assert (choice.engine, choice.precision, choice.threads) == ("onnxruntime", "int8", 1)
    assert {c.setting.name for c in choice.front} == {"onnxruntime int8"}
    assert clock


def test_a_limit_decides_between_precisions(clock, monkeypatch):
    monkeypatch.setitem(SLOWNESS, "float32", 0.5)
    choice = pick(grid(1000), Budget(), **BOTH)
    assert (choice.engine, choice.precision) == ("onnxruntime", "float32")
    small = pick(grid(1000), Budget(max_memory_mb=0.2), **BOTH)
    assert small.precision == "int8"  # float activations take four times the memory
    assert clock


def test_what_an_engine_does_not_have_is_skipped(clock):
    choice = pick(grid(10)[:3], Budget(), "torch", ("int4", "int8"))
    assert [c.setting.name for c in choice.candidates] == ["torch int8"] * 3
    assert clock


def test_a_network_an_engine_refuses_is_left_out_and_told(clock, monkeypatch, capsys):
    build = engines.build

    def refuse(engine, bundle, precision, threads):
        if bundle.card.arch.name.startswith("v4"):
            raise UserError("no attention here")
        return build(engine, bundle, precision, threads)

    monkeypatch.setattr(engines, "build", refuse)
    choice = pick(grid(1000), Budget())
    assert not any(c.arch.name.startswith("v4") for c in choice.candidates)
    assert len(choice.candidates) == sum(not a.name.startswith("v4") for a in grid(1000))
    assert "no attention here" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match="no attention here"):
        pick([a for a in grid(10) if a.name.startswith("v4")], Budget())
    assert clock


# ---- microcontrollers ----------------------------------------------------------------------------------------------


@pytest.fixture
def microcontroller(monkeypatch):
    """An interpreter that needs twice the peak activations and the weights and 10 kB; a record of what was tried."""
    tried = []

    def needs(bundle):
        c = cost.count(bundle.card.arch)
        tried.append(bundle.card.arch.title)
        if bundle.card.arch.name == "v3-small":
            raise UserError("an operator is missing")
        return 2 * c.peak_activation_elements, c.weights + 10_000

    stub = SimpleNamespace(needs=needs, version=lambda: "1.0")
    monkeypatch.setitem(sys.modules, "mobilenets.deploy.engines.tflm", stub)
    monkeypatch.setattr(engines, "tflm", stub, raising=False)
    return tried


def test_memory_limits_of_a_microcontroller_hold(clock, microcontroller, capsys):
    choice = pick(grid(1000), Budget(max_ram_kb=1024, max_flash_kb=1024))
    c = choice.pick
    assert c.ram_kb == 2 * cost.count(c.arch).peak_activation_elements / 1024 <= 1024
    assert c.flash_kb == (cost.count(c.arch).weights + 10_000) / 1024 <= 1024
    assert c.prior.value == max(o.prior.value for o in choice.candidates if max(o.ram_kb, o.flash_kb) <= 1024)
    too_large = {a.title for a in grid(1000) if cost.count(a).weights > 1024 * 1024}
    assert too_large
    assert not too_large & set(microcontroller)
    assert {"ram_kb", "flash_kb"} <= set(choice.to_json()["pick"])
    titles = {a.title for a in grid(1000)}
    assert {c.arch.title for c in choice.candidates if c.at_least} == titles - set(microcontroller)
    before = len(microcontroller)
    assert pick(grid(1000), Budget(max_ram_kb=1024, max_flash_kb=1024)).to_json() == choice.to_json()
    assert len(microcontroller) == before
    assert clock
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_networks_that_do_not_run_there_are_left_out_and_told(clock, microcontroller, capsys):
    choice = pick(grid(10), Budget(max_ram_kb=4096))
    assert "v3-small" in {a.name for a in grid(10)}
    assert "v3-small" not in {c.arch.name for c in choice.candidates}
    assert "TensorFlow Lite Micro can't run them: v3-small" in " ".join(capsys.readouterr().err.split())
    assert clock
    assert microcontroller


def test_no_network_is_small_enough(clock, microcontroller):
    with pytest.raises(UserError, match=r"no network meets RAM 1 KB .* RAM \d+ KB, flash \d+ KB"):
        pick(grid(10), Budget(max_ram_kb=1))
    assert clock
    assert not microcontroller


def test_microcontrollers_take_int8_alone(clock, microcontroller):
    with pytest.raises(UserError, match="ask for int8 alone"):
        pick(grid(10)[:2], Budget(max_ram_kb=1), precision=("int8", "float32"))
    assert not clock
    assert not microcontroller


# ---- a table instead of this machine -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured_once():
    """The bytes of the table below, when it has been made."""
    return []


@pytest.fixture
def table(clock, command, tmp_path, monkeypatch, measured_once):
    """A table of another machine; nothing may be measured any more."""
    path = tmp_path / "pi5.json"
    if not measured_once:
        monkeypatch.setattr(latency, "machine", lambda: "a Pi x4")
        assert command("latency-table", "--out", path, "--precision", "int8,float32", "--threads", "1,2").code == 0
        assert clock
        measured_once.append(path.read_bytes())
    path.write_bytes(measured_once[0])
    monkeypatch.setattr(latency, "machine", lambda: "this machine x2")
    monkeypatch.setattr(latency, "time_calls", lambda *_: pytest.fail("measured here"))
    return path


def test_a_table_of_another_machine_is_used(table, command):
    got = command("choose", "--table", table, "--precision", "float32,int8", "--threads", 2, "--json").json
    assert (got["machine"], got["threads"], got["precision"]) == ("a Pi x4", 2, "int8")
    assert len(got["candidates"]) == 2 * 51
    assert got["engine_version"] == engines.version("onnxruntime")


def test_a_table_has_the_small_networks_too(table):
    assert len(pick(grid(1000, 32), Budget(), table=table).candidates) == len(grid(1000, 32))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--engine", "torch"), "pi5.json: has onnxruntime float32, 1 thread; "),
        (("--threads", 4), "not onnxruntime int8, 4 threads"),
        (
            ("--classes", 7),
            "has none of the 51 networks asked for (of 7 classes); measure them with: mobilenets latency-",
        ),
        (("--max-latency-ms", 1e-6), "on the machine of "),
    ],
)
def test_what_a_table_does_not_have_is_one_line(table, command, line, message):
    assert message in command("choose", "--table", table, *line).line


def test_networks_missing_in_a_table_are_left_out_and_told(table, capsys):
    read = json.loads(table.read_text())
    (part,) = (t for t in read["tables"] if (t["precision"], t["threads"]) == ("int8", 1))
    del part["networks"][zoo.arch("v1", 0.25, 128).digest]
    table.write_text(json.dumps(read))
    assert len(pick(grid(1000), Budget(), table=table).candidates) == 50
    assert "1 of 51 networks aren't in it and are left out: v1 0.25-128" in " ".join(capsys.readouterr().err.split())


# ---- the verb ------------------------------------------------------------------------------------------------------


def test_json(clock, command):
    got = command("choose", "--max-latency-ms", 2, "--max-size-mb", 4, "--json").json
    assert set(got) == {
        "pick", "arch", "budget", "engine", "engine_version", "precision", "threads", "machine", "dates", "prior",
        "front", "candidates",
    }  # fmt: skip
    assert len(got["candidates"]) == 51
    row = {"arch", "alpha", "resolution", "engine", "precision", "imagenet_top1", "imagenet_top1_source", *LIMITS}
    for c in (got["pick"], *got["front"], *got["candidates"]):
        assert set(c) == row
    assert got["pick"] in got["candidates"]
    assert got["pick"]["latency_ms"] <= 2
    assert got["budget"] == {"latency_ms": 2, "size_mb": 4}
    assert got["arch"]["classes"] == 1000
    assert clock


def test_the_table_says_what_each_runs_on_where_there_are_several(clock, command):
    one, two = (command("choose", "--precision", p, "--max-latency-ms", 2).out for p in ("int8", "int8,float32"))
    (row,) = (line for line in two.splitlines() if "→ v" in line)
    assert "onnxruntime int8" in row
    assert "latency ms" in two
    assert "Pareto front of 102 networks (1 thread, " in " ".join(two.split())
    assert "Pareto front of 51 networks (onnxruntime int8, 1 thread, " in " ".join(one.split())
    assert clock


def test_the_table_has_the_memory_of_a_microcontroller(clock, microcontroller, command):
    out = command("choose", "--max-flash-kb", 1024).out
    (row,) = (line for line in out.splitlines() if "→ v" in line)
    assert "flash KB" in out
    assert "≥" not in row
    assert "≥" in out
    assert clock
    assert microcontroller


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
    ran = command("choose", "--max-latency-ms", 2, "--precision", "int8,float32", "--plot", path)
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
        (("--precision", "int3"), "unknown precision 'int3'"),
        (("--engine", "torch", "--precision", "int4"), "no int4 networks to measure: torch has "),
        (("--table", "nothing.json"), "nothing.json: not readable as a latency table"),
        (("--threads", 0), "threads must be 1 or more"),
        (("--max-ram-kb", 0), "--max-ram-kb must be above 0"),
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
