"""The task as the rest asks it: scored, asked, drawn, proved, distilled, quantized."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mobilenets import tasks
from mobilenets.compression import sensitivity
from mobilenets.compression.quantize import kept_in_float
from mobilenets.data import rle
from mobilenets.data.boxes import Boxes
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.encodings import fold
from mobilenets.tasks.detect import finish
from mobilenets.tasks.detect.answers import Detection, Detections, draw
from mobilenets.tasks.detect.config import LOGITS, OFFSETS, Config, DetectorOptions
from mobilenets.tasks.detect.task import Detect

sys.path.insert(0, str(Path(__file__).parent))
import shapes

pytest.importorskip("faster_coco_eval")


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
    raw = TorchEngine(bundle, 1)(np.stack([split.pixels(i, shapes.STRETCH) for i in range(3)]))
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
    mask = np.zeros((100, 100), bool)
    mask[40:60, 20:50] = True
    masked = dataclasses.replace(said.every[0], mask=rle.encode(mask))
    assert (np.asarray(draw(plain, Detections((masked,))))[40:60, 20:50] != 128).any()
    assert masked.to_json()["mask"]["size"] == [100, 100]


def answered(masks=False):
    mask = np.zeros((100, 90), bool)
    mask[40:60, 20:50] = True
    outline = {"mask": rle.encode(mask)} if masks else {}
    cat = Detection("cat", 0.75, (10.0, 20.0, 60.0, 70.0), index=1, **outline)
    return Detections((cat, Detection("dog", 0.2, (0.0, 0.0, 5.0, 5.0)))), mask


def test_an_answer_as_torchvisions_detectors_give_it():
    said, mask = answered(masks=True)
    got = said.to_torchvision()
    assert got["boxes"].tolist() == [[10, 20, 60, 70]]
    assert (got["scores"].tolist(), got["labels"].tolist(), got["labels"].dtype) == ([0.75], [1], torch.int64)
    assert np.array_equal(got["masks"][0, 0].numpy(), mask)
    nothing = Detections(()).to_torchvision()
    assert nothing["boxes"].shape == (0, 4)
    assert "masks" not in nothing


@pytest.mark.parametrize("masks", [False, True])
def test_an_answer_as_supervision_has_it(masks):
    pytest.importorskip("supervision")
    said, mask = answered(masks)
    got = said.to_supervision()
    assert (len(got), got.xyxy.tolist(), got.class_id.tolist()) == (1, [[10, 20, 60, 70]], [1])
    assert got.data["class_name"].tolist() == ["cat"]
    assert np.array_equal(got.mask[0], mask) if masks else got.mask is None
    assert len(Detections(()).to_supervision()) == 0


def test_without_supervision_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="pip install supervision"):
        answered()[0].to_supervision()


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


def test_parity_bears_as_many_other_scores_as_other_boxes(bundle):
    """A tenth may be far off in int8, as where proposals lie elsewhere, a fifth may not; a tenth in float32 neither."""
    task = tasks.of(bundle.card)
    places = [[40 * n, 0, 40 * n + 32, 32] for n in range(5)]
    right = perfect([Boxes.of(places, [0] * 5, (200, 200))] * 4)
    for off, precision, ok in ((2, "int8", True), (4, "int8", False), (2, "float32", False)):
        scores = right["scores"].copy()
        scores[0, :off] = 0.35
        made = task.parity(right, {**right, "scores": scores}, precision)
        assert made.ok == ok, (off, precision, made)
        assert made.difference < 1e-3


@pytest.fixture
def pixels_of(shown):
    return np.stack([shown.split("val").pixels(i, shapes.STRETCH) for i in range(4)])


def test_teaching_is_nothing_where_both_say_the_same(bundle):
    task = tasks.of(bundle.card)
    count, columns = bundle.card.outputs["scores"]
    taps = {OFFSETS: torch.randn(2, count, 4), LOGITS: torch.randn(2, count, columns)}
    assert float(task.teach(taps, taps, 4.0)) == pytest.approx(0, abs=1e-5)
    other = {k: v + torch.randn_like(v) for k, v in taps.items()}
    assert float(task.teach(taps, other, 1.0)) > 0.1
    with pytest.raises(UserError, match="the same labels and anchors"):
        task.teach(taps, {**taps, LOGITS: taps[LOGITS][..., :2]})


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
