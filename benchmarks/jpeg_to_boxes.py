"""JPEG to boxes on one thread: our SSDLite V2 1.0-320 in int8 against torchvision's ssdlite320, in turn in one run.

    python benchmarks/jpeg_to_boxes.py PHOTOS [--images 30] [--rounds 9] [--out CSV]

PHOTOS: a folder or zip of images, made JPEGs of first. All ways have 91 classes and see the same files, one at a time:

- torchvision: `decode_image`, the float32 ssdlite320_mobilenet_v3_large in eval mode, as its documentation shows;
- torchvision, ONNX: the same network by `torch.onnx.export`, in ONNX Runtime;
- ours: `load(FILE).predict([photo])` with the int8 file of each runtime. What boxes and their suppression take of it is
  the difference to the same file with `--raw` heads; of our own engine, what its clock says too.

The weights are random, so how many boxes look like something is set: of torchvision's pairs of an anchor and a class,
CANDIDATES an image pass its threshold of 0.001, as few as a trained network leaves on a simple photo (more of them make
torchvision slower); ours takes the best 1,000 of all pairs, whatever they score. Prints and writes milliseconds an
image, the median and the quietest of the rounds, the processor's time, which a busy machine hardly changes, and ratios.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import onnxruntime as ort

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as our command line sets it

import torch
from torchvision.io import decode_image
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.transforms.v2.functional import to_dtype

from mobilenets import files as mobilenet_files
from mobilenets.arch import detectors
from mobilenets.compression.quantize import quantize_bundle
from mobilenets.deploy import engines, inputs, predict
from mobilenets.deploy.export import generated
from mobilenets.model.bundle import Bundle, with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.coco import BY_ID
from mobilenets.model.images import Preprocess, open_rgb
from mobilenets.tasks.detect import finish

SIDE, CLASSES, CANDIDATES = 320, 91, 300
Way = Callable[[Path], object]


def pixels(file: Path) -> torch.Tensor:
    return to_dtype(decode_image(str(file), mode="RGB"), torch.float32, scale=True)


def torchvisions(files: list[Path]) -> torch.nn.Module:
    """Its network, the background's logits raised until CANDIDATES pairs an image pass its threshold."""
    torch.manual_seed(0)
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES).eval()
    layers = [m[1] for m in model.head.classification_head.module_list]
    with torch.inference_mode():
        for layer in layers:
            torch.nn.init.normal_(layer.weight, std=0.15)
        seen = [model.head(list(model.backbone(model.transform([pixels(f)])[0].tensors).values())) for f in files[:4]]
        logits = torch.cat([s["cls_logits"] for s in seen])
        low, high = 0.0, 60.0
        for _ in range(40):
            middle = (low + high) / 2
            moved = torch.cat((logits[..., :1] + middle, logits[..., 1:]), -1).softmax(-1)[..., 1:]
            passing = float((moved > model.score_thresh).sum()) / len(logits)
            low, high = (middle, high) if passing > CANDIDATES else (low, middle)
        for layer in layers:
            layer.bias.view(-1, CLASSES)[:, 0] += high
    return model


def eager(model: torch.nn.Module) -> Way:
    def run(file: Path) -> object:
        with torch.inference_mode():
            return model([pixels(file)])[0]["boxes"].numpy()

    return run


def as_tutorials_export(model: torch.nn.Module, path: Path) -> Way:
    """The input in the size that the network works in: an exported file has no other."""
    torch.onnx.export(model, ([torch.rand(3, SIDE, SIDE)],), str(path), opset_version=18, dynamo=False)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(file: Path) -> object:
        x = torch.nn.functional.interpolate(pixels(file)[None], (SIDE, SIDE), mode="bilinear")[0]
        return session.run(None, {name: x.numpy()})[0]

    return run


def ours() -> Bundle:
    """In int8, the boxes' layers in float; its logits spread around the background's."""
    arch = detectors.detector_arch("ssdlite", "v2", 1.0, SIDE)
    labels = [name or f"unused {i}" for i, name in enumerate(BY_ID)]
    config = detectors.detection_config(arch, labels, "ssdlite")
    head = detectors.ssd_head(arch, CLASSES, "ssdlite")
    card = Card(arch, Preprocess(SIDE, framing="stretch"), head, task="detect", config=config)
    made = with_random_weights(card)
    tensors = dict(made.tensors)
    rng = np.random.default_rng(0)
    for name in finish.box_layers(card):
        biases = f"{name.replace('box', 'class')}.conv.bias"
        tensors[biases] = rng.normal(-5, 2, tensors[biases].shape).astype(np.float32)
    return quantize_bundle(Bundle(card, tensors), generated(card.preprocess, 16))


