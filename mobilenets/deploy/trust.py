"""Answers with their doubts: unsure ones, images unlike the training's; the mean over an image's views. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mobilenets.arch.graph import Output
from mobilenets.arch.heads import LOGITS, PROBABILITIES
from mobilenets.deploy.engines import Engine, Outputs
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card
from mobilenets.model.images import Pixels
from mobilenets.model.trust import Trust
from mobilenets.tasks.classify import LIMITS, Labels
from mobilenets.tasks.detect.answers import Detections
from mobilenets.tasks.task import Answer

Views = Literal["flip"]


def with_logits(source: Bundle) -> Bundle:
    """A classifier's bundle that gives its logits too, as what it read its probabilities from. Raises `UserError`."""
    card = source.card
    if card.task != "classify":
        raise UserError(f"a network for {card.task} has no logits")
    head = card.head
    outputs = (*head.outputs, Output(LOGITS, LOGITS, "before the softmax"))
    return Bundle(card.replace(head=dataclasses.replace(head, outputs=outputs)), source.tensors, source.digest)


def energy(logits: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Of logits [N, C], each image's energy [N] (Liu and others 2020): the higher, the less it is like those known.

    The logits are divided by the temperature already.
    """
    x = logits.astype(np.float64)
    top = x.max(1)
    return np.asarray(-(top + np.log(np.exp(x - top[:, None]).sum(1))))


def limits(card: Card, own: tuple[float, float] | None) -> tuple[float, float] | None:
    """What a right file of a network may differ by; `own`: its runtime's limits; None: its task's.

    A temperature below 1 widens every difference of logits, and so does the limit of what they come to.
    """
    sharper = 1 / card.trust.temperature
    if sharper <= 1:
        return own
    least, most = own or LIMITS[card.precision]
    return least, min(1.0, most * sharper)


@dataclass(frozen=True)
class Doubts:
    """When an answer is unsure, and whether an image unlike those of the training is said to be.

    `trust`: what is known of the network. Raises `UserError` for numbers that can't be, and where nothing is known.
    """

    trust: Trust
    reject_below: float | None = None
    flag_unlike: bool = False

    @classmethod
    def of(cls, card: Card, reject_below: float | None = None, flag_unlike: bool = False) -> Doubts:
        """Those asked for; by default, the card's threshold."""
        check_threshold(reject_below)
        known = card.trust
        boxes = card.task == "detect" and not flag_unlike
        if (reject_below is not None or flag_unlike) and card.task != "classify" and not boxes:
            raise UserError(f"doubts are a classifier's: a network for {card.task} gives no probabilities")
        if flag_unlike and known.least_probability is None:
            raise UserError(
                "what its training images are like isn't on the network's card; networks that are trained now have it, "
                "where enough images are held out"
            )
        return cls(known, known.reject_below if reject_below is None else reject_below, flag_unlike)

    def judge(self, answer: Answer, outputs: Outputs) -> Answer:
        """An answer to one image with what there is to doubt; `outputs`: what it was read from."""
        if isinstance(answer, Detections) and self.reject_below is not None:
            return dataclasses.replace(answer, least=self.reject_below)
        if not isinstance(answer, Labels):
            return answer
        unsure = None if self.reject_below is None else answer.top[0][1] < self.reject_below
        return dataclasses.replace(answer, unsure=unsure, unlike=self._unlike(outputs) if self.flag_unlike else None)

    def _unlike(self, outputs: Outputs) -> bool:
        """By the energy where there are logits, as of bundles; else by the best probability, as of files."""
        if LOGITS in outputs and self.trust.most_energy is not None:
            return bool(energy(outputs[LOGITS])[0] > self.trust.most_energy)
        return bool(outputs[PROBABILITIES][0].max() < (self.trust.least_probability or 0))


def check_threshold(reject_below: float | None) -> None:
    """Raises `UserError` for what is no probability."""
    if reject_below is not None and not 0 <= reject_below <= 1:
        raise UserError(f"reject_below is a probability from 0 to 1, not {reject_below:g}")


class Flipped:
    """An engine whose answers are the mean over an image and its mirror image, as any engine gives them."""

    def __init__(self, engine: Engine) -> None:
        if PROBABILITIES not in engine.card.outputs:
            raise UserError(f"the mean over views is of probabilities: this network is for {engine.card.task}")
        self.engine, self.card = engine, engine.card
        self.name, self.concurrent = engine.name, engine.concurrent

    def __call__(self, images: Pixels) -> Outputs:
        """The card's outputs of uint8 [N, H, W, 3]."""
        both = self.engine(np.concatenate([images, images[:, :, ::-1]]))
        return {name: x.reshape(2, -1, *x.shape[1:]).mean(0) for name, x in both.items()}


VIEWS: Mapping[Views, type[Flipped]] = {"flip": Flipped}


def seen(engine: Engine, tta: Views | None) -> Engine:
    """`engine`, or the mean of its answers over views of an image. Raises `UserError`."""
    return VIEWS[tta](engine) if tta else engine
