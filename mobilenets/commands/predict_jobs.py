"""Any number of images answered by a Ray cluster, as Parquet files in a folder, each row exactly once.

The images are dealt out in parts, as they are found, by their order. A part is a task that writes one file, whose name
says which images it has; the file is there when all of it is. So a part that is begun again, since its machine was lost
or the command was, replaces the same file by the same rows, and one that is there isn't made again.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobilenets import console, files
from mobilenets.deploy import answers, engines
from mobilenets.deploy.answers import Written
from mobilenets.deploy.cluster import joined
from mobilenets.deploy.inputs import Source
from mobilenets.errors import UserError

JOB = "_job.json"  # what the folder's files were made by; readers of Parquet leave out what begins with _
SIZE = 1024  # images of a part
AHEAD = 2  # parts that wait for each processor: the list of images is never whole in memory


@dataclass(frozen=True)
class Item:
    """An image, as another machine can find it: a file, or a member of a zip."""

    name: str
    path: str
    member: str = ""


@dataclass(frozen=True)
class Job:
    """What all parts have in common: how a network answers, `top` labels of each image, from where to where."""

    ask: Callable[[], Callable[[Iterable[Any], int], Iterator[Any]]] = field(repr=False)
    description: str
    top: int
    folder: Path
    out: Path


def predict(job: Job, sources: Iterable[Source], address: str) -> Written:
    """All answers by the cluster at `address`, which must see the same files. Raises `UserError`."""
    _check(job)
    parts: dict[str, Written] = {}
    with joined(address) as ray, console.progress() as bar:
        files.write_json(job.out / JOB, {"job": job.description})
        told = bar.add_task("predicting", total=None, status="")
        task = ray.remote(num_cpus=1, max_retries=-1)(part)
        most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting: list[Any] = []
        dealt = _parts(sources)
        while True:
            for name, items in itertools.islice(dealt, most - len(waiting)):
                waiting.append(task.remote(job, name, items))
                parts[name] = Written(job.out, 0, ())
            if not waiting:
                break
            (done,), waiting = ray.wait(waiting)
            name, written = ray.get(done)
            parts[name] = written
            bar.advance(told, written.images)
    for left in job.out.glob("*.parquet"):  # of images that were there when this was begun, and aren't now
        if left.name not in parts:
            left.unlink()
    skipped = itertools.chain.from_iterable(parts[name].skipped for name in sorted(parts))
    return Written(job.out, sum(w.images for w in parts.values()), tuple(skipped))


def _check(job: Job) -> None:
    if job.out.suffix != ".parquet":
        raise UserError(f"{job.out}: --ray writes a folder of Parquet files: name it .parquet")
    if job.out.is_file():
        raise UserError(f"{job.out}: is a file; --ray writes a folder of Parquet files")
    if (job.out / JOB).exists():
        if files.read_json(job.out / JOB, ("job",), "predict --ray")["job"] != job.description:
            raise UserError(f"{job.out}: has the answers of another network, or to other options; name a new folder")
    elif job.out.exists() and any(job.out.iterdir()):
        raise UserError(f"{job.out}: isn't empty, and isn't of predict --ray; name a new folder")


def _parts(sources: Iterable[Source]) -> Iterator[tuple[str, list[Item]]]:
    """Images in parts, each with its file's name: its place among them, and a digest of what it has."""
    each = iter(sources)
    for number in itertools.count():
        items = [_item(s) for s in itertools.islice(each, SIZE)]
        if not items:
            return
        digest = hashlib.sha256(json.dumps([(i.path, i.member) for i in items]).encode()).hexdigest()
        yield f"part-{number:06d}-{digest[:16]}.parquet", items


def _item(source: Source) -> Item:
    if isinstance(source.path, Path):
        return Item(source.name, str(source.path))
    return Item(source.name, str(source.path.filename), source.member)


def part(job: Job, name: str, items: Sequence[Item]) -> tuple[str, Written]:
    """Answer a part, on whichever machine this runs, unless its file is there; its name, and what is in it."""
    os.chdir(job.folder)  # where the command was given: its paths may be relative
    path = job.out / name
    if path.exists():
        return name, _read(path)
    opened = functools.cache(zipfile.ZipFile)
    sources = [Source(i.name, opened(i.path), i.member) if i.member else Source(i.name, Path(i.path)) for i in items]
    return name, answers.write(_network(job)(sources, job.top), path)


_networks: dict[str, Any] = {}  # of this process, by what they were asked: loaded once for all parts


def _network(job: Job) -> Callable[[Iterable[Any], int], Iterator[Any]]:
    if job.description not in _networks:
        _networks[job.description] = job.ask()
    found: Callable[[Iterable[Any], int], Iterator[Any]] = _networks[job.description]
    return found


def _read(path: Path) -> Written:
    import pyarrow.parquet as pq

    errors = pq.read_table(path, columns=["error"])["error"].to_pylist()
    return Written(path, len(errors), tuple(e for e in errors if e))


def described(model: Path, asked: object, top: int) -> str:
    """What answers depend on besides the images: the network, by its content, and all options."""
    return f"{files.sha256(engines.resolve(model))} {asked} top={top}"
