"""What a search found, as a page: each image beside the nearest ones of the index. No torch."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobilenets.deploy import inputs
from mobilenets.deploy.gallery import Found
from mobilenets.errors import UserError
from mobilenets.model.images import open_rgb
from mobilenets.reports import pages

SIDE = 160  # pixels


def page(index: str, searched: Sequence[tuple[str, str | None, str | None, Sequence[Found]]]) -> str:
    """Of (image, the name that it was given, why it couldn't be read, the nearest), one self-contained HTML page."""
    rows = [
        {
            "image": image, "uri": _picture(image), "name": name, "error": error,
            "found": [{"name": f.name, "image": f.image, "cosine": f"{f.cosine:.3f}", "uri": _picture(f.image)}
                      for f in found],
        }
        for image, name, error, found in searched
    ]  # fmt: skip
    return pages.render("gallery.html", pages.NUMBERS, index=index, rows=rows)


def _picture(name: str) -> str:
    """An image as a URI; empty where it isn't there any more, or lies in a zip."""
    if not Path(name).is_file():
        return ""
    try:
        (source,) = inputs.sources([Path(name)])
        image: Any = open_rgb(inputs.content(source), name, SIDE)
    except (UserError, ValueError):
        return ""
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
