"""A network as one C file with the engine in it, and its header: no library, no heap, no files.

What the native engine's file has (`writers/native.py`, `native/src/plan.h`) becomes constants, and its sources
(`c_engine`) the code that reads them. The compiler's flags choose the kernels; the names of operations and whether they
are in bytes or floats are told to it, so that it leaves out what the network doesn't use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from mobilenets.deploy.writers import c_engine
from mobilenets.deploy.writers.c_array import comment, framing, string
from mobilenets.deploy.writers.c_plan import Parsed, gather_bytes, memory, parse
from mobilenets.deploy.writers.native_file import FLOAT16, FLOAT32, INT8
from mobilenets.deploy.writers.native_plan import F32, KINDS, NONE, U8
from mobilenets.deploy.writers.tflite_metadata import class_names
from mobilenets.errors import UserError
from mobilenets.model.card import Card, Precision

PER_LINE = 9  # words
TYPES = {U8: 1, F32: 2}


def c_name(text: str) -> str:
    """A name of C's, of a file's."""
    plain = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_").lower() or "network"
    return plain if plain[0].isalpha() else f"net_{plain}"


def _number(v: float) -> str:
    if isinstance(v, int):
        return "NONE" if v == NONE else str(v)
    if v in (float("inf"), float("-inf")):
        return "INFINITY" if v > 0 else "-INFINITY"
    text = f"{v:.9g}"  # enough for every float32
    return f"{text if set(text) & set('.e') else text + '.0'}f"


def _struct(*numbers: float) -> str:
    return "{" + ", ".join(_number(n) for n in numbers) + "}"


def _table(kind: str, name: str, rows: Iterable[str]) -> str:
    return f"static const {kind} {name}[] = {{\n" + "".join(f"    {row}\n" for row in rows) + "};\n"


def _words(data: bytes) -> str:
    """Four bytes in a word, as processors with the lowest byte first read them."""
    words = [f"0x{w:x}" for w in np.frombuffer(data.ljust(-(-len(data) // 4) * 4, b"\0"), "<u4")]
    return "\n".join("    " + ",".join(words[i : i + PER_LINE]) + "," for i in range(0, len(words), PER_LINE))


def _uses(p: Parsed) -> str:
    """A line for each kind of operation: in bytes 1, in floats 2, as `USES` reads them."""
    bits = dict.fromkeys((*KINDS, "dense", "gelu", "halves"), 0)
    for o in p.operations:
        kind = TYPES[p.values[o.out].type]
        bits[o.kind] |= kind
        if o.kind in ("conv", "pointwise"):
            bits["dense"] |= kind
        if o.kind == "act" and o.act == 3:
            bits["gelu"] |= kind
        if o.encoding == FLOAT16:
            bits["halves"] |= kind
    return "\n".join(f"#define USES_{kind.upper()} {b}" for kind, b in bits.items())


def _choice(p: Parsed, lean: Parsed) -> str:
    lines = []
    for i, isa in enumerate(c_engine.ISAS[:-1]):
        lines.append(f"#{'el' if i else ''}if {isa.condition}")
        lines.append(f"#define KERNELS(session) ((void)(session), &{isa.table})")
        lines.append(f"#define MEMORY_BYTES {memory(p, isa.table)}")
        lines.append(f"#define GATHER_BYTES {gather_bytes(isa.table)}")
    lines += [
        "#else /* with the least memory */",
        "#define LEAN",
        "#define KERNELS(session) ((void)(session), &mnet_scalar)",
        f"#define MEMORY_BYTES {memory(lean, 'mnet_scalar')}",
        f"#define GATHER_BYTES {gather_bytes('mnet_scalar')}",
    ]
    return "\n".join([*lines, "#endif"])


def _placed(p: Parsed) -> str:
    """What depends on where maps lie, and on which operations run together."""
    counts = ("operations", len(p.operations)), ("outputs", len(p.outputs)), ("values", len(p.values))
    units = ("groups", len(p.groups)), ("arena_units", p.arena_units), ("window_units", p.window_units)
    header = ", ".join(f".{name} = {n}" for name, n in (*counts, *units, ("image", p.image)))
    tables = (
        _table("struct value", "values", (f"{_struct(*vars(v).values(), v.pixel, v.row)}," for v in p.values)),
        _table("struct group", "groups", (f"{_struct(*g)}," for g in p.groups)),
        _table("uint32_t", "readers", (f"{_number(r)}," for r in p.readers)),
        f"#define HEADER {{{header}}}",
    )
    return "\n".join(tables)


def _plan(p: Parsed, lean: Parsed) -> str:
    ops = (f"{_struct(o.record[0], 0, *o.record[2:], o.inputs)}, /* {comment(o.name)} */" for o in p.operations)
    return "\n".join(
        (
            _table("struct op", "operations", ops),
            _table("struct output", "network_outputs", (f"{_struct(0, *o[1:])}," for o in p.outputs)),
            f"#if defined(LEAN)\n{_placed(lean)}\n#else\n{_placed(p)}\n#endif\n",
        )
    )


def _parameters(card: Card) -> list[str]:
    names = list(card.outputs)
    return ["out"] if len(names) == 1 else [c_name(n) for n in names]


def source(card: Card, data: bytes, lean_data: bytes, name: str) -> str:
    """NAME.c, of the bytes of the native engine's file; `lean_data`: of one that is planned for little memory."""
    p, lean, upper = parse(data), parse(lean_data), name.upper()
    outs = _parameters(card)
    labels = class_names(card)
    names = "".join(f"    {string(label)},\n" for label in labels)
    table = f"\nconst char *const {name}_labels[{upper}_CLASSES] = {{\n{names}}};\n" if labels else ""
    return f"""\
/* {_title(card)}; by mobilenets. Licence of the engine in it: Apache-2.0.
 *
 * A C compiler is all it needs, gcc or clang; see {name}.h. */
#include "{name}.h"

#include <math.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the weights in this file are for processors that store the lowest byte first"
#endif
#if defined(__GNUC__) /* what the network doesn't use of the engine */
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-const-variable"
#if !defined(__clang__) /* gcc doesn't see that there is always a row */
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#endif
#if !defined({upper}_SECTION)
#define {upper}_SECTION /* where the memory lies: __attribute__((section(".sdram"))), say */
#endif
#if defined({upper}_EXPF) /* another function in the place of C's, which the softmax takes */
#define expf(x) {upper}_EXPF(x)
#endif

/* What the network has of each kind of operation: in bytes 1, in floats 2. */
{_uses(p)}
#define USES(kind, type) (USES_##kind >> (type) & 1)

#if {c_engine.OLD_CLANG}
#define MNET_WITHOUT_DOT
#endif
{_choice(p, lean)}

/* ---- the engine */

{c_engine.engine()}
/* ---- the network */

{_plan(p, lean)}
static _Alignas(64) const uint32_t weights[] = {{
{_words(p.weights)}
}};

static const struct mnet_model model = {{
    .weights = (const uint8_t *)weights,
    .h = HEADER,
    .values = (struct value *)values, /* the engine only reads them */
    .ops = (struct op *)operations,
    .groups = (struct group *)groups,
    .outputs = (struct output *)network_outputs,
    .reader = (uint32_t *)readers,
}};

static _Alignas(64) uint8_t memory[MEMORY_BYTES] {upper}_SECTION;
static size_t taken;
static struct mnet_session session;

static void *mnet_allocate(struct mnet_session *s, size_t bytes)
{{
    uint8_t *at = memory + taken;
    (void)s;
    bytes = up(bytes, UNIT);
    if (bytes > sizeof memory - taken)
        return NULL;
    taken += bytes;
    return memset(at, 0, bytes);
}}

int {name}_predict(const uint8_t *rgb, {", ".join(f"float *{o}" for o in outs)})
{{
    float *const outputs[] = {{{", ".join(outs)}}};
    if (!session.model) {{
        const struct mnet_session fresh = {{.model = &model, .threads = 1}};
        session = fresh;
        taken = 0;
        if (!mnet_build(&session)) {{
            session.model = NULL;
            return 1;
        }}
    }}
    const struct context c = {{&session, session.thread, session.arena[0], rgb}};
    for (uint32_t g = 0; g < model.h.groups; g++)
        mnet_group(&c, &groups[g], 0, 1);
    mnet_give(&c, outputs, 0);
    return 0;
}}

{table}"""


