"""How long networks take on a machine: measured here, kept in a cache, carried elsewhere as a table. No torch.

A network's time and size don't depend on what its weights are: random ones are measured, all networks in turn, round
after round, so that a machine's mood falls on all of them alike; a network's latency is that of its quietest round.
What was measured is kept after each round and on Ctrl-C: the next call goes on from there. Rounds beside a busy
program, or further apart than a tenth, are taken again, and not kept if that doesn't help.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mobilenets import __version__, console, files, processor, tasks
from mobilenets.arch.spec import Arch
from mobilenets.deploy import engines, load
from mobilenets.deploy.bench import best_round_ms, pinned, time_calls
from mobilenets.errors import UserError, unknown
from mobilenets.model.bundle import random_bundle
from mobilenets.model.card import PRECISIONS, Precision

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from rich.console import RenderableType

    from mobilenets.deploy.engines import Engine
    from mobilenets.tasks.task import Outputs, Ranged


ROUNDS, ROUND_SECONDS, WARM_UP_SECONDS = 3, 0.1, 0.05
AGAIN = 2  # rounds more for what a busy machine spoiled
TOLD_SECONDS = 5.0  # a round that takes longer is told in a log
HEAD = 4  # numbers of a cached row before its rounds: bytes, seconds since 1970, load average, reference
PROTOCOL = 3  # part of the cache's key and of a table: raise it when what is measured changes
FORMAT, KIND = 1, "mobilenets latency table"


class Setting(NamedTuple):
    """What a network is measured with; `threads` on as many processors."""

    engine: str
    precision: Precision
    threads: int

    @property
    def name(self) -> str:
        return f"{self.engine} {self.precision}"

    def __str__(self) -> str:
        return f"{self.name}, {self.threads} thread{'s' * (self.threads > 1)}"


class Measured(NamedTuple):
    """A network's title, the median latency of one image, and the bytes of the exported file.

    `measured`: when (ISO 8601); `load_average` of the system then; `reference`: how long a fixed loop took beside it,
    as a multiple of its best (`load.Watch`).
    """

    network: str
    latency_ms: float
    size_bytes: int
    measured: str = ""
    load_average: float = 0.0
    reference: float = 1.0


def settings(engine: Iterable[str], precision: Iterable[str], threads: Iterable[int]) -> list[Setting]:
    """Every combination that exists; a `UserError` for an unknown name, or where there is none."""
    names, wanted, counts = list(engine), list(precision), list(threads)
    for n in counts:
        if n < 1:
            raise UserError(f"threads must be 1 or more, not {n}")
    for p in wanted:
        if p not in PRECISIONS:
            raise unknown("precision", p, PRECISIONS)
    out = [Setting(e, p, n) for e in names for p in engines.runtime(e).precisions if p in wanted for n in counts]
    if not out:
        has = "; ".join(f"{e} has {', '.join(engines.runtime(e).precisions)}" for e in names)
        raise UserError(f"no {' or '.join(wanted)} networks to measure: {has or 'name an engine'}")
    return out


def machine() -> str:
    """This machine's name: processor and number of them."""
    name = platform.processor() or platform.machine()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as f:
            name = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name} x{os.cpu_count()}"


@functools.cache
def _instructions() -> str:
    """A digest of the processor's feature flags: two machines may share a name and differ in instructions."""
    flags = processor.features() or platform.machine()
    return hashlib.sha256(flags.encode()).hexdigest()[:8]


class Cache:
    """What was measured of one kind on one machine: a row of numbers for each network. A damaged one is empty.

    `of`: all that the numbers depend on, besides the network.
    """

    def __init__(self, name: str, *of: object) -> None:
        digest = hashlib.sha256(json.dumps([*of, PROTOCOL]).encode()).hexdigest()[:16]
        self.path = files.cache_root() / f"{name}-{digest}.json"
        self.rows: dict[str, list[float]] = {}
        self.told = False
        try:
            read = files.parse_json(self.path.read_bytes())
            rows = {str(k): [float(n) for n in row] for k, row in read.items()}
            if all(0 <= n < math.inf for row in rows.values() for n in row):
                self.rows = rows
        except (OSError, ValueError, TypeError, AttributeError, OverflowError):
            pass

    def save(self) -> None:
        """Keep what was measured; where that can't be, a note says so once, and it is measured again next time."""
        try:
            files.write_json(self.path, self.rows)
        except UserError as e:
            if not self.told:
                console.note(f"what is measured can't be kept: {e}")
            self.told = True


