"""A network's passes on a GPU as recordings. Where there is none, what is around them."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mobilenets.arch import zoo
from mobilenets.data import checks
from mobilenets.data.open import open_data
from mobilenets.training import recorded
from mobilenets.training.learner import Learner
from mobilenets.training.recipes import RECIPES, Recipe
from mobilenets.training.setup import setup
from mobilenets.training.trainer import train_bundle

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture
def learner(colours):
    data = open_data(str(colours))
    return setup(data, data.split("train"), zoo.arch("v2-cifar", 0.25, 32, 3), Recipe(batch=12), 0).learner.train()


def test_recording_leaves_no_trace_in_the_statistics(learner, monkeypatch):
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    before = {name: value.clone() for name, value in learner.model.named_buffers()}

    def tried(forward, samples, **_):
        for _ in range(3):
            forward(*samples)
        assert any(not torch.equal(value, before[name]) for name, value in learner.model.named_buffers())
        return forward

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", tried)
    made = recorded.record(learner.model, learner.forward, images)
    assert all(torch.equal(value, before[name]) for name, value in learner.model.named_buffers())
    assert {id(p) for p in made.parameters()} == {id(p) for p in learner.model.parameters()}
    assert made(images)["logits"].shape == (4, 3)


def test_what_cannot_be_recorded_is_computed_as_it_is(learner, monkeypatch, capsys):
    def refuse(*_, **__):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    made = recorded.record(learner.model, learner.forward, torch.zeros(4, 3, 32, 32, dtype=torch.uint8))
    assert made == learner.forward
    assert "operation not permitted" in capsys.readouterr().err


def test_images_of_another_size_are_recorded_anew(learner, monkeypatch):
    sides = []

    def record(_model, forward, images):
        sides.append(images.shape[-1])
        return forward

    monkeypatch.setattr(recorded, "record", record)
    for side in (16, 16, 32, 32, 16):
        assert learner.recorder(torch.zeros(4, 3, side, side))["logits"].shape == (4, 3)
    assert sides == [16, 32, 16]


@pytest.mark.parametrize(
    ("gpu", "world", "accumulate", "ragged", "wanted"),
    [
        (True, 1, 1, False, True),
        (False, 1, 1, False, False),
        (True, 2, 1, False, False),
        (True, 1, 2, False, False),
        (True, 1, 1, True, False),
    ],
)
def test_what_is_recorded(learner, monkeypatch, gpu, world, accumulate, ragged, wanted):
    monkeypatch.setattr(Learner, "trainer", SimpleNamespace(world_size=world))
    learner.recipe = Recipe(batch=12, accumulate=accumulate)
    learner.task = SimpleNamespace(ragged=ragged)
    learner.__dict__["mean"] = SimpleNamespace(is_cuda=gpu)
    assert learner.recordable is wanted


@GPU
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_recorded_training_is_the_same_training(colours, tmp_path, monkeypatch, precision):
    """With growing images, averaged weights, dropout; at a rate at which roundings don't grow."""
    data, arch = open_data(str(colours)), zoo.arch("v2-cifar", 0.25, 32, 3)
    checks.scan(data)
    given = {"epochs": 6, "batch": 12, "lr": 0.01, "dropout": 0.1, "training_precision": precision}
    recipe, count = dataclasses.replace(RECIPES["cifar"], **given), 0
    real = recorded.record

    def record(*args):
        nonlocal count
        count += 1
        return real(*args)

    monkeypatch.setattr(recorded, "record", record)
    found = train_bundle(data, arch, recipe, tmp_path / "recorded", log=())
    assert count > 2  # sizes
    monkeypatch.setattr(recorded, "record", lambda _model, forward, _images: forward)
    wanted = train_bundle(data, arch, recipe, tmp_path / "plain", log=())
    for name, value in wanted.tensors.items():
        assert np.allclose(found.tensors[name], value, atol=0.02 * max(1, np.abs(value).max())), name
