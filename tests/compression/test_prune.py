"""Pruning: channels that go together, the choice of them, zeros that stay, and the verb."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small import Ran, Run, quantized

import mobilenets
from mobilenets.arch import zoo
from mobilenets.arch.heads import classifier_head
from mobilenets.arch.narrow import narrowed
from mobilenets.compression import goals, prune
from mobilenets.compression.channels import MEASURES, Coupled, ranked
from mobilenets.compression.goals import Latency, Macs, Params, macs_m, params_m
from mobilenets.compression.narrowing import Scheme, narrow
from mobilenets.compression.qat import FakeQuantized
from mobilenets.compression.quantize import measure_ranges
from mobilenets.compression.scheme import DEFAULT
from mobilenets.compression.sparsify import Anywhere, NofM, progress, share_of_zeros, sparsified, thinned
from mobilenets.data.dataset import Data
from mobilenets.deploy.latency import Setting
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import classifier_card
from mobilenets.model.encodings import weight_name
from mobilenets.model.images import Pixels, Preprocess
from mobilenets.model.module import MobileNet, build
from mobilenets.model.net import of_tensors
from mobilenets.training.callbacks import read_checkpoint
from mobilenets.training.run import CHECKPOINTS
from mobilenets.training.zeros import keep_zeros

torch.set_num_threads(1)
FEW = mobilenets.Overrides(epochs=1, workers=0, batch=24)


def network(name: str, alpha: float = 0.25, side: int = 32) -> MobileNet:
    torch.manual_seed(0)
    arch = zoo.arch(name, alpha, side, 4)
    return build(arch, classifier_head(arch)).eval()


def losses(net: MobileNet, batches: int = 1):  # type: ignore[no-untyped-def]
    torch.manual_seed(1)
    for _ in range(batches):
        x = torch.randn(4, *net.graph.source_shape)
        yield torch.nn.functional.cross_entropy(net(x), torch.arange(4))


@pytest.mark.parametrize("name", ["v1", "v2", "v3-small", "v4-conv-small"])
def test_a_network_without_channels_is_that_of_its_rows(name: str) -> None:
    """What torch-pruning leaves computes, value for value, what the narrowed arch does with its tensors."""
    net = network(name)
    arch = net.arch
    coupled = Coupled(net)
    worth = coupled.worth("magnitude", ())
    widths = {n: own.count if own.count <= 8 else own.count // 2 for n, own in coupled.found.items() if not own.follows}
    less = narrowed(
        arch.replace(divisor=1, min_depth=1), {layer: w for n, w in widths.items() for layer in coupled.found[n].layers}
    )
    coupled.keep({n: ranked(worth[n], less.graph.op(n).cout) for n in coupled.found})
    same = build(less, classifier_head(less)).eval()
    same.load_state_dict(net.state_dict())
    x = torch.randn(2, *net.graph.source_shape)
    assert torch.equal(same(x), net(x))
    assert sum(p.numel() for p in same.parameters()) < 0.75 * sum(p.numel() for p in network(name).parameters())


def test_taylor_finds_the_channels_that_nothing_reads() -> None:
    net = network("v1")
    coupled = Coupled(net)
    name = "blocks.3.pointwise"
    reader = net.get_submodule("blocks.4.pointwise.conv")
    with torch.no_grad():
        reader.weight[:, 5:9] = 0
        net.get_submodule(f"{name}.conv").weight[5:9] *= 100  # large, and no use
    worth = coupled.worth("taylor", losses(net))
    assert set(ranked(-worth[name], 4).tolist()) == {5, 6, 7, 8}
    by_size = coupled.worth("magnitude", ())[name]
    assert set(ranked(by_size, 4).tolist()) == {5, 6, 7, 8}


def bundle_of(net: MobileNet) -> Bundle:
    card = classifier_card(net.arch, Preprocess(net.arch.resolution), [f"class {i}" for i in range(4)])
    return Bundle(card, {k: v.numpy() for k, v in net.state_dict().items()})


@pytest.mark.parametrize("how", [*MEASURES])
def test_the_fewest_channels_go_that_meet_the_goal(how: str) -> None:
    net = network("v2", 0.5)
    source, coupled = bundle_of(net), Coupled(net)
    worth = coupled.worth(how, losses(net))  # type: ignore[arg-type]
    whole = macs_m(source.card)
    least = dict.fromkeys(coupled.found, 8)
    made = narrow(source, coupled, worth, Scheme(how, 8, least), Macs(0.6 * whole), 0.6 * whole)  # type: ignore[arg-type]
    assert 0.5 * whole < macs_m(made.card) <= 0.6 * whole
    assert all(op.cout % 8 == 0 for op in made.card.arch.layers if op.kind == "pointwise")
    assert [op.name for op in made.card.graph.ops] == [op.name for op in source.card.graph.ops]
    x = torch.randn(2, *net.graph.source_shape)
    assert torch.allclose(of_tensors(made.card, made.tensors)(x), net(x))


def test_for_parameters_go_the_channels_that_have_most() -> None:
    """Those of the small maps at the end: more of the macs stay than of the parameters."""
    net = network("v2", 0.5)
    source, coupled = bundle_of(net), Coupled(net)
    worth = coupled.worth("taylor", losses(net))
    whole = params_m(source.card)
    scheme = Scheme("taylor", 8, dict.fromkeys(coupled.found, 8))
    made = narrow(source, coupled, worth, scheme, Params(0.6 * whole), 0.6 * whole)
    assert 0.5 * whole < params_m(made.card) <= 0.6 * whole
    assert macs_m(made.card) > 0.7 * macs_m(source.card)


class Slow:
    """A goal that isn't linear in macs: the time of the first map alone."""

    called, unit, limit = "latency", "ms", 1.0

    def of(self, card):  # type: ignore[no-untyped-def]
        return card.graph.op("blocks.0.conv").cout

    price = of


