"""The task as the rest asks it: trained, scored, asked, drawn, proved, distilled, quantized, started from."""

import csv
import dataclasses
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mobilenets import tasks
from mobilenets.arch.rows import Conv, Separable
from mobilenets.arch.spec import Arch
from mobilenets.commands import train
from mobilenets.compression import sensitivity
from mobilenets.compression.quantize import kept_in_float
from mobilenets.data import checks
from mobilenets.data.boxes import Boxes
from mobilenets.deploy import evaluate
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.encodings import fold
from mobilenets.model.images import Preprocess
from mobilenets.tasks.detect import finish
from mobilenets.tasks.detect.answers import Detection, Detections, draw
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
SMALL = Arch("small", 0.25, 64, 0, (Conv(16, stride=2), Separable(32, stride=2), Separable(64, stride=2),
                                    Separable(96, stride=2)))  # fmt: skip
STRETCH = Preprocess(64, crop=1.0, framing="stretch")


@pytest.fixture(scope="module")
def shown():
    return shapes.data(16, 8)


def detector(labels=tuple(shapes.COLOURS), options=None, arch=SMALL):
    """A detector with random weights."""
    task = Detect(options)
    config = task.shaped({"labels": list(labels)}, arch, None)
    card = Card(
        arch, dataclasses.replace(STRETCH, resolution=arch.resolution), task.head(arch, config), "detect", config
    )
    return with_random_weights(card)


@pytest.fixture(scope="module")
def bundle():
    return detector()


# ---- training ------------------------------------------------------------------------------------------------------


def test_boxes_go_where_their_pixels_go(shown):
    """Whatever is done to a picture: in its box is its colour, and not in the grey around."""
    split = shown.split("train")
    images = TrainImages(split, Augmentation(STRETCH, "photo"), 0, None, 64, True)
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
    made, target = Augmentation(STRETCH, "none")(small, Boxes.of([[100, 50, 200, 150]], [1], (400, 200)))
    assert target["boxes"].tolist() == [[16, 16, 32, 48]]
    assert made[:, 20:44, 18:30].min() > 250
    assert made[:, :12].max() < 5
    assert target["area"].tolist() == [10000]  # of the picture itself


def test_validation_sees_what_a_prediction_sees(shown):
    split = shown.split("val")
    image, target = HeldOutImages(split, STRETCH, Detect().tensors)[0]
    true = split.targets[0]
    scale = 64 / np.array([*true.size, *true.size])
    np.testing.assert_allclose(target["boxes"], true.xyxy * scale, atol=0.51)
    np.testing.assert_array_equal(image.permute(1, 2, 0), split.pixels(0, STRETCH))


def test_losses_by_hand():
    """One object, its anchor matched exactly: both parts of the loss, and which negatives are taken."""
    made = Config.of(detector().card.config)
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
    made = Config.of(detector(options=DetectorOptions(family)).card.config)
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
    made = Config.of(detector().card.config)
    outputs = {OFFSETS: torch.zeros(1, 7, 4), LOGITS: torch.zeros(1, 7, 3)}
    with pytest.raises(UserError, match="answers for 7 anchors"):
        DetectionLoss(made)(outputs, [])


QUICK = dataclasses.replace(
    RECIPES["detect"], epochs=1, batch=8, workers=0, ema=0.0, patience=0, frozen_rows=0.0, layer_decay=1.0
)


def test_one_epoch(shown, tmp_path):
    """Through the loop, with its own score, which is kept on the card."""
    made = train_bundle(shown, SMALL, QUICK, tmp_path / "r", task=Detect())
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
    more = detector(("red", "green", "blue")).save(tmp_path / "more")
    task = tasks.with_options(tasks.find("detect"), {}, more)
    recipe = dataclasses.replace(QUICK, lr=1e-12, norms="kept")
    made = train_bundle(shown, SMALL, recipe, tmp_path / "r", task=task, init=more)
    assert "no epoch beat what training began with" in " ".join(capsys.readouterr().err.split())
    start = Bundle.load(tmp_path / "r" / "start")
    assert made.card.recipe["best_epoch"] == 0
    assert made.card.metrics == start.card.metrics
    assert start.card.parent == more.digest
    for name, tensor in Detect().transfer(more, start.card.config).items():
        np.testing.assert_array_equal(made.tensors[name], tensor)


def test_an_ap_of_nothing_is_explained_once(shown, capsys):
    made = detector().card.config
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
    made = train_bundle(data, SMALL, recipe, tmp_path / "r", task=Detect(DetectorOptions(family)))
    scores = evaluate.score(TorchEngine(made, 1), data, "val")
    assert scores.ap50 > 50
    assert scores.value == pytest.approx(made.card.metrics[0].value, abs=0.5)  # what validation said of it


# ---- answers -------------------------------------------------------------------------------------------------------


def perfect(targets):
    """Outputs that say what is true, of a detector whose file decodes by itself."""
    boxes = np.zeros((len(targets), 5, 4), np.float32)
    scores, classes = np.zeros((len(targets), 5), np.float32), np.zeros((len(targets), 5), np.float32)
    for n, t in enumerate(targets):
        boxes[n, : len(t)] = t.xyxy / np.array([*t.size, *t.size])
        scores[n, : len(t)], classes[n, : len(t)] = 0.9, t.classes
    return {"boxes": boxes, "scores": scores, "classes": classes, "count": np.array([len(t) for t in targets])}


