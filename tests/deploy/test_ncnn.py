import importlib.metadata
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from small import quantized, smooth_images

from mobilenets import files
from mobilenets.arch.graph import Head, Output
from mobilenets.arch.operations import Op
from mobilenets.arch.rows import Conv
from mobilenets.arch.spec import Arch
from mobilenets.deploy import engines, export
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.encodings import unpack
from mobilenets.model.images import Preprocess
from mobilenets.tasks import features

pytest.importorskip("ncnn")

from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.deploy.writers.ncnn import ncnn_model, stored_precision
from mobilenets.model.module import ACTIVATIONS, pad_same

NETWORKS = ["v1", "v2", "v3-small", "v4-conv-s"]


def of_precision(source, pixels, precision):
    made = quantized(source, pixels) if precision == "int8" else source
    return Bundle(made.card.replace(precision=precision), made.tensors)


def decided(bundle, count=24):
    """Images whose answer isn't near a tie, which any other rounding would break."""
    images = smooth_images(120, seed=5)
    scores = np.sort(TorchEngine(bundle, 1)(images)["probabilities"], 1)
    return images[scores[:, -1] - scores[:, -2] > 0.2][:count]


@pytest.fixture
def exported(make_bundle, pixels, tmp_path):
    """`exported("v1", "int8")`: the proof of a folder, m.ncnn."""

    def make(name="v1", precision="float32", **how):
        source = make_bundle(name, **how)
        made = of_precision(source, pixels, precision)
        images = decided(made)
        of = made if precision == "int8" else source
        return export.export_bundle(of, images, tmp_path / "m.ncnn", "noise", "ncnn", precision)

    return make


@pytest.mark.sampled(4)
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_folder_and_its_proof(exported, name, precision):
    made = exported(name, precision)
    assert sorted(p.name for p in made.path.iterdir()) == ["mobilenets.json", "model.bin", "model.param"]
    assert made.precision == precision
    assert made.difference < {"float32": 1e-4, "float16": 1e-3, "int8": 0.35}[precision]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("mean", [(128.0,) * 3, (123.675, 116.28, 103.53)])
def test_padding_and_normalization(exported, precision, mean):
    made = exported("v2", precision, padding="same", mean=mean, std=(58.395, 57.12, 57.375))
    assert made.difference < {"float32": 1e-4, "int8": 0.35}[precision]


def test_attention(exported):
    assert exported("v4-hybrid-m").difference < 1e-4


