"""Budget -> the network: of every width and resolution, with its measured latency, the best that meets the budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilenets import console
from mobilenets.arch import cost, zoo
from mobilenets.arch.spec import Arch
from mobilenets.arguments import checked
from mobilenets.deploy import latency
from mobilenets.deploy.latency import Measured, Setting
from mobilenets.errors import UserError, unknown
from mobilenets.model.bundle import random_bundle
from mobilenets.model.card import PRECISIONS, Precision
from mobilenets.tasks import classify, labelled
from mobilenets.tasks.task import MetricSpec, Prior, Ranged, Task

if TYPE_CHECKING:
    from rich.console import RenderableType

KB = 1024  # bytes, as microcontrollers' data sheets count


# What a budget may bound, by the name of its measurement: as tables and sentences call it, and its unit.
LIMITS = {
    "latency_ms": ("latency", "ms"), "size_mb": ("size", "MB"), "macs_m": ("macs", "M"), "params_m": ("params", "M"),
    "memory_mb": ("activations", "MB"), "ram_kb": ("RAM", "KB"), "flash_kb": ("flash", "KB"),
}  # fmt: skip


def _doc(text: str) -> Any:
    return field(default=None, metadata={"help": text})


@checked
@dataclass(frozen=True)
class Budget:
    """Limits a network must meet; None is no limit."""

    max_latency_ms: float | None = _doc("Median latency of one image, milliseconds.")
    max_size_mb: float | None = _doc("Exported file, megabytes (10^6 bytes).")
    max_macs_m: float | None = _doc("Multiply-adds, millions.")
    max_params_m: float | None = _doc("Trainable parameters, millions.")
    max_memory_mb: float | None = _doc("Peak activation memory, layer by layer, megabytes.")
    max_ram_kb: float | None = _doc("RAM that TensorFlow Lite Micro needs (its arena), kilobytes (1024 bytes).")
    max_flash_kb: float | None = _doc("Flash that the int8 model needs on a microcontroller, kilobytes (1024 bytes).")

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            v = getattr(self, f.name)
            if v is not None and not v > 0:
                raise UserError(f"--{f.name.replace('_', '-')} must be above 0, not {v}")

    @classmethod
    def from_json(cls, limits: Mapping[str, float]) -> Budget:
        """The inverse of `limits`."""
        return cls(**{f"max_{k}": v for k, v in limits.items()})

    def limits(self) -> dict[str, float]:
        """The limits that are set, by the name of the measurement they bound."""
        values = {f.name.removeprefix("max_"): getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: v for k, v in values.items() if v is not None}

    def __str__(self) -> str:
        return ", ".join(f"{LIMITS[k][0]} {v:g} {LIMITS[k][1]}" for k, v in self.limits().items()) or "no limit"


@dataclass(frozen=True)
class Candidate(console.Notebook):
    """One network of the grid, run in one way, with everything a budget may bound.

    `ram_kb`, `flash_kb`: what it needs on a microcontroller, known where a budget bounds it; or, `at_least`, what
    alone is too much.
    """

    arch: Arch
    setting: Setting
    prior: Prior
    latency_ms: float
    size_mb: float
    macs_m: float
    params_m: float
    memory_mb: float
    ram_kb: float | None = None
    flash_kb: float | None = None
    at_least: bool = False

    def overshoot(self, budget: Budget) -> float:
        """By what factor it misses the budget, at the worst limit; 1 or less meets it."""
        return max((getattr(self, k) / v for k, v in budget.limits().items()), default=0.0)

    def missed(self, budget: Budget) -> list[str]:
        """Which of its limits it is over, by the name of what they bound."""
        values = {k: getattr(self, k) for k in budget.limits()}
        return [k for k, v in budget.limits().items() if values[k] is not None and values[k] > v]

    @classmethod
    def from_json(cls, d: Mapping[str, Any], metric: MetricSpec, setting: Setting, arch: Arch | None) -> Candidate:
        """The inverse of `to_json`; its channels, where no `arch` is given, are the zoo's. Raises KeyError and such."""
        arch = arch or zoo.arch(d["arch"], d["alpha"], d["resolution"])
        prior = Prior(metric, float(d[metric.name]), str(d[f"{metric.name}_source"]))
        setting = setting._replace(**{k: d[k] for k in ("engine", "precision") if k in d})
        values: dict[str, Any] = {k: float(d[k]) for k in ("latency_ms", "size_mb", "macs_m", "params_m", "memory_mb")}
        values |= {k: d[k] for k in ("ram_kb", "flash_kb", "at_least") if k in d}
        return cls(arch, setting, prior, **values)

    def to_json(self) -> dict[str, Any]:
        return {
            "arch": self.arch.name,
            "alpha": self.arch.alpha,
            "resolution": self.arch.resolution,
            "engine": self.setting.engine,
            "precision": self.setting.precision,
            **self.prior.to_json(),
            **{k: getattr(self, k) for k in ("latency_ms", "size_mb", "macs_m", "params_m", "memory_mb")},
            **({k: getattr(self, k) for k in ("ram_kb", "flash_kb", "at_least")} if self.ram_kb else {}),
        }


