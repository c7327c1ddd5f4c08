"""What the training step does besides the loop: resolution, augmentation, weight averaging."""

import csv

import numpy as np
import pytest
import torch

from mobilenets.arch import zoo
from mobilenets.arch.graph import Head, Output
from mobilenets.arch.heads import LOGITS, classifier_head
from mobilenets.arch.operations import Op
from mobilenets.data.open import open_data
from mobilenets.model import module as model
from mobilenets.model.bundle import Bundle
from mobilenets.model.images import Preprocess
from mobilenets.tasks import classify, losses
from mobilenets.tasks.augment import augmentation
from mobilenets.tasks.losses import CrossEntropy
from mobilenets.training import callbacks, loader
from mobilenets.training.learner import Learner, own_part
from mobilenets.training.optim import parameter_groups
from mobilenets.training.recipes import Recipe


def learner_of(recipe, name, alpha, classes, resolution=32, fresh=None):
    """A classifier in training."""
    arch = zoo.arch(name, alpha, resolution, classes)
    net, head = model.build(arch, classifier_head(arch)), classifier_head(arch)
    config = {"labels": [str(c) for c in range(classes)]}
    objective = CrossEntropy(recipe, classes)
    return Learner(net, Preprocess(resolution), recipe, 0, classify.TASK, config, objective, head.own, fresh)


# ---- the cifar recipe's parts --------------------------------------------------------------------------------------


