"""The trained networks that come with the package."""

import re

import numpy as np
import pytest
import safetensors.numpy

from mobilenets.deploy import predict
from mobilenets.model import bundle
from mobilenets.model.bundle import WEIGHTS, Bundle

NAMES = list(bundle.packaged())


def test_there_is_one_for_cifar10():
    assert "cifar10-v2" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_packaged_network(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # its name is all it takes
    folder = bundle.packaged()[name]
    assert sum(p.stat().st_size for p in folder.iterdir()) < 5e6
    stored = safetensors.numpy.load_file(folder / WEIGHTS)
    assert {v.dtype.name for k, v in stored.items() if k.endswith("conv.weight")} == {"float16"}
    card = Bundle.load(folder).card
    (test,) = (m for m in card.metrics if m.split == "test")
    assert (test.name, test.count) == ("top1", 10_000)
    assert test.value > 80
    assert re.match("mobilenets (train|distill) ", card.recipe["command"])
    assert "/" not in card.recipe["command"] + card.data["source"]  # nothing of the machine it was trained on
    assert card.licence == "Apache-2.0"
    sky = np.full((32, 32, 3), (130, 180, 230), np.uint8)  # what is all around these, alone
    (prediction,) = predict.load(name).predict([sky])
    assert {label for label, _ in prediction.top[:2]} & {"airplane", "ship", "bird"}


def test_together_they_are_small():
    assert sum(p.stat().st_size for f in bundle.packaged().values() for p in f.iterdir()) < 8e6
