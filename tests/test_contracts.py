"""What every runtime, task, operation and encoding owes the others; and that a new one is a line in a table."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from operation_examples import ARCH, EXAMPLES, LAST, MIDDLE, network, together

from mobilenets import tasks
from mobilenets.arch import graph as graphs
from mobilenets.arch.graph import Head, Output
from mobilenets.arch.operations import KINDS, Kind, Op
from mobilenets.deploy import engines
from mobilenets.deploy.engines import RUNTIMES
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.deploy.export import export_bundle
from mobilenets.deploy.writers import onnx, program
from mobilenets.errors import UserError
from mobilenets.model import encodings, module
from mobilenets.model.bundle import Bundle, random_bundle, with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.images import Pixels, Preprocess
from mobilenets.tasks import features
from mobilenets.tasks.classify import Classify

# ExecuTorch takes ten seconds a file; Core ML runs on macOS alone; TensorFlow Lite Micro runs int8 alone.
QUICK = [n for n in ("onnxruntime", "litert", "openvino", "ncnn", "native", "torch") if engines.available(n)]
SINGLY = [n for n in QUICK if n != "torch"]  # whose files take most of a second each: many examples in one
OTHERS_SLOW = [*SINGLY, *(pytest.param(n, marks=pytest.mark.slow) for n in QUICK if n not in SINGLY)]
OF_LOWERING = {"pixels", "normalize", "quantize", "dequantize", "pad"}  # in every file: other tests see them


def answers(bundle: Bundle, name: str, pixels: Pixels, folder: Path) -> tuple[engines.Outputs, engines.Outputs]:
    """What PyTorch and what the file of the runtime `name` say."""
    path = folder / f"m{RUNTIMES[name].suffix}"
    engines.module(name).write(bundle, path, None)
    return TorchEngine(bundle, 1)(pixels), engines.load(path)(pixels)


def test_every_kind_has_an_example() -> None:
    assert {name.partition(" ")[0] for name in EXAMPLES} == set(KINDS) - OF_LOWERING


@pytest.mark.sampled(125)
@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("name", SINGLY)
@pytest.mark.parametrize("kind", EXAMPLES)
def test_every_operation_in_every_runtime(kind: str, name: str, pixels: Pixels, tmp_path: Path) -> None:
    """It computes what PyTorch does, or says which operation the runtime hasn't got."""
    bundle = network(EXAMPLES[kind])
    try:
        expected, got = answers(bundle, name, pixels[:3], tmp_path)
    except UserError as e:
        assert names_what_is_missing(e, kind)  # noqa: PT017  (either is right)
        return
    assert got.keys() == expected.keys() == {"answer"}
    batch = 15 if kind == "crop" else 3  # of an image's five boxes
    assert got["answer"].shape == expected["answer"].shape == (batch, *bundle.card.outputs["answer"])
    near(got["answer"], expected["answer"])


def names_what_is_missing(error: UserError, kind: str) -> bool:
    return any(f"has no {op.kind} ({op.name})" in str(error) for op in EXAMPLES[kind])


def near(got: np.ndarray, expected: np.ndarray, name: str = "") -> None:
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max(), err_msg=name)


def near_whole(got: np.ndarray, expected: np.ndarray, kind: str) -> None:
    step = float(np.ptp(expected)) / 255
    steps = 4 if "maxpool" in kind else 2  # the largest of nine is where more are off
    assert np.quantile(np.abs(got - expected), 0.98) <= steps * step + 1e-6, kind


@pytest.mark.usefixtures("ours")
def test_every_operation_in_a_program(pixels: Pixels, tmp_path: Path) -> None:
    known = []
    for kind in EXAMPLES:
        try:
            program.Network(network(EXAMPLES[kind]))
        except UserError as e:
            assert names_what_is_missing(e, kind)  # noqa: PT017  (either is right)
        else:
            known.append(kind)
    assert {"conv", "attend", "stack", "l2norm"} <= {*known}
    bundle = together(known)
    expected, got = answers(bundle, "torch", pixels[:3], tmp_path)
    assert [*got] == [*expected] == known
    for kind in known:
        assert got[kind].shape == expected[kind].shape == (3, *bundle.card.outputs[kind])
        near(got[kind], expected[kind], kind)


