"""`mobilenets eval`: a network's score."""

from __future__ import annotations

from pathlib import Path

from mobilenets.deploy import engines
from mobilenets.deploy.evaluate import score
from mobilenets.tasks import data_of
from mobilenets.tasks.task import Scores


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
        unless the network was trained on it: then what was held out, however the folder is spelled or has changed.
    root
        Where local copies of named data sets are.
    """
    engine = engines.load(model)
    data = data_of(engine.card, source, root)
    splits = data.pool is None or "test" in data.splits or data.as_trained
    return score(engine, data, split or (data.held_out if splits else "all"))
