"""The engine's plan: what is held at one time lies apart, windows hold what is needed, strips cover maps."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mobilenets.arch import zoo
from mobilenets.arch.spec import scale
from mobilenets.deploy.lowering import lower
from mobilenets.deploy.writers import native, native_plan
from mobilenets.deploy.writers.native_plan import ARENA, CHANNELS, F32, U8, WINDOW, Plan, Step, Value
from mobilenets.model.bundle import random_bundle


def planned(name: str, precision: str, resolution: int) -> tuple[list[Step], dict[str, Value], Plan]:
    writer = native._Writer(lower(random_bundle(scale(zoo.network(name), 0.5, resolution, 10), precision)))  # type: ignore[arg-type]
    writer.walk()
    outputs = [writer.alias.get(o.op, o.op) for o in writer.graph.outputs]
    return writer.steps, writer.values, native_plan.plan(writer.steps, writer.values, outputs)


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("name", ["v1", "v2", "v3-large", "v4-conv-s"])
def test_a_plan(name: str, precision: str) -> None:
    steps, values, plan = planned(name, precision, 224)
    assert [g.first for g in plan.groups] == [sum(h.count for h in plan.groups[:i]) for i in range(len(plan.groups))]
    assert sum(g.count for g in plan.groups) == len(steps)
    assert max(g.count for g in plan.groups) >= (3 if precision == "int8" else 2)  # something is fused
    assert any(g.split == CHANNELS for g in plan.groups)
    group = {i: n for n, g in enumerate(plan.groups) for i in range(g.first, g.first + g.count)}
    lives: dict[str, list[int]] = {}
    for i, s in enumerate(steps):
        for v in (*s.inputs, s.out):
            lives.setdefault(v, []).append(group[i])
    held = [n for n, v in values.items() if v.place == ARENA]
    for i, a in enumerate(held):
        assert values[a].at + values[a].units <= plan.arena_units
        for b in held[i + 1 :]:
            together = max(lives[a][0], lives[b][0]) <= min(lives[a][-1], lives[b][-1])
            first, second = sorted((values[a], values[b]), key=lambda v: v.at)
            assert not together or first.at + first.units <= second.at, (a, b)
    for g in plan.groups:
        inside = [s.out for s in steps[g.first : g.first + g.count - 1]]
        assert all(values[n].place == WINDOW and lives[n] == [group[g.first]] * 2 for n in inside)
        assert sum(values[n].units for n in inside) <= plan.window_units


def test_windows_hold_what_the_next_step_needs() -> None:
    values = {
        "x": Value("x", U8, 8, 100, 100),
        "a": Value("a", U8, 64, 100, 100),
        "b": Value("b", U8, 64, 50, 50),
        "c": Value("c", U8, 128, 50, 50),
    }
    steps = [
        Step("a", "pointwise", ("x",), "a"),
        Step("b", "depthwise", ("a",), "b", (3, 3), 2, 1, 1),
        Step("c", "pointwise", ("b",), "c"),
    ]
    plan = native_plan.plan(steps, values, ["c"])
    (group,) = plan.groups
    assert (group.first, group.count) == (0, 3)
    assert values["b"].rows == group.strip
    assert values["a"].rows == 2 * group.strip + 1
    assert (values["a"].left, values["a"].right) == (1, 0)
    assert values["a"].place == values["b"].place == WINDOW
    assert values["c"].place == ARENA


def test_what_is_read_twice_is_whole() -> None:
    values = {n: Value(n, F32, 64, 64, 64) for n in ("x", "a", "b", "c")}
    steps = [
        Step("a", "pointwise", ("x",), "a"),
        Step("b", "depthwise", ("a",), "b", (3, 3), 1, 1, 1),
        Step("c", "add", ("b", "a"), "c"),
    ]
    native_plan.plan(steps, values, ["c"])
    assert values["a"].place == ARENA
    assert values["b"].place == WINDOW


def test_memory_is_used_again() -> None:
    names = [f"m{i}" for i in range(12)]
    values = {n: Value(n, U8, 64, 56, 56) for n in names}
    steps = [Step(b, "flatten" if i % 2 else "pointwise", (a,), b) for i, (a, b) in enumerate(pairwise(names))]
    plan = native_plan.plan(steps, values, [names[-1]])
    assert plan.arena_units <= 3 * values["m1"].units
