"""Latency, throughput and memory of files: one protocol for every engine.

Each file is loaded in a process of its own, pinned to as many processors as it may use threads; after warm-up the
processes are measured in turn, round after round, so that a machine's mood falls on all of them alike. A neighbour on
the same core makes every call of some seconds half as long again, and nothing makes one shorter: the latency is the
median of the quietest round. The 95th percentile is of all calls. A fixed loop is timed beside each round (`load`):
what it took more than at its best tells of a neighbour that never left.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mobilenets import console
from mobilenets.deploy import engines, load
from mobilenets.deploy.engines import Engine
from mobilenets.errors import UserError
from mobilenets.files import size_on_disk

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    import numpy.typing as npt

    from mobilenets.model.card import Card
    from mobilenets.tasks.task import Outputs

ROUNDS = 5
WARM_UP_SECONDS = 0.2
ROUND_SECONDS = 0.3


@dataclass(frozen=True)
class Timing(console.Notebook):
    """One file's measurements on `threads` threads. Milliseconds are of one call on `batch` images; sizes in bytes.

    `median_ms` is of the quietest round, `p95_ms` of all `runs` calls. `images_per_s`: throughput by batch, the first
    of them `batch`. `peak_rss_bytes` is after the calls on `batch` images, before any larger batch. `rounds_ms`: the
    median of each round, so that two files' rounds can be compared in pairs. `reference`: how long a fixed loop took
    beside the quietest round, as a multiple of the best time it had beside any file; `load_average`: the system's.
    """

    path: str
    engine: str
    title: str
    precision: str
    threads: int
    batch: int
    median_ms: float
    p95_ms: float
    images_per_s: dict[int, float]
    load_ms: float
    peak_rss_bytes: int
    size_bytes: int
    runs: int
    rounds_ms: tuple[float, ...] = field(repr=False, default=())
    reference: float = 1.0
    load_average: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


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


class Timed(Protocol):
    """What can be timed: an engine, or one with more behind it."""

    @property
    def card(self) -> Card: ...

    def __call__(self, images: npt.NDArray[np.uint8], /) -> Outputs: ...


def time_calls(engine: Timed, batch: int, seconds: float, at_least: int = 5) -> list[float]:
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


def best_round_ms(rounds: Sequence[Sequence[float]]) -> float:
    """Milliseconds: the median call of the quietest round (seconds per call)."""
    return 1e3 * min(float(np.median(r)) for r in rounds)


def peak_rss() -> int:
    """Bytes; 0 where the system doesn't say. VmHWM, not getrusage: the latter carries the parent's peak over exec."""
    try:
        with Path("/proc/self/status").open(encoding="utf-8") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        try:
            import resource
        except ImportError:  # Windows
            return 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@dataclass(frozen=True)
class Subject:
    """What is measured: a file or bundle through its engine; or what a `peer` makes of the bundle at `path`."""

    path: Path
    threads: int = 1
    peer: str = ""

    def load(self) -> Engine:
        if self.peer:
            from mobilenets.deploy import peers

            return peers.load(self.peer, self.path, self.threads)
        return engines.load(self.path, self.threads)


def _child(subject: Subject, pipe: Connection) -> None:
    """Load; then for each batch that is asked for, a round of measurements (the first of it warmed up)."""
    batch = 1
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        try:
            with pinned(subject.threads):
                start = time.perf_counter()
                engine = subject.load()
                load_ms = 1e3 * (time.perf_counter() - start)
                pipe.send((load_ms, engine.name, engine.card.arch.title, engine.card.precision))
                warm: set[int] = set()
                while batch := pipe.recv():
                    if batch not in warm:
                        time_calls(engine, batch, WARM_UP_SECONDS, at_least=2)
                        warm.add(batch)
                    loop = load.loop()
                    times = time_calls(engine, batch, ROUND_SECONDS, at_least=5 if batch == 1 else 3)
                    pipe.send((times, max(loop, load.loop()), peak_rss()))
        except UserError as e:
            pipe.send(str(e))
        except MemoryError:
            pipe.send(f"{subject.path}: there isn't the memory for {batch} images in a call")


def start(target: Callable[[Any, Connection], None], what: Any, daemon: bool) -> tuple[Connection, BaseProcess]:
    """A fresh process that runs `target(what, pipe)`, and the other end of its pipe.

    It doesn't run the program's main module again, as Python would have it: a user's script need not be guarded by
    `if __name__ == "__main__"`, and one that isn't would start itself anew in each process.
    """
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=target, args=(what, theirs), daemon=daemon)
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        process.start()
    finally:
        sys.modules["__main__"] = main
    theirs.close()
    return pipe, process


class _Worker:
    """One subject in its own process, loaded."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.pipe, self.process = start(_child, subject, daemon=True)
        self.load_ms, self.engine, self.title, self.precision = self._receive()
        self.rounds: dict[int, list[list[float]]] = {}
        self.loops: dict[int, list[float]] = {}  # seconds of the fixed loop beside each round
        self.peak_rss = 0

    def measure(self, batch: int) -> None:
        with contextlib.suppress(OSError):  # a process that died is told of where it is heard
            self.pipe.send(batch)
        times, loop, rss = self._receive()
        self.loops.setdefault(batch, []).append(loop)
        self.peak_rss = self.peak_rss or rss
        self.rounds.setdefault(batch, []).append(times)

    def _receive(self) -> Any:
        try:
            got = self.pipe.recv()
        except (EOFError, OSError) as e:
            raise UserError(f"{self.subject.path}: the process measuring it died (out of memory?)") from e
        if isinstance(got, str):
            raise UserError(got)
        return got

    def close(self) -> None:
        self.pipe.close()
        self.process.join(2)
        self.process.kill()

    def timing(self, best_loop: float) -> Timing:
        """Of all rounds; `best_loop`: seconds of the fixed loop at its best."""
        batch, rounds = next(iter(self.rounds.items()))
        medians = [float(np.median(r)) for r in rounds]
        ms = 1e3 * np.concatenate(rounds)
        path = self.subject.path
        return Timing(
            path=str(path),
            engine=self.engine,
            title=self.title,
            precision=self.precision,
            threads=self.subject.threads,
            batch=batch,
            median_ms=best_round_ms(rounds),
            p95_ms=float(np.percentile(ms, 95)),
            images_per_s={n: 1e3 * n / best_round_ms(r) for n, r in self.rounds.items()},
            load_ms=self.load_ms,
            peak_rss_bytes=self.peak_rss,
            size_bytes=size_on_disk(path),
            runs=len(ms),
            rounds_ms=tuple(1e3 * m for m in medians),
            reference=self.loops[batch][int(np.argmin(medians))] / best_loop,
            load_average=load.average(),
        )


