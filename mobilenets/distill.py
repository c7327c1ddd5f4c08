"""Distillation: a small network learns from what a larger one says, with labels or without.

V1 paper, sections 4.5 to 4.7; soft targets as in Hinton, Vinyals, Dean (arXiv 1503.02531).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from cyclopts import Parameter

from mobilenets import bundle as bundles
from mobilenets import checks, console, data, files, imagenet, processes, recipes, run, train
from mobilenets.bundle import Bundle
from mobilenets.data import Split
from mobilenets.errors import UserError
from mobilenets.recipes import Overrides, Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from mobilenets.loader import TrainImages
    from mobilenets.objectives import Distilled, Labels
    from mobilenets.teachers import Teacher

VIEWS = 16
CACHE_BYTES = 2 << 30
TEACHER = "teacher"


@dataclass(frozen=True)
class Distillation:
    """How the parts of the loss count; `objectives.Distilled` says what they are."""

    temperature: float
    labels: float
    embedding: float
    views: int | None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"temperature must be above 0, not {self.temperature}")
        if not 0 <= self.labels <= 1:
            raise UserError(f"labels is a share of the loss, from 0 to 1, not {self.labels}")
        if self.embedding < 0:
            raise UserError(f"embedding must be 0 or more, not {self.embedding}")
        if self.views is not None and self.views < 0:
            raise UserError(f"views must be 0 or more, not {self.views}")


@dataclass(frozen=True)
class Views:
    """A teacher's answers to `views` views of each training image, in files: float16 [images, K] each."""

    answers: tuple[npt.NDArray[np.float16], ...]

    @property
    def views(self) -> int:
        return len(self.answers)

    def __call__(self, view: int, i: int) -> Tensor:
        import torch

        return torch.from_numpy(self.answers[view][i].astype(np.float32))


@dataclass(frozen=True)
class Teaching:
    """A teacher, and how its student learns. `columns`: its logits of the student's classes; empty: not compared."""

    teacher: Teacher
    how: Distillation
    columns: tuple[int, ...]
    cache: Path

    @property
    def width(self) -> int:
        return self.teacher.width if self.how.embedding else 0

    def ask(self, images: Tensor) -> Tensor:
        """Answers to uint8 [N, 3, R, R]: float32 [N, columns + width]."""
        import torch

        said = self.teacher(images)
        embedding = said[:, len(self.teacher.labels) :] if self.width else said[:, :0]
        return torch.cat([said[:, list(self.columns)], embedding], dim=1)

    def objective(self, labels: Labels, width: int, live: bool) -> Distilled:
        """The loss of a student with `width` numbers before its classifier, its teacher asked in each step or not."""
        from mobilenets.objectives import Distilled

        return Distilled(labels, self.how, width, len(self.columns), self.width, self.ask if live else None)

    def ask_beforehand(self, images: TrainImages, recipe: Recipe, kind: str) -> Views | None:
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
            "augmentation": repr(images.transform),
        }  # fmt: skip
        key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
        paths = [self.cache / key / f"view-{v:02d}.npy" for v in range(views)]
        if processes.first_here():
            self._fill(images, [(v, p) for v, p in enumerate(paths) if not p.exists()])
        processes.from_rank_0(None)  # until the files are there
        return Views(tuple(np.load(p, mmap_mode="r") for p in paths))

    def _fill(self, images: TrainImages, missing: list[tuple[int, Path]]) -> None:
        import torch
        from torch.utils.data import DataLoader

        cores = os.cpu_count() or 1
        workers = 0 if len(images.split.cache) == len(images.split) else cores
        with console.progress() as bar:
            task = bar.add_task("asking the teacher", total=len(missing) * len(images), status="")
            for view, path in missing:
                keys: Any = [(view, i) for i in range(len(images))]
                said = []
                for batch in DataLoader(images, _at_once(), sampler=keys, num_workers=workers):
                    said.append(self.ask(batch[0]).to("cpu", torch.float16))
                    bar.advance(task, len(batch[0]))
                with files.atomic_file(path) as tmp, tmp.open("wb") as f:
                    np.save(f, torch.cat(said).numpy())

    def to_json(self) -> dict[str, Any]:
        """What a student's card says of its teacher."""
        return {TEACHER: {"name": self.teacher.name, "digest": self.teacher.digest, **dataclasses.asdict(self.how)}}


