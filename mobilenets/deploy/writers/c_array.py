"""A TFLite file as C source for a microcontroller's firmware, and back. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mobilenets.model.card import Card

PER_LINE = 20  # bytes
# TFLite Micro's resolver is told of each kind of operator by a method.
METHODS = {
    "ADD": "AddAdd",
    "BATCH_MATMUL": "AddBatchMatMul",
    "CONV_2D": "AddConv2D",
    "DEPTHWISE_CONV_2D": "AddDepthwiseConv2D",
    "DEQUANTIZE": "AddDequantize",
    "HARD_SWISH": "AddHardSwish",
    "MEAN": "AddMean",
    "MUL": "AddMul",
    "QUANTIZE": "AddQuantize",
    "RESHAPE": "AddReshape",
    "REVERSE_V2": "AddReverseV2",
    "SOFTMAX": "AddSoftmax",
    "SUB": "AddSub",
}


def header(card: Card, model: bytes, arena_bytes: int, operators: Sequence[str]) -> str:
    """model.h: the sizes, and what to call."""
    (rows, columns), p = card.preprocess.input_size, card.preprocess
    outputs = "; ".join(f"{name} float32 {[1, *shape]}" for name, shape in card.outputs.items())
    if card.labels:
        outputs = f"float32 [1, {card.arch.classes}], the probability of each of model_labels"
    what = f"{card.arch.classes} classes" if card.labels else _comment(card.task)
    labels = f"#define MODEL_CLASSES {card.arch.classes}\n" if card.labels else ""
    names = "extern const char *const model_labels[MODEL_CLASSES];\n" if card.labels else ""
    resolver = "\n".join(f" *   resolver.{METHODS[kind]}();" for kind in operators)
    return f"""\
/* MobileNet {_comment(card.arch.title)}, int8, {what}, for TensorFlow Lite Micro; by mobilenets.
 *
 * Flash: the {len(model):,} bytes of model_data, and TensorFlow Lite Micro's code, which depends on the compiler.
 * RAM: an arena of MODEL_ARENA_BYTES, aligned to 16 bytes. It was measured on a 64-bit processor with the reference
 * kernels: pointers of 32 bits need less, kernels with scratch buffers (CMSIS-NN's) more.
 *
 * Input: uint8 [1, {rows}, {columns}, 3], RGB as a camera gives it: the centre square, {p.crop:g} of the short side.
 * Output: {outputs}.
 *
 *   static tflite::MicroMutableOpResolver<MODEL_OPERATORS> resolver;
{resolver}
 *   static tflite::MicroInterpreter interpreter(tflite::GetModel(model_data), resolver, arena, MODEL_ARENA_BYTES);
 */
#ifndef MOBILENETS_MODEL_H
#define MOBILENETS_MODEL_H

#define MODEL_ARENA_BYTES {arena_bytes}
#define MODEL_BYTES {len(model)}
#define MODEL_OPERATORS {len(operators)}
#define MODEL_SIDE {p.resolution}
{labels}/* The pixel that the network reads as (pixel - MODEL_INPUT_ZERO_POINT) * MODEL_INPUT_SCALE; nothing to do. */
#define MODEL_INPUT_SCALE {1 / p.std[0]:.9g}f
#define MODEL_INPUT_ZERO_POINT {p.mean[0]:g}

#ifdef __cplusplus
extern "C" {{
#endif

extern const unsigned char model_data[MODEL_BYTES];
{names}
#ifdef __cplusplus
}}
#endif

#endif
"""


def source(model: bytes, labels: Sequence[str]) -> str:
    """model.c: the file's bytes, and the labels."""
    rows = (model[i : i + PER_LINE] for i in range(0, len(model), PER_LINE))
    data = "\n".join("  " + "".join(f"0x{byte:02x}," for byte in row) for row in rows)
    names = "".join(f"  {_string(label)},\n" for label in labels)
    table = f"\nconst char *const model_labels[MODEL_CLASSES] = {{\n{names}}};\n" if labels else ""
    return f"""\
#include "model.h"

#include <stdalign.h>

alignas(16) const unsigned char model_data[MODEL_BYTES] = {{
{data}
}};
{table}"""


def model_bytes(text: str) -> bytes:
    """The bytes in a model.c. Raises ValueError."""
    _, start, rest = text.partition("model_data[MODEL_BYTES] = {")
    rows, end, _ = rest.partition("};")
    if not (start and end):
        raise ValueError("no model_data in it")
    return bytes.fromhex(rows.replace("0x", "").replace(",", " "))


def number(text: str, name: str) -> int:
    """What a model.h defines `name` as. Raises ValueError."""
    found = re.search(rf"^#define {name} (\d+)$", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"no {name} in it")
    return int(found[1])


def _comment(text: str) -> str:
    """`text` where it can't end the comment it is in."""
    return " ".join(text.replace("*/", "* /").split())


def _string(text: str) -> str:
    """A C string; bytes that aren't plain ASCII, and what could start a trigraph, as octal escapes."""
    plain = (chr(b) if 32 <= b < 127 and b not in b'"\\?' else f"\\{b:03o}" for b in text.encode())
    return f'"{"".join(plain)}"'
