/* Opens a .mnet in memory: nothing of it is believed before it is checked, so that what runs it can rely on all of it.
 * What a file says in the right form may be nonsense: so are its numbers then, but its buffers are all it touches. */
#include "plan.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_CHANNELS = 1 << 24, MOST_SIDE = 1 << 20, MOST_KERNEL = 255, MOST_RECORDS = 1 << 16, MOST_AROUND = 255 };
/* Bytes of one arena, of one thread's windows, or of weights that are unpacked. */
static const uint64_t MOST_MEMORY = (uint64_t)1 << (sizeof(size_t) > 4 ? 33 : 30);

static int refuse(char *why, size_t room, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    if (room)
        vsnprintf(why, room, format, list);
    va_end(list);
    return 0;
}
#define REFUSE(...) return refuse(why, room, __VA_ARGS__)

static int inside(uint64_t at, uint64_t bytes, uint64_t size) { return at <= size && bytes <= size - at; }

static int read_header(struct mnet_model *m, size_t size, char *why, size_t room)
{
    const uint8_t *bytes = m->bytes;
    uint32_t version;
    uint64_t told;
    uint8_t digest[32];
    const union {
        uint32_t word;
        uint8_t first;
    } order = {1};
    if (!order.first)
        REFUSE("this processor stores numbers with the highest byte first, which the engine doesn't know");
    if ((uintptr_t)bytes % UNIT)
        REFUSE("the file's bytes have to begin at a multiple of %d", UNIT);
    if (size < PREFIX + sizeof m->h || memcmp(bytes, "MNET", 4))
        REFUSE("not a .mnet file");
    memcpy(&version, bytes + 4, 4);
    memcpy(&told, bytes + 8, 8);
    if (version != VERSION && version != CODED)
        REFUSE("a .mnet file of version %u, and this engine reads versions %d and %d; export it again", version, VERSION,
               CODED);
    if (told != size)
        REFUSE("damaged: the file has %llu bytes, not %llu", (unsigned long long)size, (unsigned long long)told);
    mnet_sha256(bytes + PREFIX, size - PREFIX, digest);
    if (memcmp(digest, bytes + 16, sizeof digest))
        REFUSE("damaged: its SHA-256 differs");
    memcpy(&m->h, bytes + PREFIX, sizeof m->h);
    const struct header *h = &m->h;
    if (h->values > MOST_RECORDS || h->operations > MOST_RECORDS || h->groups > MOST_RECORDS ||
        h->outputs > MOST_RECORDS || !h->operations || !h->outputs || !h->groups || h->image >= h->values)
        REFUSE("damaged: counts of its plan");
    const uint64_t weights_bytes = version == CODED ? h->pieces_bytes : (uint64_t)h->weights_units * UNIT;
    const uint64_t words = (uint64_t)h->values * VALUE_WORDS + (uint64_t)h->operations * OP_WORDS +
                           (uint64_t)h->groups * GROUP_WORDS + (uint64_t)h->outputs * OUTPUT_WORDS;
    if (!inside((uint64_t)h->card * UNIT, h->card_bytes, size) || !inside((uint64_t)h->plan * UNIT, words * 4, size) ||
        !inside((uint64_t)h->names * UNIT, h->names_bytes, size) || !h->names_bytes ||
        bytes[(uint64_t)h->names * UNIT + h->names_bytes - 1] ||
        !inside((uint64_t)h->weights * UNIT, weights_bytes, size))
        REFUSE("damaged: a part lies outside the file");
    if ((uint64_t)h->arena_units * UNIT > MOST_MEMORY || (uint64_t)h->window_units * UNIT > MOST_MEMORY ||
        (uint64_t)h->weights_units * UNIT > MOST_MEMORY)
        REFUSE("damaged: it asks for more memory than any network");
    m->weights = bytes + (uint64_t)h->weights * UNIT;
    const char *wrong = version == CODED ? mnet_unpack(m) : NULL;
    if (wrong)
        REFUSE("%s", wrong);
    return 1;
}

/* Records of `words` words become structs of `size` bytes, which begin with them. */
static void *records(const uint8_t **at, uint32_t count, size_t words, size_t size)
{
    uint8_t *out = calloc(count + 1u, size);
    for (uint32_t i = 0; out && i < count; i++, *at += words * 4)
        memcpy(out + i * size, *at, words * 4);
    return out;
}

