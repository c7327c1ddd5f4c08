"""A run's report: one HTML page with everything in it; here, that of `fit`. No torch."""

from __future__ import annotations

import datetime
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from mobilenets import files
from mobilenets.arch import cost
from mobilenets.arch.cost import Cost
from mobilenets.console import ms
from mobilenets.data.checks import Scan
from mobilenets.deploy.choose import LIMITS, Candidate, Choice
from mobilenets.errors import UserError
from mobilenets.files import read_json
from mobilenets.model.bundle import CARD
from mobilenets.model.card import Card
from mobilenets.reports import pages, plots, probes, style
from mobilenets.reports.advice import advise
from mobilenets.reports.training import recipe_fields
from mobilenets.tasks.linear import wilson
from mobilenets.tasks.task import MetricSpec
from mobilenets.training.candidates import Tried
from mobilenets.training.fitted import Fitted, Step
from mobilenets.training.run import CHOICE, CONFIG, FLOAT, LOGS, SCAN, STEPS

METRICS = f"{LOGS}/metrics.csv"
NEEDED = (CONFIG, CHOICE, SCAN, STEPS, f"{FLOAT}/{CARD}")
RUN = ("command", "source", "recipe", "seed")  # of run.json
# Tasks whose answers have more to show than their drawings.
ANSWERS = {
    "classify": "mobilenets.reports.classes",
    "attributes": "mobilenets.reports.tags",
    "detect": "mobilenets.reports.boxes",
    "geolocate": "mobilenets.reports.places",
}
BYTES = {"int8": 1, "float32": 4}


