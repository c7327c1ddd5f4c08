"""Sample predictions for a report: held-out images through the shipped file, some mistakes among them."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from mobilenets import tasks
from mobilenets.arch.heads import PROBABILITIES
from mobilenets.data.dataset import Split
from mobilenets.deploy import engines, predict
from mobilenets.deploy.engines import Engine
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.images import BadImage
from mobilenets.reports.sight import LEAST, MAP, Sight, placed, plane
from mobilenets.tasks import data_of
from mobilenets.tasks.confident import suspects
from mobilenets.tasks.confusion import Confusion

SAMPLES, MISTAKES = 12, 6
SEARCH_SECONDS = 20.0  # at most, in search of mistakes and wrong labels
MAPPED = 600  # images at most that a map of the features has
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

    Each is a dictionary: name, label, predicted, probabilities of both in percent, "doubted", above 0 where the label
    itself is likely wrong, as the first of the mistakes' are; what is shown has its image as a data URI, the first
    GALLERY of the mistakes too, and "look", where the network looked, if that can be told. `drawn`: images in the plane
    of what the network sees, None where that can't be told; `notes` say why.
    """

    shown: list[dict[str, Any]]
    mistakes: list[dict[str, Any]]
    drawn: Figure | None = None
    notes: list[str] = field(default_factory=list)


def with_mistakes(
    file: Path, split_name: str, confusion: Confusion, root: Path | None, network: Bundle | None = None
) -> Found:
    """What the file says of a split's images: a few to show, mistakes first, and every mistake that time allows.

    `confusion` says where mistakes are to be found; `network` is the file's float bundle. Raises `UserError` if the
    file or the data it was trained on can't be opened.
    """
    engine = engines.load(file)
    data = data_of(engine.card, None, root)
    split = data.split(split_name)
    found = _search(engine, split, confusion, data.seed)
    _doubt(found, len(split))
    wrong = [s for s in found if s["label"] != s["predicted"]]
    right = [s for s in found if s["label"] == s["predicted"]]
    shown = _varied(wrong, MISTAKES, "predicted")
    shown += _varied(right, SAMPLES - len(shown), "label")
    wrong = sorted(wrong, key=lambda s: (-s["doubted"], -s["probability"]))
    sight = Sight.of(network) if network else None

    def pictured(some: list[dict[str, Any]], side: int) -> Iterator[dict[str, Any]]:
        for s in some:
            with contextlib.suppress(BadImage):
                uri, small = _thumbnail(split.rgb(s["index"], side), engine.card.preprocess.crop, side)
                look = ""
                if sight:
                    pixels = split.pixels(s["index"], engine.card.preprocess)
                    look = sight.look(sight.maps(pixels[None])[0], s["best"])
                yield {**s, "uri": uri, "small": small, "look": look}

    made = Found([*pictured(shown, THUMBNAIL)], [*pictured(wrong[:GALLERY], GALLERY_SIDE), *wrong[GALLERY:]])
    if sight is None or len(found) < LEAST:
        return made
    try:
        return dataclasses.replace(made, drawn=_plane(sight, split, found, data.seed))
    except UserError as e:
        return dataclasses.replace(made, notes=[str(e)])


def _doubt(found: list[dict[str, Any]], whole: int) -> None:
    """Say of each image whether its label is likely wrong, where all of a split were seen, which shows what is usual.

    A network that is wrong about half of them has no say in labels.
    """
    for s in found:
        s["doubted"] = 0.0
    if len(found) == whole and sum(s["true"] == s["best"] for s in found) > whole / 2:
        for one in suspects(np.stack([s["scores"] for s in found]), [s["true"] for s in found]):
            found[one.index]["doubted"] = max(one.margin, 1e-6)


def _plane(sight: Sight, split: Split, found: list[dict[str, Any]], seed: int) -> Figure:
    """Images that were seen, at places by what the network sees. Raises `UserError`."""
    some = sorted(np.random.default_rng(seed).permutation(len(found))[:MAPPED].tolist())
    vectors, true, best = [], [], []
    read = predict.stream(sight.engine, some, lambda i: split.pixels(found[i]["index"], sight.engine.card.preprocess))
    for i, outputs in read:
        if not isinstance(outputs, BadImage):
            vectors.append(outputs[MAP].reshape(len(outputs[MAP][0]), -1).mean(1))
            true.append(found[i]["true"])
            best.append(found[i]["best"])
    return plane(placed(np.stack(vectors), seed), true, best, sight.engine.card.labels)


def _search(engine: Engine, split: Split, confusion: Confusion, seed: int) -> list[dict[str, Any]]:
    """Predictions for images of the split in a seeded order, of all that time allows: mistakes come first."""
    if not len(split):
        return []
    labels = engine.card.labels
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(split))
    errors = 1 - confusion.right / np.maximum(confusion.images, 1)
    # The first few at random; then, in search of mistakes, classes that have some, the worst first.
    hard = sorted(order[2 * SAMPLES :], key=lambda i: -errors[split.targets[i]])
    order = np.array([*order[: 2 * SAMPLES], *hard])
    out: list[dict[str, Any]] = []
    end = time.monotonic() + SEARCH_SECONDS
    results = predict.stream(engine, order.tolist(), lambda i: split.pixels(i, engine.card.preprocess))
    for i, outputs in results:
        if isinstance(outputs, BadImage):
            continue
        scores = outputs[PROBABILITIES][0]
        true, best = int(split.targets[i]), int(scores.argmax())
        out.append({
            "index": i,
            "true": true,
            "best": best,
            "scores": scores,
            "name": split.names[i],
            "label": labels[true],
            "predicted": labels[best],
            "probability": 100 * float(scores[best]),
            "of_label": 100 * float(scores[true]),
        })  # fmt: skip
        if time.monotonic() > end:
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
