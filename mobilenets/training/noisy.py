"""The first of two stages: training on many images whose labels are wrong in part, before the few clean ones.

V1 paper, section 4.3, after Krause and others, "The unreasonable effectiveness of noisy data" (2016).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilenets import console
from mobilenets.arch.spec import Arch
from mobilenets.data import checks
from mobilenets.data.dataset import Data, cache_side, in_order
from mobilenets.data.open import alike
from mobilenets.data.source import Source
from mobilenets.errors import Interrupted, UserError
from mobilenets.model.bundle import Bundle, is_bundle
from mobilenets.tasks.task import Task
from mobilenets.training import loop, run
from mobilenets.training.calibrated import Calibration
from mobilenets.training.distributed import from_rank_0, world
from mobilenets.training.recipes import Recipe
from mobilenets.training.run import CHECKPOINTS, CONFIG, FLOAT, NOISY, START
from mobilenets.training.trainer import train_bundle


def opened(source: str, clean: Data, task: Task, root: Path | None) -> Data:
    """All images of `source` to train on; what the clean data holds out is held out here too.

    So the epoch is chosen by clean labels, and images that are held out there are found among these. Raises
    `UserError` for classes that aren't the clean data's.
    """
    asked = str(alike(Source.parse(clean.source), source))
    try:
        found = task.open(asked, root, clean.seed, None)
    except Interrupted:
        raise
    except UserError as e:  # of which of the two sets it is
        raise UserError(f"--noisy: {e}") from e
    strangers = [c for c in found.labels if c not in clean.labels]
    if strangers:
        raise UserError(
            f"--noisy {asked}: class {strangers[0]!r} isn't one of {clean.source} ({', '.join(clean.labels[:8])})"
        )
    every = dataclasses.replace(in_order(found, clean.labels).split("all"), name="train")
    held_out = {name: split for name, split in clean.splits.items() if name != "train"}
    return dataclasses.replace(found, splits={"train": every, **held_out}, pool=None, val_fraction=None)


def recorded(source: str | None, recipe: Recipe | None) -> dict[str, Any]:
    """What a run's record has of the stage: nothing where there is none."""
    return {NOISY: source, "noisy_recipe": dataclasses.asdict(recipe)} if recipe else {}


def pretrain(
    data: Data,
    arch: Arch,
    recipe: Recipe,
    out: Path,
    *,
    task: Task,
    seed: int,
    init: Bundle | None,
    skip_bad: bool = False,
    yes: bool = False,
    checkpoint_minutes: float = loop.MINUTES,
    seconds: float | None = None,
    log: Sequence[str],
) -> None:
    """Train on the noisy data that `opened` gave, in the run OUT/noisy, unless that is done; OUT/start is what comes.

    It begins with OUT/start where there is one already, else with `init`. Raises `UserError` as `train_bundle`.
    """
    folder, first = out / NOISY, world()[1] == 0
    if not from_rank_0(is_bundle(folder / FLOAT)):
        begun = from_rank_0((folder / CHECKPOINTS / "last.ckpt").exists())
        config = {
            "task": task.name, "source": data.source, "arch": arch.to_json(), "recipe": recipe.to_json(), "seed": seed,
        }  # fmt: skip
        with run.taken(folder, config, (folder / CONFIG).exists(), data):
            side = cache_side(max(arch.input_size))
            if first:
                checks.check(data, skip_bad, side, yes)
                if is_bundle(out / START) and not is_bundle(folder / START):
                    Bundle.load(out / START).save(folder / START)
            else:
                checks.scan(data, side=side)
            train_bundle(
                data, arch, recipe, folder, task=task, seed=seed, resume=begun, init=init,
                checkpoint_minutes=checkpoint_minutes, seconds=seconds, calibration=Calibration(uncalibrated=True),
                log=log,
            )  # fmt: skip
    if first:
        made, metric = Bundle.load(folder / FLOAT).save(out / START), task.primary
        assert metric is not None
        said = metric.say(made.card.metrics[0].value)
        console.done(f"trained on noisy labels: {said} {metric.label} of the clean val images")
    from_rank_0(None)  # until OUT/start is there
