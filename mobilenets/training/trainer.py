"""Train a network for a task: data + Arch + recipe -> Bundle. PyTorch Lightning runs the loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenets import console, files, tasks
from mobilenets.arch import zoo
from mobilenets.arch.spec import Arch
from mobilenets.data.dataset import Data
from mobilenets.deploy import engines, evaluate
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, is_bundle
from mobilenets.model.card import Card, Metric
from mobilenets.model.encodings import tensor_shapes
from mobilenets.tasks.task import Shaped, Task
from mobilenets.training import calibrated, loggers, loop, run, zeros
from mobilenets.training.calibrated import Calibration
from mobilenets.training.distributed import from_rank_0, world
from mobilenets.training.recipes import Recipe
from mobilenets.training.run import CHECKPOINTS, FLOAT, LOGS, METRICS, RATE, START
from mobilenets.training.setup import setup

RANGE_TEST = 180  # seconds of training at least, for which half a minute of a range test is worth it
WASTED = 5  # epochs after the best one that are worth a word

if TYPE_CHECKING:
    from mobilenets.training.distill import Distiller


def network(
    arch: str | None,
    alpha: float | None,
    resolution: int | None,
    start: Bundle | None,
    task: Task,
    config: Mapping[str, Any],
    data: Data,
    most: int | None = None,
) -> Arch:
    """What to train for a task: the network of a verb's arguments, or of the bundle it starts from.

    A resolution that isn't given is the network's own, or what the images are worth if that is less, or `most`, as a
    teacher's is. Raises `UserError`.
    """
    if isinstance(task, Shaped):
        resolution = resolution or _bound_to(task, start)
    if start is None and isinstance(task, Shaped):
        return task.arch(task.network(arch, alpha, resolution), config)
    if start is None:
        made = zoo.arch(arch or "v2", 1.0 if alpha is None else alpha, resolution)
        if resolution is None:
            made = made.replace(resolution=_resolution(made, data, most))
        return task.arch(made, config)
    if arch is not None or alpha is not None:
        raise UserError("--init brings its own network: leave out --arch and --alpha")
    return task.arch(initial_arch(start, resolution or start.card.arch.resolution), config)


def _bound_to(task: Shaped, start: Bundle | None) -> int:
    """The resolution of a network that starts from one for the same task, or else the task's own."""
    same = start is not None and start.card.task == getattr(task, "name", "")
    return start.card.arch.resolution if start is not None and same else task.resolution()


def _resolution(arch: Arch, data: Data, most: int | None) -> int:
    own, side = arch.resolution, data.native_side()
    worth = [r for r in zoo.worthwhile(arch.name, side) if r <= (most or r)]
    worth = worth or [most or min(zoo.network(arch.name).resolutions)]
    if not side or worth[-1] >= own:
        return own
    less = f"a short side of {side} pixels" + (f", and the teacher sees {most}" if most else "")
    console.note(f"resolution {worth[-1]}, not {own}: the images have {less} (--resolution is for another)")
    return worth[-1]


def initial_arch(start: Bundle, resolution: int) -> Arch:
    """The network of the bundle to start from, for another resolution."""
    if start.card.precision != "float32":
        raise UserError(f"--init needs a float bundle, not {start.card.precision}")
    arch = start.dense().card.arch
    size = arch.size if resolution == arch.resolution else None
    return arch.replace(resolution=resolution, size=size)