static int read_records(struct mnet_model *m, char *why, size_t room)
{
    const struct header *h = &m->h;
    const uint8_t *at = m->bytes + (uint64_t)h->plan * UNIT;
    m->values = records(&at, h->values, VALUE_WORDS, sizeof *m->values);
    m->ops = records(&at, h->operations, OP_WORDS, sizeof *m->ops);
    m->groups = records(&at, h->groups, GROUP_WORDS, sizeof *m->groups);
    m->outputs = records(&at, h->outputs, OUTPUT_WORDS, sizeof *m->outputs);
    m->reader = malloc((h->values + 1u) * sizeof *m->reader);
    m->names = malloc(h->names_bytes);
    if (!m->values || !m->ops || !m->groups || !m->outputs || !m->reader || !m->names)
        REFUSE("no memory");
    memcpy(m->names, m->bytes + (uint64_t)h->names * UNIT, h->names_bytes);
    return 1;
}

static int check_value(struct mnet_model *m, uint32_t i, char *why, size_t room)
{
    struct value *v = &m->values[i];
    const uint64_t size = v->type == F32 ? 4 : 1;
    const uint64_t room_there = (uint64_t)(v->place == ARENA ? m->h.arena_units : m->h.window_units) * UNIT;
    if (v->type > F32 || v->place > IMAGE || (v->place == IMAGE) != (i == m->h.image) || v->pad > 255 ||
        (v->type == F32 && v->pad))
        REFUSE("damaged: map %u is of no known kind", i);
    if (!v->channels || v->channels > MOST_CHANNELS || !v->height || v->height > MOST_SIDE || !v->width ||
        v->width > MOST_SIDE || v->left > MOST_AROUND || v->right > MOST_AROUND || v->pitch < v->channels ||
        v->pitch > MOST_CHANNELS + LANES || !v->rows || v->rows > v->height ||
        (v->place == ARENA && v->rows != v->height))
        REFUSE("damaged: the size of map %u", i);
    const uint64_t pixel = v->pitch * size, row = (v->left + v->width + v->right) * pixel;
    if (row > INT32_MAX)
        REFUSE("damaged: the size of map %u", i);
    v->pixel = (ptrdiff_t)pixel;
    v->row = (ptrdiff_t)row;
    if (v->place == IMAGE) {
        if (v->type != U8 || v->channels != 3 || v->pitch != 3 || v->left || v->right || v->rows != v->height)
            REFUSE("damaged: the image's size");
    } else if (!inside((uint64_t)v->at * UNIT, v->rows * row + SLACK, room_there))
        REFUSE("damaged: map %u lies outside the memory planned", i);
    m->reader[i] = NONE;
    return 1;
}

static int same_size(const struct value *a, const struct value *b)
{
    return a->height == b->height && a->width == b->width;
}

static int wide(const struct value *v) { return v->pitch % LANES == 0; } /* as kernels write it */

static int in_weights(const struct mnet_model *m, uint32_t at, uint64_t bytes)
{
    return at != NONE && inside((uint64_t)at * UNIT, bytes, (uint64_t)m->h.weights_units * UNIT);
}

/* Weights, and that no sum of theirs can overflow. */
static int check_layer(const struct mnet_model *m, struct op *o, char *why, size_t room)
{
    const char *name = m->names + o->name;
    const struct value *in = &m->values[o->in], *out = &m->values[o->out];
    const int whole = out->type == U8;
    if (in->type != out->type || !o->kh || !o->kw || !o->stride || o->kh > MOST_KERNEL || o->kw > MOST_KERNEL ||
        o->stride > MOST_KERNEL || o->top >= o->kh || o->left > in->left || !wide(out))
        REFUSE("damaged: the shape of %s", name);
    const uint64_t right = (uint64_t)(out->width - 1) * o->stride + o->kw;
    const uint64_t below = (uint64_t)(out->height - 1) * o->stride;
    if (right > (uint64_t)in->width + in->right + o->left || below >= (uint64_t)in->height + o->top)
        REFUSE("damaged: %s reads outside its map", name);
    uint64_t taps = (uint64_t)o->kh * o->kw;
    if (o->kind == DEPTHWISE) {
        if (in->pitch != out->pitch || in->channels != out->channels)
            REFUSE("damaged: the channels of %s", name);
    } else {
        if (o->kind == POINTWISE && (taps != 1 || o->top || o->left))
            REFUSE("damaged: the shape of %s", name);
        taps = o->kind == CONV ? taps * in->pitch : in->channels;
        if (taps > MOST_CHANNELS)
            REFUSE("damaged: the shape of %s", name);
        o->inputs = (int)taps;
    }
    const uint64_t outputs = up(out->channels, PANEL);
    if (out->pitch > outputs || !in_weights(m, o->bias, outputs * 4) ||
        (whole ? o->encoding != INT8 : o->encoding != FLOAT32 && o->encoding != FLOAT16) ||
        (whole && !in_weights(m, o->multiplier, outputs * 4)) ||
        !in_weights(m, o->weights, weight_count(m, o) * (whole ? 1 : o->encoding == FLOAT16 ? 2 : 4)))
        REFUSE("damaged: the weights of %s", name);
    const int32_t *bias = stored(m, o->bias);
    for (uint64_t c = 0; whole && c < outputs; c++)
        if ((uint64_t)llabs((long long)bias[c]) + up(taps, 4) * 255 * 128 > INT32_MAX)
            REFUSE("damaged: sums of %s overflow", name);
    return 1;
}

