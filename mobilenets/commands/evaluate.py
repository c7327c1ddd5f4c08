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
        unless it is what the network was trained on: then what was held out in training.
    root
        Where local copies of named data sets are.
    """
    engine = engines.load(model)
    data = data_of(engine.card, source, root)
    trained_on = engine.card.data
    same = data.source == trained_on.get("source") or len(data.split("all")) == sum(
        trained_on.get("counts", {}).values()
    )
    default = data.held_out if same or data.val_fraction is None else "all"
    return score(engine, data, split or default)
