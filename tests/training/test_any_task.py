"""The training room knows no classifier: a task that it never saw is trained, started from, frozen and distilled."""

import base64
import csv
import dataclasses
import io
import json
import re
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchmetrics
from PIL import Image
from torch import nn

from mobilenets import tasks
from mobilenets.arch import zoo
from mobilenets.arch.graph import Head, Output
from mobilenets.arch.heads import classifier_head
from mobilenets.arch.operations import Op
from mobilenets.data import checks
from mobilenets.data.open import open_data
from mobilenets.deploy import bench, choose, latency
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.tasks import features
from mobilenets.tasks.classify import Classify
from mobilenets.tasks.task import MetricSpec, Parity, Prior
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

    def validation_loss(self, outputs, targets, config):  # noqa: ARG002
        return Amounts()(outputs, targets)

    def monitor(self, _recipe):
        return "val_off"

    def probe(self, *_):
        return None

    def transfer(self, bundle, _config):
        own = tuple(f"{name}." for name in bundle.card.head.own)
        same = bundle.card.task == self.name
        return {k: np.array(v) for k, v in bundle.dense().tensors.items() if same or not k.startswith(own)}

    # ---- what the verbs ask for besides

    def open(self, source, root, seed, val):
        """Each image with its amounts of red and blue for a target."""
        d = open_data(source, root, seed, val)
        for split in d.splits.values():
            means = [np.asarray(split.rgb(i)).mean((0, 1)) / 255 for i in range(len(split))]
            split.targets = [{"red": torch.tensor(m[0]), "blue": torch.tensor(m[2])} for m in means]
        return d

    def arch(self, arch, _config):
        return arch.replace(num_classes=0)

    def decode(self, outputs, _card, _sizes, _top):
        return [Amount(*map(float, row)) for row in outputs["amounts"]]

    def draw(self, image, answer):
        return Image.new("RGB", image.size, (int(255 * np.clip(answer.red, 0, 1)), 0, 0))

    def metrics(self, _card):
        return Off()

    def parity(self, reference, other, precision, _limits=None):
        off = float(np.abs(reference["amounts"] - other["amounts"]).max())
        return Parity(100.0, off, "" if off < (1e-3 if precision == "float32" else 0.5) else f"off by {off}")

    def prior(self, arch):
        return Prior(BLUR, 10 / arch.alpha, "published")


BLUR = MetricSpec("blur", "published blur", "px", higher_is_better=False)


@dataclass(frozen=True)
class Amount:
    red: float
    blue: float

    def to_json(self):
        return dataclasses.asdict(self)

    def __str__(self):
        return f"red {self.red:.2f}, blue {self.blue:.2f}"


@dataclass(frozen=True)
class Error:
    value: float
    count: int
    data: str
    split: str
    skipped: tuple[str, ...]

    def to_json(self):
        return {"off": self.value, "count": self.count, "data": self.data, "split": self.split, "skipped": []}

    def details(self):
        return {}

    def __rich__(self):
        return f"off by {self.value}"


class Off:
    def __init__(self):
        self.errors = []

    def update(self, outputs, targets):
        reds = outputs["amounts"][:, 0]
        self.errors += [abs(float(red) - float(t["red"])) for red, t in zip(reds, targets, strict=True)]

    def compute(self, data, split, skipped=()):
        return Error(float(np.mean(self.errors)), len(self.errors), data, split, skipped)


TASK = Colour()


@pytest.fixture
def coloured(colours):
    return TASK.open(str(colours), None, 0, None)


@pytest.fixture
def registered(monkeypatch):
    """`--task colour`, as a line in `tasks.TASKS` makes it."""
    monkeypatch.setitem(sys.modules, "colour_task", SimpleNamespace(TASK=TASK))
    monkeypatch.setitem(tasks.TASKS, "colour", "colour_task")
    monkeypatch.setattr(latency, "ROUND_SECONDS", 0.005)
    monkeypatch.setattr(latency, "WARM_UP_SECONDS", 0.001)
    monkeypatch.setattr(bench, "ROUNDS", 1)


RECIPE = Recipe(epochs=8, batch=12, lr=0.02, workers=0, ema=0.0, augment="shift")


