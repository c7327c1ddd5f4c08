import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small import quantized, smooth_images

from mobilenets import processor
from mobilenets.arch.graph import Head, Output
from mobilenets.arch.operations import Op
from mobilenets.deploy import engines, export
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.encodings import unpack

if not importlib.util.find_spec("openvino"):
    pytest.skip("openvino isn't installed", allow_module_level=True)

from mobilenets.deploy.engines import openvino
from mobilenets.deploy.engines.torch import TorchEngine

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
def exact_int8(request):
    """Without such instructions OpenVINO adds two products in 16 bits, which overflow: its int8 has other answers."""
    if "int8" in request.node.name and processor.adds_in_16_bits():
        pytest.skip("this processor has no VNNI: OpenVINO's int8 isn't exact on it")


@pytest.fixture(scope="module")
def untouched(make_bundle, tmp_path_factory):
    """V1 in a folder m.openvino, for tests that take a copy."""
    path = tmp_path_factory.mktemp("untouched") / "m.openvino"
    openvino.write(make_bundle("v1"), path, None)
    return path


@pytest.fixture
def exported(make_bundle, pixels, tmp_path):
    """`exported("v1", "int8")`: the proof of a folder, m.openvino."""

    def make(name="v1", precision="float32", batch=None, **how):
        source = make_bundle(name, **how)
        made = of_precision(source, pixels, precision)
        of = made if precision == "int8" else source
        return export.export_bundle(of, decided(made), tmp_path / "m.openvino", "noise", "openvino", precision, batch)

    return make


@pytest.mark.parametrize(
    ("precision", "overflows", "told"), [("int8", True, 1), ("int8", False, 0), ("float32", True, 0)]
)
def test_who_loads_int8_where_it_overflows_is_told_once(
    make_bundle, pixels, tmp_path, capsys, monkeypatch, precision, overflows, told
):
    path = tmp_path / "m.openvino"
    openvino.write(of_precision(make_bundle("v1"), pixels, precision), path, None)  # as on another processor
    monkeypatch.setattr(processor, "adds_in_16_bits", lambda: overflows)
    engines._warn.cache_clear()
    for _ in range(2):
        engines.load(path)
    assert capsys.readouterr().err.count("no VNNI") == told


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((n, p) for n in NETWORKS for p in ("float32", "int8")),
        ("v1", "float16"),
        pytest.param("v4-hybrid-m", "float32", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("exact_int8")
def test_a_folder_and_its_proof(exported, name, precision):
    made = exported(name, precision)
    assert sorted(p.name for p in made.path.iterdir()) == ["model.bin", "model.xml"]
    assert made.precision == precision
    assert made.difference < {"float32": 1e-4, "float16": 0.02, "int8": 0.25}[precision]


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("mean", [(128.0,) * 3, (123.675, 116.28, 103.53)])
@pytest.mark.usefixtures("exact_int8")
def test_padding_and_normalization(exported, precision, mean):
    made = exported("v1", precision, padding="same", mean=mean, std=(58.395, 57.12, 57.375))
    assert made.difference < {"float32": 1e-4, "int8": 0.1}[precision]


@pytest.mark.usefixtures("exact_int8")
def test_a_normalization_of_each_channel_in_int8(make_bundle, pixels, tmp_path):
    """An int8 bundle that was made elsewhere may round an input normalized by three means."""
    b = of_precision(make_bundle("v1"), pixels, "int8")
    other = b.card.preprocess.__class__(32, 0.9, (100.0, 128.0, 140.0), (128.0, 120.0, 128.0))
    b = Bundle(b.card.replace(preprocess=other), b.tensors)
    openvino.write(b, tmp_path / "m.openvino", None)
    a, o = (e(pixels)["probabilities"] for e in (TorchEngine(b, 1), engines.load(tmp_path / "m.openvino")))
    assert np.median(np.abs(a - o).max(1)) < 0.02


def executed(engine):
    """(kind, precision) of each layer that runs, as OpenVINO tells."""
    (compiled,) = engine.compiled.values()
    for node in compiled.get_runtime_model().get_ops():
        about = node.get_rt_info()
        yield about["layerType"].astype(str), about["runtimePrecision"].astype(str)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="another processor has other kernels")
@pytest.mark.parametrize("name", ["v2", pytest.param("v3-small", marks=pytest.mark.slow)])
def test_every_convolution_runs_in_int8(make_bundle, pixels, tmp_path, name):
    openvino.write(of_precision(make_bundle(name), pixels, "int8"), tmp_path / "m.openvino", None)
    engine = engines.load(tmp_path / "m.openvino")
    ran = [precision for kind, precision in executed(engine) if "Convolution" in kind]
    assert len(ran) == len(engine.card.graph.layers)
    assert set(ran) <= {"u8", "i8"}


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_floats_run_in_32_bits(exported, precision):
    """Also on a processor whose own choice is bfloat16."""
    engine = engines.load(exported("v1", precision).path)
    assert not {precision for _, precision in executed(engine)} & {"bf16", "i8"}


