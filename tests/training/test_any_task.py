"""The training room knows no classifier: a task that it never saw is trained, started from, frozen and distilled."""

import csv

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn

from mobilenets.arch import zoo
from mobilenets.arch.graph import Head, Op, Output
from mobilenets.arch.heads import classifier_head
from mobilenets.data import checks
from mobilenets.data.open import open_data
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.tasks import features
from mobilenets.tasks.classify import Classify
from mobilenets.tasks.task import MetricSpec
from mobilenets.training.distill import Distiller
from mobilenets.training.recipes import Distillation, Recipe
from mobilenets.training.teachers import of_bundle
from mobilenets.training.trainer import train_bundle

BLOCK = 4  # its map is what the task looks at: what comes later isn't needed


class Amounts(nn.Module):
    """The mean squared error of how much red and blue an image has."""

    def targets(self, batch):
        return {"red": batch[1]["red"].float(), "blue": batch[1]["blue"].float()}

    def forward(self, outputs, targets):
        wanted = torch.stack([targets["red"], targets["blue"]], 1)
        return (outputs["amounts"] - wanted).square().mean()

    def mixes(self):
        return ()


class OfRed(torchmetrics.MeanAbsoluteError):
    def update(self, amounts, targets):
        super().update(amounts[:, 0].contiguous(), targets["red"].float())


class Colour(Classify):
    """How much red and blue there is in an image, by layers of its own on a map of the body's."""

    name = "colour"
    primary = MetricSpec("off", "error", "units", higher_is_better=False)
    taps = ("amounts",)

    def config(self, data):
        return {"of": data.source}

    def head(self, arch, _config):
        tap = arch.blocks[BLOCK].output
        cin = arch.graph.shapes[tap][0]
        ops = (
            Op("colour.conv", "pointwise", cin, 8, norm=True, activation="relu", inputs=(tap,)),
            Op("colour.pool", "pool", 8, 8, inputs=("colour.conv",)),
            Op("colour.fc", "linear", 8, 2, bias=True, inputs=("colour.pool",)),
            Op("amounts", "flatten", 2, 2, inputs=("colour.fc",)),
        )
        return Head(ops, (Output("amounts", "amounts", "of red and blue"),), ("colour.conv", "colour.fc"))

    def objective(self, *_):
        return Amounts()

    def validation(self, _config):
        return nn.ModuleDict({"val_other": OfRed(), "val_off": OfRed()})

    def validation_loss(self, outputs, targets):
        return Amounts()(outputs, targets)

    def monitor(self, _recipe):
        return "val_off"

    def transfer(self, bundle, _config):
        own = tuple(f"{name}." for name in bundle.card.head.own)
        same = bundle.card.task == self.name
        return {k: np.array(v) for k, v in bundle.dense().tensors.items() if same or not k.startswith(own)}


@pytest.fixture
def coloured(colours):
    """The colours, each image with its amounts of red and blue for a target."""
    d = open_data(str(colours))
    for split in d.splits.values():
        means = [np.asarray(split.rgb(i)).mean((0, 1)) / 255 for i in range(len(split))]
        split.targets = [{"red": torch.tensor(m[0]), "blue": torch.tensor(m[2])} for m in means]
    return d


RECIPE = Recipe(epochs=8, batch=12, lr=0.02, workers=0, ema=0.0, augment="shift")


