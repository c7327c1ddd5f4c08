"""Boxes out of every runtime: a detector's files give the same ones, decoded and suppressed where the runtime can."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mobilenets import tasks
from mobilenets.arch import detectors
from mobilenets.arch.boxes import Coder, Suppression
from mobilenets.arch.detectors.heads import OFFSETS, SCORES
from mobilenets.arch.graph import Head, Output
from mobilenets.arch.operations import Op
from mobilenets.compression.quantize import quantize_bundle
from mobilenets.deploy import engines
from mobilenets.deploy.engines import RUNTIMES
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.deploy.export import export_bundle, generated
from mobilenets.deploy.predict import load
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.detections import suppressed
from mobilenets.model.images import Preprocess
from mobilenets.tasks.detect import decode, finish
from mobilenets.tasks.detect.config import Config

WHOLE = [n for n in ("onnxruntime", "litert", "openvino", "ncnn", "native") if engines.available(n)]
LABELS = ["cat", "dog", "cow"]
FINISHED = ["boxes", "scores", "classes", "count"]


def detector(family: str, most: int = 20, score: float = 0.05) -> Bundle:
    """A small detector that finds something everywhere: random weights, its scores spread."""
    arch = detectors.detector_arch(family, "v1", 0.25, 64)
    config = detectors.detection_config(arch, LABELS, family)
    config["suppression"] = {"score": score, "iou": 0.5, "per_class": most, "most": most}
    head = detectors.ssd_head(arch, len(LABELS) + 1, family)
    card = Card(arch, Preprocess(64, framing="stretch"), head, task="detect", config=config)
    made = with_random_weights(card)
    tensors = dict(made.tensors)
    rng = np.random.default_rng(1)
    for name in finish.box_layers(card):
        tensors[f"{name}.conv.weight"] = tensors[f"{name}.conv.weight"] / 4
        biases = f"{name.replace('box', 'class')}.conv.bias"
        tensors[biases] = rng.normal(-2, 2, tensors[biases].shape).astype(np.float32)
    return Bundle(card, tensors)


@pytest.fixture(scope="module", params=["ssdlite", "ssdlite-torchvision"])
def raw(request: pytest.FixtureRequest) -> Bundle:
    return detector(request.param)


@pytest.fixture(scope="module")
def images(raw: Bundle) -> npt.NDArray[np.uint8]:
    return generated(raw.card.preprocess, 5)


@pytest.fixture(scope="module")
def int8(images: npt.NDArray[np.uint8]) -> Bundle:
    return quantize_bundle(detector("ssdlite"), images)


def test_the_graph_finds_what_the_task_finds(raw: Bundle, images: npt.NDArray[np.uint8]) -> None:
    """PyTorch's operations and NumPy's decoding are two writings of one thing."""
    whole = finish.finished(raw)
    assert whole.card.outputs == {
        "boxes": (20, 4), "scores": (20,), "classes": (20,), "count": ()
    }  # fmt: skip
    assert finish.finished(whole) is whole
    config = Config.of(raw.card.config)
    a = list(decode.found(TorchEngine(raw, 1)(images), config))
    b = list(decode.found(TorchEngine(whole, 1)(images), None))
    for one, other in zip(a, b, strict=True):
        assert len(one) == len(other) > 3
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
        np.testing.assert_array_equal(one.classes, other.classes)
        np.testing.assert_allclose(one.boxes, other.boxes.clip(0, 1), atol=1e-6)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", WHOLE)
def test_every_runtime_gives_the_boxes(name: str, raw: Bundle, images: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    made = export_bundle(raw, images, tmp_path / f"m{RUNTIMES[name].suffix}", "noise", name)
    assert (made.task, made.agreement) == ("detect", 100)
    engine = engines.load(made.path)
    assert list(engine.card.outputs) == FINISHED
    got, expected = engine(images), TorchEngine(finish.finished(raw), 1)(images)
    for output, values in expected.items():
        np.testing.assert_allclose(got[output], values, atol=2e-4, err_msg=output)
    past = np.arange(20) >= got["count"][:, None]
    assert not got["boxes"][past].any()
    assert not got["scores"][past].any()


@pytest.mark.parametrize("name", [n for n in WHOLE if n != "openvino"])
def test_nothing_is_found(name: str, images: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    made = export_bundle(detector("ssdlite", score=0.9999), images, tmp_path / f"m{RUNTIMES[name].suffix}", "n", name)
    got = engines.load(made.path)(images)
    assert not any(got[k].any() for k in FINISHED)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", WHOLE)
def test_raw_heads(name: str, raw: Bundle, images: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    made = export_bundle(raw, images, tmp_path / f"m{RUNTIMES[name].suffix}", "noise", name, raw=True)
    engine = engines.load(made.path)
    assert list(engine.card.outputs) == [OFFSETS, SCORES]
    assert engine(images)[OFFSETS].shape == (5, *raw.card.outputs[OFFSETS])


@pytest.mark.parametrize("how", ["raw native file", pytest.param("torch file", marks=pytest.mark.slow)])
def test_of_raw_heads_predict_makes_the_same_boxes(
    raw: Bundle, images: npt.NDArray[np.uint8], tmp_path: Path, how: str
) -> None:
    """Also where a runtime has no suppression, so that its file gives them unasked."""
    whole = export_bundle(raw, images, tmp_path / "whole.mnet", "noise", "native")
    name = "native" if how == "raw native file" else "torch"
    other = export_bundle(raw, images, tmp_path / f"m{RUNTIMES[name].suffix}", "noise", name, raw=name == "native")
    assert list(load(other.path).card.outputs) == [OFFSETS, SCORES]
    said = [load(made.path).predict([*images], top=5) for made in (whole, other)]
    for one, other in zip(*said, strict=True):
        a, b = (p.answer.every for p in (one, other))  # type: ignore[union-attr]
        assert [d.label for d in a] == [d.label for d in b] != []
        np.testing.assert_allclose([d.box for d in a], [d.box for d in b], atol=0.02)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [n for n in WHOLE if n != "ncnn"])
def test_int8(name: str, int8: Bundle, images: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    """The layers that say where boxes are stay in float, in every file."""
    assert int8.card.float_ops == finish.box_layers(int8.card)
    assert len(int8.card.float_ops) == 6
    made = export_bundle(int8, images, tmp_path / f"m{RUNTIMES[name].suffix}", "noise", name, "int8")
    assert made.agreement is not None
    assert made.agreement >= 95


def test_box_layers_of_int8_in_float_are_nearer(images: npt.NDArray[np.uint8]) -> None:
    from mobilenets.compression.quantize import measure_ranges

    source = detector("ssdlite")
    measured = measure_ranges(source, images)
    true = TorchEngine(source, 1)(images)[OFFSETS]
    coarse, fine = (
        np.square(TorchEngine(measured.bundle(kept), 1)(images)[OFFSETS] - true).mean()
        for kept in ((), finish.box_layers(source.card))
    )
    assert fine < coarse


# ---- the suppression itself


def naive(boxes: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], how: Suppression) -> list[tuple[float, ...]]:
    """Class by class, from the best score down; then the best of all."""
    found = []
    for c in range(int(how.background), scores.shape[1]):
        kept: list[int] = []
        for i in np.argsort(-scores[:, c], kind="stable"):
            if scores[i, c] <= how.score or len(kept) == how.per_class:
                break
            low = np.maximum(boxes[i, :2], boxes[kept, :2])
            high = np.minimum(boxes[i, 2:], boxes[kept, 2:])
            common = (high - low).clip(0).prod(1)
            areas = [(b[..., 2:] - b[..., :2]).prod(-1) for b in (boxes[i], boxes[kept])]
            if not (common / (areas[0] + areas[1] - common) > how.iou).any():
                kept.append(int(i))
        found += [(*boxes[i], scores[i, c], c - how.background) for i in kept]
    return sorted(found, key=lambda row: -row[4])[: how.most]


def random_answers(count: int, classes: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    rng = np.random.default_rng(count)
    centres, sizes = rng.random((count, 2)), rng.uniform(0.1, 0.5, (count, 2))
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], 1).astype(np.float32)
    return boxes, rng.random((count, classes)).astype(np.float32) ** 3


@pytest.mark.parametrize(
    "how",
    [
        Suppression(0.01, 0.5, 100, 100, True),
        Suppression(1e-8, 0.6, 100, 50, False),
        Suppression(0.3, 0.3, 4, 100, True),
        Suppression(0.0, 0.9, 300, 300, True),
    ],
)
def test_suppression_is_what_it_says(how: Suppression, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilenets.model import detections

    monkeypatch.setattr(detections, "FIRST", 40)  # so that it looks again
    boxes, scores = random_answers(120, 5)
    got = suppressed(torch.from_numpy(boxes), torch.from_numpy(scores), how).numpy()
    expected = np.array(naive(boxes, scores, how), np.float32)
    np.testing.assert_allclose(got[: len(expected)], expected, atol=1e-6)
    assert not got[len(expected) :].any()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
@pytest.mark.parametrize("per_class", [3, 40])
def test_our_own_engines_suppression(kind: str, per_class: int, tmp_path: Path) -> None:
    """Scores that it computes itself, and those that are there: the same detections as PyTorch's."""
    bundle = detector("ssdlite", most=40)
    how = Suppression(0.02, 0.4, per_class, 40, True)
    whole = finish.finished(bundle)
    ops = [
        dataclasses.replace(op, suppression=how) if op.kind == "suppress" else
        dataclasses.replace(op, kind=kind) if op.kind == "sigmoid" else op
        for op in whole.card.head.ops
    ]  # fmt: skip
    extra = Output("every", f"detect.{SCORES}")
    pixels = generated(bundle.card.preprocess, 3)
    for outputs in (whole.card.head.outputs, (*whole.card.head.outputs, extra)):  # asked for, scores are computed first
        head = Head(tuple(ops), outputs)
        one = Bundle(whole.card.replace(head=head, task="features"), whole.tensors)
        engines.module("native").write(one, tmp_path / "m.mnet", None)
        got, expected = engines.load(tmp_path / "m.mnet")(pixels), TorchEngine(one, 1)(pixels)
        for name, values in expected.items():
            np.testing.assert_allclose(got[name], values, atol=1e-4, err_msg=name)


