"""Files of two-stage detectors: ONNX Runtime and OpenVINO give the boxes and masks that PyTorch gives."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import mobilenets
from mobilenets.arch.boxes import Coder, Suppression
from mobilenets.arch.graph import Head, Output
from mobilenets.arch.operations import Op
from mobilenets.arch.rows import Conv
from mobilenets.arch.spec import Arch
from mobilenets.compression.quantize import measure_ranges, quantize_bundle
from mobilenets.compression.sensitivity import layer_errors
from mobilenets.deploy import engines
from mobilenets.deploy.engines import RUNTIMES
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.deploy.export import export_bundle, generated
from mobilenets.deploy.predict import load
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.images import Preprocess

SIDE, MOST = 64, 8
WHOLE = [n for n in ("onnxruntime", "openvino") if engines.available(n)]


def detector(name: str, spread: float) -> Bundle:
    """Random weights whose scores are spread: high for some classes, `spread` 0 for none. Few boxes, as they cost."""
    torch.manual_seed(0)
    net = mobilenets.create(name, backbone="v1", alpha=0.25, resolution=SIDE, num_classes=4).eval()
    with torch.no_grad():
        net.get_submodule("rpn.0.scores").conv.weight.mul_(200)
        net.get_submodule("rpn.0.boxes").conv.weight.mul_(20)
    classes = net.get_submodule("box.classes")
    nn.init.normal_(classes.weight, std=spread)
    if not spread:
        classes.bias.data[0] = 20  # the background
    made = net.bundle()
    few = {"proposals": 30, "found": MOST}
    ops = tuple(
        dataclasses.replace(op, suppression=dataclasses.replace(op.suppression, most=few[op.name]))
        if op.suppression else op for op in made.card.head.ops
    )  # fmt: skip
    return Bundle(made.card.replace(head=dataclasses.replace(made.card.head, ops=ops)), made.tensors)


@pytest.fixture(scope="module")
def masked() -> Bundle:
    return detector("mask-rcnn", 3.0)


@pytest.fixture(scope="module")
def images(masked: Bundle) -> npt.NDArray[np.uint8]:
    return generated(masked.card.preprocess, 2)


@pytest.fixture(scope="module")
def expected(masked: Bundle, images: npt.NDArray[np.uint8]) -> engines.Outputs:
    return TorchEngine(masked, 1)(images)


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_says_what_pytorch_says(
    name: str, masked: Bundle, images: npt.NDArray[np.uint8], expected: engines.Outputs, tmp_path: Path
) -> None:
    made = export_bundle(masked, images, tmp_path / f"m{RUNTIMES[name].suffix}", "noise", name)
    assert made.agreement is not None
    assert made.agreement >= 99
    model = load(made.path)
    engine = model.engine
    assert list(engine.card.outputs) == ["boxes", "scores", "classes", "count", "masks"]
    got = engine(images)
    assert {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in expected.items()}
    assert (expected["count"] > 3).all()
    np.testing.assert_array_equal(got["count"], expected["count"])
    for i in range(len(images)):  # two of one score may have changed places
        off = np.abs(got["boxes"][i][None] - expected["boxes"][i][:, None]).max(-1)
        same, partner = off.min(1) < 1e-3, off.argmin(1)
        assert same.sum() >= MOST - 1
        for output in ("scores", "classes", "masks"):
            np.testing.assert_allclose(got[output][i][partner][same], expected[output][i][same], atol=1e-3)
    (found,) = model.predict([images[0]])
    assert "mask" in json.loads(json.dumps(found.to_json()))["boxes"][0]


@pytest.fixture(scope="module")
def rounded(masked: Bundle, images: npt.NDArray[np.uint8]) -> Bundle:
    return quantize_bundle(masked, images)


@pytest.mark.skipif(not engines.available("onnxruntime"), reason="needs ONNX Runtime")
def test_an_int8_file_says_what_int8_does_in_pytorch(rounded: Bundle, images: npt.NDArray[np.uint8]) -> None:
    assert rounded.card.float_ops == (*(f"rpn.{i}.boxes" for i in range(4)), "box.boxes")
    engine, size = engines.build("onnxruntime", rounded, "int8", 1)
    assert size < 0.35 * sum(4 * t.size for t in rounded.tensors.values())
    got, expected = engine(images), TorchEngine(rounded, 1)(images)
    assert (expected["count"] == MOST).all()
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, atol=1e-5)


def test_int8_is_near_float(rounded: Bundle, masked: Bundle, images: npt.NDArray[np.uint8]) -> None:
    report = layer_errors(rounded, measure_ranges(masked, images[:1]).folded, images[:1])
    lines = {line.name: line for line in report.lines}
    assert {"box.crop", "box.flat", "mask.transposed", "fpn.3.subsample"} <= {*lines}
    for name in ("rpn.0.scores", "box.classes", "mask.logits"):
        assert lines[name].alone_db is not None
        assert lines[name].alone_db > 20
    assert lines["box.classes"].arriving_db is not None
    assert lines["box.classes"].arriving_db > 8


def test_ranges_are_of_the_boxes_that_there_are(images: npt.NDArray[np.uint8]) -> None:
    """Rows that are left over are of one corner, and not what a mask is read off."""
    found = measure_ranges(detector("mask-rcnn", 0.0), images[:1]).ranges  # it finds nothing
    assert found["mask.crop"] == found["mask.0"] == (0.0, 0.0)
    assert found["box.crop"] != (0.0, 0.0)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", WHOLE)
def test_nothing_is_found(name: str, images: npt.NDArray[np.uint8]) -> None:
    engine, _ = engines.build(name, detector("mask-rcnn", 0.0), "float32", 1)
    got = engine(images[:1])
    assert not any(values.any() for values in got.values())


@pytest.mark.parametrize("name", [n for n in ("litert", "ncnn", "native", "c", "torch") if engines.available(n)])
def test_other_runtimes_say_what_they_lack(name: str, masked: Bundle, tmp_path: Path) -> None:
    path = tmp_path / f"m{RUNTIMES[name].suffix}"
    with pytest.raises(UserError, match=r"has no subsample \(fpn"):
        export_bundle(masked, generated(masked.card.preprocess, 1), path, "noise", name)
    assert not path.exists()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", [n for n in ("litert", "ncnn", "native", "c") if engines.available(n)])
def test_other_runtimes_say_so_in_int8_too(name: str, rounded: Bundle, tmp_path: Path) -> None:
    path = tmp_path / f"m{RUNTIMES[name].suffix}"
    with pytest.raises(UserError, match=r"has no subsample \(fpn"):
        export_bundle(rounded, generated(rounded.card.preprocess, 1), path, "noise", name)
    assert not path.exists()


@pytest.mark.parametrize("precision", ["float16", "int4"])
def test_smaller_files(
    precision: Any, masked: Bundle, images: npt.NDArray[np.uint8], expected: engines.Outputs, tmp_path: Path
) -> None:
    """Nearly the same scores: random boxes are so near each other that some change."""
    path = tmp_path / "m.onnx"
    runtime = engines.module("onnxruntime")
    runtime.write(Bundle(masked.card.replace(precision=precision), masked.tensors), path, None)
    assert runtime.stored_precision(path) == precision
    got = runtime.load(path, 1)(images)
    np.testing.assert_allclose(got["scores"], expected["scores"], atol=0.01 if precision == "float16" else 0.3)


def test_each_box_is_cut_out_of_the_map_of_its_size() -> None:
    """A wide picture, three maps, boxes from a few pixels to all of it."""
    arch = Arch("three", 1.0, 256, 0, tuple(Conv(8, stride=2) for _ in range(5)), activation="relu6")
    maps = [f"blocks.{i}.conv" for i in (2, 3, 4)]
    ops = (
        Op("offsets", "rows", 8, 4, inputs=(maps[2],)),
        Op("boxes", "boxes", 4, 4, inputs=("offsets",), coder=Coder("xywh", (60.0, 60.0, 60.0, 60.0))),
        Op("wide", "pointwise", 8, 2, bias=True, inputs=(maps[2],)),
        Op("objects", "rows", 2, 1, inputs=("wide",)),
        Op("proposed", "propose", 4, 4, inputs=("boxes", "objects"),
           suppression=Suppression(0.0, 1.0, 200, 40, False)),
        Op("crop", "crop", 8, 8, 3, inputs=("proposed", *maps)),
    )  # fmt: skip
    head = Head(ops, (Output("crop", "crop"), Output("proposed", "proposed")))
    size = (256, 512)
    bundle = with_random_weights(Card(arch.replace(size=size), Preprocess(256, size=size), head, task="features"))
    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(np.log(0.03), 0, (256, 2)))
    anchors = np.concatenate([rng.random((256, 2)), sides], 1).astype(np.float32)
    bundle = Bundle(bundle.card, {**bundle.tensors, "boxes.anchors": anchors})
    pixels = rng.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    reference = TorchEngine(bundle, 1)(pixels)
    areas = np.prod((reference["proposed"][..., 2:] - reference["proposed"][..., :2]) * size[::-1], -1)
    assert all((areas > least).any() for least in (0, 112**2, 224**2))
    for name in WHOLE:
        got = engines.build(name, bundle, "float32", 1)[0](pixels)
        np.testing.assert_allclose(got["proposed"], reference["proposed"], atol=1e-5)
        np.testing.assert_allclose(got["crop"], reference["crop"], atol=1e-4)
