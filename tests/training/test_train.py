import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mobilenets.data import dataset as data
from mobilenets.data.open import of_card, open_data
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.images import Preprocess
from mobilenets.tasks import augment
from mobilenets.tasks.augment import augmentation
from mobilenets.training import loader, run
from mobilenets.training.callbacks import EpochLog
from mobilenets.training.recipes import Recipe

LEARN = ("--epochs", 12, "--lr", "0.01", "--batch", 12)


def rows(out):
    with (out / "logs" / "metrics.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def weights(out):
    return (out / "float" / "weights.safetensors").read_bytes()


def leftovers(out):
    return [p for p in out.rglob("*") if ".tmp." in p.name or ".old." in p.name]


# A shell's background job ignores Ctrl-C, and so would what it starts.
HEARS_CTRL_C = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from mobilenets.cli import main
main()
"""


def start(arguments):
    """`mobilenets ...` in a process of its own."""
    line = [sys.executable, "-c", HEARS_CTRL_C, *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(process, out, epoch=1):
    """Until so many epochs are in the last checkpoint; the process must not have finished by then."""
    log = out / "logs" / "metrics.csv"
    end = time.monotonic() + 120
    while not ((out / "checkpoints" / "last.ckpt").exists() and log.exists() and len(rows(out)) >= epoch):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(scope="module")
def learned(tiny_train, tmp_path_factory):
    """A run long enough to learn the colours."""
    run = tiny_train(tmp_path_factory.mktemp("learned") / "run", *LEARN)
    assert run.ran.code == 0, run.ran.err
    return run


@pytest.fixture(scope="module")
def colour_data(colours):
    return open_data(str(colours))


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


# ---- going on ------------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_weights(tiny_train, command, tmp_path):
    epochs = ("--epochs", 5)
    whole = tiny_train(tmp_path / "whole", *epochs)
    out = tmp_path / "killed"
    line = [str(out) if a == str(whole.out) else a for a in whole.arguments]
    process = start(line)
    try:
        wait_for_checkpoint(process, out, 2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "float").exists()
    assert len(rows(out)) < 5
    ran = command(*line, "--resume")
    assert ran.code == 0, ran.err
    assert weights(out) == weights(whole.out)
    a, b = rows(out), rows(whole.out)
    assert [int(r["epoch"]) for r in a] == list(range(1, 6))
    for r in (*a, *b):
        del r["seconds"]
    assert a == b
    cards = [json.loads((o / "float" / "card.json").read_text()) for o in (out, whole.out)]
    recipes = [{k: v for k, v in c["recipe"].items() if k != "command"} for c in cards]
    assert recipes[0] == recipes[1]
    assert cards[0]["metrics"] == cards[1]["metrics"]


@pytest.mark.parametrize("stop", [2, *(pytest.param(epoch, marks=pytest.mark.slow) for epoch in (1, 5))])
def test_stopped_at_any_epoch_it_goes_on_to_the_same_weights(tiny_train, command, tmp_path, monkeypatch, stop):
    """With everything that has a state: averaging, mixup, dropout, frozen epochs."""
    more = ("--epochs", 6, "--mixup", 0.3, "--dropout", 0.2, "--frozen-epochs", 2, "--ema", 0.3)
    whole = tiny_train(tmp_path / "whole", *more)
    out = tmp_path / "stopped"
    line = [str(out) if a == str(whole.out) else a for a in whole.arguments]
    from mobilenets.training.learner import Learner

    with monkeypatch.context() as patch:
        begin = Learner.on_train_epoch_start

        def stopped(self):
            if self.current_epoch == stop:
                raise UserError("stopped")
            begin(self)

        patch.setattr(Learner, "on_train_epoch_start", stopped)
        assert command(*line).code == 2
    assert len(rows(out)) == stop
    assert command(*line, "--resume").code == 0
    assert weights(out) == weights(whole.out)


@pytest.mark.slow
def test_ctrl_c(tiny_train, command, tmp_path):
    whole = tiny_train(tmp_path / "whole", "--epochs", 4)
    out = tmp_path / "stopped"
    line = [str(out) if a == str(whole.out) else a for a in whole.arguments]
    process = start(line)
    try:
        wait_for_checkpoint(process, out)
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2, said
    assert printed == ""
    last = [s for s in said.splitlines() if s.startswith("mobilenets:")]
    assert last == [f"mobilenets: interrupted; what was finished is in {out} (go on with --resume)"]
    assert said.splitlines()[-1] == last[0]
    assert "Traceback" not in said
    assert "Detected KeyboardInterrupt" not in said
    assert not leftovers(out)
    assert not (out / "float").exists()
    assert command(*line, "--resume").code == 0
    assert weights(out) == weights(whole.out)


def test_a_finished_run_resumed_stays_as_it_is(learned, command):
    before = weights(learned.out)
    ran = command(*learned.arguments, "--resume")
    assert ran.code == 0, ran.err
    assert weights(learned.out) == before
    assert len(rows(learned.out)) == 12


def test_resume_without_a_run_starts_one(tiny_train, tmp_path):
    ran = tiny_train(tmp_path / "r", "--epochs", 1, "--resume").ran
    assert ran.code == 0
    assert "nothing to resume" in ran.err


@pytest.mark.parametrize(
    ("source", "names", "folder"),
    [
        ("flowers.zip", ("v1 0.25-224",), "flowers-v1-0.25-224"),
        ("some/photos.v2/", (), "photos.v2"),
        ("data/..", ("sweep",), "{here}-sweep"),
        ("https://host/shards", ("v2 1-224", "distilled"), "shards-v2-1-224-distilled"),
    ],
)
def test_where_a_run_goes_that_isnt_told(tmp_path, monkeypatch, source, names, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowers.zip").touch()
    (tmp_path / "some" / "photos.v2").mkdir(parents=True)
    assert run.folder(source, *names) == Path("runs", folder.format(here=tmp_path.name))


def test_a_run_that_isnt_told_where_says_where(colours, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ("--arch", "v1", "--alpha", ".25", "--resolution", "32", "--epochs", 1)
    for verb, folder in ((("train",), "v1-0.25-32"), (("distill", "runs/V"), "v1-0.25-32-distilled")):
        out = f"runs/{colours.name}-{folder}"
        ran = command(*(w.replace("V", f"{colours.name}-v1-0.25-32") for w in verb), colours, *line)
        assert ran.code == 0, ran.err
        assert f"run      {out}\ntry next mobilenets predict {out}" in ran.err
        assert Bundle.load(Path(out) / "float").card.arch.title == "v1 0.25-32"


def test_a_run_that_is_there_is_not_overwritten(learned, command):
    before = weights(learned.out)
    line = command(*learned.arguments).line
    assert "holds a run already: go on with it (--resume) or choose another --out" in line
    assert weights(learned.out) == before


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--epochs", "13", "epochs 12, not 13"),
        ("--lr", "0.02", "lr 0.01, not 0.02"),
        ("--seed", "1", "seed 0, not 1"),
        ("--alpha", "0.5", "alpha 0.25, not 0.5"),
        ("--resolution", "64", "resolution 32, not 64"),
        ("--arch", "v2", "name v1, not v2"),
        ("--mixup", "0", "mixup 0.1, not 0.0"),
        ("--init", "INIT", "init"),
    ],
)
def test_a_run_goes_on_with_the_same_arguments_alone(learned, command, make_bundle, tmp_path, option, value, said):
    if value == "INIT":
        make_bundle("v1").save(tmp_path / "b")
        value = str(tmp_path / "b")
    line = list(learned.arguments)
    if option == "--init":  # which brings these two
        for own in ("--arch", "--alpha"):
            del line[line.index(own) : line.index(own) + 2]
    if option in line:
        line[line.index(option) + 1] = value
    else:
        line += [option, value]
    message = command(*line, "--resume", "--recipe", "modern").line
    assert said in message
    assert "resume with the same arguments" in message


def test_a_folder_with_other_things_is_left_alone(tiny_train, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.txt").write_text("mine")
    assert "is not empty and holds no run" in tiny_train(tmp_path / "r").ran.line
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["thesis.txt"]


def test_a_file_is_no_folder(tiny_train, tmp_path):
    (tmp_path / "r").write_text("mine")
    assert str(tmp_path / "r") in tiny_train(tmp_path / "r").ran.line


# ---- from other weights --------------------------------------------------------------------------------------------


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


# ---- what is drawn -------------------------------------------------------------------------------------------------


def batches(split, kind, epoch, workers, seed=0, world=1, rank=0):
    recipe = Recipe(batch=16, workers=workers, erasing=0.5)
    images = loader.TrainImages(split, augmentation(kind, Preprocess(32), recipe), seed)
    out = loader.train_loader(images, recipe, world, rank)
    out.sampler.set_epoch(epoch)
    return list(out)


@pytest.mark.parametrize("kind", ["photo", "glyph", "none"])
def test_what_is_drawn_depends_on_seed_epoch_and_image_alone(colour_data, kind):
    split = colour_data.split("train")

    def drawn(*args, **kwargs):
        torch.manual_seed(int(time.time()))
        return [(x.numpy().tobytes(), y.tolist()) for x, y in batches(split, kind, *args, **kwargs)]

    first = drawn(3, 0)
    assert len(first) == 4  # of 72 images; the short batch is left out
    assert drawn(3, 2) == first
    assert drawn(2, 0) != first
    assert drawn(3, 0, seed=1) != first


def test_an_image_is_drawn_anew_each_epoch(colour_data):
    images = loader.TrainImages(colour_data.split("train"), augmentation("photo", Preprocess(32), Recipe()), seed=0)
    a, b, c = images[0, 5][0], images[1, 5][0], images[0, 5][0]
    assert torch.equal(a, c)
    assert not torch.equal(a, b)
    assert a.shape == (3, 32, 32)
    assert a.dtype == torch.uint8


def test_each_image_once_an_epoch_over_all_processes(colour_data):
    images = loader.TrainImages(colour_data.split("train"), augmentation("none", Preprocess(32), Recipe()), 0)
    recipe = Recipe(batch=16, workers=0)
    sampled = []
    for rank in range(2):
        own = loader.train_loader(images, recipe, 2, rank)
        assert own.batch_size == 8
        own.sampler.set_epoch(4)
        keys = list(own.sampler)
        assert {e for e, _ in keys} == {4}
        sampled.append([i for _, i in keys])
    assert len(sampled[0]) == len(sampled[1]) == 36
    assert sorted(sampled[0] + sampled[1]) == list(range(72))
    alone = loader.train_loader(images, recipe, 1, 0)
    alone.sampler.set_epoch(4)
    whole = [i for _, i in alone.sampler]
    assert sampled == [whole[::2], whole[1::2]]  # so a step sees the same images, however it is split


def arrow(left):
    """A dark image with a bright mark at one side."""
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[16:24, (slice(4, 12) if left else slice(28, 36))] = 255
    return pixels


def mirrored(kind, left):
    """How often the mark is on the other side."""
    from PIL import Image

    split = data.Split("train", ["x"], np.array([0]), lambda _i: Image.fromarray(arrow(left)))
    images = loader.TrainImages(split, augmentation(kind, Preprocess(32, 1.0), Recipe(min_scale=0.99)), 0)
    sides = []
    for epoch in range(100):
        columns = images[epoch, 0][0].float().sum((0, 1))
        centre = float((columns * torch.arange(32)).sum() / columns.sum())
        sides.append(centre < 16)
    return sum(s != left for s in sides)


@pytest.mark.parametrize("left", [True, False])
def test_a_glyph_is_never_mirrored(left):
    assert mirrored("glyph", left) == 0
    assert mirrored("none", left) == 0
    assert 30 < mirrored("photo", left) < 70


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("crop", [0.875, 1.0])
def test_held_out_images_are_what_a_prediction_sees(colours, monkeypatch, in_memory, crop):
    if not in_memory:
        monkeypatch.setattr(loader, "MATERIALIZE_BYTES", 0)
    split = open_data(str(colours)).split("val")
    preprocess = Preprocess(40, crop)
    held = loader.held_out_loader(split, preprocess, 10, 1, 0)
    assert (held.dataset.batch is not None) == in_memory
    images = torch.cat([x for x, _ in held]).permute(0, 2, 3, 1).numpy()
    targets = torch.cat([y for _, y in held]).tolist()
    assert targets == split.targets.tolist()
    for i, name in enumerate(split.names):
        assert np.array_equal(images[i], preprocess.read(colours / name))


RED, GROUND = (230, 20, 20), (20, 20, 20)


def red_square(width, height, box):
    """An image with a red square on it, and where that is: a box, a mask, its centre, and its class."""
    from PIL import Image
    from torchvision import tv_tensors

    left, top, right, bottom = box
    pixels = np.full((height, width, 3), GROUND, np.uint8)
    pixels[top:bottom, left:right] = RED
    target = {
        "box": tv_tensors.BoundingBoxes([box], format="XYXY", canvas_size=(height, width)),
        "mask": tv_tensors.Mask(torch.from_numpy((pixels[..., 0] > 128).astype(np.uint8))[None]),
        "centre": tv_tensors.KeyPoints([[(left + right) / 2, (top + bottom) / 2]], canvas_size=(height, width)),
        "class": 3,
    }
    return Image.fromarray(pixels), target


def red(image):
    """Where an image, uint8 [3, H, W], is red: [H, W]."""
    over = image[0].int() - image[1].int()
    return over > max(over.max() / 2, 40)


def extent(where):
    """The box around the pixels that are true."""
    rows, columns = where.any(1).nonzero(), where.any(0).nonzero()
    return torch.tensor([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1]).float()


@pytest.mark.parametrize("kind", ["photo", "shift"])
@pytest.mark.parametrize("factor", [1, 5])  # the larger one is read at a fraction of its size
def test_boxes_and_masks_move_with_their_image(kind, factor):
    image, target = red_square(160 * factor, 120 * factor, [n * factor for n in (60, 40, 100, 80)])
    split = data.Split("train", ["x"], [target], lambda _i: image)
    images = loader.TrainImages(split, augmentation(kind, Preprocess(64), Recipe()), 0)
    boxes = []
    for epoch in range(40):
        got, said = images[epoch, 0]
        assert (got.shape, said["class"]) == ((3, 64, 64), 3)
        assert said["mask"].shape == (1, 64, 64)
        assert said["box"].canvas_size == (64, 64)
        where = red(got)
        if where.sum() < 50:  # cropped away
            continue
        mask = said["mask"][0].bool()
        assert (where & mask).sum() / (where | mask).sum() > 0.75  # nearest neighbours: a pixel off at the edges
        boxes.append(said["box"][0].tolist())
        assert (said["box"][0] - extent(where)).abs().max() <= 2
        x, y = said["centre"][0].tolist()
        if mask[:, [0, -1]].any() or mask[[0, -1]].any():  # part of it is outside
            continue
        middle = (said["box"][0, :2] + said["box"][0, 2:]) / 2
        assert (middle - torch.tensor([x, y])).abs().max() <= 2
    assert len({tuple(b) for b in boxes}) > 20


@pytest.mark.parametrize("framing", ["crop", "letterbox", "stretch"])
def test_held_out_boxes_are_where_the_input_has_them(framing):
    image, target = red_square(800, 600, [300, 200, 500, 400])
    split = data.Split("val", ["x"], [target], lambda _i: image)
    (got, said), *_ = loader.HeldOutImages(split, Preprocess(64, 0.9, framing=framing, size=(64, 96)))
    assert got.shape == (3, 64, 96)
    assert said["mask"].shape == (1, 64, 96)
    assert said["class"] == 3
    where, mask = red(got), said["mask"][0].bool()
    assert (where & mask).sum() / (where | mask).sum() > 0.85
    assert (said["box"][0] - extent(where)).abs().max() <= 1


def test_a_class_is_the_same_with_any_transform_around(colour_data):
    """The draws of an image don't depend on what goes with it."""
    split = colour_data.split("train")
    plain = loader.TrainImages(split, augmentation("photo", Preprocess(32), Recipe(erasing=0.5, randaugment=9)), 0)
    image, target = plain[2, 7]
    assert type(target) is int
    torch.default_generator.manual_seed(loader.mix(0, 2, 7))
    from PIL import Image

    assert torch.equal(plain.transform(Image.fromarray(split.cached(7))), image)


def test_augmentation_follows_the_data(tiny_train, tmp_path, monkeypatch):
    kinds = []
    real = augment.augmentation
    monkeypatch.setattr(augment, "augmentation", lambda *a: (kinds.append(a[0]), real(*a))[1])
    assert tiny_train(tmp_path / "a", "--epochs", 1).ran.code == 0
    assert tiny_train(tmp_path / "b", "--epochs", 1, "--augment", "glyph").ran.code == 0
    d = open_data("digits")
    assert (d.kind, kinds) == ("glyph", ["photo", "glyph"])


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


def test_init_brings_its_own_network(learned, colours, command, tmp_path):
    line = ("train", colours, "--init", learned.out, "--out", tmp_path / "r", "--alpha", 0.5)
    assert "leave out --arch and --alpha" in command(*line).line
    assert not (tmp_path / "r").exists()


def test_a_card_has_the_names_of_a_commands_paths():
    line = "mobilenets distill /home/me/v2 '../my photos/' --out=/tmp/x/run --lr 0.1 --table https://host/a/b"
    assert run.placeless(line) == "mobilenets distill v2 'my photos' --out=run --lr 0.1 --table https://host/a/b"
    assert run.placeless("(called from Python)") == "(called from Python)"