def test_kept_in_float(make_bundle, pixels, tmp_path):
    b = of_precision(make_bundle("v1"), pixels, "int8")
    kept = ("blocks.1.depthwise", "blocks.1.pointwise")
    tensors = dict(b.tensors)
    for name in kept:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = unpack(b.card, b.tensors)[name]
        del tensors[f"{name}.weight_scale"]
    mixed = Bundle(b.card.replace(float_ops=kept), tensors)
    made = export.export_bundle(mixed, decided(mixed), tmp_path / "m.openvino", "noise", "openvino")
    assert made.precision == "int8"
    ran = [precision for kind, precision in executed(engines.load(made.path)) if "Convolution" in kind]
    assert ran.count("f32") == 2


def test_stored_says_what_the_file_holds(make_bundle, pixels, tmp_path, monkeypatch):
    """Whatever the card says."""
    b = of_precision(make_bundle("v1"), pixels, "int8")
    floats = make_bundle("v1")
    from mobilenets.deploy.writers import onnx

    right = onnx.onnx_model
    monkeypatch.setattr(onnx, "onnx_model", lambda _bundle, n: right(floats, n))
    monkeypatch.setattr(openvino, "_integer_image", lambda *_: None)
    with pytest.raises(UserError, match=r"openvino made it float32, not the int8 that was asked for"):
        export.export_bundle(b, pixels, tmp_path / "m.openvino", "noise", "openvino")
    assert not list(tmp_path.iterdir())


def test_a_wrong_export_leaves_nothing(make_bundle, pixels, tmp_path, monkeypatch):
    b = make_bundle("v1")
    turned = dict(b.tensors) | {"classifier.weight": np.roll(b.tensors["classifier.weight"], 1, 0)}
    right = openvino.write
    monkeypatch.setattr(openvino, "write", lambda b, *rest: right(Bundle(b.card, turned), *rest))
    with pytest.raises(UserError, match=r"m\.openvino was not kept: it differs from PyTorch"):
        export.export_bundle(b, pixels, tmp_path / "m.openvino", "noise", "openvino")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "told"),
    [("flags : avx avx2", True), ("flags : avx2 avx512_vnni", False), ("flags : avx2 avx_vnni", False), ("", False)],
)
def test_where_int8_overflows_the_proof_says_so(make_bundle, pixels, tmp_path, monkeypatch, flags, told):
    b = quantized(make_bundle("v1"), pixels)
    turned = dict(b.tensors) | {"classifier.weight": np.roll(b.tensors["classifier.weight"], 1, 0)}
    right = openvino.write
    monkeypatch.setattr(openvino, "write", lambda b, *rest: right(Bundle(b.card, turned), *rest))
    monkeypatch.setattr(processor, "features", lambda: flags)
    with pytest.raises(UserError, match="was not kept") as e:
        export.export_bundle(b, pixels, tmp_path / "m.openvino", "noise", "openvino")
    assert ("AVX2 and no VNNI, where OpenVINO adds int8 products in 16 bits" in str(e.value)) == told


def test_batches(exported, pixels):
    """Any number of images; what is left of a batch runs in one of the sizes that are there."""
    engine = engines.load(exported().path)
    all_at_once = engine(pixels)["probabilities"]
    assert all_at_once.dtype == np.float32
    for n in (8, 5, 2, 1):
        np.testing.assert_allclose(engine(pixels[:n])["probabilities"], all_at_once[:n], atol=1e-5)
    assert sorted(engine.compiled) == [1, 2, 8, 24]


def test_a_file_of_one_batch(exported, pixels):
    made = exported(batch=4)
    engine = engines.load(made.path)
    for n in (1, 4, 7):
        assert engine(pixels[:n])["probabilities"].shape == (n, 10)
    assert sorted(engine.compiled) == [4]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("batch", [None, 2])
def test_outputs_by_name(make_bundle, pixels, tmp_path, batch):
    """In the card's order; one by two names; and what a call gave stays when there is another."""
    b = make_bundle("v2")
    ops = (*b.card.head.ops, Op("unit", "l2norm", 10, 10, inputs=("logits",)))
    outputs = {"probabilities": "probabilities", "map": "blocks.2.project", "scores": "logits", "logits": "logits"}
    head = Head(ops, tuple(Output(name, op) for name, op in (outputs | {"unit": "unit"}).items()))
    b = Bundle(b.card.replace(head=head), b.tensors)
    openvino.write(b, tmp_path / "m.openvino", batch)
    engine, expected = engines.load(tmp_path / "m.openvino"), TorchEngine(b, 1)(pixels[:3])
    got = engine(pixels[:3])
    engine(pixels[3:6])
    assert list(got) == list(b.card.outputs)
    for name, values in expected.items():
        assert got[name].shape == values.shape == (3, *b.card.outputs[name])
        np.testing.assert_allclose(got[name], values, atol=1e-4 * np.abs(values).max())


