"""Networks whose classifier somebody replaced: one linear layer after the pooling, whatever it is called."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from foreign_files import write_archive, write_h5, write_keras3
from test_weights import NORM, keras_v1, keras_v2, keras_v3, named_arrays, randomised, worst
from torch import nn
from torchvision import models

from mobilenets.model.bundle import Bundle
from mobilenets.model.reference import float_model

timm = pytest.importorskip("timm")
pytest.importorskip("h5py")


def v2(classifier=None):
    net = models.mobilenet_v2(width_mult=0.35)
    net.classifier = classifier or net.classifier
    return net


def v3(classifier):
    net = models.mobilenet_v3_small()
    net.classifier = classifier
    return net


class Wrapped(nn.Module):
    """A body, and a layer of one's own."""

    def __init__(self, body, features, pooled=True):
        super().__init__()
        self.backbone, self.fc = body, nn.Linear(features, 4)
        self.pooled = pooled

    def forward(self, x):
        x = self.backbone(x)
        return self.fc(x if self.pooled else x.mean((2, 3)))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (lambda: v2(nn.Linear(1280, 4)), 0),
        (lambda: v2(nn.Sequential(nn.Dropout(), nn.Flatten(), nn.Linear(1280, 4, bias=False))), 0),
        (lambda: v3(nn.Linear(576, 4)), 0),
        (lambda: Wrapped(timm.create_model("mobilenetv3_small_050", num_classes=0), 1024), 1),
        (lambda: Wrapped(v2().features, 1280, pooled=False), 0),
        (lambda: nn.Sequential(v2().features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 4)), 0),
    ],
    ids=["a layer", "in a list", "v3 without its head", "timm's body", "torchvision's features", "a list of modules"],
)
def test_pytorch(imported, tmp_path, make, rows):
    net = randomised(make())
    torch.save(net.state_dict(), tmp_path / "w.pt")
    bundle = imported(tmp_path / "w.pt")
    assert (bundle.card.arch.num_classes, len(bundle.card.arch.head)) == (4, rows)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert worst(net(x), float_model(bundle)(x)) < 1e-5


@pytest.mark.slow
def test_averaged_weights_with_ones_own_classifier(imported, tmp_path):
    net = randomised(v2(nn.Linear(1280, 4)))
    averaged = torch.optim.swa_utils.AveragedModel(net).state_dict()  # with the count of what it averaged
    torch.save({"state_dict": v2().state_dict(), "state_dict_ema": averaged}, tmp_path / "w.pt")
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert worst(net(x), float_model(imported(tmp_path / "w.pt"))(x)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "features"),
    [
        (lambda: v2(nn.Sequential(nn.Linear(1280, 64), nn.ReLU(), nn.Linear(64, 4))), 1280),
        (lambda: v3(nn.Sequential(nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 4))), 576),
        (lambda: v3(nn.Sequential(nn.Linear(576, 1024), nn.ReLU(), nn.Linear(1024, 4))), 576),  # not the hard-swish
        (lambda: nn.ModuleDict({"body": v2().features, "fc": nn.Linear(1280, 64), "out": nn.Linear(64, 4)}), 1280),
    ],
)
def test_more_than_one_layer_is_left_out_when_told(command, imported, tmp_path, make, features):
    net = make().eval()
    torch.save(net.state_dict(), tmp_path / "w.pt")
    line = command("import", tmp_path / "w.pt", "--out", tmp_path / "b").line
    assert f"more than a linear layer of its {features} features follows (" in line
    assert line.endswith("import its body with --body-only, and fine-tune that (fit --init)")
    bundle = imported(tmp_path / "w.pt", "--body-only")
    assert (bundle.card.task, bundle.card.arch.num_classes, bundle.card.arch.features) == ("features", 0, features)
    body = net["body"] if isinstance(net, nn.ModuleDict) else net.features
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert worst(body(x).mean((2, 3)), float_model(bundle).pooled(x)) < 1e-5


@pytest.mark.slow
def test_a_body_alone_is_fine_tuned(imported, tiny_train, tmp_path):
    torch.save(v2(nn.Sequential(nn.Linear(1280, 64), nn.Linear(64, 4))).state_dict(), tmp_path / "w.pt")
    imported(tmp_path / "w.pt", "--body-only", "--resolution", 32)
    run = tiny_train(tmp_path / "run", "--init", tmp_path / "bundle", "--epochs", 1)
    assert run.ran.code == 0, run.ran.err
    assert Bundle.load(tmp_path / "run" / "float").card.labels == ("blue", "green", "red")


def test_other_matrices_are_no_classifier(command, tmp_path):
    net = v2(nn.Linear(1000, 4))
    torch.save(net.state_dict(), tmp_path / "w.pt")
    line = command("import", tmp_path / "w.pt", "--out", tmp_path / "b").line
    assert "(classifier.bias 4, classifier.weight 4x1000)" in line


# ---- Keras ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras(make_bundle):
    """`keras("v2")`: a network as Keras computes it, 10 classes."""

    def make(name):
        bundle = make_bundle(name, "same")
        return dataclasses.replace(bundle, card=bundle.card.replace(arch=bundle.card.arch.replace(bn_eps=1e-3)))

    return make


NAMES = {"v1": (keras_v1, "conv_preds"), "v2": (keras_v2, "predictions"), "v3-small": (keras_v3, "logits")}


