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


# ---- numbers -------------------------------------------------------------------------------------------------------


def ms(v: float | None) -> str:
    """Milliseconds to three figures or three decimals, whichever is shorter."""
    if v is None:
        return ""
    return f"{v:.3f}" if v < 10 else f"{v:.2f}" if v < 100 else f"{v:,.0f}"


def mb(n: float) -> str:
    """Bytes as megabytes (10^6)."""
    return f"{n / 1e6:.2f}" if n >= 1e5 else f"{n / 1e6:.3f}"


def count(n: float) -> str:
    """A whole number, its thousands apart."""
    return f"{n:,.0f}"


def share(percent: float) -> str:
    """Percent to two decimals; one that they can't show is not 0."""
    return f"{percent:.2f}" if percent >= 0.005 or not percent else "<0.01"


NUMBERS: dict[str, Callable[..., str]] = {"ms": ms, "mb": mb, "count": count, "share": share}  # as filters
