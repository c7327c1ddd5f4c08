"""What a report shows of the answers of a network for any task: held-out images, as the task draws them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenets.errors import UserError
from mobilenets.reports import samples

if TYPE_CHECKING:
    from mobilenets.reports.fit import Page

TEMPLATE = "answers.html"


def columns(page: Page) -> list[tuple[str, str, str]]:  # noqa: ARG001
    """Scores of a step beside the primary one: none are known here."""
    return []


def check(page: Page) -> None:
    """Any task's scores will do."""


def values(page: Page, root: Path | None, draw: bool = True, say: Callable[[Any], str] = str) -> dict[str, Any]:
    """What the template takes. `draw`: answers are more than the text that stands below each image, which `say` makes.

    Images that are drawn on are shown whole, and large.
    """
    try:
        shown = samples.drawn(page.fitted.file, page.shipped.scores["split"], root, draw, say)
    except UserError as e:
        return {"samples": page.without_samples(e)}
    return {"samples": {"images": shown, "note": "" if shown else samples.NONE, "drawn": draw}}
