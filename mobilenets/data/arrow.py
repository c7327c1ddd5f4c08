"""Parquet files, and folders of Hugging Face's datasets on disk, as tables. Needs pyarrow; no torch."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

from mobilenets import files
from mobilenets.data.dataset import memory
from mobilenets.data.folder import split_of
from mobilenets.data.table import Cell, Cells, Table
from mobilenets.data.tables import cell
from mobilenets.errors import UserError
from mobilenets.model.convert.formats import one_line

PARQUET, ARROW = ".parquet", ".arrow"
DICTIONARY, STATE = "dataset_dict.json", "state.json"  # of datasets.DatasetDict, and of a Dataset, saved to disk


def is_saved(folder: Path) -> bool:
    """Whether a folder is a dataset saved to disk, whatever images are beside it."""
    return (folder / DICTIONARY).is_file() or (folder / STATE).is_file()


def find(path: Path) -> list[Table]:
    """The tables of a file, or of a folder of Parquet files or of a saved dataset; none of another folder.

    Raises `UserError` for damaged ones.
    """
    if path.is_file():
        return [_table(str(path), [path], None)]
    if (path / DICTIONARY).is_file():
        splits = files.read_json(path / DICTIONARY, ("splits",), "a saved dataset")["splits"]
        if not isinstance(splits, list) or not all(isinstance(s, str) and PurePath(s).name == s for s in splits):
            raise UserError(f"{path / DICTIONARY}: its splits aren't a list of folders' names")
        known = {s: split for s in splits if (split := split_of(s))}
        if not known:
            raise UserError(f"{path}: its splits are {', '.join(splits)}: none is train, val or test")
        return [_table(str(path / s), _saved(path / s), split) for s, split in known.items()]
    if (path / STATE).is_file():
        return [_table(str(path), _saved(path), None)]
    by_split: dict[str | None, list[Path]] = {}
    for file in sorted(path.glob(f"*{PARQUET}")) or sorted(path.glob(f"data/*{PARQUET}")):
        by_split.setdefault(split_of(file.stem), []).append(file)
    if len(by_split) > 1 and None in by_split:
        raise UserError(f"{by_split[None][0]}: no split is in its name, as it is in those of others beside it")
    return [_table(f"{path} {split or ''}".strip(), paths, split) for split, paths in by_split.items()]


def _saved(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.glob(f"*{ARROW}") if not p.name.startswith("cache-"))
    if not found:
        raise UserError(f"{folder}: no {ARROW} files, which a dataset saved to disk has")
    return found


def _table(name: str, paths: Sequence[Path], split: str | None) -> Table:
    import pyarrow as pa

    schema = _guarded(name, lambda: _schema(paths[0]))
    order = _classes(schema)

    def values(column: str) -> Sequence[Cell]:
        found = _guarded(name, lambda: _column(paths, column).to_pylist())
        names = order.get(column)
        if names is None:
            return [cell(v, name, column) for v in found]
        if any(v is not None and not (type(v) is int and v < len(names)) for v in found):
            raise UserError(f"{name}: column {column!r} has numbers beyond its {len(names)} classes")
        return [None if v is None or v < 0 else names[v] for v in found]  # -1: not labelled

    def holds_images(kind: Any) -> bool:
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return holds_images(kind.field("bytes").type)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    images = {f.name: functools.partial(_cells, name, paths, f.name, split) for f in schema if holds_images(f.type)}
    return Table(name, tuple(schema.names), values, images, order, split=split)


def _cells(name: str, paths: Sequence[Path], column: str, split: str | None) -> Cells:
    """Names are those the column has, where they tell its images apart, else numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    _check_size(name, paths, column)
    read = ColumnReader(tuple(paths), column)
    kept = _guarded(name, lambda: read.column)
    inner = pc.struct_field(kept, "bytes") if pa.types.is_struct(kept.type) else kept
    sizes = [n or 0 for n in pc.binary_length(inner).to_pylist()]
    has_paths = pa.types.is_struct(kept.type) and kept.type.get_field_index("path") >= 0
    named = pc.struct_field(kept, "path").to_pylist() if has_paths else []
    names = [PurePath(n).name for n in named if isinstance(n, str) and n]
    if len({*names}) < len(sizes):
        first = next((bytes(v.as_py()[:4]) for v in inner if v.is_valid), b"")
        suffix = "png" if first == b"\x89PNG" else "jpg"
        names = [f"{split or 'image'}-{i:06d}.{suffix}" for i in range(len(sizes))]
    return Cells(names, sizes, read)


class ColumnReader:
    """Image i of a column of files: its bytes, or its path where the column has that alone."""

    def __init__(self, paths: tuple[Path, ...], column: str) -> None:
        self.paths, self.name = paths, column

    @functools.cached_property
    def column(self) -> Any:
        return _column(self.paths, self.name)

    def __call__(self, i: int) -> bytes | str:
        value = self.column[i].as_py()
        if isinstance(value, dict):
            value = value["bytes"] if value["bytes"] is not None else value.get("path")
        return b"" if value is None else value if isinstance(value, str) else bytes(value)

    def __reduce__(self) -> tuple[type[ColumnReader], tuple[tuple[Path, ...], str]]:
        return ColumnReader, (self.paths, self.name)  # another process opens the files itself


def _schema(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_schema(path) if path.suffix.lower() == PARQUET else _mapped(path).schema


def _column(paths: Sequence[Path], column: str) -> Any:
    """A column of several files, as one chunked array; that of .arrow files stays on disk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = [
        pq.ParquetFile(p).read(columns=[column]) if p.suffix.lower() == PARQUET else _mapped(p).select([column])
        for p in paths
    ]
    return pa.concat_tables(parts)[column]


def _mapped(path: Path) -> Any:
    import pyarrow as pa

    mapped = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(mapped).read_all()
    except pa.ArrowInvalid:  # not the stream that datasets writes, but a file with an index
        return pa.ipc.open_file(mapped).read_all()


def _check_size(name: str, paths: Sequence[Path], column: str) -> None:
    """Raises `UserError` for Parquet images that don't fit in memory."""
    import pyarrow.parquet as pq

    size = 0
    for path in paths:
        if path.suffix.lower() == PARQUET:
            found = pq.read_metadata(path)
            for g in range(found.num_row_groups):
                chunks = (found.row_group(g).column(c) for c in range(found.row_group(g).num_columns))
                size += sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == column)
    if size > memory() // 2:
        raise UserError(
            f"{name}: {size / 1e9:.1f} GB of images, too many for this machine's memory: save them to disk by "
            "datasets (Dataset.from_parquet, save_to_disk), from where they are read one by one"
        )


def _classes(schema: Any) -> dict[str, tuple[str, ...]]:
    """What numbers stand for, of the columns of which Hugging Face's metadata says it."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {
            column: tuple(map(str, f["names"]))
            for column, f in features.items()
            if isinstance(f, dict) and f.get("_type") == "ClassLabel" and isinstance(f.get("names"), list)
        }
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return {}


def _guarded(name: str, read: Callable[[], Any]) -> Any:
    import pyarrow as pa

    try:
        return read()
    except (pa.ArrowException, OSError, ValueError, KeyError) as e:
        raise UserError(f"{name}: damaged, or no Parquet or Arrow file ({one_line(e)})") from e
