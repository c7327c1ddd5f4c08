"""Sample predictions for a report: held-out images through the shipped file, some mistakes among them."""

from __future__ import annotations

import base64
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets import tasks
from mobilenets.arch.heads import PROBABILITIES
from mobilenets.data.dataset import Split
from mobilenets.deploy import engines, predict
from mobilenets.deploy.engines import Engine
from mobilenets.model.images import BadImage
from mobilenets.tasks import data_of

SAMPLES, MISTAKES = 12, 6
SEARCH_IMAGES, SEARCH_SECONDS = 1000, 20.0  # at most, in search of mistakes to show
NONE = "no held-out image could be read"
DRAWN = 352  # pixels of the short side of an image that answers are drawn on
THUMBNAIL, PIXELATED = 176, 64  # pixels; a smaller original is kept as it is and enlarged without smoothing


def drawn(file: Path, split_name: str, root: Path | None) -> list[dict[str, Any]]:
    """Images of a split as data URIs, each with the file's answer drawn on it by the task, and as text.

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
        uri, small = _uri(task.draw(image, answer))
        out.append({"answer": str(answer), "uri": uri, "small": small, "name": split.names[i]})
    return out


def with_mistakes(
    file: Path, split_name: str, confusion: npt.NDArray[np.int64], root: Path | None
) -> list[dict[str, Any]]:
    """Images of a split as data URIs with their label, the predicted one and both probabilities, mistakes first.

    `confusion[true, predicted]` says where mistakes are to be found. Raises `UserError` if the file or the data it was
    trained on can't be opened.
    """
    engine = engines.load(file)
    data = data_of(engine.card, None, root)
    split = data.split(split_name)
    found = _search(engine, split, confusion, data.seed)
    wrong = [s for s in found if s["label"] != s["predicted"]]
    right = [s for s in found if s["label"] == s["predicted"]]
    shown = _varied(wrong, MISTAKES, "predicted")
    shown += _varied(right, SAMPLES - len(shown), "label")
    out = []
    for s in shown:
        try:
            uri, small = _thumbnail(split.rgb(s["index"], THUMBNAIL), engine.card.preprocess.crop)
        except BadImage:
            continue
        out.append({**s, "uri": uri, "small": small, "name": split.names[s["index"]]})
    return out


def _search(engine: Engine, split: Split, confusion: npt.NDArray[np.int64], seed: int) -> list[dict[str, Any]]:
    """Predictions for a seeded sample of the split, until there are mistakes enough to show; bounded in time."""
    if not len(split):
        return []
    labels = engine.card.labels
    m = confusion
    expected = min(MISTAKES, int(m.sum() - np.trace(m)))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(split))
    errors = 1 - np.diag(m) / np.maximum(m.sum(1), 1)
    # The first few at random; then, in search of mistakes, classes that have some, the worst first.
    hard = sorted(order[2 * SAMPLES :], key=lambda i: -errors[split.targets[i]])
    order = np.array([*order[: 2 * SAMPLES], *hard][:SEARCH_IMAGES])
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


def _thumbnail(img: Image.Image, crop: float) -> tuple[str, bool]:
    """The square a network looks at, as a data URI, and whether it is so small that it is shown pixel by pixel."""
    side = max(1, round(min(img.size) * crop))
    left, top = (img.width - side) // 2, (img.height - side) // 2
    img = img.crop((left, top, left + side, top + side))
    return _uri(img if side < PIXELATED else img.resize((min(side, THUMBNAIL),) * 2, Image.Resampling.LANCZOS))


def _uri(img: Image.Image) -> tuple[str, bool]:
    """An image as a data URI, and whether it is so small that it is shown pixel by pixel."""
    small = min(img.size) < PIXELATED
    out = io.BytesIO()
    if small:
        img.save(out, "PNG")
    else:
        img.save(out, "JPEG", quality=82)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}", small