@pytest.mark.sampled(1)
@pytest.mark.parametrize("threads", [1, 2])
def test_callers_at_once_get_the_same(exported, pixels, threads):
    path = exported("v1").path
    one, engine = engines.load(path, 1)(pixels)["probabilities"], engines.load(path, threads)
    assert isinstance(engine, engines.Engine)
    with ThreadPoolExecutor(3) as pool:
        for outputs in pool.map(engine, [pixels] * 6):
            np.testing.assert_allclose(outputs["probabilities"], one, atol=1e-5)


def test_any_program_can_run_it(exported, pixels):
    import openvino as ov

    path = exported("v1", "int8").path
    compiled = ov.Core().compile_model(path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    own = engines.load(path)(pixels)["probabilities"]
    np.testing.assert_allclose(compiled(pixels)["probabilities"], own, atol=1e-5)


def test_it_tells_nobody(make_bundle, tmp_path):
    """OpenVINO's telemetry neither sends nor writes anything, whether it is imported or makes a file."""
    (tmp_path / "home").mkdir()
    make_bundle("v1").save(tmp_path / "float")
    code = f"""
import sys
from pathlib import Path
from mobilenets.model.bundle import Bundle
from mobilenets.deploy.engines import openvino
openvino.write(Bundle.load(Path({str(tmp_path / "float")!r})), Path({str(tmp_path / "m.openvino")!r}), None)
openvino.load(Path({str(tmp_path / "m.openvino")!r}), 1)
print([m for m in sys.modules if "openvino_telemetry" in m], "torch" in sys.modules)
"""
    home = {"HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=home)
    assert done.stdout == "[] False\n"
    assert not (tmp_path / "home" / "intel").exists()


# ---- faults


def cut(path):
    data = (path / "model.bin").read_bytes()
    (path / "model.bin").write_bytes(data[: len(data) // 2])


def other(path):
    """The weights of a network of the same shape."""
    data = bytearray((path / "model.bin").read_bytes())
    data[100:104] = b"\0\0\0\0"
    (path / "model.bin").write_bytes(data)


def edited(change):
    """`change` is done to the card in model.xml."""

    def edit(path):
        import openvino as ov

        model = ov.Core().read_model(path / "model.xml")
        card = change(json.loads(model.get_rt_info(openvino.CARD).astype(str)))
        model.set_rt_info(card if isinstance(card, str) else json.dumps(card), openvino.CARD)
        ov.save_model(model, path / "new.xml", compress_to_fp16=False)
        del model
        (path / "new.xml").replace(path / "model.xml")
        (path / "new.bin").unlink()

    return edit


def without_card(path):
    text = (path / "model.xml").read_text()
    (path / "model.xml").write_text(text.replace("<mobilenets>", "<others>").replace("</mobilenets>", "</others>"))


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"model\.bin: damaged, or of another network than model\.xml"),
        (other, r"model\.bin: damaged, or of another network than model\.xml"),
        (lambda path: (path / "model.xml").write_text("<net"), r"model\.xml: not a readable OpenVINO model"),
        (lambda path: (path / "model.xml").write_text(""), r"model\.xml: not a readable OpenVINO model"),
        (lambda path: (path / "model.bin").unlink(), r"m\.openvino: model\.bin is missing; export it again"),
        (lambda path: (path / "model.xml").unlink(), r"m\.openvino: model\.xml is missing"),
        (without_card, r"has no card inside; export it with mobilenets"),
        (edited(lambda _: "{"), "the card inside isn't JSON"),
        (edited(lambda _: []), "not a mobilenets card"),
        (edited(lambda card: card | {"format": 99}), "newer mobilenets"),
        (edited(lambda card: card | {"config": {"labels": ["cat"]}}), "1 labels for a network of 10 classes"),
        (
            edited(lambda card: card | {"preprocess": card["preprocess"] | {"resolution": 64}}),
            "the card's images are 64 x 64 pixels, its network's 32 x 32",
        ),
        (
            edited(
                lambda card: (
                    card
                    | {
                        "preprocess": card["preprocess"] | {"resolution": 64},
                        "arch": card["arch"] | {"resolution": 64},
                    }
                )
            ),
            "card inside is another network's",
        ),
    ],
)
def test_a_damaged_folder(untouched, tmp_path, damage, message):
    path = shutil.copytree(untouched, tmp_path / "m.openvino")
    damage(path)
    with pytest.raises(UserError, match=message) as e:
        engines.load(path)
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_the_weights_of_another_network(exported, tmp_path):
    exported("v1")
    shutil.move(tmp_path / "m.openvino", tmp_path / "v1.openvino")
    exported("v2")
    shutil.copy(tmp_path / "m.openvino" / "model.bin", tmp_path / "v1.openvino")
    with pytest.raises(UserError, match=r"model\.bin: damaged, or of another network"):
        engines.load(tmp_path / "v1.openvino")


def test_not_installed(monkeypatch):
    monkeypatch.delitem(sys.modules, "mobilenets.deploy.engines.openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"openvino can't be loaded .*pip install 'mobilenets\[openvino\]'"):
        engines.module("openvino")


def test_version():
    assert engines.version("openvino") == importlib.metadata.version("openvino")