INTEGERS = (
    "concat", "conv grouped", "global", "add", "mul", "maxpool", "maxpool over the edge", "maxpool of less than 0",
    "avgpool", "shuffle", "slice", "conv unpadded",
)  # fmt: skip


@pytest.mark.sampled(25)
@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("name", [n for n in SINGLY if "int8" in RUNTIMES[n].precisions and n != "ncnn"])
@pytest.mark.parametrize("kind", INTEGERS)
def test_int8_operations(kind: str, name: str, pixels: Pixels, tmp_path: Path) -> None:
    """Ncnn's int8 knows no zero points: its numbers are its own."""
    expected, got = answers(network(EXAMPLES[kind], "int8"), name, pixels[:3], tmp_path)
    near_whole(got["answer"], expected["answer"], kind)


@pytest.mark.usefixtures("ours")
def test_int8_operations_in_a_program(pixels: Pixels, tmp_path: Path) -> None:
    expected, got = answers(together(INTEGERS, "int8"), "torch", pixels[:3], tmp_path)
    for kind in INTEGERS:
        near_whole(got[kind], expected[kind], kind)


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("name", QUICK)
def test_several_outputs_and_a_rectangle(name: str, tmp_path: Path) -> None:
    """A map from inside a block, [C, H, W], and a vector, of an input that isn't square."""
    arch = dataclasses.replace(ARCH, size=(32, 48))
    flat = (Op("mean", "pool", 16, 16, inputs=(LAST,)), Op("vector", "flatten", 16, 16, inputs=("mean",)))
    head = Head(flat, (Output("vector", "vector"), Output("map", MIDDLE, "before the projection")))
    bundle = with_random_weights(Card(arch, Preprocess(32, size=(32, 48)), head, task="features"))
    assert bundle.card.outputs == {"vector": (16,), "map": (8, 8, 12)}
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
    expected, got = answers(bundle, name, images, tmp_path)
    assert list(got) == ["vector", "map"]
    for output, values in expected.items():
        near(got[output], values, output)


# ---- tasks ---------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(10)
@pytest.mark.parametrize("name", OTHERS_SLOW)
@pytest.mark.parametrize("tap", [None, "", "blocks.3.depthwise"])
def test_every_task_in_every_runtime(
    tap: str | None, name: str, short_bundle: Callable[..., Bundle], pixels: Pixels, tmp_path: Path
) -> None:
    """Answers, pooled features, and a map: each proved by its own task."""
    bundle = short_bundle(5) if tap is None else features.of_bundle(short_bundle(5), tap)
    made = export_bundle(bundle, pixels, tmp_path / f"m{RUNTIMES[name].suffix}", "noise", name)
    assert made.task == ("classify" if tap is None else "features")
    assert made.agreement == 100
    engine = engines.load(made.path)
    assert engine.card.task == made.task
    assert {k: v.shape[1:] for k, v in engine(pixels).items()} == bundle.card.outputs


def test_features_are_what_the_classifier_reads(make_bundle: Callable[..., Bundle], pixels: Pixels) -> None:
    bundle = make_bundle("v2")
    net = module.build(bundle.card.arch)
    net.load_state_dict({k: torch.from_numpy(v) for k, v in bundle.tensors.items()})
    with torch.inference_mode():
        pooled = net.eval().pooled(torch.from_numpy(bundle.card.preprocess.normalize(pixels))).numpy()
    got = TorchEngine(features.of_bundle(bundle), 1)(pixels)
    np.testing.assert_allclose(got["features"], pooled, rtol=1e-6, atol=1e-6)
    assert not np.allclose(got["features"].sum(1), 1)  # no softmax of them


def test_a_tap_that_is_not_there(make_bundle: Callable[..., Bundle]) -> None:
    with pytest.raises(
        UserError, match=r"unknown operation 'blocks\.3\.depthwse': did you mean 'blocks\.3\.depthwise'"
    ):
        features.of_bundle(make_bundle("v1"), "blocks.3.depthwse")


def test_an_unknown_task() -> None:
    with pytest.raises(UserError, match="unknown task 'clasify': did you mean 'classify'"):
        tasks.find("clasify")


# ---- encodings -----------------------------------------------------------------------------------------------------


