"""The engine's kernels: every instruction set that runs here gives plain C's bytes, under the sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[1] / "native"
COMPILER = shutil.which("gcc") or shutil.which("cc")
FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
SANITIZERS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler here")


def build(program: str, folder: Path, *flags: str) -> Path:
    assert COMPILER is not None
    sources = [
        NATIVE / "tests" / f"{program}.c",
        NATIVE / "src" / "cpu.c",
        *sorted((NATIVE / "src" / "kernels").glob("*.c")),
    ]
    made = folder / program
    subprocess.run([COMPILER, *FLAGS, *flags, "-o", made, *sources, "-lm"], check=True, capture_output=True, text=True)
    return made


def sanitizers_link(folder: Path) -> bool:
    assert COMPILER is not None
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    made = subprocess.run([COMPILER, *SANITIZERS, "-o", folder / "empty", folder / "empty.c"], capture_output=True)
    return made.returncode == 0


def test_kernels_agree_with_plain_c(tmp_path: Path) -> None:
    """On random shapes: the same bytes."""
    program = build("kernels", tmp_path, "-O0", "-Wno-error")  # warnings are the compiler's at -O2
    ran = subprocess.run([program, "40", "7"], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]
    assert "scalar: agrees" in ran.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kernels_read_nothing_beside_their_buffers(tmp_path: Path) -> None:
    """Nor do they write there."""
    flags = SANITIZERS if sanitizers_link(tmp_path) else []
    program = build("kernels", tmp_path, *flags)
    ran = subprocess.run([program, "150", "7"], capture_output=True, text=True, timeout=600)
    print(ran.stdout, ran.stderr[-4000:])  # which instruction sets ran
    assert ran.returncode == 0, ran.stdout + ran.stderr[-4000:]
    assert "scalar: agrees" in ran.stdout
    if not flags:
        pytest.skip("the same bytes, but this compiler has no address sanitizer: reads beyond were not looked for")


WRONG = """
#include "kernels.h"
#include <string.h>
static void off_by_one(const float *x, uint8_t *y, size_t n, float inverse, int32_t zero)
{
    mnet_scalar.quantize(x, y, n, inverse, zero ^ 1);
}
const struct kernels *mnet_kernels(const char *name)
{
    static struct kernels wrong;
    wrong = mnet_scalar;
    wrong.quantize = off_by_one;
    return name && strcmp(name, "scalar") ? 0 : &wrong;
}
sparse_product *mnet_sparse_kernel(const struct kernels *k)
{
    (void)k;
    return 0;
}
"""


def test_a_wrong_kernel_is_found(tmp_path: Path) -> None:
    """The program fails where a table differs from plain C in one rounding."""
    assert COMPILER is not None
    (tmp_path / "wrong.c").write_text(WRONG)
    sources = [NATIVE / "tests" / "kernels.c", tmp_path / "wrong.c", NATIVE / "src" / "kernels" / "scalar.c"]
    made = tmp_path / "kernels"
    include = f"-I{NATIVE / 'src'}"
    subprocess.run([COMPILER, "-std=c11", "-O1", include, "-o", made, *sources, "-lm"], check=True, capture_output=True)
    ran = subprocess.run([made, "20"], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "quantize of" in ran.stdout
