"""`mobilenets explain`: a network made understandable."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mobilenets import files
from mobilenets.arch import cost, zoo
from mobilenets.arch.detectors import counting as detectors
from mobilenets.arguments import StrPath, as_path, checked
from mobilenets.commands.options import NumClasses
from mobilenets.errors import UserError, needed_by, unknown
from mobilenets.reports.explain.explanation import Explanation
from mobilenets.reports.explain.lessons import LESSONS, Lessons

CLASSES = 1000  # ImageNet's


@checked
def explain(
    arch: str = "",
    *,
    every: Annotated[bool, Parameter(name="--all")] = False,
    alpha: float = 1.0,
    resolution: int | None = None,
    num_classes: NumClasses = CLASSES,
    blocks: bool = False,
    html: StrPath | None = None,
    compression: bool = False,
) -> Any:
    """A network explained: its blocks drawn, where the cost sits and why, its knobs and its ideas; or an idea.

    The ideas: separable, 1x1, fire, shuffle, inverted-residual, ghost, stride, pooling, downsampling, multipliers; each
    is drawn and counted beside what it replaces.

    Parameters
    ----------
    arch
        Network: v1, v2, v3-large, ...; `mobilenets list` shows them all. Or an idea.
    every
        All ideas; with `html`, one page to teach from.
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
    compression
        Of a bundle (its folder, .mnz file or run) in the place of a network: how each layer is stored, its bytes
        before and after, and how near its codes come to their entropy.

    Returns
    -------
    Explanation or Lessons
        The network's cost, layer by layer, and what is told of it; `rich.print` draws it. Of ideas, their ways with
        macs and params.
        With `compression`, a `Stored`: each layer's bytes.

    Raises
    ------
    UserError
        For an unknown network or idea, a width or resolution that can't be, a page that can't be written.

    Examples
    --------
    >>> import mobilenets
    >>> mobilenets.explain("v3-small", html="v3-small.html").cost.macs
    56510400
    """
    if compression:
        if not arch or every or blocks or alpha != 1.0 or resolution or num_classes != CLASSES:
            raise UserError("--compression takes a bundle, as it is, and --html: explain small.mnz --compression")
        return _stored(Path(arch), as_path(html))
    if every == bool(arch):
        raise UserError("explain needs a network, an idea, or --all for all ideas: mobilenets explain --help")
    if every or arch in LESSONS:
        told = Lessons(tuple(LESSONS.values()) if every else (LESSONS[arch],), as_path(html))
        if html:
            from mobilenets.reports.explain.page import ideas

            _write(as_path(html), ideas(told))
        return told
    if zoo.canonical(arch) not in zoo.EVERY and arch not in detectors.NAMES:
        raise unknown("network or idea", arch, (*zoo.EVERY, *LESSONS))
    if arch in detectors.NAMES:
        raise UserError(
            f"explain is of networks: {arch} stands on one (v1, v2, ...), and mobilenets cost {arch} has its parts"
        )
    out = Explanation(cost.count(zoo.arch(arch, alpha, resolution, num_classes)), blocks, as_path(html))
    if html:
        from mobilenets.reports.explain.page import page

        _write(as_path(html), page(out))
    return out


def _write(path: Path, text: str) -> None:
    with files.atomic_file(path) as tmp:
        files.write_text(tmp, text)


def _stored(path: Path, html: Path | None) -> Any:
    from mobilenets.model.bundle import Bundle, find_bundle

    with needed_by("explain --compression"):
        import constriction  # noqa: F401  (sizes are those of coded files)
    from mobilenets.reports.explain.stored import page, stored

    found = find_bundle(path)
    out = stored(Bundle.load(found))
    if found.is_file():
        out = dataclasses.replace(out, file=found.stat().st_size)
    if html:
        _write(html, page(out))
    return dataclasses.replace(out, html=html)
