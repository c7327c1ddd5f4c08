"""Detectors that learn of others: of the same anchors' answers, or of the boxes that any other finds."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mobilenets.arch.rows import Conv, Separable
from mobilenets.arch.spec import Arch
from mobilenets.deploy.export import export_bundle, generated
from mobilenets.errors import UserError
from mobilenets.model.bundle import with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.images import Preprocess
from mobilenets.tasks.detect import lessons
from mobilenets.tasks.detect.anchors import centres_and_sizes, corners
from mobilenets.tasks.detect.config import LOGITS, OFFSETS, Config
from mobilenets.tasks.detect.loss import DetectionLoss
from mobilenets.tasks.detect.task import Detect
from mobilenets.training import hubs, teachers
from mobilenets.training.recipes import Distillation

sys.path.insert(0, str(Path(__file__).parent))
import shapes

pytest.importorskip("faster_coco_eval")
SMALL = Arch("small", 0.25, 64, 0, (Conv(16, stride=2), Separable(32, stride=2), Separable(64, stride=2),
                                    Separable(96, stride=2)))  # fmt: skip


def detector(labels=tuple(shapes.COLOURS), family="ssdlite", side=64):
    """A detector with random weights."""
    task, arch = Detect(), SMALL.replace(resolution=side)
    task.options = dataclasses.replace(task.options, detector=family)
    config = task.shaped({"labels": list(labels)}, arch, None)
    preprocess = Preprocess(side, crop=1.0, framing="stretch")
    return with_random_weights(Card(arch, preprocess, task.head(arch, config), "detect", config))


def config_of(bundle):
    return Config.of(bundle.card.config)


def says(config, anchor, label, score=8.0):
    """Outputs that see an object of `label` at one anchor, and nothing at all others."""
    logits = torch.full((1, config.anchors.count, config.columns), -8.0)
    if config.background:
        logits[..., 0] = 8.0
        logits[0, anchor, 0] = -8.0
    logits[0, anchor, label + config.background] = score
    return {OFFSETS: torch.zeros(1, config.anchors.count, 4), LOGITS: logits}


@pytest.mark.parametrize("family", ["ssdlite", "ssdlite-torchvision", "ssd-fpnlite"])
def test_with_the_same_anchors_all_is_learned_and_nothing_is_left_to_learn_of_oneself(family):
    config = config_of(detector(family=family))
    learned = lessons.lesson(config.labels, config.to_json(), config, True)
    assert isinstance(learned, lessons.OfAnchors)
    said = says(config, 7, 1)
    row = learned.read(said)
    assert row.shape == (1, learned.width)
    loss = DetectionLoss(config)
    assert float(learned.off(said, row, loss, 2.0)) == pytest.approx(0, abs=1e-5)
    off = float(learned.off(says(config, 7, 0), row, loss, 2.0))
    assert off > 1
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "crowd": torch.zeros(0).bool()}
    taught = learned.objective(loss, Distillation(temperature=2.0, labels=0.25), None)
    total = taught(says(config, 7, 0), ([none], row))
    assert float(total) == pytest.approx(0.25 * float(loss(says(config, 7, 0), [none])) + 0.75 * off, rel=1e-4)


@pytest.mark.parametrize("family", ["ssdlite", "ssdlite-torchvision"])
def test_boxes_of_other_anchors_are_objects_as_sure_as_their_scores(family):
    """The teacher has other anchors, and its labels in another order with one more."""
    teacher = config_of(detector(("green", "red", "blue"), "ssdlite", 96))
    student = config_of(detector(("blue", "red"), family))
    learned = lessons.lesson(teacher.labels, teacher.to_json(), student, True)
    assert isinstance(learned, lessons.OfBoxes)
    every = corners(centres_and_sizes(teacher.anchors))
    inside = int(np.flatnonzero((every > 0.05).all(1) & (every < 0.95).all(1))[0])
    rows = learned.read(says(teacher, inside, 1)).view(-1, lessons.NUMBERS)  # red
    assert rows[0, 4] > 0.99
    assert rows[0, 5] == 1
    np.testing.assert_allclose(rows[0, :4], every[inside], atol=1e-5)
    assert not rows[1:].any()
    assert not learned.read(says(teacher, inside, 0)).any()  # green is none of the student's

    loss = DetectionLoss(student)
    x1, y1, x2, y2 = every[inside]
    box = torch.tensor([[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]])
    true = {"boxes": box, "labels": torch.tensor([1]), "crowd": torch.tensor([False])}
    outputs = says(student, 3, 1)
    assert float(learned.off(outputs, rows[None].flatten(1), loss, 1.0)) == pytest.approx(
        float(loss(outputs, [true])), rel=1e-3
    )
    rows[0, 4] = 0.5  # half an object: no logit is right for it but 0
    kinds = [
        float(loss.parts({**outputs, LOGITS: x}, [{**true, "scores": rows[:1, 4]}])[1])
        for x in (torch.zeros_like(outputs[LOGITS]), says(student, 3, 1)[LOGITS])
    ]
    assert kinds[0] < kinds[1]


def test_a_stranger_teaches_nothing():
    config = config_of(detector())
    with pytest.raises(UserError, match="knows none of the student's labels"):
        lessons.lesson(("cat",), {}, config, False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of rectangles as COCO has them, a teacher's bundle, and its file."""
    root = tmp_path_factory.mktemp("lessons")
    shapes.write(root / "data", shapes.data(16, 8))
    teacher = detector(side=96)
    teacher.save(root / "teacher")
    export_bundle(teacher, generated(teacher.card.preprocess, 4), root / "teacher.onnx", "noise", batch=2)
    return root


