"""BatchNorm statistics of networks that came without: measured before they are trained, their outputs unchanged."""

import dataclasses

import numpy as np
import pytest
import torch

from mobilenets.data.dataset import Split
from mobilenets.model.bundle import Bundle
from mobilenets.model.encodings import fold
from mobilenets.model.module import MobileNet
from mobilenets.model.reference import float_model
from mobilenets.training import statistics


@pytest.fixture(scope="module")
def folded(make_bundle):
    """`folded("v1")`: a trained network whose BatchNorm is in its weights, but for a mean of 0 and a variance of 1."""

    def make(name):
        bundle = make_bundle(name)
        tensors = {k: v.copy() for k, v in bundle.tensors.items()}
        weights = fold(bundle.card, bundle.tensors)
        for op in bundle.card.arch.layers:
            if op.norm:
                weight, bias = weights[op.name]
                tensors[f"{op.name}.conv.weight"] = weight
                tensors[f"{op.name}.norm.weight"] = np.ones_like(bias)
                tensors[f"{op.name}.norm.bias"] = bias
                tensors[f"{op.name}.norm.running_mean"] = np.zeros_like(bias)
                tensors[f"{op.name}.norm.running_var"] = np.ones_like(bias) - np.float32(bundle.card.arch.bn_eps)
        return Bundle(bundle.card, tensors)

    return make


@pytest.fixture
def split(pixels):
    from PIL import Image

    names = [f"{i}.png" for i in range(len(pixels))]
    return Split("train", names, np.zeros(len(pixels), np.int64), lambda i: Image.fromarray(pixels[i]))


def logits(net, bundle, pixels, training=False):
    with torch.no_grad():
        out = net.train(training)(torch.from_numpy(bundle.card.preprocess.normalize(pixels)))
    net.eval()
    return out


def settle(net, bundle, split):
    preprocess = dataclasses.replace(bundle.card.preprocess, crop=1.0)  # as the pixels are, which have its size
    return statistics.settle(net, bundle.card.head.own, split, preprocess, 0)


@pytest.mark.parametrize("name", ["v1", "v2", "v3-small"])
def test_a_folded_network_computes_what_it_did_and_trains_as_itself(folded, split, pixels, name):
    bundle = folded(name)
    net = float_model(bundle)
    before = logits(net, bundle, pixels)
    lost = (logits(float_model(bundle), bundle, pixels, training=True) - before).abs().mean()
    assert settle(net, bundle, split) == len(pixels)
    after = logits(net, bundle, pixels)
    assert (after - before).abs().max() < 1e-4 * before.abs().max()
    first, reads = next(net.blocks[0].children()), []
    handle = first.norm.register_forward_pre_hook(lambda _, x: reads.append(x[0]))
    logits(net, bundle, pixels)
    handle.remove()
    torch.testing.assert_close(first.norm.running_mean, reads[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.norm.running_var, reads[0].var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)
    kept = (logits(net, bundle, pixels, training=True) - before).abs().mean()
    assert kept < lost / 10  # a batch's own statistics are near those measured


def test_statistics_that_fit_are_left_alone(make_bundle, split):
    bundle = make_bundle("v2")
    net = float_model(bundle)
    assert settle(net, bundle, split) == 0
    for name, tensor in net.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), bundle.tensors[name])


def test_statistics_of_another_network_are_noticed(make_bundle, split, pixels):
    bundle = make_bundle("v1")
    tensors = {k: v + np.float32(5) if k.endswith("running_mean") else v for k, v in bundle.tensors.items()}
    tensors |= {k: 0.01 * v for k, v in bundle.tensors.items() if k.endswith("running_var")}
    bundle = Bundle(bundle.card, tensors)
    net = float_model(bundle)
    before = logits(net, bundle, pixels)
    assert settle(net, bundle, split) == len(pixels)
    assert (logits(net, bundle, pixels) - before).abs().max() < 1e-4 * before.abs().max()


def test_channels_without_variance_stay_finite(folded, split, pixels):
    bundle = folded("v1")
    name = next(k for k in bundle.tensors if k.endswith("depthwise.conv.weight"))
    bundle.tensors[name][:4] = 0  # what such a channel gives is its bias
    net = float_model(bundle)
    before = logits(net, bundle, pixels)
    assert settle(net, bundle, split)
    assert (logits(net, bundle, pixels) - before).abs().max() < 1e-4 * before.abs().max()
    net.train()(torch.from_numpy(bundle.card.preprocess.normalize(pixels))).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    assert all(torch.isfinite(t).all() for t in net.state_dict().values())


@pytest.mark.slow
def test_training_measures_them_once_and_says_so(folded, make_bundle, tiny_train, tmp_path):
    folded("v1").save(tmp_path / "folded")
    make_bundle("v1").save(tmp_path / "trained")
    said = {}
    for name in ("folded", "trained"):
        run = tiny_train(tmp_path / name / "run", "--init", tmp_path / name, "--epochs", 1)
        assert run.ran.code == 0, run.ran.err
        said[name] = " ".join(run.ran.err.split())
    assert "the BatchNorm statistics of --init don't fit what it computes" in said["folded"]
    assert "measured anew on 72 training images" in said["folded"]
    assert "statistics" not in said["trained"]


def test_a_network_that_nobody_trained_is_left_alone(make_bundle, split):
    """What it computes in eval mode shrinks from layer to layer: kept, it would answer the same for every image."""
    bundle = make_bundle("v1")
    net = MobileNet(bundle.card.arch, bundle.card.head)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert settle(net, bundle, split) == 0
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
