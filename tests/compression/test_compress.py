"""Bundles in fewer bytes: what is chosen, what is trained, what is said where it can't be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import smooth_images

from mobilenets import create
from mobilenets.compression import books, budget, coded, norms, shared
from mobilenets.compression.coded import Option
from mobilenets.data.dataset import Data, Split
from mobilenets.deploy import engines
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.codes import constrained, lloyd, nearest
from mobilenets.model.encodings import find, weight_name
from mobilenets.model.images import Pixels
from mobilenets.model.net import of_tensors

RNG = np.random.default_rng(0)
LAYER = "blocks.3.pointwise"


@pytest.fixture(scope="module")
def source(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle("v1")


@pytest.fixture(scope="module")
def data(source: Bundle) -> Data:
    """Images whose right answers are the float network's own: it scores 100%. Those of its test split stay unread."""
    images = [Image.fromarray(p) for p in smooth_images(48, 40, seed=7)]
    split = Split("val", [f"{i}" for i in range(48)], np.zeros(48, np.int64), images.__getitem__)
    pixels = np.stack([split.pixels(i, source.card.preprocess) for i in range(48)])
    engine, _ = engines.build("onnxruntime", source, "float32", 1)
    split.targets = engine(pixels)["probabilities"].argmax(1)
    test = Split("test", ["kept for later"], np.zeros(1, np.int64), lambda _: pytest.fail("a test image was read"))
    return Data("noise", source.card.labels, {"train": split, "val": split, "test": test})


@pytest.fixture(scope="module")
def damage(source: Bundle, pixels: np.ndarray) -> shared.Damage:
    return shared.Damage(coded.canonical(source), pixels)


WAYS = (("int8", 0.0), ("kmeans-4", 0.0), ("kmeans-2", 0.0), ("kmeans-4", 0.25), ("binary", 0.0))


@pytest.fixture(scope="module")
def found(damage: shared.Damage) -> dict[str, list[Option]]:
    return damage.measured(WAYS)


