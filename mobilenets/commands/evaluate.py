"""`mobilenets eval`: a network's score."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mobilenets.arguments import DataSource, StrPath, as_path, checked
from mobilenets.data.source import Reading, named
from mobilenets.deploy import engines, trust
from mobilenets.deploy.evaluate import score, scored
from mobilenets.deploy.foreign import Foreign, ForeignNetwork
from mobilenets.deploy.trust import Views
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, check_out, is_bundle, located
from mobilenets.tasks import classify, data_of
from mobilenets.tasks.embed.scores import VectorTally
from mobilenets.tasks.embed.task import Embed
from mobilenets.tasks.reliability import check_precision
from mobilenets.tasks.task import Scores


@checked
def evaluate(
    model: StrPath,
    source: DataSource | None = None,
    *,
    split: str | None = None,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    foreign: Annotated[Foreign | None, Parameter(name="*")] = None,
    tta: Views | None = None,
    reject_below: float | None = None,
    wanted_precision: float | None = None,
    out: StrPath | None = None,
    root: StrPath | None = None,
) -> Scores:
    """Score a network on labelled images.

    Parameters
    ----------
    model
        Exported file, bundle or run.
    source
        Folder or zip of class folders, or a set's name; of a detector, of images with boxes; the data it was trained
        on, if left out.
    split
        train, val, test or all. By default test where there is one, else val; all of data without splits of its own,
        unless the network was trained on it: then what was held out, however the folder is spelled or has changed.
    tta
        flip: the mean over each image and its mirror image, at twice the time.
    reject_below
        Say too what is left where answers less probable than this are unsure: how many are answered, how many of these
        are right, and how many at least, with 95% confidence.
    wanted_precision
        Find the lowest such probability at which this percentage of the answers is right.
    out
        With either: write the bundle here with that threshold on its card, for `predict` and for files exported of it.
    root
        Where local copies of named data sets are; where a table's paths start, if not at its own folder.

    Returns
    -------
    Scores
        Its task's: a classifier's `top1`, `top5` and `balanced` accuracy in percent, `loss` in nats, `per_class` recall
        and `precision` in percent, the `confusion` matrix, `reliability` (`.ece()` in percent), `rejection` where that
        was asked for; a detector's `ap`, `ap50`, `ap75`, `ap_small`, ... `ar100`, as COCO has them, in percent, and
        `per_class`. `value` is the primary metric. `skipped` names damaged images.

    Raises
    ------
    UserError
        For a model or data that isn't there or is damaged, classes other than the network's, a precision that no
        threshold reaches.

    Examples
    --------
    >>> import mobilenets
    >>> scores = mobilenets.evaluate("runs/flowers", "flowers", split="val")
    >>> scores.count, 0 <= scores.value <= 100
    (24, True)
    """
    trust.check_threshold(reject_below)
    check_precision(wanted_precision)
    if reject_below is not None and wanted_precision is not None:
        raise UserError("give a threshold (--reject-below) or what it is to reach (--wanted-precision), not both")
    if out is not None and reject_below is None and wanted_precision is None:
        raise UserError("--out is for a threshold: give --wanted-precision or --reject-below too")
    bundle = None if out is None else _bundle(as_path(model), as_path(out))
    if foreign is not None and foreign.given:
        return _foreign(as_path(model), foreign, named(source, reading), split, as_path(root))
    engine = trust.seen(engines.load(as_path(model)), tta)
    data = data_of(engine.card, named(source, reading), as_path(root))
    splits = data.pool is None or "test" in data.splits or data.as_trained
    scores = score(engine, data, split or (data.held_out if splits else "all"))
    if not isinstance(scores, classify.Scores):
        if reject_below is None and wanted_precision is None:
            return scores
        raise UserError(f"thresholds are a classifier's: this network is for {engine.card.task}")
    if tta:  # a mean of probabilities has no temperature to take back
        scores = dataclasses.replace(scores, uncalibrated=None)
    if reject_below is not None:
        left = scores.reliability.rejecting(reject_below)
    elif wanted_precision is not None:
        left = scores.reliability.precise(wanted_precision)
    else:
        return scores
    if bundle is not None and out is not None:
        known = dataclasses.replace(bundle.card.trust, reject_below=left.threshold)
        dataclasses.replace(bundle, card=bundle.card.trusted(known).replace(parent=bundle.digest)).save(out)
    return dataclasses.replace(scores, rejection=left)


def _foreign(model: Path, how: Foreign, source: str | None, split: str | None, root: Path | None) -> Scores:
    """Of another's network of embeddings."""
    if source is None:
        raise UserError("another's network doesn't say what data it was trained on; name some")
    network = ForeignNetwork(model, how, 1)
    task = Embed(template=network.template)
    data = task.open(source, root, 0, None)
    return scored(network, network.preprocess, VectorTally(), data, split or data.held_out)


def _bundle(model: Path, out: Path) -> Bundle:
    """The bundle at `model`, of which another is written to `out`. Raises `UserError`."""
    path = located(model)
    if not is_bundle(path):
        raise UserError(f"{model}: --out writes a bundle, and this is none; name one (a run's is in its folder, float)")
    check_out(out)
    return Bundle.load(path)
