"""Latency, throughput and memory of files: one protocol for every engine.

Each file is loaded in a process of its own, pinned to as many processors as it may use threads; after warm-up the
processes are measured in turn, round after round, so that a machine's mood falls on all of them alike. A neighbour on
the same core makes every call of some seconds half as long again, and nothing makes one shorter: the latency is the
median of the quietest round. The 95th percentile is of all calls.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilenets import console, engines
from mobilenets.engines import Engine
from mobilenets.errors import UserError
from mobilenets.files import size_on_disk

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from rich.console import RenderableType

ROUNDS = 5
WARM_UP_SECONDS = 0.2
ROUND_SECONDS = 0.3


@dataclass(frozen=True)
class Timing:
    """One file's measurements. Milliseconds are of one call on `batch` images; sizes in bytes.

    `median_ms` is of the quietest round, `p95_ms` of all `runs` calls.
    """

    path: str
    engine: str
    title: str
    precision: str
    threads: int
    batch: int
    median_ms: float
    p95_ms: float
    images_per_s: float
    load_ms: float
    peak_rss_bytes: int
    size_bytes: int
    runs: int

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Bench:
    """All files' timings, measured in turn."""

    timings: tuple[Timing, ...]

    def to_json(self) -> list[dict[str, Any]]:
        return [t.to_json() for t in self.timings]

    def __rich__(self) -> RenderableType:
        first = self.timings[0]
        threads = f"{first.threads} thread{'s' * (first.threads > 1)}"
        t = console.table(
            f"latency at batch {first.batch} on {threads}, measured in turn",
            ["file", "engine", "median ms", "p95 ms", "images/s", "load ms", "RSS MB", "size MB"],
            left=("file", "engine"),
        )
        for r in self.timings:
            t.add_row(
                r.path,
                f"{r.engine} {r.precision}",
                f"{r.median_ms:.3f}",
                f"{r.p95_ms:.3f}",
                f"{r.images_per_s:.0f}",
                f"{r.load_ms:.0f}",
                f"{r.peak_rss_bytes / 1e6:.0f}",
                console.megabytes(r.size_bytes),
            )
        t.caption = "; ".join(f"{r.path}: {r.title}" for r in self.timings)
        return t


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keep this process on its first `threads` processors, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:threads]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def time_calls(engine: Engine, batch: int, seconds: float, at_least: int = 5) -> list[float]:
    """Seconds of each of many calls on random images, for about `seconds`."""
    r = engine.card.preprocess.resolution
    images = np.random.default_rng(0).integers(0, 256, (batch, r, r, 3), dtype=np.uint8)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < at_least or time.perf_counter() < end:
        start = time.perf_counter()
        engine(images)
        times.append(time.perf_counter() - start)
    return times


def quietest_ms(rounds: list[list[float]]) -> float:
    """Milliseconds: the median call of the quietest round (seconds per call)."""
    return 1e3 * min(float(np.median(r)) for r in rounds)


def peak_rss() -> int:
    """Bytes. VmHWM, not getrusage: the latter carries the parent's peak over exec."""
    try:
        with Path("/proc/self/status").open() as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _child(path: Path, threads: int, batch: int, pipe: Connection) -> None:
    """Load, warm up, then a round of measurements for each message."""
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        try:
            with pinned(threads):
                start = time.perf_counter()
                engine = engines.load(path, threads)
                load_ms = 1e3 * (time.perf_counter() - start)
                time_calls(engine, batch, WARM_UP_SECONDS)
                pipe.send((load_ms, engine.name, engine.card.arch.title, engine.card.precision))
                while pipe.recv():
                    pipe.send((time_calls(engine, batch, ROUND_SECONDS), peak_rss()))
        except UserError as e:
            pipe.send(str(e))


class _Worker:
    """One file in its own process, loaded and warm."""

    def __init__(self, path: Path, threads: int, batch: int) -> None:
        self.path = path
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_child, args=(path, threads, batch, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.load_ms, self.engine, self.title, self.precision = self._receive()
        self.rounds: list[list[float]] = []
        self.peak_rss = 0

    def measure(self) -> None:
        with contextlib.suppress(OSError):  # a process that died is told of where it is heard
            self.pipe.send(True)
        times, self.peak_rss = self._receive()
        self.rounds.append(times)

    def _receive(self) -> Any:
        try:
            got = self.pipe.recv()
        except (EOFError, OSError) as e:
            raise UserError(f"{self.path}: the process measuring it died (out of memory?)") from e
        if isinstance(got, str):
            raise UserError(got)
        return got

    def close(self) -> None:
        self.pipe.close()
        self.process.join(2)
        self.process.kill()


def bench_files(paths: list[Path], threads: int = 1, batch: int = 1, rounds: int = ROUNDS) -> Bench:
    """Measure files in turn; each is loaded once, in its own process. Raises `UserError`."""
    paths = [engines.resolve(p) for p in paths]
    for p in paths:
        engines.for_path(p)  # says what is wrong before a process is started
    workers: list[_Worker] = []
    try:
        with console.progress("rounds") as bar:
            task = bar.add_task("measuring", total=rounds * len(paths), status="")
            for p in paths:
                workers.append(_Worker(p, threads, batch))  # noqa: PERF401  (those started are closed if one fails)
            for _ in range(rounds):
                for w in workers:
                    w.measure()
                    bar.advance(task)
    finally:
        for w in workers:
            w.close()
    timings = []
    for w in workers:
        ms = 1e3 * np.concatenate(w.rounds)
        median = quietest_ms(w.rounds)
        timings.append(
            Timing(
                path=str(w.path),
                engine=w.engine,
                title=w.title,
                precision=w.precision,
                threads=threads,
                batch=batch,
                median_ms=median,
                p95_ms=float(np.percentile(ms, 95)),
                images_per_s=1e3 * batch / median,
                load_ms=w.load_ms,
                peak_rss_bytes=w.peak_rss,
                size_bytes=size_on_disk(w.path),
                runs=len(ms),
            )
        )
    return Bench(tuple(timings))


def bench(*files: Path, threads: int = 1, batch: int = 1, rounds: int = ROUNDS) -> Bench:
    """Measure the latency, throughput and memory of files, in turn.

    Parameters
    ----------
    files
        Exported files, bundles or runs.
    threads
        Threads (and processors) each may use.
    batch
        Images in a call.
    rounds
        How often each file gets its turn of 0.3 s.
    """
    if not files:
        raise UserError("name at least one file to measure")
    for name, n in (("threads", threads), ("batch", batch), ("rounds", rounds)):
        if n < 1:
            raise UserError(f"{name} must be 1 or more, not {n}")
    return bench_files(list(files), threads, batch, rounds)
