"""Doubts at the command line and in Python: unsure answers, images unlike the others, views, nearest examples."""

import json
import pickle

import numpy as np
import pytest

import mobilenets
from mobilenets import files
from mobilenets.commands.evaluate import evaluate
from mobilenets.deploy import engines, nearest, predict
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.deploy.nearest import gallery
from mobilenets.deploy.trust import Flipped, energy, with_logits
from mobilenets.deploy.writers import onnx as onnx_graph
from mobilenets.model.bundle import Bundle
from mobilenets.model.trust import Trust
from mobilenets.tasks.features import of_bundle

TRUST = Trust(200, 1.0, 3.0, 3.0, reject_below=0.5, least_probability=0.4, most_energy=-2.0)


@pytest.fixture
def photos(write_images, tmp_path):
    """48 images in folders of the network's classes."""
    return write_images(tmp_path / "photos", {f"{s}/class {i}": 3 for s in ("train", "val") for i in range(8)}, 40)


@pytest.fixture
def bundle(make_bundle, photos, tmp_path):
    made = make_bundle("v1")
    return Bundle(made.card.trusted(TRUST).replace(data={"source": str(photos)}), made.tensors).save(tmp_path / "b")


@pytest.fixture
def model(bundle, tmp_path, ours):  # noqa: ARG001
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_graph.onnx_model(bundle))
    return path


def lines(ran):
    assert ran.code == 0, ran.err
    return [json.loads(line) for line in ran.out.splitlines()]


# ---- unsure


def test_the_cards_threshold_is_the_default(model, photos, command):
    said = lines(command("predict", model, photos / "val", "--json"))
    assert {p["label"] is None for p in said} == {True, False}
    for p in said:
        best = p["top"][0]
        assert p["guess"] == best["label"]
        assert p["label"] == (None if best["probability"] < 0.5 else best["label"])
    text = command("predict", model, photos / "val").out.splitlines()
    assert [line.split("\t")[1] == "unsure" for line in text] == [p["label"] is None for p in said]


def test_another_threshold(model, photos, command):
    said = lines(command("predict", model, photos / "val", "--reject-below", "0.9", "--json"))
    assert [p["label"] is None for p in said] == [p["top"][0]["probability"] < 0.9 for p in said]
    assert all(p["label"] for p in lines(command("predict", model, photos / "val", "--reject-below", "0", "--json")))


def test_from_python(model, photos):
    loaded = mobilenets.load(model, reject_below=1.0)
    (one,) = loaded.predict([photos / "val/class 0/000.png"])
    assert one.label is None
    assert one.top
    assert pickle.loads(pickle.dumps(loaded)).predict([photos / "val/class 0/000.png"]) == [one]
    sure = mobilenets.predict(model, photos / "val/class 0/000.png", reject_below=0.0)[0]
    assert sure.label == sure.top[0][0] == one.top[0][0]


def test_without_a_threshold_nothing_is_new(make_bundle, photos, tmp_path, command):
    make_bundle("v1").save(tmp_path / "plain")
    (said,) = lines(command("predict", tmp_path / "plain", photos / "val/class 0/000.png", "--json"))
    assert set(said) == {"image", "top"}


