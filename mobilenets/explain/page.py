"""An `Explanation` as one HTML page."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from mobilenets.cost import TYPE_NAMES
from mobilenets.explain import Explanation, drawings
from mobilenets.explain.words import millions, percent, sentences, shape, times

TEMPLATE = "page.html"


def page(e: Explanation) -> str:
    """An Explanation as one HTML page with everything in it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": lambda n: f"{n:,.0f}",
        "millions": millions,
        "shape": shape,
        "percent": percent,
        "times": times,
        "draw": lambda p: Markup(drawings.block(p, e.arch.resolution)),
    }
    html: str = environment.get_template(TEMPLATE).render(
        e=e, overview=Markup(drawings.overview(e)), facts=list(sentences(e)), css=drawings.CSS, names=TYPE_NAMES
    )
    return html
