"""What networks are for. Each task is a module here, with a `TASK`; a card names its own."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenets.arch.spec import Arch
from mobilenets.data.dataset import Data
from mobilenets.data.open import of_card, open_unlabelled
from mobilenets.data.source import Source
from mobilenets.errors import UserError, unknown
from mobilenets.model.card import Card
from mobilenets.tasks.task import Choosing, Settled, Shaped, Task

if TYPE_CHECKING:
    from mobilenets.model.bundle import Bundle

DEFAULT_LOSS = "cross-entropy"  # how recipes call each task's own

TASKS = {
    "classify": "mobilenets.tasks.classify",
    "features": "mobilenets.tasks.features",
    "attributes": "mobilenets.tasks.attributes",
    "detect": "mobilenets.tasks.detect.task",
    "geolocate": "mobilenets.tasks.geolocate.task",
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
    if isinstance(task, Shaped):
        return task.by(card.config)
    return task.of(card) if isinstance(task, Settled) else task


def with_options(task: Task, options: Any, start: Bundle | None) -> Task:
    """The task with options of its own, where it has any, of a training that starts from a network, or from nothing.

    Raises `UserError` for options of another task's.
    """
    if isinstance(task, Shaped):
        return task.asked(options, start)
    if (
        given := [f.name for f in dataclasses.fields(options) if getattr(options, f.name) is not None]
        if options
        else []
    ):
        raise UserError(f"--{given[0].replace('_', '-')} is for --task detect")
    return task


def check_loss(task: Task, loss: str) -> None:
    """Raises `UserError` for a recipe's loss that the task can't be trained by."""
    losses = task.losses if isinstance(task, Choosing) else (DEFAULT_LOSS,)
    if loss not in losses:
        raise UserError(f"--loss {loss} is for one class an image (--task classify), not for {task.name}")


def config_of(task: Task, data: Data, arch: Arch) -> dict[str, Any]:
    """What a network of this task for this data has on its card."""
    config = task.config(data)
    return task.shaped(config, arch, data) if isinstance(task, Shaped) else config


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
