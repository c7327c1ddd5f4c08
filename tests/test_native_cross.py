"""The engine's kernels for processors that aren't here: AArch64's under qemu, WebAssembly's in Node."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NATIVE = ROOT / "native"
FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
SANITIZERS = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
CASES = "60"
AARCH64 = Path("/usr/aarch64-linux-gnu")  # where Debian's cross compiler has the libraries
NODE_FLAG = "--experimental-wasm-relaxed-simd"


def program(name: str, what: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}: {what}")
    return found


def zig() -> list[str]:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("no ziglang, which compiles for other machines")
    return [sys.executable, "-m", "ziglang", "cc"]


def build(compiler: list[str], out: Path, *flags: str, test: str = "kernels") -> Path:
    sources = [
        NATIVE / "tests" / f"{test}.c",
        NATIVE / "src" / "cpu.c",
        *sorted((NATIVE / "src" / "kernels").glob("*.c")),
    ]
    made = subprocess.run([*compiler, *FLAGS, *flags, "-o", out, *sources, "-lm"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-4000:]
    return out


def run(command: list[str | Path]) -> str:
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # which needs ptrace, and qemu has none
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]
    return ran.stdout


def agreeing(said: str) -> set[str]:
    return set(re.findall(r"^(\S+): agrees", said, re.MULTILINE))


@pytest.mark.slow
def test_aarch64_under_sanitizers(tmp_path: Path) -> None:
    emulator = program("qemu-aarch64", "Debian's qemu-user has it")
    compiler = program("aarch64-linux-gnu-gcc", "Debian's gcc-aarch64-linux-gnu has it")
    made = build([compiler], tmp_path / "kernels", *SANITIZERS)
    command: list[str | Path] = [emulator, "-L", AARCH64, "-cpu", "max", made, CASES]
    assert agreeing(run(command)) >= {"scalar", "neon", "dotprod", "i8mm"}


def test_aarch64_runs_what_a_processor_has(tmp_path: Path) -> None:
    emulator = program("qemu-aarch64", "Debian's qemu-user has it")
    compiler = program("aarch64-linux-gnu-gcc", "Debian's gcc-aarch64-linux-gnu has it")
    made = build([compiler], tmp_path / "kernels", "-static")
    every = {"scalar", "neon", "dotprod", "i8mm"}
    for cpu, lacks in (("cortex-a53", {"dotprod", "i8mm"}), ("cortex-a76", {"i8mm"}), ("max", set())):
        assert agreeing(run([emulator, "-cpu", cpu, made, CASES])) == every - lacks


@pytest.mark.slow
def test_aarch64_of_another_compiler(tmp_path: Path) -> None:
    emulator = program("qemu-aarch64", "Debian's qemu-user has it")
    flags = ("--target=aarch64-linux-musl", "-fno-sanitize=all")
    made = build(zig(), tmp_path / "kernels", *flags)
    assert agreeing(run([emulator, "-cpu", "max", made, CASES])) >= {"neon", "dotprod", "i8mm"}


@pytest.mark.slow
@pytest.mark.parametrize("features", [[], ["-msimd128"], ["-msimd128", "-mrelaxed-simd"]])
def test_webassembly(features: list[str], tmp_path: Path) -> None:
    """Undefined behaviour traps."""
    node = program("node", "20 or newer")
    flags = ("--target=wasm32-wasi", "-fsanitize=undefined", "-fsanitize-trap=undefined")
    made = build(zig(), tmp_path / "kernels.wasm", *flags, *features)
    command: list[str | Path] = [node, *allowed(node), ROOT / "tests" / "web" / "wasi.mjs", made, CASES]
    assert agreeing(run(command)) >= ({"scalar", "wasm"} if features else {"scalar"})


@pytest.mark.slow
def test_relaxed_kernels_where_there_is_no_choice(tmp_path: Path) -> None:
    node = program("node", "22 or newer")
    if int(run([node, "--version"])[1:].split(".")[0]) < 22:
        pytest.skip("relaxed SIMD is an experiment in this node, and wrong")
    flags = ("--target=wasm32-wasi", "-fno-sanitize=all", "-msimd128", "-mrelaxed-simd")
    made = build(zig(), tmp_path / "relaxed.wasm", *flags, test="relaxed")
    assert "0 of 1000" in run([node, ROOT / "tests" / "web" / "wasi.mjs", made])


def allowed(node: str) -> list[str]:
    """What this node needs to run relaxed SIMD: newer ones have it for good."""
    return [NODE_FLAG] if NODE_FLAG[2:] in run([node, "--v8-options"]) else []
