"""JPEG to label: `mobilenets predict` against what a tutorial shows, in turn in one run.

    python benchmarks/jpeg_to_label.py PHOTOS... [--images 100] [--rounds 15]

PHOTOS: folders of JPEGs, a row of results each. All run V2 1.0-224 on all cores, on the same files, to the top-1 label:

- torchvision: PIL, Resize, CenterCrop, ToTensor, Normalize, the float32 model in eval mode, torch's default threads;
- OpenVINO: PIL, resize, np.array, `Core().compile_model(model, "CPU")` of our int8 OpenVINO file, an image at a time;
- `mobilenets predict` with the int8 file of each runtime that is installed and asked for.

The weights are random: no time depends on them. Prints milliseconds an image (the median and the quietest of the
rounds) and ratios, of the medians and of the quietest rounds: on a shared machine the latter are the ones to believe.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
from PIL import Image

# As our command line sets it: with GNU OpenMP's own, a busy machine makes torchvision ten times slower than it is.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import torch
from torchvision import models, transforms

from mobilenets.arch import zoo
from mobilenets.deploy import engines, inputs, predict
from mobilenets.deploy.engines import openvino as openvino_engine
from mobilenets.model.bundle import random_bundle

PAUSE_S = 0.05  # idle threads of the way before, which spin for a while, aren't the next one's burden
Way = Callable[[list[Path]], object]


def torchvision_way(labels: tuple[str, ...]) -> Way:
    model = models.mobilenet_v2().eval()
    transform = transforms.Compose([
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])  # fmt: skip

    def run(files: list[Path]) -> list[str]:
        with torch.inference_mode():
            return [labels[model(transform(Image.open(f).convert("RGB"))[None]).argmax()] for f in files]

    return run


def openvino_way(folder: Path, labels: tuple[str, ...]) -> Way:
    model = ov.Core().compile_model(str(folder / "model.xml"), "CPU")
    output = model.output(0)

    def run(files: list[Path]) -> list[str]:
        out = []
        for f in files:
            pixels = np.array(Image.open(f).convert("RGB").resize((224, 224)))
            out.append(labels[np.argmax(model(pixels[None])[output])])
        return out

    return run


def our_way(path: Path) -> Way:
    model = predict.load(path)
    return lambda files: model.predict(files, top=1)


def rounds(ways: dict[str, Way], files: list[Path], count: int) -> dict[str, list[float]]:
    """Milliseconds an image of each way in each round."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(files[:16])
    for _ in range(count):
        for name, way in ways.items():
            time.sleep(PAUSE_S)
            start = time.perf_counter()
            way(files)
            times[name].append(1e3 * (time.perf_counter() - start) / len(files))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--engines", default="onnxruntime,openvino")
    a = parser.parse_args()
    bundle = random_bundle(zoo.arch("v2", 1.0, 224, 1000), "int8")
    labels = bundle.card.labels
    with tempfile.TemporaryDirectory() as scratch:
        xml = Path(scratch) / "peer.openvino"
        openvino_engine.write(bundle, xml, 1)  # at its fastest for one image
        ways = {"torchvision": torchvision_way(labels), "OpenVINO": openvino_way(xml, labels)}
        for name in a.engines.split(","):
            path = Path(scratch) / f"ours{engines.runtime(name).suffix}"
            engines.module(name).write(bundle, path, None)
            ways[f"ours, {name}"] = our_way(path)
        for folder in a.folders:
            files = [Path(str(s.path)) for s, _ in zip(inputs.sources([folder]), range(a.images), strict=False)]
            times = rounds(ways, files, a.rounds)
            middle = {name: statistics.median(ms) for name, ms in times.items()}
            least = {name: min(ms) for name, ms in times.items()}
            print(f"\n{folder.name}: {len(files)} images, {a.rounds} rounds, each pair the median and the quietest")
            print(f"{'':20}{'ms an image':>20}{'torchvision / it':>20}{'OpenVINO / it':>20}")
            for name in ways:
                ratios = [of[peer] / of[name] for peer in ("torchvision", "OpenVINO") for of in (middle, least)]
                print(f"{name:20}", *(f"{x:9.2f}" for x in (middle[name], least[name], *ratios)), flush=True)


if __name__ == "__main__":
    main()
