"""An imported COCO detector against the TFLite file it came from, on the same photos, and through every runtime.

    python benchmarks/imported_detectors.py DATA FILE [--out CSV] [--split val] [--runtimes onnx tflite ...]

DATA: photos with boxes (see docs/data.md). FILE: a .tflite of TensorFlow's Object Detection API on COCO, run by its own
interpreter (pip install ai-edge-litert), its own last operator choosing the boxes. It is imported, run in PyTorch, and
exported to each runtime with its boxes finished inside where that can; all are scored by COCO's rules.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobilenets import console, tasks
from mobilenets.data.dataset import Data
from mobilenets.deploy import engines, evaluate
from mobilenets.deploy.export import export_bundle
from mobilenets.model import coco
from mobilenets.model import reference as simulate
from mobilenets.model.bundle import Bundle
from mobilenets.model.convert import weights
from mobilenets.model.convert.foreign import Stated
from mobilenets.model.convert.labels import read_labels
from mobilenets.tasks.detect.scoring import DetectionScores

NUMBERS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
AT_ONCE = 8


def theirs(path: Path, pixels: np.ndarray, labels: tuple[str, ...]) -> dict[str, np.ndarray]:
    """What the file's own operator gives for uint8 [N, H, W, 3]: boxes x1, y1, x2, y2, of our labels."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (i,), outs = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for one in pixels:
        interpreter.set_tensor(i["index"], one[None])
        interpreter.invoke()
        rows.append([interpreter.get_tensor(o["index"])[0] for o in outs])
    boxes, classes, scores, count = (np.stack(column) for column in zip(*rows, strict=True))
    ours = np.array([labels.index(name) if name else -1 for name in coco.BY_ID], np.float32)
    known = ours[classes.astype(int)]
    return {
        "boxes": boxes[..., [1, 0, 3, 2]],
        "scores": np.where(known < 0, 0, scores),
        "classes": np.maximum(known, 0),
        "count": count,
    }


def batches(bundle: Bundle, pixels: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """Raw answers of PyTorch's network."""
    network = simulate.float_model(bundle).eval()
    with torch.inference_mode():
        for part in np.array_split(pixels, -(-len(pixels) // AT_ONCE)):
            said = network.answers(torch.from_numpy(bundle.card.preprocess.normalize(part)))
            yield {k: v.numpy() for k, v in said.items()}


def scored(bundle: Bundle, outputs: dict[str, np.ndarray], data: Data, split: str) -> Any:
    metrics = tasks.of(bundle.card).metrics(bundle.card)
    metrics.update(outputs, data.split(split).targets)
    return metrics.compute(data.source, split)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("file", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--runtimes", nargs="*", default=["onnx", "openvino", "tflite", "ncnn", "mnet"])
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    foreign = weights.open_foreign(str(a.file))
    told = Stated(labels=read_labels(a.labels)) if a.labels else None
    bundle = weights.foreign_bundle(foreign, told)
    data = tasks.data_of(bundle.card, a.data)
    split = data.split(a.split)
    pixels = np.stack([split.pixels(i, bundle.card.preprocess) for i in range(len(split))])
    rows: list[dict[str, Any]] = []

    def add(what: str, scores: DetectionScores) -> None:
        rows.append({"what": what, "images": scores.count, **{k: f"{getattr(scores, k):.2f}" for k in NUMBERS}})

    if a.file.suffix == ".tflite":
        add(
            "the file, in its own interpreter",
            scored(bundle, theirs(a.file, pixels, bundle.card.labels), data, a.split),
        )
    parts = [*batches(bundle, pixels)]
    raw = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    add("imported, PyTorch, float32", scored(bundle, raw, data, a.split))
    by_class = {**bundle.card.config["suppression"], "together": False, "per_class": 100, "most": 100}
    config = {**bundle.card.config, "suppression": by_class}
    each = dataclasses.replace(bundle, card=bundle.card.replace(config=config))
    add("the same, 100 boxes, each class by itself", scored(each, raw, data, a.split))
    with tempfile.TemporaryDirectory() as folder:
        for runtime in a.runtimes:
            file = Path(folder) / f"model.{runtime}"
            export_bundle(bundle, pixels[:16], file, a.data, engines.for_suffix(file))
            add(f"exported, {runtime}", evaluate.score(engines.load(file), data, a.split))  # type: ignore[arg-type]
    table = console.table(f"{a.file.name} imported", list(rows[0]), left=("what",))
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.note(table)
    if a.out:
        with a.out.open("w", newline="") as f:
            writer = csv.DictWriter(f, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
