"""Networks as C source: compiled by what is here, it computes what the native engine does, in the memory it says."""

from __future__ import annotations

import dataclasses
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small import quantized, smooth_images

from mobilenets.arch import zoo
from mobilenets.arch.graph import Head, Output
from mobilenets.arch.operations import Op
from mobilenets.arch.rows import Conv, Separable
from mobilenets.arch.spec import Arch
from mobilenets.deploy import engines, export
from mobilenets.deploy.engines import RUNTIMES, c, native, native_library
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.deploy.writers import c_engine, c_plan, c_source, lean_plan
from mobilenets.deploy.writers.native import native_model
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, random_bundle, with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.images import Pixels, Preprocess

STRICT = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
SIDE = 32
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX2 = X86 and Path("/proc/cpuinfo").exists() and " avx2 " in Path("/proc/cpuinfo").read_text()
# The file itself, in a program that reads an image, runs it twice, and says how much of its memory it took.
MAIN = """
#include "net.c"
#include <stdio.h>
static uint8_t rgb[NET_HEIGHT * NET_WIDTH * 3];
int main(void)
{
    float out[NET_PROBABILITIES];
    if (fread(rgb, 1, sizeof rgb, stdin) != sizeof rgb || net_predict(rgb, out) || net_predict(rgb, out))
        return 1;
    for (int i = 0; i < NET_PROBABILITIES; i++)
        printf("%a\\n", out[i]);
    printf("%ld %ld\\n", (long)taken, (long)sizeof memory);
    return 0;
}
"""

pytestmark = pytest.mark.usefixtures("ours")
compiles = pytest.mark.skipif(not COMPILERS, reason="no C compiler here")


def has(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"no {tool} here")


def written(bundle: Bundle, folder: Path, name: str = "net") -> Path:
    path = folder / f"{name}.c-source"
    c.write(bundle, path, None)
    return path


def small(name: str = "v1", precision: str = "int8") -> Bundle:
    return random_bundle(zoo.arch(name, 0.25, SIDE, 10), precision)  # type: ignore[arg-type]


