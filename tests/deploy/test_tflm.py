import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from small import quantized, smooth_images

pytest.importorskip("tflite_micro")
pytest.importorskip("ai_edge_litert")

from ai_edge_litert.interpreter import Interpreter, OpResolverType

from mobilenets.arch import zoo
from mobilenets.arch.graph import Head, Output
from mobilenets.arch.operations import Op
from mobilenets.arch.rows import Conv, Separable
from mobilenets.arch.spec import Arch, scale
from mobilenets.compression.scheme import Scheme
from mobilenets.deploy import engines, export
from mobilenets.deploy.engines import tflm
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.deploy.lowering import lower
from mobilenets.deploy.writers import c_array, tflite, tflite_graph
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, random_bundle, with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.images import Preprocess

NETWORKS = ["v1", "v2", "v3-small", "v4-conv-s"]


@pytest.fixture(scope="module")
def int8(make_bundle):
    made = {}

    def make(name="v1", **options):
        key = (name, *sorted(options.items()))
        if key not in made:
            made[key] = quantized(make_bundle(name, **options), smooth_images(24, seed=100))
        return made[key]

    return make


def written(b, path):
    tflm.write(b, path, None)
    return path


def sure(b, count, of):
    """Images that the network is sure of: rounding decides between two classes that are alike."""
    images = smooth_images(of, b.card.arch.resolution, seed=5)
    best = np.sort(TorchEngine(b, 1)(images)["probabilities"], 1)
    return images[np.argsort(best[:, -2] - best[:, -1])[:count]]


def reference(b, images):
    """What TensorFlow Lite's reference kernels compute, of the image as it is."""
    lowered = lower(b, in_float=lambda op: tflite.computed_in_float(op, micro=True), same_only=True)
    model = tflite._Writer(lowered, None, turned=False).write({})
    other = Interpreter(model_content=model, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    image = other.get_input_details()[0]["index"]
    other.resize_tensor_input(image, images.shape)
    other.allocate_tensors()
    other.set_tensor(image, images)
    other.invoke()
    outputs = tflite_graph.signature_outputs(tflite_graph.open_model(model))
    return {name: other.get_tensor(i) for name, i in outputs.items()}


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(
    ("name", "padding"),
    [
        *zip(NETWORKS, ("symmetric", "same", "symmetric", "same"), strict=True),
        *(
            pytest.param(name, padding, marks=pytest.mark.slow)
            for name, padding in zip(NETWORKS, ("same", "symmetric", "same", "symmetric"), strict=True)
        ),
    ],
)
def test_it_is_what_the_reference_kernels_compute(int8, tmp_path, pixels, name, padding):
    """Bit for bit, and though the image is turned: the same integers, in another order."""
    b = int8(name, padding=padding)
    engine = engines.load(written(b, tmp_path / "m.c-array"))
    assert (engine.name, engine.concurrent) == ("tflm", False)
    (expected,) = reference(b, pixels[:6]).values()
    np.testing.assert_allclose(engine(pixels[:6])["probabilities"], expected, atol=1e-6)


@pytest.mark.parametrize("name", ["v1", pytest.param("v3-small", marks=pytest.mark.slow)])
def test_a_folder_and_its_proof(int8, tmp_path, name):
    b = int8(name)
    made = export.export_bundle(b, sure(b, 8, 64), tmp_path / "m.c-array", "noise", "tflm")
    assert (made.precision, made.engine) == ("int8", "tflm")
    assert sorted(p.name for p in made.path.iterdir()) == ["model.c", "model.h", "model.json"]
    assert engines.load(made.path).card == b.card.replace(parent=b.digest)


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("name", ["v1", *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS[1:])])
def test_near_the_reference(int8, tmp_path, name):
    """Its kernels round twice, so that one value in 500 is a step off after each layer."""
    b = int8(name)
    images = sure(b, 16, 64)
    x, y = (
        TorchEngine(b, 1)(images)["probabilities"],
        engines.load(written(b, tmp_path / "m.c-array"))(images)["probabilities"],
    )
    assert np.abs(x - y).mean() < 0.02
    assert (x.argmax(1) == y.argmax(1)).mean() >= 0.9


# ---- other tasks

ARCH = Arch("small", 1.0, 32, 0, (Conv(8, stride=2), Separable(16, stride=2)), activation="relu6")
LAST, MIDDLE = "blocks.1.pointwise", "blocks.1.depthwise"
FLAT = (Op("mean", "pool", 16, 16, inputs=(LAST,)), Op("vector", "flatten", 16, 16, inputs=("mean",)))
GATES = Op("gates", "sigmoid", 16, 16, inputs=("vector",))
UNIT = Op("unit", "l2norm", 16, 16, inputs=("vector",))