class Layers:
    """An int8 network's layers one by one, each from what ncnn gave it; so that roundings at a tie don't add up."""

    def __init__(self, bundle, path, image):
        import ncnn

        engines.module("ncnn").write(bundle, path, None)
        self.net = engines.load(path).net
        side = image.shape[0]
        self.pixels = ncnn.Mat.from_pixels(image, ncnn.Mat.PixelType.PIXEL_RGB, side, side)
        self.arch, self.graph = bundle.card.arch, bundle.card.graph
        self.tensors, self.weights = bundle.tensors, unpack(bundle.card, bundle.tensors)
        self.float_ops = bundle.card.float_ops
        self.ops, self.readers = self.graph.by_name, self.graph.readers

    def end(self, op):
        """The activation that is part of a layer's."""
        after = self.readers[op.name]
        return after[0] if len(after) == 1 and after[0].activation == "hard_swish" else op

    def blob(self, name):
        extractor = self.net.create_extractor()
        extractor.input("image", self.pixels)
        failed, mat = extractor.extract(name)
        assert not failed, name
        return np.array(mat, np.float64)

    def affine(self, name):
        return float(self.tensors[f"{name}.scale"]), int(self.tensors[f"{name}.zero_point"])

    def in_int8(self, op):
        return op.is_layer and op.name not in self.float_ops

    def is_turned(self, name):
        return self.affine(name)[1] == 0 and self.ops[name].activation != "hard_swish"

    def is_flat(self, name):
        return ".se_" in name or name in {op.name for op in self.arch.tail}

    def codes(self, name, x):
        """What an integer layer sees of `x`."""
        step, zero = self.affine(name)
        if zero == 0 and (self.is_flat(name) or self.is_integer(name)):
            return (np.rint(x / step).clip(0, 254)) * step
        reach = max(zero, 255 - zero)
        scale = 1 / step if reach <= 128 else 127 / (reach * step)
        return np.rint(x * scale).clip(-127, 127) / scale

    def is_integer(self, name):
        """Whether a blob holds codes: that of an integer layer, read by such layers alone."""
        if name == "input" or self.is_flat(name):
            return False
        op = self.ops[name]
        made = self.ops[op.inputs[0]] if op.activation == "hard_swish" and not op.is_layer else op
        fused = made is op or self.end(made) is op
        return fused and self.in_int8(made) and all(self.in_int8(r) for r in self.readers[name])

    def value(self, name):
        x = self.blob(name)
        if not self.is_integer(name):
            return x
        assert (x == np.rint(x)).all(), name
        step, zero = self.affine(name)
        if self.is_turned(name):
            return (127 - x) * step
        reach = max(zero, 255 - zero)
        return x * step * (1 if reach <= 128 else reach / 127)

    def differences(self):
        """For each integer layer, its largest difference from the bundle's, in steps of its output."""
        for op in self.graph.layers:
            if not self.in_int8(op):
                continue
            name, end = op.inputs[0], self.end(op)
            x = torch.from_numpy(self.codes(name, self.value(name)))
            x = x[None] if x.ndim == 3 else x[None, :, None, None]
            if self.arch.padding == "same" and op.stride > 1:
                x = pad_same(x, op.kernels, op.stride)
            pad = 0 if self.arch.padding == "same" and op.stride > 1 else op.kernel // 2
            w, b = (torch.from_numpy(t).double() for t in self.weights[op.name])
            y = torch.nn.functional.conv2d(x, w, b, op.stride, pad, groups=op.groups)
            y = ACTIVATIONS[end.activation]()(y) if end.activation else y
            y, got = y.numpy()[0], self.value(end.name)
            if self.is_integer(end.name):
                y = self.codes(end.name, y)
            yield op.name, np.abs(y.reshape(got.shape) - got).max() / self.affine(end.name)[0]


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(
    ("name", "padding"),
    [
        ("v1", "symmetric"), ("v2", "same"), ("v3-small", "symmetric"), ("v4-conv-s", "same"),
        *(
            pytest.param(name, padding, marks=pytest.mark.slow)
            for name, padding in (
                ("v1", "same"), ("v2", "symmetric"), ("v3-small", "same"), ("v4-conv-s", "symmetric"),
                ("v4-hybrid-m", "symmetric"),
            )
        ),
    ],
)  # fmt: skip
def test_int8_layers_are_the_bundles(make_bundle, pixels, tmp_path, name, padding):
    b = of_precision(make_bundle(name, padding), pixels, "int8")
    steps = dict(Layers(b, tmp_path / "m.ncnn", pixels[0]).differences())
    assert len(steps) == len(b.card.graph.layers)
    # A tie; ncnn's own steps are up to two of a bundle's, and its depthwise layers know scales to four digits only.
    assert max(steps.values()) < 4, max(steps, key=steps.get)
    assert np.median([*steps.values()]) < 1.1


@pytest.mark.usefixtures("ours")
def test_kept_in_float(make_bundle, pixels, tmp_path):
    """An int8 network with two layers in float, one of which writes what an integer layer reads."""
    b = of_precision(make_bundle("v2"), pixels, "int8")
    kept = ("blocks.1.depthwise", "blocks.2.expand")
    tensors = dict(b.tensors)
    for name in kept:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = unpack(b.card, b.tensors)[name]
        del tensors[f"{name}.weight_scale"]
    mixed = Bundle(b.card.replace(float_ops=kept), tensors)
    steps = dict(Layers(mixed, tmp_path / "m.ncnn", pixels[0]).differences())
    assert len(steps) == len(b.card.graph.layers) - 2
    assert max(steps.values()) < 4
    assert engines.module("ncnn").stored_precision(tmp_path / "m.ncnn") == "int8"
    text, data = ncnn_model(mixed)
    assert stored_precision(text, data) == "float32"


# ---- outputs


def same(bundle, path, images, tolerance=1e-4):
    """The file's outputs, which are PyTorch's."""
    engines.module("ncnn").write(bundle, path, None)
    expected, got = TorchEngine(bundle, 1)(images), engines.load(path)(images)
    assert list(got) == list(expected) == list(bundle.card.outputs)
    for name, values in expected.items():
        assert got[name].shape == values.shape == (len(images), *bundle.card.outputs[name])
        np.testing.assert_allclose(got[name], values, atol=tolerance * max(np.abs(values).max(), 1))
    return got


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("name", [*NETWORKS, "v4-hybrid-m"])
def test_pooled_features(make_bundle, pixels, tmp_path, name):
    """Of a network without its classifier, which once made ncnn crash."""
    b = features.of_bundle(make_bundle(name))
    got = same(b, tmp_path / "m.ncnn", pixels[:4])
    assert got["features"].std(0).max() > 0.05
    assert engines.load(tmp_path / "m.ncnn")(pixels[:0])["features"].shape == (0, b.card.arch.features)