def logits(bundle: Bundle, pixels: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        return bundle.module()(torch.from_numpy(bundle.card.preprocess.normalize(pixels)))


def test_the_canonical_form_answers_alike_and_has_less_to_store(source: Bundle, pixels: np.ndarray) -> None:
    plain = coded.canonical(source)
    torch.testing.assert_close(logits(plain, pixels), logits(source, pixels), rtol=1e-3, atol=1e-3)
    weight = plain.tensors[f"{LAYER}.conv.weight"]
    np.testing.assert_allclose((weight**2).mean((1, 2, 3)), 1, rtol=1e-4)
    for name in ("running_mean", "running_var"):
        assert len(np.unique(plain.tensors[f"{LAYER}.norm.{name}"])) == 1


def test_levels() -> None:
    values = RNG.standard_normal(5000)
    levels = lloyd(values, 8)
    error = ((levels[nearest(values, levels)] - values) ** 2).mean()
    assert error < 0.045  # Lloyd and Max: .0345 for a normal distribution
    values[:2000] = 0
    assert 0 in lloyd(values, 8)
    assert np.array_equal(lloyd(np.zeros(9), 4), np.zeros(4))


def test_a_price_of_bits_takes_bits_for_errors() -> None:
    values = RNG.standard_normal(20_000)
    bits, errors = [], []
    for rate in (0.01, 0.05, 0.2, 0.6):
        codes, levels, _ = constrained(values, 4, rate)
        n = np.bincount(codes)
        n = n[n > 0] / len(codes)
        bits.append(-(n * np.log2(n)).sum())
        errors.append(((levels[codes] - values) ** 2).mean())
    assert bits == sorted(bits, reverse=True)
    assert errors == sorted(errors)
    # About a quarter of a bit beyond the bound of any code (Shannon 1959), which is 2**(-2 bits) of the variance.
    assert all(e < 2 ** (-2 * (b - 0.3)) for b, e in zip(bits, errors, strict=True))


def test_coarse_numbers_are_few_and_near() -> None:
    values = RNG.standard_normal(500).astype(np.float32)
    rough = coded.coarse(values, 8)
    assert np.abs(rough - values).max() <= np.abs(values).max() / 127
    assert len(np.unique(rough)) < 256
    assert np.array_equal(coded.coarse(np.zeros(3, np.float32), 8), np.zeros(3))


def test_damage_is_measured_by_the_answers(damage: shared.Damage, found: dict[str, list[Option]]) -> None:
    assert {*found} == {op.name for op in damage.plain.card.graph.layers}
    for some in found.values():
        by_name = {(o.encoding, o.rate): o for o in some}
        assert by_name["int8", 0.0].damage < by_name["kmeans-2", 0.0].damage
        assert all(o.damage >= 0 and o.bits > 0 for o in some)
    # The layer's damage, asked of the answers themselves, is what was taken from its output's error.
    op = damage.plain.card.graph.op(LAYER)
    option = next(o for o in found[LAYER] if o.encoding == "kmeans-2")
    asked = damage.of(op, find("kmeans-2").decode(option.stored, op.weight_shape), torch.zeros(op.cout))
    assert 0.3 < option.damage / asked < 3


def test_the_choice_meets_the_size_with_the_least_damage(found: dict[str, list[Option]]) -> None:
    most = sum(max(o.bits for o in some) for some in found.values())
    least = sum(min(o.bits for o in some) for some in found.values())
    last = -1.0
    for bits in np.linspace(most, least, 6):
        chosen = coded.choose(found, bits)
        assert sum(o.bits for o in chosen.values()) <= bits * 1.0001
        total = sum(o.damage for o in chosen.values())
        assert total >= last
        last = total
    assert sum(o.bits for o in coded.choose(found, 0).values()) == pytest.approx(least)


def test_codes_that_make_up_for_each_other(damage: shared.Damage) -> None:
    """The output's error is smaller than that of the nearest levels, though the weights' error is larger."""
    weight = damage.plain.tensors[f"{LAYER}.conv.weight"][:, :, 0, 0].astype(np.float64)
    moments = damage.moments[LAYER]
    levels = lloyd(weight, 4)
    near = levels[nearest(weight, levels)] - weight
    made = levels[shared.compensated(weight, moments, levels, np.zeros(4), 0.0)] - weight
    errors = [np.trace(d @ moments @ d.T) for d in (near, made)]
    assert errors[1] < 0.9 * errors[0]
    assert (near**2).sum() < (made**2).sum()


def test_a_size_is_met_and_the_file_is_it(
    damage: shared.Damage, found: dict[str, list[Option]], tmp_path: Path
) -> None:
    made, _ = budget.fitted(damage, found, 100_000)
    assert 92_000 < budget.file_size(made) <= 100_000
    saved = made.save(tmp_path / "small.mnz")
    assert abs((tmp_path / "small.mnz").stat().st_size - budget.file_size(saved)) < 100
    assert Bundle.load(tmp_path / "small.mnz").card.encodings == made.card.encodings
    smaller, _ = budget.fitted(damage, found, 60_000)
    assert budget.file_size(smaller) <= 60_000


def test_of_sizes_that_are_missed_the_nearest_is_kept(damage: shared.Damage, found: dict[str, list[Option]]) -> None:
    """And of those that are met, the largest."""
    least = budget.file_size(budget.fitted(damage, found, 1)[0])
    for size in (1000, 10_000):
        assert budget.file_size(budget.fitted(damage, found, size)[0]) <= 1.01 * least


def test_what_is_trained_of_a_detector_whose_layers_share_weights() -> None:
    """Tables, and the weights that choose among them; of layers that are stored otherwise no weights."""
    source = create("ssd-fpnlite", backbone="v1", alpha=0.25, resolution=320, num_classes=3).bundle()
    plain = coded.canonical(source)
    for encoding, learns in (("kmeans-4", True), ("hashed-8", False)):
        net, parts = books.trainable(plain, coded.assembled(plain, coded.uniform(plain, encoding)), {})
        trained = {name for name, p in net.named_parameters() if p.requires_grad}
        weights = {n for n in trained if n.endswith("parametrizations.weight.original") and ".norm." not in n}
        assert parts
        assert not [n for n in trained if n.endswith("conv.weight")]
        assert bool(weights) == learns


def test_batchnorms_numbers_have_the_bits_that_they_need(source: Bundle, pixels: Pixels) -> None:
    """Fewer where channels are of like sizes, more where one is a thousand times another's."""
    bits = shared.Damage(coded.canonical(source), pixels).norm_bits
    apart = {**source.tensors}
    first, second = "blocks.1.depthwise.norm", "blocks.1.pointwise.conv.weight"
    factors = np.logspace(0, -3, len(apart[f"{first}.weight"]), dtype=np.float32)
    for part in ("weight", "bias"):  # which the next layer makes up for
        apart[f"{first}.{part}"] = apart[f"{first}.{part}"] * factors
    apart[second] = apart[second] / factors[:, None, None]
    wide = Bundle(source.card, apart)
    plain = coded.canonical(wide)
    damage = shared.Damage(plain, pixels)
    assert damage.norm_bits > bits
    x = torch.from_numpy(plain.card.preprocess.normalize(pixels))
    rounded = (norms.fitted(plain, plain, damage.few, n) for n in (damage.norm_bits, bits))
    own, fine, rough = (of_tensors(plain.card, b.tensors).answers(x)["probabilities"] for b in (plain, *rounded))
    assert (fine - own).abs().mean() < (rough - own).abs().mean()


def test_means_are_made_good_for(damage: shared.Damage, pixels: Pixels) -> None:
    """An error in weights that moves a channel's mean is undone by its shift, and answers are nearer by far."""
    plain = damage.plain
    rng, out = np.random.default_rng(1), dict(plain.tensors)
    for op in plain.card.graph.layers:
        weight = out[weight_name(op)]
        out[weight_name(op)] = (weight + 0.1 * rng.standard_normal(weight.shape)).astype(np.float32)
    moved = Bundle(plain.card, out, plain.digest)
    own, far, near = (logits(b, pixels) for b in (plain, moved, damage.fitted(moved, plain)))
    assert (near - own).square().mean() < 0.5 * (far - own).square().mean()


def kl(bundle: Bundle, other: Bundle, pixels: Pixels) -> float:
    """How far the second one's probabilities are from the first one's, in nats."""
    true, ours = (logits(b, pixels).log_softmax(1) for b in (bundle, other))
    return float(torch.nn.functional.kl_div(ours, true, reduction="batchmean", log_target=True))


def test_books_codes_and_norms_learn(damage: shared.Damage, source: Bundle, data: Data, tmp_path: Path) -> None:
    made = damage.assembled(coded.uniform(damage.plain, "kmeans-2"))
    recipe = dataclasses.replace(books.recipe(12), batch=12, lr=3e-3, workers=0)  # few steps, long ones
    tuned = books.tuned(source, made, damage, data, tmp_path, recipe)
    assert tuned.card.encodings == made.card.encodings
    key = weight_name(made.card.graph.op(LAYER))
    for name in (key, f"{key}_book"):
        assert not np.array_equal(tuned.tensors[name], made.tensors[name])
    held = data.sample("val", 48, source.card.preprocess).pixels
    assert kl(source, tuned, held) < 0.9 * kl(source, made, held)
    assert len(np.unique(tuned.tensors[f"{LAYER}.norm.running_var"])) == 1


def test_a_teacher_that_says_otherwise_is_learned_from(
    source: Bundle, make_bundle: Callable[..., Bundle], data: Data, pixels: np.ndarray, tmp_path: Path
) -> None:
    """Of two trainings alike, the one by the teacher's answers comes nearer to them."""
    teacher = make_bundle("v2")
    damage = shared.Damage(coded.canonical(source), pixels)
    made = damage.assembled(coded.uniform(damage.plain, "kmeans-4"))
    recipe = dataclasses.replace(books.recipe(6), batch=12, lr=3e-3, workers=0)
    own, taught = (
        books.tuned(source, made, damage, data, tmp_path / name, recipe, teacher=by)
        for name, by in (("own", None), ("taught", teacher))
    )
    assert kl(teacher, taught, pixels) < 0.9 * kl(teacher, own, pixels)


def test_a_teacher_of_something_else_is_refused(source: Bundle, make_bundle: Callable[..., Bundle]) -> None:
    budget.check_teacher(source, make_bundle("v2"))
    labels = [f"other {n}" for n in source.card.labels]
    stranger = Bundle(source.card.replace(config={"labels": labels}), source.tensors)
    with pytest.raises(UserError, match="same task and classes"):
        budget.check_teacher(source, stranger)
    with pytest.raises(UserError, match="take the float bundle"):
        budget.check_teacher(source, Bundle(source.card.replace(precision="int8"), source.tensors))


def test_codes_that_became_larger_become_smaller_again(damage: shared.Damage) -> None:
    """By a dearer bit, where they don't fit."""
    made = damage.assembled(coded.uniform(damage.plain, "kmeans-4"))
    net, parts = books.trainable(damage.plain, made, {})
    learned, weights = books.taken(net, parts)
    tables = {n: b.table for n, b in parts.items()}
    sizes = []
    for dearer in (0.0, 0.02, 0.08):
        codes = {n: b.nearest(weights[n], dearer).numpy() for n, b in parts.items() if isinstance(b, books.Levels)}
        sizes.append(budget.file_size(books.settled(made, learned, tables, codes, damage)))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.99 * sizes[0]


@pytest.mark.parametrize("encoding", ["product-2-16", "hashed-8", "kmeans-3"])
def test_a_table_gives_the_weights_it_was_read_from(source: Bundle, encoding: str) -> None:
    plain = coded.canonical(source)
    made = coded.assembled(plain, coded.uniform(plain, encoding))
    net, parts = books.trainable(plain, made, {})
    assert parts
    dense = made.dense().tensors
    for name in parts:
        op = made.card.graph.op(name)
        weight = norms.holder(net, op).weight.detach().numpy()
        assert np.array_equal(weight, dense[weight_name(op)])


@pytest.mark.slow
def test_what_cannot_be_met_says_the_nearest(source: Bundle, data: Data, pixels: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"^1 kB can't be met: the nearest is .* kB with top-1 .*%, .* points below"):
        budget.compressed(source, data, pixels, budget.Plan(1000))
    with pytest.raises(UserError, match=r"^max-drop 0 can't be met: the nearest is .* kB with top-1"):
        budget.compressed(source, data, pixels, budget.Plan(None, "binary", 0.0, 0))


def test_one_way_for_all(source: Bundle, data: Data, pixels: np.ndarray) -> None:
    made = budget.compressed(source, data, pixels, budget.Plan(None, "kmeans-8", None, 0))
    assert set(made.card.encodings.values()) == {"kmeans-8"}
    (metric,) = made.card.metrics
    assert (metric.split, metric.count) == ("val", 48)
    assert metric.value >= 50  # random weights amplify what is rounded
    assert made.card.parent == source.digest
    assert made.card.recipe["compress"]["encodings"] == {"kmeans-8": len(made.card.graph.layers)}
