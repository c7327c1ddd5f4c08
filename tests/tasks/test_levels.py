"""Classes whose names are paths: read from folders of folders, and scored at each level."""

import numpy as np
import pytest

from mobilenets.data.open import open_data
from mobilenets.data.source import Reading, spelled
from mobilenets.errors import UserError
from mobilenets.tasks.confusion import Confusion
from mobilenets.tasks.levels import levels

LABELS = ("cat/persian", "cat/siamese", "dog/beagle", "dog/spaniel/cocker")


def opened(root, **how):
    return open_data(spelled(root, Reading(**how)))


def test_scores_of_each_level():
    true, given = [0, 0, 0, 1, 2, 3], [0, 1, 2, 0, 3, 3]
    found = levels(LABELS, Confusion.of(true, given, len(LABELS)))
    assert [(level.level, level.classes) for level in found] == [(1, 2)]
    assert found[0].top1 == pytest.approx(100 * 5 / 6)
    assert found[0].balanced == pytest.approx(100 * (3 / 4 + 1) / 2)
    deep = ("a/x/1", "a/x/2", "a/y/1", "b/z/1")
    assert [(level.level, level.classes) for level in levels(deep, Confusion.of([0], [1], 4))] == [(1, 2), (2, 3)]


@pytest.mark.parametrize("labels", [("cat", "dog"), ("cat/persian", "dog"), ("cat/persian", "cat/siamese")])
def test_none_where_there_is_nothing_to_tell(labels):
    assert levels(labels, Confusion.of([0, 1], [1, 1], 2)) == ()


def test_merged_counts_are_those_of_the_merged_classes():
    rng = np.random.default_rng(0)
    true, given = rng.integers(0, 6, (2, 200))
    group = np.array([0, 1, 1, 2, 0, 2])
    got = Confusion.of(true, given, 6).merged(group)
    assert (got.matrix == Confusion.of(group[true], group[given], 3).matrix).all()


def test_folders_of_folders(tmp_path, write_images):
    folders = {f"{s}/{c}": 3 for s in ("train", "val") for c in LABELS[:3]}
    root = write_images(tmp_path / "pets", {**folders, "train/cat": 1})
    data = opened(root, levels=2)
    assert data.labels == LABELS[:3]
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 9, "val": 9}
    assert "1 image in fewer than 2 folders, left out: train/cat/000.png" in data.left_out
    plain = opened(root)
    assert plain.labels == ("cat", "dog")
    assert len(plain.splits["train"]) == 10


def test_folders_in_all_classes_are_named(tmp_path, write_images):
    root = write_images(tmp_path / "pets", dict.fromkeys(["cat/a", "cat/b", "dog/c", "dog/d"], 2))
    (line,) = opened(root).left_out
    assert "as cat/a: --levels 2 makes those the classes" in line
    assert opened(root, levels=2).left_out == ()


def test_the_same_folders_in_each(tmp_path, write_images):
    root = write_images(tmp_path / "shapes", dict.fromkeys(["red/round", "red/square", "blue/round", "blue/square"], 2))
    assert opened(root, levels=2).labels == ("blue/round", "blue/square", "red/round", "red/square")


@pytest.mark.parametrize(("how", "said"), [
    ({"levels": 3}, "no class folders"),
    ({"levels": 2, "class_from_name": True}, "not in both"),
])  # fmt: skip
def test_what_it_refuses(tmp_path, write_images, how, said):
    root = write_images(tmp_path / "pets", {"cat/a": 2, "dog/b": 2})
    with pytest.raises(UserError, match=said):
        opened(root, **how)
    with pytest.raises(UserError, match="levels must be 1 or more"):
        Reading(levels=0)


def test_scores_say_so(tmp_path, write_colours, command):
    made = write_colours(
        tmp_path / "flat", {f"{s}/{c}": n for s, n in (("train", 8), ("val", 4)) for c in ("red", "green", "blue")}
    )
    root = tmp_path / "nested"
    for split in ("train", "val"):
        for colour, kind in (("red", "warm"), ("green", "cold"), ("blue", "cold")):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
            (made / split / colour).rename(root / split / kind / colour)
    line = ("--arch", "v1", "--alpha", ".25", "--resolution", "32", "--epochs", "1", "--workers", "0")
    ran = command("train", root, "--levels", "2", *line, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    got = command("eval", tmp_path / "run", root, "--json").json
    (level,) = got["levels"]
    assert (level["level"], level["classes"]) == (1, 2)
    assert level["top1"] >= got["top1"]
