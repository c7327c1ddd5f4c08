"""Boxes of all classes that push each other out, as TFLite's operator has it: the same in every writing of it."""

import numpy as np
import pytest
import torch

from mobilenets.arch import detectors
from mobilenets.deploy import engines
from mobilenets.deploy.engines import RUNTIMES
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.deploy.export import export_bundle, generated
from mobilenets.model.bundle import Bundle, with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.images import Preprocess
from mobilenets.tasks.detect import coder, decode, finish
from mobilenets.tasks.detect.anchors import centres_and_sizes, overlaps
from mobilenets.tasks.detect.config import Config

WHOLE = [n for n in ("onnxruntime", "litert", "openvino", "ncnn", "native") if engines.available(n)]


@pytest.fixture(scope="module")
def bundle():
    """A small detector that finds something everywhere."""
    arch = detectors.detector_arch("ssd", "v1", 0.25, 64)
    config = detectors.detection_config(arch, ["cat", "dog", "cow"], "ssd")
    config["suppression"] = {"score": 0.05, "iou": 0.5, "per_class": 12, "most": 12, "together": True}
    made = with_random_weights(
        Card(arch, Preprocess(64, framing="stretch"), detectors.ssd_head(arch, 4, "ssd"), task="detect", config=config)
    )
    rng = np.random.default_rng(1)
    tensors = dict(made.tensors)
    for name in finish.box_layers(made.card):
        tensors[f"{name}.conv.weight"] = tensors[f"{name}.conv.weight"] / 4
        biases = f"{name.replace('box', 'class')}.conv.bias"
        tensors[biases] = rng.normal(-2, 2, tensors[biases].shape).astype(np.float32)
    return Bundle(made.card, tensors)


@pytest.fixture(scope="module")
def images(bundle):
    return generated(bundle.card.preprocess, 4)


@pytest.fixture(scope="module")
def expected(bundle, images):
    """By its definition: of each anchor the best class, then one suppression of all."""
    config = Config.of(bundle.card.config)
    assert Config.of(config.to_json()) == config
    said = TorchEngine(bundle, 1)(images)
    out = []
    for offsets, scores in zip(said["offsets"], said["scores"], strict=True):
        boxes = coder.decode(offsets, centres_and_sizes(config.anchors), config.coder)
        best, classes = scores[:, 1:].max(1), scores[:, 1:].argmax(1)
        kept: list[int] = []
        for i in np.argsort(-best, kind="stable"):
            free = all(overlaps(boxes[i : i + 1], boxes[k : k + 1])[0, 0] <= 0.5 for k in kept)
            if best[i] >= 0.05 and free and len(kept) < 12:
                kept.append(i)
        out.append((boxes[kept].clip(0, 1), best[kept], classes[kept]))
    each = {**bundle.card.config, "suppression": {**bundle.card.config["suppression"], "together": False}}
    apart = decode.found(said, Config.of(each))
    assert any(len(a) != len(b[1]) or (a.scores != b[1]).any() for a, b in zip(apart, out, strict=True))
    return out


def same(found, expected, tolerance=1e-4):
    for one, (boxes, scores, classes) in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.scores, scores, atol=tolerance)
        np.testing.assert_array_equal(one.classes, classes)
        np.testing.assert_allclose(one.boxes.clip(0, 1), boxes, atol=tolerance)


def test_in_numpy_and_pytorch(bundle, images, expected):
    same(decode.found(TorchEngine(bundle, 1)(images), Config.of(bundle.card.config)), expected)
    with torch.inference_mode():
        same(decode.found(TorchEngine(finish.finished(bundle), 1)(images), None), expected)


@pytest.mark.parametrize("runtime", WHOLE)
def test_in_files(tmp_path, bundle, images, expected, runtime):
    file = tmp_path / f"m{RUNTIMES[runtime].suffix}"
    export_bundle(bundle, images, file, "generated", runtime)
    engine = engines.load(file)
    config = None if "boxes" in engine.card.outputs else Config.of(engine.card.config)
    same(decode.found(engine(images), config), expected)
