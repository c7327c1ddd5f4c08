"""From a bundle to files that are proved, scored and measured: the one way that every verb goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilenets import console, files, tasks
from mobilenets.compression import quantize
from mobilenets.compression.scheme import CALIBRATION_IMAGES
from mobilenets.data.dataset import Data
from mobilenets.deploy import bench, beside, engines, evaluate
from mobilenets.deploy.engines import Engine
from mobilenets.deploy.export import GENERATED, PARITY_IMAGES, Export, export_bundle, generated
from mobilenets.errors import UserError, unknown
from mobilenets.model import bundle as bundles
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import PRECISIONS, Card, Metric, Precision
from mobilenets.model.images import Pixels
from mobilenets.tasks.task import Scores
from mobilenets.training.fitted import Step
from mobilenets.training.run import FLOAT, INT8, MANIFEST

FOLDER, RECORD = "exports", "exports.json"
CALIBRATED: tuple[Precision, ...] = ("int8", "dynamic", "int4")  # made with images, and not by rounding alone


def in_precision(source: Bundle, precision: Precision, data: Data | None) -> Bundle:
    """The bundle that a file of `precision` is made from.

    Of a float one and training images: quantized where int8 is asked for, its biases corrected for coarser weights.
    Raises `UserError` where that needs images and there are none.
    """
    if source.card.precision != "float32" or precision not in CALIBRATED:
        return source
    if data is None:
        raise UserError(f"{precision} is calibrated on images; name a folder of any, labelled or not")
    images = data.sample("train", CALIBRATION_IMAGES, source.card.preprocess).pixels
    if precision == "int8":
        return quantize.quantize_bundle(source, images)
    return quantize.correct_bundle(source, precision, images)


@dataclass(frozen=True)
class Made:
    """A file, proved; and its scores on what was held out, where it runs here and its task has a score."""

    export: Export
    scores: Scores | None


@dataclass(frozen=True)
class Evidence:
    """What a network's files are proved on: images, uint8 [N, H, W, 3], and where they are from.

    `data`: None where they were generated. `labelled`: whether its labels are the network's, so that files are scored.
    """

    images: Pixels
    name: str
    data: Data | None = None
    labelled: bool = False


def evidence_of(data: Data, card: Card, labelled: bool = True) -> Evidence:
    """What was held out of `data`; all of its images where they have no labels."""
    split = data.held_out if labelled else "all"
    return Evidence(data.sample(split, PARITY_IMAGES, card.preprocess).pixels, data.source, data, labelled)


def find_evidence(card: Card, source: str | None, root: Path | None, needed_for: str = "") -> Evidence:
    """Images of `source`, or of the data that a network was trained on; generated ones where there are none.

    A note says so, or a `UserError` where `needed_for` names what can't do without.
    """
    try:
        data, unlabelled = tasks.images_of(card, source, root)
    except UserError as e:
        if source:
            raise
        if needed_for:
            raise UserError(f"{needed_for} needs images, labelled or not; name a folder of some ({e})") from e
        console.note(f"proved on generated images, and accuracy isn't measured: {e}")
        return Evidence(generated(card.preprocess), GENERATED)
    if unlabelled:
        console.note(f"accuracy isn't measured, as the labels aren't the network's: {unlabelled}")
    return evidence_of(data, card, not unlabelled)


def make_file(
    source: Bundle,
    seen: Evidence,
    path: Path,
    engine: str,
    precision: Precision,
    batch: int | None = None,
    raw: bool = False,
) -> Made:
    """A bundle (see `in_precision`) as a file for `engine`: exported, proved, scored on what was held out.

    Raises `UserError`, and keeps no file, where the proof fails.
    """
    made = export_bundle(source, seen.images, path, seen.name, engine, precision, batch, raw)
    if made.agreement is None or seen.data is None or not seen.labelled or tasks.of(source.card).primary is None:
        return Made(made, None)
    scores = evaluate.score(engines.load(path), seen.data, seen.data.held_out)
    return Made(dataclasses.replace(made, score=scores.value, split=seen.data.held_out), scores)


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
    seen = find_evidence(source.card, data_source, root)
    record = folder / RECORD
    before = files.read_json(record, (), "files made before") if record.exists() else {}
    quantized = _int8(path, source)
    sources: dict[Precision, Bundle] = {"int8": quantized} if quantized else {}
    with console.progress("files") as bar:
        task = bar.add_task("exporting", total=len(pairs), status="")
        for n, (engine, precision) in enumerate(pairs, 1):
            bar.update(task, advance=1, status=f"{engine} {precision}")
            what = f"{n} of {len(pairs)} {engine} {precision}"
            name = f"{engine}-{precision}{engines.runtime(engine).suffix}"
            of = quantized if quantized and precision == "int8" else source
            key = [of.digest, engines.version(engine), seen.name]
            if name in before and before[name]["of"] == key and (folder / name).exists():
                console.done(f"{what}: exported before")
                yield Export.from_json({**before[name]["export"], "path": folder / name})
                continue
            try:
                if precision not in sources:
                    sources[precision] = in_precision(source, precision, seen.data)
                one = make_file(sources[precision], seen, folder / name, engine, precision).export
            except UserError as e:
                console.done(f"{what}: no file")
                yield f"{engine} {precision}: {e}"
                continue
            console.done(f"{what}: exported and proved")
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
    """A file that ships, as the manifest has it: what it is, and what it was proved on."""
    proof = ("data", "images", "agreement", "difference", "limits", "ties")
    return {k: getattr(export, k) for k in ("sha256", "size_bytes", "engine", "precision", "task", *proof)}


def ship(
    data: Data, trained: Bundle, out: Path, precision: Precision, threads: int, engine: str = "onnxruntime"
) -> tuple[tuple[Step, ...], Path]:
    """Quantize, export for `engine`, evaluate and measure a trained bundle: the steps, and the file to ship."""
    console.step(f"4/6 quantize, export, evaluate on {data.held_out}")
    seen = evidence_of(data, trained.card)
    steps: list[Step] = []
    exports: list[Export] = []
    b, bundle_paths = trained, {"float32": out / FLOAT, "int8": out / INT8}
    precisions: list[Precision] = [p for p in ("float32", precision) if p in engines.runtime(engine).precisions]
    for p in dict.fromkeys(precisions):
        if p == "int8":  # from the float bundle as it was saved, with its scores: its parent is what is in OUT/float
            b = in_precision(b, p, data)
        if p in bundle_paths:
            where = bundle_paths[p]
            b, scores = scored(b, engines.module("torch").quickest(b), data)
            b = b.save(where)
            label = "float" if p == "float32" else "int8, simulated"
            size = files.size_on_disk(where)
            steps.append(Step(f"{label} in PyTorch", str(where), "torch", p, size, recorded(scores)))
        path = out / engines.file_name(engine, p)
        of = in_precision(b, p, data)
        made = make_file(of, seen, path, engine, p)
        beside.write(path, of.card.replace(precision=p, parent=of.digest))
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
