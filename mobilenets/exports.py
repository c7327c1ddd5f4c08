"""A network in every format asked for: each file proved and scored, kept in the run's folder, made again only if the
network changed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from mobilenets import bundle as bundles
from mobilenets import console, data, engines, evaluate, files
from mobilenets.bundle import PRECISIONS, Bundle, Precision
from mobilenets.errors import UserError, unknown
from mobilenets.export import PARITY_IMAGES, Export, export_bundle, in_precision

FOLDER, RECORD = "exports", "exports.json"


def combinations(engine: Sequence[str], precision: Sequence[str], of: Precision) -> list[tuple[str, Precision]]:
    """The (engine, precision) pairs asked for that a bundle of precision `of` can be exported to.

    "all" engines are those that are installed and run on this system. Raises `UserError` for unknown names, for an
    engine that isn't installed, and where no pair is left.
    """
    names = list(engine)
    if names == ["all"]:
        names = [n for n in engines.installed() if engines.runtime(n).runs_here and engines.runtime(n).timed]
    for p in precision:
        if p not in (*PRECISIONS, "all"):
            raise unknown("precision", p, (*PRECISIONS, "all"))
    pairs: list[tuple[str, Precision]] = []
    for n in names:
        engines.module(n)
        for p in engines.runtime(n).precisions:
            possible = of == "float32" or p == "int8"
            if possible and (p in precision or "all" in precision):
                pairs.append((n, p))
    if not pairs:
        raise UserError(f"{', '.join(names)} can't run a {of} bundle in {', '.join(precision)}")
    return pairs


def make(
    path: Path, pairs: Sequence[tuple[str, Precision]], folder: Path, data_source: str | None, root: Path | None
) -> Iterator[Export | str]:
    """An `Export` for each pair, or the line that says why there is none; files of `path` go into `folder`."""
    source = Bundle.load(bundles.find_bundle(path))
    d = data.of_card(source.card, data_source, root)
    images = d.sample(d.held_out, PARITY_IMAGES, source.card.preprocess).pixels
    record = folder / RECORD
    made = json.loads(record.read_text()) if record.exists() else {}
    quantized = _int8(path, source)
    sources: dict[Precision, Bundle] = {"int8": quantized} if quantized else {}
    with console.progress("files") as bar:
        task = bar.add_task("exporting", total=len(pairs), status="")
        for engine, precision in pairs:
            bar.update(task, advance=1, status=f"{engine} {precision}")
            name = f"{engine}-{precision}{engines.runtime(engine).suffix}"
            of = quantized if quantized and precision == "int8" else source
            key = [of.digest, engines.version(engine), d.source]
            if name in made and made[name]["of"] == key and (folder / name).exists():
                yield Export(**{**made[name]["export"], "path": folder / name})
                continue
            try:
                if precision not in sources:
                    sources[precision] = in_precision(source, precision, d)
                one = export_bundle(sources[precision], images, folder / name, d.source, engine, precision)
                if one.agreement is not None:
                    scores = evaluate.score(engines.load(one.path), d, d.held_out)
                    one = dataclasses.replace(one, top1=scores.top1, split=d.held_out)
            except UserError as e:
                yield f"{engine} {precision}: {e}"
                continue
            made[name] = {"of": key, "export": one.to_json()}
            files.write_json(record, made)
            yield one


def _int8(path: Path, source: Bundle) -> Bundle | None:
    """The int8 bundle that a run has of its float one."""
    if source.card.precision == "int8":
        return source
    if bundles.is_bundle(path / "int8"):
        b = Bundle.load(path / "int8")
        if b.card.parent == source.digest:
            return b
    return None
