"""Predictions into a file, as they come: .jsonl, .parquet, or .npy for features alone. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mobilenets import files
from mobilenets.console import Notebook
from mobilenets.deploy.predict import Prediction
from mobilenets.errors import UserError
from mobilenets.tasks.classify import Labels
from mobilenets.tasks.features import Features

if TYPE_CHECKING:
    from rich.console import RenderableType

HEADER = 128  # bytes of a .npy file before its numbers: enough for any shape, written when the count is known
GROUP = 1024  # rows that a Parquet file's writer holds


@dataclass(frozen=True)
class Written(Notebook):
    """A file of predictions: `images` of them, `skipped` of which couldn't be read."""

    path: Path
    images: int
    skipped: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"file": str(self.path), "images": self.images, "skipped": list(self.skipped)}

    def __rich__(self) -> RenderableType:
        from rich.text import Text

        return Text(f"wrote    {self.path}: {self.images:,} images")


def counted(predictions: Iterable[Prediction], path: Path) -> Written:
    """All predictions, of something that makes the file at `path` itself."""
    skipped: list[str] = []
    count = 0
    for p in predictions:
        count += 1
        if p.error:
            skipped.append(p.error)
    return Written(path, count, tuple(skipped))


def write(predictions: Iterable[Prediction], path: Path) -> Written:
    """All predictions into the file at `path`, by its suffix; it is there when all of them are in it.

    `.jsonl`: a line each, as `--json` prints them. `.parquet`: columns image, error, and features, or label (none where
    it is unsure) and probability of the best, or any other answer as JSON. `.npy`: float32 [images, *shape] of
    features, a row of NaN for an image that couldn't be read, so that rows and images go together. Raises `UserError`.
    """
    if path.suffix not in WRITERS:
        raise UserError(f"{path}: predictions go into {', '.join(WRITERS)} files; name one of them")
    skipped: list[str] = []
    count = 0

    def seen() -> Iterator[Prediction]:
        nonlocal count
        for p in predictions:
            count += 1
            if p.error:
                skipped.append(p.error)
            yield p

    with files.atomic_file(path) as tmp:
        WRITERS[path.suffix](seen(), tmp)
    return Written(path, count, tuple(skipped))


def _lines(predictions: Iterable[Prediction], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as f:
        for p in predictions:
            f.write(json.dumps(p.to_json()) + "\n")


def _features(p: Prediction) -> npt.NDArray[np.float32]:
    if not isinstance(p.answer, Features):
        raise UserError(".npy files hold features: ask for them with --task features, or write .jsonl or .parquet")
    return p.answer.values


def _npy(predictions: Iterable[Prediction], path: Path) -> None:
    shape: tuple[int, ...] | None = None
    waiting = rows = 0  # images that couldn't be read before the first that could
    with path.open("wb") as f:
        f.write(bytes(HEADER))
        for p in predictions:
            rows += 1
            if p.error and shape is None:
                waiting += 1
                continue
            values = np.full(shape, np.nan, np.float32) if p.error and shape else _features(p)
            if shape is None:
                shape = values.shape
                f.write(np.full((waiting, *shape), np.nan, np.float32).tobytes())
            f.write(values.astype("<f4").tobytes())
        _npy_header(f, (rows, *(shape or ())) if shape else (0,))


def _npy_header(f: BinaryIO, shape: tuple[int, ...]) -> None:
    """NumPy's format 1.0: a magic string, the length of what follows, a dictionary padded with blanks."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape!r}, }}"
    f.seek(0)
    f.write(b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11).encode() + b"\n")


def _parquet(predictions: Iterable[Prediction], path: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as e:
        raise UserError("Parquet files need pyarrow: pip install 'mobilenets[parquet]'") from e

    def table(rows: list[Prediction], of_features: bool, others: bool) -> Any:
        columns = {"image": [p.image for p in rows], "error": [p.error for p in rows]}
        if of_features:
            values = [p.answer.values.ravel() if isinstance(p.answer, Features) else None for p in rows]
            return pa.table({**columns, "features": pa.array(values, pa.list_(pa.float32()))})
        if others:
            said = [json.dumps(p.answer.to_json()) if p.answer else None for p in rows]
            return pa.table({**columns, "answer": pa.array(said, pa.string())})
        best = [p.top[0] if p.top else (None, None) for p in rows]
        labels, probabilities = [p.label for p in rows], [b[1] for b in best]
        return pa.table({
            "image": columns["image"], "error": pa.array(columns["error"], pa.string()),
            "label": pa.array(labels, pa.string()), "probability": pa.array(probabilities, pa.float64()),
        })  # fmt: skip

    writer: Any = None
    rows: list[Prediction] = []
    of_features = others = False

    def flush() -> None:
        nonlocal writer
        made = table(rows, of_features, others)
        made = made.set_column(1, "error", made["error"].cast(pa.string()))
        writer = writer or pq.ParquetWriter(path, made.schema)
        writer.write_table(made)
        rows.clear()

    for p in predictions:
        of_features |= isinstance(p.answer, Features)
        others |= p.answer is not None and not isinstance(p.answer, Features | Labels)
        rows.append(p)
        if len(rows) == GROUP:
            flush()
    flush()
    writer.close()


WRITERS: dict[str, Callable[[Iterable[Prediction], Path], None]] = {
    ".jsonl": _lines,
    ".parquet": _parquet,
    ".npy": _npy,
}