/* Whether an operation of a detector's has maps of the sizes it needs. */
static int check_detect(const struct op *o, const struct value *in, const struct value *two, const struct value *out)
{
    const int listed = in->type == F32 && in->height == 1 && out->type == F32 && out->height == 1;
    switch (o->kind) {
    case SPREAD:
        return in->type == F32 && out->type == F32 && out->height == 1 && in->channels % out->channels == 0 &&
               (uint64_t)in->height * in->width * (in->channels / out->channels) + o->first <= out->width;
    case UPSAMPLE: return in->type == out->type && in->channels == out->channels && in->pitch == out->pitch;
    case BOXES: return listed && in->channels == 4 && out->channels == 4 && in->width == out->width;
    case SUPPRESS:
        return listed && in->channels == 4 && out->channels == 6 && two->type == F32 && two->height == 1 &&
               two->width == in->width && o->first < two->channels && o->act < SCORES &&
               (o->act != SOFTMAXED || (o->first == 1 && two->channels > 1));
    case PART:
        if (!listed || o->first >= in->channels)
            return 0;
        return out->width == in->width ? out->channels <= in->channels - o->first
                                       : out->width == 1 && out->channels == in->width;
    default: return listed && o->first < in->channels && out->width == 1 && out->channels == 1;
    }
}

/* Whether windows that have no weights lie on their map, and channels are there. */
static int check_windows(const struct mnet_model *m, const struct op *o)
{
    const struct value *in = &m->values[o->in], *out = &m->values[o->out];
    if (in->type != out->type || !wide(out))
        return 0;
    if (o->kind == SELECT) {
        const uint32_t *source = stored(m, o->lut);
        for (uint32_t k = 0; k < out->channels; k++)
            if (source[k] >= in->channels)
                return 0;
        return same_size(in, out);
    }
    return in->pitch == out->pitch && in->channels == out->channels && o->kh && o->kw && o->stride &&
           o->kh <= MOST_KERNEL && o->kw <= MOST_KERNEL && o->stride <= MOST_KERNEL && o->top < o->kh &&
           o->left < o->kw && (uint64_t)(out->height - 1) * o->stride < (uint64_t)in->height + o->top &&
           (uint64_t)(out->width - 1) * o->stride < (uint64_t)in->width + o->left;
}