def compiled(folder: Path, *command: str) -> Path:
    (folder / "main.c").write_text(MAIN)
    made = folder / "program"
    done = subprocess.run(
        [*command, *STRICT, "-o", str(made), str(folder / "main.c"), "-lm"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[:2000]
    return made


def ran(image: Pixels, *command: object) -> tuple[list[float], int, int]:
    done = subprocess.run(
        [str(a) for a in command], input=image.tobytes(), capture_output=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    *numbers, sizes = done.stdout.decode().split("\n")[:-1]
    taken, there = map(int, sizes.split())
    return [float.fromhex(n) for n in numbers], taken, there


def expected(bundle: Bundle, image: Pixels, folder: Path, isa: str = "scalar") -> list[float]:
    if not native_library.built():
        pytest.skip("the native engine isn't built here")
    native.write(bundle, folder / "m.mnet", None)
    return [float(v) for v in native.NativeEngine(folder / "m.mnet", 1, isa)(image)["probabilities"][0]]


# ---- the same numbers


@pytest.mark.sampled(2)
@compiles
@pytest.mark.parametrize(
    ("name", "precision"),
    [*((n, "int8") for n in ("v1", "v2", "v3-small", "v4-conv-s")), ("v1", "float32"), ("v3-small", "float32")],
)
def test_plain_c_is_the_native_engine(name: str, precision: str, tmp_path: Path) -> None:
    """To the byte, and the memory planned is what it takes."""
    bundle, image = small(name, precision), smooth_images(1, SIDE)
    program = compiled(written(bundle, tmp_path), COMPILERS[0])
    numbers, taken, there = ran(image, program)
    assert taken == there
    assert numbers == expected(bundle, image, tmp_path)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["v1", "v2", "v3-small", "v4-conv-s"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_plan_for_little_memory(name: str, precision: str, tmp_path: Path) -> None:
    """The engine finds nothing wrong with it, and it changes where numbers are computed, not which."""
    bundle, image = random_bundle(zoo.arch(name, 0.5, 96, 10), precision), smooth_images(1, 96)  # type: ignore[arg-type]
    data = native_model(bundle, lean_plan.plan)
    lean, usual = c_plan.parse(data), c_plan.parse(native_model(bundle))
    assert lean.weights == usual.weights
    assert c_plan.memory(lean, "mnet_scalar") < 0.8 * c_plan.memory(usual, "mnet_scalar")
    wanted = expected(bundle, image, tmp_path)
    (tmp_path / "m.mnet").write_bytes(data)
    got = native.NativeEngine(tmp_path / "m.mnet", 1, "scalar")(image)["probabilities"][0]
    assert [float(v) for v in got] == wanted


@pytest.mark.parametrize("compiler", [pytest.param(n, marks=has(n)) for n in ("gcc", "clang")])
@pytest.mark.parametrize(
    "flags",
    [(), pytest.param(("-mavx2",), marks=[pytest.mark.slow, pytest.mark.skipif(not AVX2, reason="no AVX2")])],
)
def test_compilers_and_instruction_sets(compiler: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    bundle, image = small("v2"), smooth_images(1, SIDE)
    numbers, taken, there = ran(image, compiled(written(bundle, tmp_path), compiler, *flags))
    assert taken == there
    assert numbers == expected(bundle, image, tmp_path)


@pytest.mark.slow
@has("aarch64-linux-gnu-gcc")
@has("qemu-aarch64")
@pytest.mark.parametrize("flags", [(), ("-march=armv8.2-a+dotprod",), ("-march=armv8.2-a+dotprod+i8mm",)])
def test_aarch64(flags: tuple[str, ...], tmp_path: Path) -> None:
    bundle, image = small("v3-small"), smooth_images(1, SIDE)
    program = compiled(written(bundle, tmp_path), "aarch64-linux-gnu-gcc", "-static", *flags)
    numbers, taken, there = ran(image, "qemu-aarch64", "-cpu", "max", program)
    assert taken == there
    np.testing.assert_allclose(numbers, expected(bundle, image, tmp_path), rtol=1e-6)  # its C library's expf


@pytest.mark.slow
@compiles
def test_the_fastest_kernels_of_this_processor(tmp_path: Path) -> None:
    """What runs where a user has it proved: `c.flags` is of any processor in the other tests."""
    bundle, image = small("v3-small"), smooth_images(1, SIDE)
    options = ["-march=native"] if X86 else []
    got = c.CEngine(written(bundle, tmp_path), options)(image)["probabilities"][0]
    assert [float(v) for v in got] == expected(bundle, image, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [pytest.param(n, marks=has(n)) for n in ("gcc", "clang")])
@pytest.mark.parametrize("flags", [("-march=icelake-server",), ("-mavx2", "-mavxvnni")])
@pytest.mark.skipif(not X86, reason="not an x86 processor")
def test_instruction_sets_compile(compiler: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    compiled(written(small("v3-small"), tmp_path), compiler, *flags)


@pytest.mark.slow
@has("gcc")
def test_nothing_outside_its_memory(tmp_path: Path) -> None:
    """What the sanitizers see: reads and writes beside constants and memory, shifts and sums that aren't defined."""
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n")
    try:
        subprocess.run(["gcc", *flags, "-o", tmp_path / "a", tmp_path / "empty.c"], check=True, capture_output=True)
    except subprocess.CalledProcessError:
        pytest.skip("this compiler has no sanitizers")
    bundle, image = small("v3-small"), smooth_images(1, SIDE)
    numbers, _, _ = ran(image, compiled(written(bundle, tmp_path), "gcc", *flags))
    assert numbers == expected(bundle, image, tmp_path)


# ---- small processors


THUMB = ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]
CORTEX = {
    "arm-none-eabi-gcc": ["arm-none-eabi-gcc", *THUMB],
    "clang": [
        "clang",
        "--target=thumbv7em-none-eabihf",
        "-mcpu=cortex-m4",
        "-isystem",
        "/usr/lib/arm-none-eabi/include",
    ],
}


@has("arm-none-eabi-gcc")
@pytest.mark.parametrize("compiler", [pytest.param(n, marks=has(n)) for n in CORTEX])
def test_a_microcontroller(compiler: str, tmp_path: Path) -> None:
    """An object's constants and code are the weights and a little; its memory is what the header says."""
    bundle = random_bundle(zoo.arch("v1", 0.25, 96, 10), "int8")
    folder = written(bundle, tmp_path)
    made = folder / "net.o"
    subprocess.run([*CORTEX[compiler], *STRICT, "-c", str(folder / "net.c"), "-o", str(made)], check=True)
    size = subprocess.run(["arm-none-eabi-size", str(made)], capture_output=True, text=True, check=True).stdout
    text, data, bss = map(int, size.split("\n")[1].split()[:3])
    weights = len(c_plan.parse(native_model(bundle)).weights)
    assert weights < text < weights + 24_000
    assert data == 0
    assert c.ram_bytes(folder) <= bss < c.ram_bytes(folder) + 2_000


@has("arm-none-eabi-gcc")
def test_what_is_not_used_is_left_out(tmp_path: Path) -> None:
    folder = written(small("v1"), tmp_path)
    made = folder / "net.o"
    subprocess.run([*CORTEX["arm-none-eabi-gcc"], *STRICT, "-c", str(folder / "net.c"), "-o", str(made)], check=True)
    names = subprocess.run(["arm-none-eabi-nm", str(made)], capture_output=True, text=True, check=True).stdout
    assert "net_predict" in names
    assert "expf" in names
    assert not re.search(r"f32|add_u8|mul_u8|malloc|printf|erff|ldexpf", names)
    own = ["-DNET_EXPF=my_own_exp", "-include", str(tmp_path / "own.h")]
    (tmp_path / "own.h").write_text("float my_own_exp(float x);\n")
    subprocess.run(
        [*CORTEX["arm-none-eabi-gcc"], *STRICT, *own, "-c", str(folder / "net.c"), "-o", str(made)], check=True
    )
    names = subprocess.run(["arm-none-eabi-nm", str(made)], capture_output=True, text=True, check=True).stdout
    assert "my_own_exp" in names
    assert "expf" not in names


# ---- the files


@has("g++")
def test_the_header_in_cpp(tmp_path: Path) -> None:
    folder = written(small(), tmp_path)
    (folder / "use.cpp").write_text(
        '#include "net.h"\nfloat out[NET_CLASSES];\nconst char *first() { return net_labels[0]; }\n'
    )
    command = [
        "g++",
        "-std=c++11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pedantic",
        "-fsyntax-only",
        str(folder / "use.cpp"),
    ]
    subprocess.run(command, check=True)


@compiles
def test_a_folder_and_its_proof(make_bundle: Callable[..., Bundle], pixels: Pixels, tmp_path: Path) -> None:
    bundle = quantized(make_bundle("v1"), pixels)
    made = export.export_bundle(bundle, pixels[:8], tmp_path / "My 1st net.c-source", "noise", "c")
    assert (made.engine, made.precision) == ("c", "int8")
    assert sorted(p.name for p in made.path.iterdir()) == ["card.json", "my_1st_net.c", "my_1st_net.h"]
    defined = (made.path / "my_1st_net.h").read_text()
    assert f"#define MY_1ST_NET_ARENA_BYTES {made.ram_bytes}\n" in defined
    assert export.Export.from_json(made.to_json()) == made
    assert engines.load(made.path).card == bundle.card.replace(parent=bundle.digest)


@pytest.mark.parametrize(
    ("text", "name"),
    [("Flowers-2", "flowers_2"), ("3 kinds", "net_3_kinds"), ("日本", "network"), ("__x", "x"), ("a.b", "a_b")],
)
def test_names(text: str, name: str) -> None:
    assert c_source.c_name(text) == name


@pytest.mark.slow
@compiles
def test_labels_and_several_outputs(tmp_path: Path, pixels: Pixels) -> None:
    """Each output has its parameter; maps are channels first."""
    arch = Arch("small", 1.0, 32, 0, (Conv(8, stride=2), Separable(16, stride=2)), activation="relu6")
    ops = (
        Op("mean", "pool", 16, 16, inputs=("blocks.1.pointwise",)),
        Op("vector", "flatten", 16, 16, inputs=("mean",)),
    )
    outputs = (Output("vector", "vector"), Output("map", "blocks.1.depthwise"))
    for precision in ("float32", "int8"):
        card = Card(arch, Preprocess(32), Head(ops, outputs), task="features")
        bundle = with_random_weights(card, precision)  # type: ignore[arg-type]
        path = written(bundle, tmp_path, precision)
        assert (
            f"{precision}_predict(const uint8_t *rgb, float *vector, float *map)"
            in (path / f"{precision}.h").read_text()
        )
        want, got = TorchEngine(bundle, 1)(pixels[:2]), engines.load(path)(pixels[:2])
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-3, atol=1e-3 * np.abs(value).max())


def test_the_engine_is_one_text() -> None:
    text = c_engine.engine()
    assert not re.search(r'#include "|malloc|calloc|stdio|stdatomic|pthread', text)
    assert not re.search(r"^(?!static)[a-z][\w ]*[ *]mnet_\w+\(", text, re.MULTILINE)


# ---- what can go wrong


def test_what_it_has_not_got(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one image at a time, not 4"):
        c.write(small(), tmp_path / "m.c-source", 4)
    with pytest.raises(UserError, match="unknown precision for c 'float16'"):
        engines.check_precision("c", "float16")


@compiles
def test_source_from_elsewhere_is_not_run(tmp_path: Path) -> None:
    """Source is a program: what has changed since it was written here isn't compiled."""
    folder = written(small(), tmp_path)
    assert engines.load(folder).name == "c"
    with (folder / "net.c").open("a") as f:
        f.write("\n")
    with pytest.raises(UserError, match="source is only run where it was written"):
        engines.load(folder)


@compiles
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: (p / "card.json").unlink(), "not a readable folder of C source"),
        (lambda p: (p / "net.c").rename(p / "other.c"), "has to have one .c and one .h"),
        (lambda p: (p / "card.json").write_text("{"), "isn't JSON"),
    ],
)
def test_damaged(damage: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    folder = written(small(), tmp_path)
    damage(folder)
    with pytest.raises(UserError, match=says):
        engines.load(folder)


def test_without_a_compiler(
    make_bundle: Callable[..., Bundle], pixels: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written, unproved; running it says what to install."""
    monkeypatch.setitem(RUNTIMES, "c", dataclasses.replace(RUNTIMES["c"], runs_here=False))
    monkeypatch.setattr(c, "compiler", lambda: None)
    made = export.export_bundle(make_bundle("v1"), pixels, tmp_path / "m.c-source", "noise", "c")
    assert made.agreement is None
    assert made.ram_bytes
    with pytest.raises(UserError, match="no C compiler here"):
        engines.load(made.path)


@compiles
def test_wrong_numbers_are_not_kept(
    make_bundle: Callable[..., Bundle], pixels: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = c_source.source
    monkeypatch.setattr(c_source, "source", lambda *a: right(*a).replace(",0xf", ",0x1"))
    with pytest.raises(UserError, match="it differs from PyTorch"):
        export.export_bundle(quantized(make_bundle("v1"), pixels), pixels[:8], tmp_path / "m.c-source", "noise", "c")
    assert not (tmp_path / "m.c-source").exists()
