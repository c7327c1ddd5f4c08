"""Networks by name, each loaded again when what lies at its path is replaced. No torch."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilenets import files
from mobilenets.data.alignment import Faces
from mobilenets.deploy import engines
from mobilenets.deploy.predict import Model, load
from mobilenets.deploy.server.metrics import Metrics
from mobilenets.deploy.server.settings import Settings
from mobilenets.errors import UserError

log = logging.getLogger("mobilenets.serve")
LOOK = 1.0  # seconds between looks at the files
SIZES = (1, 4, 8)  # images in a call, of which the quickest is found
PAYS = 0.9  # of the time for an image alone that it must take at most in a batch
SLOW = 0.05  # seconds for one image, from which on what a call costs besides doesn't count

Stamp = tuple[Any, ...]


@dataclass(frozen=True)
class Served:
    """A network that answers. `batch`: images in a call; `stamp`: what its files looked like when it was loaded."""

    name: str
    path: Path
    model: Model
    batch: int
    stamp: Stamp
    loaded: float
    digest: str

    @classmethod
    def load(cls, name: str, path: Path, settings: Settings) -> Served:
        """Raises `UserError`."""
        stamp = look(path)
        faces = Faces(aligned=settings.aligned) if settings.aligned else None
        model = load(path, threads=1, faces=faces)
        _ = model.where  # says at once what is missing
        batch = settings.batch or best_batch(model)
        digest = files.sha256(engines.resolve(path))
        return cls(name, path, model, batch, stamp, time.time(), digest)

    def to_json(self) -> dict[str, Any]:
        """What is told of it, to whoever may ask: nothing of this machine."""
        card = self.model.card
        height, width = card.preprocess.input_size
        return {
            "name": self.name,
            "network": card.arch.title,
            "task": card.task,
            "precision": card.precision,
            "runtime": self.model.engine.name,
            "input": [height, width, 3],
            "outputs": {name: list(shape) for name, shape in card.outputs.items()},
            "labels": list(card.labels) if card.config.get("labels") else [],
            "licence": card.licence,
            "sha256": self.digest,
            "batch": self.batch,
            "loaded": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.loaded)),
        }


def best_batch(model: Model) -> int:
    """How many images a call should have: those that take the least time each, if that is clearly less than one's."""
    height, width = model.card.preprocess.input_size
    times: dict[int, float] = {}
    for size in SIZES:
        images = np.full((size, height, width, 3), 128, np.uint8)
        model.engine(images)  # memory is had once
        times[size] = min(_seconds(model, images) for _ in range(3)) / size
        if times[1] > SLOW:
            return 1
    best = min(times, key=times.__getitem__)
    return best if times[best] < PAYS * times[1] else 1


def _seconds(model: Model, images: Any) -> float:
    begun = time.perf_counter()
    model.engine(images)
    return time.perf_counter() - begun


def look(path: Path) -> Stamp:
    """What the files at a path look like from outside: another one where they were replaced. Raises `UserError`."""
    found = engines.resolve(path)
    engines.for_path(found)  # says what is wrong with one that isn't there
    try:
        parts = sorted(p for p in found.rglob("*") if p.is_file()) if found.is_dir() else [found]
        each = [(str(p), s.st_ino, s.st_mtime_ns, s.st_size) for p in parts for s in [p.stat()]]
    except OSError as e:
        raise UserError(f"{path}: can't be read ({e.strerror})") from e
    return tuple(each)


class Models:
    """The networks of a server, all loaded; `watch` keeps them new. Raises `UserError` where one can't be loaded."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.now = {name: Served.load(name, path, settings) for name, path in settings.models}
        self.failed: dict[str, Stamp] = {}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="mobilenets-watch", daemon=True)

    def watch(self) -> None:
        self.thread.start()

    def close(self) -> None:
        self.ended.set()

    def _watch(self) -> None:
        while not self.ended.wait(LOOK):
            self.refresh()

    def refresh(self) -> None:
        """Load what was replaced. What can't be loaded is told, and the network before it stays."""
        for name, served in list(self.now.items()):
            stamp: Stamp = ()
            try:
                stamp = look(served.path)
                if stamp in (served.stamp, self.failed.get(name)):
                    continue
                new = Served.load(name, served.path, self.settings)
            except Exception as e:  # whatever a file from outside makes a runtime say
                if self.failed.get(name) != stamp:
                    self._tell(name, False, f"{name} was replaced by what can't be loaded; the one before stays: {e}")
                self.failed[name] = stamp
                continue
            self.now[name] = new  # at once; requests under way have the one before
            self.failed.pop(name, None)
            self._tell(name, True, f"{name} was replaced")

    def _tell(self, name: str, well: bool, line: str) -> None:
        self.metrics.reloaded(name, well)
        tell: Callable[..., None] = log.info if well else log.error
        tell(line, extra={"fields": {"model": name}})
