"""How well a network does on labelled images, through its engine."""

from __future__ import annotations

import numpy as np

from mobilenets import console
from mobilenets.data.dataset import Data
from mobilenets.deploy import predict
from mobilenets.deploy.engines import Engine
from mobilenets.model.images import BadImage
from mobilenets.tasks.classify import Scores, Tally


def score(engine: Engine, d: Data, split: str) -> Scores:
    """Scores of `engine` on a split whose classes are in the network's order; damaged images are skipped and named."""
    s = d.split(split)
    tally = Tally(engine.card.labels)
    skipped: list[str] = []
    rows: list[np.ndarray[tuple[int], np.dtype[np.float32]]] = []
    targets: list[int] = []
    with console.progress() as bar:
        task = bar.add_task(f"evaluating {engine.name}", total=len(s), status="")
        results = predict.stream(engine, range(len(s)), lambda i: s.pixels(i, engine.card.preprocess))
        for i, scores in results:
            bar.advance(task)
            if isinstance(scores, BadImage):
                skipped.append(str(scores))
            else:
                rows.append(scores)
                targets.append(int(s.targets[i]))
            if len(rows) == 256:
                tally.add(np.stack(rows), np.array(targets))
                rows, targets = [], []
    if rows:
        tally.add(np.stack(rows), np.array(targets))
    return tally.scores(d.source, split, tuple(skipped))
