/* What a .mnet file holds. Everything is little-endian; places are counted in units of 64 bytes (UNIT).
 *
 *     0   "MNET", version, size of the file (8 bytes), SHA-256 of all that follows byte 64, 16 bytes of zeros
 *     64  struct header, then the card, names, records and weights where it says
 *
 * Weights lie as the kernels read them, or, in a file of version CODED, as pieces: their records, then their bytes one
 * after another, each of which becomes the next of the weights' units (see struct piece).
 *
 * Records are words of 32 bits, in the order of the structs' first parts here; the rest of a struct is worked out when
 * the file is opened. mnet_open has checked all that the others rely on. */
#ifndef MNET_PLAN_H
#define MNET_PLAN_H

#include "../include/mnet.h"
#include "kernels.h"

enum { VERSION = 1, CODED = 2, PREFIX = 64, UNIT = 64, SLACK = 64 /* bytes behind a map that kernels may read */ };
#define NONE 0xffffffffu

struct header { /* sizes in bytes, places in units from the file's beginning */
    uint32_t card, card_bytes, names, names_bytes, plan, values, operations, groups, outputs;
    uint32_t weights, weights_units, arena_units, window_units, image;
    uint32_t pieces, pieces_bytes; /* of a coded file: how many, and of their records and bytes together */
};

/* A part of the weights in as few bytes as what they are allows: as they lie (AS_IS), or a layer's, `rows` outputs of
 * `inputs` numbers of `item` bytes. Of mostly zeros (SPARSE) it has a mask, row by row, and then the numbers that aren't
 * zero; of few values one table of 2^bits numbers (TABLE), or one for each row (TABLES), and then, row by row, codes. Rows
 * begin with a byte, a byte's lowest bits come first, and 8 bytes of nothing end the piece. A layer's become
 * [rows/lanes][inputs/group][lanes][group], both filled up with zeros: lanes are PANEL, or a depthwise layer's pitch. */
enum { AS_IS, SPARSE, TABLE, TABLES };
struct piece {
    uint32_t way, bytes, rows, inputs, lanes, group, item, bits;
};

enum type { U8, F32 };
enum place { ARENA, WINDOW, IMAGE };

/* A map: `left` + width + `right` pixels a row, `pitch` numbers a pixel, the pixels around filled with the byte `pad`.
 * In the arena it is whole; a window holds some of its rows, for each thread its own, while its group runs. */
struct value {
    uint32_t type, channels, height, width, pitch, left, right, pad, place, at, rows;
    ptrdiff_t pixel, row; /* bytes */
};
enum { VALUE_WORDS = 11 };

enum kind {
    PIXELS = 1, POINTWISE, CONV, DEPTHWISE, ADD, MUL, LUT, ACT, POOL, QUANTIZE, DEQUANTIZE, COPY, FLATTEN, SOFTMAX,
    L2NORM, SIGMOID, SPREAD, UPSAMPLE, BOXES, SUPPRESS, PART, COUNT, MAXPOOL, AVGPOOL, SELECT, KINDS
};
/* What the scores of a suppression are; logits become scores where they are asked for alone. */
enum scores { READY, LOGITS, SOFTMAXED, SCORES };
enum { ANCHOR_WORDS = 6 };
enum encoding { NO_WEIGHTS, INT8, FLOAT32, FLOAT16 };
enum { ACT_GELU = ACT_HARD_SIGMOID + 1, ACTS };

/* zero, low, high: of the bytes that come out (low, high of floats: in `least`, `most`). a, b: factors, za, zb: zero
 * points of the inputs. ADD: a, b of the two. MUL: a, of both together. POOL: of bytes a, the input's, and b, one by the
 * output's; of floats a. QUANTIZE, DEQUANTIZE: a. COPY: to the channel `first`. PIXELS: the table lut[3][256], bytes or
 * floats. SPREAD: to the row `first`. BOXES: anchors in lut[A][6]; a, b, one by the scales of width and height; `first`:
 * whether y comes before x. SUPPRESS: a, what scores have to be above (its logit, where they are no scores yet), b, the
 * largest overlap, `first` columns without a class, of one class `stride` boxes at most, or 0 where those of all classes
 * push each other out. PART, COUNT: from the column `first` on. AVGPOOL: a, one by the window's pixels, and of bytes by
 * the scales. SELECT: the input's channel for each of the output's in lut, as words. */
struct op {
    uint32_t kind, name, in, in2, out, kh, kw, stride, top, left;
    int32_t zero, low, high;
    uint32_t act, encoding, weights, bias, multiplier, lut, first;
    int32_t za, zb;
    float a, b, least, most;
    int inputs; /* K of a dense product */
};
enum { OP_WORDS = 26 };

enum split { ROWS, CHANNELS };
struct group { /* `strip`: rows of the last operation's output at a time; `split`: what threads share */
    uint32_t first, count, strip, split;
};
enum { GROUP_WORDS = 4 };

struct output {
    uint32_t name, value, rank;
};
enum { OUTPUT_WORDS = 3 };

struct mnet_model {
    const uint8_t *bytes, *weights;
    void *unpacked; /* memory of the weights of a coded file, or NULL */
    struct header h;
    struct value *values;
    struct op *ops;
    struct group *groups;
    struct output *outputs;
    uint32_t *reader; /* of a value in a window: the one operation that reads it */
    char *names;
};

static inline const void *stored(const struct mnet_model *m, uint32_t at)
{
    return at == NONE ? NULL : m->weights + (size_t)at * UNIT;
}
static inline uint64_t up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}
static inline int spatial(uint32_t kind) /* reads other rows than it writes */
{
    return kind == POINTWISE || kind == CONV || kind == DEPTHWISE;
}
static inline int is_whole(uint32_t kind) /* it reads its input whole, never a window of it */
{
    return kind == POOL || kind == FLATTEN || kind >= SPREAD;
}
static inline uint64_t weight_count(const struct mnet_model *m, const struct op *o)
{
    const struct value *out = &m->values[o->out];
    if (o->kind == DEPTHWISE)
        return (uint64_t)o->kh * o->kw * out->pitch;
    const uint64_t k = (uint64_t)o->inputs;
    return up(out->channels, PANEL) * (o->encoding == INT8 ? up(k, 4) : k);
}

/* The weights of a coded file into memory; what is wrong with them, or NULL. */
const char *mnet_unpack(struct mnet_model *m);

void mnet_sha256(const uint8_t *bytes, size_t n, uint8_t digest[32]);

#endif