def test_files_of_unsure_answers(model, photos, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    said = mobilenets.predict(model, photos / "val")
    mobilenets.predict(model, photos / "val", out=tmp_path / "p.parquet")
    table = pq.read_table(tmp_path / "p.parquet").to_pydict()
    assert table["label"] == [p.label for p in said]
    assert None in table["label"]
    assert table["probability"] == [p.top[0][1] for p in said]


@pytest.mark.parametrize("wrong", ["-0.1", "1.5", "nan"])
def test_what_is_no_probability(model, photos, command, wrong):
    assert "is a probability from 0 to 1" in command("predict", model, photos, f"--reject-below={wrong}").line
    assert "is a probability from 0 to 1" in command("eval", model, photos, f"--reject-below={wrong}").line


# ---- unlike


def test_bundles_flag_by_energy_and_files_by_probability(bundle, model, photos, command, tmp_path):
    images = [photos / f"val/class {i}/00{k}.png" for i in range(8) for k in range(3)]
    pixels = np.stack([bundle.card.preprocess.read(p) for p in images])
    said = TorchEngine(with_logits(bundle), 1)(pixels)
    most = float(np.median(energy(said["logits"])))
    known = bundle.card.trusted(Trust(200, least_probability=0.4, most_energy=most))
    Bundle(known, bundle.tensors).save(tmp_path / "c")
    flagged = lines(command("predict", tmp_path / "c", photos / "val", "--flag-unlike", "--json"))
    assert [p["unlike_training"] for p in flagged] == (energy(said["logits"]) > most).tolist()
    flagged = lines(command("predict", model, photos / "val", "--flag-unlike", "--json"))
    assert [p["unlike_training"] for p in flagged] == (said["probabilities"].max(1) < 0.4).tolist()
    text = command("predict", model, photos / "val", "--flag-unlike").out
    assert text.count("unlike the training images") == sum(p["unlike_training"] for p in flagged) > 0


def test_a_card_that_knows_nothing(make_bundle, photos, tmp_path, command):
    make_bundle("v1").save(tmp_path / "plain")
    assert "isn't on the network's card" in command("predict", tmp_path / "plain", photos, "--flag-unlike").line
    of_bundle(make_bundle("v1")).save(tmp_path / "f")
    for option in ("--flag-unlike", "--reject-below=0.5"):
        assert "doubts are a classifier's" in command("predict", tmp_path / "f", photos, option).line


# ---- views


def test_flip_is_the_mean_of_both(model, photos, pixels):
    engine = engines.load(model)
    p = engine(pixels)["probabilities"], engine(pixels[:, :, ::-1].copy())["probabilities"]
    np.testing.assert_allclose(Flipped(engine)(pixels)["probabilities"], (p[0] + p[1]) / 2, atol=1e-6)
    assert np.abs(p[0] - p[1]).max() > 0.01
    image = photos / "val/class 0/000.png"
    plain, both = (mobilenets.predict(model, image, top=1, tta=tta)[0].top[0][1] for tta in (None, "flip"))
    assert plain != both


def test_flip_in_eval(model, photos, command):
    plain, both = (command("eval", model, photos, *more, "--json").json for more in ((), ("--tta", "flip")))
    assert plain["count"] == both["count"] == 24
    assert plain["loss"] != both["loss"]
    assert "flip" in command("eval", model, photos, "--tta", "flap").line


def test_flip_is_for_probabilities(make_bundle, tmp_path, photos, command):
    of_bundle(make_bundle("v1")).save(tmp_path / "f")
    assert "is of probabilities" in command("predict", tmp_path / "f", photos, "--tta", "flip").line


# ---- eval


def test_what_is_left_above_a_threshold(model, photos, command):
    said = mobilenets.predict(model, photos / "val", reject_below=0.6)
    right = [p.label in p.image for p in said if p.label]
    left = command("eval", model, photos, "--reject-below", "0.6", "--json").json["rejection"]
    assert (left["answered"], left["coverage"]) == (len(right), pytest.approx(100 * len(right) / 24))
    assert left["precision"] == pytest.approx(100 * sum(right) / len(right))
    assert left["precision_at_least"] < left["precision"] or not any(right)
    assert "of 24 images are answered" in " ".join(command("eval", model, photos, "--reject-below", "0.6").out.split())


def test_a_threshold_goes_onto_a_bundles_card_and_into_its_files(bundle, photos, tmp_path, command):
    scores = evaluate(tmp_path / "b", str(photos))
    wanted = scores.top1 + 1e-9 if scores.top1 else 1.0
    ran = command("eval", tmp_path / "b", photos, "--wanted-precision", wanted, "--out", tmp_path / "c", "--json")
    found = ran.json["rejection"]["reject_below"]
    kept = Bundle.load(tmp_path / "c")
    assert kept.card.trust == Trust(**{**TRUST.to_json(), "reject_below": found})
    assert kept.card.parent == bundle.digest
    assert all(np.array_equal(kept.tensors[k], bundle.tensors[k]) for k in bundle.tensors)
    (tmp_path / "c.onnx").write_bytes(onnx_graph.onnx_model(kept))
    assert predict.load(tmp_path / "c.onnx").doubts.reject_below == found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--wanted-precision", "100.5"), "a percentage above 0, up to 100, not 100.5"),
        (("--wanted-precision", "100"), "no threshold reaches a precision of 100%"),
        (("--wanted-precision", "90", "--reject-below", "0.5"), "not both"),
        (("--out", "x"), "--out is for a threshold"),
        (("--reject-below", "0.5", "--out", "x"), "--out writes a bundle, and this is none"),
    ],
)
def test_mistakes_of_eval(model, photos, command, monkeypatch, tmp_path, options, said):
    monkeypatch.chdir(tmp_path)
    assert said in command("eval", model, photos, *options).line
    assert not (tmp_path / "x").exists()


