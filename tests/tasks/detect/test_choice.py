"""Which detector is chosen: families, bodies and inputs, by COCO AP and latency from pixels to boxes."""

from types import SimpleNamespace

import numpy as np
import pytest

from mobilenets.arch import published
from mobilenets.arch.detectors import counting
from mobilenets.deploy import choose, engines, latency, variants
from mobilenets.deploy.choose import Budget
from mobilenets.deploy.latency import Setting
from mobilenets.errors import UserError
from mobilenets.model.card import Precision
from mobilenets.tasks import with_options
from mobilenets.tasks.detect.config import DetectorFamily, DetectorOptions
from mobilenets.tasks.detect.detector import TASK
from mobilenets.tasks.detect.task import Detect
from mobilenets.tasks.detect.two_stage import TwoStage


def test_what_was_published_ranks_as_it_was_published() -> None:
    assert published.coco_map("ssd-fpnlite", "v2", 1.0, 640) == (28.2, "published")
    assert published.coco_map("ssdlite", "v2", 1.0, 320) == (22.1, "published")
    assert published.coco_map("ssdlite", "v2", 7.0, 320) is None


def test_what_was_not_published_follows_the_body_and_the_input() -> None:
    def ap(*of: object) -> float:
        value, source = published.coco_map(*of)  # type: ignore[misc, arg-type]
        assert source == "extrapolated"
        return value

    assert 0 < ap("ssdlite", "v1", 0.25, 224) < ap("ssdlite", "v1", 0.25, 320) < ap("ssdlite", "v1", 0.5, 320) < 22


def test_each_family_is_a_variant_and_one_that_is_asked_for_the_only_one() -> None:
    assert [v.family for v in TASK.variants(3)] == ["ssdlite", "ssd", "ssd-fpnlite"]  # type: ignore[attr-defined]
    (one,) = Detect(DetectorOptions("ssd")).variants(3)
    assert one.called == "ssd-3"  # type: ignore[attr-defined]


def two_stage(name: DetectorFamily) -> TwoStage:
    (one,) = with_options(TASK, {"detect": DetectorOptions(name)}, None).variants(3)  # type: ignore[attr-defined]
    assert isinstance(one, TwoStage)
    return one


def test_one_of_two_stages_is_chosen_by_its_name() -> None:
    one = two_stage("mask-rcnn")
    assert one.called == "mask-rcnn-3"
    archs = one.networks(100)
    assert {a.resolution for a in archs} == {224}
    assert {a.name for a in archs} == {"v1", "v2", "v3-small", "v3-large"}
    arch = one.built("v3-large", 1.0, 320)
    assert str(one.prior(arch)) == "≈23"
    assert str(two_stage("faster-rcnn-fpn").prior(arch)) == "22.8"
    assert isinstance(one.asked(None, None), TwoStage)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_what_is_timed_of_it_is_its_longest(precision: Precision) -> None:
    one = two_stage("mask-rcnn")
    arch = one.built("v1", 0.25, 96)
    made = one.random(arch, precision)
    engine, _ = engines.build("onnxruntime", made, precision, 1)
    found = engine(np.zeros((1, 96, 96, 3), np.uint8))
    assert found["count"] >= 20
    assert (found["scores"][0, :20] > 0.1).all()


def test_a_network_is_timed_from_pixels_to_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(latency, "time_calls", lambda engine, *_: seen.append(engine) or [0.001] * 3)
    (ssd,) = Detect(DetectorOptions("ssdlite")).variants(2)
    arch = next(a for a in choose.grid(0, 300, ssd) if (a.name, a.alpha) == ("v1", 0.25))
    ms, size = latency.once(arch, Setting("onnxruntime", "float32", 1), ssd)  # type: ignore[arg-type]
    assert ms == 1.0
    assert size > 1e6
    assert all(isinstance(e, latency._Answering) for e in seen)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network takes as many milliseconds as its input has hundreds of pixels, of a pyramid twice that."""

    def here(archs, wanted, _remeasure, of):  # type: ignore[no-untyped-def]
        slow = 2 if "fpn" in of.called else 1
        rows = {a.digest: latency.Measured(a.title, slow * a.resolution / 100, 10**6) for a in archs}
        return SimpleNamespace(entries=dict.fromkeys(wanted, rows), machine="here", versions={"onnxruntime": "1"})

    monkeypatch.setattr(latency, "here", here)


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("name", ["ssdlite", "faster-rcnn-fpn"])
def test_what_is_chosen_costs_what_it_does_with_its_head(name: DetectorFamily) -> None:
    (one,) = with_options(TASK, {"detect": DetectorOptions(name)}, None).variants(2)  # type: ignore[attr-defined]
    found = choose.pick([one.built("v1", 0.25, 224)], Budget(), task=one).pick
    whole = counting.count(name, "v1", 0.25, 224, 3)
    assert (found.macs_m, found.params_m) == (whole.macs / 1e6, whole.params / 1e6)


@pytest.mark.slow
@pytest.mark.usefixtures("measured")
def test_the_best_of_all_families_within_the_budget() -> None:
    def within(ms: float) -> tuple[str, int]:
        def picked(of):  # type: ignore[no-untyped-def]
            return choose.pick(choose.grid(0, 300, of), Budget(max_latency_ms=ms), task=of)

        made = variants.pick_variant(TASK, 1, picked)  # type: ignore[arg-type]
        assert made is not None
        return made[1].family, made[0].pick.arch.resolution  # type: ignore[attr-defined]

    assert within(100)[1] == 416
    assert within(3)[1] <= 300
    with pytest.raises(UserError, match="no network meets"):
        within(1)
