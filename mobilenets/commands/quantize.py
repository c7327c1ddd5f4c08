"""`mobilenets quantize`: a float bundle as an int8 one, and where that loses."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mobilenets import files
from mobilenets.arguments import DataSource, StrPath, as_path, checked, several
from mobilenets.commands.options import Words
from mobilenets.compression.quantize import kept_in_float, measure_ranges
from mobilenets.compression.scheme import CALIBRATION_IMAGES, DEFAULT, Calibration, Scheme
from mobilenets.data.dataset import Data
from mobilenets.data.source import Reading, named
from mobilenets.errors import UserError
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle
from mobilenets.model.encodings import Folded
from mobilenets.reports.card import bundle_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mobilenets.compression.sensitivity import LayerReport


@dataclass(frozen=True, kw_only=True)
class Reported(Bundle):
    """An int8 bundle with its report, which was written to `path`."""

    report: LayerReport
    path: Path

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "layer_report": self.report.to_json()}

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        return Group(bundle_table(self), self.report, f"page {self.path}")


def reported(int8: Bundle, folded: Folded, data: Data, path: Path) -> Reported:
    """Report on `int8` with held-out images of `data`, and write the page to `path`: one file with everything in it.

    `folded` is the float network it was rounded from. Raises `UserError` where the page can't be written.
    """
    from mobilenets.compression.sensitivity import IMAGES, layer_errors
    from mobilenets.reports.layers import page

    images = data.sample(data.held_out, IMAGES, int8.card.preprocess).pixels
    report = layer_errors(int8, folded, images, f"{data.source} {data.held_out}")
    with files.atomic_file(path) as tmp:
        files.write_text(tmp, page(report))
    return Reported(int8.card, int8.tensors, int8.digest, report=report, path=path)


@checked
def quantize(
    bundle: StrPath,
    data: DataSource | None = None,
    *,
    out: StrPath,
    calibration: Calibration = DEFAULT.calibration,
    images: int = CALIBRATION_IMAGES,
    per_layer: bool = False,
    equalize: bool = False,
    no_bias_correction: bool = False,
    keep_float: Words = (),
    max_drop: float | None = None,
    mixed: bool = False,
    qat: int = 0,
    layer_report: StrPath | None = None,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    root: StrPath | None = None,
) -> Bundle:
    """Quantize a float bundle to int8: per channel, biases corrected, calibrated on training images.

    Parameters
    ----------
    bundle
        A float bundle's folder, or a run's.
    data
        Images to calibrate on, labelled or not (--max-drop and --qat need labels); the training split of the data the
        bundle was trained on, if left out.
    out
        Folder of the int8 bundle.
    calibration
        Range of the activations: all of it (minmax), all but 0.01% at either end (percentile), or the one with the
        least squared rounding error (mse).
    images
        Calibration images, at most.
    per_layer
        One scale for all weights of a layer. It shows why there is one for each channel: most networks collapse.
    equalize
        Scale channels between layers so that weights span the same range before they are rounded.
    no_bias_correction
        Leave the biases as they are, not corrected for what rounding the weights adds to each channel's mean.
    keep_float
        Operations to keep in float, by name, with commas between; besides those that say where a detector's boxes are,
        for which 256 values are too few.
    max_drop
        What int8 may lose of its task's score against float on the val split: a classifier, points of top-1. If it
        loses more, nothing is written, and the operations are named that would have to stay in float.
    mixed
        Keep those in float then.
    qat
        Epochs of quantization-aware training on the training images: the int8 network learns to answer as the float
        one does. One that was stopped goes on when the same command is given again, and one whose result loses more
        than --max-drop is where --mixed begins; until there is a bundle it is in OUT.qat.
    layer_report
        Write an HTML page to this file: each operation's error and ranges on held-out images, the worst first.
    root
        Where local copies of named data sets are; where a table's paths start, if not at its own folder.

    Returns
    -------
    Bundle
        The int8 bundle, as it is in `out` now; with `layer_report` a `Reported`, which has the report too.

    Raises
    ------
    UserError
        For a bundle that isn't float, data or operations that aren't there, a loss above `max_drop`, numbers that can't
        be.

    Examples
    --------
    >>> import mobilenets
    >>> mobilenets.quantize("runs/flowers", "flowers", out="int8", images=24).card.precision
    'int8'
    """
    out, page = Path(out), as_path(layer_report)
    from mobilenets.compression import mixed as mixing
    from mobilenets.tasks import data_of, images_of

    if page is not None and page.is_dir():
        raise UserError(f"{page} is a folder; --layer-report needs the name of a file")
    bundles.check_out(out)
    source = Bundle.load(bundles.find_bundle(Path(bundle)))
    if images < 1:
        raise UserError(f"images must be at least 1, not {images}")
    if max_drop is not None and not max_drop >= 0:
        raise UserError(f"max-drop must be 0 or more, not {max_drop:g}")
    if mixed and max_drop is None:
        raise UserError("--mixed keeps in float what --max-drop needs; say how many points may be lost: --max-drop 1")
    if qat:
        from mobilenets.compression.qat import check_trainable

        check_trainable(source.card)  # before the images are looked at
    scheme = Scheme(calibration, per_layer, equalize, not no_bias_correction, several(keep_float))
    floats = kept_in_float(source.card, scheme)
    scored, given = qat or max_drop is not None, named(data, reading)
    dataset = data_of(source.card, given, as_path(root)) if scored else images_of(source.card, given, as_path(root))[0]
    pixels = dataset.sample("train", images, source.card.preprocess).pixels
    measured = measure_ranges(source, pixels, scheme)
    with contextlib.ExitStack() as training:
        if qat:
            from mobilenets.compression.qat import train_int8

            measured = training.enter_context(train_int8(source, measured, dataset, qat, floats, out))
        if max_drop is None:
            made = measured.bundle(floats)
        else:
            made = mixing.quantize_within(max_drop, source, dataset, measured, pixels, floats, mixed=mixed)
        made = made.save(out)
    return made if page is None else reported(made, measured.folded, dataset, page)
