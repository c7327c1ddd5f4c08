"""What a report shows of a classifier's answers: confusion matrix, worst classes, samples with mistakes first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mobilenets.errors import UserError
from mobilenets.reports import plots, samples, style

if TYPE_CHECKING:
    from mobilenets.reports.fit import Page

Confusion = npt.NDArray[np.int64]

TEMPLATE = "classes.html"
ROWS = 10  # of a list of worst classes or pairs


def columns(page: Page) -> list[tuple[str, str, str]]:
    """Scores of a step beside the primary one: title, name in steps.json, format."""
    top5 = [("top-5, %", "top5", "%.2f")] if len(page.card.labels) > 5 else []
    return [*top5, ("loss, nats", "loss", "%.4f")]


def check(page: Page) -> None:
    """Raises `UserError` where the scores have no confusion matrix of the card's classes."""
    if page.shipped.scores.get("confusion") is None:
        raise UserError(f"it has no scores of {page.fitted.file.name}")
    if np.shape(page.shipped.scores["confusion"]) != (len(page.card.labels),) * 2:
        raise UserError(f"its confusion matrix is not of the card's {len(page.card.labels)} classes")


def values(page: Page, root: Path | None) -> dict[str, Any]:
    """What the template takes."""
    m, labels = np.asarray(page.shipped.scores["confusion"], np.int64), page.card.labels
    return {
        "right": int(np.trace(m)),
        "classes": by_class(m, labels),
        "pairs": pairs(m, labels),
        "samples": _samples(page, m, root),
        "confusion": style.markup(plots.confusion(m, labels), "Confusion matrix"),
        "rows": ROWS,
    }


def by_class(m: Confusion, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """Classes from the worst: accuracy, images, and what each is most often taken for."""
    out = []
    for i in np.flatnonzero(m.sum(1)):
        wrong = np.where(np.arange(len(m)) == i, 0, m[i])
        j = int(wrong.argmax())
        out.append({
            "label": labels[i],
            "count": int(m[i].sum()),
            "top1": 100 * float(m[i, i] / m[i].sum()),
            "taken_for": labels[j] if wrong[j] else "",
            "taken": int(wrong[j]),
        })  # fmt: skip
    return sorted(out, key=lambda c: c["top1"])


def pairs(m: Confusion, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """The pairs of classes most often confused, in either direction."""
    both = np.triu(m + m.T, 1)
    order = np.argsort(-both, axis=None, kind="stable")[:ROWS]
    cells = [(int(k) // len(m), int(k) % len(m)) for k in order]
    return [{"a": labels[i], "b": labels[j], "ab": int(m[i, j]), "ba": int(m[j, i])} for i, j in cells if both[i, j]]


def _samples(page: Page, m: Confusion, root: Path | None) -> dict[str, Any]:
    """Held-out images with what the shipped file says of them; or why there are none."""
    try:
        shown = samples.with_mistakes(page.fitted.file, page.shipped.scores["split"], m, root)
    except UserError as e:
        return page.without_samples(e)
    mistakes = sum(s["label"] != s["predicted"] for s in shown)
    return {"images": shown, "mistakes": mistakes, "note": "" if shown else samples.NONE}
