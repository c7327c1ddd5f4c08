"""Detectors as they are trained: what is shown, what it costs, what they start from."""

import csv
import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobilenets import tasks
from mobilenets.commands import train
from mobilenets.data import checks
from mobilenets.data.boxes import Boxes
from mobilenets.deploy import evaluate
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.tasks.detect.config import LOGITS, OFFSETS, Config, DetectorOptions
from mobilenets.tasks.detect.loss import DetectionLoss, hardest
from mobilenets.tasks.detect.task import Detect
from mobilenets.tasks.detect.transforms import Augmentation, tensors
from mobilenets.training.loader import HeldOutImages, TrainImages
from mobilenets.training.recipes import RECIPES
from mobilenets.training.setup import setup
from mobilenets.training.trainer import network, train_bundle

sys.path.insert(0, str(Path(__file__).parent))
import shapes

pytest.importorskip("faster_coco_eval")
QUICK = dataclasses.replace(
    RECIPES["detect"], epochs=1, batch=8, workers=0, ema=0.0, patience=0, frozen_rows=0.0, layer_decay=1.0,
    training_precision="float32",  # on any processor: after one epoch, AP is of what rounds either way
)  # fmt: skip


def test_boxes_go_where_their_pixels_go(shown):
    """Whatever is done to a picture: in its box is its colour, and not in the grey around."""
    split = shown.split("train")
    images = TrainImages(split, Augmentation(shapes.STRETCH, "photo"), 0, None, 64, True)
    seen = 0
    for epoch in range(4):
        for i in range(len(split)):
            image, target = images[epoch, i]
            assert image.shape == (3, 64, 64)
            assert image.dtype == torch.uint8
            assert len(target["labels"]) == len(target["boxes"]) == len(target["crowd"]) == len(target["area"])
            for x1, y1, x2, y2 in target["boxes"].round().int().tolist():
                if min(x2 - x1, y2 - y1) < 8:
                    continue
                part = image[:, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].float()
                spread = part.mean((1, 2))
                assert spread.max() - spread.min() > 40  # a colour, whichever photometric distortion makes of it
                seen += 1
    assert seen > 40


def test_large_pictures_are_read_smaller_and_boxes_follow():
    image = Image.new("RGB", (400, 200))
    image.paste((255, 255, 255), (100, 50, 200, 150))
    small = image.resize((200, 100))
    made, target = Augmentation(shapes.STRETCH, "none")(small, Boxes.of([[100, 50, 200, 150]], [1], (400, 200)))
    assert target["boxes"].tolist() == [[16, 16, 32, 48]]
    assert made[:, 20:44, 18:30].min() > 250
    assert made[:, :12].max() < 5
    assert target["area"].tolist() == [10000]  # of the picture itself


def test_validation_sees_what_a_prediction_sees(shown):
    split = shown.split("val")
    image, target = HeldOutImages(split, shapes.STRETCH, Detect().tensors)[0]
    true = split.targets[0]
    scale = 64 / np.array([*true.size, *true.size])
    np.testing.assert_allclose(target["boxes"], true.xyxy * scale, atol=0.51)
    np.testing.assert_array_equal(image.permute(1, 2, 0), split.pixels(0, shapes.STRETCH))


def test_losses_by_hand():
    """One object, its anchor matched exactly: both parts of the loss, and which negatives are taken."""
    made = Config.of(shapes.detector().card.config)
    loss = DetectionLoss(made)
    anchor = 5
    x, y, w, h = loss.anchors[anchor].tolist()
    box = torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]]) * 64
    plain = tensors(Boxes.of(box.numpy(), [1], (64, 64)), (64, 64))
    targets = loss.targets((torch.zeros(1, 3, 64, 64), [plain]))
    count = made.anchors.count
    offsets, logits = torch.zeros(1, count, 4), torch.zeros(1, count, 3)
    classes, _, sure = loss._wanted(targets)
    assert classes[0, anchor] == 1
    alone = torch.where(torch.arange(count) == anchor, 1, -1)[None]
    # Three columns of a half each, of the object's anchor and its three negatives.
    assert float(loss._of_logits(logits, alone, sure)) == pytest.approx(12 * float(np.log(2)), rel=1e-5)
    assert float(loss({OFFSETS: offsets, LOGITS: logits}, targets)) >= 12 * float(np.log(2)) - 1e-4
    logits[:] = -20  # of sigmoids the background's too: it is no object of any kind
    logits[0, anchor, 2] = 20
    assert float(loss._of_logits(logits, alone, sure)) < 1e-3
    logits[0, 9, 0] = 20
    assert float(loss._of_logits(logits, alone, sure)) == pytest.approx(20, rel=1e-3)


