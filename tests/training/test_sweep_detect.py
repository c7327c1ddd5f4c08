"""Detectors on a grid: each begins with its body's weights, and costs what it costs with its head."""

import dataclasses
import sys
from pathlib import Path

import pytest

from mobilenets.arch.detectors import counting
from mobilenets.commands import sweep
from mobilenets.errors import UserError
from mobilenets.model.bundle import with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.images import Preprocess
from mobilenets.tasks import config_of
from mobilenets.tasks.detect.config import DetectorOptions
from mobilenets.training import trainer
from mobilenets.training.recipes import RECIPES

sys.path.insert(0, str(Path(__file__).parents[1] / "tasks" / "detect"))
import shapes

pytest.importorskip("faster_coco_eval")


def test_each_starts_from_its_body_and_is_counted_whole(make_bundle, monkeypatch, tmp_path):
    """The training alone is left out."""
    folder, begun = shapes.write(tmp_path / "data", shapes.data(4, 4)), []
    make_bundle("v1").save(tmp_path / "weights" / "v1")

    def train_bundle(data, arch, recipe, out, *, task, seed, resume, init, log):  # noqa: ARG001
        begun.append((arch, task.family, init and init.card.arch.title, recipe.batch))
        config = config_of(task, data, arch)
        preprocess = Preprocess(arch.resolution, framing="stretch")
        card = Card(arch, preprocess, task.head(arch, config), task="detect", config=config, data=data.describe())
        (out / "logs").mkdir(parents=True, exist_ok=True)
        (out / "logs" / "metrics.csv").write_text("epoch,val_ap,seconds\n1,5,1.5\n")
        return with_random_weights(card).save(out / "float")

    monkeypatch.setattr(trainer, "train_bundle", train_bundle)
    monkeypatch.setattr(
        sweep, "timed", lambda runs, *_: [dataclasses.replace(r, latency_ms=r.macs / 1e6) for r in runs]
    )
    how = DetectorOptions("ssd")
    made = sweep.sweep(
        folder, task="detect", detector=how, alphas=(0.25,), resolutions=(64, 96), weights=tmp_path / "weights",
        out=tmp_path / "sweep",
    )  # fmt: skip
    assert [run.error for run in made.runs] == ["", ""]
    archs = [arch for arch, *_ in begun]
    assert [arch.resolution for arch in archs] == [64, 96]
    assert [rest for _, *rest in begun] == [["ssd", make_bundle("v1").card.arch.title, RECIPES["detect"].batch]] * 2
    for run, arch in zip(made.runs, archs, strict=True):
        whole = counting.of_arch(arch, "ssd", len(shapes.COLOURS) + 1)
        assert (run.macs, run.params) == (whole.macs, whole.params)


def test_options_of_others_are_refused(tmp_path):
    with pytest.raises(UserError, match="--detector is for --task detect"):
        sweep.sweep(tmp_path, detector=DetectorOptions("ssd"), out=tmp_path / "sweep")