def test_scores_of_what_is_true(shown, bundle):
    split, tally = shown.split("val"), tasks.of(bundle.card).metrics(bundle.card)
    tally.update(perfect(split.targets[:5]), split.targets[:5])
    tally.update(perfect(split.targets[5:]), split.targets[5:])
    scores = tally.compute("shapes", "val")
    said = scores.to_json()
    assert said["ap"] == said["ap50"] == said["ap75"] == said["ar10"] == pytest.approx(100)
    assert said["ap_large"] is None
    assert said["count"] == len(split)
    assert sum(c["objects"] for c in said["per_class"].values()) == sum(map(len, split.targets))
    assert set(scores.details()["curves"]) == {"blue", "red"}
    assert "why" not in said


def test_raw_and_finished_answers_are_the_same(shown, bundle):
    """What is decoded here of raw heads is what a file that decodes gives, on the picture's own pixels."""
    task, split = tasks.of(bundle.card), shown.split("val")
    raw = TorchEngine(bundle, 1)(np.stack([split.pixels(i, STRETCH) for i in range(3)]))
    sizes = [t.size for t in split.targets[:3]]
    answers = task.decode(raw, bundle.card.replace(config={**bundle.card.config}), sizes, 5)
    assert len(answers) == 3
    most = max(len(a.every) for a in answers)
    finished = {
        "boxes": np.zeros((3, most, 4), np.float32), "scores": np.zeros((3, most), np.float32),
        "classes": np.zeros((3, most), np.float32), "count": np.array([len(a.every) for a in answers]),
    }  # fmt: skip
    for n, (a, size) in enumerate(zip(answers, sizes, strict=True)):
        for k, one in enumerate(a.every):
            finished["boxes"][n, k] = np.array(one.box) / np.array([*size, *size])
            finished["scores"][n, k], finished["classes"][n, k] = one.score, one.index
    again = task.decode(finished, bundle.card, sizes, 5)
    for a, b in zip(answers, again, strict=True):
        assert [d.label for d in a.every] == [d.label for d in b.every]
        np.testing.assert_allclose([d.box for d in a.every], [d.box for d in b.every], atol=1e-3)


def test_an_answer_in_json_text_and_colour():
    said = Detections(
        (
            Detection("cat", 0.91234567, (10.126, 20.0, 60.0, 70.0), index=1),
            Detection("dog", 0.2, (0.0, 0.0, 5.0, 5.0)),
        )
    )
    assert said.to_json() == {"boxes": [{"label": "cat", "score": 0.912346, "box": [10.13, 20.0, 60.0, 70.0]}]}
    assert str(said) == "cat 91.2% at 10, 20, 60, 70"
    assert str(Detections(())) == "nothing"
    assert len(dataclasses.replace(said, least=0.1).boxes) == 2
    plain = Image.new("RGB", (100, 100), (128, 128, 128))
    drawn = np.asarray(draw(plain, said)).astype(int)
    changed = (np.abs(drawn - 128).max(-1) > 20).nonzero()
    assert changed[0].min() < 20  # its label above
    assert 8 <= changed[1].min() <= 11
    assert (drawn[40:60, 20:50] == 128).all()
    from mobilenets.data import rle

    mask = np.zeros((100, 100), bool)
    mask[40:60, 20:50] = True
    masked = dataclasses.replace(said.every[0], mask=rle.encode(mask))
    assert (np.asarray(draw(plain, Detections((masked,))))[40:60, 20:50] != 128).any()
    assert masked.to_json()["mask"]["size"] == [100, 100]


def test_predict_and_eval_from_the_command_line(shown, bundle, command, tmp_path, monkeypatch):
    path = bundle.save(tmp_path / "det") and tmp_path / "det"
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i in range(2):
        shown.split("val").rgb(i).save(folder / f"{i}.png")
    shown.split("val").rgb(2).save(folder / "more" / "0.png")
    ran = command("predict", path, folder, "--draw", tmp_path / "drawn", "--reject-below", 0.0, "--json")
    said = [json.loads(line) for line in ran.out.splitlines()]
    assert len(said) == 3, ran.err
    for one in said:
        for box in one["boxes"]:
            assert set(box) == {"label", "score", "box"}
            x1, y1, x2, y2 = box["box"]
            assert 0 <= x1 < x2 <= 72
            assert 0 <= y1 < y2 <= 64
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == ["0-2.jpg", "0.jpg", "1.jpg"]
    with Image.open(tmp_path / "drawn" / "1.jpg") as image:
        assert image.size == (72, 64)
    opened = SimpleNamespace(TASK=_Opening(shown))
    monkeypatch.setitem(sys.modules, "detect_of_shapes", opened)
    monkeypatch.setitem(tasks.TASKS, "detect", "detect_of_shapes")
    scores = command("eval", path, "shapes", "--json").json
    assert {"ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100", "per_class"} <= set(
        scores
    )
    assert "average precision, AP (%)" in command("eval", path, "shapes").out