def with_outputs(bundle, ops, **outputs):
    """The same network, which gives the values `outputs`, of its own operations and `ops`."""
    head = Head((*bundle.card.head.ops, *ops), tuple(Output(name, op) for name, op in outputs.items()))
    return Bundle(bundle.card.replace(head=head), bundle.tensors)


@pytest.mark.usefixtures("ours")
def test_values_that_others_read_are_outputs_too(make_bundle, pixels, tmp_path):
    """One that is read twice, one with an activation after it, the one the softmax reads, one by two names."""
    b = make_bundle("v3-small")
    ops = b.card.graph.by_name
    twice = next(op.name for op in ops.values() if len(b.card.graph.readers[op.name]) == 2)
    swish = next(op for op in ops.values() if op.activation == "hard_swish" and ops[op.inputs[0]].is_layer)
    outputs = {"twice": twice, "before": swish.inputs[0], "after": swish.name}
    same(with_outputs(b, (), **outputs), tmp_path / "maps.ncnn", pixels[:2])
    answers = {"probabilities": "probabilities", "logits": "logits", "scores": "logits", "twice": twice}
    same(with_outputs(b, (), **answers), tmp_path / "answers.ncnn", pixels[:2])


@pytest.mark.usefixtures("ours")
def test_an_integer_map_comes_out_as_floats(make_bundle, pixels, tmp_path):
    b = of_precision(make_bundle("v2"), pixels, "int8")
    names = ("blocks.1.depthwise", "blocks.2.project", "blocks.3.expand")
    tapped = with_outputs(b, (), **{name.replace(".", "_"): name for name in names}, probabilities="probabilities")
    engines.module("ncnn").write(tapped, tmp_path / "m.ncnn", None)
    expected, got = TorchEngine(tapped, 1)(pixels), engines.load(tmp_path / "m.ncnn")(pixels)
    for name in names:
        difference = np.abs(got[name.replace(".", "_")] - expected[name.replace(".", "_")])
        assert np.median(difference) < 2 * float(b.tensors[f"{name}.scale"])


@pytest.mark.usefixtures("ours")
def test_lengths_gates_and_odd_kernels(tmp_path):
    """Vectors and maps of length 1, of zeros too; a sum of a map and a vector; on images that aren't square."""
    arch, preprocess = Arch("row", 1.0, 32, 0, (Conv(8),), size=(32, 48)), Preprocess(32, size=(32, 48))
    ops = (
        Op("wide", "conv", 3, 8, kernel=3, kernel_width=5, stride=2, bias=True, inputs=("input",)),
        Op("grouped", "conv", 8, 16, kernel=3, grouped=4, bias=True, inputs=("wide",)),
        Op("clipped", "activation", 16, 16, activation="relu6", inputs=("grouped",)),
        Op("both", "concat", 24, 24, inputs=("wide", "clipped")),
        Op("mean", "pool", 24, 24, inputs=("both",)),
        Op("sum", "add", 24, 24, inputs=("both", "mean")),
        Op("map", "l2norm", 24, 24, inputs=("sum",)),
        Op("zeros", "l2norm", 16, 16, inputs=("clipped",)),
        Op("shares", "softmax", 24, 24, inputs=("sum",)),
        Op("gates", "sigmoid", 24, 24, inputs=("sum",)),
        Op("flat", "flatten", 24, 24, inputs=("mean",)),
        Op("vector", "l2norm", 24, 24, inputs=("flat",)),
    )
    names = ("map", "zeros", "shares", "gates", "vector", "sum")
    card = Card(arch, preprocess, Head(ops, tuple(Output(n, n) for n in names)), task="features")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
    b = with_random_weights(card)
    got = same(b, tmp_path / "m.ncnn", images)
    assert got["map"].shape == (3, 24, 16, 24)
    np.testing.assert_allclose(np.linalg.norm(got["map"], axis=1), 1, atol=1e-4)
    none = Bundle(card, b.tensors | {"grouped.conv.weight": np.zeros_like(b.tensors["grouped.conv.weight"])})
    assert not same(none, tmp_path / "none.ncnn", images)["zeros"].any()


def test_an_operation_that_isnt_known(make_bundle):
    b = make_bundle("v1")
    head = Head((Op("more", "pad", 3, 3, inputs=("input",)),), (Output("more", "more"),))
    with pytest.raises(UserError, match=r"ncnn has no pad \(more\); export to another format"):
        ncnn_model(Bundle(b.card.replace(head=head), b.tensors))


# ---- faults and the rest


def test_stored_says_what_the_file_holds(exported, tmp_path):
    """Whatever the card says."""
    exported("v1", "float16")
    card = tmp_path / "m.ncnn" / "mobilenets.json"
    card.write_text(card.read_text().replace('"precision": "float16"', '"precision": "int8"'))
    assert engines.module("ncnn").stored_precision(tmp_path / "m.ncnn") == "float16"


