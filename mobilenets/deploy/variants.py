"""The choice among networks of a task that builds them in several ways, as detectors are of families. No torch."""

from __future__ import annotations

from collections.abc import Callable

from mobilenets import console
from mobilenets.deploy.choose import Choice
from mobilenets.errors import UserError
from mobilenets.tasks.task import Ranged, Task


def pick_variant(task: Ranged, classes: int, picked: Callable[[Task], Choice | None]) -> tuple[Choice, Task] | None:
    """The best choice of all ways to build a task's networks, and that way. Raises `UserError` if none meets a budget.

    `picked` chooses among those of one way; a line says what came of each. None where `picked` gives nothing.
    """
    every: list[tuple[Choice, Task]] = []
    missed = []
    for variant in task.variants(classes):
        try:
            choice = picked(variant)
        except UserError as e:
            missed.append(str(e))
            continue
        if choice:
            every.append((choice, variant))
            c = choice.pick
            console.note(
                f"{getattr(variant, 'called', variant.name)}: {c.arch.title}, {c.latency_ms:.2f} ms whole, "
                f"{c.prior.metric.label} {c.prior}"
            )
    if every:
        return max(every, key=lambda e: (e[0].pick.prior.rank, -e[0].pick.latency_ms))
    if missed:
        raise UserError(missed[0])
    return None
