"""Wrong labels: losses that bear them, and a first stage on many before the few clean ones."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mobilenets.arch import zoo
from mobilenets.arch.heads import LOGITS, classifier_head
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.images import Preprocess
from mobilenets.model.module import build
from mobilenets.tasks.losses import LOSSES, Bootstrapped, Symmetric
from mobilenets.training.co_teaching import CoTeaching
from mobilenets.training.recipes import CLEAN, Overrides, Recipe, recipe, stages

N, C = 5, 3


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return 2 * torch.randn(N, C)


TRUE = torch.tensor([0, 1, 2, 0, 1])


def test_bootstrapping_mixes_the_label_with_the_answer(logits):
    plain = Recipe(noise=0.25, label_smoothing=0.0)
    got = Bootstrapped(plain, C)({LOGITS: logits}, TRUE)
    own = F.cross_entropy(logits, logits.argmax(1))
    assert torch.allclose(got, 0.75 * F.cross_entropy(logits, TRUE) + 0.25 * own)
    assert Bootstrapped(Recipe(noise=0.0, label_smoothing=0.0), C)({LOGITS: logits}, TRUE) > got


def test_symmetric_cross_entropy_bounds_what_a_wrong_label_costs(logits):
    loss = Symmetric(Recipe(label_smoothing=0.0), C)
    got = loss({LOGITS: logits}, TRUE)
    p = logits.softmax(1)[torch.arange(N), TRUE]
    assert torch.allclose(got, 0.1 * F.cross_entropy(logits, TRUE) + 4 * (1 - p).mean())


@pytest.mark.parametrize("name", LOSSES)
def test_mixed_targets_that_are_not_mixed_cost_the_same(logits, name):
    loss = LOSSES[name](Recipe(label_smoothing=0.0), C, torch.tensor([0.5, 1.0, 2.0]))
    rows = F.one_hot(TRUE, C).float()
    assert torch.allclose(loss({LOGITS: logits}, TRUE), loss({LOGITS: logits}, rows))


def test_co_teaching_leaves_out_what_the_peer_finds_wrong():
    torch.manual_seed(0)
    arch = zoo.arch("v1", 0.25, 32).replace(num_classes=C)
    settings = Recipe(epochs=10, noise=0.4, label_smoothing=0.0)
    loss = CoTeaching(build(arch, classifier_head(arch)), Preprocess(32), settings)
    torch.nn.init.normal_(loss.peer.classifier.weight)
    images = torch.randint(0, 256, (N, 3, 32, 32), dtype=torch.uint8)
    targets = loss.targets((images, TRUE))
    ours = torch.full((N, C), -8.0).scatter(1, TRUE[:, None], 8.0)
    ours[3:] *= -1  # wrong, it says, of the last two
    ours = ours.requires_grad_()
    theirs = loss.peer.run({loss.peer.graph.source: (images.float() - loss.mean) / loss.std}, (LOGITS,))[LOGITS]

    def learned(epoch):
        loss.epoch = lambda: epoch
        ours.grad = None
        got = loss({LOGITS: ours}, targets)
        got.backward()
        return got.detach(), {*ours.grad.abs().sum(1).nonzero().flatten().tolist()}

    assert learned(0) == (
        pytest.approx((F.cross_entropy(ours, TRUE) + F.cross_entropy(theirs, TRUE)).item()),
        {*range(N)},
    )
    easy = F.cross_entropy(theirs, TRUE, reduction="none").argsort()[:3]
    got, at = learned(5)
    assert at == {*easy.tolist()}
    wanted = F.cross_entropy(ours[easy], TRUE[easy]) + F.cross_entropy(theirs[:3], TRUE[:3])
    assert got.item() == pytest.approx(wanted.item())


def test_the_two_stages_recipes():
    first, second = stages(None, "modern", Overrides(epochs=3, loss="symmetric", batch=8), "web", 5, False)
    assert (first.epochs, first.loss, first.batch) == (5, "symmetric", 8)
    assert second == recipe(CLEAN, Overrides(epochs=3, batch=8))
    assert stages(None, "modern", None, "web", None, True)[0] == recipe("finetune")
    assert stages(None, "modern", None, None, None, False) == (None, recipe("modern"))
    for name, epochs in ((CLEAN, None), (None, 4)):
        with pytest.raises(UserError, match="--noisy takes a folder"):
            stages(name, "modern", None, None, epochs, False)
    with pytest.raises(UserError, match="noisy_epochs must be 1 or more"):
        stages(None, "modern", None, "web", 0, False)


@pytest.fixture
def web(colours, tmp_path):
    """The colours' training images, a few of them in a wrong folder."""
    out = tmp_path / "web"
    shutil.copytree(colours / "train", out)
    for i, image in enumerate(sorted((out / "red").iterdir())[:4]):
        image.rename(out / "blue" / f"wrong{i}{image.suffix}")
    return out


SMALL = (
    "--arch",
    "v1",
    "--alpha",
    ".25",
    "--resolution",
    "32",
    "--epochs",
    "4",
    "--lr",
    ".01",
    "--workers",
    "0",
    "--batch",
    "24",
    "--patience",
    "0",
)


@pytest.mark.slow
def test_noisy_then_clean(colours, web, tmp_path, command):
    out = tmp_path / "run"
    line = ("train", colours, "--noisy", web, "--noisy-epochs", "1", "--loss", "co-teaching", *SMALL, "--out", out)
    ran = command(*line)
    assert "trained on noisy labels" in ran.err
    noisy, made = Bundle.load(out / "noisy/float"), Bundle.load(out / "float")
    assert Bundle.load(out / "start").digest == noisy.digest
    assert made.card.recipe["best_epoch"] == 0 or made.card.parent == noisy.digest
    assert (noisy.card.recipe["loss"], made.card.recipe["loss"]) == ("co-teaching", "cross-entropy")
    assert noisy.card.data["counts"] == {"train": 72, "val": 24}
    assert noisy.card.labels == made.card.labels
    assert "24 training images held out too" not in ran.err
    assert "already" in command(*line).line
    shutil.rmtree(out / "float")
    shutil.rmtree(out / "checkpoints")
    command(*line, "--resume")  # the first stage is not done again
    again = Bundle.load(out / "float").tensors
    assert all(np.array_equal(made.tensors[name], again[name]) for name in again)
    assert json.loads((out / "run.json").read_text())["noisy"] == str(web)


def test_what_it_refuses(colours, web, tmp_path, command):
    (web / "red").rename(web / "rose")
    line = ("train", colours, "--noisy", web, *SMALL, "--out", tmp_path / "run")
    assert "class 'rose' isn't one of" in command(*line).line
    assert "--noisy: unknown data set" in command("train", colours, "--noisy", "nowhere", *SMALL).line
    assert "--noisy takes a folder" in command("train", colours, "--recipe", CLEAN, *SMALL).line
    assert not (tmp_path / "run").exists()


def test_losses_are_for_classes(tmp_path, write_images, command):
    photos = write_images(tmp_path / "tags", {"red": 4, "blue": 4})
    line = ("train", photos, "--task", "attributes", "--loss", "symmetric", *SMALL, "--out", tmp_path / "run")
    assert "--loss symmetric is for one class an image" in command(*line).line
