"""What networks are for. Each task is a module here, with a `TASK`; a card names its own."""

from __future__ import annotations

import importlib
from pathlib import Path

from mobilenets.data.dataset import Data
from mobilenets.data.open import of_card, open_unlabelled
from mobilenets.data.source import Source
from mobilenets.errors import UserError, unknown
from mobilenets.model.card import Card
from mobilenets.tasks.task import Settled, Task

TASKS = {
    "classify": "mobilenets.tasks.classify",
    "features": "mobilenets.tasks.features",
    "attributes": "mobilenets.tasks.attributes",
    "geolocate": "mobilenets.tasks.geolocate",
}


def find(name: str) -> Task:
    """The task called `name`; a UserError suggests the nearest."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    task: Task = importlib.import_module(TASKS[name]).TASK
    return task


def find_trained(name: str) -> Task:
    """The task called `name`, which must be one that networks are trained for. Raises `UserError`."""
    task = find(name)
    if task.primary is None:
        raise UserError(f"the task {name} has no score to train for")
    return task


def of(card: Card) -> Task:
    """The task of a network, as its card has it."""
    task = find(card.task)
    return task.of(card) if isinstance(task, Settled) else task


def data_of(card: Card, source: str | None, root: Path | None = None) -> Data:
    """The data a network was trained on, or `source`, as its task opens it. Raises `UserError`."""
    return of_card(card, source, root, of(card).open)


def images_of(card: Card, source: str | None, root: Path | None = None) -> tuple[Data, str]:
    """`data_of`; where its labels aren't the network's, all images of `source` without labels, and the reason.

    Any folder or zip of images serves then, flat or not. Raises `UserError`.
    """
    try:
        return data_of(card, source, root), ""
    except UserError as e:
        if source is None or not Path(Source.parse(source).path).exists():
            raise
        return open_unlabelled(source, root), str(e)
