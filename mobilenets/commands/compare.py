"""`mobilenets compare`: networks of different design at the same macs, trained alike on your data."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from mobilenets import tasks
from mobilenets.arch import cost, zoo
from mobilenets.arguments import DataSource, StrPath, as_path, checked
from mobilenets.commands.options import Words
from mobilenets.commands.sweep import sweep, worthwhile
from mobilenets.data.source import Reading, spelled
from mobilenets.errors import UserError
from mobilenets.model.card import Precision
from mobilenets.training import loggers
from mobilenets.training.recipes import Overrides
from mobilenets.training.sweep import Sweep


@checked
def compare(
    *archs: str,
    data: DataSource,
    macs: int | None = None,
    resolution: int | None = None,
    out: StrPath | None = None,
    task: str = "classify",
    recipe: str = "modern",
    overrides: Annotated[Overrides | None, Parameter(name="*")] = None,
    seeds: int = 3,
    precision: Precision = "float32",
    threads: int = 1,
    ray: str | None = None,
    ray_cpus: float = 1,
    resume: bool = False,
    log: Words = loggers.DEFAULT,
    skip_bad: bool = False,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    yes: bool = False,
    root: StrPath | None = None,
) -> Sweep:
    """Which design makes the most of a multiply-add? Networks of the same macs, trained by the same recipe.

    The width of each is found so that an image costs the same in all. Then each is trained with every seed: accuracy,
    its deviation, parameters and measured latency, in OUT/sweep.csv, sweep.json and sweep.html, which
    `mobilenets sweep` makes of a grid of widths.

    Parameters
    ----------
    archs
        Two networks or more: v1 v2 v3-small; `mobilenets list` shows them all.
    data
        Folder or zip of class folders, or a set's name (digits, cifar10, flowers102, ...).
    macs
        Multiply-adds for an image; those of the smallest network at width 1, if left out.
    resolution
        Input height and width in pixels; the largest that the images are worth, if left out.
    out
        Folder of the comparison; by default in runs/, by the name of the data.
    task
        What the networks are for: classify, attributes (tags, any number for an image), geolocate, or embed (vectors).
    recipe
        modern, cifar, v1-paper, v2-paper or v3-paper.
    seeds
        How often each network is trained; from the deviations it is said what is a difference and what is chance.
    precision
        What is exported, scored and measured: float32 or int8.
    threads
        Threads (and processors) latency is measured on.
    ray
        Address of a Ray cluster: auto, HOST:PORT, or local for one on this machine.
    ray_cpus
        Processors of each network's training on Ray.
    resume
        Go on with a comparison that was stopped, from the last checkpoint of the network it was at.
    log
        Where losses and scores go beside OUT/logs/metrics.csv: tensorboard, mlflow, wandb, with commas between; csv for
        that file alone.
    skip_bad
        Go on without damaged images.
    yes
        Go on though the folders don't look like classes.
    root
        Where copies of named sets are, or go; where a table's paths start, if not at its own folder.

    Returns
    -------
    Sweep
        `networks`, each with its macs, params, score, the score's deviation over seeds, size and latency;
        `better(a, b)`, whether two of them differ by more than chance.

    Raises
    ------
    UserError
        For data, a network or a recipe that isn't there, a network that no width brings near the macs; where a training
        failed, after all others are done.

    Examples
    --------
    >>> import mobilenets
    >>> settings = mobilenets.Overrides(epochs=1, workers=0)
    >>> made = mobilenets.compare("v1", "v2", data="flowers", resolution=32, overrides=settings, seeds=1)
    >>> [n.arch for n in made.networks]
    ['v1', 'v2']
    """
    if len({zoo.network(name).name for name in archs}) < 2:
        raise UserError("compare needs two networks or more: mobilenets compare v1 v2 --data DATA")
    if resolution is None:
        resolution = worthwhile(tasks.find_trained(task).open(spelled(data, reading), as_path(root), 0, None))[0]
    target = macs if macs is not None else min(cost.count(zoo.arch(name, 1.0, resolution)).macs for name in archs)
    return sweep(
        data,
        out=out,
        task=task,
        arch=archs,
        resolutions=resolution,
        macs=target,
        recipe=recipe,
        overrides=overrides,
        seeds=seeds,
        precision=precision,
        threads=threads,
        ray=ray,
        ray_cpus=ray_cpus,
        resume=resume,
        log=log,
        skip_bad=skip_bad,
        reading=reading,
        yes=yes,
        root=root,
    )