def cache_of(s: Setting, of: Ranged | None = None) -> Cache:
    """The cache of a setting on this machine: rows of HEAD numbers, then each round's milliseconds."""
    name = f"latency-{s.engine}-{s.precision}-{s.threads}"
    kind = [of.called] if of else []
    version = engines.version(s.engine)
    return Cache(name, machine(), _instructions(), s.engine, version, s.precision, s.threads, HEAD, *kind)


def once(a: Arch, s: Setting, of: Ranged | None = None) -> tuple[float, int]:
    """One round of a network: its median latency in milliseconds, and the bytes of its file. Raises `UserError`.

    Of a task that has networks `of` its own, answers included, whether they are made in the file or behind it.
    """
    with pinned(s.threads):
        bundle = of.random(a, s.precision) if of else random_bundle(a, s.precision)
        built, size = engines.build(s.engine, bundle, s.precision, s.threads)
        ready = built if of is None else _Answering(built)
        time_calls(ready, 1, WARM_UP_SECONDS)
        return best_round_ms([time_calls(ready, 1, ROUND_SECONDS)]), size


class _Answering:
    """A detector's engine with what makes boxes of its outputs: what is waited for from pixels to answers."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.card, self.task = engine, engine.card, tasks.of(engine.card)

    def __call__(self, images: npt.NDArray[np.uint8]) -> Outputs:
        outputs = self.engine(images)
        height, width = images.shape[1:3]
        self.task.decode(outputs, self.card, [(width, height)] * len(images), 1)
        return outputs


def _settled(row: Sequence[float]) -> bool:
    """Whether a row has rounds enough, the two quietest of them near each other."""
    best = sorted(row[HEAD:])
    return len(best) >= ROUNDS and best[:2][-1] <= load.OFF * best[0]


def _watch(spare: int) -> tuple[load.Watch, Cache]:
    """The reference loop with the best time that it had on this machine, and where that is kept."""
    cache = Cache("reference", machine(), _instructions())
    cache.told = True  # that nothing can be kept is said of the latencies
    before = cache.rows.get("loop") or [0.0]
    return load.Watch(spare, before[0] or None), cache


def time_networks(
    archs: Sequence[Arch], s: Setting, remeasure: bool = False, of: Ranged | None = None
) -> dict[str, Measured]:
    """Arch digest -> its measurement; from the cache (unless to `remeasure`), or measured in turn on this machine.

    Networks that the engine refuses are left out, with a note; a `UserError` if it refuses all. Another note tells of
    those that were measured on a busy machine, which aren't kept.
    """
    cache = cache_of(s, of)
    before = {} if remeasure else {d: row for d, row in cache.rows.items() if all(row[HEAD:])}
    rows = {a.digest: before.get(a.digest, []) for a in archs}
    spoiled: dict[str, list[float]] = {}
    missing = {a.digest: a for a in archs if not _settled(rows[a.digest])}
    refused: dict[str, str] = {}
    if missing:
        _measure(missing, s, cache, rows, spoiled, refused, of)
    if refused:
        first = next(iter(refused.values()))
        if len(refused) == len(archs):
            raise UserError(first)
        console.note(f"{s.name} can't run {len(refused)} of {len(archs)} networks, which are left out; {first}")
    unsure = [d for d in missing if d not in refused and not _settled(rows[d])]
    if unsure:
        worst = max((spoiled[d][3] for d in unsure if d in spoiled), default=1.0)
        console.note(
            f"{s.name}: the machine was busy with something else while it measured {len(unsure)} of {len(archs)} "
            f"networks (a fixed loop took up to {worst:.1f} times as long): those latencies aren't kept, and are "
            "measured again next time"
        )
    out = {}
    for a in archs:
        found = [row for row in (rows[a.digest], spoiled.get(a.digest, [])) if len(row) > HEAD]
        if found:
            size, when, average, reference = found[0][:HEAD]
            best = min(n for row in found for n in row[HEAD:])
            date = datetime.datetime.fromtimestamp(when, datetime.UTC).isoformat(timespec="seconds")
            out[a.digest] = Measured(a.title, best, int(size), date, average, reference)
    return out


def _measure(
    missing: Mapping[str, Arch],
    s: Setting,
    cache: Cache,
    rows: dict[str, list[float]],
    spoiled: dict[str, list[float]],
    refused: dict[str, str],
    of: Ranged | None,
) -> None:
    """Rounds of the networks that lack some, into `rows`, which are kept; what a busy machine `spoiled` apart."""
    spare = processor.cores() - s.threads
    with pinned(s.threads), console.progress("networks") as bar:
        watch, best = _watch(spare)
        task = bar.add_task(f"measuring on {s.name}", total=ROUNDS * len(missing), status="")
        for done in range(ROUNDS + AGAIN):
            if done >= ROUNDS and watch.patience <= 0:
                break
            since = time.monotonic()
            try:
                for digest, a in missing.items():
                    taken = len(rows[digest]) - HEAD
                    if digest in refused or _settled(rows[digest]) or (done < ROUNDS and taken > done):
                        continue  # the last in a call that was interrupted
                    before = watch.wait(lambda: bar.update(task, status="waiting: the machine is busy"))
                    bar.update(task, status=a.title)
                    try:
                        ms, size = once(a, s, of)
                    except UserError as e:
                        refused[digest] = f"{a.title}: {e}"
                        continue
                    after = watch.look()
                    into = spoiled if before.busy or after.busy else rows
                    head = [size, time.time(), load.average(), max(before.reference, after.reference)]
                    into[digest] = [*head, *into.get(digest, [])[HEAD:], ms]
                    bar.advance(task)
                if done < ROUNDS and time.monotonic() - since > TOLD_SECONDS:
                    console.done(f"{s.name}: {console.many(len(missing), 'network')}, round {done + 1} of {ROUNDS}")
            finally:
                kept = {d: rows[d] for d in missing if len(rows[d]) > HEAD}
                if done >= ROUNDS - 1:
                    kept = {d: row for d, row in kept.items() if _settled(row)}
                    for d in missing.keys() - kept.keys():
                        cache.rows.pop(d, None)
                cache.rows |= kept
                cache.save()
                best.rows["loop"] = [watch.best]
                best.save()


def dates(measured: Iterable[Measured]) -> str:
    """The day or days of measurements: "2026-11-02", "2026-11-02 to 2026-11-26"; empty where they aren't known."""
    days = sorted({m.measured[:10] for m in measured} - {""})
    return " to ".join(dict.fromkeys([days[0], days[-1]])) if days else ""


