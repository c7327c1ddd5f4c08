"""Quantization-aware training: its network is the bundle's, value for value; what it learns; killed and resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import Ran
from torch.nn import functional as F

from mobilenets.arch import zoo
from mobilenets.compression import qat
from mobilenets.compression.qat import FakeQuantized, LearnedRange, QatLayer
from mobilenets.compression.quantize import Measured, measure_ranges
from mobilenets.compression.scheme import Scheme
from mobilenets.data.open import open_data
from mobilenets.errors import Interrupted, UserError
from mobilenets.model import reference as simulate
from mobilenets.model.bundle import Bundle, random_bundle
from mobilenets.model.card import classifier_card
from mobilenets.model.images import Pixels
from mobilenets.model.module import Walker
from mobilenets.tasks import features
from mobilenets.training.learner import Learner

QUICK = dataclasses.replace(qat.RECIPE, epochs=3, batch=12, workers=0)


def logits(net: Walker, x: torch.Tensor) -> torch.Tensor:
    return net.run({"input": x}, ["logits"])["logits"]


def trained_in(bundle: Bundle) -> Walker:
    """The bundle in floats, as training computes it."""
    return simulate.SimulatedInt8(bundle).eval() if bundle.card.precision == "int8" else simulate.module(bundle)


def answers(bundle: Bundle, pixels: Pixels) -> torch.Tensor:
    with torch.inference_mode():
        return logits(trained_in(bundle), torch.from_numpy(bundle.card.preprocess.normalize(pixels)))


def divergence(bundle: Bundle, source: Bundle, pixels: Pixels) -> float:
    """Nats from the float network's probabilities to those of `bundle`."""
    true, ours = (answers(b, pixels).log_softmax(1) for b in (source, bundle))
    return float(F.kl_div(ours, true, reduction="batchmean", log_target=True))


def moved(net: FakeQuantized) -> FakeQuantized:
    """As if it had been trained: every parameter a little elsewhere."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.add_(0.03 * torch.randn(p.shape, generator=generator))
    return net.eval()


# ---- the network ---------------------------------------------------------------------------------------------------

SCHEMES = {"per channel": Scheme(), "per layer": Scheme(per_layer=True)}


def network(name: str, make_bundle: Callable[..., Bundle]) -> Bundle:
    if name == "v3-small":
        return random_bundle(zoo.arch("v3-small", 0.35, 32, 10), "float32")
    return make_bundle(name, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("name", "how"), [("v1", "per layer"), ("v2", "per channel"), ("v3-small", "per channel")])
def test_what_is_trained_is_what_the_bundle_computes(
    make_bundle: Callable[..., Bundle], pixels: Pixels, name: str, how: str
) -> None:
    start = measure_ranges(network(name, make_bundle), pixels, SCHEMES[how])
    net = FakeQuantized(start).eval()
    x = torch.from_numpy(start.card.preprocess.normalize(pixels))
    before, weights = answers(start.bundle(), pixels), start.bundle().tensors
    with torch.no_grad():
        assert torch.equal(logits(net, x), before)
        after = logits(moved(net), x)
    made = net.measured().bundle()
    assert torch.equal(after, answers(made, pixels))
    assert not torch.allclose(after, before, atol=1e-2)
    assert {k: (v.dtype, v.shape) for k, v in made.tensors.items()} == {
        k: (v.dtype, v.shape) for k, v in weights.items()
    }
    one = all(np.ptp(v) == 0 for k, v in made.tensors.items() if k.endswith("weight_scale"))
    assert one == SCHEMES[how].per_layer


def test_operations_in_float_stay_as_they_are(make_bundle: Callable[..., Bundle], pixels: Pixels) -> None:
    kept = ("blocks.3.depthwise", "blocks.3.sum", "blocks.5.project")
    start = measure_ranges(make_bundle("v2"), pixels)
    net = moved(FakeQuantized(start, kept))
    with torch.no_grad():
        after = logits(net, torch.from_numpy(start.card.preprocess.normalize(pixels)))
    before, made = start.bundle(kept), net.measured().bundle(kept)
    assert torch.equal(after, answers(made, pixels))
    for name in ("blocks.3.depthwise", "blocks.5.project"):
        assert np.array_equal(made.tensors[f"{name}.weight"], before.tensors[f"{name}.weight"])
    assert not np.array_equal(made.tensors["blocks.3.project.weight"], before.tensors["blocks.3.project.weight"])


def test_autocast_leaves_the_roundings_alone(make_bundle: Callable[..., Bundle], pixels: Pixels) -> None:
    start = measure_ranges(make_bundle("v1"), pixels)
    x = torch.from_numpy(start.card.preprocess.normalize(pixels[:4]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert F.linear(x[0, 0], x[0, 0]).dtype == torch.bfloat16  # autocast is at work
        y = logits(FakeQuantized(start).eval(), x)
    assert y.dtype == torch.float32
    assert torch.equal(y, answers(start.bundle(), pixels[:4]))


def test_a_dead_channel_with_a_large_bias(make_bundle: Callable[..., Bundle], pixels: Pixels) -> None:
    b = make_bundle("v2")
    tensors = {k: v.copy() for k, v in b.tensors.items()}
    tensors["blocks.4.project.norm.weight"][3], tensors["blocks.4.project.norm.bias"][3] = 0, -4000.0
    start = measure_ranges(Bundle(b.card, tensors), pixels)
    net = moved(FakeQuantized(start))
    with torch.no_grad():
        after = logits(net, torch.from_numpy(start.card.preprocess.normalize(pixels)))
    assert torch.equal(after, answers(net.measured().bundle(), pixels))


@pytest.mark.parametrize("high", [0.5, 60.0])
def test_a_range_is_learned_from_both_sides(high: float) -> None:
    """Too narrow, it grows; too wide, it shrinks; and the end at zero stays there."""
    x = torch.rand(4096, generator=torch.Generator().manual_seed(0)) * 6
    r = LearnedRange(0.0, high)
    before = (r(x) - x).square().mean().item()
    optimizer = torch.optim.Adam(r.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        torch.autograd.backward((r(x) - x).square().mean())
        optimizer.step()
    low, learned = r.ends
    assert (r(x) - x).square().mean().item() < before / 2
    assert low == 0
    assert (learned > 1.5 * high) if high < 6 else (learned < high / 1.5)


def test_gradients_pass_a_rounding_except_where_it_clips() -> None:
    x = torch.tensor([-2.0, 0.31, 1.0, 9.0], requires_grad=True)
    r = LearnedRange(-1.0, 2.0)
    torch.autograd.backward(r(x).sum())
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0]


def test_every_weight_bias_and_range_is_learned(make_bundle: Callable[..., Bundle], pixels: Pixels) -> None:
    """But the images' range; and that of the mean over one position, which is rounded already."""
    start = measure_ranges(make_bundle("v1"), pixels, Scheme(calibration="percentile"))
    net = FakeQuantized(start)
    made = logits(net, torch.from_numpy(start.card.preprocess.normalize(pixels)))
    torch.autograd.backward(F.cross_entropy(made, torch.arange(len(pixels)) % 10))
    without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == ["ranges.0.share", f"ranges.{net.range_at['pool']}.share"]
    assert sum(isinstance(m, QatLayer) for m in net.modules()) == len(net.graph.layers)
    assert len(list(net.parameters())) == 2 * len(net.graph.layers) + len(start.card.graph.activations)