@pytest.mark.parametrize("family", ["ssdlite", "ssdlite-torchvision"])
def test_crowds_are_neither_objects_nor_background(family):
    made = Config.of(shapes.detector(options=DetectorOptions(family)).card.config)
    loss = DetectionLoss(made)
    whole = Boxes.of([[0, 0, 64, 64]], [0], (64, 64), crowd=[True])
    outputs = {OFFSETS: torch.randn(1, made.anchors.count, 4), LOGITS: torch.randn(1, made.anchors.count, made.columns)}
    assert float(loss(outputs, loss.targets((None, [tensors(whole, (64, 64))])))) == 0
    none = Boxes.of(np.zeros((0, 4)), np.zeros(0), (64, 64))
    assert float(loss(outputs, loss.targets((None, [tensors(none, (64, 64))])))) > 0


def test_three_negatives_of_each_positive():
    losses = torch.tensor([[5.0, 1, 4, 3, 2, 0], [0.0, 1, 2, 3, 4, 5]])
    classes = torch.tensor([[0, -1, -1, -1, -1, -2], [-1, -1, -1, -1, -1, -1]])
    kept = hardest(losses, classes)
    assert kept[0].tolist() == [False, False, True, True, True, False]
    assert kept[1].tolist() == [False, False, False, True, True, True]  # of an image without objects three too


def test_images_of_another_size_are_refused():
    made = Config.of(shapes.detector().card.config)
    outputs = {OFFSETS: torch.zeros(1, 7, 4), LOGITS: torch.zeros(1, 7, 3)}
    with pytest.raises(UserError, match="answers for 7 anchors"):
        DetectionLoss(made)(outputs, [])


def test_one_epoch(shown, tmp_path):
    """Through the loop, with its own score, which is kept on the card."""
    made = train_bundle(shown, shapes.SMALL, QUICK, tmp_path / "r", task=Detect())
    with (tmp_path / "r" / "logs" / "metrics.csv").open(newline="") as f:
        (row,) = csv.DictReader(f)
    assert {"val_ap", "val_ap50", "val_loss"} <= set(row)
    assert float(row["train_loss"]) > 0 < float(row["val_loss"])
    card = Bundle.load(tmp_path / "r" / "float").card
    assert (card.task, card.preprocess.framing, card.metrics[0].name) == ("detect", "stretch", "ap")
    assert card.config == made.card.config
    assert Config.of(card.config).anchors.count == card.outputs[OFFSETS][0]
    assert card.metrics[0].value == pytest.approx(float(row["val_ap"]), abs=1e-3)


def test_a_training_that_makes_nothing_better_gives_back_what_it_began_with(shown, tmp_path, capsys):
    """Of another detector, whose labels are two of its own in another order; at no rate at all, nothing is better."""
    more = shapes.detector(("red", "green", "blue"))
    pruned = {"pruned": {"zeros": {"sparsity": "50%"}}}
    more = Bundle(more.card.replace(recipe=pruned), more.tensors).save(tmp_path / "more")
    task = tasks.with_options(tasks.find("detect"), {}, more)
    recipe = dataclasses.replace(QUICK, lr=1e-12, norms="kept")
    made = train_bundle(shown, shapes.SMALL, recipe, tmp_path / "r", task=task, init=more)
    assert "no epoch beat what training began with" in " ".join(capsys.readouterr().err.split())
    start = Bundle.load(tmp_path / "r" / "start")
    assert made.card.recipe["best_epoch"] == 0
    assert made.card.recipe["pruned"] == start.card.recipe["pruned"] == pruned["pruned"]
    assert made.card.metrics == start.card.metrics
    assert start.card.parent == more.digest
    for name, tensor in Detect().transfer(more, start.card.config).items():
        np.testing.assert_array_equal(made.tensors[name], tensor)


def test_an_ap_of_nothing_is_explained_once(shown, capsys):
    made = shapes.detector().card.config
    scores = tasks.find("detect").validation(made)
    anchors = Config.of(made).anchors.count
    outputs = {OFFSETS: torch.zeros(2, anchors, 4), LOGITS: torch.full((2, anchors, 3), -6.0)}
    targets = [tensors(t, (64, 72)) for t in shown.split("val").targets[:2]]
    for _ in range(2):
        for score in scores.values():
            score.update(outputs, targets)
            assert float(score.compute()) < 0.01
            score.reset()
    said = " ".join(capsys.readouterr().err.split())
    assert re.match(r"AP is 0\.\d\d% after the first epoch: nothing was found: ", said)
    assert said.count("AP is") == 1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ssdlite", "ssdlite-torchvision"])
def test_a_training_of_seconds_finds_rectangles(family, tmp_path):
    data = shapes.data(256, 48)
    checks.scan(data)
    recipe = dataclasses.replace(QUICK, epochs=14, batch=16, lr=4e-3, ema=0.02)
    made = train_bundle(data, shapes.SMALL, recipe, tmp_path / "r", task=Detect(DetectorOptions(family)))
    scores = evaluate.score(TorchEngine(made, 1), data, "val")
    assert scores.ap50 > 50
    assert scores.value == pytest.approx(made.card.metrics[0].value, abs=0.5)  # what validation said of it


