"""Bundle -> a file that runs without us, proved to compute what the bundle computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilenets import bundle as bundles
from mobilenets import data, engines, evaluate, files, quantize
from mobilenets.bundle import Bundle, Precision
from mobilenets.data import Data
from mobilenets.engines import Engine
from mobilenets.errors import UserError
from mobilenets.images import Pixels

if TYPE_CHECKING:
    from rich.console import RenderableType

PARITY_IMAGES = 256
BATCH = 8  # larger ones cost more in fresh memory than they save
# What a right export may differ by, in percent of top-1 and in probability: float sums are taken in another order. In
# int8, roundings at a tie fall either way, layer after layer: on photos of ImageNet's classes, runtimes that agree with
# each other differ from PyTorch's simulation in up to 3% of the top-1, and by .15 in an unsure image's probability.
LIMITS: dict[Precision, tuple[float, float]] = {
    "float32": (99.0, 1e-3),
    "float16": (99.0, 0.03),
    "int8": (93.0, 0.25),
    "dynamic": (92.0, 0.25),
    "int4": (99.0, 0.03),
}


@dataclass(frozen=True)
class Export:
    """An exported file and its proof over `images` images.

    `agreement`: percent with the same top-1 as PyTorch; `difference`: the largest between two probabilities; both None
    where this system has no runtime for the file. `top1`: its accuracy in percent on the whole `split`, if asked for.
    """

    path: Path
    engine: str
    precision: Precision
    size_bytes: int
    agreement: float | None
    difference: float | None
    images: int
    data: str
    top1: float | None = None
    split: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path)}

    def __rich__(self) -> RenderableType:
        from mobilenets.console import megabytes, table

        t = table(f"exported {self.path}", ["", "value"], left=("",))
        t.add_row("runtime", self.engine)
        t.add_row("precision, as found in the file", self.precision)
        t.add_row("size (MB)", megabytes(self.size_bytes))
        if self.agreement is None:
            t.add_row("proof", "none: this system can't run it")
        else:
            t.add_row(f"top-1 agreement with PyTorch (%), {self.images} images of {self.data}", f"{self.agreement:.2f}")
            t.add_row("largest difference of a probability", f"{self.difference:.2g}")
        if self.top1 is not None:
            t.add_row(f"top-1 (%), {self.split} split", f"{self.top1:.2f}")
        return t


def export_bundle(
    source: Bundle,
    images: Pixels,
    path: Path,
    data_name: str,
    engine: str = "onnxruntime",
    precision: Precision | None = None,
    batch: int | None = None,
) -> Export:
    """Write `source` to `path` for `engine`, proved on `images`, uint8 [N, H, W, 3]; a failed proof leaves no file.

    `precision`: of the file, the bundle's own if None; an int8 bundle gives int8 files, a float one all others.
    Raises `UserError` where the file's answers differ from PyTorch's by more than LIMITS, or the file isn't of the
    precision asked for.
    """
    from mobilenets.engines.torch import TorchEngine

    if not len(images):
        raise UserError("an export is proved on real images, and there are none; name data with --data")
    precision = engines.check_precision(engine, precision or source.card.precision)
    if (precision == "int8") != (source.card.precision == "int8"):
        raise UserError(f"a {source.card.precision} bundle gives no {precision} file; quantize makes an int8 bundle")
    made = Bundle(source.card.replace(precision=precision, parent=source.digest), source.tensors)
    module, runtime = engines.module(engine), engines.runtime(engine)
    if path.suffix != runtime.suffix:  # by which its engine is found
        raise UserError(f"{path}: for {runtime.format}, its name has to end in {runtime.suffix}")
    with written(path, runtime.folder) as tmp:
        module.write(made, tmp, batch)
        found = module.stored(tmp)
        if found != precision:
            raise UserError(f"{path} was not kept: {engine} made it {found}, not the {precision} that was asked for")
        size = files.size_on_disk(tmp)
        if not runtime.runs_here:
            return Export(path, engine, precision, size, None, None, 0, data_name)
        agreement, difference = compare(TorchEngine(made, threads=2), module.load(tmp, 1), images, path)
    return Export(path, engine, precision, size, agreement, difference, len(images), data_name)


@contextmanager
def written(path: Path, folder: bool) -> Iterator[Path]:
    """A path that doesn't exist, for a runtime to write to: it takes the place of `path` if the block ends well."""
    if folder:
        with files.atomic_dir(path) as tmp:
            tmp.rmdir()
            yield tmp
    else:
        with files.atomic_file(path) as tmp:
            yield tmp


def compare(reference: Engine, engine: Engine, images: Pixels, path: Path) -> tuple[float, float]:
    """Top-1 agreement in percent, and the largest difference; a UserError where they are beyond LIMITS."""
    pieces = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    a, b = (np.concatenate([e(piece) for piece in pieces]) for e in (reference, engine))
    differ = int((a.argmax(1) != b.argmax(1)).sum())
    agreement = 100 * (1 - differ / len(a))
    difference = float(np.abs(a - b).max())
    precision = engine.card.precision
    own = engines.runtime(engine.name).int8_limits if precision == "int8" else None
    agreement_limit, difference_limit = own or LIMITS[precision]
    # Of few images, one at a tie would be more than the limit's share; how far it differs is bounded anyway.
    if not ((differ <= 1 or agreement >= agreement_limit) and difference <= difference_limit):
        raise UserError(
            f"{path} was not kept: it differs from PyTorch (top-1 agreement {agreement:.2f}%, needs "
            f"{agreement_limit}%; largest difference {difference:.3g}, limit {difference_limit})"
        )
    return agreement, difference


def in_precision(source: Bundle, precision: Precision, d: Data) -> Bundle:
    """The bundle that a file of `precision` is made from.

    Of a float one and training images: quantized where int8 is asked for, its biases corrected for coarser weights.
    """
    if source.card.precision != "float32" or precision not in ("int8", "dynamic", "int4"):
        return source
    images = d.sample("train", quantize.CALIBRATION_IMAGES, source.card.preprocess).pixels
    if precision == "int8":
        return quantize.quantize_bundle(source, images)
    return quantize.correct_bundle(source, precision, images)


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
    d = data.of_card(source.card, data_source, root)
    images = d.sample(d.held_out, PARITY_IMAGES, source.card.preprocess)
    made = export_bundle(in_precision(source, wanted, d), images.pixels, out, d.source, engine, wanted, batch or None)
    if made.agreement is None:
        return made
    scores = evaluate.score(engines.load(out), d, d.held_out)
    return dataclasses.replace(made, top1=scores.top1, split=d.held_out)