def test_the_resolution_grows_over_the_first_epochs(monkeypatch):
    learner = learner_of(Recipe(epochs=10, progressive=0.5), "v2-cifar", 0.25, 10)
    sides = []
    for epoch in range(10):
        monkeypatch.setattr(Learner, "current_epoch", epoch)
        sides.append(learner.shrink(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape[-1])
    assert sides == [16, 16, 20, 24, 24, 28, 32, 32, 32, 32]


@pytest.mark.parametrize(("name", "alpha", "one"), [("v2-cifar", 0.25, False), ("alexnet", 0.25, True)])
def test_a_network_with_weights_for_each_position_is_told_from_others(name, alpha, one):
    learner = learner_of(Recipe(epochs=10, progressive=0.5), name, alpha, 10, resolution=64)
    assert learner.one_size is one
    assert learner.training  # as it was


def test_a_global_depthwise_layer_sees_whole_images_from_the_first_epoch(write_images, tmp_path, command):
    people = write_images(tmp_path / "people", {f"{split}/{who}": 2 for split in ("train", "val") for who in "ab"})
    ran = command(
        "train", people, "--task", "embed", "--embed-head", "global", "--arch", "v1", "--alpha", 0.25, "--resolution",
        64, "--epochs", 1, "--progressive", 0.5, "--out", tmp_path / "run",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "takes images of one size alone" in ran.err
    assert Bundle.load(tmp_path / "run" / "float").card.recipe["progressive"] == 1.0


def test_shifted_images_are_the_image_moved(write_images, tmp_path):
    images = open_data(str(write_images(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1}, side=32)))
    recipe = Recipe(augment="shift", mixup=0.0)
    whole = np.asarray(images.split("train").rgb(0))
    seen = loader.TrainImages(images.split("train"), augmentation("shift", Preprocess(32), recipe), 0)
    for epoch in range(4):
        got = np.asarray(seen[epoch, 0][0]).transpose(1, 2, 0)
        padded = np.pad(whole, ((4, 4), (4, 4), (0, 0)))
        views = [v[y : y + 32, x : x + 32] for v in (padded, padded[:, ::-1]) for y in range(9) for x in range(9)]
        assert any(np.array_equal(got, v) for v in views)


@pytest.mark.slow
def test_sgd_with_everything_of_the_cifar_recipe_learns(tiny_train, tmp_path):
    run = tiny_train(
        tmp_path / "r", "--recipe", "cifar", "--epochs", 15, "--batch", 8, "--lr", 0.02, "--erasing", 0.1, "--ema", 0
    )
    assert run.ran.code == 0, run.ran.err
    bundle = Bundle.load(run.out / "float")
    assert bundle.card.metrics[0].value > 60
    assert bundle.card.preprocess.crop == 1.0
    assert bundle.card.recipe["optimizer"] == "sgd"


# ---- the task's part and the body -----------------------------------------------------------------------------------


def two_headed(arch):
    """The classifier, and beside it a small map of the third block's, through a layer with BatchNorm."""
    plain, tap = classifier_head(arch), arch.blocks[2].output
    cin = arch.graph.shapes[tap][0]
    ops = (
        Op("side.conv", "pointwise", cin, 4, norm=True, activation="relu", inputs=(tap,)),
        Op("side.map", "pointwise", 4, 2, bias=True, inputs=("side.conv",)),
    )
    outputs = (*plain.outputs, Output("map", "side.map"))
    return Head((*ops, *plain.ops), outputs, ("side.conv", "side.map", *plain.own))


def test_the_tasks_part_is_its_layers_and_what_reads_them():
    arch = zoo.arch("v3-small", 0.35, 32, 5)
    ops, border = own_part(arch.graph.with_head(classifier_head(arch)), ("classifier",), (LOGITS,))
    assert [op.name for op in ops] == ["classifier", LOGITS]  # probabilities aren't trained by
    assert border == (arch.ops[-2].name,)
    graph = arch.graph.with_head(two_headed(arch))
    ops, border = own_part(graph, two_headed(arch).own, (LOGITS, "side.map"))
    assert {op.name for op in ops} == {"classifier", LOGITS, "side.conv", "side.map"}
    assert set(border) == {arch.ops[-2].name, arch.blocks[2].output}
    assert own_part(graph, (), (LOGITS,)) == ((), ())


def test_in_two_steps_it_is_the_network(monkeypatch):
    """With taps in the body too, and a head of layers; frozen, the body's BatchNorm rests, the task's learns."""
    arch = zoo.arch("v2", 0.35, 32, 5)
    head, stage = two_headed(arch), arch.blocks[4].output

    class Both(CrossEntropy):
        taps = ("side.map", stage)

    torch.manual_seed(0)
    recipe = Recipe(frozen_epochs=1)
    config = {"labels": list("abcde")}
    net = model.build(arch, head)
    learner = Learner(net, Preprocess(32), recipe, 0, classify.TASK, config, Both(recipe, 5), head.own).eval()
    assert not learner.idle
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        whole = net.run({"input": learner.normalize(images)}, learner.taps)
        body = learner.body(images)
        got = learner.answers(body)
    assert set(body) == {arch.ops[-2].name, arch.blocks[2].output, stage}
    assert set(got) == set(whole) == {LOGITS, "side.map", stage}
    assert all(torch.equal(got[name], whole[name]) for name in got)
    learner.train()
    for epoch, frozen in ((0, True), (1, False)):
        monkeypatch.setattr(Learner, "current_epoch", epoch)
        learner.on_train_epoch_start()
        norms = {n: m.training for n, m in net.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
        assert norms.pop("side.conv.norm")
        assert set(norms.values()) == {not frozen}


def test_layers_that_nothing_needs_are_idle():
    arch = zoo.arch("v3-small", 0.35, 32, 5)
    learner = learner_of(Recipe(), "v3-small", 0.35, 5)
    assert not learner.idle
    learner.taps = (arch.blocks[3].output,)
    assert learner.idle


# ---- weight averaging ----------------------------------------------------------------------------------------------


def learner_in_motion():
    """A network whose weights have moved far, and images with structure."""
    torch.manual_seed(0)
    learner = learner_of(Recipe(), "v2", 0.35, 5)
    learner.recent.extend(torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8) for _ in range(4))
    return learner


def test_the_statistics_measured_are_those_of_the_batches():
    from mobilenets.training.callbacks import measure_statistics

    learner = learner_in_motion()
    norm = learner.model.blocks[0].conv.norm
    norm.running_mean.fill_(7.0)
    norm.num_batches_tracked.fill_(9)
    seen = []
    hook = learner.model.blocks[0].conv.conv.register_forward_hook(lambda _m, _x, y: seen.append(y))
    measure_statistics(learner.eval())
    hook.remove()
    torch.testing.assert_close(norm.running_mean, torch.stack([y.mean((0, 2, 3)) for y in seen]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([y.var((0, 2, 3)) for y in seen]).mean(0))
    assert (norm.momentum, int(norm.num_batches_tracked), learner.model.training) == (0.1, 9, False)


@pytest.mark.slow
def test_averaged_weights_are_never_at_chance_for_their_statistics(tiny_train, tmp_path):
    """At a high learning rate, where averaged statistics would not fit."""
    run = tiny_train(tmp_path / "r", "--epochs", 6, "--lr", 0.02, "--ema", 0.3)
    assert run.ran.code == 0, run.ran.err
    assert Bundle.load(run.out / "float").card.metrics[0].value > 80


# ---- batches in pieces, classes of different sizes, stopping early --------------------------------------------------


def trained(tiny_train, out, *arguments):
    run = tiny_train(out, *arguments)
    assert run.ran.code == 0, run.ran.err
    return Bundle.load(run.out / "float")


def test_a_batch_in_pieces_is_the_same_step(tiny_train, tmp_path, monkeypatch):
    """But for BatchNorm's statistics, which are each piece's: without them, the weights are the same."""
    from mobilenets.training import learner

    def step(out, *arguments):
        with monkeypatch.context() as patch:
            build, real = learner.Learner.on_train_epoch_start, {}

            def frozen_statistics(self):
                build(self)
                real["learner"] = self
                for m in self.model.modules():
                    if isinstance(m, torch.nn.BatchNorm2d):
                        m.eval()

            patch.setattr(learner.Learner, "on_train_epoch_start", frozen_statistics)
            run = tiny_train(
                out, "--epochs", 1, "--mixup", 0, "--ema", 0, "--optimizer", "sgd", "--lr", 0.05, *arguments
            )
            assert run.ran.code == 0, run.ran.err
            return real["learner"].model.state_dict()

    whole = step(tmp_path / "a", "--training-precision", "float32")
    pieces = step(tmp_path / "b", "--training-precision", "float32", "--accumulate", 4)
    moved = step(tmp_path / "c", "--training-precision", "float32", "--batch", 6)
    name = "classifier.weight"
    torch.testing.assert_close(pieces[name], whole[name], rtol=1e-3, atol=1e-6)
    assert not torch.allclose(moved[name], whole[name], rtol=1e-2)


def test_a_batch_that_cannot_be_cut_into_equal_pieces(tiny_train, tmp_path):
    said = tiny_train(tmp_path / "r", "--accumulate", 5).ran.line
    assert said == "mobilenets: a batch of 24 can't be split into 5 equal pieces"


def test_it_stops_when_nothing_gets_better(tiny_train, tmp_path):
    b = trained(tiny_train, tmp_path / "r", "--epochs", 30, "--lr", 1e-7, "--ema", 0, "--patience", 2)
    with (tmp_path / "r" / "logs" / "metrics.csv").open() as f:
        scores = [float(r["val_top1"]) for r in csv.DictReader(f)]
    alike = [i for i, score in enumerate(scores, 1) if score == max(scores)]
    assert len(scores) < 30
    assert len(scores) == alike[0] + 2
    assert b.card.recipe["best_epoch"] == alike[-1]


@pytest.mark.slow
def test_small_classes_count_the_same_when_told(write_colours, tiny_train, tmp_path, monkeypatch):
    data = write_colours(tmp_path / "d", {
        "train/red": 30, "train/blue": 6, "val/red": 8, "val/blue": 2,
    })  # fmt: skip
    made = []
    real = losses.CrossEntropy.__init__

    def init(self, recipe, classes, weights=None):
        made.append(weights)
        real(self, recipe, classes, weights)

    monkeypatch.setattr(losses.CrossEntropy, "__init__", init)
    tiny_train(tmp_path / "a", "--epochs", 1, "--batch", 12, data=data)
    tiny_train(tmp_path / "b", "--epochs", 8, "--batch", 12, "--class-weights", "balanced", data=data)
    assert made[0] is None
    assert made[1].tolist() == [3.0, 0.6000000238418579]  # blue, red
    with (tmp_path / "b" / "logs" / "metrics.csv").open() as f:
        rows = list(csv.DictReader(f))
    best = max(rows, key=lambda r: (float(r["val_balanced"]), int(r["epoch"])))
    card = Bundle.load(tmp_path / "b" / "float").card
    assert card.recipe["best_epoch"] == int(best["epoch"])
    assert card.metrics[0].value == float(best["val_top1"])


@pytest.mark.slow
def test_cutmix_and_mixup_take_turns(tiny_train, tmp_path, monkeypatch):
    from torchvision.transforms import v2

    used = []
    for mix in (v2.MixUp, v2.CutMix):
        real = mix.forward
        monkeypatch.setattr(mix, "forward", lambda self, *a, real=real: (used.append(type(self)), real(self, *a))[1])
    trained(tiny_train, tmp_path / "r", "--epochs", 6, "--mixup", 0.2, "--cutmix", 1.0)
    assert len(used) == 18
    assert min(used.count(v2.MixUp), used.count(v2.CutMix)) > 3


def test_randaugment_changes_images_more(write_images, tmp_path):
    images = open_data(str(write_images(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1}, side=32)))
    for kind in ("photo", "shift", "glyph"):
        drawn = [
            loader.TrainImages(images.split("train"), augmentation(kind, Preprocess(32), Recipe(randaugment=m)), 0)[
                0, 0
            ][0]
            for m in (0, 9)
        ]
        assert not torch.equal(*drawn)


@pytest.mark.parametrize(
    "line", [("--arch", "v2", "--batch", 1), ("--arch", "v3-small", "--batch", 2, "--accumulate", 2)]
)
def test_one_image_at_a_time_is_refused_where_batchnorm_sees_one_value(colours, command, tmp_path, line):
    ran = command("train", colours, *line, "--resolution", 32, "--epochs", 1, "--workers", 0, "--out", tmp_path / "r")
    assert ran.code == 2
    assert "BatchNorm needs two images at a time" in ran.err.splitlines()[-1]
    assert not (tmp_path / "r" / "float").exists()


# ---- fine-tuning: what moves, and how fast --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rows"), [("v1", 3), ("v2", 4), ("v3-small", 3), ("v4-conv-s", 4)])
def test_the_first_rows_stay_as_they_are(name, rows):
    learner = learner_of(Recipe(frozen_rows=0.25), name, 0.5, 4)
    kept = {op.name.split(".")[1] for op in learner.kept_ops}
    assert kept == {str(i) for i in range(rows)}
    learner.model.train()
    learner.keep()
    before = {k: v.clone() for k, v in learner.model.state_dict().items()}
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    optimizer = torch.optim.SGD([p for p in learner.model.parameters() if p.requires_grad], 0.1)
    learner.objective(learner(images), torch.arange(4)).backward()
    optimizer.step()
    changed = {k.split(".")[1] for k, v in learner.model.state_dict().items()
               if k.startswith("blocks.") and not torch.equal(v, before[k])}  # fmt: skip
    assert changed == {str(i) for i in range(rows, len(zoo.arch(name).rows))}


def test_statistics_measured_anew_leave_them_alone():
    learner = learner_of(Recipe(frozen_rows=0.25), "v1", 0.25, 4)
    learner.recent.append(torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8))
    before = {k: v.clone() for k, v in learner.model.state_dict().items() if "running" in k}
    callbacks.measure_statistics(learner)
    after = learner.model.state_dict()
    for k, v in before.items():
        assert torch.equal(v, after[k]) == (int(k.split(".")[1]) < 3), k