def test_it_starts_from_a_classifier(make_bundle):
    """The body is the classifier's; what is its own begins small."""
    v1 = make_bundle("v1")
    config = Detect().shaped({"labels": ["a"]}, v1.card.arch.replace(num_classes=0), None)
    kept = Detect().transfer(v1, config)
    assert set(kept) == {k for k in v1.tensors if not k.startswith("classifier.")}


def test_it_starts_from_another_detector(bundle):
    """Labels that both know keep their logits; a new one begins as the mean of all."""
    other = shapes.detector(("green", "red"))
    kept = Detect().transfer(bundle, other.card.config)
    assert set(kept) == set(bundle.tensors)
    assert all(np.array_equal(v, bundle.tensors[k]) for k, v in kept.items() if not k.startswith("detect.class."))
    name = next(
        op.inputs[0] for op in bundle.card.graph.ops if op.kind == "rows" and op.name.startswith("detect.class")
    )
    bias, was = (t[f"{name}.conv.bias"].reshape(-1, 3) for t in (kept, bundle.tensors))
    np.testing.assert_array_equal(bias[:, 0], was[:, 0])  # background
    np.testing.assert_array_equal(bias[:, 2], was[:, 2])  # red
    np.testing.assert_allclose(bias[:, 1], was[:, 1:].mean(1), rtol=1e-6)
    more = shapes.detector(("a", "b", "c"))
    assert Detect().transfer(bundle, more.card.config)[f"{name}.conv.bias"].shape == (len(was) * 4,)
    another = shapes.detector(options=DetectorOptions("ssdlite-torchvision"))
    assert not any(k.startswith("detect.") for k in Detect().transfer(bundle, another.card.config))


def test_a_detector_goes_on_as_it_was(bundle, shown):
    """Its anchors and coder are those it was trained with, unless others are asked for; suppression is the family's."""
    config = json.loads(json.dumps(bundle.card.config))
    config["suppression"]["iou"] = 0.33
    config["coder"]["order"] = "xywh"
    start = Bundle(bundle.card.replace(config=config), bundle.tensors)
    task = tasks.with_options(tasks.find("detect"), {}, start)
    arch = network(None, None, None, start, task, task.config(shown), shown)
    assert arch.resolution == 64
    assert tasks.config_of(task, shown, arch) == {
        **config, "labels": list(shown.labels), "suppression": bundle.card.config["suppression"],
    }  # fmt: skip
    fresh = tasks.with_options(tasks.find("detect"), {"detect": DetectorOptions("ssdlite-torchvision")}, start)
    assert tasks.config_of(fresh, shown, arch)["scores"] == "softmax"


def test_a_folded_detectors_own_layers_are_measured_too(bundle, shown):
    """As one that is imported from TFLite: its extra maps have BatchNorm in their weights. Fresh layers stay."""
    tensors = {k: v.copy() for k, v in bundle.tensors.items()}
    for k, v in tensors.items():
        if k.endswith("norm.bias"):
            v += 1  # somebody trained it
        if k.endswith("running_mean"):
            v[:] = 0
        if k.endswith("running_var"):
            v[:] = 1
    folded = Bundle(bundle.card, tensors)
    recipe = dataclasses.replace(RECIPES["detect"], epochs=1, batch=8, workers=0)
    task = tasks.with_options(tasks.find("detect"), {}, folded)
    made = setup(shown, shown.split("train"), bundle.card.arch, recipe, 0, folded, None, task)
    assert made.measured
    state = made.learner.model.state_dict()
    own = [k for k in state if k.startswith("detect.extra") and k.endswith("running_mean")]
    assert own
    assert all(state[k].any() for k in own)
    body = {k: v for k, v in tensors.items() if not k.startswith("detect.")}
    classifier = Bundle(bundle.card.replace(task="features", head=dataclasses.replace(bundle.card.head, own=())), body)
    made = setup(shown, shown.split("train"), bundle.card.arch, recipe, 0, classifier, None, Detect())
    state = made.learner.model.state_dict()
    assert not any(state[k].any() for k in own)


def test_a_detector_starts_from_pretrained_weights_where_there_are_some(make_bundle, tmp_path, capsys):
    make_bundle("v1").save(tmp_path / "weights" / "v1")
    task = tasks.with_options(tasks.find("detect"), {}, None)
    found = train.pretrained(task, "v1", 0.25, tmp_path / "weights")
    assert found.card.arch.title.startswith("v1 0.25")
    assert "it starts from pretrained weights, v1 " in capsys.readouterr().err
    assert train.pretrained(task, "v1", 0.5, tmp_path / "weights") is None
    assert "no pretrained weights of v1 0.5-320 are at hand" in capsys.readouterr().err
