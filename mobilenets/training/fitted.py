"""What `fit` made of a run: each step from float to the exported file, and the file to ship. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenets import console, tasks
from mobilenets.arch.spec import Arch
from mobilenets.deploy.choose import Budget
from mobilenets.tasks.task import MetricSpec
from mobilenets.training.run import REPORT

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Step(console.Notebook):
    """The network at one step from float to exported file: its scores, and for a file its latency.

    `scores` are the task's, as its `Scores` gives them for JSON, details and all.
    """

    name: str
    path: str
    engine: str
    precision: str
    size_bytes: int
    scores: Mapping[str, Any]
    latency_ms: float | None = None
    agreement: float | None = None
    difference: float | None = None

    def to_json(self) -> dict[str, Any]:
        own = {k: v for k, v in vars(self).items() if k != "scores"}
        return {**own, **self.scores}

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Step:
        """The inverse of `to_json`. Raises KeyError for what isn't a step."""
        own = {f.name: d[f.name] for f in dataclasses.fields(cls) if f.name != "scores"}
        return cls(**own, scores={k: v for k, v in d.items() if k not in own})


@dataclass(frozen=True)
class Fitted(console.Notebook):
    """What `fit` made: the file to ship, and the way to it. `elsewhere`: the machine whose table was chosen by."""

    out: Path
    file: Path
    arch: Arch
    steps: tuple[Step, ...]
    predicted_ms: float
    budget: Budget
    seconds: float
    task: str = "classify"
    elsewhere: str = ""

    @property
    def shipped(self) -> Step:
        return next(s for s in self.steps if Path(s.path).name == self.file.name)

    @property
    def primary(self) -> MetricSpec:
        found = tasks.find(self.task).primary
        assert found is not None  # what is trained has a score
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "file": str(self.file),
            "arch": self.arch.name,
            "alpha": self.arch.alpha,
            "resolution": self.arch.resolution,
            self.primary.name: self.shipped.scores[self.primary.name],
            "latency_ms": self.shipped.latency_ms,
            "predicted_latency_ms": self.predicted_ms,
            "size_bytes": self.shipped.size_bytes,
            "budget": self.budget.limits(),
            "seconds": self.seconds,
            "steps": [s.to_json() for s in self.steps],
        }

    @classmethod
    def from_json(cls, d: Mapping[str, Any], out: Path, arch: Arch, task: str) -> Fitted:
        """The inverse of `to_json`, for the run's folder, where it is now. Raises KeyError and such for anything else.

        Every step has a score, and the file to ship is one of them.
        """
        steps = tuple(map(Step.from_json, d["steps"]))
        budget, file = Budget.from_json(d["budget"]), out / Path(d["file"]).name
        made = cls(out, file, arch, steps, float(d["predicted_latency_ms"]), budget, float(d["seconds"]), task)
        name = made.primary.name
        if file.name not in {Path(s.path).name for s in steps if isinstance(s.scores.get(name), int | float)}:
            raise ValueError(f"it has no scores of {file.name}")
        return made

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        first = self.steps[0].scores
        t = console.table(
            f"{self.arch.title} on {first['data']}, {first['split']} split, {first['count']} images",
            ["step", f"{self.primary.label} {self.primary.unit}", "size MB", "latency ms", "as PyTorch %"],
            left=("step",),
        )
        for s in self.steps:
            latency = "" if s.latency_ms is None else f"{s.latency_ms:.3f}"
            agreement = "" if s.agreement is None else f"{s.agreement:.1f}"
            size = console.megabytes(s.size_bytes)
            style = "bold green" if s is self.shipped else ""
            t.add_row(s.name, f"{s.scores[self.primary.name]:.2f}", size, latency, agreement, style=style)
        return Group(
            t,
            f"{self._budget_line()}; {self.seconds:.0f} s in all",
            f"ship     {self.file}",
            f"report   {self.out / REPORT}",
            f"try next mobilenets predict {self.file} IMAGE...",
        )

    def _budget_line(self) -> str:
        met = self.shipped.latency_ms or 0.0
        limit = self.budget.max_latency_ms
        if self.elsewhere:
            return f"latency {met:.3f} ms here; {self.predicted_ms:.3f} ms on {self.elsewhere}, as its table has it"
        off = 100 * (met / self.predicted_ms - 1)
        line = f"latency {met:.3f} ms measured in the file, {self.predicted_ms:.3f} ms when it was chosen ({off:+.0f}%)"
        if limit and met > limit:
            line += f"; OVER the budget of {limit:g} ms: close other programs and run mobilenets bench again"
        return line