def _title(card: Card) -> str:
    return f"MobileNet {comment(card.arch.title)}, {card.precision}"


def _sides(shape: Sequence[int]) -> str:
    return "".join(f"[{n}]" for n in shape)


def header(card: Card, data: bytes, lean_data: bytes, name: str) -> str:
    """NAME.h: sizes, what to give and what is given."""
    p, upper = parse(data), name.upper()
    (rows, columns), labels = card.preprocess.input_size, class_names(card)
    outs, outputs = _parameters(card), card.outputs
    shown = [
        f" *   {parameter}: float32 {_sides(outputs[o.name])}, {comment(f'{o.name}, {o.meaning}'.rstrip(', '))}"
        for parameter, o in zip(outs, card.head.outputs, strict=True)
    ]
    sizes = "\n".join(
        f"#define {upper}_{c_name(n).upper()} {int(np.prod(shape))} /* numbers of the output {comment(n)} */"
        for n, shape in outputs.items()
    )
    classes = f"#define {upper}_CLASSES {len(labels)}\n" if labels else ""
    table = f"extern const char *const {name}_labels[{upper}_CLASSES];\n" if labels else ""
    used = "\n".join(f" *   {isa.name + ':':18}{memory(p, isa.table):11,} bytes" for isa in c_engine.ISAS[:-1])
    return f"""\
/* {_title(card)}; by mobilenets.
 *
 *   {name}_predict(rgb, {", ".join(outs)})
 *
 *   rgb: uint8 [{rows}][{columns}][3], red, green, blue as a camera gives them: {framing(card.preprocess)}.
 *   The network does the rest of the preprocessing.
{chr(10).join(shown)}
 *
 * It gives 0, and has no state that a caller sees; one call at a time. No heap, no files, no other library than C's (of
 * it memcpy, memmove, memset, lrintf, and for a softmax or a sigmoid expf, or what {upper}_EXPF is defined as).
 *
 * Read-only: {upper}_WEIGHTS_BYTES of weights, and code. RAM, compiled as plain C: {upper}_ARENA_BYTES, and about 4 kB
 * of stack. The compiler's flags choose faster kernels (-mavx2, -march=native), which take more:
{used} */
#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

#define {upper}_HEIGHT {rows}
#define {upper}_WIDTH {columns}
#define {upper}_CROP {float(card.preprocess.crop)!r}f /* how much of the short side the centre square has */
{classes}{sizes}
#define {upper}_ARENA_BYTES {memory(parse(lean_data), "mnet_scalar")}
#define {upper}_WEIGHTS_BYTES {len(p.weights)}

#ifdef __cplusplus
extern "C" {{
#endif

int {name}_predict(const uint8_t *rgb, {", ".join(f"float *{o}" for o in outs)});
{table}
#ifdef __cplusplus
}}
#endif

#endif
"""


def stored_precision(text: str, float_ops: Sequence[str]) -> Precision:
    """What the layers of a NAME.c read their weights from. Raises `UserError`."""
    table = re.search(r"struct op operations\[\] = \{\n(.*?)\n\};", text, re.DOTALL)
    rows = re.findall(r"^ *\{(.*)\}, /\* (.*) \*/$", table[1], re.MULTILINE) if table else []
    found = {row.split(", ")[14] for row, name in rows if name not in float_ops} - {"0"}
    if found not in ({str(INT8)}, {str(FLOAT32)}):
        raise UserError("C source with weights of no known kind; export it again")
    return "int8" if found == {str(INT8)} else "float32"
