"""Damaged and hostile .mnet files: one clear line, never a read or a write outside the engine's buffers."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from small import changed, few_values, mostly_zeros

from mobilenets.arch import zoo
from mobilenets.arch.rows import Conv, Separable
from mobilenets.arch.spec import Arch, scale
from mobilenets.deploy import engines
from mobilenets.deploy.engines import native, native_library
from mobilenets.deploy.writers.native import native_model
from mobilenets.deploy.writers.native_file import OPERATION, Constants, joined
from mobilenets.deploy.writers.native_plan import KINDS, Plan
from mobilenets.errors import UserError
from mobilenets.model.bundle import random_bundle
from mobilenets.model.encodings import Array

NATIVE = Path(__file__).parents[2] / "native"
COMPILER = shutil.which("gcc") or shutil.which("cc")
FLAGS = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
SANITIZERS = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
TINY = Arch("tiny", 1.0, 32, 4, (Conv(8, stride=2), Separable(16, stride=2), Separable(16)), activation="relu6")
built = pytest.mark.skipif(not native_library.built(), reason="the native engine isn't built here")


# The vectors' kernels take a compiler minutes under the sanitizers.
@pytest.fixture(
    scope="module",
    params=["plain", pytest.param("vectors", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def fuzzer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`native/tests/fuzz.c` with the engine under the sanitizers: plain C's kernels, or all."""
    if COMPILER is None:
        pytest.skip("no C compiler here")
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    if subprocess.run(
        [COMPILER, *SANITIZERS, "-o", folder / "empty", folder / "empty.c"], capture_output=True
    ).returncode:
        pytest.skip("this compiler has no address sanitizer")
    sources, how = sorted((NATIVE / "src").rglob("*.c")), []
    if request.param == "plain":
        sources = [s for s in sources if s.name == "scalar.c" or (s.parent.name == "src" and s.name != "cpu.c")]
        how = ["-DPLAIN"]
    objects = [folder / f"{s.stem}.o" for s in (NATIVE / "tests" / "fuzz.c", *sources)]

    def compiled(source: Path, out: Path) -> None:
        command = [COMPILER, *FLAGS, *how, *SANITIZERS, "-c", "-o", out, source]
        subprocess.run(command, check=True, capture_output=True, text=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compiled, (NATIVE / "tests" / "fuzz.c", *sources), objects))
    subprocess.run(
        [COMPILER, *SANITIZERS, "-pthread", "-o", folder / "fuzz", *objects, "-lm"], check=True, capture_output=True
    )
    return folder / "fuzz"


@pytest.mark.parametrize(
    ("name", "precision", "count"),
    [
        ("tiny", "int8", 800), ("tiny", "float16", 400), ("v3-small", "int8", 100),
        *(pytest.param("tiny", precision, 3000, marks=pytest.mark.slow) for precision in ("int8", "float16")),
        pytest.param("v2", "int8", 300, marks=pytest.mark.slow),
        pytest.param("v3-small", "float32", 100, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_thousands_of_mutations(fuzzer: Path, name: str, precision: str, count: int, tmp_path: Path) -> None:
    arch = TINY if name == "tiny" else scale(zoo.network(name), 0.35, 32, 10)
    (tmp_path / "m.mnet").write_bytes(native_model(random_bundle(arch, precision)))  # type: ignore[arg-type]
    ran = subprocess.run([fuzzer, tmp_path / "m.mnet", str(count)], capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]
    opened, complete = (int(ran.stdout.split()[i]) for i in (2, 4))
    assert 0 < complete <= opened < count  # both ways were gone


@pytest.mark.parametrize("change", [mostly_zeros, functools.partial(few_values, values=3)])
@pytest.mark.parametrize(
    ("precision", "count"),
    [("int8", 600), ("float16", 300), *(pytest.param(p, 3000, marks=pytest.mark.slow) for p in ("int8", "float32"))],
)
def test_thousands_of_mutations_of_coded_weights(
    fuzzer: Path, precision: str, count: int, change: Callable[[Array], Array], tmp_path: Path
) -> None:
    bundle = changed(random_bundle(TINY, precision), change)  # type: ignore[arg-type]
    (tmp_path / "m.mnet").write_bytes(native_model(bundle, coded=True))
    ran = subprocess.run([fuzzer, tmp_path / "m.mnet", str(count)], capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]
    opened, complete = (int(ran.stdout.split()[i]) for i in (2, 4))
    assert 0 < complete <= opened < count


def sealed(data: bytes) -> bytes:
    """The file with the size and digest that its bytes have."""
    rest = data[64:]
    return data[:8] + struct.pack("<Q", len(data)) + hashlib.sha256(rest).digest() + bytes(16) + rest


@built
@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d[:0], "not a readable .mnet file"),
        (lambda d: d[:40], "not a .mnet file"),
        (lambda d: b"PK" + d[2:], "not a .mnet file"),
        (lambda d: d[:4] + struct.pack("<I", 9) + d[8:], "version 9, and this engine reads versions 1 and 2; export"),
        (lambda d: d[:-64], "damaged: the file has"),
        (lambda d: d[:-1] + bytes([d[-1] ^ 1]), "damaged: its SHA-256 differs"),
        (lambda d: sealed(d[:100] + b"\xff" * 8 + d[108:]), "damaged"),
        (lambda d: sealed(d[:128] + b"no card" + d[135:]), "card inside isn't JSON"),
    ],
)  # fmt: skip
def test_damage_is_one_line(change: object, said: str, tmp_path: Path) -> None:
    path = tmp_path / "m.mnet"
    path.write_bytes(change(native_model(random_bundle(TINY, "int8"))))  # type: ignore[operator]
    with pytest.raises(UserError, match=said) as e:
        engines.load(path)
    assert "\n" not in str(e.value)
    assert str(e.value).startswith(str(path))


