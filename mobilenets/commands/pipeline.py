"""From a bundle to files that are proved, scored and measured: the one way that every verb goes."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilenets import console, files, tasks
from mobilenets.compression import quantize
from mobilenets.compression.scheme import CALIBRATION_IMAGES
from mobilenets.data.dataset import Data
from mobilenets.deploy import bench, engines, evaluate
from mobilenets.deploy.engines import Engine
from mobilenets.deploy.export import PARITY_IMAGES, Export, export_bundle
from mobilenets.errors import UserError, unknown
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import PRECISIONS, Card, Metric, Precision
from mobilenets.model.images import Pixels
from mobilenets.tasks.task import Scores
from mobilenets.training.fitted import Step
from mobilenets.training.run import FLOAT, INT8, MANIFEST

FOLDER, RECORD = "exports", "exports.json"


def in_precision(source: Bundle, precision: Precision, data: Data) -> Bundle:
    """The bundle that a file of `precision` is made from.

    Of a float one and training images: quantized where int8 is asked for, its biases corrected for coarser weights.
    """
    if source.card.precision != "float32" or precision not in ("int8", "dynamic", "int4"):
        return source
    images = data.sample("train", CALIBRATION_IMAGES, source.card.preprocess).pixels
    if precision == "int8":
        return quantize.quantize_bundle(source, images)
    return quantize.correct_bundle(source, precision, images)


@dataclass(frozen=True)
class Made:
    """A file, proved; and its scores on what was held out, where it runs here and its task has a score."""

    export: Export
    scores: Scores | None


def parity_images(data: Data, card: Card) -> Pixels:
    """Held-out images that files are proved on."""
    return data.sample(data.held_out, PARITY_IMAGES, card.preprocess).pixels


def make_file(
    source: Bundle, data: Data, path: Path, engine: str, precision: Precision, images: Pixels, batch: int | None = None
) -> Made:
    """A bundle (see `in_precision`) as a file for `engine`: exported, proved on `images`, scored on what was held out.

    Raises `UserError`, and keeps no file, where the proof fails.
    """
    made = export_bundle(source, images, path, data.source, engine, precision, batch)
    if made.agreement is None or tasks.of(source.card).primary is None:
        return Made(made, None)
    scores = evaluate.score(engines.load(path), data, data.held_out)
    return Made(dataclasses.replace(made, score=scores.value, split=data.held_out), scores)


def metric_of(card: Card, scores: Scores) -> Metric:
    """Scores as a card has them. Raises `UserError` for a task without any."""
    primary = tasks.of(card).primary
    if primary is None:
        raise UserError(f"the task {card.task} has no score")
    value = round(scores.value, 4)
    return Metric(primary.name, value, scores.data, scores.split, scores.count, primary.unit, primary.higher_is_better)


def scored(source: Bundle, engine: Engine, data: Data) -> tuple[Bundle, Scores]:
    """A bundle with its score on what was held out on its card, in the place of earlier ones of that split."""
    scores = evaluate.score(engine, data, data.held_out)
    kept = tuple(m for m in source.card.metrics if m.split != data.held_out)
    card = source.card.replace(metrics=(*kept, metric_of(source.card, scores)))
    return Bundle(card, source.tensors), scores


# ---- a network in every format asked for: kept in the run's folder, made again only if the network changed


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
    data = tasks.data_of(source.card, data_source, root)
    images = parity_images(data, source.card)
    record = folder / RECORD
    before = json.loads(record.read_bytes()) if record.exists() else {}
    quantized = _int8(path, source)
    sources: dict[Precision, Bundle] = {"int8": quantized} if quantized else {}
    with console.progress("files") as bar:
        task = bar.add_task("exporting", total=len(pairs), status="")
        for engine, precision in pairs:
            bar.update(task, advance=1, status=f"{engine} {precision}")
            name = f"{engine}-{precision}{engines.runtime(engine).suffix}"
            of = quantized if quantized and precision == "int8" else source
            key = [of.digest, engines.version(engine), data.source]
            if name in before and before[name]["of"] == key and (folder / name).exists():
                yield Export.from_json({**before[name]["export"], "path": folder / name})
                continue
            try:
                if precision not in sources:
                    sources[precision] = in_precision(source, precision, data)
                one = make_file(sources[precision], data, folder / name, engine, precision, images).export
            except UserError as e:
                yield f"{engine} {precision}: {e}"
                continue
            before[name] = {"of": key, "export": one.to_json()}
            files.write_json(record, before)
            yield one


def _int8(path: Path, source: Bundle) -> Bundle | None:
    """The int8 bundle that a run has of its float one."""
    if source.card.precision == "int8":
        return source
    if bundles.is_bundle(path / INT8):
        b = Bundle.load(path / INT8)
        if b.card.parent == source.digest:
            return b
    return None


# ---- the steps from a trained network to the file to ship


def recorded(scores: Scores) -> dict[str, Any]:
    """Scores as a step has them."""
    return {**scores.to_json(), **scores.details()}


def _entry(export: Export) -> dict[str, Any]:
    """A file that ships, as the manifest has it."""
    return {k: getattr(export, k) for k in ("sha256", "size_bytes", "engine", "precision", "task")}


def ship(
    data: Data, trained: Bundle, out: Path, precision: Precision, threads: int, engine: str = "onnxruntime"
) -> tuple[tuple[Step, ...], Path]:
    """Quantize, export for `engine`, evaluate and measure a trained bundle: the steps, and the file to ship."""
    console.step(f"4/6 quantize, export, evaluate on {data.held_out}")
    images = parity_images(data, trained.card)
    cores = os.cpu_count() or 1
    steps: list[Step] = []
    exports: list[Export] = []
    b, bundle_paths = trained, {"float32": out / FLOAT, "int8": out / INT8}
    precisions: list[Precision] = [p for p in ("float32", precision) if p in engines.runtime(engine).precisions]
    for p in dict.fromkeys(precisions):
        if p == "int8":  # from the float bundle as it was saved, with its scores: its parent is what is in OUT/float
            b = in_precision(b, p, data)
        if p in bundle_paths:
            where = bundle_paths[p]
            b, scores = scored(b, engines.module("torch").TorchEngine(b, cores), data)
            b = b.save(where)
            label = "float" if p == "float32" else "int8, simulated"
            size = files.size_on_disk(where)
            steps.append(Step(f"{label} in PyTorch", str(where), "torch", p, size, recorded(scores)))
        path = out / engines.file_name(engine, p)
        made = make_file(in_precision(b, p, data), data, path, engine, p, images)
        console.note(made.export)
        exports.append(made.export)
        assert made.scores is not None  # what is trained and shipped has a score, and runs here
        name, proof = f"{p} {engines.runtime(engine).format.upper()}", (made.export.agreement, made.export.difference)
        steps.append(Step(name, str(path), engine, p, made.export.size_bytes, recorded(made.scores), None, *proof))
    files.write_json(out / MANIFEST, {"files": {e.path.name: _entry(e) for e in exports}})
    exported = [s for s in steps if s.path not in map(str, bundle_paths.values())]
    console.step("5/6 measure the files")
    timings = bench.bench_files([Path(s.path) for s in exported], threads)
    latency = {t.path: t.median_ms for t in timings}
    return tuple(dataclasses.replace(s, latency_ms=latency.get(s.path)) for s in steps), path