@dataclass
class Page:
    """All that a page is made of; each method is a section's data. `tables`: text files that go beside the page."""

    run: Path
    config: dict[str, Any]
    choice: Choice
    scan: Scan
    fitted: Fitted
    card: Card
    cost: Cost
    notes: list[str] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)
    probed: tuple[Tried, ...] = ()

    @classmethod
    def read(cls, run: Path) -> Page:
        """The files of a finished run of `fit`. Raises `UserError`."""
        for name in NEEDED:
            if not (run / name).is_file():
                raise UserError(
                    f"{run} is not a finished run: {name} is missing; report needs a finished mobilenets fit (one that "
                    "was stopped goes on with --resume)"
                )
        whose = "a finished run"
        config = read_json(run / CONFIG, RUN, whose)
        choice = files.read_object(run / CHOICE, Choice.from_json, whose)
        scan = files.read_object(run / SCAN, Scan.from_json, whose)
        path = run / FLOAT / CARD
        card = Card.from_json(read_json(path, ("digest",), whose), str(path))
        arch = choice.pick.arch
        fitted = files.read_object(run / STEPS, lambda d: Fitted.from_json(d, run, arch, card.task), whose)
        page = cls(run, config, choice, scan, fitted, card, cost.count(arch, card.graph), probed=probes.of_run(run))
        try:
            page.answers.check(page)
        except UserError as e:
            raise UserError(f"{run / STEPS}: not a file of a finished run: {e}") from e
        return page

    @property
    def metric(self) -> MetricSpec:
        """The task's score."""
        return self.fitted.primary

    @property
    def answers(self) -> ModuleType:
        """What shows the answers of a network for this task."""
        return importlib.import_module(ANSWERS.get(self.card.task, "mobilenets.reports.answers"))

    @property
    def shipped(self) -> Step:
        """The step of the file to ship."""
        return self.fitted.shipped

    def render(self, root: Path | None) -> str:
        filters: dict[str, Callable[..., Any]] = {
            **pages.NUMBERS, "short": lambda s: s[:16], "sentence": style.sentence,
        }  # fmt: skip
        scores = self.shipped.scores
        return pages.render(
            "fit.html",
            filters,
            page=self,
            pick=self.choice.pick,
            shipped=self.shipped,
            scores=scores,
            data_name=Path(scores["data"]).name or scores["data"],
            limits=self.limits(),
            why=self.why(),
            advice=self.advice(),
            front=self.front(),
            best_epoch=self.card.recipe.get("best_epoch"),
            recipe=recipe_fields(self.config["recipe"], self.config["seed"], self.card),
            metric=self.metric,
            prior=self.choice.pick.prior.metric,
            columns=self.answers.columns(self),
            answers=self.answers.TEMPLATE,
            interval=self.metric.share and wilson(scores[self.metric.name], scores["count"]),
            scan=self.scanned(),
            shares=[(cost.TYPE_NAMES[k], *v) for k, v in self.cost.shares().items() if any(v)],
            bytes=BYTES[self.choice.precision],
            files=self.files(),
            command=self.config["command"],
            plots=self.plots(),
            now=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            **self.answers.values(self, root),
        )

    @property
    def elsewhere(self) -> str:
        """The other machine whose table the network was chosen by, if it was."""
        return self.choice.machine if self.config.get("table") else ""

    # ---- sections --------------------------------------------------------------------------------------------------

    def plots(self) -> dict[str, Any]:
        """Each figure as markup."""
        figures = {
            "pareto": (
                plots.pareto(self.choice),
                f"{self.choice.pick.prior.metric.label} over measured latency of every network considered",
            ),
            "steps": (
                plots.steps(self.fitted.steps, self.metric),
                f"{style.sentence(self.metric.label)} at each step from float to the exported file",
            ),
            "shares": (plots.cost_shares(self.cost), "Share of macs and weights by layer type"),
            "layers": (plots.layers(self.cost), "Macs and activations of each layer"),
        }
        if self.probed:
            figures["probes"] = (
                probes.drawn(self.probed, self.metric),
                "What networks see of these images, over latency",
            )
        out: dict[str, Any] = {k: style.markup(fig, title) for k, (fig, title) in figures.items()}
        out["curves"] = None
        try:
            fig = plots.curves(self.run / METRICS, self.metric, self.card.recipe.get("best_epoch"))
            out["curves"] = style.markup(fig, f"Loss and held-out {self.metric.label} by epoch")
            out["seconds"] = sum(plots.read_metrics(self.run / METRICS).get("seconds", {}).values())
        except UserError as e:
            self.notes.append(f"the training curves were left out: {e}")
            out["no_curves"] = str(e)
        return out

    def limits(self) -> list[dict[str, Any]]:
        """Each limit of the budget beside what was measured: in the shipped file, where it can be."""
        latency = self.fitted.predicted_ms if self.elsewhere else self.shipped.latency_ms or 0.0
        measured = {"size_mb": self.shipped.size_bytes / 1e6, "latency_ms": latency}
        limits = self.choice.budget.limits()
        values = {k: measured[k] if k in measured else getattr(self.choice.pick, k) for k in limits}
        return [
            {"name": LIMITS[k][0], "unit": LIMITS[k][1], "limit": v, "value": values[k], "met": values[k] <= v}
            for k, v in limits.items()
        ]

    def why(self) -> list[str]:
        """In plain sentences: what was picked, from what, and what stood in the way of more accuracy."""
        pick, every, budget = self.choice.pick, self.choice.candidates, self.choice.budget
        title, metric = pick.arch.title, pick.prior.metric
        fitting = [c for c in every if not c.missed(budget)]
        if self.probed:
            best = next(t for t in self.probed if t.picked)
            beside = f"of {len(self.probed)} networks within the budget ({budget})"
            share = self.metric.share  # of images that it was right about
            how = "was right about {}% of" if share else f"had {{}}% {self.metric.label} on"
            out = [
                f"{title} sees most of these images: a linear probe of what it saw before any training "
                f"{how.format(f'{best.probe:.1f}')} {best.count:,} of them (cross-validated), the most {beside}."
            ]
            if best.short is not None:
                out[0] = (
                    f"{title} came out of {len([t for t in self.probed if t.short is not None])} networks that saw "
                    f"about as much, {beside}: after a few epochs of training it "
                    + (
                        f"was right about {best.short:.1f}%."
                        if share
                        else f"had {best.short:.1f}% {self.metric.label}."
                    )
                )
            return out
        if len(every) == 1:
            out = [f"{title} was the only network to choose from."]
        elif len(fitting) == 1:
            out = [f"Of {len(every)} networks, {title} is the only one that meets the budget ({budget})."]
        else:
            among = f"the {len(fitting)} of {len(every)} networks that meet the budget ({budget})"
            if not budget.limits():
                among = f"all {len(every)} networks: no budget was set"
            kind = "extrapolated" if pick.prior.source == "extrapolated" else "published"
            most = f"{'highest' if metric.higher_is_better else 'lowest'} {kind} {metric.label}"
            value = f"{pick.prior.value:.1f}{'%' if metric.unit == '%' else ' ' + metric.unit}"
            out = [f"{title} has the {most}, {value}, of {among}."]
        better = [c for c in every if c.prior.rank > pick.prior.rank and c.missed(budget)]
        if better:
            top = max(better, key=lambda c: c.prior.rank)
            reasons = " and ".join(f"{LIMITS[k][0]} {_measured(top, k)}" for k in top.missed(budget))
            many = f"{len(better)} better networks are" if len(better) > 1 else "One better network is"
            out.append(f"{many} over it; the best of them, {top.arch.title}, has {reasons}.")
        side, most_px = self.scan.native_side, max(c.arch.resolution for c in every)
        if self.config.get("init"):
            out.append("The width is that of the bundle it was fine-tuned from: the resolution alone was chosen.")
        elif 0 < side <= most_px and most_px < 224:
            out.append(
                f"The images' short side is {side} pixels (median), so no resolution over {most_px} was considered."
            )
        return out

    def front(self) -> list[dict[str, Any]]:
        """The Pareto front, fastest first, with the pick in it even where a bigger network hides it."""
        pick, front = self.choice.pick, self.choice.front
        rows = front if pick in front else [*front, pick]
        return [
            {
                "network": c,
                "picked": c == pick,
                "prior": f"{'≈' * (c.prior.source == 'extrapolated')}{c.prior.value:.1f}",
                "guess": c.prior.source == "extrapolated",
                "missed": " and ".join(LIMITS[k][0] for k in c.missed(self.choice.budget)),
            }
            for c in sorted(rows, key=lambda c: c.latency_ms)
        ]

    def scanned(self) -> dict[str, Any]:
        counts = self.scan.counts
        labels = self.card.labels or sorted({c for per in counts.values() for c in per})
        classes = [(c, [per.get(c, 0) for per in counts.values()]) for c in labels]
        return {
            "splits": self.scan.totals,
            "classes": classes[:20],
            "more": max(0, len(classes) - 20),
            "findings": list(self.scan.findings()),
            "native_side": self.scan.native_side,
        }

    def advice(self) -> list[str]:
        """What to try next."""
        try:
            curves = plots.read_metrics(self.run / METRICS)
        except UserError:  # `plots` says so
            curves = {}
        return advise(
            curves, self.fitted.steps, self.scan, self.config["recipe"], self.metric,
            pretrained=bool(self.config.get("init") or self.config.get("pretrained")),
            classes=0 if self.scan.images else len(self.card.labels),  # of tags, guessing has another loss
            over=[limit["name"] for limit in self.limits() if not limit["met"]],
        )  # fmt: skip

    def files(self) -> list[dict[str, Any]]:
        """The files and bundles of each step that are still there: bytes and digest."""
        out = []
        for s in self.fitted.steps:
            path = self.run / Path(s.path).name
            if path.is_file():
                digest = f"sha256 {files.sha256(path)}"
            elif (path / CARD).is_file():
                digest = f"card {files.read_json(path / CARD, (), 'a bundle').get('digest', '')}"
            else:
                continue
            out.append({
                "name": path.name + "/" * path.is_dir(),
                "size_bytes": files.size_on_disk(path),
                "digest": digest,
                "shipped": s is self.shipped,
            })  # fmt: skip
        return out

    def without_samples(self, why: UserError) -> dict[str, Any]:
        """Sample predictions that can't be made: the page says so, and the verb."""
        self.notes.append(f"the sample predictions were left out: {why}")
        return {"images": [], "note": str(why)}


def _measured(c: Candidate, k: str) -> str:
    value = ms(c.latency_ms) if k == "latency_ms" else f"{getattr(c, k):.2f}"
    return f"{value} {LIMITS[k][1]}"