@pytest.mark.sampled(20)
@pytest.mark.parametrize("name", OTHERS_SLOW)
@pytest.mark.parametrize("encoding", [e for e in encodings.ENCODINGS if e != "plain"])
def test_every_encoding_in_every_runtime(
    encoding: str, name: str, short_bundle: Callable[..., Bundle], pixels: Pixels, tmp_path: Path
) -> None:
    """What is stored so, and loaded again, is exported as the plain weights that it stands for."""
    stored = short_bundle(3).encoded(encoding).save(tmp_path / "bundle")
    loaded = Bundle.load(tmp_path / "bundle")
    assert set(loaded.card.encodings.values()) == {encoding}  # of the layers that it can hold
    path = tmp_path / f"m{RUNTIMES[name].suffix}"
    made = export_bundle(loaded, pixels, path, "noise", name, "float32")
    assert made.agreement == 100
    plain = engines.build(name, stored.dense(), "float32", 1)[0](pixels)
    assert np.array_equal(engines.load(path)(pixels)["probabilities"], plain["probabilities"])


@pytest.mark.parametrize("encoding", encodings.ENCODINGS)
@pytest.mark.parametrize("shape", [(6, 40, 1, 1), (5, 1, 3, 3), (7, 33)])
def test_an_encoding_keeps_its_word(encoding: str, shape: tuple[int, ...]) -> None:
    how = encodings.find(encoding)
    weight = np.random.default_rng(0).standard_normal(shape, np.float32)
    stored = how.encode(weight)
    assert {k: v.shape for k, v in stored.items()} == how.shapes(shape)
    back = how.decode(stored, shape)
    assert (back.shape, back.dtype) == (shape, np.float32)
    # Of the largest weight, 16-bit floats keep 11 bits, codes a half step; of fewer, a few are cut off for the others.
    off = {"plain": 0, "half": 2**-11, "int8": 0.51 / 127, "int4": 0.51, "int3": 0.8, "kmeans": 0.8}.get(encoding, 1.1)
    assert np.abs(back - weight).max() <= off * np.abs(weight).max() + 0.5 * (encoding == "hashed")
    # Zeros would be this far: nothing that stores weights is as bad.
    assert ((back - weight) ** 2).mean() < (weight**2).mean()
    codes = how.codes(shape)
    assert {*codes} <= {*stored}
    assert all(stored[suffix].dtype == np.uint8 and 1 <= bits <= 8 for suffix, bits in codes.items())
    least = {"plain": 32, "half": 16, "int8": 8, "int4": 4, "int3": 3, "int2": 2, "ternary": 2, "kmeans": 4}
    assert how.bits(weight) >= least.get(encoding, 1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("kmean-4", "did you mean 'kmeans'"),
        ("kmeans-9", "kmeans takes 1 to 8, not '9'"),
        ("kmeans-x", "kmeans takes whole numbers from 1 on, not 'x'"),
        ("kmeans--1", "kmeans takes whole numbers from 1 on, not '-1'"),
        ("product-4", "product takes 1 to 64 and 2 to 256, not '4'"),
        ("product-4-200", "product takes a power of two of vectors, not '4-200'"),
        ("int8-4", "int8 takes no numbers"),
        ("hashed-1", "hashed takes 2 to 1024"),
    ],
)
def test_an_encoding_takes_its_own_numbers(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        encodings.find(name)


def test_other_numbers_are_other_bits() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 128, 1, 1), np.float32)
    errors, bits = [], []
    for name in ("kmeans-2", "kmeans-3", "kmeans-5"):
        how = encodings.find(name)
        errors.append(((how.decode(how.encode(weight), weight.shape) - weight) ** 2).mean())
        bits.append(how.bits(weight))
    assert errors == sorted(errors, reverse=True)
    assert bits == sorted(bits)
    sparse = encodings.find("sparse-90")
    assert (sparse.decode(sparse.encode(weight), weight.shape) == 0).mean() == pytest.approx(0.9, abs=0.01)


# ---- a new one is a line in a table --------------------------------------------------------------------------------


