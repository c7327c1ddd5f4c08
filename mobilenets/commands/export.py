"""`mobilenets export`: a bundle as a file for a runtime."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mobilenets.commands.pipeline import in_precision
from mobilenets.data.open import of_card
from mobilenets.deploy import engines, evaluate
from mobilenets.deploy.export import PARITY_IMAGES, Export, export_bundle
from mobilenets.errors import UserError
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle


def export(
    bundle: Path,
    data_source: str | None = None,
    *,
    out: Path,
    to: str = "",
    precision: str = "",
    batch: int = 0,
    root: Path | None = None,
) -> Export:
    """Write a bundle as a file for a runtime: uint8 images [N, H, W, 3] in, probabilities out, the card inside.

    The file is proved against PyTorch on real images, held out from training, and scored on all of them; one that
    differs, or isn't of the precision asked for, isn't kept.

    Parameters
    ----------
    bundle
        A bundle's folder (float or int8), a run's, or a packaged network's name.
    data_source
        Images to prove it on; those the bundle was trained on, if left out.
    out
        The file to write (for some formats a folder).
    to
        Format: onnx, openvino, tflite, executorch, ncnn, coreml, pt2 or c-array; by default what OUT's suffix says.
    precision
        float32, float16, int8, dynamic (int8 weights alone) or int4 (4-bit weights alone), as the format has them; by
        default the bundle's own. int8 of a float bundle quantizes it first, on training images.
    batch
        Images in every call of the file; 0 leaves them open.
    root
        Where local copies of named data sets are.
    """
    engine = engines.for_format(to) if to else engines.for_suffix(out)
    if batch < 0:
        raise UserError(f"batch must be 0 or more, not {batch}")
    source = Bundle.load(bundles.find_bundle(bundle))
    wanted = engines.check_precision(engine, precision or source.card.precision)
    engines.module(engine)  # says what to install before any data is read
    d = of_card(source.card, data_source, root)
    images = d.sample(d.held_out, PARITY_IMAGES, source.card.preprocess)
    made = export_bundle(in_precision(source, wanted, d), images.pixels, out, d.source, engine, wanted, batch or None)
    if made.agreement is None:
        return made
    scores = evaluate.score(engines.load(out), d, d.held_out)
    return dataclasses.replace(made, top1=scores.top1, split=d.held_out)
