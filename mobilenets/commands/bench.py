"""The verb `bench`: files, or a network on every runtime, accuracy beside latency."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mobilenets import console, files, tasks
from mobilenets.arguments import DataSource, StrPath, as_path, checked, several
from mobilenets.commands.options import Ints, Words
from mobilenets.data.source import Reading, named
from mobilenets.deploy import bench as timing
from mobilenets.deploy import engines, load
from mobilenets.deploy.bench import ROUNDS, LayerTiming, Subject, Timing
from mobilenets.errors import UserError
from mobilenets.model import bundle as bundles

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mobilenets.deploy.export import Export

RUN = "run.json"


@dataclass(frozen=True)
class Bench(console.Notebook):
    """What was measured, in turn: timings, each with its file's proof where it was exported for this."""

    timings: tuple[Timing, ...]
    exports: tuple[Export | None, ...]
    failed: tuple[str, ...] = ()
    layers: tuple[LayerTiming, ...] = ()

    def to_json(self) -> list[dict[str, Any]]:
        out = []
        for t, e in zip(self.timings, self.exports, strict=True):
            primary = tasks.find(e.task).primary if e else None
            score = {primary.name: e.score} if e and primary else {}
            proof = {**score, "agreement": e.agreement, "difference": e.difference} if e else {}
            layers = {"layers": [vars(r) for r in self.layers]} if self.layers else {}
            out.append({**t.to_json(), **proof, **layers})
        return out

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        first = self.timings[0]
        batches = list(first.images_per_s)
        scored = any(self.exports)
        primary = next((tasks.find(e.task).primary for e in self.exports if e), None)
        heading = f"{primary.label}\n{primary.unit}" if primary else "score"
        several = len({r.threads for r in self.timings}) > 1
        threads = "" if several else f" on {first.threads} thread{'s' * (first.threads > 1)}"
        t = console.table(
            f"latency at batch {first.batch}{threads}, measured in turn",
            [
                *([] if scored else ["file"]),
                *("engine", "precision"),
                *(["threads"] if several else []),
                *([heading, "as PyTorch\n%"] if scored else []),
                *("median\nms", "p95\nms"),
                *(f"images/s\nat {b}" for b in batches),
                *("load\nms", "RSS\nMB", "size\nMB"),
            ],
            left=("file", "engine", "precision"),
        )
        best = min(self.timings, key=lambda r: r.median_ms)
        for r, e in zip(self.timings, self.exports, strict=True):
            proof = [e and _percent(e.score), e and _percent(e.agreement)] if scored else []
            t.add_row(
                *([] if scored else [r.path]),
                r.engine,
                r.precision,
                *([str(r.threads)] if several else []),
                *(p or "" for p in proof),
                f"{r.median_ms:.3f}",
                f"{r.p95_ms:.3f}",
                *(f"{r.images_per_s[b]:.0f}" for b in batches),
                f"{r.load_ms:.0f}",
                f"{r.peak_rss_bytes / 1e6:.0f}" if r.peak_rss_bytes else "",
                console.megabytes(r.size_bytes),
                style="bold green" if r is best and len(self.timings) > 1 else "",
            )
        t.caption = "; ".join(dict.fromkeys(r.title for r in self.timings))
        slowest = max(r.reference for r in self.timings)
        if slowest > load.OFF:
            t.caption += (
                f"\nthe machine was busy with something else: a fixed loop took up to {slowest:.1f} times its best, "
                "measure again when it is quiet"
            )
        return Group(t, *self._layers(), *(Text(line, style="red") for line in self.failed))

    def _layers(self) -> Iterator[RenderableType]:
        if not self.layers:
            return
        total = sum(r.median_ms for r in self.layers)
        t = console.table("each operation on one image", ["group", "operation", "us", "%"], left=("operation",))
        for r in self.layers:
            t.add_row(str(r.group), r.name, f"{1e3 * r.median_ms:.1f}", f"{100 * r.median_ms / total:.1f}")
        t.caption = "operations of one group run strip by strip, together"
        yield t


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


@contextmanager
def _kept(path: Path) -> Iterator[Path]:
    """Where the exports of `path` go: into a run's own folder; of anything else, away with them afterwards."""
    from mobilenets.commands.pipeline import FOLDER

    if (path / RUN).exists():
        yield path / FOLDER
    else:
        with files.temporary() as folder:
            yield folder


