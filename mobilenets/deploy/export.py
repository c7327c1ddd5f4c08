"""Bundle -> a file that runs without us, proved to compute what the bundle computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilenets import files
from mobilenets.deploy import engines
from mobilenets.deploy.engines import Engine
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Precision
from mobilenets.model.images import Pixels

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
    from mobilenets.deploy.engines.torch import TorchEngine

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