@loop.suppress_warnings()
def train_bundle(
    data: Data,
    arch: Arch,
    recipe: Recipe,
    out: Path,
    *,
    task: Task | None = None,
    seed: int = 0,
    resume: bool = False,
    init: Bundle | None = None,
    distiller: Distiller | None = None,
    checkpoint_minutes: float = loop.MINUTES,
    seconds: float | None = None,
    calibration: Calibration | None = None,
    log: Sequence[str] = loggers.DEFAULT,
) -> Bundle:
    """Train `arch` on data that was checked already, perhaps with a teacher; writes and returns the bundle OUT/float.

    For the task, which is classification where none is named; for at most the recipe's epochs, or those of them that
    fit into so many `seconds`. It begins with the bundle OUT/start where there is one, else with `init`. `log` names
    loggers (see `loggers`). Raises `UserError` (bad numbers, a full disk, a worker process that died), `Interrupted` on
    Ctrl-C: the last checkpoint is then in `out`.
    """
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import EarlyStopping

    from mobilenets.training.callbacks import Best, EpochLog, read_checkpoint
    from mobilenets.training.deadline import PLAN, Deadline, epochs_within, planned

    size, rank = world()
    task = task or tasks.find("classify")
    primary = task.primary
    if primary is None:
        raise UserError(f"the task {task.name} has no score to train for")
    arch = arch.replace(dropout=recipe.dropout)
    config = tasks.config_of(task, data, arch)
    head = task.head(arch, config)
    start = _begin(init, arch, data, task, recipe, seed, out)
    init = start or init
    recipe = recipe if init else recipe.from_scratch(arch)
    if init and recipe.find_lr == "on" and size == 1 and (seconds is None or seconds >= RANGE_TEST):
        recipe = dataclasses.replace(recipe, lr=_rate(init, arch, data, task, recipe, seed, out), lr_batch=0)
    made = setup(data, data.split("train"), arch, recipe, seed, init, distiller, task)
    if made.measured and rank == 0:
        console.note(
            f"the BatchNorm statistics of --init don't fit what it computes, as where they were folded: measured anew "
            f"on {made.measured} training images, so that it starts as the network that it was"
        )
    if recipe.progressive < 1 and made.learner.one_size:
        if rank == 0:
            console.note(f"{arch.title} takes images of one size alone: they have it from the first epoch on")
        recipe = made.learner.recipe = dataclasses.replace(recipe, progressive=1.0)
    val, folder = data.split("val"), out / CHECKPOINTS
    callbacks: list[pl.Callback] = []
    if seconds is not None:
        fitting = epochs_within(made, len(val), seconds, size) if rank == 0 else 0
        recipe = dataclasses.replace(recipe, epochs=from_rank_0(rank or planned(out / PLAN, fitting)))
        callbacks.append(Deadline(seconds))
    if init:
        recipe = recipe.for_few_epochs(len(made.images))
    made.learner.recipe = recipe
    monitor, mode = task.monitor(recipe), primary.mode
    best = Best(folder, "best", monitor=monitor, mode=mode, enable_version_counter=False, save_on_train_epoch_end=True)
    first = f"val_{primary.name}"
    epochs = EpochLog(out / LOGS / METRICS, [first, *(name for name in made.learner.scores if name != first)])
    callbacks += [best, epochs]
    facts = {
        "arch": arch.name, "alpha": arch.alpha, "resolution": arch.resolution, "task": task.name, "seed": seed,
        "recipe": recipe.to_json(), "data": {"source": data.source, **{k: len(s) for k, s in data.splits.items()}},
        "init": init.digest if init else "", "command": run.recorded_command(out),
        **(distiller.to_json() if distiller else {}),
    }  # fmt: skip
    if recipe.patience:
        callbacks.append(EarlyStopping(monitor, mode=mode, patience=recipe.patience))
    loop.train(
        made, val, folder, resume=resume, where=out, resume_hint="go on with --resume", minutes=checkpoint_minutes,
        callbacks=callbacks, loggers=loggers.loggers(log, out, facts, first),
    )  # fmt: skip

    state = read_checkpoint(folder / "best.ckpt")
    tensors = {
        k.removeprefix("model."): v.float().contiguous().numpy() if v.is_floating_point() else v.numpy()
        for k, v in state["state_dict"].items()
        if k.startswith("model.")
    }
    epoch = int(state["epoch"]) + 1
    if rank == 0:
        _say_when(epochs.since(epoch, monitor), epoch, len(epochs.rows), recipe)
    card = Card(
        arch=arch,
        preprocess=made.preprocess,
        head=head,
        task=task.name,
        config=config,
        recipe={
            **recipe.to_json(),
            "command": run.recorded_command(out),
            "seed": seed,
            "processes": size,
            "best_epoch": epoch,
            **(zeros.pruned(init.card) if init else {}),
            **(distiller.to_json() if distiller else {}),
        },
        data=data.describe(),
        parent=init.digest if init else distiller.teacher.digest if distiller else None,
        licence=init.card.licence if init else "",
    )
    done = Bundle(card, {name: tensors[name] for name in tensor_shapes(card)})
    if rank != 0:
        return done
    score = epochs.score(epoch)
    if start and primary.rank(start.card.metrics[0].value) >= primary.rank(score):
        console.note(
            f"no epoch beat what training began with ({primary.say(start.card.metrics[0].value)}, "
            f"epoch {epoch} {primary.say(score)}): that is what is kept"
        )
        score = start.card.metrics[0].value
        done = Bundle(start.card.replace(recipe={**card.recipe, "best_epoch": 0}), start.tensors)
    elif made.precision != "32-true":  # the bundle answers in float32, and its card says how well
        engine = engines.module("torch").quickest(done)
        score = evaluate.scored(engine, made.preprocess, task.metrics(card), data, "val").value
    done = calibrated.calibrate(done, data, calibration, task)
    metric = Metric(primary.name, round(score, 4), data.source, "val", len(val), primary.unit, primary.higher_is_better)
    return Bundle(done.card.replace(metrics=(metric,)), done.tensors).save(out / FLOAT)


