"""Probabilities after training: the temperature is in the weights, every file has it, the best labels stay."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
from PIL import Image

from mobilenets.commands.train import train
from mobilenets.compression.quantize import quantize_bundle
from mobilenets.data.dataset import Data, Keyed, Split
from mobilenets.deploy import engines, trust
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.deploy.export import compare, export_bundle
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card
from mobilenets.model.trust import Trust
from mobilenets.tasks import reliability
from mobilenets.tasks.features import of_bundle
from mobilenets.training.calibrated import Calibration, calibrate, cooled, recorded
from mobilenets.training.recipes import Overrides


def with_val(bundle, pixels, count, seed=0):
    """Data whose val images are `pixels` over and over, their classes drawn from what the bundle says at T 2."""
    p = TorchEngine(bundle, 1)(pixels)["probabilities"].astype(np.float64) ** 0.5
    p /= p.sum(1, keepdims=True)
    rng = np.random.default_rng(seed)
    at = np.arange(count) % len(pixels)
    targets = (p[at].cumsum(1) > rng.random((count, 1))).argmax(1)
    val = Split("val", [f"{i}.png" for i in range(count)], targets, Keyed(Image.fromarray, pixels[at]))
    return Data("made", bundle.card.labels, {"train": val, "val": val})


@pytest.fixture(scope="module")
def bundle(make_bundle):
    made = make_bundle("v1")
    return Bundle(made.card.replace(preprocess=dataclasses.replace(made.card.preprocess, crop=1.0)), made.tensors)


@pytest.fixture(scope="module")
def calibrated(bundle, pixels):
    return calibrate(bundle, with_val(bundle, pixels, 1200))


def test_the_temperature_is_found_and_in_the_weights(bundle, calibrated, pixels):
    known = calibrated.card.trust
    assert known.temperature == pytest.approx(2, rel=0.15)
    assert known.images == 1200
    assert known.ece_after < known.ece_before / 2
    before, after = (TorchEngine(trust.with_logits(b), 1)(pixels) for b in (bundle, calibrated))
    np.testing.assert_allclose(after["logits"], before["logits"] / known.temperature, rtol=1e-4, atol=1e-5)
    assert np.array_equal(before["probabilities"].argmax(1), after["probabilities"].argmax(1))
    changed = {k for k in bundle.tensors if not np.array_equal(bundle.tensors[k], calibrated.tensors[k])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_files_have_it_too(calibrated, pixels, tmp_path):
    made = export_bundle(calibrated, pixels, tmp_path / "m.onnx", "made")
    assert made.difference < 1e-3
    engine = engines.load(tmp_path / "m.onnx")
    assert engine.card.trust == calibrated.card.trust
    reference = TorchEngine(calibrated, 1)(pixels)["probabilities"]
    np.testing.assert_allclose(engine(pixels)["probabilities"], reference, atol=1e-4)


def test_int8_rounds_the_same_numbers(bundle, pixels):
    warm = cooled(bundle, 2.0)  # a power of 2: scales are exact
    plain, scaled = (quantize_bundle(b, pixels) for b in (bundle, warm))
    assert np.array_equal(plain.tensors["classifier.weight"], scaled.tensors["classifier.weight"])
    assert scaled.tensors["classifier.weight_scale"] == pytest.approx(plain.tensors["classifier.weight_scale"] / 2)
    a, b = (TorchEngine(trust.with_logits(q), 1)(pixels)["logits"] for q in (plain, scaled))
    np.testing.assert_allclose(a / 2, b, rtol=1e-5)


def test_a_sharper_network_may_differ_by_as_much_more(bundle, pixels, tmp_path):
    """The same rounding of logits: what passed the proof before passes it after."""
    assert trust.limits(bundle.card, None) is None
    assert trust.limits(bundle.card.trusted(Trust(temperature=2.0)), (90.0, 0.4)) == (90.0, 0.4)
    sharp = bundle.card.trusted(Trust(temperature=0.5)).replace(precision="int8")
    assert trust.limits(sharp, None) == (93.0, 0.5)
    assert trust.limits(sharp, (90.0, 0.4)) == (90.0, 0.8)
    assert trust.limits(bundle.card.trusted(Trust(temperature=0.05)), (90.0, 0.4)) == (90.0, 1.0)
    reference = TorchEngine(bundle, 1)
    other = TorchEngine(cooled(bundle, 1.01), 1)
    off = np.abs(reference(pixels)["probabilities"] - other(pixels)["probabilities"]).max()
    assert 1e-3 < off < 1e-2
    with pytest.raises(UserError, match=r"limit 0\.001"):
        compare(reference, other, pixels, tmp_path / "x")
    other.card = other.card.trusted(Trust(temperature=0.1))
    assert compare(reference, other, pixels, tmp_path / "x").limits == (99.0, pytest.approx(0.01))


@pytest.mark.parametrize(
    ("count", "how", "said"),
    [(99, None, "99 val images are too few to calibrate on"), (1200, Calibration(uncalibrated=True), "")],
)
def test_left_as_it_is(bundle, pixels, capsys, count, how, said):
    made = calibrate(bundle, with_val(bundle, pixels, count), how)
    assert all(np.array_equal(bundle.tensors[k], made.tensors[k]) for k in bundle.tensors)
    assert made.card.trust.temperature == 1
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_one_that_is_calibrated_is_left_nearly_so(bundle, pixels):
    once = calibrate(bundle, with_val(bundle, pixels, 1200))
    again = calibrate(once, with_val(bundle, pixels, 1200))  # the same images and classes
    assert again.card.trust.temperature == pytest.approx(1, abs=0.02)


def test_other_tasks_are_left_alone(bundle, pixels):
    of = of_bundle(bundle)
    assert calibrate(of, with_val(bundle, pixels, 200)) is of


def test_energy_tells_what_is_unlike(calibrated, pixels):
    known = calibrated.card.trust
    said = TorchEngine(trust.with_logits(calibrated), 1)(pixels)
    energies = trust.energy(said["logits"])
    np.testing.assert_allclose(energies, -np.log(np.exp(said["logits"].astype(float)).sum(1)), rtol=1e-6)
    assert (energies <= known.most_energy).mean() >= 0.9
    assert (said["probabilities"].max(1) >= known.least_probability - 1e-6).mean() >= 0.9


@pytest.mark.slow
def test_a_threshold_is_kept(bundle, pixels, capsys):
    data = with_val(bundle, pixels, 1200)
    free = calibrate(bundle, data).card.trust
    made = calibrate(bundle, data, Calibration(wanted_precision=40.0)).card.trust
    assert 0 < made.reject_below < 1
    assert dataclasses.replace(made, reject_below=None) == free
    assert "unsure below" in capsys.readouterr().err
    assert calibrate(bundle, data, Calibration(wanted_precision=100.0)).card.trust.reject_below is None
    assert "every answer counts: no threshold reaches" in " ".join(capsys.readouterr().err.split())


def test_few_images_give_a_threshold_and_nothing_else(bundle, pixels):
    made = calibrate(bundle, with_val(bundle, pixels, 48), Calibration(wanted_precision=20.0)).card.trust
    assert made.reject_below is not None
    assert (made.temperature, made.most_energy, made.least_probability) == (1, None, None)


def test_what_a_run_records_is_nothing_by_default():
    assert recorded(None) == recorded(Calibration()) == {}
    assert recorded(Calibration(uncalibrated=True)) == {"uncalibrated": True}
    for wanted in (0.0, 101.0, float("nan")):
        with pytest.raises(UserError, match="wanted_precision is a percentage above 0"):
            Calibration(wanted_precision=wanted)


# ---- cards


def test_cards_keep_it_and_those_of_before_have_none(bundle, calibrated, tmp_path):
    assert bundle.card.trust == Trust()
    saved = calibrated.save(tmp_path / "b")
    assert Bundle.load(tmp_path / "b").card.trust == calibrated.card.trust
    assert any(name == "probabilities" and "temperature" in value for name, value in saved.card.facts())
    assert not any(name == "probabilities" for name, _ in bundle.card.facts())
    assert of_bundle(calibrated).card.trust == Trust()
    assert calibrated.card.with_labels([f"c{i}" for i in range(10)]).trust == calibrated.card.trust


@pytest.mark.parametrize(
    "wrong",
    [3, [1], {"temperature": "2"}, {"temperature": 0}, {"temperature": -1.0}, {"temperature": float("nan")},
     {"reject_below": float("inf")}, {"temperature": True}, {"temperature": None}, {"most_energy": "x" * 10**6},
     {"images": 1.5}, {"temperature": 10**400}],
)  # fmt: skip
def test_a_hostile_card_is_one_line(bundle, wrong):
    d = bundle.card.to_json()
    d["config"] = {**d["config"], "trust": wrong}
    with pytest.raises(UserError) as e:
        Card.from_json(d)
    assert len(str(e.value).splitlines()) == 1
    assert len(str(e.value)) < 300


# ---- a training


@pytest.fixture(scope="module")
def many(write_colours, tmp_path_factory):
    """Three easy classes, 108 val images."""
    counts = {f"{s}/{c}": n for s, n in (("train", 12), ("val", 36)) for c in ("blue", "green", "red")}
    return write_colours(tmp_path_factory.mktemp("many") / "colours", counts)


def short(source, out, **changes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train(
            str(source), out=out, arch="v1", alpha=0.25, resolution=32,
            overrides=Overrides(epochs=2, workers=0, batch=12), **changes,
        )  # fmt: skip


@pytest.mark.slow
def test_training_calibrates_and_resuming_gives_the_same(many, tmp_path, monkeypatch):
    monkeypatch.setattr(reliability, "CHANCE", 0.0)  # two epochs make a network unsure, and not much less right
    made = short(many, tmp_path / "a")
    plain = short(many, tmp_path / "b", calibration=Calibration(uncalibrated=True))
    t = made.card.trust.temperature
    assert t != 1
    np.testing.assert_allclose(made.tensors["classifier.weight"] * t, plain.tensors["classifier.weight"], rtol=1e-5)
    assert made.card.metrics == plain.card.metrics
    again = short(many, tmp_path / "a", resume=True)
    assert all(np.array_equal(again.tensors[k], made.tensors[k]) for k in made.tensors)
    assert json.loads((tmp_path / "b/run.json").read_text())["uncalibrated"] is True
    with pytest.raises(UserError, match="was made with uncalibrated True, not None; resume with the same"):
        short(many, tmp_path / "b", resume=True)