def test_the_time_of_each_part(raw: Bundle, tmp_path: Path) -> None:
    """Boxes and suppression are operations of their own in `bench --layers`."""
    engines.module("native").write(finish.finished(raw), tmp_path / "m.mnet", None)
    engine = engines.load(tmp_path / "m.mnet")
    assert isinstance(engine, engines.Timed)
    names = [name for name, _ in engine.layers]
    assert {"detect.boxes", "detect.found"} <= {*names}
    assert len(engine.layer_ms(generated(raw.card.preprocess, 1))) == len(names)


# ---- what files say of themselves


def test_a_tflite_file_says_what_its_outputs_are(raw: Bundle, images: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    """In the order, and by the names, that programs for TensorFlow's detectors look for."""
    pytest.importorskip("ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    from mobilenets.deploy.writers import tflite_graph, tflite_metadata

    path = export_bundle(raw, images, tmp_path / "m.tflite", "noise", "litert").path
    shapes = [list(o["shape"]) for o in Interpreter(str(path)).get_output_details()]
    assert shapes == [[1, 20, 4], [1, 20], [1, 20], [1]]
    data = path.read_bytes()
    told = tflite_graph.entry(tflite_graph.open_model(data), tflite_metadata.KEY)
    assert told is not None
    for word in (*tflite_metadata.DETECTIONS.values(), tflite_metadata.GROUP):
        assert word.encode() in told
    assert b"cat\ndog\ncow\n" in data


def test_a_file_that_takes_one_image(raw: Bundle, images: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(UserError, match="takes one image in a call, not 4"):
        export_bundle(raw, images, tmp_path / "m.tflite", "noise", "litert", batch=4)


def test_a_fixed_batch(raw: Bundle, images: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    made = export_bundle(raw, images, tmp_path / "m.onnx", "noise", batch=2)
    assert made.agreement == 100


# ---- cards


def test_operations_come_back_from_json(raw: Bundle) -> None:
    card = finish.finished(raw).card
    assert Card.from_json(json.loads(json.dumps(card.to_json()))) == card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coder": {"order": "zyx", "scales": [1, 1, 1, 1]}}, "not a box coder"),
        ({"coder": {"order": "yxhw", "scales": [1, 1, 0, 1]}}, "not a box coder"),
        ({"coder": {"order": "yxhw", "scales": [1, 1, 1]}}, "not a box coder"),
        ({"coder": 3}, "not a box coder"),
        ({"suppression": {"score": 0.5}}, "not an operation"),
        ({"part": "boxes"}, "not an operation"),
    ],
)
def test_a_hostile_operation(change: dict[str, object], message: str) -> None:
    op = Op("b", "boxes", 4, 4, inputs=("a",), coder=Coder("yxhw", (10.0, 10.0, 5.0, 5.0)))
    with pytest.raises(UserError, match=message):
        Op.from_json({**op.to_json(), **change})


@pytest.mark.parametrize(
    "change", [{"score": "x"}, {"iou": 2}, {"most": 0}, {"most": 10**9}, {"per_class": 1.5}, {"background": 1}]
)
def test_a_hostile_suppression(change: dict[str, object]) -> None:
    good = dataclasses.asdict(Suppression(0.1, 0.5, 10, 10, True))
    with pytest.raises(UserError, match="not a suppression of boxes"):
        Suppression.from_json({**good, **change})


def test_the_task_is_one_that_finishes() -> None:
    from mobilenets.tasks.task import Finishing

    assert isinstance(tasks.find("detect"), Finishing)
    assert not isinstance(tasks.find("classify"), Finishing)
