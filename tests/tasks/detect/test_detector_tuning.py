"""The verb `tune` for detectors: it tries the detector that is asked for, and its command trains that one."""

import numpy as np
import pytest
import shapes

from mobilenets.commands import tune as verb
from mobilenets.tasks.detect.config import DetectorOptions
from mobilenets.training import tuning
from mobilenets.training.recipes import Overrides


@pytest.mark.parametrize("family", ["ssd", "faster-rcnn-fpn"])
def test_a_rate_is_found_for_the_detector_that_is_asked_for(family, shown, tmp_path, monkeypatch):
    tried = []

    def two_steps(trial, steps):
        tried.append((trial.asked.family, tuning.try_rates(trial, 2)[1]))
        return list(np.geomspace(1e-5, 1e-1, steps)), [8.0] * (steps // 2) + [4.0] * (steps - steps // 2)

    monkeypatch.setattr(verb, "try_rates", two_steps)
    found = verb.tune(
        str(shapes.write(tmp_path / "shapes", shown)), task="detect", arch="v1", alpha=0.25, resolution=64,
        detector=DetectorOptions(family), recipe="detect", overrides=Overrides(batch=4, workers=0), steps=20,
    )  # fmt: skip
    ((which, losses),) = tried
    assert which == family
    assert np.isfinite(losses).all()
    assert len(losses) == 2
    assert f"--task detect --detector {family} --arch v1" in found.command