static int check_op(struct mnet_model *m, uint32_t i, char *why, size_t room)
{
    struct op *o = &m->ops[i];
    const struct header *h = &m->h;
    if (!o->kind || o->kind >= KINDS || o->name >= h->names_bytes || o->in >= h->values || o->out >= h->values ||
        (o->in2 != NONE && o->in2 >= h->values) || o->out == h->image)
        REFUSE("damaged: operation %u", i);
    const char *name = m->names + o->name;
    const struct value *in = &m->values[o->in], *out = &m->values[o->out];
    const struct value *two = o->in2 == NONE ? NULL : &m->values[o->in2];
    if ((o->in == h->image) != (o->kind == PIXELS) || o->in2 == h->image ||
        (two != NULL) != (o->kind == ADD || o->kind == MUL || o->kind == SUPPRESS))
        REFUSE("damaged: the inputs of %s", name);
    if (o->zero < 0 || o->zero > 255 || o->low < 0 || o->low > o->high || o->high > 255 || o->act >= ACTS ||
        o->za < 0 || o->za > 255 || o->zb < 0 || o->zb > 255)
        REFUSE("damaged: the numbers of %s", name);
    const uint64_t table = o->kind == PIXELS  ? 3 * 256 * (out->type == F32 ? 4 : 1)
                           : o->kind == BOXES ? (uint64_t)in->width * ANCHOR_WORDS * 4
                           : o->kind == SELECT ? (uint64_t)out->channels * 4
                                              : 256;
    const int has_table = o->kind == PIXELS || o->kind == LUT || o->kind == BOXES || o->kind == SELECT;
    if ((o->lut != NONE || has_table) && !in_weights(m, o->lut, table))
        REFUSE("damaged: the table of %s", name);
    if (spatial(o->kind))
        return check_layer(m, o, why, room);
    if (o->kind >= MAXPOOL) {
        if (!check_windows(m, o))
            REFUSE("damaged: the maps of %s", name);
        return 1;
    }
    if (o->kind >= SPREAD) {
        if (!check_detect(o, in, two, out))
            REFUSE("damaged: the maps of %s", name);
        return 1;
    }
    const int alike = in->type == out->type && in->pitch == out->pitch && wide(out);
    int good = 0;
    switch (o->kind) {
    case PIXELS: good = same_size(in, out) && out->channels == 3; break;
    case ADD:
        good = alike && same_size(in, out) && same_size(two, out) && two->pitch == out->pitch && two->type == out->type;
        break;
    case MUL:
        good = alike && same_size(in, out) && two->pitch == out->pitch && two->type == out->type && two->height == 1 &&
               two->width == 1 && two->place == ARENA;
        break;
    case LUT: good = alike && same_size(in, out) && out->type == U8; break;
    case ACT: good = alike && same_size(in, out) && out->type == F32; break;
    case POOL:
        good = alike && out->height == 1 && out->width == 1 && (uint64_t)in->height * in->width <= INT32_MAX / 256;
        break;
    case QUANTIZE:
    case DEQUANTIZE:
        good = same_size(in, out) && in->pitch == out->pitch && in->type == (o->kind == QUANTIZE ? F32 : U8) &&
               out->type == (o->kind == QUANTIZE ? U8 : F32);
        break;
    case COPY:
        good = same_size(in, out) && in->type == out->type && o->first <= out->channels &&
               in->channels <= out->channels - o->first && (o->lut == NONE || out->type == U8);
        break;
    case FLATTEN:
        good = in->type == F32 && out->type == F32 && out->height == 1 && out->width == 1 &&
               (uint64_t)in->height * in->width * in->channels == out->channels;
        break;
    default: good = alike && same_size(in, out) && in->channels == out->channels && out->type == F32; break;
    }
    if (!good)
        REFUSE("damaged: the maps of %s", name);
    return 1;
}

/* What a group needs: every operation but the last writes a window, which one later operation of the group reads; and
 * the window has room for the rows that are needed at once. */
static int check_group(struct mnet_model *m, const struct group *g, uint8_t *made, uint32_t *need, char *why,
                       size_t room)
{
    const uint32_t end = g->first + g->count, last = end - 1;
    if (!g->strip || g->split > CHANNELS || (g->split == CHANNELS && g->count > 1))
        REFUSE("damaged: the group of %s", m->names + m->ops[g->first].name);
    for (uint32_t i = g->first; i < end; i++) {
        const struct op *o = &m->ops[i];
        const uint32_t inputs[2] = {o->in, o->in2};
        const char *name = m->names + o->name;
        for (int j = 0; j < 2; j++) {
            const uint32_t v = inputs[j];
            if (v == NONE || v == m->h.image)
                continue;
            if (!made[v] || v == o->out)
                REFUSE("damaged: %s reads what isn't there", name);
            if (m->values[v].place == WINDOW) {
                if (m->reader[v] != NONE || (is_whole(o->kind)))
                    REFUSE("damaged: %s reads a window that it can't", name);
                m->reader[v] = i;
            }
        }
        const struct value *out = &m->values[o->out];
        if ((out->place == ARENA) != (i == last) || (made[o->out] && o->kind != COPY && o->kind != SPREAD) ||
            (out->place == WINDOW && made[o->out]))
            REFUSE("damaged: %s writes where it can't", name);
        made[o->out] = 1;
    }
    const uint32_t height = m->values[m->ops[last].out].height;
    for (uint32_t i = end; i-- > g->first;) {
        const struct op *o = &m->ops[i];
        const struct value *out = &m->values[o->out];
        if (i == last) {
            need[i] = g->strip < height ? g->strip : height;
            continue;
        }
        const uint32_t r = m->reader[o->out];
        if (r == NONE || r <= i || r >= end)
            REFUSE("damaged: nothing reads the rows of %s", m->names + o->name);
        const struct op *by = &m->ops[r];
        const uint64_t rows = spatial(by->kind) ? (uint64_t)(need[r] - 1) * by->stride + by->kh : need[r];
        need[i] = rows < out->height ? (uint32_t)rows : out->height;
        if (out->rows < need[i])
            REFUSE("damaged: the rows of %s don't fit", m->names + o->name);
    }
    for (uint32_t i = g->first; i < end; i++) /* a window is gone when its group is done */
        if (m->values[m->ops[i].out].place == WINDOW)
            made[m->ops[i].out] = 2;
    return 1;
}

