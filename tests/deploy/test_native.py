"""Our own engine: its numbers are the simulation's, whatever runs it; who may call it; what is missing is said."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import quantized, smooth_images

from mobilenets.arch import zoo
from mobilenets.arch.graph import Head, Output
from mobilenets.arch.operations import Op
from mobilenets.arch.spec import scale
from mobilenets.compression.quantize import quantize_bundle
from mobilenets.deploy import choose, engines, export
from mobilenets.deploy.engines import RUNTIMES, native, native_library
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, random_bundle
from mobilenets.model.images import Pixels
from mobilenets.model.reference import ExactInt8

pytestmark = pytest.mark.usefixtures("ours")
built = pytest.mark.skipif(not native_library.built(), reason="the native engine isn't built here")
LARGE = ("v1-full-conv", "v3-large-minimalistic", "v4-conv-m", "v4-conv-l")  # of operations that smaller ones have too
FAMILIES = [pytest.param(n, marks=[pytest.mark.slow] if n in LARGE else []) for n in zoo.NETWORKS if "hybrid" not in n]


def of_precision(bundle: Bundle, precision: str, pixels: Pixels) -> Bundle:
    made = quantized(bundle, pixels) if precision == "int8" else bundle
    return Bundle(made.card.replace(precision=precision), made.tensors)  # type: ignore[arg-type]


def engine(bundle: Bundle, folder: Path, threads: int = 1, isa: str | None = None) -> native.NativeEngine:
    path = folder / "m.mnet"
    native.write(bundle, path, None)
    return native.NativeEngine(path, threads, isa)


def tapped(bundle: Bundle) -> Bundle:
    """The same network, which gives every value that it rounds."""
    graph = bundle.card.graph
    taps = tuple(Output(op.name, op.name) for op in graph.ops if op.name in graph.activations)
    head = dataclasses.replace(bundle.card.head, outputs=taps)
    return Bundle(bundle.card.replace(head=head, task="features", config={}), bundle.tensors)


def steps_apart(bundle: Bundle, images: Pixels, folder: Path) -> dict[str, np.ndarray]:
    """For each operation of an int8 network: by how many steps the engine's values differ from the simulation's.

    The simulation computes each operation of what the engine has computed before it, so that nothing adds up.
    """
    bundle = tapped(bundle)
    got = {k: torch.from_numpy(np.array(v)) for k, v in engine(bundle, folder)(images).items()}
    simulated = ExactInt8(bundle).eval()
    pixels = torch.from_numpy(bundle.card.preprocess.normalize(images))
    values = {"input": pixels}
    found = {}
    for op in simulated.graph.ops:
        inputs = [values[name] for name in op.inputs]
        with torch.inference_mode():
            values[op.name] = simulated.compute(op, inputs)
        if op.name in got:
            step = simulated.affine[op.name][0] if op.name in simulated.graph.integers else 1e-5
            found[op.name] = ((got[op.name] - values[op.name]) / step).abs().numpy()
            values[op.name] = got[op.name]
    return found


@built
@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize(
    "name", ["v1", "v2", pytest.param("v3-large", marks=pytest.mark.slow), "v3-small", "v4-conv-s"]
)
def test_whole_numbers_are_the_simulations(
    name: str, padding: str, make_bundle: Callable[..., Bundle], pixels: Pixels, tmp_path: Path
) -> None:
    """What is added up, to the byte; activations and what joins scales within a step, and hardly ever that."""
    bundle = quantized(make_bundle(name, padding), pixels)
    apart = steps_apart(bundle, pixels[:4], tmp_path)
    assert len(apart) > 10
    for op, steps in apart.items():
        kind = bundle.card.graph.op(op).kind
        assert steps.max() < (0.01 if kind in ("conv", "depthwise", "pointwise", "linear", "pool") else 1.01), op
    assert np.mean(np.concatenate([steps.ravel() > 0.5 for steps in apart.values()])) < 1e-5


@built
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_floats_are_pytorchs(name: str, precision: str, tmp_path: Path) -> None:
    bundle = random_bundle(scale(zoo.network(name), 0.35, 64, 10), precision)  # type: ignore[arg-type]
    head = dataclasses.replace(bundle.card.head, outputs=(Output("logits", bundle.card.graph.layers[-1].name),))
    bundle = Bundle(bundle.card.replace(head=head, task="features", config={}), bundle.tensors)
    images = smooth_images(2, 64)
    expected, got = TorchEngine(bundle, 1)(images)["logits"], engine(bundle, tmp_path)(images)["logits"]
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.sampled(8)
@built
@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("name", FAMILIES)
def test_threads_batches_and_instruction_sets_change_no_byte(name: str, precision: str, tmp_path: Path) -> None:
    bundle = random_bundle(scale(zoo.network(name), 0.35, 64, 10), precision)  # type: ignore[arg-type]
    images = smooth_images(5, 64)
    one = engine(bundle, tmp_path)
    expected, alone = one(images), [one(images[i : i + 1]) for i in range(5)]
    for threads in (2, 3):
        shared = native.NativeEngine(tmp_path / "m.mnet", threads)
        for got in (shared(images), engines.joined([shared(images[i : i + 1]) for i in range(5)])):
            assert all((got[k] == v).all() for k, v in expected.items())
    assert all((np.concatenate([a[k] for a in alone]) == v).all() for k, v in expected.items())
    plain = native.NativeEngine(tmp_path / "m.mnet", 1, "scalar")(images)
    for k, v in expected.items():
        if precision == "int8":
            assert (plain[k] == v).all()
        else:
            np.testing.assert_allclose(plain[k], v, rtol=1e-5, atol=1e-5)


@built
def test_parts_in_float(make_bundle: Callable[..., Bundle], pixels: Pixels, tmp_path: Path) -> None:
    """A mixed network: some operations in float, the first layer among them."""
    source = make_bundle("v3-small")
    whole = quantized(source, pixels)
    from mobilenets.compression.scheme import Scheme

    layers = [op.name for op in source.card.graph.layers]
    mixed = quantize_bundle(source, pixels, Scheme(float_ops=(layers[0], layers[3], layers[-1])))
    assert mixed.card.float_ops
    expected, got = TorchEngine(mixed, 1)(pixels), engine(mixed, tmp_path)(pixels)
    exact = TorchEngine(whole, 1)(pixels)
    for k, v in expected.items():
        assert np.abs(got[k] - v).max() < 0.05
        assert np.abs(exact[k] - v).max() > 0  # they are something else


@built
def test_a_value_that_is_given_out_and_read(tmp_path: Path) -> None:
    """Maps from inside blocks are whole, whatever was fused around them; the image itself is one."""
    bundle = random_bundle(scale(zoo.network("v2"), 0.35, 64, 10))
    names = [op.name for op in bundle.card.graph.ops if op.kind in ("depthwise", "pointwise", "add")][:9]
    head = Head((), tuple(Output(n, n) for n in names))
    tapped = Bundle(bundle.card.replace(head=head, task="features", config={}), bundle.tensors)
    images = smooth_images(3, 64)
    expected, got = TorchEngine(tapped, 1)(images), engine(tapped, tmp_path, 2)(images)
    for name in names:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-5 * np.abs(expected[name]).max())


@built
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_an_export_is_proved(
    precision: str, make_bundle: Callable[..., Bundle], pixels: Pixels, tmp_path: Path
) -> None:
    source = make_bundle("v1")
    bundle = quantized(source, pixels) if precision == "int8" else source
    made = export.export_bundle(bundle, pixels, tmp_path / "m.mnet", "noise", "native", precision)  # type: ignore[arg-type]
    assert made.agreement == 100
    assert native.stored_precision(tmp_path / "m.mnet") == made.precision == precision
    assert engines.load(tmp_path / "m.mnet").name == "native"


@built
def test_a_session_is_for_one_call_at_a_time(tmp_path: Path) -> None:
    """Another thread's call is refused, and changes nothing; an engine makes a session more."""
    bundle = random_bundle(scale(zoo.network("v1"), 1.0, 128, 10), "int8")
    one = engine(bundle, tmp_path)
    images = smooth_images(60, 128)
    session, refused, done = one.idle[0], [], threading.Event()
    expected = session.run(images)

    def disturb() -> None:
        while not done.is_set() and not refused:
            try:
                session.run(images[:1])
            except UserError as e:
                refused.append(str(e))

    for _ in range(50):
        other = threading.Thread(target=disturb)
        other.start()
        try:
            got = session.run(images)
        except UserError as e:  # the other was first
            refused.append(str(e))
        done.set()
        other.join()
        done.clear()
        if refused:
            break
    assert refused == ["the native engine: another call of this session is under way"]
    got = session.run(images)
    assert all((got[k] == v).all() for k, v in expected.items())
    results: list[engines.Outputs] = []
    callers = [threading.Thread(target=lambda: results.append(one(images[:8]))) for _ in range(4)]
    for c in callers:
        c.start()
    for c in callers:
        c.join()
    assert len(results) == 4
    assert all((r[k] == v[:8]).all() for r in results for k, v in expected.items())


