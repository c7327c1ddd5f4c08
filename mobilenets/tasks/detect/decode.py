"""From a detector's outputs to boxes: decoded, suppressed, placed on the image. No torch: it runs anywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mobilenets.model.images import Preprocess
from mobilenets.tasks.detect import coder
from mobilenets.tasks.detect.anchors import centres_and_sizes, overlaps
from mobilenets.tasks.detect.config import BOXES, CLASSES, COUNT, MASKS, OFFSETS, SCORE, Config, Suppression
from mobilenets.tasks.task import Outputs, Sizes

Floats = npt.NDArray[np.float32]
Whole = npt.NDArray[np.int64]
FIRST = 256  # anchors that are looked at first: of most images, they have all answers among them


@dataclass(frozen=True)
class Found:
    """What a detector finds in one image, the best first: corner boxes [K, 4], scores [K], classes [K], from 0 on.

    `masks`: float [K, M, M], the probability of each box's cells, of a detector that gives them.
    """

    boxes: Floats
    scores: Floats
    classes: npt.NDArray[np.int64]
    masks: Floats | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def some(self, keep: npt.NDArray[np.bool_] | slice) -> Found:
        masks = None if self.masks is None else self.masks[keep]
        return Found(self.boxes[keep], self.scores[keep], self.classes[keep], masks)


def found(outputs: Outputs, config: Config | None) -> Iterator[Found]:
    """What each image's outputs say, boxes in 0..1 of the network's input.

    Of raw heads (`offsets` [N, A, 4] and `scores` [N, A, C]) by the config; of a file that decodes and suppresses by
    itself, `boxes` [N, K, 4], `scores` [N, K], `classes` [N, K] and `count` [N], and perhaps `masks`
    [N, K, M, M], as it says, and no config is needed.
    """
    if BOXES in outputs:
        counts = outputs[COUNT].reshape(-1).astype(int)
        masks = outputs.get(MASKS, [None] * len(counts))
        for boxes, scores, classes, n, each in zip(
            outputs[BOXES], outputs[SCORE], outputs[CLASSES], counts.tolist(), masks, strict=True
        ):
            own = None if each is None else each[:n]
            yield Found(boxes[:n], scores[:n], np.rint(classes[:n]).astype(np.int64), own)
        return
    assert config is not None
    anchors = centres_and_sizes(config.anchors)
    for offsets, scores in zip(outputs[OFFSETS], outputs[SCORE], strict=True):
        yield suppressed(offsets, scores[:, int(config.background) :], anchors, config)


def suppressed(offsets: Floats, scores: Floats, anchors: Floats, config: Config) -> Found:
    """Non-maximum suppression of each class, or of all together: of offsets [A, 4] and scores [A, L] of labels alone.

    The same as suppressing class by class and taking the best of what is left, as it goes down all candidates from the
    best until it has enough: a worse one never pushes out a better one. Boxes are cut at the edge when they are chosen,
    as TensorFlow has it.
    """
    how = config.suppression
    columns = scores.shape[1]
    flat, best = scores.reshape(-1), scores.max(1, initial=0.0)
    taken = FIRST
    while True:
        least = how.score  # all that are as good as the best of `taken` anchors are the best there are
        if taken < len(best):
            least = max(least, float(np.partition(best, len(best) - taken)[len(best) - taken]))
        some = np.flatnonzero(flat >= least)
        order = some[np.argsort(-flat[some], kind="stable")]
        at, classes = np.divmod(order, columns)
        keep = _kept(offsets, anchors, at, classes, config)
        if len(keep) >= how.most or least == how.score:
            break
        taken *= 4
    boxes = coder.decode(offsets[at[keep]], anchors[at[keep]], config.coder)
    return Found(boxes.clip(0, 1), flat[order[keep]].astype(np.float32), classes[keep].astype(np.int64))


def _kept(offsets: Floats, anchors: Floats, at: Whole, classes: Whole, config: Config) -> Whole:
    """Places of those that stay, of candidates in order of their scores: anchors `at` [N] with `classes` [N].

    A block of them at a time: those that overlap none that was kept before, and of these each against each at once.
    """
    how = config.suppression
    kept = np.empty(0, np.int64)
    before = np.empty((0, 4), np.float32)
    of_class: dict[int, int] = {}
    for start in range(0, len(at), FIRST):
        places = np.arange(start, min(start + FIRST, len(at)))
        boxes = coder.decode(offsets[at[places]], anchors[at[places]], config.coder)
        alive = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        alive &= ~_pushed(before, classes[kept], boxes, classes[places], how).any(0)
        places, boxes = places[alive], boxes[alive]
        out = _pushed(boxes, classes[places], boxes, classes[places], how)
        alive = np.ones(len(places), bool)
        chosen: list[int] = []
        for i, c in enumerate(classes[places].tolist()):
            if not alive[i]:
                continue
            of_class[c] = of_class.get(c, 0) + 1
            if of_class[c] > how.per_class and not how.together:
                continue
            chosen.append(i)
            if len(kept) + len(chosen) == how.most:
                break
            alive &= ~out[i]
        kept, before = np.concatenate([kept, places[chosen]]), np.concatenate([before, boxes[chosen]])
        if len(kept) == how.most:
            break
    return kept


def _pushed(better: Floats, their: Whole, boxes: Floats, classes: Whole, how: Suppression) -> npt.NDArray[np.bool_]:
    """Which of `boxes` [N, 4] each of the `better` [M, 4] pushes out: [M, N]."""
    near = overlaps(better, boxes) > how.iou
    return near if how.together else near & (their[:, None] == classes)


def on_images(every: Iterator[Found], preprocess: Preprocess, sizes: Sizes) -> Iterator[Found]:
    """Boxes in 0..1 of the network's input as boxes in pixels of the images, `sizes` (width, height), cut at the edge.

    A picture that was stretched to the input is as long as it; of one that was cut or put in bars, the place counts.
    """
    rows, columns = preprocess.input_size
    for one, (width, height) in zip(every, sizes, strict=True):
        corners = one.boxes.reshape(-1, 2, 2) * np.array([columns, rows])
        points = preprocess.place(width, height).back(corners).clip(0, (width, height))
        yield dataclasses.replace(one, boxes=points.reshape(-1, 4).astype(np.float32))


def raw_scores(logits: Floats, config: Config) -> Floats:
    """What a detector's logits [N, A, C] are as scores."""
    x = logits.astype(np.float32)
    if config.scores == "sigmoid":
        return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), np.float32)
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True), np.float32)


def is_finished(outputs: Mapping[str, object]) -> bool:
    """Whether boxes come decoded and suppressed."""
    return BOXES in outputs