static int check_plan(struct mnet_model *m, uint8_t *made, uint32_t *need, char *why, size_t room)
{
    const struct header *h = &m->h;
    for (uint32_t i = 0; i < h->values; i++)
        if (!check_value(m, i, why, room))
            return 0;
    for (uint32_t i = 0; i < h->operations; i++)
        if (!check_op(m, i, why, room))
            return 0;
    uint32_t next = 0;
    for (uint32_t i = 0; i < h->groups; i++) {
        const struct group *g = &m->groups[i];
        if (g->first != next || !g->count || g->count > h->operations - next)
            REFUSE("damaged: its groups");
        if (!check_group(m, g, made, need, why, room))
            return 0;
        next += g->count;
    }
    if (next != h->operations)
        REFUSE("damaged: its groups");
    for (uint32_t i = 0; i < h->outputs; i++) {
        const struct output *o = &m->outputs[i];
        if (o->name >= h->names_bytes || o->value >= h->values || o->rank > 3)
            REFUSE("damaged: output %u", i);
        const struct value *v = &m->values[o->value];
        if (v->type != F32 || v->place != ARENA || !made[o->value] ||
            (o->rank < 3 && v->height != 1) || (o->rank < 2 && v->width != 1) || (o->rank == 0 && v->channels != 1))
            REFUSE("damaged: output %s", m->names + o->name);
    }
    return 1;
}

static int read_plan(struct mnet_model *m, size_t size, char *why, size_t room)
{
    if (!read_header(m, size, why, room) || !read_records(m, why, room))
        return 0;
    uint8_t *made = calloc(m->h.values + 1u, 1);
    uint32_t *need = calloc(m->h.operations + 1u, sizeof *need);
    int good = made && need;
    if (good)
        good = check_plan(m, made, need, why, room);
    else
        refuse(why, room, "no memory");
    free(made);
    free(need);
    return good;
}

struct mnet_model *mnet_open(const void *bytes, size_t size, char *why, size_t room)
{
    struct mnet_model *m = calloc(1, sizeof *m);
    if (!m) {
        refuse(why, room, "no memory");
        return NULL;
    }
    m->bytes = bytes;
    if (read_plan(m, size, why, room))
        return m;
    mnet_close(m);
    return NULL;
}

void mnet_close(struct mnet_model *m)
{
    if (!m)
        return;
    free(m->values);
    free(m->ops);
    free(m->groups);
    free(m->outputs);
    free(m->reader);
    free(m->names);
    free(m->unpacked);
    free(m);
}

const char *mnet_card(const struct mnet_model *m, size_t *size)
{
    *size = m->h.card_bytes;
    return (const char *)m->bytes + (size_t)m->h.card * UNIT;
}

void mnet_image(const struct mnet_model *m, int *height, int *width)
{
    *height = (int)m->values[m->h.image].height;
    *width = (int)m->values[m->h.image].width;
}

int mnet_outputs(const struct mnet_model *m) { return (int)m->h.outputs; }

const char *mnet_output(const struct mnet_model *m, int i, int *rank, int shape[3])
{
    const struct output *o = &m->outputs[i];
    const struct value *v = &m->values[o->value];
    const int rows = o->rank == 2;
    *rank = (int)o->rank;
    shape[0] = (int)(rows ? v->width : v->channels);
    shape[1] = (int)(rows ? v->channels : v->height);
    shape[2] = (int)v->width;
    return m->names + o->name;
}

int mnet_layer_count(const struct mnet_model *m) { return (int)m->h.operations; }

const char *mnet_layer(const struct mnet_model *m, int i, int *group)
{
    for (*group = 0; (uint32_t)i >= m->groups[*group].first + m->groups[*group].count; ++*group)
        ;
    return m->names + m->ops[i].name;
}