# ---- training ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task(make_bundle: Callable[..., Bundle], colours: Path) -> dict[str, Any]:
    """A float network whose channels differ twentyfold, and one scale for each of its layers."""
    made = make_bundle("v1")
    arch = made.card.arch.replace(activation="relu", num_classes=3)  # without a clip, channels can be scaled
    tensors = {k: v[:3] if k.startswith("classifier") else v.copy() for k, v in made.tensors.items()}
    rng = np.random.default_rng(0)
    for op, after in zip(arch.layers, arch.layers[1:], strict=False):
        if (op.kind, after.kind) == ("depthwise", "pointwise"):
            k = np.exp(rng.uniform(0, np.log(20), op.cout)).astype(np.float32)
            tensors[f"{op.name}.norm.weight"] *= k
            tensors[f"{op.name}.norm.bias"] *= k
            tensors[f"{after.name}.conv.weight"] /= k[None, :, None, None]
    d = open_data(str(colours))
    source = Bundle(classifier_card(arch, made.card.preprocess, d.labels), tensors, "digest")
    images = d.sample("train", 48, source.card.preprocess).pixels
    return {"source": source, "start": measure_ranges(source, images, Scheme(per_layer=True)), "recipe": QUICK}


def learned(task: dict[str, Any], colours: Path, folder: Path, **changes: Any) -> Measured:
    return qat.learn(data=open_data(str(colours)), folder=folder, **{**task, **changes})


