"""How every HTML page is made: one self-contained file from a template, with the style that all pages share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from mobilenets.console import count, mb, ms, share

TEMPLATES = Path(__file__).with_name("templates")
NUMBERS: dict[str, Callable[..., str]] = {"ms": ms, "mb": mb, "count": count, "share": share}  # as filters


def render(template: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """The page that a file in templates/ makes of `values`. An unknown name in it is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(template).render(**values)
