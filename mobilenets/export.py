"""Bundle -> a file that runs without us, proved to compute what the bundle computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilenets import bundle as bundles
from mobilenets import data, engines, files
from mobilenets.bundle import Bundle
from mobilenets.errors import UserError, unknown
from mobilenets.images import Pixels

if TYPE_CHECKING:
    from rich.console import RenderableType

PARITY_IMAGES = 256
BATCH = 8  # larger ones cost more in fresh memory than they save
FORMATS = {"onnx": "onnxruntime"}  # format -> the engine that runs it
# What a right export may differ by: float sums are taken in another order; int8 roundings at a tie may fall either way.
LIMITS = {"float32": (99.0, 1e-3), "int8": (98.0, 0.1)}


@dataclass(frozen=True)
class Export:
    """An exported file and its proof over `images` images.

    `agreement`: percent with the same top-1 as PyTorch; `difference`: the largest between two probabilities.
    """

    path: Path
    precision: str
    size_bytes: int
    agreement: float
    difference: float
    images: int
    data: str

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path)}

    def __rich__(self) -> RenderableType:
        from mobilenets.console import megabytes, table

        t = table(f"exported {self.path}", ["", "value"], left=("",))
        t.add_row("precision", self.precision)
        t.add_row("size (MB)", megabytes(self.size_bytes))
        t.add_row(f"top-1 agreement with PyTorch (%), {self.images} images of {self.data}", f"{self.agreement:.2f}")
        t.add_row("largest difference of a probability", f"{self.difference:.2g}")
        return t


def export_bundle(source: Bundle, images: Pixels, path: Path, data_name: str) -> Export:
    """Write `source` to `path` (.onnx) and prove it on `images`, uint8 [N, H, W, 3]; a failed proof leaves no file.

    Raises `UserError` where the file's answers differ from PyTorch's by more than LIMITS.
    """
    from mobilenets.engines.torch import TorchEngine
    from mobilenets.onnx_graph import onnx_model

    if not len(images):
        raise UserError("an export is proved on real images, and there are none; name data with --data")
    reference = TorchEngine(source, threads=2)
    agreement_limit, difference_limit = LIMITS[source.card.precision]
    with files.atomic_file(path) as tmp:
        tmp.write_bytes(onnx_model(source.card.replace(parent=source.digest), source.tensors).SerializeToString())
        engine = engines.module("onnxruntime").load(tmp, 1)
        ours, theirs = [], []
        for i in range(0, len(images), BATCH):
            ours.append(reference(images[i : i + BATCH]))
            theirs.append(engine(images[i : i + BATCH]))
        a, b = np.concatenate(ours), np.concatenate(theirs)
        differ = int((a.argmax(1) != b.argmax(1)).sum())
        agreement = 100 * (1 - differ / len(a))
        difference = float(np.abs(a - b).max())
        # Of few images, one at a tie would be more than the limit's share; how far it differs is bounded anyway.
        if not ((differ <= 1 or agreement >= agreement_limit) and difference <= difference_limit):
            raise UserError(
                f"{path} was not kept: it differs from PyTorch (top-1 agreement {agreement:.2f}%, needs "
                f"{agreement_limit}%; largest difference {difference:.3g}, limit {difference_limit})"
            )
        size = tmp.stat().st_size
    return Export(path, source.card.precision, size, agreement, difference, len(images), data_name)


def export(
    bundle: Path, data_source: str | None = None, *, out: Path, to: str = "onnx", root: Path | None = None
) -> Export:
    """Write a bundle as a file for a runtime: uint8 images [N, H, W, 3] in, probabilities out, the card inside.

    The file is proved against PyTorch on real images, held out from training; one that differs isn't kept.

    Parameters
    ----------
    bundle
        A bundle's folder (float or int8), or a run's.
    data_source
        Images to prove it on; those the bundle was trained on, if left out.
    out
        The file to write.
    to
        Format: onnx.
    root
        Where local copies of named data sets are.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    source = Bundle.load(bundles.find_bundle(bundle))
    d = data.of_card(source.card, data_source, root)
    images = d.sample(d.held_out, PARITY_IMAGES, source.card.preprocess)
    return export_bundle(source, images.pixels, out, d.source)
