import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from small import quantized

from mobilenets.deploy import engines
from mobilenets.deploy.writers import onnx as onnx_graph
from mobilenets.errors import UserError
from mobilenets.model.card import CARD_KEY


def write_onnx(bundle, path):
    path.write_bytes(onnx_graph.onnx_model(bundle))
    return path


@pytest.fixture
def files(make_bundle, pixels, tmp_path):
    """A float and an int8 network, each as a bundle and as a .onnx file, laid out as a run."""
    source = make_bundle("v1")
    int8 = quantized(source, pixels)
    source.save(tmp_path / "float")
    int8.save(tmp_path / "int8")
    write_onnx(source, tmp_path / "model.onnx")
    write_onnx(int8, tmp_path / "model-int8.onnx")
    return tmp_path


def test_engines_agree(files, pixels):
    a, b = engines.load(files / "float"), engines.load(files / "model.onnx")
    assert isinstance(a, engines.Engine)
    assert isinstance(b, engines.Engine)
    assert (a.name, b.name) == ("torch", "onnxruntime")
    assert a.card.labels == b.card.labels
    assert a.card.arch == b.card.arch
    x, y = a(pixels)["probabilities"], b(pixels)["probabilities"]
    assert x.shape == y.shape == (24, 10)
    assert x.dtype == y.dtype == np.float32
    np.testing.assert_allclose(x.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(x, y, atol=1e-4)
    assert x.std(0).max() > 0.05


def test_int8_engines_agree(files, pixels):
    a, b = engines.load(files / "int8"), engines.load(files / "model-int8.onnx")
    assert a.card.precision == b.card.precision == "int8"
    assert np.median(np.abs(a(pixels)["probabilities"] - b(pixels)["probabilities"]).max(1)) < 1e-5


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_result(files, pixels, threads):
    for path in (files / "float", files / "model.onnx"):
        one, more = (engines.load(path, threads=n)(pixels[:4])["probabilities"] for n in (1, threads))
        np.testing.assert_allclose(one, more, atol=1e-5)


def test_the_torch_engine_leaves_the_callers_threads_alone(files, pixels):
    import torch

    before = torch.get_num_threads()
    engine, seen = engines.load(files / "float", threads=before + 1), []
    engine.module.pool.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    engine(pixels[:1])
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_an_onnx_session_has_the_threads_it_is_given(files):
    session = engines.load(files / "model.onnx", threads=2).session
    assert session.get_session_options().intra_op_num_threads == 2
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_a_run_gives_the_smallest_file_it_shipped(files):
    order = ["model-int8.onnx", "model.onnx", "int8", "float"]
    for name in order:
        assert engines.resolve(files) == files / name
        (files / name).rename(files / f"_{name}")
    with pytest.raises(UserError, match="neither a bundle nor a finished run"):
        engines.load(files)


def test_a_bundle_and_a_file_resolve_to_themselves(files):
    for name in ("float", "model.onnx"):
        assert engines.resolve(files / name) == files / name


def test_a_onnx_file_runs_without_torch(files):
    code = f"""
import pathlib, sys, numpy
from mobilenets.deploy import engines
engine = engines.load(pathlib.Path({str(files / "model-int8.onnx")!r}))
assert engine(numpy.zeros((1, 32, 32, 3), numpy.uint8))["probabilities"].shape == (1, 10)
sys.exit("torch was imported" if "torch" in sys.modules else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_engine():
    with pytest.raises(UserError, match="unknown engine 'onnxrutime': did you mean 'onnxruntime'"):
        engines.module("onnxrutime")


def test_versions():
    import onnxruntime
    import torch

    assert engines.version("torch") == torch.__version__.split("+")[0] or engines.version("torch") == torch.__version__
    assert engines.version("onnxruntime") == onnxruntime.__version__


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=r"gone\.onnx: no such file or folder"):
        engines.load(tmp_path / "gone.onnx")


@pytest.mark.parametrize(("name", "kind"), [("model.exe", r"\.exe"), ("model", "nameless")])
def test_a_file_no_engine_runs(tmp_path, name, kind):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"no engine runs a {kind} file; give a bundle's folder, .mnz or one of .onnx"):
        engines.load(tmp_path / name)


@pytest.mark.parametrize("fraction", [0, 0.5, 0.99])
def test_a_damaged_onnx_file(files, fraction):
    data = (files / "model.onnx").read_bytes()
    (files / "cut.onnx").write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(UserError, match=r"cut\.onnx: (not a readable ONNX file|has no card)") as e:
        engines.load(files / "cut.onnx")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (None, "has no card inside; export it with mobilenets"),
        ("{", "the card inside isn't JSON"),
        ("[]", "not a mobilenets card"),
        (json.dumps({"format": 99}), "newer mobilenets"),
    ],
)
def test_an_onnx_file_with_another_card(files, card, message):
    model = onnx.load(files / "model.onnx")
    del model.metadata_props[:]
    if card is not None:
        onnx.helper.set_model_props(model, {CARD_KEY: card})
    onnx.save(model, files / "other.onnx")
    with pytest.raises(UserError, match=rf"other\.onnx: .*{message}"):
        engines.load(files / "other.onnx")


def test_onnxruntime_leaves_nothing_in_the_home_folder(files, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    load = f"engines.load(pathlib.Path({str(files / 'model.onnx')!r}))"
    code = f"import pathlib; from mobilenets.deploy import engines; {load}"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | {"HOME": str(home)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not list(home.rglob("*"))


@pytest.mark.parametrize("change", ["labels", "resolution"])
def test_a_card_of_another_network(files, change):
    model = onnx.load(files / "model.onnx")
    card = json.loads(model.metadata_props[0].value)
    if change == "labels":
        card["config"]["labels"], card["arch"]["classes"] = card["config"]["labels"][:3], 3
    else:
        card["arch"]["resolution"] = card["preprocess"]["resolution"] = 64
    model.metadata_props[0].value = json.dumps(card)
    onnx.save(model, files / "other.onnx")
    with pytest.raises(UserError, match=r"other\.onnx: the card inside is another network's, v1 .*; export it again"):
        engines.load(files / "other.onnx")


@pytest.mark.parametrize(
    ("version", "vnni", "exact"),
    [
        ("1.20.1", False, False),
        ("1.29.0", False, False),
        ("1.30.0", False, True),
        ("2.0.0", False, True),
        ("2.0.0", True, False),
    ],
)
def test_the_exact_way_is_taken_where_it_does_not_end_the_process(files, monkeypatch, version, vnni, exact):
    """ONNX Runtime before 1.30 dies of the setting on processors with AVX2 and no VNNI, and VNNI is exact by itself."""
    from mobilenets.deploy.engines import onnxruntime as ours

    monkeypatch.setattr(ours.ort, "__version__", version)
    monkeypatch.setattr(ours, "exact_by_itself", lambda: vnni)
    made = []
    monkeypatch.setattr(ours.ort, "InferenceSession", lambda _model, options, **_: made.append(options))
    ours.session(str(files / "model.onnx"), 1)
    if exact:
        assert made[0].get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError):
            made[0].get_session_config_entry("session.x64quantprecision")