def our_way(path: Path) -> Way:
    model = predict.load(path, threads=1)
    return lambda file: model.predict([file])


def written(name: str, bundle: Bundle, path: Path) -> Path:
    engines.module(name).write(bundle, path, None)
    return path


def own_clock(path: Path, images: np.ndarray) -> float:
    """Milliseconds that boxes and suppression take an image, by an engine that times its operations."""
    engine = engines.load(path)
    assert isinstance(engine, engines.Timed)
    rows = np.array([engine.layer_ms(image[None]) for image in images])
    of_boxes = [name in (finish.BOXES, finish.FOUND) or name.startswith(finish.FOUND) for name, _ in engine.layers]
    return float(np.median(rows[:, of_boxes].sum(1)))


def timed(ways: dict[str, Way], files: list[Path], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds an image of each way in each round: on the clock, and of the processor."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for way in ways.values():
        for file in files[:4]:
            way(file)
    for _ in range(rounds):
        for name, way in ways.items():
            before = time.perf_counter(), time.process_time()
            for file in files:
                way(file)
            after = time.perf_counter(), time.process_time()
            times[name].append((1e3 * (after[0] - before[0]) / len(files), 1e3 * (after[1] - before[1]) / len(files)))
    return times


def jpegs(source: Path, count: int, folder: Path) -> list[Path]:
    made = []
    for item, _ in zip(inputs.sources([source]), range(count), strict=False):
        made.append(folder / f"{len(made):03d}.jpg")
        open_rgb(inputs.content(item)).save(made[-1], quality=90)
    return made


def write(to: TextIO, columns: list[str], rows: list[list[Any]]) -> None:
    table = csv.writer(to, lineterminator="\n")
    table.writerow(columns)
    table.writerows([[name, *(f"{v:.2f}" for v in values)] for name, *values in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = jpegs(a.photos, a.images, folder)
        model = torchvisions(files)
        ways = {"torchvision": eager(model), "torchvision, ONNX": as_tutorials_export(model, folder / "theirs.onnx")}
        bundle = ours()
        whole = finish.finished(bundle)
        for name in ("native", "onnxruntime"):
            suffix = engines.runtime(name).suffix
            ways[f"ours, {name}"] = our_way(written(name, whole, folder / f"whole{suffix}"))
            raw = engines.load(written(name, bundle, folder / f"raw{suffix}"))
            own = engines.load(folder / f"whole{suffix}")
            seen = generated(bundle.card.preprocess, 1)
            ways[f"network with boxes, {name}"] = lambda _, engine=own, x=seen: engine(x)
            ways[f"network alone, {name}"] = lambda _, engine=raw, x=seen: engine(x)
        times = timed(ways, files, a.rounds)
        clock = own_clock(folder / "whole.mnet", generated(bundle.card.preprocess, 15))
    wall = {name: [t for t, _ in both] for name, both in times.items()}
    cpu = {name: statistics.median(t for _, t in both) for name, both in times.items()}
    middle, least = ({name: of(t) for name, t in wall.items()} for of in (statistics.median, min))
    peers = ("torchvision", "torchvision, ONNX")
    columns = ["way", "median_ms", "quietest_ms", "processor_ms"]
    columns += [f"{peer} / it, {by}" for peer in peers for by in ("quietest", "processor")]
    rows = [
        [name, middle[name], least[name], cpu[name], *(of[peer] / of[name] for peer in peers for of in (least, cpu))]
        for name in ways
    ]
    write(sys.stdout, columns, rows)
    if a.out:
        with mobilenet_files.atomic_file(a.out) as tmp, tmp.open("w", newline="") as to:
            write(to, columns, rows)
    for name in ("native", "onnxruntime"):
        boxes = cpu[f"network with boxes, {name}"] - cpu[f"network alone, {name}"]
        share = 100 * boxes / cpu[f"ours, {name}"]
        print(f"boxes and suppression, {name}: {boxes:.2f} ms of the processor, {share:.1f}% of the whole")
    share = 100 * clock / least["ours, native"]
    print(f"by the native engine's own clock: {clock:.2f} ms, {share:.1f}% of the quietest whole")


if __name__ == "__main__":
    main()
