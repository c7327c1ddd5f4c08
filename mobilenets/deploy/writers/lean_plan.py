"""A plan of a network for the least memory, of one thread: what microcontrollers want.

Like `native_plan`, whose parts it uses: steps that run row by row together need a few rows of what is between them, but
a chain of many strides needs many at once. So joints are tried, a few together, and kept while memory shrinks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mobilenets.deploy.writers import native_plan
from mobilenets.deploy.writers.native_plan import STREAMED, Group, Plan, Step, Value

# Whose output isn't read row by row.
WHOLE = ("pool", "flatten", "copy", "softmax", "l2norm", "spread", "upsample", "boxes", "suppress", "part", "count")


def _joints(steps: Sequence[Step], readers: Mapping[str, list[int]], outputs: Sequence[str]) -> list[int]:
    """Steps that can follow the one before them row by row."""
    found = []
    for i in range(1, len(steps)):
        before, step = steps[i - 1], steps[i]
        alone = readers[before.out] == [i] and before.out not in outputs
        follows = before.out in step.inputs and (step.kind != "mul" or step.inputs[0] == before.out)
        if alone and follows and step.kind in STREAMED and before.kind not in WHOLE:
            found.append(i)
    return found


def _groups(steps: Sequence[Step], joined: set[int], values: Mapping[str, Value]) -> list[Group]:
    groups: list[Group] = []
    for i, step in enumerate(steps):
        if i in joined:
            groups[-1].count += 1
            groups[-1].strip = 1
        else:
            groups.append(Group(i, 1, values[step.out].height))
    return groups


def plan(steps: Sequence[Step], values: Mapping[str, Value], outputs: Sequence[str]) -> Plan:
    """As `native_plan.plan`: groups, and a place for every value, which are changed."""
    native_plan.around(steps, values)
    readers: dict[str, list[int]] = {name: [] for name in values}
    for i, s in enumerate(steps):
        for name in s.inputs:
            readers[name].append(i)

    def placed(joined: set[int], values: Mapping[str, Value]) -> Plan:
        groups = _groups(steps, joined, values)
        windows = max(native_plan.windows(g, steps, values, readers) for g in groups)
        return Plan(groups, native_plan.arena(groups, steps, values, readers, outputs), windows)

    def cost(joined: set[int]) -> tuple[int, int]:
        """Memory at once; then of all maps, so that a smaller one counts where another is the largest."""
        copies = {name: dataclasses.replace(v) for name, v in values.items()}
        made = placed(joined, copies)
        return made.arena_units + made.window_units, sum(v.units for v in copies.values())

    joints = _joints(steps, readers, outputs)
    joined: set[int] = set()
    best = cost(joined)
    for together in (1, 2, 3, 5, 8, 1):
        for i in sorted(joints, key=lambda i: -values[steps[i - 1].out].units):
            few = {j for j in range(i, i + together) if j in joints}
            for other in (joined ^ few, joined | few, joined - few):
                if other != joined and (found := cost(other)) < best:
                    joined, best = other, found
    return placed(joined, values)
