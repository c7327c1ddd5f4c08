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
from mobilenets.errors import UserError
from mobilenets.training import distributed as processes
from mobilenets.training.recipes import Distillation, Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from mobilenets.tasks.task import Objective
    from mobilenets.training.loader import TrainImages
    from mobilenets.training.objectives import Distilled
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

    def __call__(self, view: int, i: int) -> Tensor:
        import torch

        return torch.from_numpy(self.answers[view][i].astype(np.float32))


@dataclass(frozen=True)
class Distiller:
    """A teacher, and how its student learns. `columns`: its logits of the student's classes; empty: not compared."""

    teacher: Teacher
    how: Distillation
    columns: tuple[int, ...]
    cache: Path

    @property
    def width(self) -> int:
        return self.teacher.width if self.how.embedding else 0

    def ask(self, images: Tensor) -> Tensor:
        """Answers to uint8 [N, 3, H, W]: float32 [N, columns + width]."""
        import torch

        from mobilenets.training.teachers import EMBEDDING

        said = self.teacher(images)
        parts = [said[LOGITS][:, list(self.columns)]] if self.columns else []
        parts += [said[EMBEDDING]] if self.width else []
        return torch.cat(parts, dim=1) if parts else torch.empty(len(images), 0)

    def objective(self, objective: Objective, graph: Graph, border: Sequence[str], live: bool) -> Distilled:
        """The loss of a student whose task's part reads `border`; its teacher asked in each step or not.

        Raises `UserError` where an embedding is to be compared, and that isn't one value.
        """
        from mobilenets.training.objectives import Distilled

        if self.width and len(border) != 1:
            raise UserError(f"what this network's task reads isn't one embedding, but {len(border)} values of the body")
        embedding = border[0] if self.width else ""
        width = math.prod(graph.shapes[embedding]) if embedding else 0
        ask = self.ask if live else None
        return Distilled(objective, self.how, width, len(self.columns), self.width, ask, embedding)

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
            "views of": hashlib.sha256("\n".join(images.split.names).encode()).hexdigest(),
            "augmentation": repr(images.transform), "side": images.side,
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

        from mobilenets.training.loader import in_processes

        cores = processor.cores()
        workers = 0 if len(images.split.cache) == len(images.split) else cores
        with console.progress() as bar:
            task = bar.add_task("asking the teacher", total=len(missing) * len(images), status="")
            for view in missing:
                keys: Any = [(view, i) for i in range(len(images))]
                said = []
                for batch in in_processes(images, workers, batch_size=_at_once(), sampler=keys):
                    said.append(self.ask(batch[0]).to("cpu", torch.float16))
                    bar.advance(task, len(batch[0]))
                whole = io.BytesIO()
                np.save(whole, torch.cat(said).numpy())
                digest = hashlib.sha256(whole.getbuffer()).hexdigest()
                with files.atomic_file(folder / f"view-{view:02d}-{digest}.npy") as tmp:
                    tmp.write_bytes(whole.getbuffer())

    def to_json(self) -> dict[str, Any]:
        """What a student's card says of its teacher."""
        name = PurePath(self.teacher.name).name
        return {TEACHER: {"name": name, "digest": self.teacher.digest, **dataclasses.asdict(self.how)}}


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
