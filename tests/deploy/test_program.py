import io
import json
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from small import quantized

from mobilenets.compression.scheme import Scheme
from mobilenets.deploy import engines, export
from mobilenets.deploy.engines.torch import ProgramEngine, TorchEngine
from mobilenets.deploy.writers import program, pt2
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle

PRECISIONS = ["float32", "float16", "int8", "dynamic"]


def made_of(b, pixels, precision, float_ops=()):
    """What a file of that precision holds of a float bundle."""
    if precision == "int8":
        return quantized(b, pixels, Scheme(float_ops=float_ops))
    return Bundle(b.card.replace(precision=precision), b.tensors)


def run(module, pixels):
    with torch.inference_mode():
        return module(torch.from_numpy(pixels)).numpy()


def nearly_equal(got, b, pixels):
    """int8: the same integers for most images; where a value fell half-way between two, it is carried far."""
    expected = TorchEngine(b, 1)(pixels)["probabilities"]
    assert expected.std(0).max() > 0.05
    difference = np.abs(got - expected).max(1)
    assert np.median(difference) < 1e-5
    assert difference.max() < (0.25 if b.card.precision == "int8" else 1e-4)


HYBRID = pytest.param("v4-hybrid-m", {}, marks=pytest.mark.slow)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("name", "variant"),
    [("v1", {}), ("v2", {"padding": "same", "mean": (124.0, 116.5, 103.5)}), ("v3-small", {}), HYBRID],
)
def test_the_module_is_the_network(make_bundle, pixels, name, variant, precision):
    b = made_of(make_bundle(name, **variant), pixels, precision)
    nearly_equal(run(program.Network(b).eval(), pixels[:8]), b, pixels[:8])


@pytest.mark.slow
def test_operations_kept_in_float(make_bundle, pixels, tmp_path):
    names = ("blocks.2.depthwise", "blocks.3.project", "blocks.3.sum", "classifier")
    b = made_of(make_bundle("v2"), pixels, "int8", names)
    proof = export.export_bundle(b, pixels, tmp_path / "m.pt2", "noise", "torch")
    assert proof.precision == "int8"
    nearly_equal(engines.load(proof.path)(pixels)["probabilities"], b, pixels)


def test_int8_is_written_as_pytorch_writes_it(make_bundle, pixels):
    b = made_of(make_bundle("v2"), pixels, "int8")
    graph = program.export_program(b, 1).graph
    quantize, dequantize = (
        torch.ops.quantized_decomposed.quantize_per_tensor.default,
        torch.ops.quantized_decomposed.dequantize_per_tensor.default,
    )
    convolutions = [n for n in graph.nodes if n.target == torch.ops.aten.conv2d.default]
    assert len(convolutions) == len(b.card.arch.layers)
    for node in convolutions:
        assert node.args[0].target == dequantize
        assert len(node.args[0].users) == 1  # one for each reader: what integer layers are recognised by
        assert node.args[1].target == torch.ops.quantized_decomposed.dequantize_per_channel.default
    assert sum(n.target == quantize for n in graph.nodes) == len(b.card.graph.activations)


# ---- .pt2 ----------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch", [None, 5])
def test_a_file_and_its_proof(short_bundle, pixels, tmp_path, precision, batch):
    b = short_bundle(3) if precision != "int8" else made_of(short_bundle(3), pixels, precision)
    proof = export.export_bundle(b, pixels, tmp_path / "m.pt2", "noise", "torch", precision, batch)
    assert (proof.agreement, proof.precision) == (100.0, precision)
    engine = engines.load(proof.path, threads=1)
    assert isinstance(engine, ProgramEngine)
    assert isinstance(engine, engines.Engine)
    assert (engine.name, engine.batch) == ("torch", batch)
    assert engine.card.labels == b.card.labels
    whole = engine(pixels)["probabilities"]
    assert (whole.shape, whole.dtype) == ((24, 10), np.float32)
    np.testing.assert_allclose(whole[:1], engine(pixels[:1])["probabilities"], atol=1e-5)


@pytest.mark.slow
def test_sizes_follow_the_weights(short_bundle, pixels, tmp_path):
    sizes = {}
    for precision in PRECISIONS:
        b = made_of(short_bundle(6), pixels, precision)
        pt2.write(program.export_program(b, None), b.card, tmp_path / "m.pt2")
        with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
            sizes[precision] = sum(i.file_size for i in archive.infolist() if "/weight_" in i.filename)
            assert b"program.py" not in archive.read("archive/models/model.json")  # nothing of where it was written
    assert sizes["float16"] < 0.6 * sizes["float32"]
    assert max(sizes["int8"], sizes["dynamic"]) < 0.4 * sizes["float32"]


@pytest.mark.slow
def test_the_callers_threads_stay(short_bundle, pixels, tmp_path):
    b = short_bundle(2)
    pt2.write(program.export_program(b, None), b.card, tmp_path / "m.pt2")
    before, seen = torch.get_num_threads(), []
    engine = engines.load(tmp_path / "m.pt2", threads=before + 1)
    engine.module.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    engine(pixels[:1])
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


