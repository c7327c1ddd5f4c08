"""What a report shows of a classifier's answers: confusion matrix, worst classes, samples with mistakes first."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.reports import plots, reliability, samples, style
from mobilenets.tasks.confusion import Confusion
from mobilenets.tasks.levels import levels
from mobilenets.tasks.reliability import error
from mobilenets.training.run import FLOAT

if TYPE_CHECKING:
    from mobilenets.reports.fit import Page

TEMPLATE, MISTAKES = "classes.html", "mistakes.csv"
ROWS = 10  # of a list of worst classes or pairs


def columns(page: Page) -> list[tuple[str, str, str]]:
    """Scores of a step beside the primary one: title, name in steps.json, format."""
    top5 = [("top-5, %", "top5", "%.2f")] if len(page.card.labels) > 5 else []
    return [*top5, ("loss, nats", "loss", "%.4f")]


def check(page: Page) -> None:
    """Raises `UserError` where the scores have no confusion matrix of the card's classes, or bins that are none."""
    confusion(page)
    for name in (reliability.AFTER, reliability.BEFORE):
        reliability.bins(page.shipped.scores, name)


def confusion(page: Page) -> Confusion:
    """The shipped file's. Raises `UserError` where the scores have none of the card's classes."""
    found, classes = page.shipped.scores.get("confusion"), len(page.card.labels)
    if found is None:
        raise UserError(f"it has no scores of {page.fitted.file.name}")
    try:
        made = Confusion.from_json(found)
    except ValueError as e:
        raise UserError(str(e)) from e
    if made.num_classes != classes:
        raise UserError(f"its confusion matrix is not of the card's {classes} classes")
    return made


def values(page: Page, root: Path | None) -> dict[str, Any]:
    """What the template takes."""
    m, labels = confusion(page), page.card.labels
    return {
        "right": int(m.right.sum()),
        "classes": by_class(m, labels),
        "pairs": pairs(m, labels),
        "samples": _samples(page, m, root),
        "confusion": style.markup(plots.confusion(m, labels), "Confusion matrix"),
        "levels": levels(labels, m),
        "rows": ROWS,
        "reliability": _reliability(page),
    }


def _reliability(page: Page) -> dict[str, Any] | None:
    """How far the shipped file's probabilities can be believed; None of runs of before that was measured."""
    after, before = (reliability.bins(page.shipped.scores, n) for n in (reliability.AFTER, reliability.BEFORE))
    if not after:
        return None
    drawn = style.markup(reliability.diagram(after, before), "Accuracy over confidence")
    off = error(before) if before else None
    return {"figure": drawn, "ece": error(after), "before": off, "trust": page.card.trust}


def by_class(m: Confusion, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """Classes from the worst: accuracy, images, and what each is most often taken for."""
    worst: dict[int, tuple[int, int]] = {}  # of each class, how often it was taken for which
    for t, g, n in zip(m.true[m.wrong].tolist(), m.given[m.wrong].tolist(), m.count[m.wrong].tolist(), strict=True):
        if n > worst.get(t, (0, 0))[0]:
            worst[t] = (n, g)
    images, right = m.images.tolist(), m.right.tolist()
    out = []
    for i in (i for i, n in enumerate(images) if n):
        taken, j = worst.get(i, (0, 0))
        out.append({
            "label": labels[i],
            "count": images[i],
            "top1": 100 * right[i] / images[i],
            "taken_for": labels[j] if taken else "",
            "taken": taken,
        })  # fmt: skip
    return sorted(out, key=lambda c: c["top1"])


def pairs(m: Confusion, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """The pairs of classes most often confused, in either direction."""
    both: dict[tuple[int, int], list[int]] = {}
    for t, g, n in zip(m.true[m.wrong].tolist(), m.given[m.wrong].tolist(), m.count[m.wrong].tolist(), strict=True):
        both.setdefault((min(t, g), max(t, g)), [0, 0])[t > g] = n
    most = sorted(both.items(), key=lambda kv: (-sum(kv[1]), kv[0]))[:ROWS]
    return [{"a": labels[i], "b": labels[j], "ab": ab, "ba": ba} for (i, j), (ab, ba) in most]


def _samples(page: Page, m: Confusion, root: Path | None) -> dict[str, Any]:
    """Held-out images with what the shipped file says of them, all mistakes; or why there are none."""
    wrong = int(m.count[m.wrong].sum())
    try:
        network = Bundle.load(page.run / FLOAT)
        found = samples.with_mistakes(page.fitted.file, page.shipped.scores["split"], m, root, network)
    except UserError as e:
        return page.without_samples(e)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "label", "predicted", "probability_percent", "of_label_percent", "label_doubted"])
    for s in found.mistakes:
        sure = (f"{s['probability']:.2f}", f"{s['of_label']:.2f}")
        table.writerow([s["name"], s["label"], s["predicted"], *sure, int(s["doubted"] > 0)])
    page.notes += [f"the map of what it sees was left out: {note}" for note in found.notes]
    page.tables[MISTAKES] = text.getvalue()
    return {
        "images": found.shown,
        "mistakes": sum(s["label"] != s["predicted"] for s in found.shown),
        "gallery": [s for s in found.mistakes if "uri" in s],
        "found": len(found.mistakes),
        "doubted": sum(s["doubted"] > 0 for s in found.mistakes),
        "looks": any(s.get("look") for s in found.shown),
        "drawn": style.markup(found.drawn, "Images by what the network sees of them") if found.drawn else None,
        "wrong": wrong,
        "table": MISTAKES,
        "note": "" if found.shown else samples.NONE,
    }
