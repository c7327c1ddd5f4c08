"""A pretrained network with the head that fits the data best: where fine-tuning begins, and what ranks networks."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from mobilenets import files, tasks
from mobilenets.arch import zoo
from mobilenets.data.open import open_data
from mobilenets.deploy import engines, evaluate
from mobilenets.deploy.choose import Budget, Candidate, Choice
from mobilenets.deploy.latency import Setting
from mobilenets.errors import UserError
from mobilenets.model.convert.starts import Start
from mobilenets.tasks import labelled
from mobilenets.tasks.linear import Probe
from mobilenets.tasks.task import Prior
from mobilenets.training import candidates, probing, trainer
from mobilenets.training.candidates import Entrant

CLASSIFY = tasks.find("classify")


@pytest.fixture
def data(colours, monkeypatch, tmp_path):
    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path / "cache"))
    return open_data(str(colours))


@pytest.fixture
def headed(data, make_bundle):
    start = make_bundle("v1")
    return probing.with_head(start, start.card.arch, data, CLASSIFY, 0)


def test_the_bundle_is_the_body_and_the_probe(headed, make_bundle, data):
    b, start = headed.bundle, make_bundle("v1")
    assert b.card.labels == ("blue", "green", "red")
    assert b.card.parent == (start.digest or None)
    assert np.array_equal(b.tensors["classifier.weight"], headed.probe.weight)
    body = [n for n in start.tensors if not n.startswith("classifier.")]
    assert all(np.array_equal(b.tensors[n], start.tensors[n]) for n in body)
    found = evaluate.score(engines.module("torch").TorchEngine(b, 1), data, "val")
    assert probing.scored(b, data, CLASSIFY).card.metrics[0].value == pytest.approx(found.value, abs=0.01)


def test_the_probes_logits_are_the_networks(headed, data):
    """What scikit-learn fitted is what the network computes, in PyTorch."""
    batch = data.sample("val", 8, headed.bundle.card.preprocess)
    said = engines.module("torch").TorchEngine(headed.bundle, 1)(batch.pixels)["probabilities"]
    from mobilenets.tasks import features

    seen = engines.module("torch").TorchEngine(features.of_bundle(headed.bundle), 1)(batch.pixels)["features"]
    logits = seen @ headed.probe.weight.T + headed.probe.bias
    expected = np.exp(logits - logits.max(1, keepdims=True))
    assert said == pytest.approx(expected / expected.sum(1, keepdims=True), abs=1e-4)


def test_another_resolution(make_bundle, data):
    start = make_bundle("v2")
    made = probing.with_head(start, trainer.initial_arch(start, 64), data, CLASSIFY, 0).bundle
    assert made.card.arch.resolution == made.card.preprocess.resolution == 64


def test_features_are_computed_once(headed, make_bundle, data, monkeypatch):
    monkeypatch.setattr(probing, "_computed", lambda *_: pytest.fail("computed again"))
    start = make_bundle("v1")
    again = probing.with_head(start, start.card.arch, data, CLASSIFY, 0)
    assert np.array_equal(again.probe.weight, headed.probe.weight)


@pytest.mark.usefixtures("headed")
def test_other_weights_or_images_are_computed_anew(make_bundle, data, write_colours, tmp_path, monkeypatch):
    seen = []
    computed = probing._computed
    monkeypatch.setattr(probing, "_computed", lambda *a: seen.append(1) or computed(*a))
    start = make_bundle("v1", seed=5)
    probing.with_head(start, start.card.arch, data, CLASSIFY, 0)
    other = write_colours(
        tmp_path / "other", {f"train/{c}": 5 for c in ("red", "blue")} | {"val/red": 1, "val/blue": 1}
    )
    probing.with_head(make_bundle("v1"), start.card.arch, open_data(str(other)), CLASSIFY, 0)
    assert len(seen) == 2


@pytest.mark.sampled(1)
@pytest.mark.usefixtures("headed")
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no", b"\x80\x04N."])
def test_damaged_features_are_computed_again(make_bundle, data, content):
    (kept,) = (files.cache_root() / probing.FOLDER).glob("*.npz")
    kept.write_bytes(content)
    start = make_bundle("v1")
    assert probing.with_head(start, start.card.arch, data, CLASSIFY, 0).probe.score > 30
    assert kept.stat().st_size > 1000


@pytest.mark.slow
def test_old_features_go(headed, data, make_bundle, monkeypatch):
    monkeypatch.setattr(probing, "KEPT", 2)
    for seed in (1, 2, 3):
        start = make_bundle("v1", seed=seed)
        probing.with_head(start, start.card.arch, data, CLASSIFY, 0)
    assert len([*(files.cache_root() / probing.FOLDER).iterdir()]) == 2
    assert headed


def candidate(name, alpha, resolution, latency, prior, engine="onnxruntime"):
    arch = zoo.arch(name, alpha, resolution)
    ranked = Prior(labelled.PRIOR, prior, "published")
    return Candidate(arch, Setting(engine, "int8", 1), ranked, latency, 1.0, 10.0, 1.0, 1.0)


def choice_of(*some, budget=None):
    return Choice(some[0], some, budget or Budget(), "here", {"onnxruntime": "1"})


def start_of(name, alpha, here=True):
    return Start(f"{name}-{alpha}", name, alpha, 224, None, here)


def test_the_networks_worth_probing_are_on_the_front_within_the_budget():
    every = [
        candidate("v1", 0.25, 128, 1.0, 41.0), candidate("v1", 0.25, 224, 2.0, 49.0),
        candidate("v2", 0.35, 128, 1.5, 40.0),  # slower and worse than the first
        candidate("v2", 1.0, 160, 4.0, 68.0), candidate("v2", 1.0, 160, 3.0, 68.0, "openvino"),
        candidate("v2", 1.0, 224, 9.0, 71.0),  # over the budget
        candidate("v3-large", 1.0, 224, 4.0, 75.0),  # nobody has weights
    ]  # fmt: skip
    starts = [start_of("v1", 0.25), start_of("v2", 0.35), start_of("v2", 1.0)]
    found = candidates.worth_probing(choice_of(*every, budget=Budget(max_latency_ms=5)), starts, 6)
    assert [c.arch.title for c, _ in found] == ["v2 1-160", "v1 0.25-224", "v1 0.25-128"]
    assert found[0][0].setting.engine == "openvino"  # as it runs fastest
    assert len(candidates.worth_probing(choice_of(*every), starts, 2)) == 2


def entrant(name, alpha, resolution, right):
    probe = Probe(np.zeros((2, 3)), np.zeros(2), np.array(right, bool), 1.0)
    c = candidate(name, alpha, resolution, 1.0, 50.0)
    return Entrant(c, start_of(name, alpha), SimpleNamespace(probe=probe), 1.0)


def test_networks_alike_are_those_that_chance_could_have_swapped():
    rng = np.random.default_rng(0)
    base = rng.random(1000) < 0.9
    best = entrant("v2", 1.0, 224, base)
    near = base.copy()
    near[rng.permutation(1000)[:40]] ^= True  # some gained, most lost: about 3 points worse, beyond chance
    same = base.copy()
    flipped = [*np.flatnonzero(base)[:20], *np.flatnonzero(~base)[:18]]
    same[flipped] ^= True  # 0.2 points worse, on 38 images that differ
    every = [best, entrant("v1", 1.0, 224, same), entrant("v2", 1.0, 192, base), entrant("v1", 0.25, 224, near)]
    assert [e.candidate.arch.title for e in candidates.alike(every)] == ["v2 1-224", "v1 1-224"]


def test_the_better_of_a_halving_goes_on():
    entrants = [entrant("v2", 1.0, 224, [True]), entrant("v1", 1.0, 224, [True])]
    scores = {"v2 1-224": 80.0, "v1 1-224": 83.0}
    trained = {t: SimpleNamespace(card=SimpleNamespace(metrics=[SimpleNamespace(value=v)])) for t, v in scores.items()}
    winner, made = candidates.halve(entrants, lambda e: trained[e.candidate.arch.title], CLASSIFY.primary)
    assert winner is entrants[1]
    assert made is trained["v1 1-224"]
    assert [e.short for e in entrants] == [80.0, 83.0]


def test_what_cant_be_fetched_is_left_out(data, make_bundle, monkeypatch, capsys):
    from mobilenets.web import Unreachable

    def load(self, _folder=None):
        if not self.here:
            raise Unreachable("no network")
        return make_bundle("v1")

    monkeypatch.setattr(Start, "load", load)
    every = choice_of(candidate("v1", 0.25, 32, 1.0, 41.0), candidate("v2", 1.0, 32, 2.0, 60.0))
    starts = [start_of("v1", 0.25), start_of("v2", 1.0, here=False)]
    found = candidates.probe_all(every, starts, data, CLASSIFY, 0, 6, None)
    assert [e.candidate.arch.title for e in found] == ["v1 0.25-32"]
    assert "going on with the weights that are on this machine" in capsys.readouterr().err
    assert found[0].candidate.arch.num_classes == 3


def test_candidates_as_json_and_back():
    t = entrant("v2", 1.0, 224, [True, False, True]).tried(True)
    assert candidates.Tried.from_json(t.to_json()) == t
    assert dataclasses.asdict(t)["probe"] == pytest.approx(66.67, abs=0.01)


def test_weights_that_give_no_numbers_are_one_line(make_bundle, data):
    start = make_bundle("v1")
    name = "blocks.3.depthwise.norm.weight"
    start = dataclasses.replace(start, tensors={**start.tensors, name: start.tensors[name] * np.nan})
    with pytest.raises(UserError, match="pretrained weights are damaged"):
        probing.with_head(start, start.card.arch, data, CLASSIFY, 0)
