"""Budget -> the network: every width and resolution measured on this machine, the best that meets the budget picked."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import Parameter

from mobilenets import console, cost, engines, files, published, zoo
from mobilenets.bench import pinned, quietest_ms, time_calls
from mobilenets.bundle import Bundle, Card, Precision, tensor_shapes
from mobilenets.errors import UserError
from mobilenets.images import Preprocess
from mobilenets.published import Top1
from mobilenets.quantize import Array, fold, pack
from mobilenets.rows import CLIPS
from mobilenets.spec import Arch

if TYPE_CHECKING:
    from rich.console import RenderableType

SMALL, SMALL_RESOLUTIONS = 128, (32, 64, 96)  # for images with less to see than V1's smallest published resolution
ROUNDS, ROUND_SECONDS, WARM_UP_SECONDS = 3, 0.1, 0.05
PROTOCOL = 2  # part of the cache's key: raise it when what is measured changes


@dataclass(frozen=True)
class Budget:
    """Limits a network must meet; None is no limit."""

    max_latency_ms: Annotated[float | None, Parameter(help="Median latency of one image, milliseconds.")] = None
    max_size_mb: Annotated[float | None, Parameter(help="Exported file, megabytes (10^6 bytes).")] = None
    max_macs_m: Annotated[float | None, Parameter(help="Multiply-adds, millions.")] = None
    max_params_m: Annotated[float | None, Parameter(help="Trainable parameters, millions.")] = None
    max_memory_mb: Annotated[float | None, Parameter(help="Peak activation memory, layer by layer, megabytes.")] = None

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            v = getattr(self, f.name)
            if v is not None and not v > 0:
                raise UserError(f"--{f.name.replace('_', '-')} must be above 0, not {v}")

    def limits(self) -> dict[str, float]:
        """The limits that are set, by the name of the measurement they bound."""
        values = {f.name.removeprefix("max_"): getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: v for k, v in values.items() if v is not None}

    def __str__(self) -> str:
        names = {
            "latency_ms": "latency {} ms", "size_mb": "size {} MB", "macs_m": "{} M macs",
            "params_m": "{} M params", "memory_mb": "activations {} MB",
        }  # fmt: skip
        return ", ".join(names[k].format(f"{v:g}") for k, v in self.limits().items()) or "no limit"


@dataclass(frozen=True)
class Candidate:
    """One network of the grid with everything a budget may bound."""

    arch: Arch
    top1: Top1
    latency_ms: float
    size_mb: float
    macs_m: float
    params_m: float
    memory_mb: float

    def overshoot(self, budget: Budget) -> float:
        """By what factor it misses the budget, at the worst limit; 1 or less meets it."""
        return max((getattr(self, k) / v for k, v in budget.limits().items()), default=0.0)

    def to_json(self) -> dict[str, Any]:
        return {
            "arch": self.arch.name,
            "alpha": self.arch.alpha,
            "resolution": self.arch.resolution,
            "imagenet_top1": self.top1.value,
            "imagenet_top1_source": self.top1.source,
            **{k: getattr(self, k) for k in ("latency_ms", "size_mb", "macs_m", "params_m", "memory_mb")},
        }


@dataclass(frozen=True)
class Choice:
    """The pick, and what it was picked from. Accuracies are published ImageNet top-1: they rank, they don't promise."""

    pick: Candidate
    candidates: tuple[Candidate, ...]
    budget: Budget
    engine: str
    precision: Precision
    threads: int
    machine: str

    @property
    def front(self) -> list[Candidate]:
        """Networks that no other beats in both accuracy and latency, fastest first."""
        out: list[Candidate] = []
        for c in sorted(self.candidates, key=lambda c: (c.latency_ms, -c.top1.value)):
            if not out or c.top1.value > out[-1].top1.value:
                out.append(c)
        return out

    def to_json(self) -> dict[str, Any]:
        return {
            "pick": self.pick.to_json(),
            "arch": self.pick.arch.to_json(),
            "budget": self.budget.limits(),
            "engine": self.engine,
            "engine_version": engines.version(self.engine),
            "precision": self.precision,
            "threads": self.threads,
            "machine": self.machine,
            "front": [c.to_json() for c in self.front],
            "candidates": [c.to_json() for c in self.candidates],
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        how = f"{self.engine} {self.precision}, {self.threads} thread{'s' * (self.threads > 1)}, {self.machine}"
        t = console.table(
            f"Pareto front of {len(self.candidates)} networks ({how})",
            ["network", "top-1 %", "latency ms", "size MB", "macs M", "params M", "activ. MB"],
            left=("network",),
        )
        t.columns[0].no_wrap = True
        rows = self.front if self.pick in self.front else [*self.front, self.pick]
        for c in sorted(rows, key=lambda c: c.latency_ms):
            meets = c.overshoot(self.budget) <= 1
            t.add_row(
                f"{'→' if c is self.pick else ' '} {c.arch.title}",
                str(c.top1),
                f"{c.latency_ms:.3f}",
                f"{c.size_mb:.2f}",
                f"{c.macs_m:.1f}",
                f"{c.params_m:.2f}",
                f"{c.memory_mb:.2f}",
                style="bold green" if c is self.pick else "" if meets else "dim",
            )
        t.caption = f"→ the pick for {self.budget}; dim: over budget; top-1 is ImageNet's, published{self._legend()}"
        return Group(Text(scatter(self)), t)

    def _legend(self) -> str:
        return ", ≈ extrapolated" if any(c.top1.source == "extrapolated" for c in self.candidates) else ""


def scatter(choice: Choice, width: int = 72, height: int = 14) -> str:
    """Accuracy over latency (log scale) in characters: · measured, o on the front, ● the pick, │ the latency budget."""
    points = choice.candidates
    xs = np.log10([c.latency_ms for c in points])
    ys = np.array([c.top1.value for c in points])
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
            r, k = at(float(np.log10(c.latency_ms)), c.top1.value)
            grid[r][k] = mark
    lines = [f"{'top-1 %' if i == 0 else '':8}" + "".join(row) for i, row in enumerate(grid)]
    lines[0] = f"{y1:6.1f} ┤" + "".join(grid[0])
    lines[-1] = f"{y0:6.1f} ┤" + "".join(grid[-1])
    lo, hi = f"{10**x0:.2f} ms", f"{10**x1:.2f} ms"
    legend = "top-1 % over latency (log)   · measured  o front  ● pick" + ("  │ budget" if limit else "")
    return "\n".join([legend, *lines, " " * 8 + lo + " " * (width - len(lo) - len(hi)) + hi])


# ---- measuring -----------------------------------------------------------------------------------------------------


def machine() -> str:
    """This machine's name in the cache: processor and number of them."""
    name = platform.processor() or platform.machine()
    try:
        with Path("/proc/cpuinfo").open() as f:
            name = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name} x{os.cpu_count()}"