@built
@pytest.mark.usefixtures("ours")
def test_a_map_of_more_pixels_than_an_int_counts(tmp_path: Path) -> None:
    """One that is never whole in memory can have them: 2^32 here, which as an int are none."""
    weights, none = Constants(), 0xFFFFFFFF
    table, numbers = weights.add(np.zeros(1024, np.uint8)), weights.add(np.ones(256, np.float32))
    biases, wide = weights.add(np.zeros(256, np.int32)), weights.add(np.zeros(1 << 20, np.int8))
    row = 4096 + 15
    values = [  # type, channels, height, width, pitch, left, right, pad, place, at, rows
        (0, 3, 1, 1, 3, 0, 0, 0, 2, 0, 1),
        (0, 3, 1, 1, 16, 0, 0, 0, 0, 0, 1),
        (0, 3, 1 << 20, 4096, 16, 0, 15, 0, 1, 0, 16),
        (0, 256, 1 << 20, 4096, 256, 0, 0, 0, 1, row * 4 + 1, 1),
        (0, 16, 1, 1, 16, 0, 0, 0, 0, 2, 1),
        (1, 16, 1, 1, 16, 0, 0, 0, 0, 4, 1),
    ]

    def operation(kind: str, at: int, kernel: int = 1, layer: bool = False, lut: int = none) -> bytes:
        found = (1, wide, biases, numbers) if layer else (0, none, none, none)
        return OPERATION.pack(
            KINDS.index(kind) + 1, 0, at, none, at + 1, kernel, kernel, 1, 0, 0,
            0, 0, 255, 0, *found, lut, 0, 0, 0, 1.0, 1.0, -np.inf, np.inf,
        )  # fmt: skip

    steps = [operation("pixels", 0, lut=table), operation("upsample", 1), operation("conv", 2, 16, layer=True)]
    steps += [operation("pointwise", 3, layer=True), operation("dequantize", 4)]
    groups, outputs = [(0, 1, 1, 0), (1, 3, 1, 0), (4, 1, 1, 0)], [(0, 5, 1)]
    records = b"".join(struct.pack(f"<{len(v)}I", *v) for v in values) + b"".join(steps)
    records += b"".join(struct.pack(f"<{len(v)}I", *v) for v in (*groups, *outputs))
    plan = Plan([], arena_units=8, window_units=row * 4 + 1 + 4096 * 4 + 1)
    path = tmp_path / "m.mnet"
    path.write_bytes(joined(plan, (6, 5, 3, 1), 0, b"{}", b"y\0", records, weights))
    model = native.Model(path)
    for isa in ("avx512", "avx2", "dotprod", "neon"):  # AMX reads windows where they lie; plain C takes half a minute
        with contextlib.suppress(UserError):
            session = native.Session(model, 1, isa)
            assert session.run(np.zeros((1, 1, 1, 3), np.uint8))["y"].tolist() == [[0.0] * 16]
            break


def twice(data: bytes) -> bytes:
    """The file with its last output said once more."""
    h = list(struct.unpack_from("<16I", data, 64))
    plan, values, operations, groups, outputs = h[4:9]
    end = 64 * plan + 4 * (11 * values + 26 * operations + 4 * groups + 3 * outputs)
    h[8:10] = outputs + 1, h[9] + 1  # the weights begin a unit later
    return data[:64] + struct.pack("<16I", *h) + data[128:end] + data[end - 12 : end].ljust(64, b"\0") + data[end:]


@built
@pytest.mark.usefixtures("ours")
def test_two_outputs_of_one_name(tmp_path: Path) -> None:
    """By name there is memory for one of them."""
    path = tmp_path / "m.mnet"
    path.write_bytes(sealed(twice(native_model(random_bundle(TINY, "int8")))))
    with pytest.raises(UserError, match="damaged: two of its outputs have the same name"):
        engines.load(path)


@built
@pytest.mark.usefixtures("ours")
def test_the_card_of_another_network(tmp_path: Path) -> None:
    data = native_model(random_bundle(TINY, "int8"))
    path = tmp_path / "m.mnet"
    path.write_bytes(sealed(data.replace(b'"resolution": 32', b'"resolution": 64')))
    with pytest.raises(UserError):
        engines.load(path)


@built
@pytest.mark.usefixtures("ours")
def test_a_file_that_changes_its_name_is_mapped_still(tmp_path: Path) -> None:
    path = tmp_path / "m.mnet"
    path.write_bytes(native_model(random_bundle(TINY, "int8")))
    engine = native.NativeEngine(path, 1)
    images = np.zeros((2, 32, 32, 3), np.uint8)
    before = engine(images)
    path.unlink()
    after = engine(images)
    assert all((before[k] == after[k]).all() for k in before)
