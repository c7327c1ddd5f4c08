"""A run's report: one HTML page with everything in it; here, that of `fit`. No torch."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from mobilenets import files, tasks
from mobilenets.arch import cost
from mobilenets.arch.cost import Cost
from mobilenets.arch.spec import Arch
from mobilenets.console import ms
from mobilenets.data.checks import Scan
from mobilenets.errors import UserError
from mobilenets.files import read_json
from mobilenets.model.bundle import CARD
from mobilenets.model.card import Card
from mobilenets.reports import pages, plots, style
from mobilenets.reports.training import recipe_fields
from mobilenets.tasks.task import MetricSpec
from mobilenets.training.run import CHOICE, CONFIG, FLOAT, LOGS, SCAN, STEPS

METRICS = f"{LOGS}/metrics.csv"
# What each file must have for the page to be made from it.
NEEDED = {
    CONFIG: ("command", "source", "budget", "engine", "precision", "threads", "recipe", "seed"),
    CHOICE: ("pick", "arch", "budget", "engine", "engine_version", "precision", "threads", "machine", "front",
             "candidates"),
    SCAN: ("source", "counts", "native_side"),
    STEPS: ("file", "latency_ms", "predicted_latency_ms", "size_bytes", "seconds", "steps"),
    f"{FLOAT}/{CARD}": ("digest",),
}  # fmt: skip
ANSWERS = {"classify": "mobilenets.reports.classes"}  # tasks whose answers have more to show than their drawings
BYTES = {"int8": 1, "float32": 4}
UNITS = {
    "latency_ms": ("latency", "ms"), "size_mb": ("size", "MB"), "macs_m": ("macs", "M"),
    "params_m": ("parameters", "M"), "memory_mb": ("activations", "MB"),
    "ram_kb": ("RAM", "KB"), "flash_kb": ("flash", "KB"),
}  # fmt: skip


def _read(run: Path) -> dict[str, dict[str, Any]]:
    """The JSON files of a finished run of `fit` by name. Raises `UserError`."""
    for name in NEEDED:
        if not (run / name).is_file():
            raise UserError(
                f"{run} is not a finished run: {name} is missing; report needs a finished mobilenets fit (one that was "
                "stopped goes on with --resume)"
            )
    return {name: read_json(run / name, keys, "a finished run") for name, keys in NEEDED.items()}


@dataclass
class Page:
    """All that a page is made of; each method is a section's data."""

    run: Path
    config: dict[str, Any]
    choice: dict[str, Any]
    scan: dict[str, Any]
    result: dict[str, Any]
    card_json: dict[str, Any]
    card: Card
    cost: Cost
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, run: Path) -> Page:
        got = _read(run)
        card_json = got[f"{FLOAT}/{CARD}"]
        page = cls(
            run,
            got[CONFIG],
            got[CHOICE],
            got[SCAN],
            got[STEPS],
            card_json,
            Card.from_json(card_json, str(run / FLOAT / CARD)),
            cost.count(Arch.from_json(got[CHOICE]["arch"])),
        )
        try:
            if not isinstance(page.shipped.get(page.metric.name), int | float):
                raise UserError(f"it has no scores of {page.file_name}")
            page.answers.check(page)
        except UserError as e:
            raise UserError(f"{run / STEPS}: not a file of a finished run: {e}") from e
        return page

    @property
    def metric(self) -> MetricSpec:
        """The task's score."""
        primary = tasks.of(self.card).primary
        assert primary is not None  # what fit trained has one
        return primary

    @property
    def answers(self) -> ModuleType:
        """What shows the answers of a network for this task."""
        return importlib.import_module(ANSWERS.get(self.card.task, "mobilenets.reports.answers"))

    @property
    def steps(self) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = self.result["steps"]
        return steps

    @property
    def file_name(self) -> str:
        return Path(self.result["file"]).name

    @property
    def shipped(self) -> dict[str, Any]:
        """The step of the file to ship."""
        return next((s for s in self.steps if Path(s["path"]).name == self.file_name), {})

    @property
    def file(self) -> Path:
        """The shipped file, wherever the run's folder is now."""
        return self.run / self.file_name

    def render(self, root: Path | None) -> str:
        filters: dict[str, Callable[..., Any]] = {
            **pages.NUMBERS, "short": lambda s: s[:16], "network": plots.network, "sentence": style.sentence,
        }  # fmt: skip
        return pages.render(
            "fit.html",
            filters,
            page=self,
            pick=self.choice["pick"],
            pick_title=plots.network(self.choice["pick"]),
            shipped=self.shipped,
            data_name=Path(self.shipped["data"]).name or self.shipped["data"],
            limits=self.limits(),
            why=self.why(),
            front=self.front(),
            best_epoch=self.card.recipe.get("best_epoch"),
            recipe=recipe_fields(self.config["recipe"], self.config["seed"]),
            metric=self.metric,
            prior=plots.prior(self.choice),
            columns=self.answers.columns(self),
            answers=self.answers.TEMPLATE,
            interval=self.metric.share and plots.wilson(self.shipped[self.metric.name], self.shipped["count"]),
            scan=self.scanned(),
            shares=[(cost.TYPE_NAMES[k], *v) for k, v in self.cost.shares().items() if any(v)],
            bytes=BYTES[self.choice["precision"]],
            files=self.files(),
            command=self.config["command"],
            plots=self.plots(),
            now=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            **self.answers.values(self, root),
        )

    # ---- sections --------------------------------------------------------------------------------------------------

    def plots(self) -> dict[str, Any]:
        """Each figure as markup."""
        figures = {
            "pareto": (
                plots.pareto(self.choice),
                f"{plots.prior(self.choice).label} over measured latency of every network considered",
            ),
            "steps": (
                plots.steps(self.steps, self.metric),
                f"{style.sentence(self.metric.label)} at each step from float to the exported file",
            ),
            "shares": (plots.cost_shares(self.cost), "Share of macs and weights by layer type"),
            "layers": (plots.layers(self.cost), "Macs and activations of each layer"),
        }
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
        measured = {**self.choice["pick"], "size_mb": self.shipped["size_bytes"] / 1e6}
        measured["latency_ms"] = self.shipped["latency_ms"]
        return [
            {"name": UNITS[k][0], "unit": UNITS[k][1], "limit": v, "value": measured[k], "met": measured[k] <= v}
            for k, v in self.choice["budget"].items()
        ]

    def why(self) -> list[str]:
        """In plain sentences: what was picked, from what, and what stood in the way of more accuracy."""
        pick, every = self.choice["pick"], self.choice["candidates"]
        fitting = [c for c in every if not self._missed(c)]
        prior = plots.prior(self.choice)
        kind = "extrapolated" if pick[f"{prior.name}_source"] == "extrapolated" else "published"
        budget = " and ".join(f"{UNITS[k][0]} {v:g} {UNITS[k][1]}" for k, v in self.choice["budget"].items())
        if len(every) == 1:
            out = [f"{plots.network(pick)} was the only network to choose from."]
        elif len(fitting) == 1:
            out = [f"Of {len(every)} networks, {plots.network(pick)} is the only one that meets the budget ({budget})."]
        else:
            among = f"the {len(fitting)} of {len(every)} networks that meet the budget ({budget})"
            if not budget:
                among = f"all {len(every)} networks: no budget was set"
            most = f"{'highest' if prior.higher_is_better else 'lowest'} {kind} {prior.label}"
            value = f"{pick[prior.name]:.1f}{'%' if prior.unit == '%' else ' ' + prior.unit}"
            out = [f"{plots.network(pick)} has the {most}, {value}, of {among}."]
        better = [c for c in every if prior.lost(c[prior.name], pick[prior.name]) > 0 and self._missed(c)]
        if better:
            top = max(better, key=lambda c: prior.rank(c[prior.name]))
            reasons = " and ".join(f"{UNITS[k][0]} {self._measured(top, k)}" for k in self._missed(top))
            many = f"{len(better)} more accurate networks are" if len(better) > 1 else "One more accurate network is"
            out.append(f"{many} over it; the best of them, {plots.network(top)}, has {reasons}.")
        side, most = self.scan["native_side"], max(c["resolution"] for c in every)
        if self.config.get("init"):
            out.append("The width is that of the bundle it was fine-tuned from: the resolution alone was chosen.")
        elif 0 < side <= most and most < 224:
            out.append(
                f"The images' short side is {side} pixels (median), so no resolution over {most} was considered."
            )
        unmeasured = sum(c["latency_ms"] is None for c in every)
        if unmeasured:
            out.append(f"{unmeasured} networks over another limit were not timed.")
        return out

    def _missed(self, c: Mapping[str, Any]) -> list[str]:
        """Which limits a candidate misses."""
        return [k for k, v in self.choice["budget"].items() if c[k] is not None and c[k] > v]

    def _measured(self, c: Mapping[str, Any], k: str) -> str:
        value = ms(c[k]) if k == "latency_ms" else f"{c[k]:.2f}"
        return f"{value} {UNITS[k][1]}"

    def front(self) -> list[dict[str, Any]]:
        """The Pareto front, fastest first, with the pick in it even where a bigger network hides it."""
        pick, prior = self.choice["pick"], plots.prior(self.choice)
        rows = self.choice["front"] if pick in self.choice["front"] else [*self.choice["front"], pick]
        return [
            {
                **c,
                "picked": c == pick,
                "prior": f"{'≈' * (c[f'{prior.name}_source'] == 'extrapolated')}{c[prior.name]:.1f}",
                "guess": c[f"{prior.name}_source"] == "extrapolated",
                "missed": " and ".join(UNITS[k][0] for k in self._missed(c)),
            }
            for c in sorted(rows, key=lambda c: c["latency_ms"])
        ]

    def scanned(self) -> dict[str, Any]:
        known = {f.name for f in dataclasses.fields(Scan)}
        scan = Scan(**{k: v for k, v in self.scan.items() if k in known})
        counts = scan.counts
        labels = self.card.labels or sorted({c for per in counts.values() for c in per})
        classes = [(c, [per.get(c, 0) for per in counts.values()]) for c in labels]
        return {
            "splits": {k: sum(per.values()) for k, per in counts.items()},
            "classes": classes[:20],
            "more": max(0, len(classes) - 20),
            "findings": list(scan.findings()),
            "native_side": scan.native_side,
        }

    def files(self) -> list[dict[str, Any]]:
        """The files and bundles of each step that are still there: bytes and digest."""
        out = []
        for s in self.steps:
            path = self.run / Path(s["path"]).name
            if path.is_file():
                digest = f"sha256 {files.sha256(path)}"
            elif (path / CARD).is_file():
                digest = f"card {json.loads((path / CARD).read_bytes()).get('digest', '')}"
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
