"""Distillation: a small network learns from what a larger one says, with labels or without.

V1 paper, sections 4.5 to 4.7; soft targets as in Hinton, Vinyals, Dean (arXiv 1503.02531).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mobilenets import console, files, processor
from mobilenets.arch.graph import Graph
from mobilenets.arch.heads import LOGITS
from mobilenets.data.alignment import Aligned, Template
from mobilenets.data.dataset import Keyed, Read, Split, gather
from mobilenets.errors import UserError
from mobilenets.training import distributed as processes
from mobilenets.training.recipes import Distillation, Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from mobilenets.tasks.lesson import Lesson
    from mobilenets.tasks.task import Objective
    from mobilenets.training.loader import TrainImages
    from mobilenets.training.teachers import Teacher


VIEWS = 16
CACHE_BYTES = 2 << 30
TEACHER = "teacher"


@dataclass(frozen=True)
class CachedAnswers:
    """A teacher's answers to `views` views of each training image, in files: float16 [images, K] each."""

    answers: tuple[npt.NDArray[np.float16], ...]

    @property
    def views(self) -> int:
        return len(self.answers)

    def __call__(self, view: int, i: int | npt.NDArray[np.int64]) -> Tensor:
        import torch

        return torch.from_numpy(self.answers[view][i].astype(np.float32))


@dataclass(frozen=True)
class Distiller:
    """A teacher, and how its student learns. `columns`: its logits of the student's classes; empty: not compared.

    `lesson`: what is learned instead where a task's answers aren't logits of an image's classes.
    """

    teacher: Teacher
    how: Distillation
    columns: tuple[int, ...]
    cache: Path
    lesson: Lesson | None = None

    @property
    def width(self) -> int:
        """Numbers beside the logits: of the embedding, or of the lesson."""
        if self.lesson:
            return self.lesson.width
        return self.teacher.width if self.how.embedding else 0

    def ask(self, images: Tensor) -> Tensor:
        """Answers to uint8 [N, 3, H, W]: float32 [N, columns + width]."""
        import torch

        from mobilenets.training.teachers import EMBEDDING

        said = self.teacher(images)
        if self.lesson:
            return self.lesson.read(said)
        parts = [said[LOGITS][:, list(self.columns)]] if self.columns else []
        parts += [said[EMBEDDING]] if self.width else []
        return torch.cat(parts, dim=1) if parts else torch.empty(len(images), 0)

    def objective(
        self, objective: Objective, graph: Graph, border: Sequence[str], live: bool, matched: bool = False
    ) -> Objective:
        """The loss of a student whose task's part reads `border`; its teacher asked in each step or not.

        `matched`: the one value in `border` is to become the teacher's embedding itself.

        Raises `UserError` where an embedding is to be compared, and that isn't one value.
        """
        from mobilenets.training.objectives import Distilled

        if self.lesson:
            return self.lesson.objective(objective, self.how, self.ask if live else None)
        if self.width and len(border) != 1:
            raise UserError(f"what this network's task reads isn't one embedding, but {len(border)} values of the body")
        embedding = border[0] if self.width else ""
        width = math.prod(graph.shapes[embedding]) if embedding else 0
        ask = self.ask if live else None
        return Distilled(objective, self.how, width, len(self.columns), self.width, ask, embedding, matched)

    def ask_beforehand(self, images: TrainImages, recipe: Recipe, kind: str) -> CachedAnswers | None:
        """Have the teacher look at each training image's views, once, unless it is to be asked in each step.

        What it says is kept under `cache`, by everything that it depends on: other students with the same data,
        augmentation and seed find it there.
        """
        n = len(images)
        wanted = VIEWS if self.how.views is None else self.how.views
        views = 1 if kind == "none" and wanted else min(wanted, recipe.epochs)
        size = 2 * n * (len(self.columns) + self.width) * views
        if not views or (self.how.views is None and size > CACHE_BYTES):
            return None
        depends = {
            "teacher": self.teacher.digest, "columns": self.columns, "width": self.width, "seed": images.seed,
            **({"lesson": self.lesson.learns} if self.lesson else {}),
            "views of": hashlib.sha256("\n".join(images.split.names).encode()).hexdigest(),
            "augmentation": f"{type(images).__name__} {images.transform!r}", "side": images.side,
        }  # fmt: skip
        key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
        folder, shape = self.cache / key, (n, len(self.columns) + self.width)
        if processes.first_here():
            self._fill(images, folder, [v for v in range(views) if _kept(folder, v, shape) is None])
        processes.from_rank_0(None)  # until the files are there
        answers = [_kept(folder, v, shape) for v in range(views)]
        whole = tuple(a for a in answers if a is not None)
        if len(whole) < views:
            raise UserError(f"{folder}: the teacher's answers were altered meanwhile; run the command again")
        return CachedAnswers(whole)

    def _fill(self, images: TrainImages, folder: Path, missing: Sequence[int]) -> None:
        import torch

        from mobilenets.training.loader import as_it_is, in_processes

        workers = 0 if len(images.split.cache) == len(images.split) else processor.cores()
        with console.progress() as bar:
            task = bar.add_task("asking the teacher", total=len(missing) * len(images), status="")
            for view in missing:
                keys: Any = [(view, i) for i in range(len(images))]
                said = []
                for batch in in_processes(images, workers, sampler=keys, batch_size=_at_once(), collate_fn=as_it_is):
                    said.append(self.ask(batch[0]).to("cpu", torch.float16))
                    bar.advance(task, len(batch[0]))
                _save(folder, view, torch.cat(said))

    def vectors(self, training: Split, epochs: int) -> CachedAnswers:
        """The teacher's embedding of each training image as it is, however it is varied: the same in all epochs.

        Of images that are aligned, as the teacher takes them. Kept under `cache` by teacher and images, so that other
        students find them.
        """
        seen = dataclasses.replace(training, read=realigned(training.read, self.teacher.template), cache={})
        template = self.teacher.template
        depends = {
            "teacher": self.teacher.digest, "width": self.width, "preprocess": self.teacher.preprocess.to_json(),
            "template": template and template.to_json(), "variant": self.teacher.variant,
            "images": hashlib.sha256("\n".join(training.names).encode()).hexdigest(),
            "aligned": repr(_ways(training.read)),
        }  # fmt: skip
        key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
        folder, shape = self.cache / key, (len(training), self.width)
        if processes.first_here() and _kept(folder, 0, shape) is None:
            _save(folder, 0, self._of_each(seen))
        processes.from_rank_0(None)  # until the file is there
        found = _kept(folder, 0, shape)
        if found is None:
            raise UserError(f"{folder}: the teacher's vectors were altered meanwhile; run the command again")
        return CachedAnswers((found,) * epochs)

    def _of_each(self, split: Split) -> Tensor:
        """The embedding [N, width] of each image of a split, as in a prediction."""
        import torch

        from mobilenets.training.teachers import EMBEDDING

        said, at_once = [], _at_once()
        with console.progress() as bar:
            task = bar.add_task("asking the teacher", total=len(split), status="")
            for at in range(0, len(split), at_once):
                chunk = split.subset(range(at, min(at + at_once, len(split))))
                pixels = gather(chunk, self.teacher.preprocess).pixels
                if len(pixels) < len(chunk):
                    raise UserError(f"{split.name}: an image can't be read as the teacher takes it; run `data check`")
                images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
                said.append(self.teacher(images)[EMBEDDING].to("cpu", torch.float16))
                bar.advance(task, len(chunk))
        return torch.cat(said)

    def to_json(self) -> dict[str, Any]:
        """What a student's card says of its teacher."""
        name = PurePath(self.teacher.name).name
        return {TEACHER: {"name": name, "digest": self.teacher.digest, **dataclasses.asdict(self.how)}}


