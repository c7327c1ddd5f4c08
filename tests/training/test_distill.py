"""Distillation from the command line: with labels and without, teachers of every kind, answers asked once."""

import shutil

import numpy as np
import pytest
import torch

from mobilenets.commands.distill import _columns
from mobilenets.data.open import open_data, open_unlabelled
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.tasks.augment import augmentation
from mobilenets.training import distill, teachers
from mobilenets.training.loader import TrainImages
from mobilenets.training.recipes import Distillation, Recipe

SMALL = ("--arch", "v1", "--alpha", 0.25, "--resolution", 32, "--workers", 0)
STUDENT = (*SMALL, "--batch", 24)


@pytest.fixture(scope="module")
def teacher(learned):
    assert Bundle.load(learned.out / "float").card.metrics[0].value > 80
    return learned.out


@pytest.fixture
def flat(colours, tmp_path):
    """All the colours' images in one folder, without labels."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for i, path in enumerate(sorted(colours.rglob("*.png"))):
        shutil.copy(path, folder / f"{i:03d}.png")
    return folder


@pytest.mark.slow
def test_it_learns_from_the_teacher_alone(teacher, colours, command, tmp_path):
    """No label has a share in it."""
    line = ("distill", teacher, colours, "--out", tmp_path / "s", *SMALL, "--batch", 12)
    ran = command(*line, "--labels", 0, "--epochs", 14, "--lr", 0.01, "--views", 4)
    assert ran.code == 0, ran.err
    assert "teacher  " in ran.err
    b, parent = Bundle.load(tmp_path / "s" / "float"), Bundle.load(teacher / "float")
    assert b.card.metrics[0].value > 75
    assert b.card.parent == parent.digest
    assert b.card.recipe["teacher"] == {
        "name": teacher.name, "digest": parent.digest, "temperature": 4.0, "labels": 0.0, "embedding": 0.0, "views": 4,
    }  # fmt: skip
    assert b.card.recipe["command"].startswith("mobilenets distill") or "Python" in b.card.recipe["command"]


@pytest.mark.slow
def test_without_labels_it_learns_the_teachers_classes(teacher, flat, command, tmp_path):
    line = ("distill", teacher, flat, "--out", tmp_path / "s", *SMALL, "--batch", 12, "--unlabelled")
    ran = command(*line, "--epochs", 14, "--lr", 0.01)
    assert ran.code == 0, ran.err
    b = Bundle.load(tmp_path / "s" / "float")
    assert b.card.labels == ("blue", "green", "red")
    assert b.card.recipe["teacher"]["labels"] == 0.0
    (metric,) = b.card.metrics
    assert metric.count == 10  # a tenth of 96, held out: the share on which it agrees with the teacher
    assert metric.value > 60


def test_the_answers_are_those_to_the_views_that_are_trained_on(teacher, colours, command, tmp_path, monkeypatch):
    """Every cached row is what the teacher says of exactly the image that the row comes with."""
    from mobilenets.training import learner

    monkeypatch.setattr(teachers, "fast_bf16", lambda: False)
    asked = teachers.open_teacher(str(teacher))
    real, worst, views = learner.Learner.training_step, [], set()

    def look(self, batch, batch_idx):
        images, _, said = batch
        worst.append(float((asked(images)["logits"] - said).abs().max()))
        views.add(images.numpy().tobytes())
        return real(self, batch, batch_idx)

    monkeypatch.setattr(learner.Learner, "training_step", look)
    line = ("distill", teacher, colours, "--out", tmp_path / "s", *STUDENT, "--views", 2)
    assert command(*line, "--epochs", 3).code == 0
    assert len(worst) == 9
    assert max(worst) < 0.02  # 16-bit floats
    files = sorted((tmp_path / "s" / "teacher").rglob("*.npy"))
    assert [f.name[:8] for f in files] == ["view-00-", "view-01-"]
    assert np.load(files[0]).shape == (72, 3)
    assert np.load(files[0]).dtype == np.float16


@pytest.mark.slow
def test_students_share_answers(teacher, colours, command, tmp_path, monkeypatch):
    calls = []
    real = distill.Distiller.ask
    monkeypatch.setattr(distill.Distiller, "ask", lambda self, x: (calls.append(len(x)), real(self, x))[1])

    def student(name, *more):
        calls.clear()
        line = ("distill", teacher, colours, "--out", tmp_path / name, *STUDENT, "--cache", tmp_path / "answers")
        assert command(*line, "--views", 1, "--epochs", 1, *more).code == 0
        return sum(calls)

    assert student("a") == 72
    assert student("b", "--temperature", 2) == 0
    assert student("c", "--seed", 1) == 72  # other views
    assert student("d", "--min-scale", 0.9) == 72
    assert student("e", "--embedding", 1) == 72  # more is asked


@pytest.mark.parametrize("damage", [lambda b: b[:-9] + bytes([b[-9] ^ 64]) + b[-8:], lambda b: b[:200], lambda _: b""])
def test_damaged_answers_are_asked_again(teacher, colours, tmp_path, damage):
    """Whoever trains on them gets those of the teacher, in their place."""
    split = open_data(str(colours)).split("train")
    asked = teachers.open_teacher(str(teacher))
    made = distill.Distiller(asked, Distillation(), (0, 1, 2), tmp_path)
    images = TrainImages(split, augmentation("photo", asked.preprocess, Recipe()), 0)

    def answers():
        return np.array(made.ask_beforehand(images, Recipe(epochs=1), "photo").answers[0])

    right = answers()
    (path,) = tmp_path.rglob("*.npy")
    path.write_bytes(damage(path.read_bytes()))
    assert np.array_equal(answers(), right)
    assert [*tmp_path.rglob("*.npy")] == [path]


def test_a_live_teacher_is_asked_in_every_step(teacher, colours, command, tmp_path, monkeypatch):
    calls = []
    real = distill.Distiller.ask
    monkeypatch.setattr(distill.Distiller, "ask", lambda self, x: (calls.append(len(x)), real(self, x))[1])
    line = ("distill", teacher, colours, "--out", tmp_path / "s", *STUDENT, "--views", 0)
    assert command(*line, "--epochs", 1, "--mixup", 0.5).code == 0
    assert calls == [24] * 3
    assert not (tmp_path / "s" / "teacher").exists()


def test_answers_too_many_to_keep_are_asked_for_each_time(teacher, colours, command, tmp_path, monkeypatch):
    monkeypatch.setattr(distill, "CACHE_BYTES", 72 * 3 * 2 - 1)
    line = ("distill", teacher, colours, "--out", tmp_path / "s", *STUDENT)
    assert command(*line, "--epochs", 1).code == 0
    assert not (tmp_path / "s" / "teacher").exists()


def test_a_share_of_the_images_chooses_the_epoch(teacher, write_colours, command, tmp_path):
    data = write_colours(tmp_path / "d", {"red": 20, "blue": 20})
    line = ("distill", teacher, data, "--out", tmp_path / "s", *STUDENT, "--epochs", 1, "--views", 1, "--val", 0.1)
    assert command(*line).code == 0
    assert Bundle.load(tmp_path / "s" / "float").card.metrics[0].count == 4


def test_without_augmentation_an_image_has_one_view(teacher, colours, command, tmp_path):
    line = ("distill", teacher, colours, "--out", tmp_path / "s", *STUDENT, "--augment", "none")
    assert command(*line, "--epochs", 2).code == 0
    assert len(list((tmp_path / "s" / "teacher").rglob("*.npy"))) == 1


def test_the_embedding_of_a_teacher_with_other_classes(teacher, write_colours, command, tmp_path):
    """Its classes don't matter then; the map to its embedding isn't part of what comes out."""
    data = write_colours(
        tmp_path / "d", {f"{s}/{c}": n for s, n in (("train", 12), ("val", 4)) for c in ("red", "blue")}
    )
    for split in ("train", "val"):
        (data / split / "red").rename(data / split / "warm")
    line = ("distill", teacher, data, "--out", tmp_path / "s", *SMALL, "--batch", 8, "--epochs", 1)
    refused = command(*line)
    assert "class 'warm' isn't one the teacher knows: match its embedding instead" in refused.line
    assert not (tmp_path / "s").exists()
    ran = command(*line, "--labels", 1, "--embedding", 1)
    assert ran.code == 0, ran.err
    assert Bundle.load(tmp_path / "s" / "float").card.labels == ("blue", "warm")


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_weights(teacher, colours, command, tmp_path, monkeypatch):
    from mobilenets.training import learner

    line = ("distill", teacher, colours, *STUDENT, "--epochs", 3, "--views", 2, "--embedding", 1)
    assert command(*line, "--out", tmp_path / "whole").code == 0

    class Killed(BaseException):
        pass

    real = learner.Learner.on_train_epoch_start

    def stop(self):
        if self.current_epoch == 2:
            raise Killed
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(learner.Learner, "on_train_epoch_start", stop)
        with pytest.raises(Killed):
            command(*line, "--out", tmp_path / "cut")
    assert command(*line, "--out", tmp_path / "cut", "--resume").code == 0
    a, b = (Bundle.load(tmp_path / n / "float").tensors for n in ("whole", "cut"))
    assert all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--temperature", 0), "temperature must be above 0"),
        (("--labels", 1.5), "labels is a share of the loss, from 0 to 1"),
        (("--embedding", -1), "embedding must be 0 or more"),
        (("--views", -1), "views must be 0 or more"),
    ],
)
def test_options_that_cannot_be(teacher, colours, command, tmp_path, options, said):
    ran = command("distill", teacher, colours, "--out", tmp_path / "s", *options)
    assert said in ran.line
    assert not (tmp_path / "s").exists()


def test_a_file_shows_no_embedding(teacher, colours, command, tmp_path):
    command("export", teacher, "--out", tmp_path / "m.onnx")
    ran = command("distill", tmp_path / "m.onnx", colours, "--out", tmp_path / "s", "--embedding", 1)
    assert "shows no embedding" in ran.line


def test_some_of_the_teachers_classes():
    assert _columns(("a", "b", "c"), ("c", "a")) == (2, 0)
    assert _columns(("a", "b"), ("a", "z")) == ()
    from mobilenets.model import imagenet

    known = tuple(imagenet.classes().values())
    ids = list(imagenet.classes())
    assert _columns(known, (ids[7], ids[0])) == (7, 0)


def test_unlabelled_images(colours, flat, write_images, tmp_path):
    d = open_unlabelled(str(flat), seed=3)
    assert d.labels == ("images",)
    assert {k: len(s) for k, s in d.splits.items()} == {"train": 86, "val": 10}
    assert not set(d.split("train").names) & set(d.split("val").names)
    assert len(open_unlabelled(str(colours)).split("all")) == 96  # folders don't matter
    labelled = open_data(str(colours))
    assert len(open_unlabelled("digits").split("all")) == 1797
    assert len(labelled.labels) == 3
    one = write_images(tmp_path / "one", {".": 1})
    with pytest.raises(UserError, match=r"1 image; give a folder"):
        open_unlabelled(str(one))


def test_an_embedding_is_what_the_classifier_reads(teacher, colours):
    how = Distillation(1.0, 0.0, 1.0, None)
    known = teachers.open_teacher(str(teacher))
    distiller = distill.Distiller(known, how, (2, 0), colours)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    said, asked = known(images), distiller.ask(images)
    assert torch.allclose(asked, torch.cat([said["logits"][:, [2, 0]], said["embedding"]], dim=1), atol=0.05)
