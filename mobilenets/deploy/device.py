"""Networks measured in a browser, on the device that opens a page: what it gets, the table of what it sends. No torch.

Nothing large goes over: a file's weights are zeros, which compress to nothing, and the page writes random ones in
their place. What is measured is our engine's WebAssembly, as `mobilenets app` packs it.
"""

from __future__ import annotations

import datetime
import gzip
import json
import math
import queue
import re
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mobilenets import __version__, files
from mobilenets.arch.spec import Arch
from mobilenets.console import plain
from mobilenets.deploy import engines
from mobilenets.deploy.app import BROWSER, ENGINE, MODULES
from mobilenets.deploy.latency import Measured, Setting, Table
from mobilenets.deploy.lowering import Unsupported
from mobilenets.deploy.writers.native import native_model
from mobilenets.deploy.writers.native_file import hollow
from mobilenets.errors import UserError
from mobilenets.model.bundle import random_bundle
from mobilenets.model.card import Precision

PAGE = ("index.html", "measure.js", "measuring.js")
LONGEST = 120  # letters of a device's name
THROTTLED = 1.15  # times as slow at the end as at the beginning: the device has become hot, or busy


def packed(arch: Arch, precision: Precision) -> tuple[bytes, int] | None:
    """A network's file for the page: a line of JSON, then the file, all compressed; and the bytes of the file itself.

    None of a network that our engine can't run.
    """
    try:
        made = native_model(random_bundle(arch, precision))
    except Unsupported:
        return None
    data, places = hollow(made)
    line = json.dumps({"weights": places, "type": precision}) + "\n"
    return gzip.compress(line.encode() + data, 6, mtime=0), len(data)


class Measurement:
    """One measurement of networks, by whoever opens the page; `answer` is its web server's (see `hosting.hosted`).

    Networks are packed in a thread of its own, from when it is made: the page asks for one after another.
    """

    def __init__(self, archs: Sequence[Arch], precisions: Sequence[str], seconds: float) -> None:
        """Raises `UserError` for a precision that our engine hasn't."""
        self.archs = {a.digest: a for a in archs}
        self.seconds = seconds
        self.settings = [Setting(ENGINE, engines.check_precision(ENGINE, p), 1) for p in precisions]
        self.pages = {name: BROWSER / "measure" / name for name in PAGE}
        self.pages["app.css"] = BROWSER / "app" / "app.css"
        self.pages["icon.svg"] = BROWSER / "app" / "icon.svg"
        engine = [BROWSER / name for name in MODULES] + sorted(BROWSER.glob("*.wasm"))
        self.pages |= {f"engine/{path.name}": path for path in engine}
        self.pool = ThreadPoolExecutor(1)
        self.files: dict[str, Future[tuple[bytes, int] | None]] = {
            f"{digest}-{s.precision}": self.pool.submit(packed, a, s.precision)
            for s in self.settings
            for digest, a in self.archs.items()
        }
        self.done: queue.Queue[Table] = queue.Queue()
        self.lock = threading.Lock()

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)

    def answer(self, path: str, sent: bytes | None) -> bytes | None:
        """What lies at a path of the page's address, or what is said of what it sends."""
        if sent is not None:
            return self._taken(sent) if path == "table" else None
        if path in self.pages:
            return self.pages[path].read_bytes()
        if path == "plan.json":
            return json.dumps({"seconds": self.seconds, "networks": self._plan()}).encode()
        found = self.files.get(path.removeprefix("networks/"))
        return (found.result() or (b"", 0))[0] if found is not None else None

    def _plan(self) -> list[dict[str, Any]]:
        return [
            {"digest": digest, "title": a.title, "precision": s.precision, "file": f"networks/{digest}-{s.precision}"}
            for s in self.settings
            for digest, a in self.archs.items()
        ]

    def _taken(self, sent: bytes) -> bytes:
        """Keep a table that a page sends; what is wrong with it is the answer."""
        try:
            made = self.table(files.parse_json(sent))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
            return json.dumps({"wrong": f"not a measurement: {type(e).__name__}"}).encode()
        self.done.put(made)
        return b"{}"

    def table(self, sent: dict[str, Any]) -> Table:
        """What a page has sent as a table. Raises KeyError, TypeError, ValueError and such for what isn't one."""
        name = plain(re.sub(r"\s+", " ", str(sent["machine"]))).strip()[:LONGEST]
        entries: dict[Setting, dict[str, Measured]] = {s: {} for s in self.settings}
        by_precision = {s.precision: s for s in self.settings}
        for m in sent["networks"]:
            ms, reference = float(m["latency_ms"]), float(m["reference"])
            if not (0 < ms < math.inf and 0 < reference < math.inf):
                raise ValueError("a number is out of range")
            arch = self.archs[m["digest"]]
            found = self.files[f"{arch.digest}-{m['precision']}"].result()
            if found is None:
                raise ValueError(f"{arch.title} can't have been measured")
            measured = Measured(arch.title, ms, found[1], now(), 0.0, reference)
            entries[by_precision[m["precision"]]][arch.digest] = measured
        if not name or not any(entries.values()):
            raise ValueError("nothing was measured")
        return Table(name, {ENGINE: __version__}, {s: found for s, found in entries.items() if found})


def slowed(table: Table) -> tuple[int, float]:
    """How many networks were measured while the reference took THROTTLED times as long as at its best; the most."""
    times = [m.reference for by_digest in table.entries.values() for m in by_digest.values()]
    return sum(t > THROTTLED for t in times), max(times)


def check_seconds(seconds: float) -> None:
    """Raises `UserError` for a time that no measurement takes."""
    if not 1 <= seconds <= 3600:
        raise UserError(f"seconds must be from 1 to 3600, not {seconds:g}")


def now() -> str:
    """The time, as tables have it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
