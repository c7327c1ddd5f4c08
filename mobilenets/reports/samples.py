"""Sample predictions for a report: held-out images through the shipped file, some mistakes among them."""

from __future__ import annotations

import base64
import contextlib
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobilenets import tasks
from mobilenets.arch.heads import PROBABILITIES
from mobilenets.data.dataset import Split
from mobilenets.deploy import engines, predict
from mobilenets.deploy.engines import Engine
from mobilenets.model.images import BadImage
from mobilenets.tasks import data_of
from mobilenets.tasks.confusion import Confusion

SAMPLES, MISTAKES = 12, 6
SEARCH_SECONDS = 20.0  # at most, in search of mistakes
GALLERY, GALLERY_SIDE = 300, 112  # mistakes on the page at most, and their pixels: 3 kB each
NONE = "no held-out image could be read"
DRAWN = 352  # pixels of the short side of an image that answers are drawn on
THUMBNAIL, PIXELATED = 176, 64  # pixels; a smaller original is kept as it is and enlarged without smoothing


def drawn(
    file: Path, split_name: str, root: Path | None, draw: bool = True, say: Callable[[Any], str] = str
) -> list[dict[str, Any]]:
    """Images of a split as data URIs, each with the file's answer as text and, with `draw`, drawn on it by the task.

    `say` makes the text of an answer.

    Raises `UserError` if the file or the data it was trained on can't be opened.
    """
    engine = engines.load(file)
    card, data = engine.card, data_of(engine.card, None, root)
    split, task = data.split(split_name), tasks.of(card)
    some = np.random.default_rng(data.seed).permutation(len(split))[:SAMPLES].tolist()
    out = []
    for i, outputs in predict.stream(engine, some, lambda i: split.pixels(i, card.preprocess)):
        if isinstance(outputs, BadImage):
            continue
        image = split.rgb(i, DRAWN)
        (answer,) = task.decode(outputs, card, [image.size], 1)
        uri, small = data_uri(task.draw(image, answer) if draw else image)
        out.append({"answer": say(answer), "uri": uri, "small": small, "name": split.names[i]})
    return out


@dataclass(frozen=True)
class Found:
    """Images of a split with a file's answers: some to show, and the mistakes, the surest first.

    Each is a dictionary: name, label, predicted, probabilities of both in percent; what is shown has its image as a
    data URI, the first GALLERY of the mistakes too.
    """

    shown: list[dict[str, Any]]
    mistakes: list[dict[str, Any]]


def with_mistakes(file: Path, split_name: str, confusion: Confusion, root: Path | None) -> Found:
    """What the file says of a split's images: a few to show, mistakes first, and every mistake that time allows.

    `confusion` says where mistakes are to be found. Raises `UserError` if the file or the data it was trained on can't
    be opened.
    """
    engine = engines.load(file)
    data = data_of(engine.card, None, root)
    split = data.split(split_name)
    found = _search(engine, split, confusion, data.seed)
    wrong = [s for s in found if s["label"] != s["predicted"]]
    right = [s for s in found if s["label"] == s["predicted"]]
    shown = _varied(wrong, MISTAKES, "predicted")
    shown += _varied(right, SAMPLES - len(shown), "label")
    wrong = sorted(wrong, key=lambda s: -s["probability"])

    def pictured(some: list[dict[str, Any]], side: int) -> Iterator[dict[str, Any]]:
        for s in some:
            with contextlib.suppress(BadImage):
                uri, small = _thumbnail(split.rgb(s["index"], side), engine.card.preprocess.crop, side)
                yield {**s, "uri": uri, "small": small}

    return Found([*pictured(shown, THUMBNAIL)], [*pictured(wrong[:GALLERY], GALLERY_SIDE), *wrong[GALLERY:]])


def _search(engine: Engine, split: Split, confusion: Confusion, seed: int) -> list[dict[str, Any]]:
    """Predictions for images of the split in a seeded order, until all mistakes are found; bounded in time."""
    if not len(split):
        return []
    labels = engine.card.labels
    expected = int(confusion.count[confusion.wrong].sum())
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(split))
    errors = 1 - confusion.right / np.maximum(confusion.images, 1)
    # The first few at random; then, in search of mistakes, classes that have some, the worst first.
    hard = sorted(order[2 * SAMPLES :], key=lambda i: -errors[split.targets[i]])
    order = np.array([*order[: 2 * SAMPLES], *hard])
    out: list[dict[str, Any]] = []
    mistakes, end = 0, time.monotonic() + SEARCH_SECONDS
    results = predict.stream(engine, order.tolist(), lambda i: split.pixels(i, engine.card.preprocess))
    for i, outputs in results:
        if isinstance(outputs, BadImage):
            continue
        scores = outputs[PROBABILITIES][0]
        true, best = int(split.targets[i]), int(scores.argmax())
        mistakes += true != best
        out.append({
            "index": i,
            "name": split.names[i],
            "label": labels[true],
            "predicted": labels[best],
            "probability": 100 * float(scores[best]),
            "of_label": 100 * float(scores[true]),
        })  # fmt: skip
        enough = mistakes >= expected and len(out) >= 2 * SAMPLES
        if enough or time.monotonic() > end:
            break
    return out


def _varied(found: list[dict[str, Any]], most: int, by: str) -> list[dict[str, Any]]:
    """Up to `most` of `found`, taken in turn from its groups by `by`."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for s in found:
        groups.setdefault(s[by], []).append(s)
    rounds = max(map(len, groups.values()), default=0)
    return [g[i] for i in range(rounds) for g in groups.values() if i < len(g)][:most]


def _thumbnail(img: Image.Image, crop: float, most: int = THUMBNAIL) -> tuple[str, bool]:
    """The square a network looks at, as a data URI, and whether it is so small that it is shown pixel by pixel."""
    side = max(1, round(min(img.size) * crop))
    left, top = (img.width - side) // 2, (img.height - side) // 2
    img = img.crop((left, top, left + side, top + side))
    return data_uri(img if side < PIXELATED else img.resize((min(side, most),) * 2, Image.Resampling.LANCZOS))


def data_uri(img: Image.Image) -> tuple[str, bool]:
    """An image as a data URI, and whether it is so small that it is shown pixel by pixel."""
    small = min(img.size) < PIXELATED
    out = io.BytesIO()
    if small:
        img.save(out, "PNG")
    else:
        img.save(out, "JPEG", quality=82)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}", small