def network(ops, outputs, size=(32, 32), **fields):
    card = Card(ARCH.replace(size=size), Preprocess(32, size=size), Head(ops, outputs), task="features", **fields)
    return with_random_weights(card, "int8")


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(
    ("ops", "outputs", "turned"),
    [
        (FLAT, (Output("vector", "vector"),), True),
        ((*FLAT, UNIT), (Output("unit", "unit"), Output("vector", "vector")), True),
        ((*FLAT, GATES), (Output("gates", "gates"),), True),
        (FLAT, (Output("vector", "vector"), Output("map", MIDDLE)), False),  # a map would be seen turned
        ((Op("all", "flatten", 16 * 96, 16 * 96, inputs=(LAST,)),), (Output("all", "all"),), False),
        # Of a side of 8, a kernel of 1 sees the first pixel of two, and turned the last; of 5, all.
        ((Op("x", "pointwise", 16, 16, 1, 2, inputs=(LAST,)), *FLAT), (Output("v", "vector"), Output("x", "x")), False),
        ((Op("x", "conv", 16, 16, 5, 2, inputs=(LAST,)), FLAT[1], UNIT), None, True),
        ((Op("x", "conv", 16, 16, 1, 2, inputs=(LAST,)), FLAT[1], UNIT), None, False),
        ((Op("x", "conv", 16, 16, 3, 4, inputs=(LAST,)), FLAT[1], UNIT), None, False),
        ((Op("x", "conv", 16, 16, 3, kernel_width=5, grouped=4, inputs=(LAST,)), FLAT[1], UNIT), None, True),
    ],
)
def test_outputs_by_name_and_turned_where_no_answer_changes(tmp_path, ops, outputs, turned):
    """Of an input that isn't square."""
    if outputs is None:  # the layer's mean, of length 1
        ops, outputs = (ops[0], Op("mean", "pool", 16, 16, inputs=("x",)), *ops[1:]), (Output("unit", "unit"),)
    b = network(ops, outputs, (32, 48))
    assert tflite.can_be_turned(b.card.graph) == turned
    assert ("REVERSE_V2" in tflite_graph.operators(tflite_graph.open_model(tflm.model(b)))) == turned
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
    expected, got = reference(b, images), engines.load(written(b, tmp_path / "m.c-array"))(images)
    assert [*got] == [*expected] == [o.name for o in outputs]
    torch = TorchEngine(b, 1)(images)
    for name, y in got.items():
        assert y.shape == (3, *b.card.outputs[name])
        np.testing.assert_allclose(y, expected[name], atol=1e-6)
        np.testing.assert_allclose(y, torch[name], atol=0.1 * np.abs(torch[name]).max())


# ---- memory


@pytest.mark.parametrize(("name", "side"), [("v1", 32), ("v1", 96), ("v2", 64), ("v3-small", 96)])
def test_the_arena_is_what_it_needs(name, side):
    b = random_bundle(zoo.arch(name, 0.25 if name == "v1" else 0.35, side, 10), "int8")
    arena, flash = tflm.needs(b)
    model = tflm.model(b)
    assert flash == len(model)
    tflm.interpreter(model, arena, "model").invoke()
    with pytest.raises(UserError, match=f"an arena of {arena - 2 * tflm.STEP:,} bytes is too small"):
        tflm.interpreter(model, arena - 2 * tflm.STEP, "model")


def test_more_pixels_need_more_memory_and_no_more_flash():
    small, large = (tflm.needs(random_bundle(zoo.arch("v1", 0.25, side, 10), "int8")) for side in (96, 128))
    assert large[0] > 1.3 * small[0]
    assert large[1] == small[1]


def test_a_turned_image_saves_the_padded_maps():
    b = random_bundle(zoo.arch("v2", 0.35, 96, 10), "int8")
    padded = tflm.arena_bytes(tflite.tflite_graph(b, 1))
    assert tflm.needs(b)[0] < 0.8 * padded


def test_flash_holds_the_network_alone(int8):
    b = int8("v1")
    model = tflm.model(b)
    assert tflite_graph.entry(tflite_graph.open_model(model), tflite_graph.CARD_KEY) is None
    assert len(model) < len(tflite.tflite_model(b))


@pytest.mark.slow
def test_nothing_is_said_on_stderr(int8, capfd):
    tflm.needs(int8("v2"))
    assert capfd.readouterr() == ("", "")


# ---- C


