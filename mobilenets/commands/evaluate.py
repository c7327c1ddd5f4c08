"""`mobilenets eval`: a network's score."""

from __future__ import annotations

from mobilenets.arguments import DataSource, StrPath, as_path, checked
from mobilenets.deploy import engines
from mobilenets.deploy.evaluate import score
from mobilenets.tasks import data_of
from mobilenets.tasks.task import Scores


@checked
def evaluate(
    model: StrPath, source: DataSource | None = None, *, split: str | None = None, root: StrPath | None = None
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
        unless it is what the network was trained on: then what was held out in training.
    root
        Where local copies of named data sets are.

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
    data = data_of(engine.card, None if source is None else str(source), as_path(root))
    trained_on = engine.card.data
    same = data.source == trained_on.get("source") or len(data.split("all")) == sum(
        trained_on.get("counts", {}).values()
    )
    default = data.held_out if same or data.val_fraction is None else "all"
    return score(engine, data, split or default)
