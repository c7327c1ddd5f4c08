"""What a report shows of a detector: COCO's numbers, curves, what is taken for what, mistakes, where time goes."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from mobilenets import tasks
from mobilenets.deploy import engines
from mobilenets.errors import UserError
from mobilenets.model.images import BadImage
from mobilenets.reports import answers, samples, style
from mobilenets.tasks import data_of
from mobilenets.tasks.detect.answers import Detections
from mobilenets.tasks.detect.mistakes import Mistake, mistakes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mobilenets.reports.fit import Page

TEMPLATE = "boxes.html"
SECONDS = 20.0  # at most, in which images are looked at again
WORST = 12  # images with mistakes that are shown
CURVES = 8  # classes that are drawn, those with the most objects
CONFUSED = 15  # pairs that are listed
BACKGROUND = "background"
NAMES = {
    "ap": "AP, mean over overlaps of .5 to .95", "ap50": "AP50, at an overlap of .5", "ap75": "AP75, at .75",
    "ap_small": "AP, small: under 32² pixels", "ap_medium": "AP, medium", "ap_large": "AP, large: over 96² pixels",
    "ar100": "recall with 100 boxes an image",
}  # fmt: skip
PAINT = {
    "missed": (230, 60, 60), "double": (250, 170, 20), "wrong class": (190, 80, 220), "badly placed": (40, 150, 240),
    "nothing there": (250, 100, 180),
}  # fmt: skip


@dataclass
class Looked:
    """What came of looking at a split again: counts of mistakes by kind, pairs (true, said), images, milliseconds."""

    kinds: Counter[str] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    worst: list[dict[str, Any]] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    images: int = 0


def columns(page: Page) -> list[tuple[str, str, str]]:  # noqa: ARG001
    """Scores of a step beside the primary one: title, name in steps.json, format."""
    return [("AP50, %", "ap50", "%.2f"), ("AP75, %", "ap75", "%.2f")]


def check(page: Page) -> None:
    """Raises `UserError` where the scores aren't a detector's."""
    scores = page.shipped.scores
    if not all(type(scores.get(n)) in (int, float) for n in ("ap", "ap50", "ap75")):
        raise UserError("its scores aren't those of boxes")


def values(page: Page, root: Path | None) -> dict[str, Any]:
    """What the template takes."""
    scores = page.shipped.scores
    try:
        looked = look(page.fitted.file, scores["split"], root)
    except UserError as e:
        page.notes.append(f"mistakes were left out: {e}")
        looked = Looked()
    each = sorted(scores.get("per_class", {}).items(), key=lambda kv: kv[1].get("ap") or 0.0)
    drawn = scores.get("curves") or {}
    return {
        **answers.values(page, root, say=lambda said: said.counted),
        "numbers": [(title, scores[name]) for name, title in NAMES.items() if scores.get(name) is not None],
        "each": [(label, s) for label, s in each if s.get("objects")],
        "curve": style.markup(curves(drawn, scores["per_class"]), "Precision by recall") if drawn else "",
        "looked": looked,
        "paint": {kind: f"rgb{rgb}" for kind, rgb in PAINT.items()},
        "confused": looked.pairs.most_common(CONFUSED),
    }


def look(file: Path, split_name: str, root: Path | None) -> Looked:
    """A split's images through the file again, one by one, as many as time allows, in chance order.

    Raises `UserError` if the file or the data it was trained on can't be opened.
    """
    engine = engines.load(file)
    card, data = engine.card, data_of(engine.card, None, root)
    split, out = data.split(split_name), Looked()
    task = tasks.of(card)
    spent: list[tuple[float, float, float]] = []
    found: list[tuple[float, int, list[Mistake]]] = []
    end = time.monotonic() + SECONDS
    for i in np.random.default_rng(data.seed).permutation(len(split)).tolist():
        if time.monotonic() > end:
            break
        clock = [time.perf_counter()]
        try:
            pixels = split.pixels(i, card.preprocess)
        except BadImage:
            continue
        clock.append(time.perf_counter())
        outputs = engine(np.asarray(pixels)[None])
        clock.append(time.perf_counter())
        target = split.targets[i]
        (said,) = task.decode(outputs, card, [target.size], 1)
        clock.append(time.perf_counter())
        spent.append((clock[1] - clock[0], clock[2] - clock[1], clock[3] - clock[2]))
        assert isinstance(said, Detections)
        wrong, right = mistakes(said.boxes, target)
        out.kinds.update(m.kind for m in wrong)
        out.pairs.update((card.labels[a], card.labels[b]) for a, b in right)
        for m in wrong:
            if m.kind not in ("double", "badly placed"):  # those are of an object that is told by itself
                pair = [BACKGROUND if c is None else card.labels[c] for c in (m.true, m.said)]
                out.pairs[(pair[0], pair[1])] += 1
        # A sure mistake is a bad one; a missed object counts as one that is half sure.
        found.append((sum(m.score or 0.5 for m in wrong), i, wrong))
        out.images += 1
    for _, i, wrong in sorted(found, key=lambda f: -f[0])[:WORST]:
        if wrong:
            image = split.rgb(i, samples.DRAWN)
            uri, small = samples.data_uri(marked(image, wrong, split.targets[i].size))
            kinds = Counter(m.kind for m in wrong)
            text = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
            out.worst.append({"uri": uri, "small": small, "name": split.names[i], "answer": text})
    if spent:
        named = ("read and resize the image", "the file", "boxes of its outputs")
        out.parts = dict(zip(named, (1e3 * np.median(np.array(spent), 0)).tolist(), strict=True))
    return out


def marked(image: Image.Image, wrong: list[Mistake], size: tuple[int, int]) -> Image.Image:
    """The image, once `size`, with its mistakes, each kind in its colour."""
    out = image.convert("RGB")
    pen, by = ImageDraw.Draw(out), out.width / size[0]
    for m in wrong:
        x1, y1, x2, y2 = (by * v for v in m.box)
        pen.rectangle((x1, y1, x2, y2), outline=PAINT[m.kind], width=3)
        box = pen.textbbox((x1 + 3, y1 + 2), m.kind)
        pen.rectangle((box[0] - 2, box[1] - 1, box[2] + 2, box[3] + 1), fill=PAINT[m.kind])
        pen.text((x1 + 3, y1 + 2), m.kind, fill="black")
    return out


@style.styled
def curves(drawn: dict[str, list[float]], each: dict[str, Any]) -> Figure:
    """Precision by recall at an overlap of one half, of the classes with the most objects."""
    fig = style.figure(3.2)
    ax = fig.add_subplot()
    some = sorted(drawn, key=lambda label: -each.get(label, {}).get("objects", 0))[:CURVES]
    for label in some:
        y = np.array(drawn[label])
        ax.plot(100 * np.linspace(0, 1, len(y)), 100 * y, label=style.plain(label), linewidth=1.4)
    ax.set(xlim=(0, 100), ylim=(0, 102), xlabel="recall, %", ylabel="precision, %")
    ax.legend(frameon=False, loc="lower left")
    return fig
