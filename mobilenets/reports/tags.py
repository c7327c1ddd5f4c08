"""What a report shows of a tagger's answers: every tag's scores beside its floors, and samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenets.errors import UserError
from mobilenets.reports import answers
from mobilenets.tasks.tagging import FEW

if TYPE_CHECKING:
    from mobilenets.reports.fit import Page

TEMPLATE = "tags.html"
FIELDS = ("ap", "accuracy", "balanced", "positives", "count", "share", "threshold")


def columns(page: Page) -> list[tuple[str, str, str]]:  # noqa: ARG001
    """Scores of a step beside the primary one: title, name in steps.json, format."""
    return [("accuracy, %", "accuracy", "%.2f"), ("balanced, %", "balanced", "%.2f"), ("loss, nats", "loss", "%.4f")]


def check(page: Page) -> None:
    """Raises `UserError` where the scores aren't of the card's tags."""
    scores = page.shipped.scores
    found, floors = scores.get("per_label"), scores.get("floors")
    if not isinstance(found, Mapping) or {*found} != {*page.card.labels}:
        raise UserError("its scores aren't of the card's tags")
    numbers = [one.get(name) if isinstance(one, Mapping) else "" for one in found.values() for name in FIELDS]
    numbers += [floors.get(name) if isinstance(floors, Mapping) else "" for name in ("map", "accuracy", "balanced")]
    if not all(v is None or type(v) in (int, float) for v in numbers):
        raise UserError("its tags' scores aren't numbers")


def values(page: Page, root: Path | None) -> dict[str, Any]:
    """What the template takes."""
    each = [{"label": label, **page.shipped.scores["per_label"][label]} for label in page.card.labels]
    ranked = sorted(each, key=lambda t: (t["ap"] is None, t["ap"]))
    return {**answers.values(page, root, draw=False), "tags": ranked, "few": FEW, "images": page.card.trust.images}
