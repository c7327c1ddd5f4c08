import pytest

from mobilenets.data.checks import Scan
from mobilenets.reports.advice import MOST, advise
from mobilenets.tasks.classify import PRIMARY
from mobilenets.training.fitted import Step


def steps(first=80.0, last=80.0):
    return [Step("s", "p", "e", "int8", 1, {"top1": v, "count": 500}) for v in (first, last)]


def said(score, val=None, train=None, *, pretrained=True, images=100, recipe=None, lost=0.0, classes=3, side=300):
    curves = {"val_top1": dict(enumerate(score, 1))}
    curves |= {name: dict(enumerate(v, 1)) for name, v in (("val_loss", val), ("train_loss", train)) if v}
    scan = Scan("d", {"train": dict.fromkeys("abc", images)}, native_side=side)
    return advise(curves, steps(80, 80 - lost), scan, recipe or {}, PRIMARY, pretrained=pretrained, classes=classes)


FLAT = [60.0, 70.0, 80.0, 80.5, 80.4, 80.6, 80.5, 80.6, 80.6, 80.7]


def test_nothing_stands_out():
    assert said(FLAT) == []
    assert said([]) == said([50.0]) == []


def test_from_scratch_on_few_images():
    (line,) = said(FLAT, pretrained=False)
    assert "trained from scratch on 300 images" in line
    assert "--weights" in line
    assert said(FLAT, pretrained=False, images=5000) == said(FLAT, pretrained=False, side=28) == []


def test_still_rising():
    (line,) = said([10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 64.0, 68.0, 72.0, 76.0])
    assert "--epochs 20" in line


def test_later_epochs_brought_nothing():
    (line,) = said([60.0, 80.0, *[79.0] * 8])
    assert line.startswith("Epochs after 2 brought nothing")


def test_learned_by_heart():
    (line,) = said([60.0, 80.0, *[79.0] * 8], [1.0, 0.5, *[0.9] * 8], [1.0 / e for e in range(1, 11)])
    assert "rose from 0.50 to 0.90" in line


@pytest.mark.parametrize(("recipe", "lines"), [({}, 1), ({"mixup": 0.1}, 0)])
def test_a_network_that_cannot_learn_it(recipe, lines):
    assert len(said(FLAT, [1.0] * 10, [1.0] * 10, recipe=recipe)) == lines


def test_lost_in_quantization_and_a_small_class():
    assert any("int8 lost 2.0 points of top-1 from float" in line for line in said(FLAT, lost=2))
    assert any("3 of 3 classes have fewer than 20" in line for line in said(FLAT, images=5))


def test_no_more_than_can_be_read():
    assert len(said([10.0, *[9.0] * 9], [1.0] * 10, [1.0] * 10, pretrained=False, images=5, lost=3)) == MOST


def test_one_image_of_few_is_chance():
    few = [Step("s", "p", "e", "int8", 1, {"top1": v, "count": 36}) for v in (41.7, 38.9)]
    scan = Scan("d", {"train": dict.fromkeys("abc", 100)}, native_side=300)
    curves = {"val_top1": dict(enumerate(FLAT, 1))}
    assert advise(curves, few, scan, {}, PRIMARY, pretrained=True, classes=3) == []


def test_a_limit_that_is_missed_comes_first():
    scan = Scan("d", {"train": dict.fromkeys("abc", 5)}, native_side=300)
    first, second = advise({}, steps(), scan, {}, PRIMARY, pretrained=True, classes=3, over=["latency"])
    assert first.startswith("The file misses the limit of latency")
    assert second == "3 of 3 classes have fewer than 20 training images: more help most."


def test_int8_that_is_slower_is_told():
    scan = Scan("d", {"train": dict.fromkeys("abc", 100)}, native_side=300)
    made = [
        Step("s", "p", "e", p, 1, {"top1": 80.0, "count": 500}, ms) for p, ms in (("float32", 0.105), ("int8", 0.142))
    ]
    (line,) = advise({}, made, scan, {}, PRIMARY, pretrained=True, classes=3)
    assert line.startswith("int8 is slower here than float32 (0.142 ms, 0.105 ms)")
