"""Imported weights against the files they came from, on the same photos.

    python benchmarks/imported_weights.py IMAGES FILE... [--out CSV]

IMAGES: a folder or zip of ImageNet photos in folders named by WordNet id. FILE: a Keras .h5 of V1, run here by a plain
forward written for it alone, or a TFLite file, run by its own interpreter (pip install ai-edge-litert). Each is
imported, exported and run in our engine, float and int8; a quantized file also in PyTorch, with the output of every
layer rounded as the file says, which is what the file computes. Prints and writes, for each, the top-1 score of both
and how often they agree on the top-1 class (a uint8 file's probabilities are multiples of 1/256, and often tied: "or
tied" counts any of its tied first). All see the same pixels.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.nn import functional as F

from mobilenets import console
from mobilenets.compression.quantize import quantize_bundle
from mobilenets.data import dataset as data
from mobilenets.data.open import open_data
from mobilenets.deploy import engines
from mobilenets.deploy.export import export_bundle
from mobilenets.model import reference as simulate
from mobilenets.model.bundle import Bundle
from mobilenets.model.convert import weights
from mobilenets.model.convert.formats.tflite import Graph

CALIBRATION = 100


def keras_v1(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Keras' MobileNet V1 from its .h5: uint8 [N, H, W, 3] -> [N, 1000]."""
    with h5py.File(path) as f:
        tensors: dict[str, torch.Tensor] = {}
        f.visititems(
            lambda name, x: (
                tensors.update({"/".join(name.split("/")[-2:]): torch.from_numpy(np.array(x))})
                if isinstance(x, h5py.Dataset)
                else None
            )
        )
    tensors = {k.replace(":0", "").replace("depthwise_kernel", "kernel"): v for k, v in tensors.items()}

    def layer(x: torch.Tensor, name: str, stride: int, depthwise: bool = False) -> torch.Tensor:
        kernel = tensors[f"{name}/kernel"].permute(*((2, 3, 0, 1) if depthwise else (3, 2, 0, 1)))
        if kernel.shape[2] == 3:
            x = F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        x = F.conv2d(x, kernel, stride=stride, groups=x.shape[1] if depthwise else 1)
        mean, variance, gamma, beta = (
            tensors[f"{name}_bn/{k}"] for k in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        return F.batch_norm(x, mean, variance, gamma, beta, eps=1e-3).clamp(0, 6)

    def run(pixels: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        x = layer(x, "conv1", 2)
        for i in range(1, 14):
            x = layer(x, f"conv_dw_{i}", 2 if i in (2, 4, 6, 12) else 1, depthwise=True)
            x = layer(x, f"conv_pw_{i}", 1)
        logits = F.conv2d(x.mean((2, 3), keepdim=True), tensors["conv_preds/kernel"].permute(3, 2, 0, 1))
        return (logits.flatten(1) + tensors["conv_preds/bias"]).numpy()

    return run


def tflite(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A TFLite file in its own interpreter: uint8 [N, H, W, 3] -> [N, 1000], the background class left out."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (i,), (o,) = interpreter.get_input_details(), interpreter.get_output_details()

    def one(pixels: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(i["index"], pixels[None])
        interpreter.invoke()
        out: np.ndarray = interpreter.get_tensor(o["index"])[0, -1000:]
        return out

    return lambda pixels: np.stack([one(p) for p in pixels])


def rounded(bundle: Bundle, graph: Graph) -> Callable[[np.ndarray], np.ndarray]:
    """The imported network with each layer's output rounded as in the quantized file (sums of shortcuts aren't)."""
    model = simulate.float_model(bundle)
    for op, layer in zip(bundle.card.arch.layers, graph.layers, strict=True):
        scale, zero = layer.output_quantization or (1.0, 0)
        model.get_submodule(op.name).register_forward_hook(
            lambda _m, _x, y, s=scale, z=zero: torch.fake_quantize_per_tensor_affine(y, s, z, 0, 255)
        )
    return lambda pixels: model(torch.from_numpy(bundle.card.preprocess.normalize(pixels))).numpy()


def exported(bundle: Bundle, images: np.ndarray, folder: str, name: str) -> engines.Engine:
    file = Path(folder) / f"{bundle.card.precision}.onnx"
    export_bundle(bundle, images, file, name)
    return engines.load(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    rows = []
    for path in a.files:
        foreign = weights.open_foreign(str(path))
        bundle = weights.foreign_bundle(foreign)
        d = data.in_order(open_data(a.images), bundle.card.labels)
        batch = data.gather(d.split("all"), bundle.card.preprocess)
        # Calibrated on photos that the comparison sees too; no labels are used.
        int8 = quantize_bundle(bundle, batch.pixels[:: len(batch.pixels) // CALIBRATION])
        with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
            runs = {b.card.precision: exported(b, batch.pixels[:64], folder, a.images) for b in (bundle, int8)}
            if isinstance(foreign.tensors, Graph):
                runs["float32, rounded as the file"] = rounded(bundle, foreign.tensors)
            theirs = (keras_v1 if path.suffix == ".h5" else tflite)(path)
            parts = np.array_split(batch.pixels, 20)
            scores = np.concatenate([theirs(p) for p in parts])
            expected = scores.argmax(1)
            for ours, run in runs.items():
                got = np.concatenate([run(p) for p in parts]).argmax(1)
                rows.append({
                    "file": path.name,
                    "network": bundle.card.arch.title,
                    "stored as": bundle.card.recipe["stored_as"],
                    "ours": ours,
                    "images": len(got),
                    "their top-1 %": f"{100 * (expected == batch.targets).mean():.1f}",
                    "our top-1 %": f"{100 * (got == batch.targets).mean():.1f}",
                    "same top-1 %": f"{100 * (expected == got).mean():.1f}",
                    "or tied %": f"{100 * (scores[np.arange(len(got)), got] == scores.max(1)).mean():.1f}",
                })  # fmt: skip
    table = console.table("imported weights against their own files", list(rows[0]), left=("file", "network", "ours"))
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