@dataclass(frozen=True)
class Choice(console.Notebook):
    """The pick, and what it was picked from. The task's prior ranks networks, it promises nothing.

    `machine`: where latencies were measured, `dates`: on which days; `versions`: of the engines there. `engine` and
    `precision` are the pick's.
    """

    pick: Candidate
    candidates: tuple[Candidate, ...]
    budget: Budget
    machine: str
    versions: Mapping[str, str]
    dates: str = ""

    @property
    def engine(self) -> str:
        return self.pick.setting.engine

    @property
    def precision(self) -> Precision:
        return self.pick.setting.precision

    @property
    def threads(self) -> int:
        return self.pick.setting.threads

    @property
    def front(self) -> list[Candidate]:
        """Networks that no other beats in both accuracy and latency, fastest first."""
        out: list[Candidate] = []
        for c in sorted(self.candidates, key=lambda c: (c.latency_ms, -c.prior.rank)):
            if not out or c.prior.rank > out[-1].prior.rank:
                out.append(c)
        return out

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Choice:
        """The inverse of `to_json`. Raises KeyError and such for what isn't a choice: see `files.read_object`."""
        metric = MetricSpec(**d["prior"]) if "prior" in d else labelled.PRIOR  # of before there was another
        precision = next((p for p in PRECISIONS if p == d["precision"]), None)
        if precision is None:
            raise unknown("precision", d["precision"], PRECISIONS)
        setting = Setting(str(d["engine"]), precision, int(d["threads"]))
        pick = Candidate.from_json(d["pick"], metric, setting, Arch.from_json(d["arch"]))
        candidates = tuple(
            pick if c == d["pick"] else Candidate.from_json(c, metric, setting, None) for c in d["candidates"]
        )
        versions = {setting.engine: str(d["engine_version"])}
        return cls(
            pick, candidates, Budget.from_json(d["budget"]), str(d["machine"]), versions, str(d.get("dates", ""))
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "pick": self.pick.to_json(),
            "arch": self.pick.arch.to_json(),
            "budget": self.budget.limits(),
            "engine": self.engine,
            "engine_version": self.versions[self.engine],
            "precision": self.precision,
            "threads": self.threads,
            "machine": self.machine,
            "dates": self.dates,
            "prior": dataclasses.asdict(self.pick.prior.metric),
            "front": [c.to_json() for c in self.front],
            "candidates": [c.to_json() for c in self.candidates],
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        several, metric = len({c.setting for c in self.candidates}) > 1, self.pick.prior.metric
        on_microcontroller = self.pick.ram_kb is not None
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        how = f"{threads}, {self.machine}" if several else f"{self.pick.setting}, {self.machine}"
        t = console.table(
            f"Pareto front of {len(self.candidates)} networks ({how})",
            ["network", *["runtime"] * several, f"{metric.label} {metric.unit}", "latency ms", "size MB", "macs M"]
            + ["params M", "activ. MB"]
            + ["RAM KB", "flash KB"] * on_microcontroller,
            left=("network", "runtime"),
        )
        rows = self.front if self.pick in self.front else [*self.front, self.pick]
        for c in sorted(rows, key=lambda c: c.latency_ms):
            meets = c.overshoot(self.budget) <= 1
            t.add_row(
                f"{'→' if c is self.pick else ' '} {c.arch.title}",
                *[c.setting.name] * several,
                str(c.prior),
                f"{c.latency_ms:.3f}",
                f"{c.size_mb:.2f}",
                f"{c.macs_m:.1f}",
                f"{c.params_m:.2f}",
                f"{c.memory_mb:.2f}",
                *[f"{'≥' * c.at_least}{n:.0f}" for n in (c.ram_kb, c.flash_kb) if n is not None],
                style="bold green" if c is self.pick else "" if meets else "dim",
            )
        for column in t.columns:  # none is cut, however narrow the terminal
            column.no_wrap, column.min_width = True, max(map(len, map(str, [column.header, *column.cells])))
        t.caption = f"→ the pick for {self.budget}; dim: over budget; {metric.label} as published{self._legend()}"
        if self.dates:
            t.caption += f"; measured {self.dates}"
        return Group(Text(scatter(self)), t)

    def _legend(self) -> str:
        return ", ≈ extrapolated" if any(c.prior.source == "extrapolated" for c in self.candidates) else ""


def scatter(choice: Choice, width: int = 72, height: int = 14) -> str:
    """Accuracy over latency (log scale) in characters: · measured, o on the front, ● the pick, │ the latency budget."""
    points = choice.candidates
    xs = np.log10([c.latency_ms for c in points])
    ys = np.array([c.prior.value for c in points])
    metric = choice.pick.prior.metric
    limit = choice.budget.max_latency_ms
    x0, x1 = float(xs.min()), float(xs.max())
    if limit:
        x0, x1 = min(x0, float(np.log10(limit))), max(x1, float(np.log10(limit)))
    y0, y1 = float(ys.min()), float(ys.max())

    def at(x: float, y: float) -> tuple[int, int]:
        column = round((x - x0) / max(x1 - x0, 1e-9) * (width - 1))
        return height - 1 - round((y - y0) / max(y1 - y0, 1e-9) * (height - 1)), column

    grid = [[" "] * width for _ in range(height)]
    if limit:
        column = at(float(np.log10(limit)), y0)[1]
        for row in grid:
            row[column] = "│"
    front = choice.front
    for mark, chosen in (("·", points), ("o", front), ("●", [choice.pick])):
        for c in chosen:
            r, k = at(float(np.log10(c.latency_ms)), c.prior.value)
            grid[r][k] = mark
    lines = [" " * 8 + "".join(row) for row in grid]
    lines[0] = f"{y1:6.1f} ┤" + "".join(grid[0])
    lines[-1] = f"{y0:6.1f} ┤" + "".join(grid[-1])
    lo, hi = f"{10**x0:.2f} ms", f"{10**x1:.2f} ms"
    legend = f"{metric.label} {metric.unit} over latency (log)   · measured  o front  ● pick" + (
        "  │ budget" if limit else ""
    )
    return "\n".join([legend, *lines, " " * 8 + lo + " " * (width - len(lo) - len(hi)) + hi])


def grid(num_classes: int, native_side: int | None = None, task: Task = classify.TASK) -> list[Arch]:
    """Every network, width and resolution that the task can rank.

    With `native_side`, the images' own short side: the resolutions that they are worth.
    """
    if isinstance(task, Ranged):
        return task.networks(native_side)
    out = []
    for network in zoo.NETWORKS.values():
        every: Sequence[int] = network.resolutions
        resolutions = every if native_side is None else zoo.worthwhile(network.name, native_side)
        for alpha in network.alphas:
            for r in resolutions:
                a = zoo.arch(network.name, alpha, r, num_classes)
                if task.prior(a):
                    out.append(a)
    return out


def _candidate(a: Arch, setting: Setting, measured: Measured, task: Task) -> Candidate:
    c = cost.count(a, task.untrained(a).graph if isinstance(task, Ranged) else None)
    prior = task.prior(a)
    if prior is None:
        raise UserError(f"nobody published how good {a.title} is at {task.name}, so there is nothing to rank it by")
    memory = c.peak_activation_elements * (1 if setting.precision == "int8" else 4)
    size = measured.size_bytes / 1e6
    return Candidate(a, setting, prior, measured.latency_ms, size, c.macs / 1e6, c.params / 1e6, memory / 1e6)


def _on_microcontrollers(candidates: Sequence[Candidate], budget: Budget) -> list[Candidate]:
    """Candidates with the memory they need there; without those that can't run there, of which a note tells.

    Cached. One whose weights or activations alone are over a limit isn't tried.
    """
    from mobilenets.deploy.engines import tflm

    cache = latency.Cache("memory-tflm", tflm.version())
    out, refused = [], []
    with console.progress("networks") as bar:
        for c in bar.track(candidates, description="memory on a microcontroller"):
            counted = cost.count(c.arch)
            least = counted.peak_activation_elements / KB, counted.weights / KB
            known = dataclasses.replace(c, ram_kb=least[0], flash_kb=least[1], at_least=True)
            if known.overshoot(budget) <= 1:
                if c.arch.digest not in cache.rows:
                    try:
                        cache.rows[c.arch.digest] = list(tflm.needs(random_bundle(c.arch, "int8")))
                    except UserError:
                        cache.rows[c.arch.digest] = []
                    cache.save()
                if not cache.rows[c.arch.digest]:
                    refused.append(c.arch.title)
                    continue
                ram, flash = cache.rows[c.arch.digest]
                known = dataclasses.replace(c, ram_kb=ram / KB, flash_kb=flash / KB)
            out.append(known)
    if refused:
        console.note(f"left out, as TensorFlow Lite Micro can't run them: {', '.join(refused)}")
    return out


def picking(choice: Choice, other: Candidate) -> Choice:
    """The same choice with another of its candidates picked, perhaps with its channels as its weights have them."""
    key = (other.arch.title, other.setting)
    candidates = tuple(other if (c.arch.title, c.setting) == key else c for c in choice.candidates)
    return dataclasses.replace(choice, pick=other, candidates=candidates)


def pick(
    archs: Sequence[Arch],
    budget: Budget,
    engine: str | Sequence[str] = "onnxruntime",
    precision: str | Sequence[str] = "int8",
    threads: int = 1,
    table: Path | None = None,
    task: Task = classify.TASK,
    remeasure: bool = False,
) -> Choice:
    """The best of `archs`, as the task ranks them, that meets `budget`, on any of the engines in any of the precisions.

    Of those alike in rank, as a network is in all its precisions, the fastest. `table`: a file of
    latencies measured on another machine; `remeasure`: here, what was before. Raises `UserError` if none meets the
    budget.
    """
    names, precisions = ([x] if isinstance(x, str) else list(x) for x in (engine, precision))
    wanted = latency.settings(names, precisions, [threads])
    on_microcontrollers = bool(budget.max_ram_kb or budget.max_flash_kb)
    if on_microcontrollers and {s.precision for s in wanted} != {"int8"}:
        raise UserError("microcontrollers run int8 networks: with --max-ram-kb and --max-flash-kb, ask for int8 alone")
    ranged = task if isinstance(task, Ranged) else None
    if ranged and table:
        raise UserError(f"a table has classifiers' latencies: networks of the task {task.name} are measured here")
    found = latency.of_file(table, archs, wanted) if table else latency.here(archs, wanted, remeasure, ranged)
    by_digest = {a.digest: a for a in archs}
    candidates = [
        _candidate(by_digest[digest], setting, m, task)
        for setting, measured in found.entries.items()
        for digest, m in measured.items()
    ]
    if on_microcontrollers:
        candidates = _on_microcontrollers(candidates, budget)
    fitting = [c for c in candidates if c.overshoot(budget) <= 1]
    if not fitting:
        near = min(candidates, key=lambda c: c.overshoot(budget))
        ways = " or ".join(s.name for s in found.entries)
        which = near.arch.title + (f" with {near.setting.name}" if len(found.entries) > 1 else "")
        where = f"the machine of {table}" if table else "this machine"
        memory = "" if near.ram_kb is None else f", RAM {near.ram_kb:.0f} KB, flash {near.flash_kb:.0f} KB"
        raise UserError(
            f"no network meets {budget} with {ways} on {where}; the nearest is {which}: "
            f"{near.latency_ms:.3f} ms, {near.size_mb:.2f} MB, {near.macs_m:.1f} M macs, {near.params_m:.2f} M params, "
            f"activations {near.memory_mb:.2f} MB{memory}"
        )
    best = max(fitting, key=lambda c: (c.prior.rank, -c.latency_ms))
    dates = latency.dates(m for measured in found.entries.values() for m in measured.values())
    return Choice(best, tuple(candidates), budget, found.machine, found.versions, dates)
