"""JPEG to label: `mobilenets predict`'s path against the usual one, torchvision's transforms and the eager model.

    python benchmarks/predict_vs_torchvision.py FOLDER_OF_JPEGS

Both run V2 1.0-224 on one core, on the same files, in turn; the ratio of their median times is printed. Ours decodes
(scaled where the photo is much larger), crops and resizes in one step, and runs the exported int8 file on ONNX Runtime.
The usual one is what a tutorial does: PIL, Resize, CenterCrop, ToTensor, Normalize, float32 model in eval mode. The
weights are random: neither's time depends on them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from torchvision import models, transforms

from mobilenets import choose, engines, zoo
from mobilenets.graphs import onnx as onnx_graph
from mobilenets.predict import Model, sources


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    torch.set_num_threads(1)
    files = [Path(s.path) for s, _ in zip(sources([args.folder]), range(args.images), strict=False)]

    usual_model = models.mobilenet_v2().eval()
    usual_transform = transforms.Compose([
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])  # fmt: skip

    def usual() -> None:
        with torch.inference_mode():
            for f in files:
                x = usual_transform(Image.open(f).convert("RGB"))
                torch.softmax(usual_model(x[None]), 1).topk(5)

    bundle = choose.random_bundle(zoo.arch("v2", 1.0, 224, 1000), "int8")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v2.onnx"
        path.write_bytes(onnx_graph.onnx_model(bundle.card, bundle.tensors).SerializeToString())
        ours_model = Model(engines.load(path))

    def ours() -> None:
        ours_model.predict(files, top=5)

    ways = {"torchvision transforms + eager float32": usual, "mobilenets predict, int8 ONNX": ours}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(args.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(1e3 * (time.perf_counter() - start) / len(files))
    for name, ms in times.items():
        print(f"{name:42} {statistics.median(ms):7.2f} ms an image (min {min(ms):.2f}, max {max(ms):.2f})")
    a, b = times.values()
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    print(f"ratio, V2 1.0-224, {len(files)} JPEGs, one core: {statistics.median(ratios):.2f}x")


if __name__ == "__main__":
    main()
