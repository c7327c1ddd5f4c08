"""`fit` from pretrained weights: what is measured on the data, what training begins with, what is never lost."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from mobilenets.commands import fit, selection
from mobilenets.deploy import choose
from mobilenets.model.bundle import Bundle
from mobilenets.training import candidates
from mobilenets.training import trainer as train

pytestmark = pytest.mark.usefixtures("small_grid")


@pytest.fixture(scope="module")
def brought(make_bundle, tmp_path_factory):
    """Weights of V1 .25 and V2 .35, for ten classes that aren't the data's."""
    root = tmp_path_factory.mktemp("weights")
    for name in ("v1", "v2"):
        make_bundle(name).save(root / name)
    return root


def line(data, out, *more):
    return "fit", data, "--out", out, "--epochs", 1, "--batch", 12, "--workers", 0, "--lr", 1e-3, *more


@pytest.fixture(scope="module")
def fitted(colours, brought, command, tmp_path_factory):
    out = tmp_path_factory.mktemp("fit") / "run"
    ran = command(*line(colours, out, "--weights", brought, "--precision", "float32", "--json"))
    assert ran.code == 0, ran.err
    return SimpleNamespace(out=out, ran=ran, tried=json.loads((out / "candidates.json").read_text())["candidates"])


def test_networks_are_measured_on_the_data(fitted):
    assert {t["network"].split()[0] for t in fitted.tried} == {"v1", "v2"}
    for t in fitted.tried:
        assert t["low"] <= t["probe"] <= t["high"]
        assert t["count"] == 72
        assert t["seconds"] > 0
    assert len(fitted.tried) <= 6
    assert [t["probe"] for t in fitted.tried] == sorted((t["probe"] for t in fitted.tried), reverse=True)
    (picked,) = [t for t in fitted.tried if t["picked"]]
    choice = json.loads((fitted.out / "choice.json").read_text())
    assert picked["network"].startswith(f"{choice['pick']['arch']} ")
    assert "a linear probe on 72" in fitted.ran.err


def test_training_begins_with_the_probe(fitted, brought):
    start, made = Bundle.load(fitted.out / "start"), Bundle.load(fitted.out / "float")
    assert start.card.labels == ("blue", "green", "red")
    assert made.card.parent == start.digest or made.card.recipe["best_epoch"] == 0
    of = Bundle.load(brought / start.card.arch.name)
    assert np.array_equal(start.tensors["blocks.0.conv.conv.weight"], of.tensors["blocks.0.conv.conv.weight"])
    assert made.card.metrics[0].value >= start.card.metrics[0].value
    assert made.card.recipe["probe"] == "on"


def test_the_report_shows_what_was_measured(fitted):
    page = (fitted.out / "report.html").read_text()
    assert "linear probe" in page
    assert all(t["network"] in page for t in fitted.tried)


@pytest.mark.slow
def test_a_finished_run_resumed_measures_nothing_again(fitted, colours, brought, command, monkeypatch):
    monkeypatch.setattr(candidates, "probe_all", lambda *_: pytest.fail("probed again"))
    monkeypatch.setattr(train, "train_bundle", lambda *_, **__: pytest.fail("trained again"))
    ran = command(*line(colours, fitted.out, "--weights", brought, "--precision", "float32", "--json", "--resume"))
    assert ran.code == 0, ran.err


@pytest.mark.slow
@pytest.mark.usefixtures("fitted")
def test_a_run_stopped_before_its_choice_measures_no_latency_again(colours, brought, command, tmp_path, monkeypatch):
    given = line(colours, tmp_path / "run", "--weights", brought, "--remeasure", "--halving", "off")
    with monkeypatch.context() as stopped:
        stopped.setattr(candidates, "probe_all", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            command(*given)
    monkeypatch.setattr(choose, "pick", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(train, "train_bundle", lambda *_, **__: pytest.fail("chosen"))
    with pytest.raises(pytest.fail.Exception, match="chosen"):
        command(*given, "--resume")
    assert (tmp_path / "run" / "choice.json").exists()
    assert not (tmp_path / "run" / "latencies.json").exists()


@pytest.mark.usefixtures("fitted")
def test_features_are_kept(colours, brought, command, tmp_path, monkeypatch):
    """Another run on the same images with the same weights computes none."""
    from mobilenets.training import probing

    monkeypatch.setattr(probing, "_computed", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr(train, "train_bundle", lambda *_, **__: selection.starts.in_folder(tmp_path / "gone"))
    ran = command(*line(colours, tmp_path / "run", "--weights", brought, "--candidates", 1))
    assert "no such folder" in ran.err.splitlines()[-1]  # where training would begin
    assert (tmp_path / "run" / "candidates.json").exists()


@pytest.mark.slow
def test_from_scratch(colours, brought, command, tmp_path):
    ran = command(*line(colours, tmp_path / "run", "--weights", brought, "--from-scratch", "--max-macs-m", 1))
    assert ran.code == 0, ran.err
    assert not (tmp_path / "run" / "start").exists()
    assert Bundle.load(tmp_path / "run" / "float").card.parent is None
    assert "from scratch" in ran.err


@pytest.mark.slow
def test_a_budget_below_all_weights_trains_from_scratch(colours, brought, command, tmp_path):
    """And says why; resumed, it goes on as it was."""
    import shutil

    (tmp_path / "w").mkdir()
    shutil.copytree(brought / "v2", tmp_path / "w" / "v2")
    words = line(colours, tmp_path / "run", "--weights", tmp_path / "w", "--max-macs-m", 0.9)
    ran = command(*words)
    assert ran.code == 0, ran.err
    assert "the networks with pretrained weights" in " ".join(ran.err.split())
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    assert kept["pretrained"] is False
    assert kept["recipe"]["probe"] == "off"
    assert command(*words, "--resume").code == 0


def test_digits_begin_with_nothing(monkeypatch):
    from mobilenets.data.open import open_data

    monkeypatch.setattr(selection.starts, "available", lambda _: pytest.fail("asked"))
    assert selection.pretrained(open_data("digits"), None) == []


@pytest.mark.slow
def test_a_given_time_is_kept(colours, brought, command, tmp_path):
    """Fewer epochs than the recipe's, as many as fit; the plan is kept, so that a resumed run has as many."""
    ran = command("fit", colours, "--out", tmp_path / "run", "--weights", brought, "--time", "8s", "--halving", "off",
                  "--batch", 12, "--workers", 0, "--epochs", 4000, "--max-macs-m", 1, "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    planned = json.loads((tmp_path / "run" / "plan.json").read_text())["epochs"]
    assert 1 <= planned < 4000
    assert ran.json["seconds"] < 60


@pytest.mark.parametrize(
    ("more", "said"),
    [(("--weights", "nowhere"), "no such folder"), (("--time", "soon"), "--time takes a time such as 10m"),
     (("--time", "0s"), "--time takes a time"), (("--candidates", 0), "candidates must be 1 or more"),
     (("--from-scratch", "--init", "cifar10-v2"), "leave out one"), (("--halving", "half"), "on")],
)  # fmt: skip
def test_bad_arguments(colours, command, tmp_path, more, said):
    assert said in command("fit", colours, "--out", tmp_path / "run", *more).line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_it_is_never_below_the_probe(colours, brought, command, tmp_path):
    """A rate that ruins the network: what ships is where it began."""
    ran = command("train", colours, "--out", tmp_path / "run", "--init", brought / "v1", "--epochs", 1, "--batch", 12,
                  "--workers", 0, "--lr", 0.5, "--warmup", 0, "--clip", 0)  # fmt: skip
    assert ran.code == 0, ran.err
    start, made = Bundle.load(tmp_path / "run" / "start"), Bundle.load(tmp_path / "run" / "float")
    assert made.card.metrics[0].value == start.card.metrics[0].value
    assert made.card.recipe["best_epoch"] == 0
    assert "the probe is what is kept" in ran.err


@pytest.mark.slow
def test_fit_is_a_function_with_weights(colours, brought, tmp_path):
    from mobilenets.deploy.choose import Budget
    from mobilenets.training.recipes import Overrides

    got = fit.fit(
        colours, out=tmp_path / "run", weights=brought, halving="off", candidates=1, budget=Budget(max_macs_m=2),
        overrides=Overrides(epochs=1, workers=0, lr=1e-3),
    )  # fmt: skip
    assert got.file.exists()
    assert len(json.loads((tmp_path / "run" / "candidates.json").read_text())["candidates"]) == 1


@pytest.mark.slow
def test_a_choice_that_fails_leaves_no_run(colours, brought, command, tmp_path):
    """So that the corrected command is no other run's."""
    ran = command(*line(colours, tmp_path / "run", "--weights", brought, "--max-latency-ms", 1e-9))
    assert ran.code == 2
    assert command(*line(colours, tmp_path / "run", "--weights", brought, "--max-macs-m", 1)).code == 0


def test_a_seed_below_zero_is_one_line(colours, command, tmp_path):
    assert "seed must be 0 or more" in command(*line(colours, tmp_path / "run", "--seed", -1)).line


@pytest.mark.slow
def test_noisy_labels_come_first(colours, brought, command, tmp_path, monkeypatch):
    out, more = tmp_path / "run", ("--weights", brought, "--precision", "float32", "--halving", "off")
    given = line(colours, out, *more, "--noisy", colours / "train", "--noisy-epochs", 1, "--loss", "symmetric")
    ran = command(*given)
    assert ran.code == 0, ran.err
    probe, noisy, start = (Bundle.load(out / name) for name in ("noisy/start", "noisy/float", "start"))
    assert noisy.card.parent == probe.digest or noisy.card.recipe["best_epoch"] == 0
    assert start.digest == noisy.digest
    assert "linear probe" in (out / "report.html").read_text()
    monkeypatch.setattr(train, "train_bundle", lambda *_, **__: pytest.fail("trained again"))
    assert command(*given, "--resume").code == 0