@pytest.fixture(scope="module")
def trained(task: dict[str, Any], colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return learned(task, colours, tmp_path_factory.mktemp("qat") / "work")


def test_training_brings_int8_nearer_to_float(task: dict[str, Any], trained: Measured, colours: Path) -> None:
    source, made = task["source"], trained.bundle()
    held_out = open_data(str(colours)).sample("val", 24, source.card.preprocess).pixels
    before, after = (divergence(b, source, held_out) for b in (task["start"].bundle(), made))
    assert before > 0.1  # there is something to gain
    assert after < 0.6 * before
    assert (made.card.precision, made.card.parent) == ("int8", "digest")
    assert made.card.recipe["qat"]["epochs"] == QUICK.epochs


def test_what_is_no_nearer_is_not_kept(
    task: dict[str, Any], colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = task["start"]
    ruined = learned(task, colours, tmp_path / "work", recipe=dataclasses.replace(QUICK, epochs=1, lr=0.1))
    assert "what it started from is kept" in " ".join(capsys.readouterr().err.split())
    assert ruined.card.recipe["qat"]["distance_after"] > ruined.card.recipe["qat"]["distance_before"]
    assert ruined.corrected is start.corrected
    assert ruined.ranges is start.ranges


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_bundle(
    task: dict[str, Any], trained: Measured, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, epochs = tmp_path / "work", []

    def begin(learner: Learner) -> None:
        epochs.append(learner.current_epoch)
        if epochs == [0, 1]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "on_train_epoch_start", begin)
    with pytest.raises(Interrupted, match="the same command goes on"):
        learned(task, colours, folder)
    assert (folder / "last.ckpt").exists()
    made = learned(task, colours, folder).bundle()
    assert epochs == [0, 1, *range(1, QUICK.epochs)]
    assert all(np.array_equal(v, made.tensors[k]) for k, v in trained.bundle().tensors.items())


def test_what_was_trained_is_there_until_it_is_saved(
    task: dict[str, Any], colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """What comes after training may fail, as by a limit that isn't met: no epoch is trained again then."""
    begun: list[int] = []
    monkeypatch.setattr(qat, "RECIPE", QUICK)
    monkeypatch.setattr(Learner, "on_train_epoch_start", lambda learner: begun.append(learner.current_epoch))
    folder, seen = tmp_path / "int8.qat", list[Bundle]()

    def trained() -> Any:
        return qat.train_int8(task["source"], task["start"], open_data(str(colours)), 1, (), tmp_path / "int8")

    def too_much(made: Measured) -> None:
        seen.append(made.bundle())
        raise UserError("too much lost")

    with pytest.raises(UserError, match="too much lost"), trained() as made:
        too_much(made)
    assert "what was trained is kept in" in " ".join(capsys.readouterr().err.split())
    assert (folder / "last.ckpt").exists()
    with trained() as made:
        with pytest.raises(UserError, match="is being worked in"), trained():
            pass
        again = made.bundle().tensors
    assert begun == [0]
    assert all(np.array_equal(v, again[k]) for k, v in seen[0].tensors.items())
    assert not folder.exists()


def test_a_training_with_other_arguments_starts_anew(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "work"
    qat._prepare(folder, {"seed": 0})
    (folder / "last.ckpt").write_text("")
    qat._prepare(folder, {"seed": 0})
    assert (folder / "last.ckpt").exists()
    qat._prepare(folder, {"seed": 1})
    assert "starts from the beginning" in " ".join(capsys.readouterr().err.split())
    assert not (folder / "last.ckpt").exists()


def test_a_folder_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "mine.txt").write_text("")
    with pytest.raises(UserError, match="in the way"):
        qat._prepare(folder, {"seed": 0})
    assert (folder / "mine.txt").exists()


def test_a_task_without_a_score_is_refused(task: dict[str, Any], colours: Path, tmp_path: Path, pixels: Pixels) -> None:
    source = features.of_bundle(task["source"])
    with pytest.raises(UserError, match="the task features has no score"):
        learned(task, colours, tmp_path / "work", source=source, start=measure_ranges(source, pixels))
    assert not (tmp_path / "work").exists()


# ---- the verb ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_verb_trains(command: Callable[..., Ran], task: dict[str, Any], colours: Path, tmp_path: Path) -> None:
    line = ["quantize", tmp_path / "float", colours, "--qat", 1]
    task["source"].save(tmp_path / "float")
    got = command(*line, "--out", tmp_path / "int8", "--json").json
    assert got["recipe"]["qat"]["epochs"] == 1
    assert got["recipe"]["qat"]["distance_before"] > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["float", "int8"]


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--qat", "-1"], "epochs must be 1"), (["--qat", 1, "--max-drop", -1], "max-drop must be 0 or more")],
)
def test_what_the_verb_refuses(
    command: Callable[..., Ran], task: dict[str, Any], colours: Path, tmp_path: Path, options: list[Any], said: str
) -> None:
    task["source"].save(tmp_path / "float")
    assert said in command("quantize", tmp_path / "float", colours, "--out", tmp_path / "int8", *options).line
    assert not (tmp_path / "int8").exists()