@dataclass(frozen=True)
class Table(console.Notebook):
    """What was measured on one machine: engine -> its version; setting -> arch digest -> measurement."""

    machine: str
    versions: Mapping[str, str]
    entries: Mapping[Setting, Mapping[str, Measured]]

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": KIND,
            "format": FORMAT,
            "protocol": PROTOCOL,
            "measured": "median latency of one image in milliseconds, preprocessed pixels to probabilities, of the "
            f"quietest of {ROUNDS} rounds; bytes of the exported file; by the network's digest",
            "machine": self.machine,
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "mobilenets": __version__,
            "tables": [
                {
                    **s._asdict(),
                    "engine_version": self.versions[s.engine],
                    "networks": {digest: m._asdict() for digest, m in by_digest.items()},
                }
                for s, by_digest in self.entries.items()
            ],
        }

    def __rich__(self) -> RenderableType:
        t = console.table(
            f"latencies of {self.machine}", ["runtime", "networks", "fastest ms", "slowest ms"], ["runtime"]
        )
        for s, by_digest in self.entries.items():
            ms = [m.latency_ms for m in by_digest.values()]
            t.add_row(f"{s} ({self.versions[s.engine]})", str(len(ms)), f"{min(ms):.3f}", f"{max(ms):.3f}")
        every = [m for by_digest in self.entries.values() for m in by_digest.values()]
        slowest = max(m.reference for m in every)
        t.caption = f"measured {dates(every)}; a fixed loop took at most {slowest:.2f} times its best beside them"
        return t

    @classmethod
    def read(cls, path: Path) -> Table:
        """The inverse of `to_json`, from a file; a `UserError` for one that is damaged, newer or measured otherwise."""
        try:
            d = files.parse_json(path.read_bytes())
        except (ValueError, OSError) as e:
            raise UserError(f"{path}: not readable as a latency table: {e}") from e
        if not isinstance(d, dict) or d.get("kind") != KIND or not isinstance(d.get("format"), int):
            raise UserError(f"{path}: not a latency table; make one with: mobilenets latency-table --out {path.name}")
        if d["format"] > FORMAT:
            raise UserError(
                f"{path}: written by a newer mobilenets (table format {d['format']}, this one reads up to {FORMAT}); "
                "upgrade with: pip install --upgrade mobilenets"
            )
        if d.get("protocol") != PROTOCOL:
            raise UserError(
                f"{path}: measured by protocol {d.get('protocol')}, this mobilenets by {PROTOCOL}; measure again "
                "with: mobilenets latency-table"
            )
        try:
            tables = {Setting(t["engine"], t["precision"], int(t["threads"])): t for t in d["tables"]}
            entries = {
                s: {
                    digest: Measured(
                        str(m["network"]),
                        float(m["latency_ms"]),
                        int(m["size_bytes"]),
                        str(m.get("measured", "")),
                        float(m.get("load_average", 0.0)),
                        float(m.get("reference", 1.0)),
                    )
                    for digest, m in t["networks"].items()
                }
                for s, t in tables.items()
            }
            measured = [m for by_digest in entries.values() for m in by_digest.values()]
            if not all(0 < m.latency_ms < math.inf and m.size_bytes > 0 for m in measured):
                raise ValueError("a number is out of range")
            versions = {s.engine: str(t["engine_version"]) for s, t in tables.items()}
            return cls(str(d["machine"]), versions, entries)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
            raise UserError(f"{path}: damaged: a field is missing or malformed: {e}") from e


