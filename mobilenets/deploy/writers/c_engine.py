"""The sources of our own engine (`native/src`) as one piece of C, to be a part of a file that has all it needs.

Nothing is written anew: files are put one after another, their own `#include`s resolved. What is seen by other files
becomes static, and names that two files use for different things get their file's in front.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mobilenets.errors import UserError

HERE = Path(__file__).resolve()
# In an installed package the build has put them beside its modules.
SOURCES = next(
    (p for p in (HERE.parents[2] / "native" / "src", HERE.parents[3] / "native" / "src") if p.is_dir()), None
)
BEGIN = ("kernels.h", "kernels/round.h", "kernels/scalar.c")
END = ("plan.h", "session.h", "detect.c", "windows.c", "ops.c", "run.c", "build.c")
NOT_INCLUDED = ("mnet.h", "pool.h")  # calls and threads, which one network alone doesn't have

TOKEN = re.compile(r'/\*.*?\*/|"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|\s+|\w+|->|.', re.DOTALL)
INCLUDE = re.compile(r'^#include "([^"]+)"\n', re.MULTILINE)
SHARED = re.compile(r"^(?!static|typedef|extern|#)(\w[\w ]*[ *])(mnet_\w+\()", re.MULTILINE)
TABLE = re.compile(r"^(?:extern )?const struct kernels (?=mnet_\w+( =|[,;]))", re.MULTILINE)


@dataclass(frozen=True)
class Isa:
    """Kernels that are compiled where the compiler's flags say `condition`; `table`: what they are called in C."""

    name: str
    condition: str
    table: str


AVX512 = " && ".join(f"defined(__AVX512{x}__)" for x in ("F", "BW", "VL", "DQ", "VNNI"))
AVX2_FILES = ("kernels/avx2_depthwise.c", "kernels/avx2_float.c", "kernels/avx2_small.c", "kernels/avx2.c")
AVX512_FILES = ("kernels/avx512_depthwise.c", "kernels/avx512.c")
NEON_FILES = ("kernels/neon_f32.c", "kernels/neon_dot.c", "kernels/neon.c")
WASM_FILES = ("kernels/wasm_depthwise.c", "kernels/wasm_f32.c", "kernels/wasm_small.c", "kernels/wasm.c")
# What a compiler's flags may allow, and the files of it.
PARTS = (
    ("defined(__AVX2__)", AVX2_FILES),
    ("defined(__AVXVNNI__)", ("kernels/avxvnni.c",)),
    (AVX512, AVX512_FILES),
    ("defined(__aarch64__)", NEON_FILES),
    ("defined(__wasm_simd128__)", WASM_FILES),
)
# The first whose condition holds is used.
ISAS = (
    Isa("AVX-512", AVX512, "mnet_avx512"),
    Isa("AVX-VNNI", "defined(__AVXVNNI__)", "mnet_avxvnni"),
    Isa("AVX2", "defined(__AVX2__)", "mnet_avx2"),
    Isa("i8mm", "defined(__aarch64__) && defined(__ARM_FEATURE_MATMUL_INT8)", "mnet_i8mm"),
    Isa("dot products", "defined(__ARM_FEATURE_DOTPROD) && !defined(MNET_WITHOUT_DOT)", "mnet_dotprod"),
    Isa("NEON", "defined(__aarch64__)", "mnet_neon"),
    Isa("WebAssembly SIMD", "defined(__wasm_simd128__)", "mnet_wasm"),
    Isa("plain C", "1", "mnet_scalar"),
)
OLD_CLANG = "defined(__clang__) && __clang_major__ < 16 && !defined(__ARM_FEATURE_MATMUL_INT8)"


def _read(name: str) -> str:
    if SOURCES is None:
        raise UserError("this installation has no sources of the engine; install mobilenets again")
    return (SOURCES / name).read_text(encoding="utf-8")


def _plain(text: str) -> str:
    """Without comments."""
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def _own(text: str) -> set[str]:
    """Names that a file defines for itself, outside functions: functions, macros, constants."""
    text = _plain(text)
    found = set(re.findall(r"^(?:static|INLINE)\b[^;{}=()]*?\b(\w+)\(", text, re.MULTILINE))
    found |= set(re.findall(r"^static[^;{}=()]*__attribute__\(\(\w+\)\)[^;{}=()]*?\b(\w+)\(", text, re.MULTILINE))
    found |= set(re.findall(r"^#define (\w+)", text, re.MULTILINE))
    for body in re.findall(r"^enum[\w ]*\{([^}]*)\}", text, re.MULTILINE):
        found |= {n[0] for part in body.split(",") if (n := re.findall(r"\w+", part))}
    return {n for n in found if not n.startswith(("__", "mnet_", "MNET_"))}


@functools.cache
def _clashes() -> frozenset[str]:
    """Names that more than one file has for its own."""
    assert SOURCES is not None
    count = Counter(n for p in sorted(SOURCES.rglob("*.[ch]")) for n in _own(p.read_text(encoding="utf-8")))
    return frozenset(n for n, k in count.items() if k > 1)


def _renamed(text: str, stem: str) -> str:
    """With the file's name in front of its own names that others have too. Tags and members stay what they are."""
    changed = _own(text) & _clashes()
    out: list[str] = []
    before = ""
    for token in TOKEN.findall(text):
        if token in changed and before not in (".", "->", "struct"):
            out.append(f"{stem.upper() if token.isupper() else stem}_{token}")
        else:
            out.append(token)
        if not token.isspace():
            before = token
    return "".join(out)


def _file(name: str, seen: set[str]) -> str:
    """A file, with those that it includes and that aren't there yet in their place."""
    folder = Path(name).parent

    def path(found: re.Match[str]) -> str:
        return (folder / found[1]).as_posix().replace("kernels/../", "")

    def template(found: re.Match[str]) -> str:
        text = _read(path(found)) if Path(found[1]).name not in NOT_INCLUDED else ""
        return found[0] if "#ifndef MNET_" in text else text

    def header(found: re.Match[str]) -> str:
        return "" if path(found) in seen else _file(path(found), seen) + "\n"

    seen.add(name)
    text = INCLUDE.sub(template, _read(name))
    if name.endswith(".c"):
        text = _renamed(text, Path(name).stem)
    return INCLUDE.sub(header, text).strip() + "\n"


def _some(names: Sequence[str], seen: set[str]) -> str:
    return "\n".join(_file(n, seen) for n in names if n not in seen)


@functools.cache
def engine() -> str:
    """The engine in C, for gcc and clang.

    KERNELS, USES, GATHER_BYTES and, for OLD_CLANG, MNET_WITHOUT_DOT are to be defined before it.
    """
    seen: set[str] = set()
    pieces = [_some(BEGIN, seen)]
    for condition, files in PARTS:
        pieces.append(f"#if {condition}\n{_some(files, seen)}#endif\n")
    pieces.append(_some(END, seen))
    text = "\n".join(pieces)
    text = TABLE.sub("static const struct kernels ", text)
    return SHARED.sub(r"static \1\2", text)