def with_dense(source, without=()):
    """The arrays of a Keras network with a Dense layer in the place of its classifier."""
    names, classifier = NAMES[source.card.arch.name]
    arrays = named_arrays(source, names, "kernel", "bias", NORM)
    kernel = arrays[f"{classifier}/kernel"].reshape(-1, 10)
    body = {k: a for k, a in arrays.items() if k.split("/")[0] not in (classifier, *without)}
    return body, {"dense_7/kernel": kernel, "dense_7/bias": arrays[f"{classifier}/bias"]}


def assert_same(bundle, source):
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert worst(float_model(source)(x), float_model(bundle)(x)) < 1e-5


def nested(path, body, dense):
    """Sequential([base, pooling, Dense]): the base's layers are all in one group."""
    import h5py

    with h5py.File(path, "w") as f:
        top = f.create_group("model_weights")
        top.attrs["layer_names"] = [b"base", b"dropout", b"dense_7"]
        for group, arrays in (("base", body), ("dropout", {}), ("dense_7", dense)):
            g = top.create_group(group)
            g.attrs["weight_names"] = [f"{n}:0".encode() for n in arrays]
            for n, a in arrays.items():
                g[f"{n}:0"] = a
    return path


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["v1", "v2"])
def test_keras(imported, keras, tmp_path, name):
    source = keras(name)
    body, dense = with_dense(source)
    assert_same(imported(write_h5(tmp_path / "flat.h5", {**body, **dense}, "model_weights")), source)
    assert_same(imported(nested(tmp_path / "nested.h5", body, dense)), source)


def test_keras_v3_pools_before_its_head(imported, keras, tmp_path):
    source = keras("v3-small")
    body, _ = with_dense(source, without=("conv_2",))
    kernel = np.random.default_rng(0).normal(0, 0.1, (source.card.arch.rows[-1].channels, 10)).astype(np.float32)
    bundle = imported(write_h5(tmp_path / "w.h5", {**body, "dense/kernel": kernel, "dense/bias": np.zeros(10, "f4")}))
    assert bundle.card.arch.head == ()
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        net = float_model(source)
        for block in net.blocks:
            x = block(x)
        want = x.mean((2, 3)) @ torch.from_numpy(kernel)
        got = float_model(bundle).classifier(x.mean((2, 3)))
    assert worst(want, got) < 1e-5


def layers(*between, classifier="Dense"):
    """The description of a Keras model: an input, `between`, a base, a pooling and a Dense layer."""
    base = {"class_name": "Functional", "config": {"layers": [{"class_name": "Conv2D", "config": {"name": "conv1"}}]}}
    told = [("InputLayer", {"batch_shape": [None, 96, 96, 3]}), *between]
    made = [{"class_name": kind, "config": config} for kind, config in told]
    return json.dumps(
        {"class_name": "Sequential", "config": {"layers": [*made, base, {"class_name": classifier, "config": {}}]}}
    )


def archive(path, source, config):
    """A .keras file of V1 with a Dense layer."""
    body, dense = with_dense(source)
    kinds = {"_bn": "batch_normalization", "conv_dw": "depthwise_conv2d", "dense": "dense"}
    found = {}
    for name, array in {**body, **dense}.items():
        layer = name.split("/")[0]
        kind = next((k for part, k in kinds.items() if part in layer), "conv2d")
        found.setdefault((kind, layer), []).append(array)
    return write_archive(path, write_keras3(path.with_suffix(".weights.h5"), found), config)


def test_a_keras_archive_says_how_it_reads_images(imported, keras, tmp_path):
    rescaling = ("Rescaling", {"scale": 1 / 255, "offset": [0.0, 0.0, 0.0]})
    path = archive(tmp_path / "m.keras", keras("v1"), layers(rescaling, ("RandomFlip", {}), ("Dropout", {"rate": 0.2})))
    bundle = imported(path)
    assert_same(bundle, keras("v1"))
    p = bundle.card.preprocess
    assert (p.resolution, p.mean, p.std) == (96, (0.0,) * 3, (255.0,) * 3)
    assert bundle.card.recipe["assumed"] == ["padding", "bn_eps", "crop", "interpolation"]


@pytest.mark.slow
def test_other_poolings_and_damaged_descriptions(command, keras, tmp_path):
    path = archive(tmp_path / "m.keras", keras("v1"), layers(("GlobalMaxPooling2D", {})))
    line = command("import", path, "--out", tmp_path / "b").line
    assert "its network pools by the maximum, these by the average: import its body with --body-only" in line
    assert command("import", path, "--out", tmp_path / "b", "--body-only").code == 0
    for config in (
        "{",
        "[]",
        "[" * 100_000,
        layers(("Rescaling", {"scale": "x"})),
        layers(("Rescaling", {"scale": 0})),
    ):
        line = command("import", archive(path, keras("v1"), config), "--out", tmp_path / "c").line
        assert "m.keras: the description of its layers can't be read (" in line
    path.write_bytes(path.read_bytes()[:-3000])
    assert "m.keras: " in command("import", path, "--out", tmp_path / "c").line


def test_one_number_is_two_classes(imported, tmp_path):
    net = randomised(v2(nn.Linear(1280, 1)))
    torch.save(net.state_dict(), tmp_path / "w.pt")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    bundle = imported(tmp_path / "w.pt", "--labels", tmp_path / "labels.txt")
    assert bundle.card.labels == ("cat", "dog")
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        dog = float_model(bundle)(x).softmax(1)[:, 1:]
        assert worst(net(x).sigmoid(), dog) < 1e-5
