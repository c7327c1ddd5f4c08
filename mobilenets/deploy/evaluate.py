"""How well a network does on labelled images, through its engine, by its task's metrics."""

from __future__ import annotations

from typing import Any

from mobilenets import console, tasks
from mobilenets.data.dataset import Data
from mobilenets.deploy import engines, predict
from mobilenets.deploy.engines import Engine, Outputs
from mobilenets.model.images import BadImage, Preprocess
from mobilenets.tasks.task import Metrics, Scores

AT_ONCE = 256  # images that the metrics get together


def score(engine: Engine, data: Data, split: str) -> Scores:
    """Scores of `engine` on a split whose classes are in the network's order; damaged images are skipped and named."""
    return scored(engine, engine.card.preprocess, tasks.of(engine.card).metrics(engine.card), data, split)


def scored(network: predict.Answering, preprocess: Preprocess, metrics: Metrics, data: Data, split: str) -> Scores:
    """`score` of a network that may have no card, by a task's metrics."""
    s = data.split(split)
    skipped: list[str] = []
    rows: list[Outputs] = []
    targets: list[Any] = []

    def add() -> None:
        metrics.update(engines.joined(rows), list(targets))
        rows.clear()
        targets.clear()

    with console.progress() as bar:
        task = bar.add_task(f"evaluating {network.name}", total=len(s), status="")
        results = predict.stream(network, range(len(s)), lambda i: s.pixels(i, preprocess))
        for i, answer in results:
            bar.advance(task)
            if isinstance(answer, BadImage):
                skipped.append(str(answer))
            else:
                rows.append(answer)
                targets.append(s.targets[i])
            if len(rows) == AT_ONCE:
                add()
    if rows:
        add()
    return metrics.compute(data.source, split, tuple(skipped))