def rows(out):
    with (out / "logs" / "metrics.csv").open(newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture
def arch():
    return zoo.arch("v3-small", 0.35, 32, 0)


def test_it_is_trained_by_its_own_score(coloured, arch, tmp_path, capsys):
    found = checks.check(coloured)
    assert found.counts == {"train": {"images": 72}, "val": {"images": 24}}
    b = train_bundle(coloured, arch, RECIPE, tmp_path / "r", task=Colour())
    log = rows(tmp_path / "r")
    assert list(log[0]) == ["epoch", "train_loss", "val_loss", "val_off", "val_other", "lr", "seconds"]
    off = [float(r["val_off"]) for r in log]
    (metric,) = b.card.metrics
    assert (metric.name, metric.unit, metric.higher_is_better) == ("off", "units", False)
    assert metric.value == pytest.approx(min(off), abs=1e-4)
    assert metric.value < 0.15 < off[0] + 0.1
    assert b.card.recipe["best_epoch"] == 1 + int(np.argmin(off))
    assert (b.card.task, b.card.config) == ("colour", {"of": coloured.source})
    assert b.card.outputs == {"amounts": (2,)}
    kept = {k.partition(".")[0] for k in b.tensors}
    assert kept == {"blocks", "colour"}  # nothing of what it doesn't need
    assert not any(k.startswith(f"blocks.{BLOCK + 1}.") for k in b.tensors)
    assert Bundle.load(tmp_path / "r" / "float").digest == b.digest
    assert f", val error {off[-1]:.2f} units" in capsys.readouterr().err


def test_frozen_epochs_train_its_layers_alone(coloured, arch, tmp_path):
    start = train_bundle(coloured, arch, RECIPE, tmp_path / "a", task=Colour())
    frozen = Recipe(epochs=1, batch=12, lr=0.05, workers=0, ema=0.0, frozen_epochs=1, frozen_passes=3)
    b = train_bundle(coloured, arch, frozen, tmp_path / "b", task=Colour(), init=start)
    moved = {k.partition(".")[0] for k in b.tensors if not np.array_equal(b.tensors[k], start.tensors[k])}
    assert moved == {"colour"}
    norm = "colour.conv.norm.running_mean"
    assert not np.array_equal(b.tensors[norm], start.tensors[norm])


def test_it_starts_from_a_classifier_and_a_smaller_file(coloured, arch, make_bundle, tmp_path):
    v1 = make_bundle("v1")
    once = Recipe(epochs=1, batch=12, lr=1e-6, workers=0, ema=0.0, frozen_epochs=1, frozen_passes=0)
    for encoding in ("plain", "half"):
        start = v1.encoded(encoding)
        net = start.card.arch.replace(num_classes=0)
        b = train_bundle(coloured, net, once, tmp_path / encoding, task=Colour(), init=start)
        name = "blocks.1.pointwise.conv.weight"
        assert np.array_equal(b.tensors[name], start.dense().tensors[name])
    with pytest.raises(UserError, match=r"isn't the one to be trained, as blocks\.\d+\.\S+ shows"):
        train_bundle(coloured, arch, once, tmp_path / "other", task=Colour(), init=v1)


def test_it_learns_the_embedding_of_any_teacher(coloured, arch, make_bundle, tmp_path):
    how = Distillation(1.0, labels=1.0, embedding=0.5, views=1)
    for name, known in (("classifier", make_bundle("v1")), ("features", features.of_bundle(make_bundle("v1")))):
        teacher = of_bundle(known, name)
        distiller = Distiller(teacher, how, (), tmp_path / name / "teacher")
        b = train_bundle(coloured, arch, RECIPE, tmp_path / name, task=Colour(), distiller=distiller)
        assert b.card.recipe["teacher"]["name"] == name
        assert b.card.metrics[0].value < 0.2
        (answers,) = (tmp_path / name / "teacher").rglob("*.npy")
        assert np.load(answers).shape == (72, 256)


def test_a_task_without_a_score_is_not_trained(coloured, arch, tmp_path):
    with pytest.raises(UserError, match="the task features has no score to train for"):
        train_bundle(coloured, arch, RECIPE, tmp_path / "r", task=features.TASK)


def test_an_embedding_that_is_several_values_cannot_be_matched(coloured, make_bundle, tmp_path):
    class Two(Colour):
        def head(self, arch, config):
            both = super().head(arch, config)
            plain = classifier_head(arch)
            return Head((*both.ops, *plain.ops), (*both.outputs, *plain.outputs), (*both.own, *plain.own))

        taps = ("amounts", "logits")

    arch = zoo.arch("v1", 0.25, 32, 3)
    distiller = Distiller(of_bundle(make_bundle("v1"), "t"), Distillation(1.0, 1.0, 0.5, 0), (), tmp_path)
    with pytest.raises(UserError, match="isn't one embedding, but 2 values of the body"):
        train_bundle(coloured, arch, RECIPE, tmp_path / "r", task=Two(), distiller=distiller)