@pytest.fixture
def square(monkeypatch: pytest.MonkeyPatch) -> tuple[Op, ...]:
    """A kind of operation that the package doesn't know: it multiplies its input by itself."""

    class Square(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x

    monkeypatch.setitem(KINDS, "square", Kind(lambda _op, inputs: inputs[0]))
    monkeypatch.setitem(module.MODULES, "square", lambda _op, _arch: Square())
    monkeypatch.setitem(onnx.EMIT, "square", lambda writer, op, x: writer.node("Mul", [x, x], f"{op.name}.out"))
    return (Op("extra", "square", 16, 16, inputs=(LAST,)),)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_a_toy_operation(square: tuple[Op, ...], precision: str, pixels: Pixels, tmp_path: Path) -> None:
    bundle = network(square, precision)
    expected, got = answers(bundle, "onnxruntime", pixels[:3], tmp_path)
    np.testing.assert_allclose(got["answer"], expected["answer"], rtol=1e-3, atol=0.3 if precision == "int8" else 1e-3)
    bundle.save(tmp_path / "bundle")
    assert Bundle.load(tmp_path / "bundle").card.graph == bundle.card.graph


@pytest.mark.parametrize("name", [n for n in QUICK if n not in ("onnxruntime", "openvino")])
def test_a_runtime_that_does_not_know_the_toy_says_so(square: tuple[Op, ...], name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no square \(extra\)"):
        engines.module(name).write(network(square), tmp_path / f"m{RUNTIMES[name].suffix}", None)


def test_a_toy_encoding(
    monkeypatch: pytest.MonkeyPatch, make_bundle: Callable[..., Bundle], pixels: Pixels, tmp_path: Path
) -> None:
    """Signs and one size for each layer: nothing but the table hears of it."""
    signs = encodings.Encoding(
        lambda shape: {"_sign": shape, "_size": ()},
        lambda w: {"_sign": np.sign(w).astype(np.int8), "_size": np.asarray(np.abs(w).mean())},
        lambda t, _shape: t["_sign"] * t["_size"],
    )
    monkeypatch.setitem(encodings.ENCODINGS, "signs", signs)
    bundle = make_bundle("v1").encoded("signs").save(tmp_path / "bundle")
    loaded = Bundle.load(tmp_path / "bundle")
    assert len(np.unique(loaded.dense().tensors["classifier.weight"])) <= 3
    made = export_bundle(loaded, pixels, tmp_path / "m.onnx", "noise", precision="float32")
    assert made.agreement == 100
    assert bundle.digest != make_bundle("v1").digest


def test_a_toy_task(
    monkeypatch: pytest.MonkeyPatch, make_bundle: Callable[..., Bundle], pixels: Pixels, tmp_path: Path
) -> None:
    """Whether the first class is the likeliest: another head, other answers, proved and run by the task alone."""

    class First(Classify):
        name = "first"

        def head(self, arch, config):  # type: ignore[no-untyped-def]  # noqa: ARG002
            last = arch.ops[-1]
            ops = (
                Op("first.pair", "concat", 2 * last.cout, 2 * last.cout, inputs=(last.name, last.name)),
                Op("answer", "flatten", 2 * last.cout, 2 * last.cout, inputs=("first.pair",)),
            )
            return Head(ops, (Output("answer", "answer"),), (last.name,))

        def parity(self, reference, other, precision, limits=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
            renamed = ({"probabilities": x["answer"]} for x in (reference, other))
            return super().parity(*renamed, precision, (99.0, 1e9))

        def decode(self, outputs, card, sizes, top):  # type: ignore[no-untyped-def]  # noqa: ARG002
            return [f"first: {row.argmax() == 0}" for row in outputs["answer"]]

    import sys
    import types

    toy = types.ModuleType("toy_task")
    toy.TASK = First()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_task", toy)
    monkeypatch.setitem(tasks.TASKS, "first", "toy_task")
    base = make_bundle("v1")
    card = base.card.replace(task="first", head=toy.TASK.head(base.card.arch, {}))
    bundle = Bundle(card, base.tensors).save(tmp_path / "bundle")
    made = export_bundle(Bundle.load(tmp_path / "bundle"), pixels, tmp_path / "m.onnx", "noise")
    assert (made.task, made.agreement) == ("first", 100)

    from mobilenets.deploy.predict import load

    said = [str(p) for p in load(made.path).predict([*pixels[:2]])]
    assert all("first: " in line for line in said)
    assert bundle.card.outputs == {"answer": (20,)}


def test_the_random_bundle_of_a_rectangle() -> None:
    arch = dataclasses.replace(ARCH, num_classes=3, size=(32, 64))
    bundle = random_bundle(arch)
    assert bundle.card.preprocess.input_size == (32, 64)
    assert graphs.pads(arch.ops[0], (3, 32, 64), "same") == (0, 0, 1, 1)
