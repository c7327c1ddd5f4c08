"""Which images were held out is known again, whatever became of their folder."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mobilenets.data import identity
from mobilenets.data.open import of_card, open_data
from mobilenets.model.bundle import Bundle

COLOURS = ("blue", "green", "red")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, write_colours, command):
    """A run on 60 photos with --val 0.1 (54 + 6), and their folder."""
    root = tmp_path_factory.mktemp("run")
    photos = write_colours(root / "photos", dict.fromkeys(COLOURS, 20))
    line = ("train", photos, "--val", 0.1, "--arch", "v1", "--alpha", 0.25, "--resolution", 32, "--epochs", 1)
    assert command(*map(str, line), "--workers", "0", "--out", str(root / "run")).code == 0
    return root / "run", photos


@pytest.fixture
def photos(trained, tmp_path, monkeypatch):
    """A copy of the photos, in the working folder."""
    shutil.copytree(trained[1], tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return Path("photos")


@pytest.fixture
def scored(trained, command):
    """`scored("photos/")`: what eval says of the run on a source: how many images of which split, and stderr."""

    def score(source, *more):
        ran = command("eval", str(trained[0]), source, "--json", *more)
        assert ran.code == 0, ran.err
        return ran.json["count"], ran.json["split"], ran.err

    return score


def zipped(folder, path, prefix=""):
    with zipfile.ZipFile(path, "w") as z:
        for f in sorted(folder.rglob("*.png")):
            z.write(f, prefix + f.relative_to(folder).as_posix())
    return str(path)


@pytest.mark.parametrize("spelling", ["photos", "photos/", "./photos", "photos/../photos", "{here}/photos"])
@pytest.mark.usefixtures("photos")
def test_the_same_images_are_scored_however_their_folder_is_spelled(spelling, scored, tmp_path):
    count, split, said = scored(spelling.format(here=tmp_path))
    assert (count, split) == (6, "val")
    assert "changed" not in said


@pytest.mark.parametrize("prefix", ["", "photos/", "a/b/photos/", "./photos/"])
def test_a_zip_of_them_is_them(prefix, photos, scored, tmp_path):
    assert scored(zipped(photos, tmp_path / "other.zip", prefix))[:2] == (6, "val")


def test_names_in_another_unicode_form_are_the_same():
    composed, decomposed = "gr\u00fcn/\u00e9t\u00e9.png", "gru\u0308n/e\u0301te\u0301.png"
    (a,) = identity.marks([composed, "rot/a.png"], [7, 8])[:1]
    (b,) = identity.marks([decomposed, "rot/a.png"], [7, 8])[:1]
    assert a == b
    assert a != identity.marks([composed, "rot/a.png"], [9, 8])[0]


@pytest.mark.parametrize("change", ["remove", "add", "both"])
def test_after_photos_changed_none_is_scored_that_was_trained_on(change, trained, photos, write_colours, capsys):
    run, original = trained
    card = Bundle.load(run / "float").card
    before = of_card(card, str(original))
    if change != "add":
        for c in COLOURS:
            (photos / c / "000.png").unlink()
            (photos / c / "001.png").unlink()
    if change != "remove":
        more = write_colours(photos.parent / "more", dict.fromkeys(COLOURS, 7))
        for f in more.rglob("*.png"):
            shutil.copy(f, photos / f.parent.name / f"new-{f.name}")
    now = of_card(card, str(photos))
    held, trained_on = (set(before.split(s).names) for s in ("val", "train"))
    assert now.as_trained
    assert set(now.split("val").names) == {n for n in held if (photos / n).exists()} != set()
    assert not set(now.split("val").names) & trained_on
    assert "has changed since training (60 images then" in capsys.readouterr().err


def test_another_folder_is_scored_whole(write_colours, scored, tmp_path):
    other = write_colours(tmp_path / "other", dict.fromkeys(COLOURS, 9), 40)  # the same names, other images
    assert scored(str(other))[:2] == (27, "all")


def test_what_was_skipped_in_training_changes_nothing(write_colours, command, tmp_path):
    photos = write_colours(tmp_path / "bad", dict.fromkeys(COLOURS, 10))
    (photos / "red" / "broken.png").write_bytes(b"x")
    line = ("train", photos, "--skip-bad", "--arch", "v1", "--alpha", 0.25, "--resolution", 32, "--epochs", 1)
    assert command(*map(str, line), "--workers", "0", "--out", str(tmp_path / "run")).code == 0
    for spelling in (str(photos), f"{photos}/"):
        ran = command("eval", str(tmp_path / "run"), spelling, "--json")
        assert (ran.json["count"], ran.json["split"]) == (6, "val")
        assert "changed" not in ran.err


def test_the_draw_is_that_of_training(trained):
    """Splits are the very same, in the same order: what is calibrated and proved on doesn't depend on the way there."""
    run, photos = trained
    card = Bundle.load(run / "float").card
    drawn, known = open_data(str(photos), val=0.1), of_card(card, str(photos))
    for split in ("train", "val"):
        assert list(drawn.split(split).names) == list(known.split(split).names)


def test_a_card_without_the_images_marks_draws_again_and_says_what_it_cannot_know(trained, photos, capsys):
    run, original = trained
    card = Bundle.load(run / "float").card
    old = {k: v for k, v in card.data.items() if k not in ("held_out", "images")}
    same = of_card(card.replace(data=old), f"{original}/")
    assert list(same.split("val").names) == list(of_card(card, str(original)).split("val").names)
    (photos / "red" / "000.png").unlink()
    of_card(card.replace(data={**old, "source": str(photos)}), None)
    assert "(60 images then, 59 now): images that the network was trained on may be among" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize("text", [None, 3, "?", "AAA", "é"])
def test_marks_that_are_none(text):
    assert len(identity.unpack(text)) == 0


def test_marks_are_small_in_a_card(trained):
    text = json.dumps(Bundle.load(trained[0] / "float").card.data["held_out"])
    assert len(text) <= 2 + 6 * 16 / 3 + 4
    assert len(identity.unpack(identity.pack(np.arange(1000, dtype=np.uint32)))) == 1000