def distill(
    teacher: str,
    source: str,
    *,
    out: Path | None = None,
    arch: str | None = None,
    alpha: float | None = None,
    resolution: int | None = None,
    recipe: str | None = None,
    overrides: Annotated[Overrides | None, Parameter(name="*")] = None,
    unlabelled: bool = False,
    temperature: float = 4.0,
    labels: float | None = None,
    embedding: float = 0.0,
    views: int | None = None,
    cache: Path | None = None,
    init: Path | None = None,
    seed: int = 0,
    resume: bool = False,
    skip_bad: bool = False,
    root: Path | None = None,
) -> Bundle | None:
    """Train a small network on what a larger one says of the images.

    Parameters
    ----------
    teacher
        Bundle, run or exported file; or torchvision:NAME, timm:NAME with their published weights.
    source
        Folder or zip of class folders, or a set's name. With --unlabelled, any folder or zip of images.
    out
        Folder of the run: checkpoints, logs, and the bundle in OUT/float. By default in runs/, by the names of the data
        and the network.
    arch
        Network: v1, v2, v3-large, ... (`mobilenets list`); v2 if left out.
    alpha
        Width multiplier, above 0 and at most 2; 1 if left out.
    resolution
        Input height and width in pixels; that of --init, or the network's own, if left out.
    recipe
        modern (from scratch), finetune, cifar, ...; by default modern, or finetune with --init.
    unlabelled
        The images have no labels, or none that matter: the student learns the teacher's classes, and its scores say
        how often it agrees with the teacher.
    temperature
        Softens the teacher's probabilities and the student's, so that small ones count.
    labels
        Share of the loss that the true classes have; by default 0.1, and 0 with --unlabelled.
    embedding
        Weight of the squared difference to the teacher's embedding (what its classifier reads); 0 is off.
    views
        Random views of each image that the teacher is asked about, once; they come round again. 0: it is asked about
        every image in every step. By default 16, or 0 where the answers would take over 2 GiB.
    cache
        Folder for the teacher's answers, which several students can share; OUT/teacher by default.
    init
        Bundle to start from: its network, and its weights as far as the classes allow.
    seed
        Seed of everything random: split, initial weights, order, augmentation.
    resume
        Go on with a run that was stopped.
    skip_bad
        Go on without damaged images.
    root
        Where copies of named sets are, or go.
    """
    from mobilenets.teachers import open_teacher

    chosen = recipes.recipe(recipe or ("finetune" if init else "modern"), overrides)
    how = Distillation(temperature, (0.0 if unlabelled else 0.1) if labels is None else labels, embedding, views)
    start = Bundle.load(bundles.find_bundle(init)) if init else None
    knows = open_teacher(teacher, threads=os.cpu_count() or 1)
    if embedding and not knows.width:
        raise UserError(f"{teacher} shows no embedding, as a file doesn't: leave out --embedding, or name its bundle")
    d = data.open_unlabelled(source, root, seed) if unlabelled else data.open_data(source, root, seed)
    classes = knows.labels if unlabelled else d.labels
    columns = _columns(knows.labels, classes)
    if not columns and how.labels < 1:
        stranger = next(c for c in classes if c not in knows.labels)
        raise UserError(
            f"{source}: class {stranger!r} isn't one the teacher knows: match its embedding instead (--labels 1 "
            "--embedding 1), or learn its classes (--unlabelled)"
        )
    net = train.network(arch, alpha, resolution, start, len(classes))
    config = {
        "verb": "distill", "teacher": knows.digest, "source": source, "unlabelled": unlabelled, "arch": net.to_json(),
        "recipe": chosen.to_json(), "how": dataclasses.asdict(how), "init": start.digest if start else None,
        "seed": seed,
    }  # fmt: skip
    out = out or run.folder(source, net.title, "distilled")
    _, rank = processes.world()
    if rank == 0:
        run.prepare(out, config, resume)
        checks.check(d, skip_bad)
    else:
        checks.scan(d)
    if unlabelled:
        d.labels = classes
        for split in d.splits.values():
            split.targets = processes.from_rank_0(_says(knows, split) if rank == 0 else None)
    elif columns and rank == 0:
        val = d.split("val")
        right = np.asarray(columns)[val.targets] == _says(knows, val)
        console.note(f"teacher  {knows.name}: {100 * right.mean():.2f}% top-1 on val")
    teaching = Teaching(knows, how, columns, cache or out / TEACHER)
    trained = train.train_bundle(d, net, chosen, out, seed=seed, resume=resume, init=start, teaching=teaching)
    if rank != 0:
        return None
    run.say_where(out)
    return trained


def _columns(teacher: tuple[str, ...], student: tuple[str, ...]) -> tuple[int, ...]:
    """Where the teacher has each of the student's classes; empty unless it has all of them."""
    ids = tuple(imagenet.classes()) if imagenet.is_imagenet(teacher) else ()
    names = ids if set(student) <= set(ids) else teacher
    at = {c: i for i, c in enumerate(names)}
    return tuple(at[c] for c in student) if set(student) <= set(at) else ()


def _at_once() -> int:
    """Images that a teacher is asked about at once: on a processor, as many as its cache has room for."""
    import torch

    return 256 if torch.cuda.is_available() else 32


def _says(teacher: Teacher, split: Split) -> npt.NDArray[np.int64]:
    """The class that the teacher gives each image, seen as in a prediction: [N]."""
    import torch

    best, at_once = [], _at_once()
    with console.progress() as bar:
        task = bar.add_task(f"asking the teacher of {split.name}", total=len(split), status="")
        for at in range(0, len(split), at_once):
            chunk = split.subset(range(at, min(at + at_once, len(split))))
            pixels = torch.from_numpy(data.gather(chunk, teacher.preprocess).pixels).permute(0, 3, 1, 2)
            best.append(teacher(pixels)[:, : len(teacher.labels)].argmax(1).cpu().numpy())
            bar.advance(task, len(chunk))
    return np.concatenate(best)
