"""A benchmark's table that goes on where it stopped: rows of a .csv, and trainings that make them, several at once."""

from __future__ import annotations

import csv
import itertools
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

from mobilenets import console, files

Row = dict[str, str]
Setting = TypeVar("Setting")


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """The table anew, whole or not at all."""
    with files.atomic_file(path) as tmp, tmp.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, rows[-1])
        writer.writeheader()
        writer.writerows(rows)


def keep(path: Path, row: Row) -> None:
    """Add a row to the table and say it."""
    write(path, [*read(path), row])
    console.note(", ".join(f"{k} {v}" for k, v in row.items()))


def make(
    path: Path, made: Callable[[Setting, Row], Row | None], setting: Setting, wanted: Sequence[Row], jobs: int
) -> None:
    """Keep each wanted key's row, made in a process of its own, `jobs` at once, until one is None: the time is over."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for row in pool.map(made, itertools.repeat(setting), wanted):
            if row is None:
                console.note("the minutes are over: run it again for the rest")
                break
            keep(path, row)