def test_what_the_engine_has_not_got(tmp_path: Path) -> None:
    bundle = random_bundle(scale(zoo.network("v4-hybrid-m"), 1.0, 64, 10))
    with pytest.raises(UserError, match=r"native has no attend \(.*\); export to another format"):
        native.write(bundle, tmp_path / "m.mnet", None)


def test_without_a_compiler(
    make_bundle: Callable[..., Bundle], pixels: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is written, unproved; running it says how to get the engine."""
    monkeypatch.setattr(native_library, "LIBRARY", tmp_path / "nothing.so")
    here = dataclasses.replace(RUNTIMES["native"], runs_here=native_library.built())
    monkeypatch.setitem(RUNTIMES, "native", here)
    native_library.opened.cache_clear()
    try:
        assert "native" not in engines.installed()
        made = export.export_bundle(make_bundle("v1"), pixels, tmp_path / "m.mnet", "noise", "native")
        assert made.agreement is None
        with pytest.raises(UserError, match="isn't built: install a C compiler"):
            engines.load(tmp_path / "m.mnet")
        with pytest.raises(UserError, match="isn't built"):
            engines.version("native")
    finally:
        native_library.opened.cache_clear()


@built
@pytest.mark.parametrize("kind", ["gelu", "norm"])
def test_rare_operations(kind: str, tmp_path: Path, pixels: Pixels) -> None:
    bundle = random_bundle(scale(zoo.network("v1"), 0.25, 32, 10))
    last = bundle.card.graph.layers[4].name
    channels = bundle.card.graph.layers[4].cout
    op = Op("extra", "activation", channels, channels, activation="gelu", inputs=(last,))
    if kind == "norm":
        op = Op("extra", "norm", channels, channels, norm=True, inputs=(last,))
    from mobilenets.model.bundle import with_random_weights

    card = bundle.card.replace(head=Head((op,), (Output("extra", "extra"),)), task="features", config={})
    for precision in ("float32", "int8"):
        made = with_random_weights(card, precision)  # type: ignore[arg-type]
        expected, got = TorchEngine(made, 1)(pixels[:2])["extra"], engine(made, tmp_path)(pixels[:2])["extra"]
        step = np.ptp(expected) / 255 if precision == "int8" else 1e-5 * np.abs(expected).max()
        assert (np.abs(got - expected) > step * 1.01).mean() < 5e-3


@built
@pytest.mark.parametrize("threads", [0, 257])
def test_a_strange_number_of_threads(threads: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't start: threads have to be from 1 to 256"):
        engine(random_bundle(scale(zoo.network("v1"), 0.25, 32, 10)), tmp_path, threads)


@built
def test_an_instruction_set_that_is_not_here(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this processor has no such instruction set"):
        engine(random_bundle(scale(zoo.network("v1"), 0.25, 32, 10)), tmp_path, isa="abacus")


@built
def test_a_program_in_c(tmp_path: Path) -> None:
    """The one in docs/ship.md, linked with the library."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform == "win32":
        pytest.skip("no C compiler here")
    root = Path(__file__).parents[2]
    (source,) = re.findall(
        r"```c[^\n]*\n(#include <mnet.h>\n.*?)```", (root / "docs/ship.md").read_text("utf-8"), re.DOTALL
    )
    (tmp_path / "label.c").write_text(source)
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{root / 'native' / 'include'}"]
    command = [compiler, *flags, tmp_path / "label.c", native_library.LIBRARY, "-o", tmp_path / "label"]
    subprocess.run(command, check=True, capture_output=True)
    bundle = random_bundle(scale(zoo.network("v1"), 0.25, 32, 10), "int8")
    want = engine(bundle, tmp_path)(np.zeros((1, 32, 32, 3), np.uint8))["probabilities"][0]
    said = subprocess.run([tmp_path / "label", tmp_path / "m.mnet"], check=True, capture_output=True, text=True)
    assert said.stdout == f"class {want.argmax()}: {want.max():.3f}\n"
    (tmp_path / "m.mnet").write_bytes(b"MNET")
    said = subprocess.run([tmp_path / "label", tmp_path / "m.mnet"], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (1, "not a .mnet file\n")


@built
@pytest.mark.usefixtures("small_grid")
def test_networks_are_chosen_by_its_times(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path))
    two = [a for a in choose.grid(10) if (a.name, a.alpha) == ("v1", 0.25) and a.resolution < 192]
    monkeypatch.setattr("mobilenets.commands.choose.grid", lambda *_: two)  # which it has by its own name
    ran = command("choose", "--engine", "native", "--max-latency-ms", 1000, "--json")
    assert ran.code == 0, ran.err
    picked = ran.json["pick"]
    assert (picked["engine"], picked["resolution"]) == ("native", 160)
    assert 0 < picked["latency_ms"] <= 1000


@built
@pytest.mark.slow
@pytest.mark.usefixtures("small_grid")
def test_a_fit_to_it(command: Callable[..., Any], colours: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ran = command(
        "fit", colours, "--out", out, "--engine", "native", "--max-latency-ms", 50, "--max-size-mb", 1, "--epochs", 2,
        "--lr", 0.01, "--batch", 12, "--workers", 0, "--from-scratch", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["file"] == str(out / "model-int8.mnet")
    assert [s["engine"] for s in ran.json["steps"]] == ["torch", "native", "torch", "native"]
    assert engines.load(out / "model-int8.mnet").name == "native"