def test_a_file_with_the_same_anchors_gives_boxes_alone(folder):
    student = config_of(detector(side=96))
    pixels = torch.randint(0, 255, (2, 3, 96, 96), dtype=torch.uint8)
    for name, kind in (("teacher", lessons.OfAnchors), ("teacher.onnx", lessons.OfBoxes)):
        teacher = teachers.open_teacher(str(folder / name))
        learned = lessons.lesson(teacher.labels, teacher.config, student, teacher.taps)
        assert isinstance(learned, kind)
        assert learned.read(teacher(pixels)).shape == (2, learned.width)


def test_distill_from_a_file_of_boxes(folder, command, tmp_path):
    """From the command line, its answers kept."""
    line = ("distill", folder / "teacher.onnx", folder / "data", "--task", "detect", "--detector", "ssdlite", "--arch",
            "v1", "--alpha", ".25", "--resolution", "64", "--recipe", "modern", "--epochs", "1", "--views", "1",
            "--batch", "8", "--workers", "0", "--out", tmp_path / "run", "--json")  # fmt: skip
    run = command(*line)
    assert run.code == 0, run.err
    assert run.json["recipe"]["teacher"]["name"] == "teacher.onnx"
    views = sorted((tmp_path / "run" / "teacher").rglob("*.npy"))
    assert [np.load(v).shape for v in views] == [(16, lessons.OfBoxes.width)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--unlabelled",), "scored by what is true"),
        (("--detector", "faster-rcnn-fpn"), "learns of no teacher"),
        (("--embedding", "1"), "shows no embedding"),
    ],
)
def test_what_cannot_be_learned(folder, command, tmp_path, more, message):
    line = ("distill", folder / "teacher", folder / "data", "--task", "detect", "--out", tmp_path / "run", *more)
    run = command(*line, "--recipe", "modern")
    assert run.code == 2
    assert message in run.err
    assert not (tmp_path / "run").exists()


class Transform(nn.Module):
    min_size, fixed_size = (80,), None


class Theirs(nn.Module):
    """A detector as torchvision's are called."""

    def __init__(self):
        super().__init__()
        self.transform = Transform()

    def forward(self, images):
        said = []
        for i, image in enumerate(images):
            height, width = image.shape[1:]
            boxes = torch.tensor([[0.0, 0.0, width / 2, height / 4]])[:i]
            said.append({"boxes": boxes, "scores": torch.full((len(boxes),), 0.9),
                         "labels": torch.ones(len(boxes), dtype=torch.int64)})  # fmt: skip
        return said


def test_torchvisions_detectors_teach(monkeypatch):
    monkeypatch.setattr(hubs, "fetch", lambda *_: Theirs())
    teacher = teachers.open_teacher("torchvision:ssdlite320_mobilenet_v3_large")
    assert (teacher.task, teacher.labels[0], teacher.preprocess.input_size) == ("detect", "person", (80, 80))
    student = config_of(detector(("dog", "person")))
    learned = lessons.lesson(teacher.labels, teacher.config, student, teacher.taps)
    rows = learned.read(teacher(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))).view(2, -1, lessons.NUMBERS)
    assert not rows[0].any()
    np.testing.assert_allclose(rows[1, 0], [0, 0, 0.5, 0.25, 0.9, 1], atol=1e-6)