def test_a_goal_that_nothing_meets_says_the_nearest() -> None:
    net = network("v1", 0.5)
    source, coupled = bundle_of(net), Coupled(net)
    worth = coupled.worth("magnitude", ())
    with pytest.raises(goals.Unmet, match=r"no width meets a latency of 1 ms: a tenth of each layer has 8 ms") as e:
        narrow(source, coupled, worth, Scheme("magnitude", 8, dict.fromkeys(coupled.found, 8)), Slow(), 1.0)
    assert e.value.nearest.card.graph.op("blocks.0.conv").cout == 8


def test_what_was_asked_for_is_the_same_whatever_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one that was stopped goes on: the time of the whole network is another in every process."""
    monkeypatch.setattr(goals, "time_calls", lambda *_: [1e-3])
    goal = Latency(bundle_of(network("v1")).card, Setting("onnxruntime", "float32", 1), share=0.5)
    before, goal.whole_ms = goal.asked, 7.0
    assert goal.limit == 3.5
    assert goal.asked == before
    assert goal.asked != Latency(goal_card := bundle_of(network("v1")).card, Setting("native", "float32", 1), 3.5).asked
    assert Macs(goals.macs_m(goal_card)).asked == {"macs_m": round(goals.macs_m(goal_card), 6)}


def test_latency_is_measured_beside_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goals, "ROUND_SECONDS", 0.002)
    monkeypatch.setattr(goals, "WARM_UP_SECONDS", 0.001)
    wide, narrow_ = bundle_of(network("v1", 1.0, 96)).card, bundle_of(network("v1", 0.25, 96)).card
    goal = Latency(wide, Setting("onnxruntime", "float32", 1), share=0.5)
    assert goal.of(narrow_) < goal.limit < goal.of(wide)
    times = {goal.whole: [0.004, 0.02]}
    monkeypatch.setattr(goals, "time_calls", lambda engine, *_: times.get(engine, [0.03, 0.001]))
    goal.whole_ms = 100.0
    assert goal.of(narrow_) == pytest.approx(1.0)  # whatever else ran beside the other calls
    assert goal.limit == pytest.approx(2.0)


def test_zeros_anywhere() -> None:
    source = bundle_of(network("v2"))
    made = sparsified(source, Anywhere(0.7), 1.0)
    assert share_of_zeros(made) == pytest.approx(0.7, abs=0.001)
    for op in source.card.graph.layers:
        before, after = source.tensors[name := weight_name(op)], made.tensors[name]
        if thinned(op):
            assert after.any(), "no layer goes as a whole"
            assert np.abs(before[after == 0]).max(initial=0) <= np.abs(before[after != 0]).min()
        else:
            assert after is before
    assert share_of_zeros(sparsified(source, Anywhere(0.7), progress(1, 3))) == pytest.approx(0.7 * 19 / 27, abs=0.001)
    assert share_of_zeros(sparsified(source, Anywhere(0.7), 0.0)) == 0


def test_n_of_m_by_hand() -> None:
    weight = np.array([[1, -4, 2, 3, 9], [5, 0.5, -6, 0, 0.1]], np.float32)[:, :, None, None]
    (made,) = NofM(2, 4).zeroed({"a": weight}, 1.0).values()
    assert made[:, :, 0, 0].tolist() == [[0, -4, 0, 3, 9], [5, 0, -6, 0, np.float32(0.1)]]
    half_way = NofM(1, 4).zeroed({"a": weight}, 0.5)["a"]
    assert (half_way[:, :4] != 0).sum(1).max() == 3
    assert NofM.parse("2:4") == NofM(2, 4)
    for wrong in ("4:2", "2", "0:4", "a:b"):
        with pytest.raises(UserError, match="2:4"):
            NofM.parse(wrong)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
def test_zeros_stay_whatever_the_optimizer(optimizer: str) -> None:
    from mobilenets.training.optim import OPTIMIZERS

    weight = torch.nn.Parameter(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    keep_zeros([weight])
    made = OPTIMIZERS[optimizer]([weight], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        made.zero_grad()
        (weight * torch.tensor([[3.0, 1.0], [1.0, 2.0]])).sum().backward()
        made.step()
    assert (weight == 0).tolist() == [[True, False], [False, True]]
    assert weight[0, 1] != 1


# ---- the verb -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thinned_bundle(learned: Run, colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruned") / "thin"
    mobilenets.prune(learned.out, colours, out=out, sparsity="2:4", steps=2, final_epochs=1, overrides=FEW)
    return out


def test_half_the_macs(learned: Run, colours: Path, tmp_path: Path, command: Callable[..., Ran]) -> None:
    out = tmp_path / "half"
    line = ("prune", learned.out, colours, "--out", out, "--target-macs", "50%", "--steps", 2, "--epochs", 1)
    ran = command(*line, "--final-epochs", 1, "--workers", 0, "--batch", 24, "--images", 48, "--json")
    before, first, last = ran.json["steps"]
    assert last["macs_m"] <= 0.5 * before["macs_m"] < first["macs_m"] <= 0.71 * before["macs_m"]
    assert last["score"] >= 90
    made, source = Bundle.load(out), Bundle.load(learned.out / "float")
    assert made.card.parent == source.digest
    assert made.card.recipe["pruned"]["channels"]["importance"] == "taylor"
    assert not (tmp_path / "half.prune").exists()
    assert command("export", out, "--to", "onnx", "--out", tmp_path / "half.onnx").code == 0


@pytest.mark.parametrize("classes", [("blue", "green", "red"), ("green", "red")])
def test_zeros_stay_in_training(
    classes: tuple[str, ...], thinned_bundle: Path, tmp_path: Path, tiny_train: Callable[..., Run],
    write_colours: Callable[..., Path],
) -> None:  # fmt: skip
    """For the same classes, and for others, where training begins with a head that is fitted to them."""
    counts = {f"{split}/{c}": n for split, n in (("train", 12), ("val", 4)) for c in classes}
    data = write_colours(tmp_path / "data", counts)
    made = Bundle.load(thinned_bundle)
    assert made.card.recipe["pruned"] == {"zeros": {"sparsity": "2:4"}}
    assert share_of_zeros(made) == pytest.approx(0.5, abs=0.01)
    run = tiny_train(tmp_path / "on", "--init", thinned_bundle, "--epochs", 1, "--lr", 0.01, data=data)
    assert run.ran.code == 0, run.ran.err
    on = Bundle.load(run.out / "float")
    assert on.card.recipe["pruned"] == made.card.recipe["pruned"]
    state = read_checkpoint(run.out / CHECKPOINTS / "best.ckpt")["state_dict"]
    body = [name for op in made.card.graph.layers if thinned(op) and (name := weight_name(op)) != "classifier.weight"]
    for name in body:
        trained = state[f"model.{name}"].numpy()
        assert np.array_equal(trained == 0, made.tensors[name] == 0)
        assert np.array_equal(on.tensors[name] == 0, made.tensors[name] == 0)
    assert not np.array_equal(trained, made.tensors[name])  # the last of them is no frozen one


def test_zeros_stay_in_int8_and_its_training(thinned_bundle: Path, pixels: Pixels) -> None:
    made = Bundle.load(thinned_bundle)
    measured = measure_ranges(made, pixels[:8], DEFAULT)
    int8, net = measured.bundle(), FakeQuantized(measured)
    said = net.run({"input": torch.from_numpy(made.card.preprocess.normalize(pixels[:4]))}, ["logits"])["logits"]
    said.square().sum().backward()
    for op in made.card.graph.layers:
        if thinned(op):
            zero = made.tensors[weight_name(op)].reshape(op.weight_shape) == 0
            assert not int8.tensors[f"{op.name}.weight"][zero].any()
            gradient = net.of(op).weight.grad.numpy()
            assert not gradient[zero].any()
            assert gradient.any()


def test_it_goes_on_where_it_was_stopped(
    learned: Run, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call() -> Bundle:
        return mobilenets.prune(
            learned.out, colours, out=tmp_path / "cut", unstructured="60%", steps=2, final_epochs=1, overrides=FEW
        )

    cut = prune.Thinning.cut
    steps: list[int] = []

    def full_disk(self: prune.Thinning, bundle: Bundle, data: Data, number: int, of: int) -> Bundle:
        steps.append(number)
        if steps == [1, 2]:
            raise UserError("the disk is full")
        return cut(self, bundle, data, number, of)

    monkeypatch.setattr(prune.Thinning, "cut", full_disk)
    with pytest.raises(UserError, match="full"):
        call()
    assert not (tmp_path / "cut").exists()
    before = Bundle.load(tmp_path / "cut.prune" / "step-1" / "float")
    made = call()
    assert steps == [1, 2, 2]
    assert made.steps[1].score == before.card.metrics[0].value  # type: ignore[attr-defined]
    assert share_of_zeros(made) == pytest.approx(0.6, abs=0.001)
    assert not (tmp_path / "cut.prune").exists()


def test_a_budget_that_nothing_meets(learned: Run, colours: Path, tmp_path: Path, command: Callable[..., Ran]) -> None:
    line = command(
        "prune", learned.out, colours, "--out", tmp_path / "no", "--target-macs", "0.1%", "--importance", "magnitude"
    ).line
    assert "no width meets a macs of" in line
    assert "top-1 on val" in line
    assert not (tmp_path / "no").exists()


def test_wrong_calls(
    learned: Run,
    colours: Path,
    tmp_path: Path,
    command: Callable[..., Ran],
    make_bundle: Callable[..., Bundle],
    pixels: Pixels,
) -> None:
    def line(*more: object, bundle: Path = learned.out) -> str:
        return command("prune", bundle, colours, "--out", tmp_path / "no", *more).line

    assert "say one of --target-macs" in line()
    assert "not --target-macs and --sparsity" in line("--target-macs", "50%", "--sparsity", "2:4")
    assert "--target-macs takes a share" in line("--target-macs", "150%")
    assert "--unstructured takes a share" in line("--unstructured", "x")
    assert "steps must be at least 1" in line("--target-macs", "50%", "--steps", 0)
    assert "did you mean 'onnxruntime'" in line("--target-latency", "50%", "--engine", "onnxruntim")
    quantized(make_bundle("v1"), pixels).save(tmp_path / "int8")
    assert "is int8: prune the float bundle" in line("--target-macs", "50%", bundle=tmp_path / "int8")
    assert not (tmp_path / "no").exists()
    assert not (tmp_path / "no.prune").exists()


def test_detectors() -> None:
    """One stage: the body's channels go, and the heads read what is left. Two stages: one clear line."""
    source = mobilenets.create("ssdlite", backbone="v2", alpha=0.35, resolution=96, num_classes=3).bundle()  # type: ignore[call-overload]
    coupled = Coupled(of_tensors(source.card, source.tensors))
    whole = macs_m(source.card)
    scheme = Scheme("magnitude", 8, dict.fromkeys(coupled.found, 8))
    made = narrow(source, coupled, coupled.worth("magnitude", ()), scheme, Macs(0.8 * whole), 0.8 * whole)
    x = torch.randn(1, 3, 96, 96)
    before, after = coupled.net.answers(x), of_tensors(made.card, made.tensors).answers(x)
    assert all(torch.equal(after[name], y) for name, y in before.items())
    two = mobilenets.create("faster-rcnn-fpn", backbone="v1", alpha=0.25, resolution=64, num_classes=3)  # type: ignore[call-overload]
    with pytest.raises(UserError, match="two-stage"):
        Coupled(two)
