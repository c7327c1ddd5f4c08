"""`mobilenets distill`: a small network that learns from a larger one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from cyclopts import Parameter

from mobilenets import console, processor, tasks
from mobilenets.arch.heads import LOGITS
from mobilenets.arguments import DataSource, StrPath, as_path, checked, seconds, several
from mobilenets.commands.options import Words
from mobilenets.commands.train import pretrained
from mobilenets.data import checks
from mobilenets.data.dataset import Data, Split, cache_side, gather, renumbered
from mobilenets.data.open import open_unlabelled
from mobilenets.data.source import Reading, spelled
from mobilenets.deploy.foreign import Foreign
from mobilenets.errors import UserError
from mobilenets.model import imagenet
from mobilenets.model.bundle import Bundle
from mobilenets.model.convert import starts
from mobilenets.tasks.detect.config import DetectorOptions
from mobilenets.tasks.embed.options import EmbedOptions
from mobilenets.tasks.lesson import Instructed
from mobilenets.tasks.task import Matched, Shaped, Task, Teaching
from mobilenets.training import distributed as processes
from mobilenets.training import loggers, recipes, run
from mobilenets.training import trainer as train
from mobilenets.training.calibrated import Calibration, recorded
from mobilenets.training.distill import TEACHER, Distiller, _at_once
from mobilenets.training.recipes import Distillation, Overrides

if TYPE_CHECKING:
    from mobilenets.training.teachers import Teacher


@checked
def distill(
    teacher: DataSource,
    source: DataSource,
    *,
    out: StrPath | None = None,
    task: str = "classify",
    arch: str | None = None,
    alpha: float | None = None,
    resolution: int | None = None,
    recipe: str | None = None,
    overrides: Annotated[Overrides | None, Parameter(name="*")] = None,
    calibration: Annotated[Calibration | None, Parameter(name="*")] = None,
    unlabelled: bool = False,
    distillation: Annotated[Distillation | None, Parameter(name="*")] = None,
    detector: Annotated[DetectorOptions | None, Parameter(name="*")] = None,
    embedding: Annotated[EmbedOptions | None, Parameter(name="*")] = None,
    foreign: Annotated[Foreign | None, Parameter(name="*")] = None,
    cache: StrPath | None = None,
    init: DataSource | None = None,
    weights: StrPath | None = None,
    seed: int = 0,
    val: float | None = None,
    time: str | float | None = None,
    resume: bool = False,
    log: Words = loggers.DEFAULT,
    skip_bad: bool = False,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    yes: bool = False,
    root: StrPath | None = None,
) -> Bundle | None:
    """Train a small network on what a larger one says of the images.

    Parameters
    ----------
    teacher
        Bundle, run or exported file; or torchvision:NAME, timm:NAME with their published weights. Of a detector, a
        student with the same anchors learns all that these say; any other, the boxes that the teacher finds.
    source
        Folder or zip of class folders, or a set's name. With --unlabelled, any folder or zip of images.
    out
        Folder of the run: checkpoints, logs, and the bundle in OUT/float. By default in runs/, by the names of the data
        and the network.
    task
        What the networks are for: classify, attributes (tags, any number for an image), detect (boxes), geolocate,
        or embed (vectors that are near where two images show the same: the student's become the teacher's).
    arch
        Network: v1, v2, v3-large, ... (`mobilenets list`); v2 if left out.
    alpha
        Width multiplier, above 0 and at most 2; 1 if left out.
    resolution
        Input height and width in pixels; if left out, that of --init, or the network's own, or less where the images
        or what the teacher sees of them are smaller.
    recipe
        modern (from scratch), finetune, cifar, ...; by default modern, or finetune with --init; of a detector, detect,
        from pretrained weights of its body where there are some.
    unlabelled
        The images have no labels, or none that matter: the student learns the teacher's classes, and its scores say
        how often it agrees with the teacher.
    cache
        Folder for the teacher's answers, which several students can share; OUT/teacher by default.
    init
        What to start from: a bundle or run, a file of weights of any kind that import takes, or published weights by
        name (keras:v2-1.0-224): its network, and its weights as far as the classes allow.
    weights
        Folder of pretrained weights, where published ones may be before they are fetched.
    seed
        Seed of everything random: split, initial weights, order, augmentation.
    val
        Share of the training images that choose the epoch, where the data has no val split; a fifth if left out, or a
        tenth where there is a test split; of unlabelled images always a tenth.
    time
        How long training may take, as 10m or 1h30m: in fewer epochs than the recipe's, as many as fit.
    resume
        Go on with a run that was stopped.
    log
        Where losses and scores go beside OUT/logs/metrics.csv: tensorboard, mlflow, wandb, with commas between; csv for
        that file alone.
    skip_bad
        Go on without damaged images.
    yes
        Go on though the folders don't look like classes.
    root
        Where copies of named sets are, or go; where a table's paths start, if not at its own folder.

    Returns
    -------
    Bundle
        What was trained, as it is in OUT/float: the weights of the best epoch, float32, and the card with its score.
        None on all processes but the first.

    Raises
    ------
    UserError
        For data, a network, a recipe or a bundle that isn't there, damaged images, numbers that can't be, a folder that
        has another run. `Interrupted` on Ctrl-C: `resume` goes on with it.

    Examples
    --------
    >>> import mobilenets
    >>> made = mobilenets.distill(
    ...     "runs/flowers",
    ...     "flowers",
    ...     out="runs/small",
    ...     arch="v1",
    ...     alpha=0.25,
    ...     resolution=32,
    ...     overrides=mobilenets.Overrides(epochs=1, workers=0),
    ...     distillation=mobilenets.Distillation(temperature=2, views=2),
    ... )
    >>> made.card.recipe["teacher"]["temperature"]
    2
    """
    from mobilenets.training.teachers import open_teacher

    teacher, source, root = str(teacher), spelled(source, reading), as_path(root)
    limit = seconds(time, "--time")
    log = several(log)
    loggers.check(log)
    how = distillation or Distillation()
    start = starts.opened(init, as_path(weights)) if init else None
    asked = tasks.with_options(tasks.find_trained(task), {"detect": detector, "embed": embedding}, start)
    if start is None and recipe is None and isinstance(asked, Shaped):
        start = pretrained(asked, arch, alpha, as_path(weights))
        arch, alpha = (arch, alpha) if start is None else (None, None)
    usual = asked.recipes if isinstance(asked, Shaped) else ("finetune", "modern")
    chosen = recipes.recipe(recipe or usual[start is None], overrides)
    vectors = isinstance(asked, Matched)
    if how.labels is None:
        how = dataclasses.replace(how, labels=0.0 if unlabelled or vectors else how.share)
    if isinstance(asked, Matched):
        how = how if how.embedding else dataclasses.replace(how, embedding=1.0)
        asked = asked if how.share else asked.taught()
    loaded = open_teacher(teacher, processor.cores(), foreign)
    if how.embedding and not loaded.width:
        raise UserError(f"{teacher} shows no embedding, as a file doesn't: leave out --embedding, or name its bundle")
    if loaded.task != asked.name and (how.share < 1 or unlabelled):
        raise UserError(f"{teacher} is for {loaded.task}, and the student for {task}: --task {loaded.task}")
    if vectors:
        _check_vectors(loaded, asked, unlabelled)
    elif isinstance(asked, Instructed) and unlabelled:
        raise UserError(f"--unlabelled is of images' labels: for {task}, a student is scored by what is true")
    elif not isinstance(asked, Teaching | Instructed) and (how.share < 1 or unlabelled):
        raise UserError(
            f"the answers for {task} aren't learned from a teacher, its embedding can be (--labels 1 --embedding 1)"
        )
    data = open_unlabelled(source, root, seed) if unlabelled else asked.open(source, root, seed, val)
    classes = loaded.labels if unlabelled else data.labels
    by_label = loaded.task == asked.name and not isinstance(asked, Instructed)
    columns = _columns(loaded.labels, classes) if by_label else ()
    if not columns and how.share < 1 and not vectors and not isinstance(asked, Instructed):
        stranger = next(c for c in classes if c not in loaded.labels)
        raise UserError(
            f"{source}: class {stranger!r} isn't one the teacher knows: match its embedding instead (--labels 1 "
            "--embedding 1), or learn its classes (--unlabelled)"
        )
    sees = loaded.preprocess.resolution
    config_of = asked.config(dataclasses.replace(data, labels=classes))
    net = train.network(arch, alpha, resolution, start, asked, config_of, data, sees)
    lesson = None
    if isinstance(asked, Instructed) and how.share < 1:
        if how.embedding:
            raise UserError(
                f"for {task}, answers or an embedding are learned: leave out --embedding, or add --labels 1"
            )
        lesson = asked.lesson(loaded.labels, loaded.config, tasks.config_of(asked, data, net), loaded.taps)
    config = {
        "verb": "distill", "task": task, "teacher": loaded.digest, "source": source, "unlabelled": unlabelled,
        "arch": net.to_json(),
        "recipe": chosen.to_json(), "how": dataclasses.asdict(how), "init": start.digest if start else None,
        "seed": seed, **({"val": data.val_fraction} if val is not None else {}),
        **({"time": limit} if limit else {}), **recorded(calibration),
        **(dataclasses.asdict(embedding) if embedding else {}), **(dataclasses.asdict(detector) if detector else {}),
        **(dataclasses.asdict(foreign) if foreign and foreign.given else {}),
    }  # fmt: skip
    out = as_path(out) or run.folder(source, net.title, "distilled")
    _, rank = processes.world()
    with run.taken(out, config, resume, data):
        if rank == 0:
            checks.check(data, skip_bad, cache_side(max(net.input_size)), yes or unlabelled)
        else:
            checks.scan(data, side=cache_side(max(net.input_size)))
        if unlabelled:
            assert isinstance(asked, Teaching)
            data.labels = classes
            for split in data.splits.values():
                split.targets = processes.from_rank_0(_read(loaded, split, asked) if rank == 0 else None)
        elif columns and rank == 0 and isinstance(asked, Teaching):
            held = data.split("val")
            true = renumbered(held.targets, np.asarray(columns), len(loaded.labels))
            right = asked.agreement(_read(loaded, held, asked), true)
            console.note(f"teacher  {loaded.name}: {right:.2f}% {asked.agreeing} on val")
        distiller = Distiller(loaded, how, columns, as_path(cache) or out / TEACHER, lesson)
        trained = train.train_bundle(
            data,
            net,
            chosen,
            out,
            task=asked,
            seed=seed,
            resume=resume,
            seconds=limit,
            init=start,
            distiller=distiller,
            calibration=calibration,
            log=log,
        )
    if rank != 0:
        return None
    run.say_where(out)
    return trained


def _check_vectors(teacher: Teacher, task: Task, unlabelled: bool) -> None:
    """Raises `UserError` where a teacher's vectors can't be a student's."""
    wide = int(task.config(Data("", (), {}))["dim"])
    if teacher.width != wide:
        raise UserError(
            f"{teacher.name} gives vectors of {teacher.width}, the student has {wide}: --dim {teacher.width}"
        )
    if unlabelled:
        raise UserError("vectors are scored by who is on the images: folders or a table of identities, no --unlabelled")


def _columns(teacher: tuple[str, ...], student: tuple[str, ...]) -> tuple[int, ...]:
    """Where the teacher has each of the student's classes; empty unless it has all of them."""
    ids = tuple(imagenet.classes()) if imagenet.is_imagenet(teacher) else ()
    names = ids if set(student) <= set(ids) else teacher
    at = {c: i for i, c in enumerate(names)}
    return tuple(at[c] for c in student) if set(student) <= set(at) else ()


def _read(teacher: Teacher, split: Split, task: Teaching) -> npt.NDArray[Any]:
    """What the teacher says of each image, seen as in a prediction, as its task's targets are: [N, ...]."""
    import torch

    said, at_once = [], _at_once()
    with console.progress() as bar:
        asking = bar.add_task(f"asking the teacher of {split.name}", total=len(split), status="")
        for at in range(0, len(split), at_once):
            chunk = split.subset(range(at, min(at + at_once, len(split))))
            pixels = torch.from_numpy(gather(chunk, teacher.preprocess).pixels).permute(0, 3, 1, 2)
            said.append(task.read(teacher(pixels)[LOGITS].cpu().numpy(), teacher.trust))
            bar.advance(asking, len(chunk))
    return np.concatenate(said)
