"""The report of a run of `train` or `distill`, finished or not: one HTML page with everything in it. No torch."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mobilenets import console, tasks
from mobilenets.arch import cost
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError
from mobilenets.files import read_json
from mobilenets.model.bundle import CARD
from mobilenets.model.card import Card
from mobilenets.reports import pages, plots, style
from mobilenets.reports.style import BACK, BLUE, GREEN, PINK
from mobilenets.tasks.linear import wilson
from mobilenets.tasks.task import MetricSpec, Task
from mobilenets.training.distill import TEACHER
from mobilenets.training.recipes import Distillation, Recipe
from mobilenets.training.run import COMMAND, CONFIG, FLOAT, LOGS, METRICS

NEEDED = ("verb", "source", "arch", "recipe", "seed", COMMAND)  # of run.json
RECENT = 5  # epochs whose mean time those to come are expected to take
APART = 0.5  # points between top-1 over images and the mean over classes from which both are worth showing


@dataclass(frozen=True)
class Field:
    """A recipe's field as it was when it trained; `default` is empty where it is just that."""

    name: str
    value: str
    default: str
    meaning: str


def recipe_fields(recipe: Mapping[str, Any], seed: int, card: Card | None = None) -> list[Field]:
    """Every field of a recipe's JSON, as it was in the training that made `card`, and the seed.

    A rate that was found, and the epochs that fitted into a given time, are on the card.
    """
    recipe = {k: card.recipe.get(k, v) if card else v for k, v in recipe.items()}
    known = {f.name: f for f in dataclasses.fields(Recipe)}
    out = []
    for name, value in recipe.items():
        f = known.get(name)
        default = _text(f.default) if f and value != f.default else ""
        out.append(Field(name, _text(value), default, f.metadata["help"] if f else ""))
    seeded = "Seed of everything random: split, initial weights, order, augmentation."
    return [*out, Field("seed", str(seed), "", seeded)]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Training:
    """All that a page is made of.

    `data` is its short name, `root` the command's `--root`, `how` a teacher's part; `columns` are metrics.csv as
    {column: {epoch, from 1: value}}, last `written` then; without a `card`, the run isn't finished.
    """

    run: Path
    config: dict[str, Any]
    arch: Arch
    recipe: Recipe
    data: str
    root: list[str]
    how: Distillation | None
    columns: dict[str, dict[int, float]]
    written: datetime.datetime
    card: Card | None
    task: Task

    @classmethod
    def read(cls, run: Path) -> Training:
        """The run in the folder `run`. Raises `UserError` where no epoch is finished, or a file is damaged."""
        path, log, card = run / CONFIG, run / LOGS / METRICS, run / FLOAT / CARD
        config = read_json(path, NEEDED, "a run of train or distill")
        known = {f.name for f in dataclasses.fields(Recipe)}
        try:
            arch = Arch.from_json(config["arch"])
            recipe = Recipe(**{k: v for k, v in config["recipe"].items() if k in known})
            data = Path(config["source"]).name or config["source"]
            words = shlex.split(config[COMMAND].replace("--root=", "--root "))
            how = Distillation(**config["how"]) if config["verb"] == "distill" else None
            if how and not isinstance(config["teacher"], str):
                raise TypeError("teacher isn't a digest")
            task = tasks.find_trained(config.get("task", "classify"))
            assert task.primary is not None
        except (UserError, AttributeError, KeyError, TypeError, ValueError) as e:
            raise UserError(f"{path}: damaged: {e}") from e
        if not log.exists():
            raise UserError(f"{run}: no epoch is finished yet, and a report needs one; try again when the first is")
        columns = plots.read_metrics(log)
        last = max(map(max, columns.values()))
        for name in (f"val_{task.primary.name}", "seconds"):
            values = columns.get(name, {})
            if len(values) != last or min(values) < 1 or not all(map(math.isfinite, values.values())):
                raise UserError(f"{log}: damaged: {name} isn't a number in every epoch")
        written = datetime.datetime.fromtimestamp(log.stat().st_mtime, datetime.UTC)
        made = Card.from_json(read_json(card, (), "a bundle"), str(card)) if card.exists() else None
        root = next((["--root", v] for k, v in itertools.pairwise(words) if k == "--root"), [])
        return cls(run, config, arch, recipe, data, root, how, columns, written, made, task)

    @property
    def metric(self) -> MetricSpec:
        assert self.task.primary is not None  # it is trained
        return self.task.primary

    @property
    def scores(self) -> dict[int, float]:
        """The task's score on the held-out images, by epoch."""
        return self.columns[f"val_{self.metric.name}"]

    # ---- epochs and time -------------------------------------------------------------------------------------------

    @property
    def done(self) -> int:
        """Epochs that are finished."""
        return len(self.columns["seconds"])

    @property
    def seconds(self) -> float:
        """Of the finished epochs, all together."""
        return sum(self.columns["seconds"].values())

    @property
    def recent(self) -> float:
        """Mean seconds of the last epochs, at most RECENT."""
        last = list(self.columns["seconds"].values())[-RECENT:]
        return sum(last) / len(last)

    @property
    def left(self) -> float:
        """Seconds that the epochs to come would take, if each took as long as the last ones."""
        return self.recent * max(self.recipe.epochs - self.done, 0)

    @property
    def slower_because(self) -> str:
        """Why an epoch to come costs more than the mean of the last ones; empty where it doesn't."""
        r, before = self.recipe, self.done - RECENT
        if r.progressive < 1 and before < 0.6 * r.epochs:
            return "the first epochs have smaller images, which is quicker"
        return (
            "the first epochs train the classifier alone, which is quicker"
            if r.frozen_epochs and before < r.frozen_epochs
            else ""
        )

    @property
    def probe_kept(self) -> bool:
        """Whether no epoch beat the linear probe that training began with, which is then what the bundle is."""
        return bool(self.card and self.card.recipe.get("best_epoch") == 0)

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights are kept, as yet; where none is, the best."""
        if self.card and self.card.recipe.get("best_epoch") in self.scores:
            return int(self.card.recipe["best_epoch"])
        scores = self.columns.get(self.task.monitor(self.recipe), self.scores)
        return max(scores, key=lambda e: (self.metric.rank(scores[e]), e))

    @property
    def balanced(self) -> dict[int, float]:
        """Top-1 as a mean over the classes by epoch; empty where it is all but that over images."""
        mean, every = self.columns.get("val_balanced", {}), self.scores
        apart = any(abs(v - every.get(e, v)) >= APART for e, v in mean.items())
        return mean if apart and self.best_epoch in mean else {}  # epochs of an older version have none

    # ---- what was run, and what comes next -------------------------------------------------------------------------

    @property
    def unlabelled(self) -> bool:
        return bool(self.config.get("unlabelled"))

    @property
    def teacher(self) -> str:
        """The teacher's name, which a finished run's card has."""
        return str(self.card.recipe.get(TEACHER, {}).get("name", "")) if self.card else ""

    @property
    def command(self) -> str:
        return str(self.config[COMMAND])

    @property
    def resume_command(self) -> str:
        """The command that goes on with a run that was stopped; empty where it was called from Python."""
        if self.command.startswith("("):
            return ""
        return self.command if " --resume" in self.command else f"{self.command} --resume"

    def next_steps(self) -> str:
        """The commands, a line each, that make a finished run a file to ship."""
        run, data = str(self.run), ["DATA"] if self.unlabelled else []
        int8, file = str(self.run / "int8"), str(self.run / "model-int8.onnx")
        lines = [
            ["quantize", run, *data, *self.root, "--out", int8],
            ["export", int8, *data, *self.root, "--out", file],
            ["predict", file, "IMAGE"],
        ]
        return "\n".join(shlex.join(["mobilenets", *line]) for line in lines)

    def state(self) -> str:
        """How far it is, in a few words."""
        of = f"{self.done} of {self.recipe.epochs} epochs are done, in {console.duration(self.seconds)}"
        if self.card is None and self.done < self.recipe.epochs:
            return f"{of}; about {console.duration(self.left)} left, an estimate"
        return of


def page(run: Path) -> tuple[str, str]:
    """The page of a run of `train` or `distill`, and how far the run is, in a few words. Raises `UserError`."""
    t = Training.read(run)
    counted = cost.count(t.arch)
    html = pages.render(
        "training.html",
        {**pages.NUMBERS, "duration": console.duration, "brief": brief},
        t=t,
        cost=counted,
        bits={k: counted.weight_bytes(n) for k, n in (("float32", 32), ("int8", 8))},
        recent=min(RECENT, t.done),
        best=t.best_epoch,
        interval=wilson,
        recipe=recipe_fields(t.config["recipe"], t.config["seed"], t.card),
        curves=style.markup(
            plots.curves(run / LOGS / METRICS, t.metric, t.best_epoch), f"Loss and held-out {t.metric.label} by epoch"
        ),
        rates=style.markup(rates(t), "Learning rate and seconds by epoch"),
        now=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return html, t.state()


def brief(seconds: float) -> str:
    """The time of an epoch, to three figures where it is short."""
    return f"{seconds:.3g} s" if seconds < 999.5 else console.duration(seconds)


@style.styled
def rates(t: Training) -> Figure:
    """Learning rate and seconds by epoch; and top-1 as a mean over classes, where that isn't the one over images."""
    panels = [("learning rate", t.columns.get("lr", {}), BLUE), ("seconds", t.columns["seconds"], BLUE)]
    if t.balanced:
        panels.insert(0, ("val top-1, mean over classes, %", t.balanced, PINK))
    fig = style.figure(2.2)
    for ax, (title, values, colour) in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        few = {"marker": "o", "ms": 4} if len(values) < 4 else {}
        ax.plot(list(values), list(values.values()), color=colour, **few)
        ax.set_title(title)
        ax.set_xlabel("epoch")
        ax.set_xlim(left=0.5 if t.done < 10 else 1)
        ax.grid(visible=True, axis="y")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        if values is t.balanced:
            ax.plot([t.best_epoch], [values[t.best_epoch]], "*", ms=12, color=GREEN, mec=BACK, clip_on=False)
        else:
            ax.set_ylim(bottom=0)
    return fig
