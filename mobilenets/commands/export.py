"""`mobilenets export`: a bundle as a file for a runtime."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from mobilenets.arguments import DataSource, StrPath, as_path, checked
from mobilenets.commands.options import as_task
from mobilenets.commands.pipeline import CALIBRATED, find_evidence, in_precision, make_file
from mobilenets.data.source import Reading, named
from mobilenets.deploy import beside, engines
from mobilenets.deploy.export import Export, check_out
from mobilenets.errors import UserError
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle


@checked
def export(
    bundle: StrPath,
    data_source: DataSource | None = None,
    *,
    out: StrPath,
    to: str = "",
    precision: str = "",
    batch: int = 0,
    raw: bool = False,
    task: str = "",
    tap: str = "",
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    root: StrPath | None = None,
) -> Export:
    """Write a bundle as a file for a runtime: uint8 images [N, H, W, 3] in, its task's answers out, the card inside.

    The file is proved against PyTorch on real images, held out from training, and scored on all of them; one that
    differs by more than the limits that are printed, or isn't of the precision asked for, isn't kept. Images without
    the network's labels serve too, without a score; for floats, generated ones do.

    Parameters
    ----------
    bundle
        A bundle's folder (float or int8), a run's, or a packaged network's name.
    data_source
        Images to prove it on, labelled or not; those the bundle was trained on, if left out.
    out
        The file to write (for some formats a folder). Beside it, OUT.card.json is its card, and OUT.labels.txt has its
        labels, for programs that can't read the card inside.
    to
        Format: onnx, openvino, tflite, executorch, ncnn, coreml, pt2, native, c or c-array; by default what OUT's
        suffix says.
    precision
        float32, float16, int8, dynamic (int8 weights alone) or int4 (4-bit weights alone), as the format has them; by
        default the bundle's own. int8 of a float bundle quantizes it first, on training images.
    batch
        Images in every call of the file; 0 leaves them open (but for TFLite's and ncnn's that give boxes: one).
    raw
        A detector's offsets and scores of every anchor, in place of the boxes that they come to.
    task
        features: what the network sees instead of its answers, the pooled vector that its classifier reads.
    tap
        The operation whose output the features are, by its name in `mobilenets cost ARCH --layers`; it implies
        --task features.
    root
        Where local copies of named data sets are; where a table's paths start, if not at its own folder.

    Returns
    -------
    Export
        The file's `path`, `sha256`, `size_bytes`, `engine` and `precision`; `agreement` with PyTorch in percent of
        images, the largest `difference`, and its `score` on what was held out.

    Raises
    ------
    UserError
        For a bundle, format or precision that isn't there, a runtime that isn't installed, a file that fails its proof.

    Examples
    --------
    >>> import mobilenets
    >>> made = mobilenets.export("runs/flowers", "flowers", out="flowers.onnx")
    >>> made.engine, made.precision, made.agreement
    ('onnxruntime', 'float32', 100.0)
    """
    out = as_path(out)
    engine = engines.for_format(to) if to else engines.for_suffix(out)
    if batch < 0:
        raise UserError(f"batch must be 0 or more, not {batch}")
    source = as_task(Bundle.load(bundles.find_bundle(as_path(bundle))), task, tap)
    wanted = engines.check_precision(engine, precision or source.card.precision)
    engines.module(engine)  # says what to install before any data is read
    check_out(out, engine)
    given = named(data_source, reading)
    seen = find_evidence(source.card, given, as_path(root), wanted if wanted in CALIBRATED else "")
    made = in_precision(source, wanted, seen.data)
    beside.check(out, made.card)
    exported = make_file(made, seen, out, engine, wanted, batch or None, raw).export
    beside.write(out, made.card.replace(precision=wanted, parent=made.digest))
    return exported
