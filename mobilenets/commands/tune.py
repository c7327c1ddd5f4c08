"""The verb `tune`: the batch size and the learning rate to train with, and the command that takes them."""

from __future__ import annotations

import dataclasses
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import Parameter

from mobilenets import console, files, tasks
from mobilenets.arch.spec import Arch
from mobilenets.arguments import DataSource, StrPath, as_path, checked
from mobilenets.commands.train import pretrained
from mobilenets.data import checks
from mobilenets.data.source import Reading, Source, spelled
from mobilenets.errors import UserError
from mobilenets.model.convert import starts
from mobilenets.tasks.detect.config import DetectorOptions
from mobilenets.tasks.task import Shaped
from mobilenets.training import probing, recipes
from mobilenets.training import trainer as train
from mobilenets.training.recipes import Overrides
from mobilenets.training.tuning import (
    SKIPPED,
    Speed,
    Trial,
    best_batch,
    gentle,
    smooth,
    steepest,
    try_batches,
    try_rates,
)

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Tuned(console.Notebook):
    """What was found. `lr` is what `--lr` takes for `batch`; empty `speeds` or `rates` were not looked for."""

    arch: Arch
    batch: int
    lr: float
    speeds: tuple[Speed, ...]
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    peak_lr: float
    command: str
    page: Path | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "arch": self.arch.name,
            "alpha": self.arch.alpha,
            "resolution": self.arch.resolution,
            "batch": self.batch,
            "lr": self.lr,
            "command": self.command,
            "page": str(self.page) if self.page else None,
            "speeds": [dataclasses.asdict(s) for s in self.speeds],
            "rates": list(self.rates),
            "losses": list(self.losses),
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = []
        if self.speeds:
            columns = ["batch", "images/s", "RSS MB", *(["accelerator MB"] if self.speeds[0].accelerator_bytes else [])]
            t = console.table(f"training {self.arch.title} by batch size", columns)
            for s in self.speeds:
                chosen = s.batch == self.batch
                more = [f"{s.accelerator_bytes / 1e6:.0f}"] if s.accelerator_bytes else []
                cells = [f"{'→ ' if chosen else ''}{s.batch}", f"{s.images_per_s:.1f}"]
                cells.append(f"{s.peak_rss_bytes / 1e6:.0f}" if s.peak_rss_bytes else "")
                t.add_row(*cells, *more, style="bold green" if chosen else "")
            t.caption = "→ the smallest within 5% of the fastest; RSS is of the training process"
            parts.append(t)
        if self.rates:
            parts += [Text(chart(self)), ""]
        parts.append(Text(self.command, style="bold", overflow="fold"))
        return Group(*parts, *([f"page {self.page}"] if self.page else []))


def chart(tuned: Tuned, width: int = 72, height: int = 12) -> str:
    """Loss over rate (log scale) in characters: · each step, o smoothed, ● the pick."""
    xs, smoothed = np.log10(tuned.rates), smooth(tuned.losses)
    low, high = min(*tuned.losses, *smoothed), min(max(tuned.losses), 2 * float(smoothed[:SKIPPED].mean()))
    grid = [[" "] * width for _ in range(height)]
    picked = int(np.abs(xs - math.log10(tuned.peak_lr)).argmin())
    marks: tuple[tuple[str, slice, Any], ...] = (
        ("·", slice(None), np.array(tuned.losses)),
        ("o", slice(None), smoothed),
        ("●", slice(picked, picked + 1), smoothed),
    )
    for mark, which, values in marks:
        for x, y in zip(xs[which], values[which], strict=True):
            row = round((high - min(y, high)) / max(high - low, 1e-9) * (height - 1))
            grid[row][round((x - xs[0]) / (xs[-1] - xs[0]) * (width - 1))] = mark
    lines = [f"{'':8}" + "".join(row) for row in grid]
    lines[0], lines[-1] = f"{high:6.2f} ┤" + lines[0][8:], f"{low:6.2f} ┤" + lines[-1][8:]
    ends = f"{tuned.rates[0]:.2g}", f"{tuned.rates[-1]:.2g}"
    legend = f"loss over learning rate (log)   · a step  o smoothed  ● steepest: {tuned.peak_lr:.2g}"
    return "\n".join([legend, *lines, f"{'':8}{ends[0]}{ends[1].rjust(width - len(ends[0]))}"])