def test_a_program_has_the_same_bytes(int8, tmp_path):
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("there is no gcc")
    b = int8("v2")
    labels = ('quote " and \\', "trigraph ??/", "café", "*/ end", *b.card.labels[4:])
    b = Bundle(b.card.with_labels(labels), b.tensors)
    folder = written(b, tmp_path / "m.c-array")
    (tmp_path / "main.c").write_text("""\
#include <stdint.h>
#include <stdio.h>
#include "model.h"

int main(void) {
  if ((uintptr_t)model_data % 16) return 1;
  for (int i = 0; i < MODEL_CLASSES; i++) puts(model_labels[i]);
  fwrite(model_data, 1, MODEL_BYTES, stdout);
  return 0;
}
""")
    flags = ["-Wall", "-Wextra", "-Werror", "-std=c11", "-pedantic", f"-I{folder}"]
    program = tmp_path / "program"
    files = [str(tmp_path / "main.c"), str(folder / "model.c")]
    done = subprocess.run([gcc, *flags, *files, "-o", str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out = subprocess.run([str(program)], capture_output=True, check=True).stdout
    assert out == "".join(f"{label}\n" for label in labels).encode() + tflm.model(b)
    text = (folder / "model.h").read_text()
    defined = dict(re.findall(r"^#define MODEL_(\w+) (.*)$", text, re.MULTILINE))
    assert (defined["SIDE"], defined["CLASSES"], defined["INPUT_ZERO_POINT"]) == ("32", "10", "128")
    assert int(defined["ARENA_BYTES"]) == tflm.needs(b)[0]
    assert text.count("resolver.Add") == int(defined["OPERATORS"])


def test_the_header_of_another_task(tmp_path):
    """Its outputs by name and shape, in their order; no labels, though its config has some."""
    outputs = (Output("vector", "vector", "pooled */ features"), Output("map", MIDDLE))
    folder = written(network(FLAT, outputs, (32, 48), config={"labels": ["a"]}), tmp_path / "m.c-array")
    header = (folder / "model.h").read_text()
    assert (
        " * Output 0, vector: float32 [1, 16], pooled * / features.\n * Output 1, map: float32 [1, 8, 8, 12].\n"
        in header
    )
    assert "[1, 32, 48, 3], RGB as a camera gives it: the centre, 0.875 of the largest part in these" in header
    assert "#define MODEL_HEIGHT 32\n#define MODEL_WIDTH 48\n/*" in header
    assert "AddTranspose();" in header
    assert not re.search("MODEL_CLASSES|MODEL_SIDE|labels", header + (folder / "model.c").read_text())
    gcc = shutil.which("gcc")
    if gcc is not None:
        line = [gcc, "-Wall", "-Wextra", "-Werror", "-std=c11", "-pedantic", "-fsyntax-only", str(folder / "model.c")]
        assert subprocess.run(line, check=False).returncode == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "the centre square, 0.875 of the short side."),
        ({"framing": "letterbox"}, "the whole image, its proportions kept, 128 around it."),
        ({"framing": "stretch"}, "the whole image, out of proportion."),
        ({"mean": (1.0, 2.0, 3.0)}, "MODEL_INPUT_SCALE 1f\n#define MODEL_INPUT_ZERO_POINT 0\n"),
    ],
)
def test_the_header_says_what_the_input_is(int8, changes, said):
    card = int8("v1").card
    assert said in c_array.header(card.replace(preprocess=Preprocess(32, **changes)), b"", 0, ["ADD"])


