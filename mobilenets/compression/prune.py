"""Pruning in steps with training between: whole channels, by what they are worth, or single weights, by their size.

Each step's network and training are kept beside the bundle that is to be, so that one that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mobilenets import console, tasks
from mobilenets.compression import chain
from mobilenets.compression.goals import Goal, Importance, Unmet, macs_m, params_m, tenth
from mobilenets.compression.sparsify import Pattern, progress, share_of_zeros, sparsified
from mobilenets.data import checks
from mobilenets.data.dataset import Data, cache_side
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, is_bundle
from mobilenets.model.card import Card
from mobilenets.tasks.task import MetricSpec
from mobilenets.training import run, trainer
from mobilenets.training.recipes import FINETUNE, Overrides, Recipe
from mobilenets.training.run import CHECKPOINTS, FLOAT

if TYPE_CHECKING:
    from torch import Tensor

    from mobilenets.training.loop import Setup

# All of the network learns to do without what is gone; averaged over little, since there are few steps.
RECIPE = dataclasses.replace(
    FINETUNE, epochs=2, lr=1e-3, find_lr="off", probe="off", frozen_rows=0.0, layer_decay=1.0, patience=0
)
STEPS = 3
IMAGES, BATCH = 512, 32  # that channels are judged by
CUT = "cut"


@dataclass(frozen=True)
class Step:
    """What a step left: macs and parameters in millions, the share of zeros from 0 to 1, the primary metric on val.

    `latency_ms`: where that was the goal.
    """

    number: int
    macs_m: float
    params_m: float
    zeros: float
    score: float
    latency_ms: float | None = None


class Cutting(Protocol):
    """A way to prune. `cut` gives the bundle that training then goes on with, after step `number` of `steps`."""

    def cut(self, bundle: Bundle, data: Data, number: int, steps: int) -> Bundle: ...

    def latency_ms(self, bundle: Bundle) -> float | None: ...

    def to_json(self) -> dict[str, Any]:
        """What a card says of it."""


@dataclass
class Narrowing:
    """Whole channels, until `goal` is met: each step takes the same share of what is there.

    `source` is the network before the first, of whose layers a tenth stays at least.
    """

    source: Bundle
    goal: Goal
    importance: Importance = "taylor"
    multiple: int = 8
    images: int = IMAGES
    recipe: Recipe = RECIPE
    seed: int = 0

    def __post_init__(self) -> None:
        importlib.import_module("torch_pruning")  # says what to install before anything is begun

    def cut(self, bundle: Bundle, data: Data, number: int, steps: int) -> Bundle:
        from mobilenets.compression.channels import Coupled
        from mobilenets.compression.narrowing import Scheme, narrow
        from mobilenets.model.module import MobileNet
        from mobilenets.training.setup import setup

        training = data.split("train")
        made = setup(data, training, bundle.card.arch, self.recipe, self.seed, bundle, None, tasks.of(bundle.card))
        network = made.learner.eval().model
        assert isinstance(network, MobileNet)
        coupled = Coupled(network)
        worth = coupled.worth(self.importance, _losses(made, self.images))
        before = self.source.card.graph
        least = {name: tenth(before.op(name).cout, self.multiple) for name in coupled.found}
        scheme = Scheme(self.importance, self.multiple, least)
        here = self.goal.of(bundle.card)
        left = min(1.0, self.goal.limit / here) ** (1 / (steps - number + 1))
        return narrow(bundle, coupled, worth, scheme, self.goal, left * here)

    def latency_ms(self, bundle: Bundle) -> float | None:
        return self.goal.of(bundle.card) if self.goal.unit == "ms" else None

    def to_json(self) -> dict[str, Any]:
        return {"channels": {**self.goal.asked, "importance": self.importance, "multiple": self.multiple}}


@dataclass
class Thinning:
    """Single weights, in a `pattern`."""

    pattern: Pattern

    def cut(self, bundle: Bundle, data: Data, number: int, steps: int) -> Bundle:  # noqa: ARG002
        return sparsified(bundle, self.pattern, progress(number, steps))

    def latency_ms(self, bundle: Bundle) -> float | None:  # noqa: ARG002
        return None

    def to_json(self) -> dict[str, Any]:
        return {"zeros": self.pattern.to_json()}


def recipe_of(card: Card, overrides: Overrides | None = None) -> Recipe:
    """How a network is trained after a step: as RECIPE, its images changed as they were when it was first trained."""
    given = {k: v for k, v in vars(overrides).items() if v is not None} if overrides else {}
    return dataclasses.replace(RECIPE, **{"augment": card.recipe.get("augment", RECIPE.augment), **given})


def prune(
    source: Bundle,
    data: Data,
    how: Cutting,
    out: Path,
    *,
    steps: int = STEPS,
    recipe: Recipe = RECIPE,
    final_epochs: int | None = None,
    seed: int = 0,
) -> tuple[Bundle, tuple[Step, ...]]:
    """`source`, a float bundle, pruned in `steps` and saved to `out`, and what each step left.

    After each step it is trained on `data` by the recipe; after the last for `final_epochs`, three times the recipe's
    if None. Raises `UserError` (a goal that nothing meets, a full disk), `Interrupted` on Ctrl-C: called again with the
    same arguments, it goes on from what it left in OUT.prune.
    """
    score = tasks.find_trained(source.card.task).primary
    assert score is not None
    work = out.with_name(f"{out.name}.prune")
    config = {
        "verb": "prune", "bundle": source.digest, "source": data.source, "how": how.to_json(), "steps": steps,
        "recipe": recipe.to_json(), "final_epochs": final_epochs, "seed": seed,
    }  # fmt: skip
    last = dataclasses.replace(recipe, epochs=final_epochs or 3 * recipe.epochs)
    said = {**source.card.recipe.get("pruned", {}), **how.to_json()}
    with run.taken(work, config, work.exists(), data):
        checks.scan(data, side=cache_side(max(source.card.preprocess.input_size)))
        told = [_told(source, how, 0, _score(source, data, score))]
        bundle = source
        for number in range(1, steps + 1):
            folder = work / f"step-{number}"
            cut = _cut(bundle, data, how, folder / CUT, (number, steps), said)
            bundle = _trained(cut, data, last if number == steps else recipe, folder, seed)
            told.append(_told(bundle, how, number, bundle.card.metrics[0].value))
    links = (*chain.begun(source, told[0].score), chain.Link.of("pruned", bundle, told[-1].score))
    card = bundle.card.replace(parent=source.digest, recipe={**bundle.card.recipe, **chain.told(links)})
    made = Bundle(card, bundle.tensors).save(out)
    shutil.rmtree(work, ignore_errors=True)
    return made, tuple(told)


def _cut(
    bundle: Bundle, data: Data, how: Cutting, path: Path, step: tuple[int, int], said: Mapping[str, Any]
) -> Bundle:
    """The bundle after a step's cut, which is at `path` from then on."""
    if is_bundle(path):
        return Bundle.load(path)
    score = tasks.of(bundle.card).primary
    assert score is not None
    try:
        made = how.cut(bundle, data, *step)
    except Unmet as e:
        if e.nearest is None:
            raise
        value = score.say(_score(e.nearest, data, score))
        raise UserError(f"{e}, and without training {value} {score.label} on val") from e
    made = Bundle(made.card.replace(recipe={**made.card.recipe, "pruned": dict(said)}), made.tensors).save(path)
    what = f"{macs_m(made.card):.4g} M macs, {params_m(made.card):.3g} M parameters"
    console.note(f"step {step[0]} of {step[1]}: {what}, {100 * share_of_zeros(made):.3g}% of the weights zero")
    return made