@pytest.mark.parametrize("again", [False, True])
def test_statistics_that_are_kept_stay_and_weights_move(again):
    """Whatever the batch, also where the statistics are measured anew for averaged weights."""
    learner = learner_of(Recipe(norms="kept"), "v1", 0.25, 4)
    learner.model.train()
    learner.keep()
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    for norm in learner.kept_norms:
        norm.running_mean.fill_(-0.25)  # so that something passes each ReLU
    before = {k: v.clone() for k, v in learner.model.state_dict().items()}
    if again:
        learner.recent.append(images)
        callbacks.measure_statistics(learner)
    else:
        learner.objective(learner(images), torch.arange(8) % 4).backward()
        torch.optim.SGD(learner.model.parameters(), 0.1).step()
    changed = {k for k, v in learner.model.state_dict().items() if not torch.equal(v, before[k])}
    assert not any("running" in k for k in changed)
    assert any("norm.bias" in k for k in changed) != again


def test_statistics_of_layers_from_nowhere_are_the_batches():
    learner = learner_of(Recipe(norms="kept"), "v2", 0.5, 4, fresh=("blocks.2.expand",))
    learner.model.train()
    learner.keep()
    of_batch = {name for name, m in learner.model.named_modules()
                if isinstance(m, torch.nn.BatchNorm2d) and m.training}  # fmt: skip
    assert of_batch == {"blocks.2.expand.norm"}


def test_rates_fall_from_row_to_row():
    recipe = Recipe(lr=1.0, layer_decay=0.5, body_lr=0.1)
    learner = learner_of(recipe, "v3-small", 1.0, 4)
    rate = {id(p): g["lr"] for g in parameter_groups(learner.model, recipe, learner.own) for p in g["params"]}
    got = {n: rate[id(p)] for n, p in learner.model.named_parameters()}
    assert got["classifier.weight"] == got["classifier.bias"] == 1.0
    assert got["head.0.conv.conv.weight"] == pytest.approx(0.1)  # after all rows
    last = len(zoo.arch("v3-small").rows) - 1
    for row in (0, 5, last):
        own = {v for n, v in got.items() if n.startswith(f"blocks.{row}.")}
        assert sorted(own) == pytest.approx([0.1 * 0.5 ** (last - row + 1)])


def test_without_a_decay_all_rows_have_one_rate():
    recipe = Recipe(lr=1.0, body_lr=0.1)
    learner = learner_of(recipe, "v2", 0.5, 4)
    assert {g["lr"] for g in parameter_groups(learner.model, recipe, learner.own)} == {1.0, 0.1}