def _begin(
    init: Bundle | None, arch: Arch, data: Data, task: Task, recipe: Recipe, seed: int, out: Path
) -> Bundle | None:
    """The bundle OUT/start, with its score on val: `init` with a head that answers for the data, made where it isn't.

    Of a detector of one stage what it has of another; else the linear head that fits the data best. None where there is
    no `init`, where it answers for the data's classes already, or nothing makes such a head. What was pruned of `init`
    stays so.
    """
    from mobilenets.training import probing

    path = out / START
    if world()[1] == 0 and not is_bundle(path) and init:
        made: Bundle | None = None
        if isinstance(task, Shaped):
            made = _whole(init, arch, data, task)
        elif recipe.probe == "on" and not complete(init, data, task):
            balanced = recipe.class_weights == "balanced"
            fitted = probing.with_head(init, initial_arch(init, arch.resolution), data, task, seed, balanced)
            made = fitted.bundle if fitted else None
        if made:
            card = made.card.replace(recipe={**made.card.recipe, **zeros.pruned(init.card)})
            probing.scored(Bundle(card, made.tensors), data, task).save(path)
    return Bundle.load(path) if from_rank_0(is_bundle(path)) else None


def _whole(init: Bundle, arch: Arch, data: Data, task: Task) -> Bundle | None:
    """The network that a training starts with, where it has all of its weights from `init`."""
    config = tasks.config_of(task, data, arch)
    preprocess = dataclasses.replace(init.card.preprocess, resolution=arch.resolution, size=arch.size)
    card = Card(
        arch, preprocess, task.head(arch, config), task=task.name, config=config, data=data.describe(),
        parent=init.digest or None, licence=init.card.licence,
    )  # fmt: skip
    tensors, names = task.transfer(init, config), tensor_shapes(card)
    return Bundle(card, {name: tensors[name] for name in names}) if names.keys() <= tensors.keys() else None


def _rate(init: Bundle, arch: Arch, data: Data, task: Task, recipe: Recipe, seed: int, out: Path) -> float:
    """The rate that a range test finds for `init`, or the recipe's; kept in OUT, so that a resumed run has it too."""
    from mobilenets.training import tuning

    path = out / RATE
    if not path.exists():
        found, rates, losses = tuning.borne(data, tuning.Trial(data.source, None, arch, recipe, init, seed, task.name))
        files.write_json(path, {"lr": found or recipe.peak_lr, "rates": rates, "losses": losses})
        console.note(
            f"learning rate {found or recipe.peak_lr:.2g}, half of what {arch.title} bears before its loss rises"
        )
    return float(files.read_json(path, ("lr",), "a learning rate")["lr"])


def complete(init: Bundle, data: Data, task: Task) -> bool:
    """Whether a bundle answers for the data's classes already."""
    kept = task.transfer(init, task.config(data))
    return init.card.task == task.name and kept.keys() == init.dense().tensors.keys()


def _say_when(since: int, best: int, done: int, recipe: Recipe) -> None:
    """A word where training was stopped early, or could have been: `since` is the first epoch as good as the best."""
    if done < recipe.epochs and recipe.patience and done - since >= recipe.patience:
        console.note(f"stopped after epoch {done} of {recipe.epochs}: none of the last {recipe.patience} was better")
    elif done - best >= max(WASTED, done // 2):
        console.note(
            f"epoch {best} of {done} was the best, and is kept; those after it brought nothing: fewer --epochs would "
            "do, or --patience, which stops by itself"
        )
