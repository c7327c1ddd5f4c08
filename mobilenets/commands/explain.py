"""`mobilenets explain`: a network made understandable."""

from __future__ import annotations

from mobilenets import files
from mobilenets.arch import cost, zoo
from mobilenets.arch.detectors import counting as detectors
from mobilenets.arguments import StrPath, as_path, checked
from mobilenets.commands.options import NumClasses
from mobilenets.errors import UserError
from mobilenets.reports.explain.explanation import Explanation


@checked
def explain(
    arch: str,
    *,
    alpha: float = 1.0,
    resolution: int | None = None,
    num_classes: NumClasses = 1000,
    blocks: bool = False,
    html: StrPath | None = None,
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

    Returns
    -------
    Explanation
        The network's cost, layer by layer, and what is told of it; `rich.print` draws it.

    Raises
    ------
    UserError
        For an unknown network, a width or resolution that can't be, a page that can't be written.

    Examples
    --------
    >>> import mobilenets
    >>> mobilenets.explain("v3-small", html="v3-small.html").cost.macs
    56510400
    """
    if arch in detectors.NAMES:
        raise UserError(
            f"explain is of networks: {arch} stands on one (v1, v2, ...), and mobilenets cost {arch} has its parts"
        )
    out = Explanation(cost.count(zoo.arch(arch, alpha, resolution, num_classes)), blocks, as_path(html))
    if html:
        from mobilenets.reports.explain.page import page

        text = page(out)
        with files.atomic_file(as_path(html)) as tmp:
            files.write_text(tmp, text)
    return out
