import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from small import quantized

from mobilenets.arch.graph import Head, Output
from mobilenets.arch.operations import Op
from mobilenets.arch.rows import Conv, Separable
from mobilenets.arch.spec import Arch
from mobilenets.compression.scheme import Scheme
from mobilenets.deploy import engines, export
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.images import Preprocess

executorch = pytest.importorskip("mobilenets.deploy.engines.executorch")
# Of libraries that ExecuTorch imports, and of its own moved interfaces.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def exported(make_bundle, short_bundle, pixels, tmp_path_factory):
    """`exported("short", "int8", 2)`: the file, its proof and what it was made from; each lowered once."""
    made = {}

    def make(name, precision, batch=None, float_ops=(), **variant):
        key = (name, precision, batch, float_ops, *variant.items())
        if key not in made:
            b = short_bundle(2, **variant) if name == "short" else make_bundle(name, **variant)
            if precision == "int8":
                b = quantized(b, pixels, Scheme(float_ops=float_ops))
            path = tmp_path_factory.mktemp("pte") / "m.pte"
            made[key] = path, export.export_bundle(b, pixels, path, "noise", "executorch", precision, batch), b
        return made[key]

    return make


def check(path, proof, b, pixels):
    a, e = TorchEngine(b, 1)(pixels)["probabilities"], engines.load(path)(pixels)["probabilities"]
    assert a.std(0).max() > 0.03
    assert (proof.agreement, proof.precision) == (100.0, b.card.precision)
    assert np.median(np.abs(a - e).max(1)) < 1e-5
    assert executorch.operators(path) == executorch.OUTSIDE
    assert executorch.stored_precision(path) == b.card.precision


@pytest.mark.slow
def test_int8(exported, pixels):
    path, proof, b = exported("short", "int8", 2)
    check(path, proof, b, pixels)


@pytest.mark.slow
def test_an_activation_without_an_upper_end(exported, pixels):
    path, proof, b = exported("short", "float32", 2, activation="relu")
    check(path, proof, b, pixels)
    assert '"output_max": Infinity' in json.dumps(next(executorch._graphs(path)))


def test_a_file_and_its_engine(exported, pixels):
    path, _, b = exported("short", "int8", 2)
    engine = engines.load(path)
    assert isinstance(engine, engines.Engine)
    assert (engine.name, engine.batch) == ("executorch", 2)
    assert engine.card == b.card.replace(parent=b.digest)
    whole = engine(pixels[:5])["probabilities"]
    assert (whole.shape, whole.dtype) == ((5, 10), np.float32)
    np.testing.assert_allclose(whole.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(whole[4:], engine(pixels[4:5])["probabilities"])
    frozen = pixels[:2].copy()
    frozen.setflags(write=False)
    np.testing.assert_array_equal(engine(frozen)["probabilities"], whole[:2])
    np.testing.assert_array_equal(engine(pixels[:4:2])["probabilities"], whole[:4:2])


def test_threads(exported, pixels):
    path, _, _ = exported("short", "int8", 2)
    one, two = engines.load(path, 1), engines.load(path, 2)
    for engine, threads in ((one, 1), (two, 2), (one, 1)):
        engine(pixels[:1])
        assert executorch.portable_lib._threadpool_get_thread_count() == threads
    a, b = (engine(pixels[:2])["probabilities"] for engine in (one, two))
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_several_outputs_of_any_rank(pixels, tmp_path, precision):
    """In the card's order, from an image that isn't square; over the channels of maps, too."""
    arch = Arch("small", 1.0, 32, 0, (Conv(8, stride=2), Separable(16, stride=2)), activation="relu6", size=(32, 48))
    ops = (
        Op("both", "concat", 24, 24, inputs=("blocks.1.pointwise", "blocks.1.depthwise")),
        Op("all", "flatten", 24 * 96, 24 * 96, inputs=("both",)),
        Op("vector", "l2norm", 24 * 96, 24 * 96, inputs=("all",)),
        Op("map", "l2norm", 24, 24, inputs=("both",)),
        Op("shares", "softmax", 24, 24, inputs=("both",)),
        Op("gates", "sigmoid", 24, 24, inputs=("both",)),
    )
    head = Head(ops, tuple(Output(name, name) for name in ("shares", "vector", "map", "all", "both", "gates")))
    b = with_random_weights(Card(arch, Preprocess(32, size=(32, 48)), head, task="features"), precision)
    executorch.write(b, tmp_path / "m.pte", None)
    images = np.concatenate([pixels[:3], pixels[3:6, :, :16]], 2)
    expected, got = TorchEngine(b, 1)(images), engines.load(tmp_path / "m.pte")(images)
    assert list(got) == list(expected) == ["shares", "vector", "map", "all", "both", "gates"]
    for name, values in expected.items():
        assert got[name].shape == values.shape == (3, *b.card.outputs[name])
        differences = np.abs(got[name] - values)
        most = np.quantile(differences, 0.98) if precision == "int8" else differences.max()
        assert most <= 1e-5 * np.abs(values).max()


@pytest.mark.parametrize("part", ["input1_id", "filter_id"])
def test_a_float_convolution_is_no_int8(exported, monkeypatch, part):
    """One convolution of images, or with weights, that aren't quantized makes a file a float one."""
    path, _, _ = exported("short", "int8", 2)
    (graph,) = executorch._graphs(path)
    convolutions = [n["xnode_union"] for n in graph["xnodes"] if n["xnode_union_type"] in executorch.CONVOLUTIONS]
    assert len(convolutions) == 4
    for value in graph["xvalues"]:
        tensor = value["xvalue_union"].get("tensor_value", value["xvalue_union"])
        if tensor.get("id_out", 0) == convolutions[2][part]:
            tensor["datatype"] = "xnn_datatype_fp32"
    monkeypatch.setattr(executorch, "_graphs", lambda _: [graph])
    assert executorch.stored_precision(path) == "float32"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("v1", {}),
        ("v2", {"padding": "same", "mean": (124.0, 116.5, 103.5)}),
        ("v3-small", {}),
        ("v4-conv-s", {}),
        ("v4-hybrid-m", {}),
    ],
)
def test_every_kind_of_network_with_an_open_batch(exported, pixels, name, precision, variant):
    path, proof, b = exported(name, precision, **variant)
    check(path, proof, b, pixels)
    engine = engines.load(path)
    assert engine.batch == 0
    many = np.concatenate([pixels, pixels])
    np.testing.assert_allclose(engine(many)["probabilities"][:1], engine(pixels[:1])["probabilities"], atol=1e-5)
    np.testing.assert_allclose(engine(many)["probabilities"][24:], engine(pixels)["probabilities"], atol=1e-5)


