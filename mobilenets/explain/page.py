"""An `Explanation` as one HTML page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mobilenets import pages
from mobilenets.cost import TYPE_NAMES
from mobilenets.explain import Explanation, drawings
from mobilenets.explain.words import millions, percent, sentences, shape, times

TEMPLATE = Path(__file__).with_name("page.html")


def page(e: Explanation) -> str:
    """An Explanation as one HTML page with everything in it."""
    filters: dict[str, Callable[..., Any]] = {
        "count": lambda n: f"{n:,.0f}",
        "millions": millions,
        "shape": shape,
        "percent": percent,
        "times": times,
        "draw": lambda p: Markup(drawings.block(p, e.arch.resolution)),
    }
    return pages.render(
        TEMPLATE,
        filters,
        e=e,
        overview=Markup(drawings.overview(e)),
        facts=list(sentences(e)),
        css=drawings.CSS,
        names=TYPE_NAMES,
    )
