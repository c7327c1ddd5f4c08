import itertools

import numpy as np
import pytest
import torch

from mobilenets.arch import zoo
from mobilenets.arch.graph import Head, Output
from mobilenets.arch.heads import classifier_head
from mobilenets.arch.operations import Op
from mobilenets.arch.spec import scale
from mobilenets.compression.calibrate import batches
from mobilenets.compression.equalize import correct, equalize, pairs
from mobilenets.compression.quantize import correct_bundle, quantize_bundle
from mobilenets.compression.scheme import Scheme
from mobilenets.model.bundle import Bundle, with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.encodings import fold, rounded
from mobilenets.model.images import Preprocess
from mobilenets.model.reference import FoldedNetwork, module


def folded_of(bundle):
    return fold(bundle.card, bundle.tensors)


def with_activation(bundle, activation):
    return Bundle(bundle.card.replace(arch=bundle.card.arch.replace(activation=activation)), bundle.tensors)


def uneven(bundle, factor=50.0):
    """The bundle with every depthwise layer's odd channels scaled up, and the next layer's weights for them down."""
    tensors = {k: v.copy() for k, v in bundle.tensors.items()}
    for first, second in pairs(bundle.card.graph):
        if first.kind == "depthwise":
            for k in ("weight", "bias"):
                tensors[f"{first.name}.norm.{k}"][1::2] *= factor
            tensors[f"{second.name}.conv.weight"][:, 1::2] /= factor
    return Bundle(bundle.card, tensors)


def logits(network, bundle, pixels):
    with torch.inference_mode():
        made = [network.run({"input": x}, ["logits"]) for x in batches(bundle.card.preprocess, pixels)]
    return torch.cat([m["logits"] for m in made]).numpy()


def names(arch):
    return [(a.name, b.name) for a, b in pairs(arch.graph)]


# ---- pairs ---------------------------------------------------------------------------------------------------------


def test_every_layer_of_v1_is_in_line():
    arch = scale(zoo.network("v1"), 0.25, 32, 10)
    order = [op.name for op in arch.layers]
    assert names(arch) == list(itertools.pairwise(order))  # over the pooling, too


def test_no_pair_of_v2_spans_a_shortcut():
    arch = scale(zoo.network("v2"), 0.35, 32, 10)
    found = names(arch)
    assert ("blocks.3.expand", "blocks.3.depthwise") in found
    assert ("blocks.3.depthwise", "blocks.3.project") in found
    assert ("blocks.1.project", "blocks.2.expand") in found  # one reads the other, and nothing else does
    assert not [p for p in found if p[0] in ("blocks.2.project", "blocks.3.project")]


def test_no_pair_of_v3_spans_a_hard_swish_or_a_gate():
    arch = scale(zoo.network("v3-small"), 1.0, 32, 10)
    kinds = {op.name: op for op in arch.ops}
    found = names(arch)
    assert found
    assert all(second in kinds and kinds[second].inputs[0] in (first, "pool") for first, second in found)
    assert not [p for p in found if "se_reduce" in p[1]]


def test_no_pair_spans_what_the_network_gives():
    arch = scale(zoo.network("v1"), 0.25, 32, 10)
    whole = classifier_head(arch)
    tapped = Head(whole.ops, (*whole.outputs, Output("map", "blocks.3.depthwise")))
    found = [(a.name, b.name) for a, b in pairs(arch.graph.with_head(tapped))]
    assert {*names(arch)} - {*found} == {("blocks.3.depthwise", "blocks.3.pointwise")}


# ---- equalization --------------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("name", ["v1", "v2"])
def test_an_equalized_network_computes_the_same(make_bundle, pixels, name, activation):
    bundle = with_activation(make_bundle(name), activation)
    card, folded = bundle.card, folded_of(bundle)
    changed = equalize(card, folded, pixels)
    before, after = (logits(FoldedNetwork(card.arch, card.graph, f).eval(), bundle, pixels) for f in (folded, changed))
    assert before.std() > 0.5
    np.testing.assert_allclose(after, before, atol=2e-4)
    moved = [n for n in folded if not np.allclose(folded[n][0], changed[n][0], rtol=0.01)]
    assert len(moved) > len(folded) // 2


def test_channels_of_a_relu_network_span_the_same_on_either_side(make_bundle, pixels):
    bundle = uneven(with_activation(make_bundle("v1"), "relu"))
    card, folded = bundle.card, folded_of(bundle)
    changed = equalize(card, folded, pixels)

    def apart(weights):
        worst = 0.0
        for first, second in pairs(card.graph):
            made = np.abs(weights[first.name][0]).max((1, 2, 3))
            read = weights[second.name][0]
            read = np.abs(read).max((1, 2, 3) if second.groups > 1 else (0, 2, 3))
            worst = max(worst, np.abs(np.log(made / read)).max())
        return worst

    assert apart(changed) < 0.05 < 3 < apart(folded)


