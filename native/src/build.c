/* Lays out a session: memory, and weights as the kernels want them. */
#include "session.h"

#include <math.h>
#include <string.h>

static float from_half(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, fraction = h & 1023u;
    uint32_t bits;
    float f;
    if (exponent == 0) {
        f = ldexpf((float)fraction, -24);
        return sign ? -f : f;
    }
    bits = sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Weights are read where they lie in the file, but for halves, and depthwise ones that the kernels lay out anew. */
static int prepare(struct mnet_session *s, uint32_t i)
{
    const struct mnet_model *m = s->model;
    const struct op *o = &m->ops[i];
    if (o->encoding == NO_WEIGHTS || !spatial(o->kind))
        return 1;
    const void *w = s->weights[i] = stored(m, o->weights);
    const size_t n = weight_count(m, o);
    if (USES(HALVES, F32) && o->encoding == FLOAT16) {
        float *wide = mnet_allocate(s, n * sizeof *wide);
        for (size_t k = 0; wide && k < n; k++)
            wide[k] = from_half(((const uint16_t *)w)[k]);
        s->weights[i] = wide;
    } else if (o->encoding == INT8 && o->kind == DEPTHWISE && KERNELS(s) != &mnet_scalar) { /* which reads them so */
        const int channels = (int)m->values[o->out].pitch;
        void *packed = mnet_allocate(s, KERNELS(s)->depthwise_bytes((int)o->kh, (int)o->kw, channels));
        if (packed)
            KERNELS(s)->depthwise_pack(w, (int)o->kh, (int)o->kw, channels, packed);
        s->weights[i] = packed;
    } else if (mnet_in_place(s, o)) {
        const struct windows *windows = KERNELS(s)->windows;
        const int kh = (int)o->kh, run = (int)o->kw * (int)m->values[o->in].pixel;
        const int channels = (int)m->values[o->out].pitch;
        void *packed = mnet_allocate(s, windows->bytes(kh, run, channels));
        if (packed)
            windows->pack(w, kh, run, channels, packed);
        s->weights[i] = packed;
    }
    return s->weights[i] != NULL;
}

/* What all operations need at most of a thread's own memory, and of rows of padding. */
struct needs {
    size_t gather, scratch, around[256];
};

static void need(struct needs *n, const struct mnet_session *s, const struct op *o)
{
    const struct mnet_model *m = s->model;
    const struct value *in = &m->values[o->in], *out = &m->values[o->out];
    size_t gather = (size_t)out->pitch * 4 + SLACK;
    if (o->kind == CONV && !mnet_in_place(s, o)) {
        const size_t pixels = (size_t)mnet_gather_pixels(m, o);
        const size_t windows = pixels * mnet_gather_stride(m, o) + 2 * SLACK;
        gather = windows > gather ? windows : gather;
    }
    if (o->kind == SUPPRESS) {
        const size_t heap = in->width * sizeof(struct candidate);
        gather = heap > gather ? heap : gather;
    }
    n->gather = gather > n->gather ? gather : n->gather;
    if ((o->kind == CONV || o->kind == POINTWISE) && out->type == U8) {
        const size_t scratch = KERNELS(s)->pointwise_scratch(o->inputs);
        n->scratch = scratch > n->scratch ? scratch : n->scratch;
    }
    const size_t row = (size_t)in->row + SLACK;
    if (spatial(o->kind) && row > n->around[in->pad])
        n->around[in->pad] = row;
}

int mnet_build(struct mnet_session *s)
{
    const struct mnet_model *m = s->model;
    const size_t threads = (size_t)s->threads, operations = m->h.operations;
    struct needs n = {0};
    s->thread = mnet_allocate(s, threads * sizeof *s->thread);
    s->arena = mnet_allocate(s, threads * sizeof *s->arena);
    s->weights = mnet_allocate(s, operations * sizeof *s->weights);
    if (!s->thread || !s->arena || !s->weights)
        return 0;
    for (uint32_t i = 0; i < operations; i++) {
        if (!prepare(s, i))
            return 0;
        need(&n, s, &m->ops[i]);
    }
    for (int b = 0; b < 256; b++)
        if (n.around[b]) {
            if (!(s->around[b] = mnet_allocate(s, n.around[b])))
                return 0;
            memset(s->around[b], b, n.around[b]);
        }
    for (size_t i = 0; i < threads; i++) {
        struct thread *t = &s->thread[i];
        t->windows = mnet_allocate(s, (size_t)m->h.window_units * UNIT + SLACK);
        t->gather = mnet_allocate(s, n.gather);
        t->scratch = mnet_allocate(s, n.scratch + SLACK);
        t->from = mnet_allocate(s, m->h.values * sizeof *t->from);
        t->done = mnet_allocate(s, 2 * operations * sizeof *t->done);
        if (!t->windows || !t->gather || !t->scratch || !t->from || !t->done)
            return 0;
    }
    return (s->arena[0] = mnet_allocate(s, (size_t)m->h.arena_units * UNIT + SLACK)) != NULL;
}