@checked
def tune(
    source: DataSource,
    *,
    task: str = "classify",
    arch: str | None = None,
    alpha: float | None = None,
    resolution: int | None = None,
    detector: Annotated[DetectorOptions | None, Parameter(name="*")] = None,
    recipe: str | None = None,
    overrides: Annotated[Overrides | None, Parameter(name="*")] = None,
    init: DataSource | None = None,
    weights: StrPath | None = None,
    steps: int = 200,
    html: StrPath | None = None,
    seed: int = 0,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    yes: bool = False,
    root: StrPath | None = None,
) -> Tuned:
    """Find the batch size and the learning rate to train with, by training a little; prints the command to go on with.

    The batch: the smallest within 5% of the best throughput that fits in memory (--batch keeps yours). The rate: a
    range test, the loss while the rate rises exponentially; where it falls fastest (--lr keeps yours).

    Parameters
    ----------
    source
        Folder or zip of class folders, or a set's name (digits, cifar10, flowers102, ...).
    task
        What the network is for: classify, attributes (tags, any number for an image), detect (boxes), geolocate, or
        embed (vectors).
    arch
        Network: v1, v2, v3-large, ... (`mobilenets list`); v2 if left out.
    alpha
        Width multiplier, above 0 and at most 2; 1 if left out.
    resolution
        Input height and width in pixels; if left out, that of --init, or the network's own (224 for most), or less for
        images that are smaller.
    recipe
        modern (from scratch), finetune, cifar, v1-paper, v2-paper or v3-paper; by default modern, or finetune with
        --init; of a detector, as train chooses it.
    init
        What to start from: a bundle or run, a file of weights of any kind that import takes, or published weights by
        name (keras:v2-1.0-224).
    weights
        Folder of pretrained weights, where published ones may be before they are fetched.
    steps
        Steps of the range test.
    html
        Write what was found to this file too, one page with figures.
    seed
        Seed of everything random.
    yes
        Go on though the folders don't look like classes.
    root
        Where copies of named sets are, or go; where a table's paths start, if not at its own folder.

    Returns
    -------
    Tuned
        The `batch` in images and the `lr` that `train` takes for it; the `speeds` and `losses` they were found by, and
        the `command` to go on with.

    Raises
    ------
    UserError
        For data, a network, a recipe or a bundle that isn't there, numbers that can't be, nothing to find.

    Examples
    --------
    >>> import mobilenets
    >>> settings = mobilenets.Overrides(batch=24, workers=0)
    >>> found = mobilenets.tune("flowers", arch="v1", alpha=0.25, resolution=32, overrides=settings, steps=40)
    >>> found.batch, found.lr > 0, found.command.split()[:3]
    (24, True, ['mobilenets', 'train', 'flowers'])
    """
    source, root, page = spelled(source, reading), as_path(root), as_path(html)
    given = {} if overrides is None else {k: v for k, v in vars(overrides).items() if v is not None}
    if {"batch", "lr"} <= given.keys():
        raise UserError("--batch and --lr are both given: there is nothing to find; leave out one")
    if steps < 4 * SKIPPED:
        raise UserError(f"steps must be {4 * SKIPPED} or more, not {steps}")
    if page is not None and page.is_dir():
        raise UserError(f"{page} is a folder; --html needs the name of a file")
    start = starts.opened(init, as_path(weights)) if init else None
    asked = tasks.with_options(tasks.find_trained(task), {"detect": detector}, start)
    shaped = asked if isinstance(asked, Shaped) else None
    found = pretrained(shaped, arch, alpha, as_path(weights)) if shaped and not (start or recipe) else None
    usual = shaped.recipes if shaped else ("finetune", "modern")
    start = start or found
    name = recipe or usual[start is None]
    chosen = recipes.recipe(name, overrides)
    data = asked.open(source, root, seed, None)
    checks.stop_at_doubts(data, yes)
    of = (None, None) if found else (arch, alpha)
    net = train.network(*of, resolution, start, asked, asked.config(data), data)
    headed = None
    if start and chosen.probe == "on" and not train.complete(start, data, asked):
        balanced, own = chosen.class_weights == "balanced", train.initial_arch(start, net.resolution)
        headed = probing.with_head(start, own, data, asked, seed, balanced)
    trial = Trial(source, root, net, chosen, headed.bundle if headed else start, seed, task, detector)
    speeds = () if "batch" in given else try_batches(trial)
    batch = best_batch(speeds) if speeds else chosen.batch
    trial = dataclasses.replace(trial, recipe=dataclasses.replace(chosen, batch=batch, accumulate=1))
    rates, losses = ([], []) if "lr" in given else try_rates(trial, steps)
    peak = trial.recipe.peak_lr
    if rates:
        goes_on = headed or (start and shaped and start.card.task == task)
        peak = (gentle(rates, losses) or peak) if goes_on else steepest(rates, losses)
    lr = peak * chosen.lr_batch / batch if chosen.lr_batch and rates else peak if rates else chosen.lr
    read = Source.parse(source)
    line = ["mobilenets", "train", read.path, *read.reading.options()]
    line += ["--task", task] if task != "classify" else []
    for k, v in vars(detector).items() if detector else ():
        line += [f"--{k}", v] if v else []
    line += ["--init", str(init)] if init else ["--arch", net.name, "--alpha", f"{net.alpha:g}"]
    line += ["--weights", str(weights)] if weights and (init or found) else []
    line += [] if found else ["--recipe", name]  # a recipe that is asked for begins with no weights
    line += ["--resolution", str(net.resolution), "--batch", str(batch), "--lr", f"{lr:.3g}"]
    for k, v in given.items():
        if k not in ("batch", "lr", "accumulate"):
            line += [f"--{k.replace('_', '-')}", str(v)]
    line += ["--yes"] if data.doubts else []
    line += ["--root", str(root)] if root else []
    line += ["--seed", str(seed)] if seed else []
    line += ["--out", f"runs/{net.title.replace(' ', '-')}"]
    made = Tuned(net, batch, lr, speeds, tuple(rates), tuple(losses), peak, shlex.join(line), page)
    if page:
        _write_page(made, page)
    return made


def _write_page(made: Tuned, path: Path) -> None:
    from mobilenets.reports import pages, plots, style

    figures = []
    if made.speeds:
        figures.append(("Images per second by batch size", plots.throughput(made.speeds, made.batch)))
    if made.rates:
        figures.append(("Loss by learning rate", plots.range_test(made.rates, made.losses, made.peak_lr)))
    drawn = [(title, style.markup(fig, title)) for title, fig in figures]
    text = pages.render("tune.html", {}, made=made, figures=drawn)
    with files.atomic_file(path) as tmp:
        files.write_text(tmp, text)
