"""Probabilities that can be believed: temperature and thresholds found on val, after training. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets import console, tasks
from mobilenets.arch.heads import LOGITS, PROBABILITIES
from mobilenets.arch.matrices import PROPORTIONAL
from mobilenets.arguments import checked
from mobilenets.data.dataset import Data
from mobilenets.deploy import engines, predict, trust
from mobilenets.deploy.engines import Outputs
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.encodings import weight_name
from mobilenets.model.images import BadImage
from mobilenets.model.trust import Trust
from mobilenets.tasks.reliability import Floats, Reliability, check_precision, fit_temperature, tempered
from mobilenets.tasks.task import Matched, Settled, Task

LEAST = 100  # held-out images to calibrate on: fewer say little about how sure to be
MOST = 5000  # of them: enough for one number
KEPT = 0.95  # of the held-out images count as like those of the training


@checked
@dataclass(frozen=True)
class Calibration:
    """What is made of a trained network's probabilities, on the val split.

    Raises `UserError` for numbers that can't be.
    """

    uncalibrated: bool = field(
        default=False,
        metadata={
            "help": "Leave probabilities as training made them: no temperature is found on the val split, and no "
            "thresholds of tags."
        },
    )
    wanted_precision: float | None = field(
        default=None,
        metadata={
            "help": "Percent of the answers that are to be right: less probable ones are unsure, by a threshold found "
            "on the val split, which the files have with them."
        },
    )

    def __post_init__(self) -> None:
        check_precision(self.wanted_precision)


def recorded(how: Calibration | None) -> dict[str, Any]:
    """What a run's record has of it: nothing of what is left as it is by default, as in runs of before."""
    return {f.name: v for f in dataclasses.fields(Calibration) if (v := getattr(how, f.name, None))}


def calibrate(trained: Bundle, data: Data, how: Calibration | None = None, task: Task | None = None) -> Bundle:
    """A float classifier whose probabilities say how often it is right, as far as val images can tell.

    Its logits are divided by the temperature that makes the val images' classes likeliest (Guo and others 2017): in the
    classifier's weights, so that every runtime's file has it, and the best label stays. The card has what was found.
    A task may read its answers by what it finds itself, as tags by their thresholds; networks for others are given back
    as they are. A line says what was done.
    """
    how = how or Calibration()
    task = task or tasks.of(trained.card)
    if isinstance(task, Settled) and not how.uncalibrated:
        return _settled(trained, data, task)
    if isinstance(task, Matched):
        return _verifying(trained, data, task)
    if trained.card.task != "classify":
        return trained
    few = len(data.split("val")) < LEAST
    if few and how.wanted_precision is None:
        if not how.uncalibrated:
            console.note(
                f"probabilities stay as training made them: {len(data.split('val'))} val images are too few to "
                f"calibrate on ({LEAST} or more)"
            )
        return trained
    outputs, targets = _held_out(trust.with_logits(trained), data)
    before = outputs[PROBABILITIES]
    temperature = 1.0 if few or how.uncalibrated else fit_temperature(before, targets)
    after = tempered(before, temperature)
    right = after.argmax(1) == targets
    ece_before, ece_after = (round(Reliability(p.max(1), right).ece(), 2) for p in (before, after))
    found = Trust(
        len(targets),
        temperature,
        ece_before,
        ece_after,
        reject_below=None if how.wanted_precision is None else _threshold(after, right, how.wanted_precision),
        least_probability=None if few else float(np.quantile(after.max(1), 1 - KEPT)),
        most_energy=None if few else float(np.quantile(trust.energy(outputs[LOGITS] / temperature), KEPT)),
    )
    if temperature != 1:
        console.note(str(found))
    return Bundle(trained.card.trusted(found), cooled(trained, temperature).tensors)


def _settled(trained: Bundle, data: Data, task: Settled) -> Bundle:
    """A network with what its task finds on the val images for reading its answers."""
    count = len(data.split("val"))
    if count < LEAST:
        console.note(
            f"a tag holds from one half on: {count} val images are too few to find thresholds on ({LEAST} or more)"
        )
        return trained
    outputs, targets = _held_out(trained, data)
    found = task.settled(outputs, targets, trained.card)
    console.note(str(found))
    return Bundle(trained.card.trusted(found), trained.tensors)


def _verifying(trained: Bundle, data: Data, task: Matched) -> Bundle:
    """A network of vectors with the cosine from which on two held-out images are most often the same."""
    outputs, targets = _held_out(trained, data)
    found = task.threshold(outputs, targets)
    if found is None:
        return trained
    return Bundle(trained.card.replace(config={**trained.card.config, "threshold": found}), trained.tensors)


def cooled(source: Bundle, temperature: float) -> Bundle:
    """A float classifier with its logits divided by `temperature`: its weights and bias are."""
    (name,) = source.card.head.own
    op = source.card.graph.op(name)
    layer = weight_name(op).removesuffix("weight")
    both = f"{layer}{PROPORTIONAL[op.structure]}", f"{layer}bias"
    own = {tensor: source.tensors[tensor] / np.float32(temperature) for tensor in both}
    return Bundle(source.card, {**source.tensors, **own}, source.digest)


def _held_out(trained: Bundle, data: Data) -> tuple[Outputs, npt.NDArray[Any]]:
    """The outputs of val images, [N, ...] each, and their targets [N, ...]; damaged images are left out."""
    split, card = data.split("val"), trained.card
    engine = engines.module("torch").quickest(trained)
    order: Sequence[int] = range(len(split))
    if len(split) > MOST and not split.shards:  # those in shards lie in random order
        order = np.random.default_rng(0).permutation(len(split)).tolist()
    rows, read = [], []
    for i, said in predict.stream(engine, order[:MOST], lambda i: split.pixels(i, card.preprocess)):
        if not isinstance(said, BadImage):
            rows.append(said)
            read.append(i)
    return engines.joined(rows), split.targets[read]


def _threshold(probabilities: Floats, right: npt.NDArray[np.bool_], wanted: float) -> float | None:
    """The probability below which answers are to be unsure; None, and a line, where none will do."""
    try:
        found = Reliability(probabilities.max(1), right).precise(wanted)
    except UserError as e:
        console.note(f"every answer counts: {e}")
        return None
    console.note(str(found))
    return found.threshold
