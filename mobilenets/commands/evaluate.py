"""`mobilenets eval`: a network's score."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from mobilenets.arguments import DataSource, StrPath, as_path, checked
from mobilenets.data.source import Reading, named
from mobilenets.deploy import engines
from mobilenets.deploy.evaluate import score
from mobilenets.tasks import data_of
from mobilenets.tasks.task import Scores


@checked
def evaluate(
    model: StrPath,
    source: DataSource | None = None,
    *,
    split: str | None = None,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    root: StrPath | None = None,
) -> Scores:
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
        Where local copies of named data sets are; where a table's paths start, if not at its own folder.

    Returns
    -------
    Scores
        Its task's: a classifier's `top1`, `top5` and `balanced` accuracy in percent, `loss` in nats, `per_class` recall
        and `precision` in percent, the `confusion` matrix; `value` is the primary metric. `skipped` names damaged
        images.

    Raises
    ------
    UserError
        For a model or data that isn't there or is damaged, classes other than the network's.

    Examples
    --------
    >>> import mobilenets
    >>> scores = mobilenets.evaluate("runs/flowers", "flowers", split="val")
    >>> scores.count, 0 <= scores.value <= 100
    (24, True)
    """
    engine = engines.load(as_path(model))
    data = data_of(engine.card, named(source, reading), as_path(root))
    splits = data.pool is None or "test" in data.splits or data.as_trained
    return score(engine, data, split or (data.held_out if splits else "all"))
