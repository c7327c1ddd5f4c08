"""What a network answers in PyTorch and in ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime as ort
import torch

from mobilenets.deploy.writers import onnx as onnx_graph
from mobilenets.model import reference as simulate

PREPROCESS = {
    "128": {},
    "per channel": {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
    "127.5": {"mean": (127.5,) * 3, "std": (127.5,) * 3},
    "0..1": {"mean": (0.0,) * 3, "std": (255.0,) * 3},
}


KEPT = ("blocks.0.conv", "blocks.3.depthwise", "blocks.3.sum", "blocks.4.project", "pool")


def run_torch(bundle, pixels):
    x = torch.from_numpy(bundle.card.preprocess.normalize(pixels))
    with torch.inference_mode():
        return simulate.module(bundle).answers(x)["probabilities"].numpy()


def onnx_session(bundle, **options):
    o = ort.SessionOptions()
    o.add_session_config_entry("session.x64quantprecision", "1")  # exact where a processor has AVX2 alone
    o.intra_op_num_threads, o.log_severity_level = 1, 3
    for k, v in options.items():
        setattr(o, k, v)
    model = onnx_graph.onnx_model(bundle)
    return ort.InferenceSession(model, o, providers=["CPUExecutionProvider"])


def run_onnx(bundle, pixels, **options):
    return onnx_session(bundle, **options).run(None, {"image": pixels})[0]


def nearly_equal(runtime, simulated, floating):
    """The same integers for most images; where a value fell half-way between two, a random network carries it far."""
    assert np.median(np.abs(runtime - simulated).max(1)) < 1e-5
    assert np.abs(runtime - simulated).mean() < np.abs(simulated - floating).mean() / 3
    assert (runtime.argmax(1) == simulated.argmax(1)).mean() > 0.9


def optimized(bundle, path):
    """The graph onnxruntime really runs."""
    onnx_session(bundle, optimized_model_filepath=str(path))
    return onnx.load(path).graph
