"""The batch size and learning rate finders, and the verb `tune`."""

import dataclasses
import json
import shlex

import numpy as np
import pytest

from mobilenets.arch import zoo
from mobilenets.commands import tune
from mobilenets.data.open import open_data
from mobilenets.errors import UserError
from mobilenets.reports import plots
from mobilenets.training import recipes
from mobilenets.training import tuning as finders
from mobilenets.training.recipes import RECIPES, Recipe
from mobilenets.training.tuning import Speed, Trial, best_batch, gentle, next_batch, smooth, steepest

MB = 10**6
TINY = ("--arch", "v1", "--alpha", ".25", "--resolution", "32", "--workers", "0")


def speeds(*pairs):
    """Speeds of 16, 32, ... from (images per second, MB)."""
    return [Speed(16 * 2**i, rate, mb * MB) for i, (rate, mb) in enumerate(pairs)]


def trial(source, **changes):
    plain = dataclasses.replace(Recipe(batch=24, workers=0), **changes)
    return Trial(str(source), None, zoo.arch("v1", 0.25, 32, 3), plain, None, 0)


# ---- the batch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "batch"),
    [
        ((100, 180, 196, 200), 64),  # 180 is a tenth slower
        ((100, 191, 196, 200), 32),
        ((200, 150, 120), 16),
        ((100,), 16),
    ],
)
def test_the_smallest_batch_that_is_nearly_the_fastest(rates, batch):
    assert best_batch(speeds(*((r, 1) for r in rates))) == batch


@pytest.mark.parametrize(
    ("seen", "largest", "memory", "expected"),
    [
        ([], 1000, 1, 16),
        ([(100, 10)], 1000, 100, 32),
        ([(100, 10), (200, 20)], 1000, 40, 64),  # grows by 10 for 16 images: 40 for 64
        ([(100, 10), (200, 20)], 1000, 39, None),
        ([(100, 10), (200, 20)], 64, 100, 64),
        ([(100, 10), (200, 20)], 63, 100, None),
        ([(100, 10), (200, 10), (190, 10)], 1000, 100, 128),
        ([(100, 10), (200, 10), (190, 10), (195, 10)], 1000, 100, None),
        ([(100, 10), (200, 10), (190, 10), (210, 10)], 1000, 100, 256),
    ],
)
def test_when_to_try_a_larger_batch(seen, largest, memory, expected):
    assert next_batch(speeds(*seen), largest, memory * MB) == expected


def test_a_batch_is_measured(colours, monkeypatch):
    monkeypatch.setattr(finders, "SECONDS", 0.05)
    d = open_data(str(colours))
    got = finders.time_training(trial(colours), d, finders.sample(d), 16)
    assert got.batch == 16
    assert 1 < got.images_per_s < 1e6
    assert 50 * MB < got.peak_rss_bytes < 50_000 * MB
    assert got.accelerator_bytes is None or got.accelerator_bytes > 0


