"""Builds the engine for browsers, of plain WebAssembly, with SIMD and with relaxed SIMD, these two also with threads.

    python web/build.py [FOLDER]        by default into the package, mobilenets/browser

The compiler is the one of the registry's `ziglang` package, of one version, so that every machine gets the same bytes.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

COMPILER = "0.17.1"
ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ROOT / "mobilenets" / "browser"
MODULES = tuple(ROOT / "web" / name for name in ("mnet.js", "pictures.js", "threads.js", "worker.js"))
SIMD, RELAXED = ("-msimd128",), ("-msimd128", "-mrelaxed-simd")
THREADS = (  # the memory is the page's, for its workers too; see web/threads.js
    "-mcpu=lime1+atomics+bulk_memory", "-Wl,--import-memory", "-Wl,--shared-memory",
    "-Wl,--initial-memory=2097152", "-Wl,--max-memory=536870912",
    "-Wl,--export-table", "-Wl,--export=__stack_pointer",
)  # fmt: skip
BUILDS = {
    "scalar": (), "simd": SIMD, "relaxed": RELAXED,
    "simd-threads": (*SIMD, *THREADS), "relaxed-threads": (*RELAXED, *THREADS),
}  # fmt: skip
EXPORTS = (
    "aligned_alloc", "mnet_open", "mnet_card", "mnet_image", "mnet_outputs", "mnet_output", "mnet_session", "mnet_isa",
    "mnet_run", "mnet_layer_count", "mnet_layer", "mnet_layers",
)  # fmt: skip
FLAGS = (
    "-O3", "-std=c11", "-Wall", "-Wextra", "-Werror", "--target=wasm32-wasi", "-mexec-model=reactor",
    "-fno-sanitize=all", "-g0", "-Wl,--strip-all", "-Wl,--stack,262144", "-Inative/include",
)  # fmt: skip


def missing() -> str:
    """Why nothing can be built here; empty if it can."""
    if importlib.util.find_spec("ziglang") is None:
        return f"the compiler is missing: pip install ziglang=={COMPILER}"
    found = subprocess.run([sys.executable, "-m", "ziglang", "version"], capture_output=True, text=True, check=True)
    version = found.stdout.strip()
    return "" if version == COMPILER else f"ziglang is {version}, not {COMPILER}: its .wasm would differ"


def build(folder: Path) -> None:
    """Write all that ships into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted(
        str(p.relative_to(ROOT)) for pattern in ("*.c", "kernels/*.c") for p in (ROOT / "native" / "src").glob(pattern)
    )
    for name, features in BUILDS.items():
        exports = [f"-Wl,--export={e}" for e in EXPORTS]
        out = folder / f"mnet-{name}.wasm"
        command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, *features, *exports, *sources, "-o", str(out)]
        subprocess.run(command, cwd=ROOT, check=True)
        out.chmod(0o644)
    for module in MODULES:
        shutil.copyfile(module, folder / module.name)


if __name__ == "__main__":
    if why := missing():
        raise SystemExit(why)
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGED)