def here(archs: Sequence[Arch], wanted: Sequence[Setting], remeasure: bool = False, of: Ranged | None = None) -> Table:
    """`archs` on this machine: cached (unless to `remeasure`), or measured now. Raises `UserError`."""
    for s in wanted:
        engines.module(s.engine)  # says what to install before anything is measured
    # Most threads first: those that a runtime has started stay on the processors of that time.
    measured = {s: time_networks(archs, s, remeasure, of) for s in sorted(wanted, key=lambda s: -s.threads)}
    return Table(machine(), {s.engine: engines.version(s.engine) for s in wanted}, {s: measured[s] for s in wanted})


def of_file(path: Path, archs: Sequence[Arch], wanted: Sequence[Setting]) -> Table:
    """What the table at `path` has of `archs` and `wanted`; networks that it hasn't are left out, with a note."""
    table = Table.read(path)
    entries = {s: table.entries[s] for s in wanted if s in table.entries}
    if not entries:
        raise UserError(
            f"{path}: has {'; '.join(map(str, table.entries))}, not {' or '.join(map(str, wanted))}: choose by it with "
            f"--engine {','.join(dict.fromkeys(s.engine for s in table.entries))}"
        )
    digests = {a.digest: a.title for a in archs}
    found = {s: {d: m for d, m in by_digest.items() if d in digests} for s, by_digest in entries.items()}
    missing = [title for d, title in digests.items() if not all(d in by_digest for by_digest in found.values())]
    if not any(found.values()):
        classes = ", ".join(map(str, sorted({a.num_classes for a in archs})))
        raise UserError(
            f"{path}: has none of the {len(digests)} networks asked for (of {classes} classes); measure them with: "
            f"mobilenets latency-table --classes {classes}"
        )
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        console.note(f"{path}: {len(missing)} of {len(digests)} networks aren't in it and are left out: {some}")
    return Table(table.machine, table.versions, found)
