"""Whether a runtime's int8 sums overflow on this processor: the same network with weights of 8 and of 7 bits.

    python benchmarks/int8_overflow.py BUNDLE DATA [--engines openvino,onnxruntime] [--layers blocks,fpn] [--out CSV]

BUNDLE: an int8 one. With every weight halved (and its scale doubled), two products of a byte and a weight fit into 16
bits: where a file agrees with PyTorch then, and not with the weights as they are, its runtime adds them there. LAYERS:
the beginnings of the names of those that are halved, all if left out. Agreement is the task's own, over all of val.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import rows

from mobilenets import tasks
from mobilenets.deploy import engines, evaluate
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.deploy.export import BATCH
from mobilenets.model.bundle import Bundle
from mobilenets.model.images import Pixels


def halved(source: Bundle, begin: tuple[str, ...]) -> Bundle:
    tensors = dict(source.tensors)
    for op in source.card.graph.layers:
        name = op.name
        if f"{name}.weight_scale" in tensors and name.startswith(begin):
            tensors[f"{name}.weight"] = np.rint(tensors[f"{name}.weight"] / 2).astype(np.int8)
            tensors[f"{name}.weight_scale"] = tensors[f"{name}.weight_scale"] * np.float32(2)
            tensors[f"{name}.bias"] = np.rint(tensors[f"{name}.bias"] / 2).astype(np.int32)
    return Bundle(source.card, tensors)


def answers(engine: engines.Engine, images: Pixels) -> engines.Outputs:
    return engines.joined([engine(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data")
    parser.add_argument("--engines", default="openvino,onnxruntime")
    parser.add_argument("--layers", default="")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    source = Bundle.load(a.bundle)
    data, _ = tasks.images_of(source.card, a.data, None)
    images = data.sample("val", len(data.split("val")), source.card.preprocess).pixels
    found = []
    for bits, made in ((8, source), (7, halved(source, tuple(a.layers.split(","))))):
        right = answers(TorchEngine(made, 1), images)
        for name in a.engines.split(","):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"model{engines.runtime(name).suffix}"
                engines.module(name).write(made, path, None)
                engine = engines.module(name).load(path, 1)
                parity = tasks.of(made.card).parity(right, answers(engine, images), "int8", None)
                scores = evaluate.score(engine, data, "val").to_json()
            numbers = {k: round(v, 2) for k, v in scores.items() if isinstance(v, float)}
            found.append({"bits": bits, "engine": name, "agreement": round(parity.agreement, 2), **numbers})
            print(found[-1], flush=True)
    if a.out:
        rows.write(a.out, found)


if __name__ == "__main__":
    sys.exit(main())