@functools.cache
def _instructions() -> str:
    """A digest of the processor's feature flags: two machines may share a name and differ in instructions."""
    try:
        with Path("/proc/cpuinfo").open() as f:
            flags = next((line for line in f if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = platform.machine()
    return hashlib.sha256(flags.encode()).hexdigest()[:8]


def random_bundle(arch: Arch, precision: Precision) -> Bundle:
    """A bundle with random weights, for measuring: latency and size don't depend on what the weights are."""
    rng = np.random.default_rng(0)
    preprocess = Preprocess(arch.resolution)
    card = Card(arch, preprocess, tuple(f"class {i}" for i in range(arch.classes)), precision=precision)
    tensors: dict[str, Array] = {}
    for name, shape in tensor_shapes(arch, "float32").items():
        if len(shape) > 1:
            fan_in = math.prod(shape[1:])
            tensors[name] = rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan_in))
        else:
            ones = name.endswith(("norm.weight", "running_var"))
            tensors[name] = (np.ones if ones else np.zeros)(shape, np.float32 if shape else np.int64)
    if precision == "int8":
        clipped = {op.name for op in arch.ops if op.activation in CLIPS}
        ranges = {op.name: (0.0, 6.0) if op.name in clipped else (-3.0, 3.0) for op in arch.ops}
        return Bundle(card, pack(arch, preprocess, fold(arch, tensors), ranges))
    return Bundle(card, tensors)


class Cache:
    """Measured (latency_ms, size_bytes) by network, of one machine, engine version, precision, number of threads."""

    def __init__(self, engine: str, precision: Precision, threads: int) -> None:
        key = [machine(), _instructions(), engine, engines.version(engine), precision, threads, PROTOCOL]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        self.entries: dict[str, tuple[float, int]]
        root = Path(os.environ.get("MOBILENETS_CACHE") or Path.home() / ".cache" / "mobilenets")
        self.path = root / f"latency-{engine}-{precision}-{threads}-{digest}.json"
        try:
            read = json.loads(self.path.read_text())
            self.entries = {str(k): (float(ms), int(size)) for k, (ms, size) in read.items()}
        except (OSError, ValueError, TypeError, AttributeError):  # not there, or damaged: measured anew
            self.entries = {}

    def save(self) -> None:
        files.write_json(self.path, self.entries)


