/* Runs groups: their operations in strips of rows. */
#include "session.h"

#include <string.h>

static void compute(const struct context *c, uint32_t i, int from, int to, int first, int last)
{
    if (c->s->timed && c->t == c->s->thread)
        c->s->timed(c, i, from, to, first, last);
    else
        mnet_rows(c, i, from, to, first, last);
}

static int between(int64_t v, int most)
{
    return v < 0 ? 0 : v > most ? most : (int)v;
}

/* The first row of its input, and the one behind the last, that an operation reads for rows up to `row`. */
static int first_read(const struct op *o, int row, int height)
{
    return spatial(o->kind) ? between((int64_t)row * o->stride - o->top, height) : row;
}
static int last_read(const struct op *o, int row, int height)
{
    return spatial(o->kind) ? between((int64_t)(row - 1) * o->stride - o->top + o->kh, height) : row;
}

/* What is no longer needed of a window leaves it: rows from `keep` on move to its beginning. */
static void slide(const struct context *c, uint32_t value, int keep, int end)
{
    const struct value *v = &c->s->model->values[value];
    int *from = &c->t->from[value];
    if (keep <= *from)
        return;
    uint8_t *at = c->t->windows + (size_t)v->at * UNIT;
    if (keep < end)
        memmove(at, at + (keep - *from) * v->row, (size_t)((end - keep) * v->row));
    *from = keep;
}

/* Rows [from, to) of a group's last operation. Every other one computes what its reader needs and hasn't got. */
static void run_rows(const struct context *c, const struct group *g, int from, int to)
{
    const struct mnet_model *m = c->s->model;
    const uint32_t last = g->first + g->count - 1;
    int *done = c->t->done;
    done[last] = from;
    for (uint32_t i = last; i-- > g->first;) {
        const uint32_t v = m->ops[i].out, r = m->reader[v];
        done[i] = c->t->from[v] = first_read(&m->ops[r], done[r], (int)m->values[v].height);
    }
    const int height = (int)m->values[m->ops[last].out].height;
    const int strip = g->strip < (uint32_t)height ? (int)g->strip : height;
    int *upto = c->t->done + m->h.operations;
    for (int a = from; a < to; a += strip) {
        upto[last] = to - a < strip ? to : a + strip;
        for (uint32_t i = last; i-- > g->first;) {
            const uint32_t v = m->ops[i].out, r = m->reader[v];
            upto[i] = last_read(&m->ops[r], upto[r], (int)m->values[v].height);
        }
        for (uint32_t i = g->first; i <= last; i++) {
            const uint32_t v = m->ops[i].out;
            if (i < last) {
                const uint32_t r = m->reader[v];
                const int keep = first_read(&m->ops[r], done[r], (int)m->values[v].height);
                slide(c, v, keep, done[i]);
                done[i] = done[i] > keep ? done[i] : keep;
            }
            if (done[i] < upto[i]) {
                compute(c, i, done[i], upto[i], 0, (int)m->values[v].pitch);
                done[i] = upto[i];
            }
        }
    }
}

void mnet_group(const struct context *c, const struct group *g, int thread, int threads)
{
    const struct mnet_model *m = c->s->model;
    const struct value *out = &m->values[m->ops[g->first + g->count - 1].out];
    const struct op *o = &m->ops[g->first];
    const int divisible = spatial(o->kind) || (o->kind == POOL && out->type == U8);
    if (threads > 1 && g->split == CHANNELS && divisible) {
        const int panels = ((int)out->pitch + PANEL - 1) / PANEL, each = (panels + threads - 1) / threads * PANEL;
        const int first = thread * each, last = first + each < (int)out->pitch ? first + each : (int)out->pitch;
        if (first < last)
            compute(c, g->first, 0, (int)out->height, first, last);
        return;
    }
    const int each = ((int)out->height + threads - 1) / threads, from = thread * each;
    const int to = from + each < (int)out->height ? from + each : (int)out->height;
    if (from < to)
        run_rows(c, g, from, to);
}

void mnet_give(const struct context *c, float *const outputs[], int image)
{
    const struct mnet_model *m = c->s->model;
    for (uint32_t i = 0; i < m->h.outputs; i++) {
        const struct value *v = &m->values[m->outputs[i].value];
        const size_t plane = (size_t)v->height * v->width;
        float *out = outputs[i] + (size_t)image * v->channels * plane;
        const int rows = m->outputs[i].rank == 2; /* whose columns come last */
        for (int r = 0; r < (int)v->height; r++) {
            const float *x = (const void *)mnet_row(c, m->outputs[i].value, r);
            for (size_t w = 0; w < v->width; w++, x += v->pitch)
                for (size_t k = 0; k < v->channels; k++)
                    out[rows ? w * v->channels + k : k * plane + (size_t)r * v->width + w] = x[k];
        }
    }
}
