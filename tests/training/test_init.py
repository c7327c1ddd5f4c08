"""Training from the weights of another network."""

import csv
import json

import numpy as np
import pytest
import torch

from mobilenets.model.bundle import Bundle

# ---- from other weights --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_frozen_epochs_leave_the_body_bit_for_bit(learned, tiny_train, tmp_path):
    run = tiny_train(tmp_path / "r", "--init", learned.out, "--epochs", 2, "--frozen-epochs", 2, "--lr", 0.1)
    assert run.ran.code == 0, run.ran.err
    a, b = Bundle.load(learned.out / "float"), Bundle.load(run.out / "float")
    assert b.card.parent == a.digest
    for name, value in a.tensors.items():
        assert np.array_equal(b.tensors[name], value) == (not name.startswith("classifier")), name


@pytest.mark.slow
def test_after_the_frozen_epochs_the_body_learns(learned, tiny_train, tmp_path):
    run = tiny_train(tmp_path / "r", "--init", learned.out, "--epochs", 2, "--frozen-epochs", 1, "--ema", 0,
                     "--frozen-rows", 0)  # fmt: skip
    a, b = Bundle.load(learned.out / "float"), Bundle.load(run.out / "float")
    moved = [n for n in a.tensors if n.endswith("conv.weight") and not np.array_equal(a.tensors[n], b.tensors[n])]
    best = b.card.recipe["best_epoch"]
    last = torch.load(run.out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert bool(moved) == (best == 2)
    assert not np.array_equal(last["model.blocks.0.conv.conv.weight"], a.tensors["blocks.0.conv.conv.weight"])


def test_with_the_same_classes_the_classifier_comes_along(learned, tiny_train, tmp_path):
    """So little is changed that the scores are the parent's."""
    run = tiny_train(tmp_path / "r", "--init", learned.out, "--epochs", 1, "--lr", 1e-9, "--frozen-epochs", 1)
    a, b = Bundle.load(learned.out / "float"), Bundle.load(run.out / "float")
    np.testing.assert_allclose(b.tensors["classifier.weight"], a.tensors["classifier.weight"], atol=1e-6)
    assert b.card.metrics[0].value == pytest.approx(a.card.metrics[0].value, abs=1e-3)


def test_with_other_classes_the_classifier_is_new(learned, tiny_train, write_colours, tmp_path):
    two = write_colours(tmp_path / "two", {f"{s}/{c}": 12 for s in ("train", "val") for c in ("red", "green")})
    run = tiny_train(
        tmp_path / "r", "--init", learned.out / "float", "--epochs", 4, "--frozen-epochs", 4, "--lr", 0.05, data=two
    )
    assert run.ran.code == 0, run.ran.err
    a, b = Bundle.load(learned.out / "float"), Bundle.load(run.out / "float")
    assert b.card.labels == ("green", "red")
    assert b.card.arch.num_classes == 2
    assert b.card.parent == a.digest
    assert b.tensors["classifier.weight"].shape[0] == 2
    assert np.array_equal(a.tensors["blocks.5.pointwise.conv.weight"], b.tensors["blocks.5.pointwise.conv.weight"])
    assert b.card.metrics[0].value > 75
    assert json.loads((run.out / "run.json").read_text())["recipe"]["frozen_epochs"] == 4


def test_the_features_of_a_frozen_epoch_are_computed_once_and_used_many_times(
    learned, tiny_train, write_colours, tmp_path, monkeypatch
):
    from mobilenets.model.module import MobileNet

    def counted(net, values, *more):
        seen.extend(len(x) for name, x in values.items() if name == net.graph.source)
        return run_graph(net, values, *more)

    two = write_colours(tmp_path / "two", {f"{s}/{c}": 12 for s in ("train", "val") for c in ("red", "green")})
    seen, run_graph = [], MobileNet.run
    monkeypatch.setattr(MobileNet, "run", counted)
    losses = {}
    for passes in (0, 100):
        seen.clear()
        run = tiny_train(
            tmp_path / f"r{passes}", "--init", learned.out / "float", "--epochs", 1, "--frozen-epochs", 1,
            "--frozen-passes", passes, "--lr", 0.01, "--label-smoothing", 0, "--ema", 0, data=two,
        )  # fmt: skip
        assert run.ran.code == 0, run.ran.err
        # Each training and each held-out image once, whatever the passes; before, a look at BatchNorm's statistics.
        assert sum(seen) == 24 + 24 + 24
        with (run.out / "logs" / "metrics.csv").open() as f:
            losses[passes] = float(next(csv.DictReader(f))["val_loss"])
    assert losses[100] < losses[0] / 2


@pytest.mark.slow
def test_init_takes_the_finetune_recipe_unless_told(learned, tiny_train, tmp_path):
    run = tiny_train(tmp_path / "r", "--init", learned.out, "--epochs", 1)
    recipe = Bundle.load(run.out / "float").card.recipe
    assert (recipe["probe"], recipe["layer_decay"]) == ("on", 0.8)


@pytest.mark.parametrize("kind", ["int8", "nothing", "folder"])
def test_init_that_cannot_be(make_bundle, pixels, tiny_train, tmp_path, kind):
    from mobilenets.compression.quantize import quantize_bundle

    b = make_bundle("v1").save(tmp_path / "float")
    quantize_bundle(b, pixels).save(tmp_path / "int8")
    (tmp_path / "folder").mkdir()
    said = {"int8": "--init needs a float bundle, not int8", "nothing": "no bundle here", "folder": "no bundle here"}
    assert said[kind] in tiny_train(tmp_path / "r", "--init", tmp_path / kind).ran.line
    assert not (tmp_path / "r").exists()


# ---- several processes ---------------------------------------------------------------------------------------------


def test_init_brings_its_own_network(learned, colours, command, tmp_path):
    line = ("train", colours, "--init", learned.out, "--out", tmp_path / "r", "--alpha", 0.5)
    assert "leave out --arch and --alpha" in command(*line).line
    assert not (tmp_path / "r").exists()