def test_a_header_is_cpp_too(int8, tmp_path):
    gpp = shutil.which("g++")
    if gpp is None:
        pytest.skip("there is no g++")
    folder = written(int8("v1"), tmp_path / "m.c-array")
    line = [gpp, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c++", str(folder / "model.h")]
    assert subprocess.run(line, check=False).returncode == 0


def test_a_comment_can_not_be_ended(int8):
    b = int8("v1")
    arch = b.card.arch.replace(name="x */ int y;")
    text = c_array.header(b.card.replace(arch=arch), b"", 0, ["ADD"])
    assert text.index("*/") == text.index(" */\n#ifndef") + 1


def test_the_resolver_is_told_of_every_operator():
    for name in (*NETWORKS, "v4-hybrid-m"):
        b = random_bundle(zoo.arch(name, 0.25, 32, 10), "int8")
        kinds = tflite_graph.operators(tflite_graph.open_model(tflm.model(b)))
        assert set(kinds) <= set(c_array.METHODS)
        assert {"CONV_2D", "DEPTHWISE_CONV_2D", "SOFTMAX"} <= set(kinds)
    assert set(tflite_graph.VERSIONS) - set(c_array.METHODS) == {
        "AVERAGE_POOL_2D",
        "DENSIFY",
        "GELU",
        "MAX_POOL_2D",
        "PADV2",
        "TOPK_V2",
    }  # which it hasn't got, or isn't told of


def test_zeros_are_written_where_sparse_weights_are_not_read(make_bundle, pixels):
    """Those of a pruned layer that is kept in float, which a .tflite file leaves out."""
    name = "blocks.3.pointwise"
    pruned = make_bundle("v1").encoded("sparse-80").dense()
    b = quantized(pruned, pixels[:4], Scheme(float_ops=(name,)))
    assert (b.tensors[f"{name}.weight"] == 0).mean() > 0.7
    for data, without in ((tflm.model(b), False), (tflite.tflite_model(b), True)):
        assert ("DENSIFY" in tflite_graph.operators(tflite_graph.open_model(data))) == without


# ---- faults


@pytest.mark.usefixtures("ours")
def test_an_operator_it_has_not(tmp_path):
    b = random_bundle(scale(zoo.network("v1"), 0.25, 32, 10, activation="gelu"), "int8")
    with pytest.raises(UserError, match="TensorFlow Lite Micro can't run this: it has no GELU operator; choose"):
        export.export_bundle(b, smooth_images(2), tmp_path / "m.c-array", "noise", "tflm")
    with pytest.raises(UserError, match=r"v1 0\.25-32: TensorFlow Lite Micro can't run this: it has no GELU operator"):
        tflm.needs(b)
    assert not list(tmp_path.iterdir())


def test_one_image_at_a_time(int8, tmp_path):
    with pytest.raises(UserError, match="one image at a time, not 4; leave --batch out"):
        export.export_bundle(int8("v1"), smooth_images(2), tmp_path / "m.c-array", "noise", "tflm", batch=4)
    assert not list(tmp_path.iterdir())


def test_only_int8(make_bundle):
    with pytest.raises(UserError, match="a microcontroller runs int8 networks, and this one is float32; quantize it"):
        tflm.needs(make_bundle("v1"))
    with pytest.raises(UserError, match="unknown precision for tflm 'float32'"):
        engines.check_precision("tflm", "float32")


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "model.c").unlink(), "not a readable c-array folder: .*model.c"),
        (lambda p: (p / "model.h").write_text(""), "no MODEL_ARENA_BYTES in it"),
        (lambda p: (p / "model.c").write_text("int x;"), "no model_data in it"),
        (lambda p: change(p / "model.c", "0x", "0y"), "not a readable c-array folder"),
        (lambda p: change(p / "model.c", "0x54,", "0x55,"), "TensorFlow Lite Micro can't run this: no TFL3"),
        (lambda p: (p / "model.json").unlink(), "not a readable c-array folder: .*model.json"),
        (lambda p: (p / "model.json").write_text("{"), r"model\.json: the card inside isn't JSON"),
        (lambda p: (p / "model.json").write_text(json.dumps({"format": 99})), "newer mobilenets"),
        (lambda p: change(p / "model.h", "ARENA_BYTES ", "ARENA_BYTES 1 // "), "no MODEL_ARENA_BYTES"),
    ],
)
def test_a_damaged_folder(int8, tmp_path, spoil, message):
    folder = written(int8("v1"), tmp_path / "m.c-array")
    spoil(folder)
    with pytest.raises(UserError, match=message) as e:
        engines.load(folder)
    assert "\n" not in str(e.value)
    assert "m.c-array" in str(e.value)


@pytest.mark.usefixtures("ours")
def test_the_card_of_another_network(int8, tmp_path):
    folder = written(int8("v1"), tmp_path / "m.c-array")
    for card in (
        random_bundle(zoo.arch("v1", 0.25, 64, 10), "int8").card,
        network(FLAT, (Output("v", "vector"),)).card,
    ):
        (folder / "model.json").write_text(json.dumps(card.to_json()))
        with pytest.raises(UserError, match=r"m\.c-array: the card inside is another network's.*export it again"):
            engines.load(folder)
    two = network(FLAT, (Output("vector", "vector"), Output("again", "vector")))
    folder = written(two, tmp_path / "two.c-array")
    assert [*engines.load(folder)(smooth_images(2))] == ["vector", "again"]
    (folder / "model.json").write_text(json.dumps(network(FLAT, (Output("vector", "vector"),)).card.to_json()))
    with pytest.raises(UserError, match="the card inside is another network's"):
        engines.load(folder)


def test_the_folder_is_proved_as_it_is_written(int8, tmp_path, monkeypatch):
    """Bytes changed on the way into model.c are noticed, not only a wrong network."""
    right = c_array.source
    monkeypatch.setattr(c_array, "source", lambda model, labels: right(model, labels).replace("0x7f,", "0x01,"))
    with pytest.raises(UserError):
        export.export_bundle(int8("v1"), smooth_images(8), tmp_path / "m.c-array", "noise", "tflm")
    assert not list(tmp_path.iterdir())
