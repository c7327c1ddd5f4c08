"""How every HTML page is made: one self-contained file from a template, with the style that all pages share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2


def render(template: Path, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """The page that `template` makes of `values`; it may include page.css. An unknown name in it is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(template.name).render(**values)
