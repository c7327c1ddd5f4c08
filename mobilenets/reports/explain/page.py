"""An `Explanation`, or ideas, as one HTML page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from mobilenets.arch.cost import TYPE_NAMES
from mobilenets.arch.spec import Arch
from mobilenets.reports import pages
from mobilenets.reports.explain import diagram, drawings
from mobilenets.reports.explain.explanation import Explanation
from mobilenets.reports.explain.lessons import Lessons
from mobilenets.reports.explain.parts import Part, shapes_of
from mobilenets.reports.explain.words import millions, percent, sentences, shape, times


def _drawn(part: Part, arch: Arch) -> str:
    """A block as slabs and boxes along a line; one with branches as a diagram."""
    if any(op.kind == "concat" for op in part.ops):
        return diagram.diagram(part.source, part.ops, shapes_of(arch), part.kind)
    return drawings.block(part, arch.resolution)


def page(e: Explanation) -> str:
    """An Explanation as one HTML page with everything in it."""
    filters: dict[str, Callable[..., Any]] = {
        "count": lambda n: f"{n:,.0f}",
        "millions": millions,
        "shape": shape,
        "percent": percent,
        "times": times,
        "draw": lambda p: Markup(_drawn(p, e.arch)),
    }
    return pages.render(
        "explain.html",
        filters,
        e=e,
        overview=Markup(drawings.overview(e)),
        facts=list(sentences(e)),
        css=drawings.CSS,
        names=TYPE_NAMES,
    )


def ideas(told: Lessons) -> str:
    """Ideas as one HTML page, each beside what it replaces."""
    count = "{:,}".format
    filters: dict[str, Callable[..., Any]] = {
        "millions": millions,
        "count": count,
        "draw": lambda way: Markup(diagram.drawn(way)),
    }
    return pages.render("ideas.html", filters, told=told)
