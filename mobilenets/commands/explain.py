"""`mobilenets explain`: a network made understandable."""

from __future__ import annotations

from pathlib import Path

from mobilenets import files
from mobilenets.arch import cost, zoo
from mobilenets.commands.options import NumClasses
from mobilenets.reports.explain.explanation import Explanation


def explain(
    arch: str,
    *,
    alpha: float = 1.0,
    resolution: int | None = None,
    num_classes: NumClasses = 1000,
    blocks: bool = False,
    html: Path | None = None,
) -> Explanation:
    """A network explained: its blocks drawn, where the cost sits and why, its knobs and its ideas.

    Parameters
    ----------
    arch
        Network: v1, v2, v3-large, ...; `mobilenets list` shows them all.
    alpha
        Width multiplier, above 0 and at most 2.
    resolution
        Input height and width in pixels, 32 or more; the one the network's paper leads with, if left out.
    num_classes
        Outputs of the classifier.
    blocks
        Draw every block, each beside a standard convolution.
    html
        Write a page to this file instead of printing.
    """
    out = Explanation(cost.count(zoo.arch(arch, alpha, resolution, num_classes)), blocks, html)
    if html:
        from mobilenets.reports.explain.page import page

        text = page(out)
        with files.atomic_file(html) as tmp:
            tmp.write_text(text, encoding="utf-8")
    return out