class _Opening(Detect):
    """The same of data that isn't in a folder."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    def open(self, *_):
        return self.data

    def by(self, config):
        made = _Opening(self.data)
        made.known = Config.of(config)
        return made


# ---- proof, other networks -----------------------------------------------------------------------------------------


def test_parity_sees_what_is_wrong(bundle, pixels_of):
    task, outputs = tasks.of(bundle.card), TorchEngine(bundle, 1)(pixels_of)
    scores = outputs["scores"] * 0
    scores[:, ::7, 1] = 0.9
    outputs = {**outputs, "scores": scores}
    same = task.parity(outputs, {k: v.copy() for k, v in outputs.items()}, "float32")
    assert same.ok
    assert (same.agreement, same.difference) == (100, 0)
    shifted = {**outputs, "offsets": outputs["offsets"] + 1}
    assert not task.parity(outputs, shifted, "float32").ok
    assert task.parity(outputs, shifted, "int8").ok  # a tenth of an anchor
    other = {**outputs, "scores": np.roll(scores, 1, 2)}
    assert task.parity(outputs, other, "int8").reason.startswith("0.00% of the boxes agree")
    finished = perfect([Boxes.of([[0, 0, 32, 32], [10, 10, 60, 60]], [0, 1], (64, 64))])
    assert task.parity(finished, finished, "float32").ok
    moved = {**finished, "boxes": finished["boxes"][:, :, [1, 0, 3, 2]] + np.float32(0.2)}
    assert not task.parity(finished, moved, "float16").ok


@pytest.fixture
def pixels_of(shown):
    return np.stack([shown.split("val").pixels(i, STRETCH) for i in range(4)])


def test_teaching_is_nothing_where_both_say_the_same(bundle):
    task = tasks.of(bundle.card)
    count, columns = bundle.card.outputs["scores"]
    taps = {OFFSETS: torch.randn(2, count, 4), LOGITS: torch.randn(2, count, columns)}
    assert float(task.teach(taps, taps, 4.0)) == pytest.approx(0, abs=1e-5)
    other = {k: v + torch.randn_like(v) for k, v in taps.items()}
    assert float(task.teach(taps, other, 1.0)) > 0.1
    with pytest.raises(UserError, match="the same labels and anchors"):
        task.teach(taps, {**taps, LOGITS: taps[LOGITS][..., :2]})


def test_it_starts_from_a_classifier(make_bundle):
    """The body is the classifier's; what is its own begins small."""
    v1 = make_bundle("v1")
    config = Detect().shaped({"labels": ["a"]}, v1.card.arch.replace(num_classes=0), None)
    kept = Detect().transfer(v1, config)
    assert set(kept) == {k for k in v1.tensors if not k.startswith("classifier.")}


def test_it_starts_from_another_detector(bundle):
    """Labels that both know keep their logits; a new one begins as the mean of all."""
    other = detector(("green", "red"))
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
    more = detector(("a", "b", "c"))
    assert Detect().transfer(bundle, more.card.config)[f"{name}.conv.bias"].shape == (len(was) * 4,)
    another = detector(options=DetectorOptions("ssdlite-torchvision"))
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


def test_quantizing_keeps_the_boxes_in_float_however_it_is_done(shown, bundle, command, tmp_path):
    """Plain, with a limit, and trained: `quantize` of a bundle and `fit` say the same."""
    bundle.save(tmp_path / "float")
    shapes.write(tmp_path / "data", shown)
    fine = finish.box_layers(bundle.card)
    assert fine
    assert kept_in_float(bundle.card) == fine
    line = ("quantize", tmp_path / "float", tmp_path / "data", "--images", 4, "--out")
    for name, more in (("plain", ()), ("limited", ("--max-drop", 100)), ("named", ("--keep-float", fine[0]))):
        run = command(*line, tmp_path / name, *more)
        assert run.code == 0, run.err
        assert Bundle.load(tmp_path / name).card.float_ops == fine
    found = sensitivity.layer_errors(
        Bundle.load(tmp_path / "plain"), fold(bundle.card, bundle.tensors), np.zeros((2, 64, 64, 3), np.uint8)
    )
    assert {o.name for o in found.lines if o.covered is None} == {*fine}


def test_options_are_of_detectors():
    with pytest.raises(UserError, match="--anchors is for --task detect"):
        tasks.with_options(tasks.find("classify"), {"detect": DetectorOptions(anchors="auto")}, None)


def test_a_detector_starts_from_pretrained_weights_where_there_are_some(make_bundle, tmp_path, capsys):
    make_bundle("v1").save(tmp_path / "weights" / "v1")
    task = tasks.with_options(tasks.find("detect"), {}, None)
    found = train.pretrained(task, "v1", 0.25, tmp_path / "weights")
    assert found.card.arch.title.startswith("v1 0.25")
    assert "it starts from pretrained weights, v1 " in capsys.readouterr().err
    assert train.pretrained(task, "v1", 0.5, tmp_path / "weights") is None
    assert "no pretrained weights of v1 0.5-320 are at hand" in capsys.readouterr().err
