"""Time left: epochs that cost differently are weighed by what they cost."""

import time

import pytest
import torch

from mobilenets import console
from mobilenets.arch import zoo
from mobilenets.arch.heads import classifier_head
from mobilenets.model import module as model
from mobilenets.model.images import Preprocess
from mobilenets.tasks import classify
from mobilenets.tasks.losses import CrossEntropy
from mobilenets.training import pace
from mobilenets.training.learner import Learner
from mobilenets.training.pace import Pace
from mobilenets.training.recipes import Recipe


def test_equal_epochs_take_equally_long():
    p = Pace([1.0] * 10, steps=20, validation=0.0)
    assert p.left((0, 0), (2, 10), 25.0) == pytest.approx(75.0)
    assert p.left((0, 0), (10, 0), 100.0) == 0.0
    assert p.left((0, 0), (0, 0), 0.0) == float("inf")


def test_dear_epochs_and_validations_count_as_what_they_cost():
    p = Pace([0.25, 0.25, 1.0, 1.0], steps=100, validation=10.0)
    assert p.work(4, 0) == 25 + 25 + 100 + 100 + 40
    assert p.work(2, 50) == 25 + 25 + 20 + 50
    assert p.left((0, 0), (1, 0), 7.0) == pytest.approx(7.0 / 35 * 255)


def test_a_resumed_run_counts_from_where_it_began():
    p = Pace([1.0] * 4, steps=10, validation=0.0)
    assert p.left((2, 5), (3, 0), 5.0) == pytest.approx(10.0)


class _Trainer:
    class precision_plugin:  # noqa: N801
        @staticmethod
        def forward_context():
            import contextlib

            return contextlib.nullcontext()


def learner(recipe, resolution=64):
    torch.manual_seed(0)
    arch = zoo.arch("v1", 0.25, resolution, 4)
    head, config, objective = classifier_head(arch), {"labels": list("abcd")}, CrossEntropy(recipe, 4)
    net = model.build(arch, head)
    made = Learner(net, Preprocess(resolution), recipe, 0, classify.TASK, config, objective, head.own)
    made._trainer = _Trainer()
    return made


def test_small_images_are_found_to_cost_less_and_nothing_is_left_behind(monkeypatch):
    made = learner(Recipe(epochs=10, progressive=0.5, batch=64))
    clock, forward = [0.0], made.forward

    def work(images):  # as long as it has pixels
        clock[0] += images.shape[-1] ** 2
        return forward(images)

    monkeypatch.setattr(made, "forward", work)
    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock[0])
    before = {k: v.clone() for k, v in made.model.state_dict().items()}
    state = torch.random.get_rng_state()
    p = pace.time_epochs(made, steps=10, batch=64, held_out=64)
    assert len(p.costs) == 10
    assert p.costs[-1] == 1
    assert p.costs[0] == pytest.approx(0.25)  # of half the side
    assert sorted(p.costs) == list(p.costs)
    assert all(torch.equal(v, before[k]) for k, v in made.model.state_dict().items())
    assert all(x.grad is None for x in made.model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_frozen_epochs_have_no_backward():
    p = pace.time_epochs(learner(Recipe(epochs=3, frozen_epochs=1)), steps=10, batch=8, held_out=8)
    assert p.costs == [pytest.approx(1 / 3), 1.0, 1.0]


def test_equal_epochs_need_no_trial(monkeypatch):
    monkeypatch.setattr(pace, "_probe", None)
    assert pace.time_epochs(learner(Recipe(epochs=2)), 10, 8, 16).costs == [1.0, 1.0]


@pytest.mark.parametrize(
    ("seconds", "said"), [(4.4, "4 s"), (99, "99 s"), (730, "12 min"), (7500, "2 h 05 min"), (float("inf"), "?")]
)
def test_durations(seconds, said):
    assert console.duration(seconds) == said


@pytest.mark.slow
def test_after_a_minute_the_time_left_is_right(tmp_path, command, monkeypatch):
    """With images that grow: within 20% of what it then takes."""
    from mobilenets.training.callbacks import ProgressBar

    said, real = [], ProgressBar.left

    def left(self, epoch, step):
        text = real(self, epoch, step)
        said.append((time.monotonic(), self.pace.left(self.start, (epoch, step), time.monotonic() - self.started)))
        return text

    monkeypatch.setattr(ProgressBar, "left", left)
    line = ("train", "digits", "--out", tmp_path / "r", "--arch", "v2-cifar", "--alpha", 0.5, "--recipe", "cifar")
    ran = command(*line, "--augment", "glyph", "--epochs", 36)
    assert ran.code == 0, ran.err
    begun, end = said[0][0], said[-1][0]
    assert end - begun > 120
    at, promised = next((t, s) for t, s in said if t - begun > 60)
    assert promised == pytest.approx(end - at, rel=0.2)
