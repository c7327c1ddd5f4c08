"""Images of all requests in one line, answered by a few threads; those next to each other together, where that pays.

Each thread decodes what it runs, so that all cores are busy with whichever there is more of. No torch.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mobilenets.deploy.engines import Outputs
from mobilenets.deploy.predict import Size
from mobilenets.deploy.server.metrics import Metrics
from mobilenets.deploy.server.models import Served
from mobilenets.deploy.server.problem import full
from mobilenets.model.images import BadImage, Pixels

log = logging.getLogger("mobilenets.serve")
STUCK = 60.0  # seconds in one batch, after which the process passes for ill


@dataclass(eq=False)
class Job:
    """One image: how it is read, and what is made of its outputs, both in a thread of the queue's.

    `future` gets what `finish` gives, or the `BadImage` that `read` raised. `batch`: with how many it was run.
    """

    served: Served
    read: Callable[[], tuple[Pixels, Size]]
    finish: Callable[[Outputs, Size], Any]
    future: asyncio.Future[Any]
    arrived: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    batch: int = 0


class Queue:
    """`threads` of them, and room for `most` images that wait."""

    def __init__(self, threads: int, most: int, metrics: Metrics) -> None:
        self.most, self.metrics = most, metrics
        self.waiting: deque[Job] = deque()
        self.turn = threading.Condition()
        self.closed = False
        self.running: dict[int, float] = {}  # by thread: since when
        self.threads = [
            threading.Thread(target=self._work, args=(n,), name=f"mobilenets-{n}", daemon=True) for n in range(threads)
        ]
        for t in self.threads:
            t.start()

    def add(self, jobs: Sequence[Job]) -> None:
        """All of them, or none: raises `Problem` where there is no room."""
        with self.turn:
            if len(self.waiting) + len(jobs) > self.most:
                raise full(f"{len(self.waiting)} images wait already; try again")
            self.waiting.extend(jobs)
            self.metrics.waiting(len(self.waiting))
            self.turn.notify(len(jobs))

    def close(self) -> None:
        """Answer what waits, then end."""
        with self.turn:
            self.closed = True
            self.turn.notify_all()
        for t in self.threads:
            t.join()

    @property
    def stuck(self) -> bool:
        """Whether a batch has been under way for so long that it won't end."""
        return any(time.monotonic() - since > STUCK for since in list(self.running.values()))

    def _work(self, number: int) -> None:
        while True:
            with self.turn:
                while not self.waiting and not self.closed:
                    self.turn.wait()
                if not self.waiting:
                    return
                jobs = self._take()
                self.metrics.waiting(len(self.waiting))
            self.running[number] = time.monotonic()
            try:
                self._run([job for job in jobs if not job.future.done()])  # nobody waits for the others any more
            finally:
                del self.running[number]

    def _take(self) -> list[Job]:
        """The next image, and those behind it that are of the same network: a fair share, for the threads that wait."""
        jobs = [self.waiting.popleft()]
        served = jobs[0].served
        share = math.ceil((1 + len(self.waiting)) / len(self.threads))
        while len(jobs) < min(served.batch, share) and self.waiting and self.waiting[0].served is served:
            jobs.append(self.waiting.popleft())
        return jobs

    def _run(self, jobs: list[Job]) -> None:
        """Answer them; whatever goes wrong is told to who waits, and no thread ends by it."""
        if not jobs:
            return
        begun = time.perf_counter()
        results: list[tuple[Job, Any]] = []
        good: list[tuple[Job, Pixels, Size]] = []
        for job in jobs:
            job.waited = begun - job.arrived
            try:
                good.append((job, *job.read()))
            except BadImage as e:
                results.append((job, e.with_traceback(None)))  # which would hold this frame, and it the error
            except Exception as e:  # a fault of ours
                results.append((job, e))
        try:
            if good:
                outputs = good[0][0].served.model.engine(np.stack([pixels for _, pixels, _ in good]))
                for n, (job, _, size) in enumerate(good):
                    job.batch = len(good)
                    results.append((job, job.finish({name: x[n : n + 1] for name, x in outputs.items()}, size)))
        except Exception as e:
            told = {id(job) for job, _ in results}
            results += [(job, e) for job, _, _ in good if id(job) not in told]
        self.metrics.ran(jobs[0].served.name, len(jobs), time.perf_counter() - begun)
        try:
            jobs[0].future.get_loop().call_soon_threadsafe(_deliver, results)
        except RuntimeError:  # the server has ended meanwhile
            log.warning("nobody is left for an answer")


def _deliver(results: list[tuple[Job, Any]]) -> None:
    for job, result in results:
        if job.future.done():
            continue
        if isinstance(result, Exception) and not isinstance(result, BadImage):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