def rows(out):
    with (out / "logs" / "metrics.csv").open(newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture
def arch():
    return zoo.arch("v3-small", 0.35, 32, 0)


@pytest.mark.slow
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


QUICK = ("--epochs", 4, "--batch", 12, "--lr", 0.02, "--workers", 0, "--augment", "shift", "--ema", 0)


@pytest.mark.slow
@pytest.mark.usefixtures("registered")
def test_fit_and_the_report_know_no_classifier(colours, command, tmp_path, monkeypatch):
    """Chosen by its own prior, trained, quantized, exported, proved, scored, measured and drawn: a line in TASKS."""
    archs = [zoo.arch("v3-small", a, 32) for a in (0.75, 1.0)]
    monkeypatch.setattr(choose, "grid", lambda _classes, _side, _task: archs)
    out = tmp_path / "run"
    ran = command("fit", colours, "--task", "colour", "--out", out, "--max-latency-ms", 50, *QUICK)
    assert ran.code == 0, ran.err
    assert "published blur px" in ran.err
    assert "error units" in ran.out
    choice, steps = (json.loads((out / f"{name}.json").read_text()) for name in ("choice", "steps"))
    assert choice["pick"]["alpha"] == 1.0  # the least blur
    assert choice["prior"]["name"] == "blur"
    assert 0 < steps["off"] < 0.5
    assert {f["task"] for f in json.loads((out / "manifest.json").read_text())["files"].values()} == {"colour"}
    page = (out / "report.html").read_text()
    for text in ("<small>error</small>", "units</b>", "lowest", "published blur", "error, units", "Sample predictions"):
        assert text in page, text
    for text in ("top-1", "confus", "worst classes", "Wilson"):
        assert text not in page, text
    assert page.count('<img src="data:image') == 12
    assert re.search(r"<div>red \d\.\d\d, blue", page)
    with Image.open(io.BytesIO(base64.b64decode(re.search(r'base64,([^"]+)"', page)[1]))) as drawn:
        assert drawn.convert("RGB").getpixel((5, 5))[1:] == (0, 0)
    for verb in (
        ("eval", out),
        ("bench", out, "--engine", "onnxruntime", "--rounds", 1, "--batch", 1),
        ("predict", out, colours / "val/red/000.png"),
    ):
        again = command(*verb)
        assert again.code == 0, again.err
        assert "top-1" not in again.out


@pytest.mark.slow
@pytest.mark.usefixtures("registered")
def test_sweep_tune_and_a_trainings_page_know_no_classifier(colours, command, tmp_path):
    grid = ("--arch", "v3-small", "--alphas", ".35", "--resolutions", 32)
    swept = command("sweep", colours, "--task", "colour", "--out", tmp_path / "s", *grid, *QUICK, "--json").json
    assert 0 < swept["runs"][0]["off"] == swept["networks"][0]["off"]
    assert "error, units" in (tmp_path / "s" / "sweep.html").read_text()
    net = ("--arch", "v3-small", "--alpha", 0.35, "--resolution", 32)
    trained = command("train", colours, "--task", "colour", "--out", tmp_path / "t", *net, *QUICK)
    assert trained.code == 0, trained.err
    assert command("report", tmp_path / "t").code == 0
    page = (tmp_path / "t" / "report.html").read_text()
    assert "<small>error</small>" in page
    assert "top-1" not in page
    tuned = command("tune", colours, "--task", "colour", *net, "--batch", 12, "--steps", 60, "--json")
    assert tuned.code == 0, tuned.err
    assert "--task colour" in tuned.json["command"]
    assert "has no score to train for" in command("train", colours, "--task", "features", "--out", tmp_path / "f").line


class Ragged(Colour):
    """The same, its targets a list of numbers for each image, more for some than for others, as boxes are."""

    ragged = True

    def open(self, *arguments):
        d = super().open(*arguments)
        for split in d.splits.values():
            split.targets = [{k: v.expand(1 + i % 3) for k, v in t.items()} for i, t in enumerate(split.targets)]
        return d

    def objective(self, *_):
        return OfMeans()

    def validation(self, _config):
        return nn.ModuleDict({"val_off": RedOfMeans()})

    def validation_loss(self, outputs, targets, config):  # noqa: ARG002
        return Amounts()(outputs, means(targets))


def means(targets):
    return {k: torch.stack([t[k].float().mean() for t in targets]) for k in ("red", "blue")}


class OfMeans(Amounts):
    def targets(self, batch):
        assert {len(t["red"]) for t in batch[1]} <= {1, 2, 3}
        return batch[1]

    def forward(self, outputs, targets):
        return super().forward(outputs, means(targets))


class RedOfMeans(OfRed):
    def update(self, amounts, targets):
        super().update(amounts, means(targets))


@pytest.mark.slow
def test_targets_of_different_shapes_stay_lists(colours, arch, tmp_path):
    task = Ragged()
    d = task.open(str(colours), None, 0, None)
    recipe = Recipe(epochs=6, batch=12, lr=0.02, workers=0, ema=0.0, augment="shift", frozen_epochs=1, frozen_passes=5)
    b = train_bundle(d, arch, recipe, tmp_path / "r", task=task)
    off = [float(r["val_off"]) for r in rows(tmp_path / "r")]
    assert b.card.metrics[0].value == pytest.approx(min(off), abs=1e-4)
    assert min(off) < 0.3


@pytest.mark.slow
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


@pytest.mark.slow
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
