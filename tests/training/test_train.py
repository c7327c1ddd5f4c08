"""`mobilenets train`: what a run learns, records and leaves."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from kept_runs import leftovers, rows, weights

from mobilenets.data.open import of_card, open_data
from mobilenets.model.bundle import Bundle
from mobilenets.model.images import Preprocess
from mobilenets.training import run
from mobilenets.training.callbacks import EpochLog

# ---- a run ---------------------------------------------------------------------------------------------------------


def test_it_learns(learned):
    log = rows(learned.out)
    assert float(log[-1]["train_loss"]) < 0.9 * float(log[0]["train_loss"])
    b = Bundle.load(learned.out / "float")
    (metric,) = b.card.metrics
    assert metric.value > 80
    assert (metric.name, metric.split, metric.count) == ("top1", "val", 24)
    assert metric.value == pytest.approx(max(float(r["val_top1"]) for r in log), abs=1e-3)


def test_the_bundle_scores_what_the_card_says(learned, colours, command):
    got = command("eval", learned.out, colours, "--json").json
    assert got["top1"] == pytest.approx(Bundle.load(learned.out / "float").card.metrics[0].value, abs=1e-3)


def test_what_the_card_records(learned, colours):
    card = Bundle.load(learned.out / "float").card
    assert card.labels == ("blue", "green", "red")
    assert (card.arch.name, card.arch.alpha, card.arch.resolution, card.arch.num_classes) == ("v1", 0.25, 32, 3)
    assert card.data == {
        "source": str(colours), "counts": {"train": 72, "val": 24}, "split_seed": 0, "val_fraction": None,
        "images": open_data(str(colours)).images,
    }  # fmt: skip
    log = rows(learned.out)
    scores = [float(r["val_top1"]) for r in log]
    best = max(i for i, score in enumerate(scores, 1) if score == max(scores))  # of those alike, the latest
    assert card.recipe["best_epoch"] == best
    assert (card.recipe["epochs"], card.recipe["lr"], card.recipe["seed"]) == (12, 0.01, 0)
    assert card.parent is None
    assert card.preprocess == Preprocess(32, 0.875)


def test_the_share_held_out_is_the_cards(tiny_train, write_images, tmp_path):
    source = write_images(tmp_path / "d", {"cat": 20, "dog": 20}, side=32)
    run = tiny_train(tmp_path / "r", "--epochs", 1, "--val", 0.1, data=source)
    assert run.ran.code == 0, run.ran.err
    card = Bundle.load(run.out / "float").card
    assert card.data["counts"] == {"train": 36, "val": 4}
    again = of_card(card, None)
    assert {k: len(s) for k, s in again.splits.items()} == {"train": 36, "val": 4}
    assert len(of_card(card, str(write_images(tmp_path / "e", {"cat": 5, "dog": 5}))).split("val")) == 2


def test_logs_and_checkpoints(learned):
    assert (learned.out / "checkpoints" / "best.ckpt").is_file()
    assert (learned.out / "checkpoints" / "last.ckpt").is_file()
    assert list((learned.out / "logs").glob("events.out.tfevents.*"))
    assert not leftovers(learned.out)
    log = rows(learned.out)
    assert list(log[0]) == ["epoch", "train_loss", "val_loss", "val_top1", "val_balanced", "lr", "seconds"]
    assert [int(r["epoch"]) for r in log] == list(range(1, 13))
    assert all(float(v) >= 0 for r in log for v in r.values())
    lrs = [float(r["lr"]) for r in log]
    assert lrs == sorted(lrs, reverse=True)
    assert lrs[-1] == 0
    last = torch.load(learned.out / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 11


def test_tensorboard_has_the_scores(learned):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(learned.out / "logs"))
    events.Reload()
    assert {"train_loss", "val_loss", "val_top1"} <= set(events.Tags()["scalars"])
    scores = [e.value for e in events.Scalars("val_top1")]
    np.testing.assert_allclose(scores, [float(r["val_top1"]) for r in rows(learned.out)], rtol=1e-4)


def test_a_seed_gives_the_same_weights_and_another_gives_others(tiny_train, tmp_path):
    runs = [tiny_train(tmp_path / str(i), "--epochs", 1, "--seed", seed) for i, seed in enumerate((0, 0, 1))]
    assert all(r.ran.code == 0 for r in runs)
    a, b, c = (weights(r.out) for r in runs)
    assert a == b != c


@pytest.mark.slow
def test_dropout_and_mixup_follow_the_seed_too(tiny_train, tmp_path):
    more = ("--epochs", 1, "--dropout", 0.3, "--mixup", 0.5, "--erasing", 0.5)
    a, b = (tiny_train(tmp_path / str(i), *more).out for i in range(2))
    assert weights(a) == weights(b) != weights(tiny_train(tmp_path / "2", "--epochs", 1).out)
    assert Bundle.load(a / "float").card.arch.dropout == 0.3


@pytest.mark.slow
def test_bf16_follows_the_seed_too_down_to_maps_of_one_pixel(tiny_train, tmp_path):
    more = ("--epochs", 2, "--training-precision", "bf16", "--batch", 12)
    a, *others = (weights(tiny_train(tmp_path / str(i), *more).out) for i in range(3))
    assert all(a == b for b in others)


def test_the_cards_score_is_the_bundles_own_after_training_in_bf16(tiny_train, command, colours, tmp_path, monkeypatch):
    monkeypatch.setattr(EpochLog, "score", lambda *_: 12.34)  # what bf16 made of the epoch
    run = tiny_train(tmp_path / "r", "--epochs", 1, "--training-precision", "bf16")
    (metric,) = Bundle.load(run.out / "float").card.metrics
    assert metric.value == round(command("eval", str(run.out), str(colours), "--json").json["top1"], 4)


def test_json_is_the_bundles_card(tiny_train, tmp_path):
    ran = tiny_train(tmp_path / "r", "--epochs", 1, "--json").ran
    card = json.loads((tmp_path / "r" / "float" / "card.json").read_text())
    del card["files"]
    assert ran.json == card


def test_a_batch_larger_than_the_data(tiny_train, tmp_path):
    ran = tiny_train(tmp_path / "r", "--epochs", 1, "--batch", 1000).ran
    assert ran.code == 0, ran.err


def test_a_loss_that_is_no_number_gives_advice(tiny_train, tmp_path):
    ran = tiny_train(tmp_path / "r", "--epochs", 20, "--lr", "1e30", "--clip", "0").ran
    assert ran.code == 2
    last = ran.err.splitlines()[-1]
    assert "the loss became" in last
    assert "the learning rate is too high" in last
    assert "try again with --lr 2.5e+29" in last
    assert not (tmp_path / "r" / "float").exists()


# ---- several processes ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes(colours, command, tmp_path):
    out = tmp_path / "r"
    line = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mobilenets",
        "train", str(colours), "--out", str(out), "--arch", "v1", "--alpha", "0.25", "--resolution", "32", "--batch",
        "12", "--workers", "0", "--epochs", "3", "--json",
    ]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    b = Bundle.load(out / "float")
    assert b.card.recipe["processes"] == 2
    assert json.loads(done.stdout)["digest"] == b.digest  # printed by one of them
    assert len(rows(out)) == 3
    assert b.card.metrics[0].count == 24
    assert command("eval", out, "--json").json["top1"] == pytest.approx(b.card.metrics[0].value, abs=1e-3)
    last = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3 * 6  # 72 images in steps of 12, over both
    assert not leftovers(out)


def test_a_card_has_the_names_of_a_commands_paths():
    line = "mobilenets distill /home/me/v2 '../my photos/' --out=/tmp/x/run --lr 0.1 --table https://host/a/b"
    assert run.placeless(line) == "mobilenets distill v2 'my photos' --out=run --lr 0.1 --table https://host/a/b"
    assert run.placeless("(called from Python)") == "(called from Python)"