def grid(classes: int, native_side: int | None = None) -> list[Arch]:
    """Every network, width and resolution with a published accuracy.

    With `native_side`, the images' own short side: resolutions of at most twice that (beyond, there is nothing more to
    see), small ones among them where the images are small.
    """
    out = []
    for network in zoo.NETWORKS.values():
        resolutions: Iterable[int] = network.resolutions
        if native_side is not None:
            most = max(32, 2 * native_side)
            small = SMALL_RESOLUTIONS if most < SMALL else ()
            resolutions = [r for r in sorted({*small, *network.resolutions}) if r <= most]
        for alpha in network.alphas:
            for r in resolutions:
                if published.imagenet_top1(network.name, alpha, r):
                    out.append(zoo.arch(network.name, alpha, r, classes))  # noqa: PERF401  (three loops deep)
    return out


def measure(archs: Sequence[Arch], engine: str, precision: Precision, threads: int) -> list[Candidate]:
    """Candidates for `archs`; latency from the cache, or measured in turn on this machine."""
    cache = Cache(engine, precision, threads)
    missing = [a for a in archs if a.digest not in cache.entries]
    if missing:
        times: dict[str, list[list[float]]] = {a.digest: [] for a in missing}
        sizes: dict[str, int] = {}
        with pinned(threads), console.progress("networks") as bar:
            task = bar.add_task(f"measuring on {engine}", total=len(missing) * ROUNDS, status="")
            for _ in range(ROUNDS):
                for a in missing:
                    ready, sizes[a.digest] = engines.build(engine, random_bundle(a, precision), precision, threads)
                    time_calls(ready, 1, WARM_UP_SECONDS)
                    times[a.digest].append(time_calls(ready, 1, ROUND_SECONDS))
                    bar.update(task, advance=1, status=a.title)
        cache.entries |= {d: (quietest_ms(rounds), sizes[d]) for d, rounds in times.items()}
        cache.save()
    return [_candidate(a, precision, *cache.entries[a.digest]) for a in archs]


def _candidate(a: Arch, precision: Precision, latency_ms: float, size_bytes: int) -> Candidate:
    c = cost.count(a)
    top1 = published.imagenet_top1(a.name, a.alpha, a.resolution) or Top1(0.0, "extrapolated")
    memory = c.peak_activation_elements * (1 if precision == "int8" else 4)
    return Candidate(a, top1, latency_ms, size_bytes / 1e6, c.macs / 1e6, c.params / 1e6, memory / 1e6)


def pick(
    archs: Sequence[Arch], budget: Budget, engine: str = "onnxruntime", precision: Precision = "int8", threads: int = 1
) -> Choice:
    """The most accurate of `archs` that meets `budget`; the faster of two alike. Raises `UserError` if none does."""
    candidates = measure(archs, engine, precision, threads)
    fitting = [c for c in candidates if c.overshoot(budget) <= 1]
    if not fitting:
        near = min(candidates, key=lambda c: c.overshoot(budget))
        raise UserError(
            f"no network meets {budget} with {engine} {precision} on this machine; the nearest is {near.arch.title}: "
            f"{near.latency_ms:.3f} ms, {near.size_mb:.2f} MB, {near.macs_m:.1f} M macs, {near.params_m:.2f} M params, "
            f"activations {near.memory_mb:.2f} MB"
        )
    best = max(fitting, key=lambda c: (c.top1.value, -c.latency_ms))
    return Choice(best, tuple(candidates), budget, engine, precision, threads, machine())


def check(engine: str, precision: str, threads: int) -> Precision:
    """Validate what `choose` and `fit` share."""
    checked = engines.check_precision(engine, precision)
    engines.module(engine)
    if threads < 1:
        raise UserError(f"threads must be 1 or more, not {threads}")
    return checked


def choose(
    *,
    budget: Annotated[Budget | None, Parameter(name="*")] = None,
    engine: str = "onnxruntime",
    precision: Precision = "int8",
    threads: int = 1,
    classes: int = 1000,
    plot: Path | None = None,
) -> Choice:
    """Measure every published network, width and resolution here, and pick the most accurate network within a budget.

    Measured once per machine, engine version, precision and number of threads; then at once from a cache.

    Parameters
    ----------
    engine
        Runtime: onnxruntime or torch.
    precision
        int8 or float32.
    threads
        Threads (and processors) to run on.
    classes
        Outputs of the classifier.
    plot
        Draw accuracy over latency into this file too (.png, .svg, .pdf).
    """
    chosen = pick(grid(classes), budget or Budget(), engine, check(engine, precision, threads), threads)
    if plot:
        from mobilenets import plots, style

        style.save(plots.pareto(chosen.to_json()), plot)
    return chosen