def test_running_out_of_memory_is_told(colours, monkeypatch):
    sent = []
    pipe = type("Pipe", (), {"send": sent.append, "recv": lambda _: 16})()

    def fails(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(finders, "time_training", fails)
    finders._child(trial(colours), pipe)
    assert sent == [9, None]  # 72 images in at least 8 steps


def test_another_fault_is_not_taken_for_it(colours, monkeypatch):
    def fails(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(finders, "time_training", fails)
    pipe = type("Pipe", (), {"send": lambda *_: None, "recv": lambda _: 16})()
    with pytest.raises(RuntimeError, match="something else"):
        finders._child(trial(colours), pipe)


def test_the_sample_has_decoded_readable_images(write_colours, tmp_path):
    write_colours(tmp_path, {"train/red": 6, "train/blue": 6, "val/red": 1, "val/blue": 1})
    (tmp_path / "train" / "red" / "000.png").write_bytes(b"no image")
    got = finders.sample(open_data(str(tmp_path)))
    assert len(got) == len(got.cache) == 11
    assert sorted(np.bincount(got.targets)) == [5, 6]
    for i, name in enumerate(got.names):
        assert got.cached(i)[..., 0].mean() > 150 or "blue" in name


def test_a_large_network_is_tried_on_images_as_it_is_trained_on(write_images, tmp_path):
    d = open_data(str(write_images(tmp_path, {"a": 6, "b": 6}, side=500)))
    got = finders.sample(d, 439)
    assert {p.shape for p in got.cache.values()} == {(439, 439, 3)}
    assert got.cached(0, 439) is got.cache[0]


# ---- the rate ------------------------------------------------------------------------------------------------------


def test_smoothing_neither_shifts_nor_shrinks():
    assert smooth([3.0] * 40) == pytest.approx(3.0)
    step = smooth([0.0] * 50 + [1.0] * 50)
    assert step[49] + step[50] == pytest.approx(1.0)
    assert abs(np.argmax(np.diff(step)) - 49) <= 1


@pytest.mark.parametrize("then", ["stays", "diverges", "wanders"])
def test_the_steepest_descent_is_found(then):
    rates = np.geomspace(1e-5, 1e1, 100)
    fall = 2.3 - 1.2 / (1 + (0.01 / rates) ** 2)  # steepest over the logarithm at 0.01
    if then == "diverges":
        fall = np.where(rates > 0.3, fall + 3 * np.log10(rates / 0.3), fall)
    if then == "wanders":  # up, and down again faster than before
        fall = np.where((rates > 0.3) & (rates < 3), 4.0, fall)
    noisy = fall + np.random.default_rng(0).normal(0, 0.02, 100)
    assert 0.005 < steepest(list(rates), list(noisy)) < 0.02


@pytest.mark.parametrize("slope", [0.0, 3.0])
def test_a_loss_that_does_not_fall_is_told(slope):
    losses = 2.3 + np.random.default_rng(0).normal(0, 0.05, 100) + slope * np.linspace(0, 1, 100)
    with pytest.raises(UserError, match="falls at no rate from 1e-05 to 10 in 100 steps: give the test more --steps"):
        steepest(list(np.geomspace(1e-5, 1e1, 100)), list(losses))


@pytest.mark.parametrize("optimizer", ["adamw", *(pytest.param(o, marks=pytest.mark.slow) for o in ("sgd", "rmsprop"))])
def test_rates_rise_for_each_optimizer(colours, optimizer):
    t = trial(colours, optimizer=optimizer, lr=0.1, body_lr=0.5)
    rates, losses = finders.try_rates(t, 20)
    assert len(rates) == len(losses) <= 20
    assert rates[0] == pytest.approx(0.1 * finders.BELOW)
    assert np.diff(np.log(rates)) == pytest.approx(np.log(finders.ABOVE / finders.BELOW) / 19)
    assert np.isfinite(losses).all()


def test_groups_keep_their_shares_of_the_rate(colours):
    from pytorch_lightning import Callback

    seen = []

    class Spy(Callback):
        def on_train_batch_start(self, trainer, *_):
            seen.append([g["lr"] for g in trainer.optimizers[0].param_groups])

    run_steps = finders.run_steps

    class Both(Callback):
        def __init__(self, first):
            self.on_train_batch_end = first.on_train_batch_end
            self.first, self.spy = first, Spy()

        def on_train_batch_start(self, *args):
            self.first.on_train_batch_start(*args)
            self.spy.on_train_batch_start(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finders, "run_steps", lambda *a: run_steps(*a[:-1], Both(a[-1])))
        rates, _ = finders.try_rates(trial(colours, lr=1e-3, body_lr=0.25), 5)
    for rate, groups in zip(rates, seen, strict=True):
        assert {round(lr / rate, 6) for lr in groups} == {0.25, 1.0}


def test_a_loss_that_is_not_finite_ends_the_test(colours, monkeypatch):
    def stops(_trial, _d, _images, _steps, callback):
        trainer = type("T", (), {"optimizers": [type("O", (), {"param_groups": []})]})()
        for i in range(15):
            callback.on_train_batch_start(trainer)
            callback.on_train_batch_end(trainer, None, {"loss": 2.0 - i / 100})
        raise UserError("the loss became nan")

    monkeypatch.setattr(finders, "run_steps", stops)
    rates, losses = finders.try_rates(trial(colours), 100)
    assert (len(rates), len(losses)) == (15, 15)


@pytest.mark.slow
def test_the_same_test_twice_is_the_same(colours):
    assert finders.try_rates(trial(colours), 8) == finders.try_rates(trial(colours), 8)


# ---- the verb ------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Both finders answer at once: batch 32, and a peak rate of 0.01."""
    rates = [float(r) for r in np.geomspace(1e-5, 1e1, 100)]
    losses = [2.3 - 1.2 / (1 + (0.01 / r) ** 2) for r in rates]
    monkeypatch.setattr(tune, "try_batches", lambda _: tuple(speeds((100, 10), (200, 20), (201, 40))))
    monkeypatch.setattr(tune, "try_rates", lambda *_: (rates, losses))


@pytest.mark.usefixtures("quick")
def test_the_command_it_prints_trains(command, colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    got = command("tune", colours, *TINY, "--epochs", 1, "--json").json
    assert got["batch"] == 32
    assert 0.008 < got["lr"] < 0.0125
    words = shlex.split(got["command"])
    assert words[:3] == ["mobilenets", "train", str(colours)]
    assert list(tmp_path.iterdir()) == []
    assert command(*words[1:]).code == 0
    recipe = json.loads((tmp_path / "runs" / "v1-0.25-32" / "run.json").read_text())["recipe"]
    assert (recipe["batch"], recipe["lr"], recipe["epochs"]) == (32, pytest.approx(got["lr"], rel=0.01), 1)


@pytest.mark.usefixtures("quick")
def test_a_rate_that_the_recipe_scales_is_given_unscaled(command, colours):
    got = command("tune", colours, *TINY, "--recipe", "v1-paper", "--json").json
    scaled = dataclasses.replace(RECIPES["v1-paper"], batch=got["batch"], lr=got["lr"])
    assert 0.008 < scaled.peak_lr < 0.0125


@pytest.mark.usefixtures("quick")
def test_what_is_given_is_kept(command, colours):
    got = command("tune", colours, *TINY, "--batch", 48, "--json").json
    assert (got["batch"], got["speeds"]) == (48, [])
    got = command("tune", colours, *TINY, "--lr", 0.5, "--json").json
    assert (got["lr"], got["rates"], got["batch"]) == (0.5, [], 32)


@pytest.mark.usefixtures("quick")
def test_the_tables_and_the_page(command, colours, tmp_path):
    page = tmp_path / "tune.html"
    ran = command("tune", colours, *TINY, "--html", page)
    assert "→ 32" in ran.out
    assert "● steepest: 0.0" in ran.out
    assert "mobilenets train" in ran.out
    assert [p.name for p in tmp_path.iterdir()] == ["tune.html"]
    text = page.read_text()
    assert text.count('<svg class="plot"') == 2
    assert "--batch 32" in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--batch 16 --lr 0.1", "there is nothing to find; leave out one"),
        ("--steps 19", "steps must be 20 or more, not 19"),
        ("--html .", ". is a folder"),
        ("--arch v9", "unknown arch 'v9'"),
        ("--init gone", "gone: no bundle here"),
    ],
)
def test_mistakes(command, tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    assert message in command("tune", "digits", *line.split()).line
    assert not list(tmp_path.iterdir())


def test_figures():
    fig = plots.throughput(speeds((100, 10), (200, 20)), 32)
    assert [t.get_text() for t in fig.axes[0].texts] == ["100", "200"]
    fig = plots.range_test([1e-3, 1e-2, 1e-1], [2.0, 1.0, 30.0], 0.01)
    assert fig.axes[0].get_xscale() == "log"
    assert fig.axes[0].get_ylim()[1] < 30


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["modern", "cifar", "v1-paper", "finetune"])
def test_for_real(command, write_colours, tmp_path, monkeypatch, recipe):
    """Both finders on every kind of recipe: nothing is left in the folder it runs in."""
    from mobilenets.model.bundle import random_bundle

    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    source = write_colours(tmp_path / "data", {f"{s}/{c}": 150 for s in ("train", "val") for c in ("red", "blue")})
    line = ["tune", source, "--workers", 0, "--steps", 150, "--recipe", recipe, "--json"]
    if recipe == "finetune":
        random_bundle(zoo.arch("v1", 0.25, 32, 5), "float32").save(tmp_path / "bundle")
        line += ["--init", tmp_path / "bundle"]
    else:
        line += TINY[:-2]
    got = command(*line).json
    assert [s["batch"] for s in got["speeds"]] == [16, 32]
    peak = dataclasses.replace(recipes.recipe(recipe), batch=got["batch"], lr=got["lr"]).peak_lr
    start = dataclasses.replace(recipes.recipe(recipe), batch=got["batch"]).peak_lr
    assert finders.BELOW * start <= peak <= finders.ABOVE * start
    assert not list(folder.iterdir())


# ---- the rate of a trained network -----------------------------------------------------------------------------------


def rising(at, noise=0.0, steps=80):
    """Losses of a trained network: flat, and rising by a factor of e for each factor of e in the rate beyond `at`."""
    rates = np.geomspace(3e-5, 3e-2, steps)
    losses = 0.6 * np.maximum(1.0, rates / at) + noise * np.random.default_rng(0).normal(size=steps)
    return [*rates], [*losses]


@pytest.mark.parametrize("at", [3e-4, 2e-3, 8e-3])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_rate_that_a_trained_network_bears(at, noise):
    """Half of where its loss is 1.75 times its least: about as many times the rate at which it begins to rise."""
    found = gentle(*rising(at, noise))
    assert 0.6 * at < found < 1.2 * at


def test_a_test_that_ended_early_found_what_it_cannot_bear():
    rates, losses = rising(1e3)
    assert gentle(rates, losses) is None
    assert gentle(rates, losses[:50]) == pytest.approx(rates[49] / 2, rel=0.05)


@pytest.mark.slow
def test_a_larger_networks_rate_is_tried_on_small_images(colours, make_bundle):
    """And deterministic: a resumed run would find the same."""
    data, start = open_data(str(colours)), make_bundle("v1")
    arch = start.card.arch.replace(resolution=160, num_classes=3)
    recipe = Recipe(batch=24, workers=0)
    t = Trial(str(colours), None, arch, recipe, start, 0)
    shapes = []
    run_steps = finders.run_steps

    def seen(trial, *rest):
        shapes.append((trial.arch.resolution, trial.recipe.batch))
        run_steps(trial, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finders, "run_steps", seen)
        patch.setattr(finders, "FINE_STEPS", 12)
        first, second = finders.borne(data, t), finders.borne(data, t)
    assert shapes == [(128, 16)] * 2
    assert first == second
    assert len(first[1]) == len(first[2]) <= 12


@pytest.mark.slow
def test_fine_tuning_finds_its_rate(colours, make_bundle, command, tmp_path, monkeypatch):
    """Once: it is kept in the run's folder, and on the card. --lr leaves it out."""
    monkeypatch.setattr(finders, "FINE_STEPS", 12)
    make_bundle("v1").save(tmp_path / "b")
    line = ("train", colours, "--init", tmp_path / "b", "--epochs", 1, "--batch", 24, "--workers", 0)
    ran = command(*line, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    kept = json.loads((tmp_path / "run" / "rate.json").read_text())
    card = json.loads((tmp_path / "run" / "float" / "card.json").read_text())
    assert card["recipe"]["lr"] == kept["lr"] > 0
    assert len(kept["rates"]) == len(kept["losses"])
    assert f"learning rate {kept['lr']:.2g}" in ran.err
    assert command(*line, "--lr", 1e-3, "--out", tmp_path / "given").code == 0
    assert not (tmp_path / "given" / "rate.json").exists()


def test_tune_begins_where_fine_tuning_does(colours, make_bundle, command, tmp_path, monkeypatch):
    """With the probe's head, so that there is no descent to look for."""
    tried = []
    monkeypatch.setattr(tune, "try_rates", lambda t, _: tried.append(t.init) or rising(2e-3))
    make_bundle("v1").save(tmp_path / "b")
    got = command("tune", colours, "--init", tmp_path / "b", "--batch", 24, "--workers", 0, "--json").json
    assert tried[0].card.labels == ("blue", "green", "red")
    assert got["lr"] == pytest.approx(gentle(*rising(2e-3)))
