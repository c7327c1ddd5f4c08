"""Training within a given time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mobilenets import arguments
from mobilenets.arch import zoo
from mobilenets.data.open import open_data
from mobilenets.errors import UserError
from mobilenets.training import deadline
from mobilenets.training.recipes import Recipe
from mobilenets.training.setup import setup


@pytest.fixture
def made(colours):
    data = open_data(str(colours))
    return setup(data, data.split("train"), zoo.arch("v1", 0.25, 32, 3), Recipe(epochs=50, batch=12, workers=0), 0)


def test_as_many_epochs_as_fit(made, monkeypatch):
    """A clock that takes a second for whatever lies between two looks at it."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(deadline.time, "perf_counter", lambda: float(next(ticks)))
    # a batch of 12 in a second, 16 images read in one: 72 images take 6 + 4.5, and 24 of validation 2/3 of a second
    epoch = 72 * (1 / 12 + 1 / 16) + 24 / 12 / 3
    assert deadline.epochs_within(made, 24, 10 * epoch / deadline.SPARE + 0.1, 1) == 10
    assert deadline.epochs_within(made, 24, 1.0, 1) == 1
    assert deadline.epochs_within(made, 24, 1e6, 1) == 50


def test_trying_leaves_no_trace(made):
    before = {k: v.clone() for k, v in made.learner.model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    deadline.epochs_within(made, 24, 10.0, 1)
    assert all(torch.equal(v, before[k]) for k, v in made.learner.model.state_dict().items())
    assert all(p.grad is None for p in made.learner.model.parameters())
    assert torch.rand(1) == expected


def test_the_plan_is_kept(tmp_path):
    assert deadline.planned(tmp_path / "plan.json", 7) == 7
    assert deadline.planned(tmp_path / "plan.json", 9) == 7


def test_it_stops_when_the_time_is_over(monkeypatch, made):
    now = 0.0
    monkeypatch.setattr(deadline.time, "monotonic", lambda: now)
    stop, trainer_ = deadline.Deadline(10.0), SimpleNamespace(should_stop=False, world_size=1)
    stop.on_train_start(trainer_, made.learner)
    now = 9.0
    stop.on_train_batch_end(trainer_, None)
    assert not trainer_.should_stop
    assert made.learner.gone() == 0.9
    now = 10.5
    stop.on_train_batch_end(trainer_, None)
    assert trainer_.should_stop


def test_what_was_learnt_in_part_of_an_epoch_is_kept(tiny_train, tmp_path, monkeypatch):
    """The first epoch ends at the deadline, is validated, and is what ships."""
    monkeypatch.setattr(deadline, "SPARE", 0.0)  # one epoch is planned
    ran = tiny_train(tmp_path / "run", "--epochs", 9, "--batch", 2, "--time", "0.01s").ran
    assert ran.code == 0, ran.err
    assert (tmp_path / "run" / "float" / "card.json").exists()
    assert len((tmp_path / "run" / "logs" / "metrics.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("10m", 600),
        ("90s", 90),
        ("1h", 3600),
        ("1h30m", 5400),
        ("2m5s", 125),
        ("45", 45),
        (45, 45),
        (0.5, 0.5),
        (None, None),
    ],
)
def test_times(given, seconds):
    assert arguments.seconds(given, "--time") == seconds


@pytest.mark.parametrize("given", ["", "m", "ten minutes", "-5", "0", "10m ago", "1e3", "nan", "5d"])
def test_what_is_no_time(given):
    with pytest.raises(UserError, match="--time takes a time such as 10m, 90s or 1h"):
        arguments.seconds(given, "--time")


def test_the_rate_keeps_up_with_the_time(made, monkeypatch):
    """Where half of the time is gone after a tenth of the steps, the rate is that of the middle."""
    learner = made.learner
    monkeypatch.setattr(type(learner), "trainer", SimpleNamespace(estimated_stepping_batches=100))
    optimizer = learner.configure_optimizers()
    scheduler = optimizer["lr_scheduler"]["scheduler"]
    rates = []
    for gone in (0.0, 0.5, 0.99):
        learner.gone = lambda gone=gone: gone
        optimizer["optimizer"].step()
        scheduler.step()
        rates.append(optimizer["optimizer"].param_groups[0]["lr"] / Recipe().peak_lr)
    assert rates[0] == pytest.approx(0.4)  # the second of five steps of the rise
    assert rates[1] == pytest.approx(0.54, abs=0.03)
    assert rates[2] < 0.01
