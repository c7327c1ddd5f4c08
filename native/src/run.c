/* Runs images: group after group, each group's operations in strips of rows. */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* clock_gettime */
#endif
#include "session.h"

#include <stdatomic.h>
#include <string.h>
#include <time.h>

static double now(void) /* nanoseconds */
{
    struct timespec t;
#if defined(_WIN32)
    timespec_get(&t, TIME_UTC);
#else
    clock_gettime(CLOCK_MONOTONIC, &t);
#endif
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

static void compute(const struct context *c, uint32_t i, int from, int to, int first, int last)
{
    double *times = c->s->nanoseconds;
    if (!times || c->t != c->s->thread) {
        mnet_rows(c, i, from, to, first, last);
        return;
    }
    const double start = now();
    mnet_rows(c, i, from, to, first, last);
    times[i] += now() - start;
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

/* One thread's part of a group. */
static void run_group(const struct context *c, const struct group *g, int thread, int threads)
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

struct job {
    struct mnet_session *s;
    const uint8_t *image;
    float *const *outputs;
    int image_index;
};

static struct context context_of(const struct job *j, int arena, int thread, int image)
{
    const struct value *v = &j->s->model->values[j->s->model->h.image];
    const size_t bytes = (size_t)v->height * (size_t)v->row;
    return (struct context){j->s, &j->s->thread[thread], j->s->arena[arena], j->image + (size_t)image * bytes};
}

/* Channels first, as they are given out. */
static void give(const struct context *c, const struct job *j, int image)
{
    const struct mnet_model *m = c->s->model;
    for (uint32_t i = 0; i < m->h.outputs; i++) {
        const struct value *v = &m->values[m->outputs[i].value];
        const size_t plane = (size_t)v->height * v->width;
        float *out = j->outputs[i] + (size_t)image * v->channels * plane;
        for (int r = 0; r < (int)v->height; r++) {
            const float *x = (const void *)mnet_row(c, m->outputs[i].value, r);
            for (size_t w = 0; w < v->width; w++, x += v->pitch)
                for (size_t k = 0; k < v->channels; k++)
                    out[k * plane + (size_t)r * v->width + w] = x[k];
        }
    }
}

static void together(void *what, int thread, int threads)
{
    const struct job *j = what;
    const struct mnet_model *m = j->s->model;
    const struct context c = context_of(j, 0, thread, j->image_index);
    for (uint32_t g = 0; g < m->h.groups; g++) {
        run_group(&c, &m->groups[g], thread, threads);
        pool_meet(j->s->pool);
    }
    if (thread == 0)
        give(&c, j, j->image_index);
}

static void apart(void *what, int thread, int threads)
{
    (void)threads;
    const struct job *j = what;
    const struct mnet_model *m = j->s->model;
    const struct context c = context_of(j, thread, thread, j->image_index + thread);
    for (uint32_t g = 0; g < m->h.groups; g++)
        run_group(&c, &m->groups[g], 0, 1);
    give(&c, j, j->image_index + thread);
}

static int arenas(struct mnet_session *s)
{
    for (int i = 1; i < s->threads; i++)
        if (!s->arena[i] && !(s->arena[i] = mnet_allocate(s, (size_t)s->model->h.arena_units * UNIT + SLACK)))
            return 0;
    return 1;
}

int mnet_run(struct mnet_session *s, const uint8_t *images, int n, float *const outputs[])
{
    if (n < 1)
        return MNET_WRONG;
    if (atomic_flag_test_and_set((atomic_flag *)s->busy))
        return MNET_BUSY;
    struct job j = {s, images, outputs, 0};
    int code = MNET_OK;
    if (s->threads > 1 && n >= s->threads) {
        code = arenas(s) ? MNET_OK : MNET_MEMORY;
        for (; code == MNET_OK && n - j.image_index >= s->threads; j.image_index += s->threads)
            pool_run(s->pool, apart, &j);
    }
    for (; code == MNET_OK && j.image_index < n; j.image_index++)
        pool_run(s->pool, together, &j);
    atomic_flag_clear((atomic_flag *)s->busy);
    return code;
}

int mnet_layers(struct mnet_session *s, const uint8_t *image, float *const outputs[], double nanoseconds[])
{
    if (atomic_flag_test_and_set((atomic_flag *)s->busy))
        return MNET_BUSY;
    struct job j = {s, image, outputs, 0};
    memset(nanoseconds, 0, s->model->h.operations * sizeof *nanoseconds);
    s->nanoseconds = nanoseconds;
    pool_run(s->pool, together, &j);
    s->nanoseconds = NULL;
    atomic_flag_clear((atomic_flag *)s->busy);
    return MNET_OK;
}