def _ways(read: Any) -> Any:
    """How images are aligned as they are read; None where they aren't."""
    if isinstance(read, Aligned):
        return read.where, read.to
    return _ways(read.read) if isinstance(read, Keyed) else None


def realigned(read: Read, to: Template | None) -> Read:
    """What reads images, aligned to another template. Raises `UserError` where nothing says how they lie."""
    if to is None:
        return read
    if isinstance(read, Aligned):
        return dataclasses.replace(read, to=to)
    if isinstance(read, Keyed):
        return Keyed(realigned(read.read, to), read.keys)
    raise UserError(
        f"the teacher takes faces aligned as {to.name} has them, and nothing says where these images' landmarks are: "
        "--landmarks FILE has them, or --aligned NAME says how they are aligned"
    )


def _save(folder: Path, view: int, said: Tensor) -> None:
    """Keep answers float16 [N, K] in a file that has its digest in its name."""
    whole = io.BytesIO()
    np.save(whole, said.numpy())
    digest = hashlib.sha256(whole.getbuffer()).hexdigest()
    with files.atomic_file(folder / f"view-{view:02d}-{digest}.npy") as tmp:
        tmp.write_bytes(whole.getbuffer())


def _kept(folder: Path, view: int, shape: tuple[int, int]) -> npt.NDArray[np.float16] | None:
    """The answers to a view, whose digest is in the file's name; None where they are missing. Damaged ones go."""
    for path in folder.glob(f"view-{view:02d}-*.npy"):
        with contextlib.suppress(OSError, ValueError):
            if files.sha256(path) == path.stem.rpartition("-")[2]:
                found: npt.NDArray[np.float16] = np.load(path, mmap_mode="r")
                if found.shape == shape and found.dtype == np.float16:
                    return found
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def _at_once() -> int:
    """Images that a teacher is asked about at once: on a processor, as many as its cache has room for."""
    import torch

    return 256 if torch.cuda.is_available() else 32
