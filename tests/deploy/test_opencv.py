"""OpenCV's dnn is nothing that files are made for, but many load them there: it says nothing and answers wrong.

What it reads right is written, where that costs other runtimes nothing.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
from small import quantized

from mobilenets.deploy import engines
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.deploy.writers.onnx import onnx_model
from mobilenets.model.bundle import Bundle

NETWORKS = ["v1", "v2", "v3-small"]  # of 32 pixels: their last maps have one
IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}


def in_precision(bundle, precision, pixels):
    if precision == "int8":
        return quantized(bundle, pixels)
    return Bundle(bundle.card.replace(precision=precision), bundle.tensors)


def by_opencv(model, pixels):
    cv2 = pytest.importorskip("cv2")
    net = cv2.dnn.readNetFromONNX(np.frombuffer(model, np.uint8))
    answers = []
    for image in pixels:
        net.setInput(image[None])
        answers.append(net.forward().ravel().copy())
    return np.array(answers)


@pytest.mark.parametrize("normalized", [{}, IMAGENET], ids=["pixels", "imagenet"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_float_files_are_computed_to_the_last_digits(make_bundle, pixels, name, precision, normalized):
    bundle = in_precision(make_bundle(name, **normalized), precision, pixels)
    got, expected = by_opencv(onnx_model(bundle), pixels[:8]), TorchEngine(bundle, 1)(pixels[:8])["probabilities"]
    np.testing.assert_allclose(got, expected, atol=1e-4 if precision == "float32" else 0.02)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("normalized", [{}, IMAGENET], ids=["pixels", "imagenet"])
@pytest.mark.parametrize("name", NETWORKS)
def test_int8_files_are_computed_but_for_roundings(make_bundle, pixels, name, normalized):
    bundle = quantized(make_bundle(name, **normalized), pixels)
    got, expected = by_opencv(onnx_model(bundle), pixels[:8]), TorchEngine(bundle, 1)(pixels[:8])["probabilities"]
    assert np.abs(got - expected).mean() < 0.01  # of ten classes, 0.1 or more where the image is read wrong


# ---- what that takes, seen in the files -----------------------------------------------------------------------------


def nodes(bundle):
    return list(onnx.load_from_string(onnx_model(bundle)).graph.node)


@pytest.mark.parametrize("precision", ["float32", "float16", "int4"])
def test_float_files_normalize_in_float(make_bundle, pixels, precision):
    kinds = [n.op_type for n in nodes(in_precision(make_bundle("v3-small"), precision, pixels))]
    assert kinds[:4] == ["Transpose", "Cast", "Sub", "Mul"]
    assert "HardSigmoid" not in kinds


def test_int8_files_quantize_the_image_themselves(make_bundle, pixels):
    kinds = [n.op_type for n in nodes(quantized(make_bundle("v1"), pixels))]
    assert kinds[:4] == ["Transpose", "DequantizeLinear", "QuantizeLinear", "DequantizeLinear"]


def test_onnxruntime_leaves_that_out(make_bundle, pixels, tmp_path):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(onnx_model(quantized(make_bundle("v1"), pixels)), options)
    kinds = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert set(kinds[: kinds.index("QLinearConv")]) <= {"Transpose"}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_map_of_one_pixel_is_not_padded(make_bundle, pixels, name, tmp_path):
    bundle = make_bundle(name)
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(onnx_model(bundle)))
    sides = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim][2:] for v in model.graph.value_info}
    small = [n for n in model.graph.node if n.op_type == "Conv" and sides.get(n.input[0]) == [1, 1]]
    assert small
    assert all(not any(a.ints) for n in small for a in n.attribute if a.name == "pads")
    path = Path(tmp_path / "m.onnx")
    path.write_bytes(onnx_model(bundle))
    got, expected = (e(pixels)["probabilities"] for e in (engines.load(path), TorchEngine(bundle, 1)))
    np.testing.assert_allclose(got, expected, atol=1e-4)
