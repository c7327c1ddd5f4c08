"""A network in every format asked for: each file proved and scored, kept in the run's folder, made again only if the
network changed.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilenets import console, files
from mobilenets.compression import quantize
from mobilenets.compression.scheme import CALIBRATION_IMAGES
from mobilenets.data.dataset import Data
from mobilenets.data.open import of_card
from mobilenets.deploy import bench, engines, evaluate, export
from mobilenets.deploy.export import PARITY_IMAGES, Export, export_bundle
from mobilenets.errors import UserError, unknown
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import PRECISIONS, Metric, Precision
from mobilenets.tasks.classify import Scores
from mobilenets.training.run import FLOAT, INT8


def in_precision(source: Bundle, precision: Precision, d: Data) -> Bundle:
    """The bundle that a file of `precision` is made from.

    Of a float one and training images: quantized where int8 is asked for, its biases corrected for coarser weights.
    """
    if source.card.precision != "float32" or precision not in ("int8", "dynamic", "int4"):
        return source
    images = d.sample("train", CALIBRATION_IMAGES, source.card.preprocess).pixels
    if precision == "int8":
        return quantize.quantize_bundle(source, images)
    return quantize.correct_bundle(source, precision, images)


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
    d = of_card(source.card, data_source, root)
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


@dataclass(frozen=True)
class Step:
    """The network at one step from float to exported file: its scores, and for a file its latency."""

    name: str
    path: str
    engine: str
    precision: str
    size_bytes: int
    scores: Scores
    latency_ms: float | None = None
    agreement: float | None = None
    difference: float | None = None

    def to_json(self) -> dict[str, Any]:
        own = {k: v for k, v in vars(self).items() if k != "scores"}
        return {**own, **self.scores.to_json(), "confusion": self.scores.confusion.tolist()}


def ship(
    d: Data, trained: Bundle, out: Path, precision: Precision, threads: int, engine: str = "onnxruntime"
) -> tuple[tuple[Step, ...], Path]:
    """Quantize, export for `engine`, evaluate and measure a trained bundle: the steps, and the file to ship."""
    preprocess = trained.card.preprocess
    held_out = d.held_out
    console.note(f"[bold]4/6 quantize, export, evaluate on {held_out}[/]")
    parity = d.sample(held_out, export.PARITY_IMAGES, preprocess).pixels
    cores = os.cpu_count() or 1
    steps: list[Step] = []
    b, bundle_paths = trained, {"float32": out / FLOAT, "int8": out / INT8}
    precisions: list[Precision] = [p for p in ("float32", precision) if p in engines.runtime(engine).precisions]
    for p in dict.fromkeys(precisions):
        if p == "int8":  # from the float bundle as it was saved, with its scores: its parent is what is in OUT/float
            b = quantize.quantize_bundle(b, d.sample("train", CALIBRATION_IMAGES, preprocess).pixels)
        if p in bundle_paths:
            where = bundle_paths[p]
            scores = evaluate.score(engines.module("torch").TorchEngine(b, cores), d, held_out)
            metric = Metric("top1", round(scores.top1, 4), d.source, held_out, scores.count)
            kept = tuple(m for m in b.card.metrics if m.split != held_out)
            b = Bundle(b.card.replace(metrics=(*kept, metric)), b.tensors).save(where)
            label = "float" if p == "float32" else "int8, simulated"
            steps.append(Step(f"{label} in PyTorch", str(where), "torch", p, files.size_on_disk(where), scores))
        path = out / engines.file_name(engine, p)
        made = export.export_bundle(in_precision(b, p, d), parity, path, f"{d.source} {held_out}", engine, p)
        console.note(made)
        scores = evaluate.score(engines.load(made.path), d, held_out)
        name, proof = f"{p} {engines.runtime(engine).format.upper()}", (made.agreement, made.difference)
        steps.append(Step(name, str(made.path), engine, p, made.size_bytes, scores, None, *proof))
    exported = [s for s in steps if s.path not in map(str, bundle_paths.values())]
    console.note("[bold]5/6 measure the files[/]")
    timings = bench.bench_files([Path(s.path) for s in exported], threads)
    latency = {t.path: t.median_ms for t in timings}
    return tuple(dataclasses.replace(s, latency_ms=latency.get(s.path)) for s in steps), path
