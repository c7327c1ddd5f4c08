"""How well a network does on labelled images, through its engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mobilenets import console, data, engines, predict
from mobilenets.data import Data
from mobilenets.engines import Engine
from mobilenets.images import BadImage
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


def evaluate(model: Path, source: str | None = None, *, split: str | None = None, root: Path | None = None) -> Scores:
    """Score a network on labelled images.

    Parameters
    ----------
    model
        Exported file, bundle or run.
    source
        Folder or zip of class folders, or a set's name; the data it was trained on, if left out.
    split
        train, val, test or all. By default test where there is one, else val; all of data without splits of its own,
        unless it is what the network was trained on: then what was held out in training.
    root
        Where local copies of named data sets are.
    """
    engine = engines.load(model)
    d = data.of_card(engine.card, source, root)
    trained_on = engine.card.data
    same = d.source == trained_on.get("source") or len(d.split("all")) == sum(trained_on.get("counts", {}).values())
    default = d.held_out if same or d.val_fraction is None else "all"
    return score(engine, d, split or default)