# ---- nearest


@pytest.mark.usefixtures("bundle")
def test_an_image_is_nearest_to_itself(photos, tmp_path, command):
    (said,) = lines(command("predict", tmp_path / "b", photos / "train/class 3/001.png", "--nearest", "3", "--json"))
    first, *others = said["nearest"]
    assert (first["image"], first["label"]) == ("train/class 3/001.png", "class 3")
    assert first["cosine"] == pytest.approx(1, abs=1e-4)
    assert 1 >= first["cosine"] >= others[0]["cosine"] >= others[1]["cosine"]
    text = command("predict", tmp_path / "b", photos / "train/class 3/001.png", "--nearest", "1").out
    assert text.endswith("\ttrain/class 3/001.png class 3 1.000\n")


def test_nearest_is_what_numpy_says(bundle, photos, tmp_path):
    engine = TorchEngine(of_bundle(bundle), 1)
    paths = sorted((photos / "train").rglob("*.png"))
    rows = engine(np.stack([bundle.card.preprocess.read(p) for p in paths]))["features"]
    query = engine(bundle.card.preprocess.read(photos / "val/class 1/000.png")[None])["features"][0]
    cosines = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    (said,) = mobilenets.predict(tmp_path / "b", photos / "val/class 1/000.png", nearest=5)
    best = np.argsort(-cosines)[:5]
    assert [e.image for e in said.answer.examples] == [f"train/{paths[i].parent.name}/{paths[i].name}" for i in best]
    assert [e.cosine for e in said.answer.examples] == pytest.approx(cosines[best], abs=1e-4)


def test_features_are_kept_and_another_network_or_image_has_its_own(
    bundle, make_bundle, photos, write_images, monkeypatch, tmp_path
):
    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path / "cache"))
    computed = []
    whole = nearest._computed
    monkeypatch.setattr(nearest, "_computed", lambda *a: (computed.append(1), whole(*a))[1])
    first, again = gallery(bundle, None), gallery(bundle, None)
    assert len(computed) == 1
    assert np.array_equal(first.rows, again.rows)
    gallery(make_bundle("v1", seed=1).save(tmp_path / "other"), str(photos))
    assert len(computed) == 2
    write_images(photos, {"train/class 0": 4}, 41)
    assert len(gallery(bundle, None).names) == len(first.names) + 1
    assert len(computed) == 3
    for path in (files.cache_root() / "features").iterdir():
        path.write_bytes(b"damaged")
    assert len(gallery(bundle, None).names) == len(first.names) + 1
    assert len(computed) == 4


@pytest.mark.usefixtures("bundle")
def test_images_without_the_networks_labels_and_damaged_ones(write_images, tmp_path, command):
    other = write_images(tmp_path / "other", {"x": 3, "y": 2})
    (other / "x/bad.png").write_bytes(b"no image")
    ran = command("predict", tmp_path / "b", other / "x/001.png", "--nearest", "9", "--among", other, "--json")
    (said,) = lines(ran)
    assert len(said["nearest"]) == 5
    assert {e["label"] for e in said["nearest"]} == {""}
    assert said["nearest"][0]["image"].endswith("x/001.png")


@pytest.mark.usefixtures("bundle")
def test_mistakes_of_nearest(model, photos, tmp_path, command):
    at = ("predict", tmp_path / "b", photos)
    assert "nearest must be 1 or more, not 0" in command(*at, "--nearest", "0").line
    assert "--among says where --nearest looks" in command(*at, "--among", photos).line
    assert "shows images instead of labels" in command(*at, "--nearest", "1", "--tta", "flip").line
    assert "no bundle here" in command("predict", model, photos, "--nearest", "1").line
    assert "nowhere" in command(*at, "--nearest", "1", "--among", "nowhere").line