def _score(bundle: Bundle, data: Data, score: MetricSpec) -> float:
    from mobilenets.compression import mixed

    return mixed.scored(bundle, data, score).value


def _trained(cut: Bundle, data: Data, recipe: Recipe, folder: Path, seed: int) -> Bundle:
    if is_bundle(folder / FLOAT):
        return Bundle.load(folder / FLOAT)
    resume, task = (folder / CHECKPOINTS).exists(), tasks.of(cut.card)
    return trainer.train_bundle(
        data, cut.card.arch, recipe, folder, task=task, seed=seed, resume=resume, init=cut, log=()
    )


def _told(bundle: Bundle, how: Cutting, number: int, score: float) -> Step:
    card = bundle.card
    return Step(number, macs_m(card), params_m(card), share_of_zeros(bundle), score, how.latency_ms(bundle))


def _losses(made: Setup, images: int) -> Iterator[Tensor]:
    """The loss of each of some batches of training images, as a training's first would be, but in eval mode."""
    from mobilenets.training import loader

    learner = made.learner
    recipe = dataclasses.replace(learner.recipe, workers=0, accumulate=1, batch=BATCH)
    count = max(1, round(images / BATCH))
    with console.progress() as bar:
        task = bar.add_task("what channels are worth", total=count, status="")
        for batch in _first(loader.train_loader(made.images, recipe, 1, 0), count):
            targets = learner.objective.targets(batch)
            yield learner.objective(learner(batch[0]), targets)
            bar.advance(task)


def _first(batches: Iterable[Any], count: int) -> Iterator[Any]:
    """So many batches, from the beginning again where there are fewer."""
    return itertools.islice(itertools.chain.from_iterable(itertools.repeat(batches)), count)
