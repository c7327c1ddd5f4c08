"""What a verb returned, as a terminal shows it. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


def screen(result: Any) -> RenderableType:
    """Results draw themselves, but for bundles, explanations and ideas, whose rooms know nothing of terminals."""
    if hasattr(result, "__rich__"):
        shown: RenderableType = result
        return shown
    from mobilenets.reports.explain.explanation import Explanation

    if isinstance(result, Explanation):
        from mobilenets.reports.explain.terminal import Screen

        return Screen(result)
    from mobilenets.reports.explain.lessons import Lessons

    if isinstance(result, Lessons):
        from mobilenets.reports.explain.classroom import told

        return told(result)
    from mobilenets.reports.card import bundle_table

    return bundle_table(result)