@pytest.fixture(scope="module")
def members(short_bundle, tmp_path_factory):
    """A file's members by name, without their common folder."""
    b, path = short_bundle(2), tmp_path_factory.mktemp("pt2") / "m.pt2"
    pt2.write(program.export_program(b, None), b.card, path)
    with zipfile.ZipFile(path) as archive:
        return {i.filename.partition("/")[2]: archive.read(i) for i in archive.infolist()}


def rewritten(members, path, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(f"m/{name}", data)
    return path


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def trap(path):
    return pickle.dumps(Trap(path))


@pytest.mark.usefixtures("ours")
def test_a_rewritten_file_is_read(members, pixels, tmp_path):
    """So that the refusals below have the reasons they give."""
    assert engines.load(rewritten(members, tmp_path / "m.pt2"))(pixels[:2])["probabilities"].shape == (2, 10)


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, t: {**m, "data/sample_inputs/model.pt": trap(t)}, "isn't plain tensors"),
        (lambda m, t: {**m, "data/constants/opaque_obj_0": trap(t)}, "holds more than a program"),
        (lambda m, t: {**m, "data/constants/model.pt": trap(t)}, "holds more than a program"),
        (lambda m, t: {**m, "data/aotinductor/m/m.so": b"\x7fELF"}, "holds more than a program"),  # noqa: ARG005
        (lambda m, _: edited(m, pt2.CONFIGS[0], b'"use_pickle": false', b'"use_pickle": true'), "pickled tensors"),
        (lambda m, _: edited(m, pt2.MODEL, b"aten.hardtanh.default", b"aten.from_file.default"), "MobileNet has no"),
        (lambda m, _: edited(m, pt2.MODEL, b"torch.ops.aten.hardtanh.default", b"torch.os.system"), "MobileNet has no"),
        (lambda m, _: edited(m, pt2.MODEL, b"Symbol('s", b"exit() or Symbol('s"), "MobileNet has no"),
        (lambda m, _: edited(m, pt2.MODEL, b'"guards_code": []', b'"guards_code": ["exit()"]'), "holds code"),
        (lambda m, _: {k: v for k, v in m.items() if k != "extra/card.json"}, "has no card inside"),
        (lambda m, _: {**m, "extra/card.json": b"{"}, "the card inside isn't JSON"),
        (lambda m, _: {**m, "extra/card.json": b"[]"}, "not a mobilenets card"),
        (lambda m, _: {**m, "extra/card.json": json.dumps({"format": 99}).encode()}, "newer mobilenets"),
        (lambda m, _: edited(m, "extra/card.json", b'"resolution": 32,', b'"resolution": 64,'), "is another network's"),
        (lambda m, _: {k: v for k, v in m.items() if k != pt2.MODEL}, "not a readable"),
        (lambda m, _: {k: v for k, v in m.items() if k != "data/weights/weight_5"}, "not readable by PyTorch"),
    ],
)  # fmt: skip
def test_nothing_from_outside_is_run(members, tmp_path, change, message):
    harm = tmp_path / "harm"
    path = rewritten(change(members, harm), tmp_path / "m.pt2")
    with pytest.raises(UserError, match=rf"m\.pt2: .*{message}") as e:
        engines.load(path)
    assert "\n" not in str(e.value)
    assert not harm.exists()


def edited(members, name, before, after):
    assert re.search(re.escape(before), members[name])
    return {**members, name: members[name].replace(before, after)}


@pytest.mark.usefixtures("ours")
def test_a_compressed_file_is_refused(members, tmp_path):
    """It could hold far more than its size says."""
    with pytest.raises(UserError, match="holds more than"):
        engines.load(rewritten(members, tmp_path / "m.pt2", compression=zipfile.ZIP_DEFLATED))


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("fraction", [0, 0.5, 0.99])
def test_a_cut_file(members, tmp_path, fraction):
    data = rewritten(members, tmp_path / "m.pt2").read_bytes()
    (tmp_path / "cut.pt2").write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(UserError, match=r"cut\.pt2: not a readable \.pt2 file"):
        engines.load(tmp_path / "cut.pt2")


@pytest.mark.usefixtures("ours")
def test_a_flipped_bit(members, tmp_path):
    data = bytearray(rewritten(members, tmp_path / "m.pt2").read_bytes())
    weights = members["data/weights/weight_9"]
    data[data.index(weights)] ^= 1
    (tmp_path / "m.pt2").write_bytes(data)
    with pytest.raises(UserError, match="weight_9 is damaged"):
        engines.load(tmp_path / "m.pt2")


@pytest.mark.usefixtures("ours")
def test_what_pytorch_alone_would_read(members, pixels, tmp_path):
    """The file needs nothing of ours."""
    buffer = io.BytesIO(rewritten(members, tmp_path / "m.pt2").read_bytes())
    module = torch.export.load(buffer).module()
    np.testing.assert_allclose(
        run(module, pixels), engines.load(tmp_path / "m.pt2")(pixels)["probabilities"], atol=1e-6
    )