@dataclass(frozen=True)
class LayerTiming:
    """What one operation of a file took on one image; those of one `group` run strip by strip, together."""

    name: str
    group: int
    median_ms: float


def time_layers(path: Path, threads: int = 1) -> list[LayerTiming]:
    """Each operation's time, in the order they run. Raises `UserError` for files of engines that can't tell."""
    engine = engines.load(path, threads)
    if not isinstance(engine, engines.Timed):
        raise UserError(
            f"{path}: {engine.name} doesn't tell what each layer takes; give a .mnet file, as export --to native writes"
        )
    height, width = engine.card.preprocess.input_size
    image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    runs: list[list[float]] = []
    with pinned(threads):
        end = time.perf_counter() + WARM_UP_SECONDS
        while time.perf_counter() < end:
            engine(image)
        end = time.perf_counter() + 2 * ROUND_SECONDS
        while len(runs) < 5 or time.perf_counter() < end:
            runs.append(engine.layer_ms(image))
    medians = np.median(runs, 0)
    return [LayerTiming(name, group, float(ms)) for (name, group), ms in zip(engine.layers, medians, strict=True)]


AT_ONCE = 8  # processes in memory; more subjects are measured in groups, which are as large as each other


def time_files(subjects: Sequence[Subject], batches: Sequence[int] = (1,), rounds: int = ROUNDS) -> list[Timing]:
    """Measure subjects in turn; each is loaded once, in its own process. Raises `UserError`."""
    groups = -(-len(subjects) // AT_ONCE)
    timings: list[Timing] = []
    with console.progress("rounds") as bar:
        task = bar.add_task("measuring", total=rounds * len(subjects) * len(batches), status="")
        for g in range(groups):
            workers: list[_Worker] = []
            try:
                for s in subjects[g::groups]:
                    bar.update(task, status=f"loading {s.peer or s.path.name}")
                    workers.append(_Worker(s))
                bar.update(task, status="")
                for batch in batches:
                    for n in range(rounds):
                        for w in workers:
                            w.measure(batch)
                            bar.advance(task)
                        console.done(f"measured {len(workers)} at batch {batch}: round {n + 1} of {rounds}")
            finally:
                for w in workers:
                    w.close()
            best = min(loop for w in workers for loops in w.loops.values() for loop in loops)
            timings += [w.timing(best) for w in workers]
    order = [i for g in range(groups) for i in range(g, len(subjects), groups)]
    return [t for _, t in sorted(zip(order, timings, strict=True), key=lambda pair: pair[0])]


def bench_files(
    paths: Sequence[Path], threads: int = 1, batches: Sequence[int] = (1,), rounds: int = ROUNDS
) -> list[Timing]:
    """`measure` for files, bundles and runs on `threads` threads. Raises `UserError`."""
    resolved = [engines.resolve(p) for p in paths]
    for p in resolved:
        engines.for_path(p)  # says what is wrong before a process is started
    return time_files([Subject(p, threads) for p in resolved], batches, rounds)
