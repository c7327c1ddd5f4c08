"""What changes of a network's classes when another takes its place: what reads its answers has to know. No torch."""

from __future__ import annotations

from collections.abc import Sequence

NAMED = 4  # labels that a line names of each kind; of more it says how many


def changed(before: Sequence[str], after: Sequence[str]) -> str:
    """In one line: classes that are new, gone, renamed, or have another number now; "" where all are as they were.

    A class is renamed where another name has its number, and neither is among the others.
    """
    here, there = dict.fromkeys(after), dict.fromkeys(before)
    pairs = list(zip(before, after, strict=False)) if len(before) == len(after) else []
    renamed = {a: b for a, b in pairs if a not in here and b not in there}
    parts = (
        ("new", [b for b in here if b not in there and b not in renamed.values()]),
        ("gone", [a for a in there if a not in here and a not in renamed]),
        ("renamed", [f"{a} to {b}" for a, b in renamed.items()]),
        ("of another number", [a for i, a in enumerate(before) if a in here and after.index(a) != i]),
    )
    return "; ".join(f"{what}: {_some(names)}" for what, names in parts if names)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
