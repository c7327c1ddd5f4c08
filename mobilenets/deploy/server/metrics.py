"""What a server counts and times, for Prometheus; of several processes, all of them together. No torch."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # where processes leave their numbers; prometheus_client reads it when imported
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """One process's. Labels are the networks' names and HTTP's statuses alone: no client can make more of them."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.requests = Counter(
            "mobilenets_requests_total", "Requests, by network and HTTP status", ("model", "status"), registry=r
        )
        self.seconds = Histogram(
            "mobilenets_request_seconds",
            "From a request's first byte to its answer",
            ("model",),
            buckets=SECONDS,
            registry=r,
        )
        self.refused = Counter("mobilenets_refused_total", "Requests without an answer", ("reason",), registry=r)
        self.depth = Gauge("mobilenets_queue_depth", "Images that wait", registry=r, multiprocess_mode="livesum")
        self.batches = Histogram("mobilenets_batch_images", "Images in a call", ("model",), buckets=BATCHES, registry=r)
        self.busy = Histogram(
            "mobilenets_batch_seconds", "Decoding, running and reading a batch", ("model",), buckets=SECONDS, registry=r
        )
        self.reloads = Counter(
            "mobilenets_reloads_total", "Networks replaced, and those that couldn't be", ("model", "result"), registry=r
        )

    def waiting(self, images: int) -> None:
        self.depth.set(images)

    def ran(self, model: str, images: int, seconds: float) -> None:
        self.batches.labels(model).observe(images)
        self.busy.labels(model).observe(seconds)

    def reloaded(self, model: str, well: bool) -> None:
        self.reloads.labels(model, "new" if well else "failed").inc()

    def answered(self, model: str, status: int, seconds: float, reason: str) -> None:
        """A request, whatever came of it; `reason`: why it was refused, if it was."""
        self.requests.labels(model, str(status)).inc()
        if model:
            self.seconds.labels(model).observe(seconds)
        if reason:
            self.refused.labels(reason).inc()

    def text(self) -> tuple[bytes, str]:
        """All of it as Prometheus reads it, and that text's type."""
        registry = self.registry
        if FOLDER in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST


def forget(process: int) -> None:
    """Count a process that has ended no more among those that have images waiting."""
    if Path(os.environ.get(FOLDER, "")).is_dir():
        mark_process_dead(process)  # type: ignore[no-untyped-call]
