"""Every verb that takes labelled data takes a table and says of it what a folder's verbs do; `train --folds`."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from mobilenets import cli
from mobilenets.model.bundle import Bundle

TINY = ("--arch", "v1", "--alpha", 0.25, "--resolution", 32, "--batch", 16, "--workers", 0, "--epochs", 1)
READ = ("--label-column", "breed", "--group-column", "camera")


@pytest.fixture(scope="module")
def breeds(tmp_path_factory, write_colours) -> Path:
    """A table of 45 images of three colours, in folders whose names say nothing of them, by five cameras."""
    root = tmp_path_factory.mktemp("tables")
    write_colours(root / "all", dict.fromkeys(("blue", "green", "red"), 15))
    with (root / "breeds.csv").open("w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["file", "label", "breed", "camera"])
        for i, image in enumerate(sorted((root / "all").rglob("*.png"))):
            table.writerow([image.relative_to(root), "all the same", image.parent.name, f"camera {i % 5}"])
    return root / "breeds.csv"


@pytest.fixture(scope="module")
def trained(breeds, command, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    done = command("train", breeds, *READ, *TINY, "--class-weights", "balanced", "--out", out)
    assert done.code == 0, done.err
    return out


def test_the_card_says_how_the_data_was_read(trained, breeds):
    data = Bundle.load(trained / "float").card.data
    assert data["source"] == f"{breeds} --label-column breed --group-column camera"
    assert data["counts"] == {"train": 36, "val": 9}
    assert json.loads((trained / "run.json").read_text())["source"] == data["source"]


@pytest.mark.parametrize("named", [(), ("TABLE",), ("TABLE", *READ)], ids=["by the card", "its path", "in full"])
def test_eval_scores_what_was_held_out(named, trained, breeds, command):
    scores = command("eval", trained, *(breeds if n == "TABLE" else n for n in named), "--json").json
    assert (scores["count"], scores["split"]) == (9, "val")


def test_a_run_goes_on_under_another_spelling_but_not_in_another_way(trained, breeds, command, monkeypatch):
    monkeypatch.chdir(breeds.parent)
    again = ("train", "breeds.csv", *TINY, "--class-weights", "balanced", "--out", trained, "--resume")
    assert command(*again, *READ).code == 0
    assert "was made with source" in command(*again, "--label-column", "breed").line


@pytest.mark.slow
def test_other_verbs_take_tables(trained, breeds, command, tmp_path):
    made = command("quantize", trained, breeds, *READ, "--images", 8, "--out", tmp_path / "int8")
    assert made.code == 0, made.err
    written = command("shards", breeds, tmp_path / "shards", *READ, "--workers", 1, "--json")
    assert {k: v["images"] for k, v in written.json["splits"].items()} == {"train": 36, "val": 9}
    found = command("tune", breeds, *READ, "--batch", 16, *TINY[:6], "--workers", 0, "--steps", 40, "--json")
    assert " --label-column breed --group-column camera --arch v1" in found.json["command"]


def test_options_without_data_are_refused(trained, command):
    assert "--limit-per-class says how data is read" in command("eval", trained, "--limit-per-class", 3).line
    assert "limit_per_class must be 1 or more" in command("train", "digits", "--limit-per-class", 0).line


@pytest.mark.parametrize("verb", ["fit", "train", "tune", "distill", "sweep", "eval", "quantize", "export", "shards"])
def test_help_has_the_options(verb, command):
    text = command(verb, "--help").out
    for option in ("--label-column", "--group-column", "--val-from", "--limit-per-class", "--class-from-name"):
        assert option in text
    assert verb in cli.VERBS


# ---- folds


@pytest.fixture(scope="module")
def folded(breeds, command, tmp_path_factory):
    out = tmp_path_factory.mktemp("folds") / "run"
    line = ("train", breeds, *READ, *TINY, "--folds", 3, "--out", out, "--json")
    return out, line, command(*line)


def test_folds_hold_out_each_image_once(folded):
    out, _, ran = folded
    said = ran.json["cross_validation"]
    scores = [f["score"] for f in said["folds"]]
    assert said["mean"] == pytest.approx(sum(scores) / 3)
    assert said["standard_deviation"] > 0 or len({*scores}) == 1
    assert sum(f["images"] for f in said["folds"]) == 45
    with (out / "folds" / "predictions.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert len({r["image"] for r in rows}) == len(rows) == 45
    for fold, score in zip("123", scores, strict=True):
        own = [r for r in rows if r["fold"] == fold]
        right = sum(r["label"] == r["predicted"] for r in own)
        assert 100 * right / len(own) == pytest.approx(score, abs=0.01)
        assert all(Path(r["image"]).parent.name == r["label"] for r in own)
        assert all(33 < float(r["probability_percent"]) <= 100 for r in own)
    cameras = {}  # of the images in the order of the table, every fifth is of the same
    for r in rows:
        number = 15 * ("blue", "green", "red").index(r["label"]) + int(Path(r["image"]).stem)
        cameras.setdefault(number % 5, set()).add(r["fold"])
    assert all(len(folds) == 1 for folds in cameras.values())


def test_a_folds_bundle_knows_its_fold(folded, command):
    out, _, ran = folded
    for k, fold in enumerate(ran.json["cross_validation"]["folds"], 1):
        scores = command("eval", out / f"fold-{k}", "--json").json
        assert scores["count"] == fold["images"]
        assert scores["top1"] == pytest.approx(fold["score"], abs=0.01)
        assert command("report", out / f"fold-{k}").code == 0


def test_folds_go_on(folded, command):
    out, line, ran = folded
    kept = (out / "fold-1" / "float" / "weights.safetensors").stat().st_mtime_ns
    shutil.rmtree(out / "fold-3" / "float")  # as if stopped before it was written
    again = command(*line, "--resume").json["cross_validation"]
    assert again == ran.json["cross_validation"]
    assert (out / "fold-1" / "float" / "weights.safetensors").stat().st_mtime_ns == kept
    assert "was made with folds 3, not 4" in command(*(4 if a == 3 else a for a in line), "--resume").line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--folds", 1), "folds must be 2 or more, not 1"),
        (("--folds", 9), "has 5 groups to train on: too few for 9 folds"),
        (("--folds", 2, "--limit-per-class", 3), "--folds is of all images: leave out --limit-per-class"),
        (("--folds", 2, "--val", 0.1), "--folds holds out each image once: leave out --val"),
    ],
)
def test_folds_that_cant_be(words, message, breeds, command, tmp_path):
    assert message in command("train", breeds, *READ, *TINY, *words, "--out", tmp_path / "x").line
    assert not (tmp_path / "x").exists()


def test_folds_of_split_data(colours, command, tmp_path):
    line = command("train", colours, *TINY, "--folds", 3, "--out", tmp_path / "x").line
    assert "has a val split of its own: --folds is for images that aren't split" in line