def test_a_wrong_export_leaves_nothing(make_bundle, pixels, tmp_path, monkeypatch):
    b = make_bundle("v1")
    turned = dict(b.tensors) | {"classifier.weight": np.roll(b.tensors["classifier.weight"], 1, 0)}
    monkeypatch.setattr("mobilenets.deploy.writers.ncnn.ncnn_model", lambda b: ncnn_model(Bundle(b.card, turned)))
    with pytest.raises(UserError, match=r"m\.ncnn was not kept: it differs from PyTorch"):
        export.export_bundle(b, pixels, tmp_path / "m.ncnn", "noise", "ncnn")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("ours")
def test_one_image_a_call(make_bundle, pixels, tmp_path):
    b = make_bundle("v1")
    with pytest.raises(UserError, match="takes one image in a call, not 8"):
        export.export_bundle(b, pixels, tmp_path / "m.ncnn", "noise", "ncnn", batch=8)
    assert not list(tmp_path.iterdir())
    assert export.export_bundle(b, pixels, tmp_path / "m.ncnn", "noise", "ncnn", batch=1).agreement == 100


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("threads", [1, 2])
def test_callers_at_once_get_the_same(exported, pixels, threads):
    path = exported("v2").path
    one, engine = engines.load(path, 1)(pixels)["probabilities"], engines.load(path, threads)
    assert isinstance(engine, engines.Engine)
    with ThreadPoolExecutor(3) as pool:
        for outputs in pool.map(engine, [pixels[:, ::-1, ::-1], pixels, pixels]):
            assert outputs["probabilities"].shape == (24, 10)
        np.testing.assert_allclose(outputs["probabilities"], one, atol=1e-5)


def cut(path):
    data = (path / "model.bin").read_bytes()
    (path / "model.bin").write_bytes(data[:-4])


def other(path):
    """The weights of a network of the same shape."""
    data = bytearray((path / "model.bin").read_bytes())
    data[100:104] = b"\0\0\0\0"
    (path / "model.bin").write_bytes(data)


def card(**changes):
    def change(path):
        d = json.loads((path / "mobilenets.json").read_text())
        (path / "mobilenets.json").write_text(json.dumps(d | changes))

    return change


def write(name, text):
    return lambda path: (path / name).write_text(text)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"model\.bin: damaged, or of another network than its card; export it again"),
        (other, r"model\.bin: damaged, or of another network"),
        (write("model.param", "7767517\n"), r"model\.param: damaged, or of another network"),
        (lambda path: (path / "model.bin").unlink(), r"m\.ncnn: model\.bin is missing"),
        (lambda path: (path / "model.param").unlink(), r"m\.ncnn: model\.param is missing"),
        (lambda path: (path / "mobilenets.json").unlink(), r"m\.ncnn: has no card \(mobilenets\.json is missing\)"),
        (write("mobilenets.json", "{"), r"mobilenets\.json: not readable as JSON"),
        (write("mobilenets.json", "[]"), "not a mobilenets card"),
        (card(format=99), "newer mobilenets"),
        (card(config={"labels": ["cat"]}), "1 labels for a network of 10 classes"),
    ],
)
def test_a_damaged_folder(exported, damage, message):
    path = exported().path
    damage(path)
    with pytest.raises(UserError, match=message) as e:
        engines.load(path)
    assert "\n" not in str(e.value)


@pytest.mark.usefixtures("ours")
def test_the_card_of_another_network(exported, tmp_path):
    exported("v1")
    shutil.move(tmp_path / "m.ncnn", tmp_path / "v1.ncnn")
    exported("v2")
    shutil.copy(tmp_path / "v1.ncnn" / "mobilenets.json", tmp_path / "m.ncnn")
    with pytest.raises(UserError, match=r"model\.param: damaged, or of another network than its card"):
        engines.load(tmp_path / "m.ncnn")


def test_a_file_of_a_newer_ncnn(exported):
    path = exported().path
    text = (path / "model.param").read_text().replace("Softmax ", "Softermax ")
    (path / "model.param").write_text(text)
    card(**{"model.param": files.sha256(path / "model.param")})(path)
    with pytest.raises(UserError, match=r"ncnn [\d.]+ can't load it; upgrade with"):
        engines.load(path)


def test_not_installed(monkeypatch):
    monkeypatch.delitem(sys.modules, "mobilenets.deploy.engines.ncnn", raising=False)
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(UserError, match=r"ncnn can't be loaded .*pip install 'mobilenets\[ncnn\]'"):
        engines.module("ncnn")


def test_version():
    assert engines.version("ncnn") == importlib.metadata.version("ncnn")
