"""What tests of .tflite files share."""

import numpy as np
import pytest
from small import smooth_images

from mobilenets.deploy import engines
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.model.bundle import Bundle

pytest.importorskip("ai_edge_litert")


OURS = ("float32", "float16", "dynamic", "int8")


NETWORKS = ["v1", "v2", "v3-small", "v4-conv-s"]


PER_CHANNEL = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}


def sure(b, count=24, of=64):
    """Images that the network is sure of: rounding decides between two classes that are alike."""
    images = smooth_images(of, b.card.arch.resolution, seed=5)
    best = np.sort(TorchEngine(b, 1)(images)["probabilities"], 1)
    return images[np.argsort(best[:, -2] - best[:, -1])[:count]]


def written(b, path, batch=None):
    engines.module("litert").write(b, path, batch)
    return path


def source_of(b):
    """As `export_bundle` takes it: precisions other than int8 are asked of a float32 bundle."""
    return b if b.card.precision == "int8" else Bundle(b.card.replace(precision="float32"), b.tensors)
