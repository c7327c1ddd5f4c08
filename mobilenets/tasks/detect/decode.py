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
FIRST = 256  # candidates that are compared at first: of most images, they have all answers among them


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
    flat = scores.reshape(-1)
    where = np.flatnonzero(flat >= how.score) if how.score > 0 else np.arange(flat.size)
    taken = FIRST
    while True:
        some = where
        if len(where) > taken:
            some = where[np.argpartition(-flat[where], taken)[:taken]]
        order = some[np.lexsort((some, -flat[some]))]
        at, classes = np.divmod(order, columns)
        boxes = coder.decode(offsets[at], anchors[at], config.coder)
        keep = _kept(boxes, classes, how)
        if len(keep) >= how.most or taken >= len(where):
            break
        taken *= 4
    keep = keep[: how.most]
    return Found(boxes[keep].clip(0, 1), flat[order[keep]].astype(np.float32), classes[keep].astype(np.int64))


def _kept(boxes: Floats, classes: npt.NDArray[np.int64], how: Suppression) -> npt.NDArray[np.int64]:
    """Places of those that stay, of boxes [N, 4] in order of their scores."""
    alive = np.asarray(((boxes[:, 2:] - boxes[:, :2]) > 0).all(1), bool)
    kept: list[int] = []
    of_class: dict[int, int] = {}
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        c = int(classes[i])
        of_class[c] = of_class.get(c, 0) + 1
        if of_class[c] > how.per_class and not how.together:
            continue
        kept.append(i)
        if len(kept) == how.most:
            break
        near = alive[i + 1 :] if how.together else alive[i + 1 :] & (classes[i + 1 :] == c)
        rest = np.flatnonzero(near) + i + 1
        if len(rest):
            alive[rest[overlaps(boxes[i : i + 1], boxes[rest])[0] > how.iou]] = False
    return np.array(kept, np.int64)


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
