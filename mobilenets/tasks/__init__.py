"""What networks are for. Each task is a module here, with a `TASK`; a card names its own."""

from __future__ import annotations

import importlib

from mobilenets.errors import unknown
from mobilenets.model.card import Card
from mobilenets.tasks.task import Task

TASKS = {"classify": "mobilenets.tasks.classify", "features": "mobilenets.tasks.features"}


def find(name: str) -> Task:
    """The task called `name`; a UserError suggests the nearest."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    task: Task = importlib.import_module(TASKS[name]).TASK
    return task


def of(card: Card) -> Task:
    """The task of a network."""
    return find(card.task)