def test_a_channel_that_reaches_6_is_left_alone(make_bundle, pixels):
    bundle = make_bundle("v1")
    card, folded = bundle.card, folded_of(bundle)
    first = "blocks.1.depthwise"
    tall = {**folded, first: (folded[first][0], folded[first][1].copy())}
    tall[first][1][:3] += 20
    changed = equalize(card, tall, pixels)
    np.testing.assert_allclose(changed[first][1][:3], tall[first][1][:3], rtol=1e-6)  # its input may be scaled
    assert not np.allclose(changed[first][1][3:], tall[first][1][3:], rtol=0.01)


def test_channels_are_scaled_within_the_groups_that_read_them(pixels):
    """A head whose second layer reads eight channels in four groups, its kernel wider than high."""
    arch = scale(zoo.network("v1"), 0.25, 32, 0)
    last, cin = arch.blocks[0].output, arch.blocks[0].cout
    ops = (
        Op("map.first", "conv", cin, 8, 3, activation="relu", bias=True, inputs=(last,)),
        Op("map.second", "conv", 8, 12, 1, kernel_width=3, grouped=4, bias=True, inputs=("map.first",)),
    )
    card = Card(arch, Preprocess(32), Head(ops, (Output("map", "map.second"),)), task="features")
    bundle = with_random_weights(card)
    tensors = dict(bundle.tensors)
    spread = np.geomspace(0.01, 30, 8, dtype=np.float32)
    tensors["map.first.conv.weight"] = tensors["map.first.conv.weight"] * spread[:, None, None, None]
    tensors["map.first.conv.bias"] = spread
    folded = fold(card, tensors)
    changed = equalize(card, folded, pixels)
    x = torch.from_numpy(card.preprocess.normalize(pixels[:4]))
    before, after = (FoldedNetwork(arch, card.graph, f).eval()(x)["map"] for f in (folded, changed))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    made = np.abs(changed["map.first"][0]).max((1, 2, 3))
    read = np.abs(changed["map.second"][0]).reshape(4, 3, 2, 3).max((1, 3)).ravel()
    np.testing.assert_allclose(made, read, rtol=0.05)


def test_per_layer_survives_uneven_channels_if_equalized(make_bundle, pixels):
    bundle = uneven(with_activation(make_bundle("v2"), "relu"))
    exact = logits(module(bundle), bundle, pixels)

    def error(**scheme):
        made = quantize_bundle(bundle, pixels, Scheme("minmax", bias_correction=False, **scheme))
        return ((logits(module(made), made, pixels) - exact) ** 2).mean()

    assert error(per_layer=True, equalize=True) < error(per_layer=True) / 3


# ---- bias correction -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_corrected_biases_give_each_channel_its_float_mean(make_bundle, pixels, name):
    bundle = make_bundle(name, padding="same")
    card, folded = bundle.card, folded_of(bundle)
    stored = rounded(folded, "int4")
    changed = correct(card, folded, stored, pixels)
    network = FoldedNetwork(card.arch, card.graph, folded).eval()
    x = torch.from_numpy(card.preprocess.normalize(pixels))
    values = network.run({"input": x}, card.graph.shapes)
    for op in card.graph.layers:
        layer = network.of(op)
        weight, bias = folded[op.name]
        np.testing.assert_array_equal(changed[op.name][0], weight)
        means = [
            layer.sums(values[op.inputs[0]], torch.from_numpy(w), torch.from_numpy(b)).double().mean((0, 2, 3)).numpy()
            for w, b in ((weight, bias), (stored[op.name][0], changed[op.name][1]), (stored[op.name][0], bias))
        ]
        assert np.abs(means[2] - means[0]).max() > 1e-4  # without the correction
        np.testing.assert_allclose(means[1], means[0], atol=1e-4)


@pytest.mark.slow
def test_bias_correction_brings_int8_nearer(make_bundle, pixels):
    bundle = uneven(make_bundle("v1"), 4.0)
    exact = logits(module(bundle), bundle, pixels)
    errors = []
    for corrected in (False, True):
        made = quantize_bundle(bundle, pixels, Scheme(per_layer=True, bias_correction=corrected))
        errors.append(((logits(module(made), made, pixels) - exact) ** 2).mean())
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("name", "precision"), [("v1", "int4"), ("v2", "dynamic"), ("v3-small", "int4")])
def test_corrected_biases_in_a_float_bundle(make_bundle, pixels, name, precision):
    bundle = make_bundle(name, mean=(123.0, 116.0, 103.0))
    changed = correct_bundle(bundle, precision, pixels)
    assert changed.card == bundle.card
    halved = correct_bundle(bundle.encoded("half"), precision, pixels)
    assert halved.card.encodings
    assert {k: v.dtype for k, v in halved.tensors.items()} == {
        k: v.dtype for k, v in bundle.encoded("half").tensors.items()
    }
    before, after = folded_of(bundle), folded_of(changed)
    wanted = correct(bundle.card, before, rounded(before, precision), pixels)
    for layer in before:
        np.testing.assert_array_equal(after[layer][0], before[layer][0])
        np.testing.assert_allclose(after[layer][1], wanted[layer][1], atol=1e-5)
    assert max(np.abs(after[layer][1] - before[layer][1]).max() for layer in before) > 1e-3