@pytest.mark.slow
def test_operations_kept_in_float(exported, pixels):
    check(*exported("v2", "int8", 1, ("blocks.2.depthwise", "blocks.3.project", "blocks.3.sum")), pixels)


# ---- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ours")
def test_half_a_file(exported, tmp_path):
    check_damaged(exported, tmp_path, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0, 0.01, 0.5, 0.99])
def test_a_damaged_file(exported, tmp_path, fraction):
    """In the child that tries it first, which imports all of ExecuTorch."""
    check_damaged(exported, tmp_path, fraction)


def check_damaged(exported, tmp_path, fraction):
    path, _, _ = exported("short", "int8", 2)
    data = path.read_bytes()
    (tmp_path / "cut.pte").write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(UserError, match=r"cut\.pte: not readable by ExecuTorch") as e:
        engines.load(tmp_path / "cut.pte")
    assert "\n" not in str(e.value)


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(("before", "after", "message"), [
    (b'{"format": 2,', b'{"format": 9,', "newer mobilenets"),
    (b'{"format": 2,', b'["format": 2,', "the card inside isn't JSON"),
    (b"card\x00", b"dark\x00", "has no card inside"),
    (b'"resolution": 32,', b'"resolution": 64,', "the card inside is another network's"),
])  # fmt: skip
def test_another_card(exported, tmp_path, before, after, message):
    path, _, _ = exported("short", "int8", 2)
    data = path.read_bytes()
    assert before in data
    (tmp_path / "other.pte").write_bytes(data.replace(before, after))
    with pytest.raises(UserError, match=message):
        engines.load(tmp_path / "other.pte")


def test_an_operation_that_xnnpack_has_not(make_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(executorch, "OUTSIDE", executorch.OUTSIDE - {"aten::permute_copy"})
    path = tmp_path / "m.pte"

    class Lowered:
        def to_executorch(self):
            return self

        buffer = b""

    monkeypatch.setattr("executorch.exir.to_edge_transform_and_lower", lambda *_, **__: Lowered())
    monkeypatch.setattr("mobilenets.deploy.writers.program.export_program", lambda *_: None)
    monkeypatch.setattr(executorch, "operators", lambda _: {"aten::permute_copy"})
    with pytest.raises(UserError, match=r"v1 0\.25-32 needs aten::permute_copy, which XNNPACK hasn't"):
        executorch.write(make_bundle("v1"), path, None)


def test_no_16_bit_floats(make_bundle, pixels, tmp_path):
    with pytest.raises(UserError, match="unknown precision for executorch 'float16'"):
        export.export_bundle(make_bundle("v1"), pixels, tmp_path / "m.pte", "noise", "executorch", "float16")


@pytest.mark.slow
def test_nothing_is_said_when_it_is_loaded_and_run(exported, tmp_path):
    path, _, _ = exported("short", "int8", 2)
    shutil.copy(path, tmp_path / "m.pte")
    (tmp_path / "cut.pte").write_bytes(path.read_bytes()[:5000])
    code = """
from pathlib import Path
import numpy
from mobilenets.deploy import engines
from mobilenets.errors import UserError
assert engines.load(Path("m.pte"))(numpy.zeros((3, 32, 32, 3), numpy.uint8))["probabilities"].shape == (3, 10)
try:
    engines.load(Path("cut.pte"))
except UserError:
    pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_card_can_be_read_by_any_program(exported):
    """It is a method of its own that gives JSON text."""
    path, _, b = exported("short", "int8", 2)
    from executorch.runtime import Runtime

    (text,) = Runtime.get().load_program(path).load_method("card").execute([])
    assert json.loads(text)["config"]["labels"] == list(b.card.labels)
    assert isinstance(b, Bundle)