def _on_engines(
    path: Path, engine: Sequence[str], precision: Sequence[str], data: str | None, root: Path | None, folder: Path
) -> tuple[list[Export], list[str]]:
    from mobilenets.commands import pipeline as exports

    of = bundles.Bundle.load(bundles.find_bundle(path)).card.precision
    pairs = exports.combinations(engine or ("all",), precision or ("all",), of)
    made = list(exports.make(path, pairs, folder, data, root))
    good = [m for m in made if not isinstance(m, str)]
    failed = [m for m in made if isinstance(m, str)]
    if not good:
        raise UserError(f"no file could be made of {path}: {failed[0]}")
    return good, failed


@checked
def bench(
    *paths: StrPath,
    engine: Words = (),
    precision: Words = (),
    threads: Ints = (1,),
    batch: Ints = (1, 8, 32),
    peers: bool = False,
    layers: bool = False,
    rounds: int = ROUNDS,
    data: DataSource | None = None,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    root: StrPath | None = None,
) -> Bench:
    """Measure latency, throughput and memory of files, in turn; or of a network on every runtime, with its accuracy.

    Parameters
    ----------
    paths
        Exported files, bundles, runs or packaged networks. With --engine or --precision: one bundle or run, which is
        exported to each (kept in a run's folder), proved against PyTorch and scored on held-out images.
    engine
        Runtimes, with commas between, or all that are installed.
    precision
        float32, float16, int8, dynamic, int4, with commas between, or all that the runtimes have.
    threads
        Threads (and processors) each may use; several with commas between.
    batch
        Images in a call; latency is of the first, throughput of each.
    peers
        Also measure what you might run otherwise: torchvision, timm, PyTorch eager, channels_last and compiled, and a
        plain torch.onnx.export.
    layers
        Also measure each operation of one .mnet file, on one image.
    rounds
        How often each gets its turn of 0.3 s.
    data
        Images to prove and score exports on; those the network was trained on, if left out.
    root
        Where local copies of named data sets are; where a table's paths start, if not at its own folder.

    Returns
    -------
    Bench
        `timings`, in the order of the files: median and 95th percentile of a call in milliseconds, images per second by
        batch size, time to load, peak memory and size in bytes. `exports` has the proof and score of each file that was
        made for this, `failed` a line for each that couldn't be, `layers` each operation's time where it was
        asked for.

    Raises
    ------
    UserError
        For a file that isn't there or can't be run here, a runtime that isn't installed, numbers below 1.

    Examples
    --------
    >>> import mobilenets
    >>> made = mobilenets.bench("cifar10-v1-0.25", batch=1, rounds=1)
    >>> made.timings[0].engine, made.timings[0].median_ms > 0
    ('torch', True)
    """
    engine, precision = several(engine), several(precision)
    all_threads, batches = several(threads), several(batch)
    if not paths:
        raise UserError("name at least one file to measure")
    for name, n in (("threads", min(all_threads)), ("batch", min(batches)), ("rounds", rounds)):
        if n < 1:
            raise UserError(f"{name} must be 1 or more, not {n}")
    everywhere = bool(engine or precision)
    if (everywhere or peers) and len(paths) > 1:
        raise UserError("--engine, --precision and --peers take one bundle or run")
    resolved = [bundles.located(Path(p)) for p in paths]
    with _kept(resolved[0]) as folder:
        exported: list[Export] = []
        failed: list[str] = []
        if everywhere:
            given = named(data, reading)
            exported, failed = _on_engines(resolved[0], engine, precision, given, as_path(root), folder)
            files = [e.path for e in exported]
        else:
            files = [engines.resolve(p) for p in resolved]
            for f in files:
                engines.for_path(f)  # says what is wrong before a process is started
        if layers and len(files) > 1:
            raise UserError("--layers takes one file, or a bundle with --engine native and one --precision")
        each = timing.time_layers(files[0], all_threads[0]) if layers else []
        subjects = [Subject(f, n) for n in all_threads for f in files]
        proofs: list[Export | None] = [e for _ in all_threads for e in exported] or [None] * len(subjects)
        if peers:
            from mobilenets.deploy import peers as others

            of = bundles.find_bundle(resolved[0])
            names = others.available(bundles.Bundle.load(of).card.arch)
            beside = [Subject(of, n, name) for n in all_threads for name in names]
            subjects, proofs = subjects + beside, proofs + [None] * len(beside)
        timings = timing.time_files(subjects, batches, rounds)
        kept = [dataclasses.replace(t, path=s.peer) if s.peer else t for t, s in zip(timings, subjects, strict=True)]
    return Bench(tuple(kept), tuple(proofs), tuple(failed), tuple(each))
