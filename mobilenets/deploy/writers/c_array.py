"""A TFLite file as C source for a microcontroller's firmware, and back. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mobilenets.deploy.writers.tflite_metadata import class_names, normalization
from mobilenets.model.card import Card
from mobilenets.model.images import GREY, Preprocess

PER_LINE = 20  # bytes
# TFLite Micro's resolver is told of each kind of operator by a method.
METHODS = {
    "ADD": "AddAdd",
    "BATCH_MATMUL": "AddBatchMatMul",
    "CONCATENATION": "AddConcatenation",
    "CONV_2D": "AddConv2D",
    "DEPTHWISE_CONV_2D": "AddDepthwiseConv2D",
    "DEQUANTIZE": "AddDequantize",
    "EXP": "AddExp",
    "GATHER": "AddGather",
    "HARD_SWISH": "AddHardSwish",
    "L2_NORMALIZATION": "AddL2Normalization",
    "LOGISTIC": "AddLogistic",
    "MEAN": "AddMean",
    "MUL": "AddMul",
    "PAD": "AddPad",
    "QUANTIZE": "AddQuantize",
    "REDUCE_MAX": "AddReduceMax",
    "RELU": "AddRelu",
    "RELU6": "AddRelu6",
    "RESHAPE": "AddReshape",
    "RESIZE_NEAREST_NEIGHBOR": "AddResizeNearestNeighbor",
    "REVERSE_V2": "AddReverseV2",
    "SLICE": "AddSlice",
    "SOFTMAX": "AddSoftmax",
    "SPLIT": "AddSplit",
    "SUB": "AddSub",
    "TRANSPOSE": "AddTranspose",
}


def header(card: Card, model: bytes, arena_bytes: int, operators: Sequence[str]) -> str:
    """model.h: the sizes, and what to call."""
    (rows, columns), classes = card.preprocess.input_size, len(class_names(card))
    mean, std = normalization(card)
    sides = f"#define MODEL_SIDE {rows}"
    if rows != columns:
        sides = f"#define MODEL_HEIGHT {rows}\n#define MODEL_WIDTH {columns}"
    if classes:
        what = f"{classes} classes"
        outputs = f" * Output: float32 [1, {classes}], the probability of each of model_labels."
        sides += f"\n#define MODEL_CLASSES {classes}"
        names = "extern const char *const model_labels[MODEL_CLASSES];\n"
    else:
        what, names = comment(card.task), ""
        outputs = "\n".join(
            f" * Output {i}, {comment(f'{o.name}: float32 {[1, *card.outputs[o.name]]}, {o.meaning}'.rstrip(', '))}."
            for i, o in enumerate(card.head.outputs)
        )
    resolver = "\n".join(f" *   resolver.{METHODS[kind]}();" for kind in operators)
    return f"""\
/* MobileNet {comment(card.arch.title)}, int8, {what}, for TensorFlow Lite Micro; by mobilenets.
 *
 * Flash: the {len(model):,} bytes of model_data, and TensorFlow Lite Micro's code, which depends on the compiler.
 * RAM: an arena of MODEL_ARENA_BYTES, aligned to 16 bytes. It was measured on a 64-bit processor with the reference
 * kernels: pointers of 32 bits need less, kernels with scratch buffers (CMSIS-NN's) more.
 *
 * Input: uint8 [1, {rows}, {columns}, 3], RGB as a camera gives it: {framing(card.preprocess)}.
{outputs}
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
{sides}
/* The pixel that the network reads as (pixel - MODEL_INPUT_ZERO_POINT) * MODEL_INPUT_SCALE; nothing to do. */
#define MODEL_INPUT_SCALE {1 / std:.9g}f
#define MODEL_INPUT_ZERO_POINT {mean:g}

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
    names = "".join(f"  {string(label)},\n" for label in labels)
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


def framing(p: Preprocess) -> str:
    """Which part of an image the input is."""
    rows, columns = p.input_size
    match p.framing:
        case "letterbox":
            return f"the whole image, its proportions kept, {GREY} around it"
        case "stretch":
            return "the whole image, out of proportion"
        case _ if rows == columns:
            return "the centre square" if p.crop == 1 else f"the centre square, {p.crop:g} of the short side"
        case _:
            return f"the centre, {p.crop:g} of the largest part in these proportions"


def comment(text: str) -> str:
    """`text` where it can't end the comment it is in."""
    return " ".join(text.replace("*/", "* /").split())


def string(text: str) -> str:
    """A C string; bytes that aren't plain ASCII, and what could start a trigraph, as octal escapes."""
    plain = (chr(b) if 32 <= b < 127 and b not in b'"\\?' else f"\\{b:03o}" for b in text.encode())
    return f'"{"".join(plain)}"'
