"""One network of a sweep at a time: trained, exported, scored; in this process or as tasks of a Ray cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mobilenets import files, tasks
from mobilenets.arch import cost
from mobilenets.commands.pipeline import evidence_of, in_precision, make_file
from mobilenets.data import checks
from mobilenets.data.dataset import Data
from mobilenets.deploy import bench, engines
from mobilenets.deploy.cluster import joined
from mobilenets.errors import Interrupted, UserError
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Precision
from mobilenets.tasks.task import Scores, Shaped, Task
from mobilenets.training import run
from mobilenets.training import trainer as train
from mobilenets.training.run import CHECKPOINTS, FLOAT, INT8, LOGS, METRICS
from mobilenets.training.sweep import ENGINE, RESULT, Job, Trained


def train_network(data: Data, job: Job) -> Trained:
    """Train, export and score one network, or go on where that stopped; data that was checked already.

    A `UserError` (a loss that isn't a number, a full disk) is the result's `error`; `Interrupted` is raised.
    """
    a, task = job.arch, _task(job)
    own_head = isinstance(task, Shaped)  # others' is the network's own
    counted = cost.count(a, a.graph.with_head(task.head(a, tasks.config_of(task, data, a))) if own_head else None)
    result = Trained(a.name, a.alpha, a.resolution, job.seed, counted.macs, counted.params, str(job.out))
    config = {
        "verb": "train", "task": job.task, "source": job.source, "arch": a.to_json(), "recipe": job.recipe.to_json(),
        "seed": job.seed, "init": job.init.digest if job.init else None,
    }  # fmt: skip
    try:
        with run.taken(job.out, config, (job.out / run.CONFIG).exists(), data):
            scores, size = _made(data, job)
    except Interrupted:
        raise
    except UserError as e:
        return dataclasses.replace(result, error=str(e))
    from mobilenets.reports import plots  # with matplotlib: the command line's help needs none

    log = plots.read_metrics(job.out / LOGS / METRICS)
    result = dataclasses.replace(
        result,
        split=scores.split,
        images=scores.count,
        score=scores.value,
        size_bytes=size,
        train_seconds=sum(log["seconds"].values()),
    )
    files.write_json(job.out / RESULT, dataclasses.asdict(result))
    return result


def _made(data: Data, job: Job) -> tuple[Scores, int]:
    """The network of a job, trained and exported: what the file scores on held-out images, and its bytes."""
    if bundles.is_bundle(job.out / FLOAT):
        b = Bundle.load(job.out / FLOAT)
    else:
        b = train.train_bundle(
            data, job.arch, job.recipe, job.out, task=_task(job), seed=job.seed, init=job.init, log=job.log,
            resume=(job.out / CHECKPOINTS / "last.ckpt").exists(),
        )  # fmt: skip
    seen = evidence_of(data, b.card)
    b = in_precision(b, job.precision, data)
    if job.precision == "int8":
        b = b.save(job.out / INT8)
    made = make_file(b, seen, job.out / engines.file_name(ENGINE, job.precision), ENGINE, job.precision)
    assert made.scores is not None  # what is trained has a score
    return made.scores, made.export.size_bytes


def _task(job: Job) -> Task:
    return tasks.with_options(tasks.find(job.task), {"detect": job.detector}, job.init)


def finished(job: Job) -> Trained | None:
    """The result that an earlier sweep left of this very job."""
    with contextlib.suppress(UserError, TypeError):  # none, or damaged: made anew
        found = files.read_json(job.out / RESULT, (), "a sweep")
        if "top1" in found:  # of a version that knew classifiers alone
            found["score"] = found.pop("top1")
        return dataclasses.replace(Trained(**found), folder=str(job.out))
    return None


def timed(runs: Sequence[Trained], precision: Precision, threads: int) -> list[Trained]:
    """`runs` with their latency: one file of each network, all of them measured in turn."""
    paths = {r.key: Path(r.folder) / engines.file_name(ENGINE, precision) for r in runs if not r.error}
    if not paths:
        return list(runs)
    timings = bench.bench_files(list(paths.values()), threads)
    latency = {key: t.median_ms for key, t in zip(paths, timings, strict=True)}
    return [dataclasses.replace(r, latency_ms=latency.get(r.key)) for r in runs]


@contextlib.contextmanager
def cluster(address: str, cpus: float) -> Iterator[Callable[[Sequence[Job]], Iterator[Trained]]]:
    """The Ray cluster at `address`, as a function: jobs -> results as they come, each a task of `cpus` processors.

    A task whose machine is lost starts again on another, from its last checkpoint. Raises `UserError` without Ray or a
    cluster.
    """
    with joined(address) as ray:

        def train_all(jobs: Sequence[Job]) -> Iterator[Trained]:
            task = ray.remote(num_cpus=cpus)(_on_worker)
            waiting = [task.remote(job, Path.cwd()) for job in jobs]
            while waiting:
                (done,), waiting = ray.wait(waiting)
                yield ray.get(done)

        yield train_all


def _on_worker(job: Job, folder: Path) -> Trained:
    os.chdir(folder)  # where the command was given: its paths may be relative
    return train_network(_opened(job.source, job.root, job.task), job)


@functools.cache
def _opened(source: str, root: Path | None, task: str) -> Data:
    """Data as it is after the check, once for each worker process."""
    data = tasks.find(task).open(source, root, 0, None)
    checks.scan(data)
    return data
